"""Checks of what a forward is given: one `ValueError` that names the argument, the value and what is allowed.

Values are looked at on a CPU only: on a GPU that would make it wait in every batch, and there an index out of range stops
the kernel that reads it.
"""

import torch

from .losses import IGNORED

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_inputs(config, input_ids, inputs_embeds, attention_mask, num_hashes, past=0):
    """Token ids (B, L) or embeddings (B, L, hidden) that follow `past` tokens in a cache, a mask (B, past + L), a number of
    hash rounds. Returns (B, L)."""
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"Exactly one of `input_ids` and `inputs_embeds` must be given, not {given}.")
    name, tokens = ("input_ids", input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)
    if inputs_embeds is None:
        _check_integers(name, tokens)
        _check_shape(name, tokens, tokens.dim() == 2, "(batch, length)")
    else:
        fits = tokens.dim() == 3 and tokens.shape[-1] == config.hidden_size
        _check_shape(name, tokens, fits, f"(batch, length, {config.hidden_size})")
    shape = tuple(tokens.shape[:2])
    if shape[0] < 1 or not 1 <= shape[1] <= config.maximum_length - past:
        limit = "`max_position_embeddings`" + (" and `axial_pos_shape`" if config.axial_pos_embds else "")
        cached = f", {past} of which are in the cache" if past else ""
        raise ValueError(
            f"`{name}` has {shape[0]} rows of {shape[1]} tokens, but must have at least one row of 1 to "
            f"{config.maximum_length - past} tokens ({config.maximum_length} from {limit}{cached})."
        )
    if inputs_embeds is None:
        _check_range(name, tokens, config.vocab_size, "`vocab_size`")
    if attention_mask is not None:
        allowed = (shape[0], past + shape[1])
        _check_shape("attention_mask", attention_mask, tuple(attention_mask.shape) == allowed, f"{allowed}")
        _check_mask(attention_mask[:, past:])
    if num_hashes is not None and (isinstance(num_hashes, bool) or not isinstance(num_hashes, int) or num_hashes < 1):
        raise ValueError(f"`num_hashes` is {num_hashes!r}, but must be an integer of at least 1.")
    return shape


def check_position_ids(config, position_ids, shape):
    """Position ids (B, L) or (1, L), each below `config.maximum_length`."""
    allowed = ((1, shape[1]), tuple(shape))
    _check_integers("position_ids", position_ids)
    _check_shape("position_ids", position_ids, tuple(position_ids.shape) in allowed, f"{allowed[1]} or {allowed[0]}")
    _check_range("position_ids", position_ids, config.maximum_length, "the maximum length")


def check_labels(name, labels, shape, num_classes, classes="`vocab_size`"):
    """Classes of the given shape, each below `num_classes`, or -100 where it is to be ignored; or None."""
    if labels is not None:
        _check_integers(name, labels)
        _check_shape(name, labels, tuple(labels.shape) == tuple(shape), f"{tuple(shape)}")
        _check_range(name, labels, num_classes, f"{classes}; {IGNORED} is ignored", IGNORED)


def check_sequence_labels(labels, batch, num_labels, integers):
    """Classes (B) or (B, 1), or numbers (B, labels) (of one label: (B) or (B, 1))."""
    if integers:
        labels = labels.flatten() if labels.dim() == 2 and labels.shape[1] == 1 else labels
        check_labels("labels", labels, (batch,), num_labels, "`num_labels`")
    else:
        fits = tuple(labels.shape) == (batch, num_labels) or (num_labels == 1 and tuple(labels.shape) == (batch,))
        _check_shape("labels", labels, fits, f"{(batch, num_labels)}")


def check_spans(start_positions, end_positions, batch, attention_mask=None):
    """Both (B) or (B, 1), or neither; inside the text they name real tokens (beyond it they are ignored)."""
    if (start_positions is None) != (end_positions is None):
        missing = "start_positions" if start_positions is None else "end_positions"
        raise ValueError(f"`{missing}` is None, but must be given together with the other position.")
    for name, positions in (("start_positions", start_positions), ("end_positions", end_positions)):
        if positions is not None:
            _check_integers(name, positions)
            _check_shape(name, positions, tuple(positions.shape) in ((batch,), (batch, 1)), f"{(batch,)}")
            if attention_mask is not None and _readable(positions) and _readable(attention_mask):
                _check_real(name, positions.view(-1), attention_mask)


def _check_real(name, positions, attention_mask):
    length = attention_mask.shape[1]
    inside = positions.clamp(0, length - 1).unsqueeze(1)
    padding = (positions < length) & (attention_mask.gather(1, inside.to(torch.int64)).squeeze(1) == 0)
    if bool(padding.any()):
        row = int(padding.to(torch.int64).argmax())
        raise ValueError(f"`{name}` is {int(positions[row])} in row {row}, which is padding, but must be a real token.")


def _check_shape(name, tensor, fits, allowed):
    if not fits:
        raise ValueError(f"`{name}` has the shape {tuple(tensor.shape)}, but must have {allowed}.")


def _check_integers(name, tensor):
    if tensor.dtype not in INTEGERS:
        raise ValueError(f"`{name}` is of {tensor.dtype}, but must be of an integer type.")


def _readable(tensor):
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and tensor.numel() > 0


def _check_range(name, tensor, end, reason, also=None):
    if not _readable(tensor):
        return
    tensor = tensor if also is None else tensor[tensor != also]
    if tensor.numel() > 0:
        low, high = int(tensor.min()), int(tensor.max())
        if low < 0 or high >= end:
            raise ValueError(
                f"`{name}` holds {low if low < 0 else high}, but must hold numbers from 0 to {end - 1} ({reason})."
            )


def _check_mask(attention_mask):
    if _readable(attention_mask) and attention_mask.dtype != torch.bool:
        other = attention_mask[(attention_mask != 0) & (attention_mask != 1)]
        if other.numel() > 0:
            raise ValueError(
                f"`attention_mask` holds {other[0].item()}, but must hold 1 for tokens and 0 for padding only."
            )
