"""What each of the two processes of `test_distributed.py` runs: training steps under DDP and FSDP2 over gloo."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import DROPOUT, build, cotangent, tiny_config, tokens

from hf_reformer import ReformerForConditionalGeneration
from hf_reformer.model.layer import ReformerLayer

WORLD, STEPS, RATE = 2, 3, 0.05


def fresh_model():
    return build(tiny_config(["local", "strict_lsh", "lsh", "strict_local"], **DROPOUT)).train()


def loss_of(model, step, rank):
    """Each rank has its own examples and its own random numbers, a function of step and rank alone."""
    torch.manual_seed(100 * step + rank)
    logits = model(tokens(fresh_config(model), 2, 41, seed=100 * step + rank)).logits
    return (logits * cotangent(logits, seed=step)).mean()


def fresh_config(model):
    return getattr(model, "module", model).config


def fresh_encoder_decoder():
    layers = {"decoder_attn_layers": ["strict_lsh", "strict_local"], "is_encoder_decoder": True, "is_decoder": False}
    config = tiny_config(["strict_local", "strict_lsh"], **layers, **DROPOUT)
    return build(config, ReformerForConditionalGeneration).train()


def loss_of_both(model, step, rank):
    torch.manual_seed(100 * step + rank)
    config = fresh_config(model)
    source, target = (tokens(config, 2, length, seed=100 * step + rank) for length in (41, 23))
    return model(source, labels=target).loss


def train(model, losses):
    """Plain gradient descent; `losses(step)` yields this process's losses, whose gradients add up."""
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(STEPS):
        for loss in losses(step):
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def single_process(fresh=fresh_model, loss=loss_of):
    """Parameters after the same steps in one process: the mean of the ranks' losses."""
    model = fresh()
    train(model, lambda step: (loss(model, step, rank) / WORLD for rank in range(WORLD)))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def ddp(rank, find_unused_parameters, fresh=fresh_model, loss=loss_of):
    model = fresh()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=find_unused_parameters)
    train(wrapped, lambda step: [loss(wrapped, step, rank)])
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def fsdp2(rank, fresh=fresh_model, loss=loss_of, **settings):
    """`fully_shard` on every layer, parameters resharded after forward, then on the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = fresh(), init_device_mesh("cpu", (WORLD,))
    for layer in [module for module in model.modules() if isinstance(module, ReformerLayer)]:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, **settings)
    fully_shard(model, mesh=mesh, **settings)
    train(model, lambda step: [loss(model, step, rank)])
    return {name: parameter.detach().full_tensor() for name, parameter in model.named_parameters()}


def fsdp2_offloaded(rank):
    """Parameters, gradients and optimiser on the CPU between the layers' turns (here the device is one too)."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    return fsdp2(rank, offload_policy=CPUOffloadPolicy(pin_memory=False))


SCENARIOS = {
    "ddp": lambda rank: ddp(rank, False),
    "ddp with find_unused_parameters": lambda rank: ddp(rank, True),
    "fsdp2": fsdp2,
    "fsdp2 with offload": fsdp2_offloaded,
    "encoder-decoder under fsdp2": lambda rank: fsdp2(rank, fresh_encoder_decoder, loss_of_both),
    "encoder-decoder under ddp": lambda rank: ddp(rank, False, fresh_encoder_decoder, loss_of_both),
}


def run(rank, folder):
    """Runs every scenario; rank 0 writes the parameters, or the error, to `folder`."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for name, scenario in SCENARIOS.items():
        meeting_point = Path(folder, f"{name} meeting point").as_uri().replace("%20", " ")
        dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=WORLD)
        try:
            result = scenario(rank)
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        dist.destroy_process_group()
        if rank == 0:
            torch.save(result, Path(folder, f"{name}.pt"))
    os._exit(0)  # an ordinary exit aborts now and then: PyTorch ends threads of gloo that still run
