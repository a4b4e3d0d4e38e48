"""Checks of what a forward is given: one `ValueError` that names the argument, the value and what is allowed.

Ids, labels and positions may be of any integer type (tokens are stored as uint8, uint16 or int32); here they become int64,
before anything is shifted or compared with -100. Values are looked at on a CPU only: on a GPU that would make it wait in
every batch, and there an index out of range stops the kernel that reads it.
"""

import difflib
import inspect

import torch

from .configuration_checks import MOST_ROUNDS, PUBLISHED_LAYERS
from .losses import IGNORED
from .tracing import readable, tracing

# what transformers, its pipelines, collators and peft hand to every model, whether or not it can use them
PASSED_ALONG = {
    "assistant_tokenizer",
    "cache_position",
    "is_causal",
    "logits_to_keep",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "return_dict",
    "shift_labels",
    "token_type_ids",
    "tokenizer",  # `generate` with `stop_strings`
    "use_cache",
}


def check_keywords(model, keywords):
    """What a `forward` of `model` collects in `**kwargs`: a misspelt name, or one that asks for what no Reformer does, must
    not vanish there. (None asks for nothing.)"""
    unknown = [name for name, value in keywords.items() if name not in PASSED_ALONG and value is not None]
    if unknown:
        allowed = [name for name in inspect.signature(model.forward).parameters if name != "kwargs"]
        near = difflib.get_close_matches(unknown[0], allowed, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"{', '.join(allowed)}."
        raise ValueError(f"`{unknown[0]}` is given, but must be an argument of {type(model).__name__}: {hint}")


def as_ids(name, tensor):
    """A tensor of integers of any type, as int64."""
    check_is_tensor(name, tensor)
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"`{name}` is of {tensor.dtype}, but must be of an integer type.")
    return tensor.to(torch.int64)


def check_inputs(config, input_ids, inputs_embeds, attention_mask, num_hashes, past=0):
    """Token ids (B, L) or embeddings (B, L, hidden) that follow `past` tokens in a cache, a mask (B, past + L), a number of
    hash rounds. Returns (B, L)."""
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"Exactly one of `input_ids` and `inputs_embeds` must be given, not {given}.")
    if inputs_embeds is None:
        name, tokens = "input_ids", as_ids("input_ids", input_ids)
        _check_shape(name, tokens, tokens.dim() == 2, "(batch, length)")
    else:
        name, tokens = "inputs_embeds", inputs_embeds
        check_is_tensor(name, tokens)
        if not tokens.is_floating_point():
            raise ValueError(f"`{name}` is of {tokens.dtype}, but must be of a floating-point type.")
        fits = tokens.dim() == 3 and tokens.shape[-1] == config.hidden_size
        _check_shape(name, tokens, fits, f"(batch, length, {config.hidden_size})")
    shape = tuple(tokens.shape[:2])
    check_size(config, name, shape, past)
    if inputs_embeds is None:
        _check_range(name, tokens, config.vocab_size, "`vocab_size`")
    if attention_mask is not None:
        check_is_tensor("attention_mask", attention_mask)
        allowed = (shape[0], past + shape[1])
        _check_shape("attention_mask", attention_mask, tuple(attention_mask.shape) == allowed, f"{allowed}")
        _check_mask(attention_mask[:, past:])
    whole = isinstance(num_hashes, int) and not isinstance(num_hashes, bool)
    if num_hashes is not None and not (whole and 1 <= num_hashes <= MOST_ROUNDS):
        raise ValueError(f"`num_hashes` is {num_hashes!r}, but must be an integer from 1 to {MOST_ROUNDS:,}.")
    return shape


def check_size(config, name, shape, past=0):
    """(B, L) that follow `past` tokens in a cache: at least one token, at most what the model is built for."""
    (batch, length), room = shape, config.maximum_length - past
    if batch < 1 or length < 1:
        raise ValueError(f"`{name}` has {batch} rows of {length} tokens, but must have at least one of each.")
    if length > room:
        fields = "`max_position_embeddings`" + (" and `axial_pos_shape`" if config.has_axial_positions else "")
        cached = f" beside the {past} in the cache" if past else ""
        raise ValueError(
            f"`{name}` has rows of {length} tokens, but must have at most {room}{cached}: cut them, or build the model with "
            f"larger {fields} (now for {config.maximum_length})."
        )


