"""What a Reformer is for: seconds and memory of a training step over length, beside the same model with full attention."""

import time

import torch

from ..model.modeling_reformer import ReformerModelWithLMHead


def step(config, length: int, device: torch.device, half: bool) -> tuple[float, float]:
    """Seconds of a forward and backward of one row of random bytes, the second one, and MiB that are kept in between."""
    model = ReformerModelWithLMHead(config).to(device).train()
    ids, kept = torch.randint(2, config.vocab_size, (1, length), device=device), {}
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes(), tensor
        return tensor

    def loss():
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return model(input_ids=ids, labels=ids).loss

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        first = loss()
    size = sum(size for size, _ in kept.values()) / 2**20
    kept.clear()
    first.backward()
    start = time.perf_counter()
    loss().backward()
    return time.perf_counter() - start, size


def table(config, device: torch.device, half: bool) -> str:
    """Lines of text for a fourth of the model's length, its length, and four times it. For the last, a step of full attention is
    computed: by the square of the length its time, which it is at most, in proportion its memory."""
    lengths = [max(2, config.maximum_length // 4), config.maximum_length, 4 * config.maximum_length]
    fields = {name: value for name, value in config.to_dict().items() if name not in ("_note", "num_hidden_layers")}
    positions = {"axial_pos_shape": None, "axial_pos_embds_dim": None, "max_position_embeddings": lengths[-1]}
    fields |= {**positions, "chunk_size_lm_head": 4096}
    full_layers = ["strict_local" if kind.endswith("local") else "full" for kind in config.attn_layers]
    ours, full = (type(config)(**{**fields, **more}) for more in (
        {"reversible": True}, {"attn_layers": full_layers, "reversible": False},
    ))  # fmt: skip
    lines = ["A training step over length:     this model, reversible     full attention, activations kept"]
    for length in lengths:
        seconds, kept = step(ours, length, device, half)
        if length < lengths[-1]:
            full_seconds, full_kept, mark = *step(full, length, device, half), " "
        else:
            full_seconds, full_kept, mark = 16 * full_seconds, 4 * full_kept, "~"
        lines.append(
            f"{length:>14,} tokens {seconds:14.2f} s {kept:8,.0f} MiB {mark:>10}{full_seconds:.2f} s {mark}{full_kept:,.0f} MiB"
        )
    return "\n".join([*lines, "(~: computed from the line above; the time is at most that)"])
