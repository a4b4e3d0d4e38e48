"""Checks of what a forward is given: each raises one `ValueError` that names the argument, the value and what is allowed."""

import torch


def check_inputs(config, input_ids, inputs_embeds, attention_mask, num_hashes):
    """Token ids (B, L) or embeddings (B, L, hidden), a mask (B, L), a number of hash rounds."""
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"Exactly one of `input_ids` and `inputs_embeds` must be given, not {given}.")
    if input_ids is not None:
        _check_ids(config, input_ids)
    elif inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != config.hidden_size:
        expected = f"(batch, length, {config.hidden_size})"
        raise ValueError(f"`inputs_embeds` has the shape {tuple(inputs_embeds.shape)}, but must have {expected}.")
    batch, length = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
    if batch < 1 or not 1 <= length <= config.maximum_length:
        limit = (
            "`axial_pos_shape` and `max_position_embeddings`" if config.axial_pos_embds else "`max_position_embeddings`"
        )
        raise ValueError(
            f"The input is {batch} x {length} tokens, but must be at least one row of 1 to {config.maximum_length} "
            f"tokens (the limit of {limit})."
        )
    if attention_mask is not None and tuple(attention_mask.shape) != (batch, length):
        raise ValueError(
            f"`attention_mask` has the shape {tuple(attention_mask.shape)}, but must have {(batch, length)}: 1 for "
            "tokens, 0 for padding."
        )
    if num_hashes is not None and (isinstance(num_hashes, bool) or not isinstance(num_hashes, int) or num_hashes < 1):
        raise ValueError(f"`num_hashes` is {num_hashes!r}, but must be an integer of at least 1.")


def _check_ids(config, input_ids):
    if input_ids.dim() != 2 or input_ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"`input_ids` is {input_ids.dtype} of the shape {tuple(input_ids.shape)}, but must be integers (batch, length)."
        )
    # a look at the values would make a GPU wait for each batch; there, an id out of range stops the embedding's kernel
    if input_ids.device.type == "cpu" and not torch.compiler.is_compiling() and input_ids.numel() > 0:
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"`input_ids` holds {low if low < 0 else high}, but must be from 0 to {config.vocab_size - 1} (`vocab_size`)."
            )


def check_position_ids(config, position_ids, shape):
    """Returns position ids as (1, L) or (B, L)."""
    position_ids = position_ids[None] if position_ids.dim() == 1 else position_ids
    if tuple(position_ids.shape) not in ((1, shape[1]), tuple(shape)):
        allowed = f"{tuple(shape)} or {(1, shape[1])}"
        raise ValueError(f"`position_ids` has the shape {tuple(position_ids.shape)}, but must have {allowed}.")
    if not torch.compiler.is_compiling():
        low, high = int(position_ids.min()), int(position_ids.max())
        if low < 0 or high >= config.maximum_length:
            raise ValueError(
                f"`position_ids` holds {low if low < 0 else high}, but must be from 0 to {config.maximum_length - 1}."
            )
    return position_ids


def check_labels(name, labels, input_ids, inputs_embeds):
    """Labels of the shape of the tokens (B, L)."""
    tokens = input_ids if inputs_embeds is None else inputs_embeds
    if labels is not None and tokens is not None and tuple(labels.shape) != tuple(tokens.shape[:2]):
        raise ValueError(f"`{name}` has the shape {tuple(labels.shape)}, but must have {tuple(tokens.shape[:2])}.")