def check_position_ids(config, position_ids, shape, real_tokens=None):
    """Position ids (B, L) or (1, L), each below `config.maximum_length`. They may go back among the real tokens (B, L) of a row
    to 0 alone, where another document begins (as `DataCollatorWithFlattening` packs them).

    Returns:
        The ids as int64, and the number of each token's document (B, L), or None where each row is one (on a GPU, which
        is not waited for, always numbers).
    """
    allowed = ((1, shape[1]), tuple(shape))
    position_ids = as_ids("position_ids", position_ids)
    _check_shape("position_ids", position_ids, tuple(position_ids.shape) in allowed, f"{allowed[1]} or {allowed[0]}")
    _check_range("position_ids", position_ids, config.maximum_length, "the maximum length")
    real = (
        position_ids.new_ones(shape, dtype=torch.bool) if real_tokens is None else real_tokens.to(position_ids.device)
    )
    begins = real & (position_ids == 0) & (real.cumsum(1) > 1)
    documents = begins.cumsum(1).to(torch.int32)
    if readable(position_ids):
        _check_documents(position_ids.expand(shape), begins, documents, real)
        return position_ids, documents if bool((documents > 0).any()) else None
    return position_ids, documents


def _check_documents(positions, begins, documents, real):
    """Raises where the positions (B, L) go back within a document."""
    # the highest position of a real token of its document so far; that of a later document is on a higher floor
    floor = documents.to(torch.int64) * (int(positions.max()) + 1)
    highest = (positions + floor).masked_fill(~real, -1).cummax(1).values
    back = real[:, 1:] & ~begins[:, 1:] & ((positions + floor)[:, 1:] < highest[:, :-1])
    if bool(back.any()):
        row, at = (int(n) for n in back.nonzero()[0])
        raise ValueError(
            f"`position_ids` goes from {int((highest - floor)[row, at])} back to {int(positions[row, at + 1])} in row {row}, but "
            "must go back to 0 only, where another document of a packed row begins."
        )


def check_packing(config, documents, cache):
    """The documents (B, L) of packed rows, or None; raises where this model cannot keep them apart."""
    if documents is None:
        return None
    published = config.uses(*PUBLISHED_LAYERS)
    if readable(documents) and (published or cache is not None):
        reason = "a model with 'local' or 'lsh' layers" if published else "a cache"
        raise ValueError(
            f"`position_ids` begins again within a row, as of several documents, but must not with {reason}, where they would see "
            "each other."
        )
    return None if published or cache is not None else documents


def check_sequence(use_cache, output_attentions, logits_to_keep=0):
    """What no model does on a shard of a sequence (`hf_reformer.parallel`)."""
    where = "within `sequence_parallel`"
    if tracing():
        raise ValueError(f"The model is traced or under `torch.func` {where}, but must run eagerly there.")
    if use_cache:
        raise ValueError(f"A cache or `use_cache` is given {where}, but must not: generate outside of it.")
    if output_attentions:
        raise ValueError(f"`output_attentions` is True {where}, but must be False.")
    if torch.is_tensor(logits_to_keep) or logits_to_keep:
        raise ValueError(f"`logits_to_keep` is {logits_to_keep} {where}, but must be 0: each process has a shard.")


def check_memory(memory, attention_mask, hidden_size, batch):
    """An encoder's output (B, S, hidden), B that of the target, and its mask (B, S) or None."""
    check_is_tensor("encoder_outputs[0]", memory)
    fits = memory.dim() == 3 and memory.shape[2] == hidden_size and memory.shape[1] > 0
    _check_shape("encoder_outputs[0]", memory, fits, f"(batch, length, {hidden_size})")
    if batch != memory.shape[0]:
        raise ValueError(f"The target has {batch} rows, but must have {memory.shape[0]}, as the source has.")
    if attention_mask is not None:
        check_is_tensor("attention_mask", attention_mask)
        allowed = tuple(memory.shape[:2])
        _check_shape("attention_mask", attention_mask, tuple(attention_mask.shape) == allowed, f"{allowed}")
        _check_mask(attention_mask)


