"""Trax language models and encoder-decoders: the `Checkpoint` in our names, with positions that Trax computes written out."""

import torch

import hf_reformer

from . import limits, trax_config, trax_encoder_decoder, trax_language_model, trax_positions
from .bounded import read_json, read_text
from .checkpoint import Checkpoint, one_dtype
from .gin import parse_gin
from .key_map import match_in_order
from .key_map import to_ours as map_to_ours
from .tokenizer_files import BYTE_VOCABULARY
from .trax_files import read_trax


def read(path, config_path, max_length=None):
    """A Trax `ReformerLM` or `Reformer`."""
    file, notes = read_trax(path), []
    fields = {} if str(config_path).endswith(".gin") else read_json(config_path)
    if fields.get("model_type") == "reformer" or "attn_layers" in fields:
        config = _trax_config_of_ours(hf_reformer.ReformerConfig.from_dict(fields))
    else:
        config = trax_config.from_json(fields) if fields else trax_config.from_gin(parse_gin(read_text(config_path)))
    notes += [f"the configuration includes {name}, which was not read" for name in config.not_read]
    shapes = [tuple(array.shape) for array in file.arrays]
    step = "" if file.step is None else f", step {file.step:,}"
    if config.encoder_decoder:
        if max_length is not None:
            raise ValueError(
                f"`max_length` is {max_length}, but this checkpoint stores its positions and their number."
            )
        our_config, tensors = trax_encoder_decoder.read(file.arrays, shapes, config, notes, path)
        origin = f"a Trax Reformer, an encoder-decoder ({file.generation}{step})"
        return Checkpoint(hf_reformer.ReformerForConditionalGeneration, our_config, tensors, origin, notes)
    arch = trax_language_model.architecture_of(shapes, config, path)
    notes += [
        f"{name} is {value} by the shapes of the weights; the configuration said {config.sizes[name]}"
        for name, value in arch.sizes.items()
        if name in config.sizes and config.sizes[name] != value
    ]
    entries = trax_language_model.language_model_entries(arch)
    arrays = match_in_order(entries, file.arrays, path)
    arrays, dtype = one_dtype(arrays)
    tensors = map_to_ours(entries, arrays, path)
    our_config = our_config_of(arch, config, notes, max_length)
    tensors |= materialised_positions(arch, config, arrays, our_config.max_position_embeddings, dtype)
    our_config.dtype = dtype
    origin = f"a Trax ReformerLM ({file.generation}{step})"
    return Checkpoint(hf_reformer.ReformerModelWithLMHead, our_config, tensors, origin, notes)


def _trax_config_of_ours(config):
    """A `TraxConfig` from a configuration in our names, as the old converter of transformers wanted it."""
    from .trax_writer import _attention_arguments

    attention = [_attention_arguments(config, kind) for kind in config.attn_layers]
    settings = {"model": {"max_len": config.maximum_length, "dropout": config.hidden_dropout_prob}}
    settings |= {"attention": attention, "length": config.maximum_length}
    made = trax_config.from_json(settings)
    return trax_config.TraxConfig(**{**vars(made), "activation": config.hidden_act})


def our_config_of(arch, config, notes, max_length=None):
    """The configuration of our model; sizes from the shapes, the rest from Trax's configuration."""
    axial = arch.positions.kind == "axial"
    if max_length is not None and arch.positions.kind in ("axial", "table"):
        raise ValueError(f"`max_length` is {max_length}, but this checkpoint stores its positions and their number.")
    shape, dims = trax_language_model.axial_sizes(arch.positions.shapes) if axial else ((), ())
    longest = torch.Size(shape).numel() if axial else max_length or max(config.max_len, config.length or 1)
    if arch.positions.kind == "table":
        longest = arch.positions.shapes[0][-2]
    if not axial:
        limits.check_positions(longest, arch.d_model)
    length = config.length or min(longest, config.max_len)
    layers = trax_language_model.attention_of_layers(arch, config, notes)
    settings = trax_language_model.layer_settings(layers, length)
    if "lsh" in settings["attn_layers"] and all(layer.n_buckets is None for layer in layers):
        notes.append(
            f"Trax chooses the number of buckets by the length of each input; {settings['num_buckets']} is its choice "
            f"for {length:,} tokens, now fixed"
        )
    if axial:
        settings |= {"axial_pos_shape": shape, "axial_pos_embds_dim": dims}
    return hf_reformer.ReformerConfig(
        vocab_size=arch.vocab_size, hidden_size=arch.d_model, feed_forward_size=arch.d_ff, axial_pos_embds=axial,
        num_attention_heads=arch.n_heads, attention_head_size=arch.head_size, hidden_act=config.activation,
        hidden_dropout_prob=config.dropout, max_position_embeddings=longest, layer_norm_eps=1e-6, is_decoder=True,
        pad_token_id=0, eos_token_id=1 if arch.vocab_size == BYTE_VOCABULARY else None, **settings,
    )  # fmt: skip


def materialised_positions(arch, config, arrays, length, dtype):
    """{key: table} for encodings that Trax computes; empty for those that it stores."""
    kind, size = arch.positions.kind, arch.d_model
    if kind in ("axial", "table"):
        return {}
    if kind == "sin-cos":
        table = trax_positions.sin_cos_table(length, size)
    elif kind == "no":
        table = torch.zeros(length, size)
    else:
        weights = [arrays[f"pos.{i}"] for i in range(len(arch.positions.shapes))]
        digits = size // weights[0].shape[-1]
        rows = [weights[i * digits : (i + 1) * digits] for i in range(len(config.bases))]
        start = weights[-1] if len(weights) > digits * len(rows) else None
        table = trax_positions.fixed_base_table(length, rows, start, config.bases)
    return {f"{trax_language_model.POSITIONS}.embedding.weight": table.to(dtype)}
