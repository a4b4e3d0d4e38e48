"""Sequence parallelism: one sequence on several processes, a contiguous shard on each (`docs/sequence-parallel.md`).

In a plain loop by `sequence_parallel`; with `Trainer` by `SequenceParallelTrainer`, which Accelerate's own switch turns on.
"""

from contextlib import contextmanager

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from .model.sequence import SequenceGroup

RANK_STRIDE = 1_000_003  # keeps the seeds of neighbouring ranks apart


@contextmanager
def sequence_parallel(model, group=None):
    """Within it every process of `group` calls `model` with its own shard of the same sequences, in the order of the ranks.

    A forward takes `input_ids` or `inputs_embeds`, `attention_mask`, `position_ids`, `labels` or `shift_labels`, each (B, l):
    the same B on all processes, any l of at least 1. Positions, padding and documents are counted over the whole sequence, and
    attention sees all of it. Each process gets the logits of its tokens, and as its loss the sum over its tokens, divided by
    `num_items_in_batch` (of all processes) or by the number of labels of all of them: the losses add up to that of one
    process, and so do the gradients (`sum_gradients`; DDP and FSDP2 take the mean over their processes, so multiply the loss
    by their number). Backward may come after the `with`; it exchanges again, so every process must run it.

    Dropout differs from process to process: where the model has dropout, the global generators stand, within the `with`, at a
    state that is made from the rank and one number drawn from them; afterwards they go on as if that number and the rotations
    alone had been drawn. Rotations are those of one process, if the generators of all processes start alike.

    Args:
        model: a `ReformerModel`, `ReformerModelWithLMHead` or `ReformerForMaskedLM`, or what wraps one (DDP, FSDP2, peft).
        group: of torch.distributed; None: all processes.

    Raises:
        ValueError: for another model; in a forward, where B times the number of heads is no multiple of the number of processes,
            and for a cache, `output_attentions` or `logits_to_keep`.
    """
    bodies, sequence = _bodies(model), SequenceGroup(group)
    before = [body.sequence for body in bodies]
    with _own_generators(model, sequence):
        try:
            for body in bodies:
                body.sequence = sequence
            yield
        finally:
            for body, earlier in zip(bodies, before, strict=True):
                body.sequence = earlier


def sum_gradients(model, group=None):
    """Adds up the gradients of all processes of `group`, for a model that neither DDP nor FSDP2 wraps."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        return
    exists = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    dist.all_reduce(exists, group=group)
    for parameter, anywhere in zip(parameters, exists.tolist(), strict=True):
        if anywhere:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(parameter.grad, group=group)


def _bodies(model):
    """The models without head in it, which know where their tokens lie."""
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    foreign = [type(m).__name__ for m in models if not getattr(m, "_supports_sequence_parallel", False)]
    if foreign or not models:
        raise ValueError(
            f"`model` is a {foreign[0] if foreign else type(model).__name__}, but must be a ReformerModel, a "
            "ReformerModelWithLMHead or a ReformerForMaskedLM: other heads look at several tokens at once."
        )
    return [module for module in models if module.base_model is module]


@contextmanager
def _own_generators(model, sequence):
    """Within it, if the model has dropout, the global generators draw other numbers on each process."""
    if not _has_dropout(model):
        yield
        return
    seed = int(torch.randint(2**62, ()))
    device = next(model.parameters()).device
    on_cpu = device.type in ("cpu", "meta")
    sequence.common = torch.get_rng_state()
    try:
        with torch.random.fork_rng([] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
            seed = (seed + RANK_STRIDE * (sequence.rank + 1)) % 2**63
            torch.random.default_generator.manual_seed(seed)
            if not on_cpu:
                torch.get_device_module(device).manual_seed(seed)
            yield
    finally:
        torch.set_rng_state(sequence.common)


def _has_dropout(model):
    found = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            config = module.config
            found += [config.local_attention_probs_dropout_prob, config.lsh_attention_probs_dropout_prob]
    return any(p > 0 for p in found)