def check_labels(name, labels, shape, num_classes, classes="`vocab_size`"):
    """Classes of the given shape, each below `num_classes`, or -100 where it is to be ignored; or None. Returns int64."""
    if labels is None:
        return None
    labels = as_ids(name, labels)
    _check_shape(name, labels, tuple(labels.shape) == tuple(shape), f"{tuple(shape)}")
    _check_range(name, labels, num_classes, f"{classes}; {IGNORED} is ignored", IGNORED)
    return labels


def check_sequence_labels(labels, batch, num_labels, integers):
    """Classes (B) or (B, 1), or numbers (B, labels) (of one label: (B) or (B, 1)). Returns classes as int64 (B)."""
    if integers:
        labels = labels.flatten() if labels.dim() == 2 and labels.shape[1] == 1 else labels
        return check_labels("labels", labels, (batch,), num_labels, "`num_labels`")
    fits = tuple(labels.shape) == (batch, num_labels) or (num_labels == 1 and tuple(labels.shape) == (batch,))
    _check_shape("labels", labels, fits, f"{(batch, num_labels)}")
    return labels


def check_spans(start_positions, end_positions, batch):
    """Both (B) or (B, 1), or neither; -100 and what lies beyond the text are ignored. Returns both as int64 (B), or None."""
    if (start_positions is None) != (end_positions is None):
        missing = "start_positions" if start_positions is None else "end_positions"
        raise ValueError(f"`{missing}` is None, but must be given together with the other position.")
    spans = []
    for name, positions in (("start_positions", start_positions), ("end_positions", end_positions)):
        if positions is not None:
            positions = as_ids(name, positions)
            _check_shape(name, positions, tuple(positions.shape) in ((batch,), (batch, 1)), f"{(batch,)}")
            _check_range(
                name, positions, torch.iinfo(torch.int64).max, f"beyond the text, or {IGNORED}: ignored", IGNORED
            )
            positions = positions.flatten()
        spans.append(positions)
    return spans


def check_logits_to_keep(logits_to_keep, shape=None):
    """How many positions of (B, L), the last, or which ones (L'), (B, L') or a mask (B, L); 0: all. Returns it. Without
    `shape` only its type is looked at."""
    if isinstance(logits_to_keep, int) and not isinstance(logits_to_keep, bool) and logits_to_keep >= 0:
        return logits_to_keep
    if not torch.is_tensor(logits_to_keep):
        allowed = "an integer of at least 0, or a tensor of positions"
        raise ValueError(f"`logits_to_keep` is {logits_to_keep!r}, but must be {allowed}.")
    if shape is None:
        return logits_to_keep if logits_to_keep.dtype == torch.bool else as_ids("logits_to_keep", logits_to_keep)
    if logits_to_keep.dtype == torch.bool:
        _check_shape("logits_to_keep", logits_to_keep, tuple(logits_to_keep.shape) == tuple(shape), f"{tuple(shape)}")
        return logits_to_keep
    kept = as_ids("logits_to_keep", logits_to_keep)
    fits = kept.dim() == 1 or (kept.dim() == 2 and kept.shape[0] == shape[0])
    _check_shape("logits_to_keep", kept, fits, f"(positions,) or ({shape[0]}, positions)")
    _check_range("logits_to_keep", kept, shape[1], "the length of the input")
    return kept


def check_is_tensor(name, value):
    if not torch.is_tensor(value):
        raise ValueError(f"`{name}` is a {type(value).__name__}, but must be a tensor.")


def _check_shape(name, tensor, fits, allowed):
    if not fits:
        raise ValueError(f"`{name}` has the shape {tuple(tensor.shape)}, but must have {allowed}.")


def _check_range(name, tensor, end, reason, also=None):
    if not readable(tensor):
        return
    tensor = tensor if also is None else tensor[tensor != also]
    if tensor.numel() > 0:
        low, high = int(tensor.min()), int(tensor.max())
        if low < 0 or high >= end:
            raise ValueError(
                f"`{name}` holds {low if low < 0 else high}, but must hold numbers from 0 to {end - 1} ({reason})."
            )


def _check_mask(attention_mask):
    if readable(attention_mask) and attention_mask.dtype != torch.bool:
        other = attention_mask[(attention_mask != 0) & (attention_mask != 1)]
        if other.numel() > 0:
            raise ValueError(
                f"`attention_mask` holds {other[0].item()}, but must hold 1 for tokens and 0 for padding only."
            )
