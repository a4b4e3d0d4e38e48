"""What each of the gloo processes of `test_sequence_parallel.py` runs: one training step on its shard of the sequences.

Every scenario is a function of the rank and the number of processes; `single` computes what the ranks must agree with.
"""

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from helpers import DROPOUT, build, cotangent, gradients, tiny_config, tokens

import hf_reformer
from benchmarks.sequence_parallel import KINDS, Model, step
from hf_reformer.model import hashing
from hf_reformer.parallel import sequence_parallel, sum_gradients

STRICT = ["strict_local", "strict_lsh", "full", "strict_lsh"]
PUBLISHED = ["local", "lsh", "full_shared_qk"]
BATCH, LENGTH = 4, 41  # 12 rows with 3 heads; no number of processes divides the length


def model_of(layers, cls=None, **changes):
    return build(tiny_config(layers, **changes), cls).train()


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


def items(*batches):
    return sum(int((inputs["labels"][:, 1:] != -100).sum()) for inputs in batches)


def result(model, loss):
    return {"loss": loss.detach(), **gradients(model)}


def single(model, inputs):
    torch.manual_seed(7)
    loss = model(**inputs).loss
    loss.backward()
    return result(model, loss)


def shared(
    model, inputs, rank, world, group=None, own_labels=False, count=True, backward_within=False, checkpointing=False,
    at_the_budget=False,
):  # fmt: skip
    """The losses and gradients of all ranks, added up."""
    torch.manual_seed(7)
    if checkpointing:
        model.gradient_checkpointing_enable()
    if at_the_budget:  # some shards are longer than what it lets be kept, the others are not
        per_token = sum(layer.bytes_kept(torch.float64) for layer in model.reformer.encoder.layers)
        model.reformer.encoder.budget = BATCH * (LENGTH // world + 0.5) * per_token / 2**20
    count = {"num_items_in_batch": items(inputs)} if count else {}
    with sequence_parallel(model, group):
        loss = model(**shard(inputs, rank, world, own_labels), **count).loss
        if backward_within:
            loss.backward()
    if not backward_within:
        loss.backward()
    sum_gradients(model, group)
    return result(model, total(loss, group))


def total(number, group=None):
    number = number.detach().clone()
    dist.all_reduce(number, group=group)
    return number


# --- equal to one process ---------------------------------------------------------------------------------------------

EQUAL = {
    "strict": ({"layers": STRICT}, {}, {}),
    "strict, ordinary autograd": ({"layers": STRICT, "reversible": False}, {}, {"backward_within": True}),
    "strict, padded on the left": ({"layers": STRICT}, {"padding": "left"}, {}),
    "strict, padded on the right": ({"layers": STRICT}, {"padding": "right"}, {"own_labels": True}),
    "strict, packed": ({"layers": STRICT}, {"packed": True}, {"count": False}),
    "strict, learned positions": ({"layers": STRICT, "axial_pos_embds": False}, {"padding": "left"}, {}),
    "strict, gradient checkpointing": ({"layers": STRICT, "reversible": False}, {}, {"checkpointing": True}),
    "strict, reversible where long": ({"layers": STRICT, "reversible": "auto"}, {}, {"at_the_budget": True}),
    "masked": ({"layers": STRICT, "is_decoder": False}, {"padding": "left"}, {"own_labels": True, "count": False}),
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


# --- beside data parallelism ------------------------------------------------------------------------------------------


def batches_of(model, replicas):
    """A batch for each of the replicas, with unequal numbers of labels."""
    batches = []
    for replica in range(replicas):
        inputs = inputs_of(model, "left" if replica else None)
        batches.append(inputs | {"input_ids": inputs["input_ids"].roll(replica, 1)})
    return batches


def replicated(replicas):
    """The single process's gradients over the batches of all replicas."""
    model = model_of(STRICT)
    batches = batches_of(model, replicas)
    ones = torch.ones(BATCH, LENGTH, dtype=torch.long)
    names = ("input_ids", "labels", "attention_mask")
    return single(model, {n: torch.cat([{"attention_mask": ones, **b}[n] for b in batches]) for n in names})


def replicated_shared(rank, world, wrap):
    """Shards over the inner dimension of a mesh, other batches over the outer one, gradients over the whole of it."""
    from torch.distributed.device_mesh import init_device_mesh

    replicas = world // 2
    mesh = init_device_mesh("cpu", (replicas, 2), mesh_dim_names=("dp", "sp"))
    model = model_of(STRICT)
    batches = batches_of(model, replicas)
    wrapped = wrap(model)
    inputs = shard(batches[mesh["dp"].get_local_rank()], mesh["sp"].get_local_rank(), 2)
    torch.manual_seed(7)
    with sequence_parallel(wrapped, mesh["sp"].get_group()):
        loss = wrapped(**inputs, num_items_in_batch=items(*batches)).loss
    (world * loss).backward()  # DDP and FSDP2 take the mean of the gradients
    whole = {n: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for n, p in model.named_parameters()}
    return {"loss": total(loss), **whole}


def fsdp2(model):
    from torch.distributed.fsdp import fully_shard

    for layer in model.reformer.encoder.layers:
        fully_shard(layer, reshard_after_forward=True)
    return fully_shard(model)


# --- dropout, other models, errors --------------------------------------------------------------------------------------


def dropout(rank, world):
    """Gradients of both ways of backward, and what was drawn on each rank."""
    model = model_of(STRICT + PUBLISHED, **DROPOUT)
    rotations, found, sample = [], {}, hashing.sample_rotations
    hashing.sample_rotations = lambda **arguments: rotations.append(sample(**arguments)) or rotations[-1]
    for reversible in (True, False):
        model.reformer.encoder.reversible = reversible
        model.zero_grad()
        found[reversible] = shared(model, inputs_of(model, "left"), rank, world)
    after = torch.rand(5)
    with sequence_parallel(model):
        within = torch.rand(5)
    drawn = {"rotations": torch.cat([r.flatten() for r in rotations]), "after": after, "within": within}
    return found, {name: gathered(x, world) for name, x in drawn.items()}


def gathered(x, world):
    found = [torch.empty_like(x) for _ in range(world)]
    dist.all_gather(found, x.contiguous())
    return found


def body(rank, world):
    """Hidden states of a model without head, in evaluation with and without gradients, and gradients of embeddings."""
    model = model_of(STRICT, hf_reformer.ReformerModel).eval()
    embeds = embeddings_of(model).tensor_split(world, 1)[rank].detach().requires_grad_()
    with sequence_parallel(model):
        hidden = model(inputs_embeds=embeds).last_hidden_state
        with torch.no_grad():
            again = model(inputs_embeds=embeds).last_hidden_state
    (hidden * cotangent(embeddings_of(model).repeat(1, 1, 2)).tensor_split(world, 1)[rank]).sum().backward()
    sum_gradients(model)
    names = ("hidden", "again", "embeds")
    whole = {n: gathered_shards(x.detach(), world) for n, x in zip(names, (hidden, again, embeds.grad), strict=True)}
    return {**whole, **gradients(model)}


def gathered_shards(x, world):
    wide = torch.zeros(BATCH, LENGTH, x.shape[2], dtype=x.dtype)
    start = sum(len(part) for part in torch.arange(LENGTH).tensor_split(world)[: dist.get_rank()])
    wide[:, start : start + x.shape[1]] = x
    return total(wide)


def embeddings_of(model):
    return torch.randn(BATCH, LENGTH, model.config.hidden_size, generator=generator(8), dtype=torch.float64)


def single_body():
    model = model_of(STRICT, hf_reformer.ReformerModel).eval()
    embeds = embeddings_of(model).requires_grad_()
    hidden = model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    (hidden * cotangent(embeddings_of(model).repeat(1, 1, 2))).sum().backward()
    return {"hidden": hidden, "again": hidden, "embeds": embeds.grad, **gradients(model)}


def errors(rank, world):
    """What is said of inputs that cannot be, by name."""
    model, said = model_of(STRICT), {}
    ids = shard(inputs_of(model), rank, world)["input_ids"]
    longer = tokens(model.config, BATCH, 120)
    calls = {
        "rows": {"input_ids": ids[:1]},
        "rows differ": {"input_ids": ids[: 4 - 2 * rank]},
        "too long": {"input_ids": longer},
        "cache": {"input_ids": ids, "use_cache": True},
        "attentions": {"input_ids": ids, "output_attentions": True},
        "logits": {"input_ids": ids, "logits_to_keep": 1},
        "positions": {"input_ids": ids, "position_ids": torch.arange(LENGTH)[None]},
    }
    for name, inputs in calls.items():
        try:
            with sequence_parallel(model):
                model(**inputs)
        except ValueError as error:
            said[name] = str(error)
    try:
        with sequence_parallel(model_of(STRICT, hf_reformer.ReformerForSequenceClassification)):
            pass
    except ValueError as error:
        said["head"] = str(error)
    said["left behind"] = model.reformer.sequence
    return said


def counts(rank, world):
    """Peak memory of a step on this rank alone and on its shard, and the bytes it sends for a layer of each kind."""
    alone = [dist.new_group([other]) for other in range(world)][rank]
    model, length = Model(width=64, heads=4, head_size=16, layers=2), 16384
    peaks = step(model, length, 0, 1, alone)["peak"], step(model, length, rank, world)["peak"]
    sent = {}
    for kind in KINDS:
        one = replace(model, kinds=(kind,), layers=1)
        sent[kind] = step(one, 128, rank, world)["sent"], one.theory(kind, 128, world)
    return {"peaks": peaks, "sent": sent}


SCENARIOS = {
    "counts": counts,
    "ddp": lambda rank, world: replicated_shared(rank, world, torch.nn.parallel.DistributedDataParallel),
    "fsdp2": lambda rank, world: replicated_shared(rank, world, fsdp2),
    "dropout": dropout,
    "body": body,
    "errors": errors,
}


def main(rank, world, folder, names):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=Path(folder, "meeting").as_uri(), rank=rank, world_size=world)
    for name in names:
        try:
            found = equal_shared(name, rank, world) if name in EQUAL else SCENARIOS[name](rank, world)
        except Exception:
            found = traceback.format_exc()
        if rank == 0:
            torch.save(found, Path(folder, f"{name}.pt"))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # an ordinary exit aborts now and then: PyTorch ends threads of gloo that still run
