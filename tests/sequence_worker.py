"""What each of the gloo processes of `test_sequence_parallel.py` runs: one training step on its shard of the sequences.

Every scenario is a function of the rank and the number of processes; `single` computes what the ranks must agree with.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import build, gradients, tiny_config, tokens

from hf_reformer.parallel import sequence_parallel, sum_gradients

STRICT = ["strict_local", "strict_lsh", "full", "strict_lsh"]
PUBLISHED = ["local", "lsh", "full_shared_qk"]
BATCH, LENGTH = 4, 41  # 12 rows with 3 heads; no number of processes divides the length


def model_of(layers, **changes):
    return build(tiny_config(layers, **changes)).train()


def inputs_of(model, padding=None, packed=False):
    """The whole batch: labels of some tokens are ignored."""
    ids = tokens(model.config, BATCH, LENGTH, seed=5)
    inputs = {"input_ids": ids, "labels": ids.masked_fill(torch.rand(ids.shape, generator=generator(6)) < 0.2, -100)}
    if padding is not None:
        places, counts = torch.arange(LENGTH), torch.tensor([[0], [3], [23], [30]])  # two rows are short of a shard
        mask = places >= counts if padding == "left" else places < LENGTH - counts
        inputs |= {"attention_mask": mask.long(), "labels": inputs["labels"].masked_fill(~mask, -100)}
    if packed:
        inputs["position_ids"] = torch.cat([torch.arange(11), torch.arange(LENGTH - 11)])[None].expand(BATCH, -1)
    return inputs


def generator(seed):
    return torch.Generator().manual_seed(seed)


def shard(inputs, rank, world, own_labels=False):
    """This rank's part of everything, with labels shifted before they are cut."""
    inputs = dict(inputs)
    if not own_labels:
        inputs["shift_labels"] = torch.nn.functional.pad(inputs.pop("labels"), (0, 1), value=-100)[:, 1:]
    return {name: x.tensor_split(world, 1)[rank] for name, x in inputs.items()}


def items(inputs):
    return int((inputs["labels"][:, 1:] != -100).sum())


def result(model, loss):
    return {"loss": loss.detach(), **gradients(model)}


def single(model, inputs):
    torch.manual_seed(7)
    loss = model(**inputs).loss
    loss.backward()
    return result(model, loss)


def shared(model, inputs, rank, world, group=None, own_labels=False, count=True, backward_within=False):
    """The losses and gradients of all ranks, added up."""
    torch.manual_seed(7)
    count = {"num_items_in_batch": items(inputs)} if count else {}
    with sequence_parallel(model, group):
        loss = model(**shard(inputs, rank, world, own_labels), **count).loss
        if backward_within:
            loss.backward()
    if not backward_within:
        loss.backward()
    sum_gradients(model, group)
    loss = loss.detach().clone()
    dist.all_reduce(loss, group=group)
    return result(model, loss)


# --- equal to one process ---------------------------------------------------------------------------------------------

EQUAL = {
    "strict": ({"layers": STRICT}, {}, {}),
    "strict, ordinary autograd": ({"layers": STRICT, "reversible": False}, {}, {"backward_within": True}),
    "strict, padded on the left": ({"layers": STRICT}, {"padding": "left"}, {}),
    "strict, padded on the right": ({"layers": STRICT}, {"padding": "right"}, {"own_labels": True}),
    "strict, packed": ({"layers": STRICT}, {"packed": True}, {"count": False}),
    "strict, learned positions": ({"layers": STRICT, "axial_pos_embds": False}, {"padding": "left"}, {}),
    "published": ({"layers": PUBLISHED}, {}, {"own_labels": True, "count": False}),
    "published, padded": ({"layers": PUBLISHED, "reversible": False}, {"padding": "right"}, {}),
}


def equal(name):
    """The single process's result."""
    settings, data, _ = EQUAL[name]
    model = model_of(**settings)
    return single(model, inputs_of(model, **data))


def equal_shared(name, rank, world):
    settings, data, options = EQUAL[name]
    model = model_of(**settings)
    return shared(model, inputs_of(model, **data), rank, world, **options)


def main(rank, world, folder, names):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=Path(folder, "meeting").as_uri(), rank=rank, world_size=world)
    for name in names:
        try:
            found = equal_shared(name, rank, world) if name in EQUAL else SCENARIOS[name](rank, world)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        if rank == 0:
            torch.save(found, Path(folder, f"{name}.pt"))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # an ordinary exit aborts now and then: PyTorch ends threads of gloo that still run


SCENARIOS = {}
