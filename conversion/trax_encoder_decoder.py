"""Trax's `Reformer`, the encoder-decoder: its architecture from the shapes of its weights, its key map, and its arguments.

Checkpoint order: embedding of the source | its positions | encoder blocks (layer norm, attention, layer norm, dense, dense) |
layer norm | embedding of the target, unless it is shared | its positions | decoder blocks (layer norm, attention, layer norm,
cross-attention, layer norm, dense, dense) | layer norm | dense. The attentions are ordinary ones here and there.

Trax from 1.3.5 on passes its cross-attention a mask that makes of every masked source the plain sum of its values; what is
converted computes what that attention is for, as Trax did before.
"""

from dataclasses import dataclass, replace

import hf_reformer

from .checkpoint import one_dtype
from .key_map import match_in_order, same
from .key_map import to_ours as map_to_ours
from .tokenizer_files import BYTE_VOCABULARY
from .trax_language_model import (
    Architecture,
    attention_entries,
    axial_sizes,
    dense_entries,
    feed_forward_entries,
    norm_entries,
    position_entries,
    positions_of,
)  # fmt: skip

MODEL = "Reformer"
BLOCK = 12  # arrays of a block of the encoder: attention and feed-forward, each after a norm
ENCODER, DECODER = "reformer.encoder", "reformer.decoder"


@dataclass(frozen=True)
class EncoderDecoder:
    """encoder, decoder: sizes of each part (`shared_qk` has an entry for each block); shared: one embedding for both."""

    encoder: Architecture
    decoder: Architecture
    shared: bool


# --- from shapes to an architecture ---------------------------------------------------------------------------------


def architecture_of(shapes, config, where):
    """The encoder-decoder that a list of shapes, in checkpoint order, can only be.

    Raises:
        ValueError: it is none. (Single wrong shapes are found by the key map later.)
    """
    if len(shapes) < 4 or len(shapes[0]) != 2:
        raise ValueError(f"{where}: the first array must be the embedding (vocabulary, d_model), not {shapes[:1]}.")
    d_model = shapes[0][1]
    runs = _attention_starts(shapes, d_model)
    middle = next((i for i in range(1, len(runs)) if runs[i] - runs[i - 1] != BLOCK), None)
    if middle is None:
        raise ValueError(f"{where}: no encoder and decoder of attention weights (heads, {d_model}, head size).")
    # between the last dense layer of the encoder and the decoder's first layer norm: norm, perhaps an embedding, positions
    first, between = runs[0] - 2, shapes[runs[middle - 1] + 10 : runs[middle] - 2]
    own = len(between) - 2 > first - 1  # one array more than the encoder has for positions
    heads, _, d_key = shapes[runs[0]]
    sizes = {"d_ff": shapes[runs[0] + 6][-1], "n_heads": heads, "d_key": d_key, "d_value": shapes[runs[0] + 2][-1]}
    encoder = Architecture(
        vocab_size=shapes[0][0], d_model=d_model, shared_qk=(False,) * middle,
        positions=positions_of(shapes[1:first], d_model, config, where), **sizes,
    )  # fmt: skip
    decoder = replace(
        encoder, vocab_size=shapes[-1][-1], shared_qk=(False,) * ((len(runs) - middle) // 2),
        positions=positions_of(between[3 if own else 2 :], d_model, config, where),
    )  # fmt: skip
    return EncoderDecoder(encoder, decoder, not own)


def _attention_starts(shapes, d_model):
    """Where each run of four attention matrices begins."""
    kinds = [len(shape) == 3 and shape[1] == d_model for shape in shapes]
    return [i for i in range(2, len(shapes) - 3) if all(kinds[i : i + 3]) and not kinds[i - 1]]


# --- the key map ----------------------------------------------------------------------------------------------------


def entries_of(arch: EncoderDecoder):
    """All arrays of a `Reformer` in checkpoint order."""
    encoder, decoder, d = arch.encoder, arch.decoder, arch.encoder.d_model
    entries = [same("enc_embedding", (encoder.vocab_size, d), f"{ENCODER}.embeddings.word_embeddings.weight")]
    entries += position_entries(encoder.positions, "enc_pos", f"{ENCODER}.embeddings.position_embeddings")
    for index in range(len(encoder.shared_qk)):
        entries += _block(f"enc{index}", f"{ENCODER}.encoder.layers.{index}", encoder, {"attn": "attention"})
    entries += norm_entries("enc_final.ln", f"{ENCODER}.encoder.layer_norm", d)
    if not arch.shared:
        entries.append(same("dec_embedding", (decoder.vocab_size, d), f"{DECODER}.embeddings.word_embeddings.weight"))
    entries += position_entries(decoder.positions, "dec_pos", f"{DECODER}.embeddings.position_embeddings")
    halves = {"self": "attention", "cross": "cross_attention"}
    for index in range(len(decoder.shared_qk)):
        entries += _block(f"dec{index}", f"{DECODER}.encoder.layers.{index}", decoder, halves)
    entries += norm_entries("dec_final.ln", f"{DECODER}.encoder.layer_norm", d)
    return entries + dense_entries("out.dense", "lm_head.decoder.weight", "lm_head.bias", d, decoder.vocab_size)


def _block(theirs, ours, arch, attentions):
    entries = []
    for name, half in attentions.items():
        module = "self_attention" if half == "attention" else half
        entries += norm_entries(f"{theirs}.{name}.ln", f"{ours}.{half}.layer_norm", arch.d_model)
        entries += attention_entries(f"{theirs}.{name}", f"{ours}.{half}", arch, False, module)
    entries += norm_entries(f"{theirs}.ff.ln", f"{ours}.feed_forward.layer_norm", arch.d_model)
    return entries + feed_forward_entries(f"{theirs}.ff", f"{ours}.feed_forward", arch)


# --- reading --------------------------------------------------------------------------------------------------------


def read(arrays, shapes, config, notes, where):
    """Our configuration, and our tensors {name: tensor}."""
    arch = architecture_of(shapes, config, where)
    entries = entries_of(arch)
    arrays, dtype = one_dtype(match_in_order(entries, arrays, where))
    kinds = {layer.kind for layer in config.attention if layer.chunk_len is not None or layer.shared_qk}
    if kinds:
        raise ValueError(
            f"{where}: attention of an encoder-decoder must be ordinary SelfAttention, but is {sorted(kinds)}."
        )
    for name, size in (("input_vocab_size", arch.encoder.vocab_size), ("d_model", arch.encoder.d_model)):
        if config.sizes.get(name, size) != size:
            notes.append(f"{name} is {size} by the shapes of the weights; the configuration said {config.sizes[name]}")
    ours = our_config_of(arch, config)
    ours.dtype = dtype
    return ours, map_to_ours(entries, arrays, where)


def our_config_of(arch, config):
    encoder, decoder = arch.encoder, arch.decoder
    stored = {part.positions.kind for part in (encoder, decoder)}
    if stored == {"table"}:
        lengths = [part.positions.shapes[0][-2] for part in (encoder, decoder)]
        positions = {"axial_pos_embds": False, "max_position_embeddings": lengths[0]}
        positions |= {"decoder_max_position_embeddings": lengths[1] if lengths[1] != lengths[0] else None}
    elif stored == {"axial"} and encoder.positions == decoder.positions:
        shape, dims = axial_sizes(encoder.positions.shapes)
        positions = {"axial_pos_shape": shape, "axial_pos_embds_dim": dims}
    else:
        raise ValueError(
            f"positions of an encoder-decoder must be stored, as tables or one axial kind, but are {sorted(stored)}."
        )
    dropout = config.attention[0].attention_dropout
    return hf_reformer.ReformerConfig(
        is_encoder_decoder=True, attn_layers=["full"] * len(encoder.shared_qk),
        decoder_attn_layers=["full"] * len(decoder.shared_qk), vocab_size=encoder.vocab_size,
        decoder_vocab_size=None if arch.shared else decoder.vocab_size, share_encoder_decoder_embeddings=arch.shared,
        hidden_size=encoder.d_model, feed_forward_size=encoder.d_ff, num_attention_heads=encoder.n_heads,
        attention_head_size=encoder.head_size, hidden_act=config.activation, hidden_dropout_prob=config.dropout,
        local_attention_probs_dropout_prob=dropout, cross_attention_probs_dropout_prob=dropout, layer_norm_eps=1e-6,
        pad_token_id=0, decoder_start_token_id=0,
        eos_token_id=1 if decoder.vocab_size == BYTE_VOCABULARY else None, **positions,
    )  # fmt: skip


# --- writing --------------------------------------------------------------------------------------------------------


def check_counterpart(config):
    """Raises `ValueError` where Trax's `Reformer` computes something else."""
    layers = {*config.attn_layers, *(config.decoder_attn_layers or ())}
    if layers != {"full"}:
        raise ValueError(f"the layers are of types {sorted(layers)}, but Trax's encoder-decoder has 'full' ones only.")
    size = config.hidden_size // config.num_attention_heads
    if config.attention_head_size * config.num_attention_heads != config.hidden_size:
        raise ValueError(
            f"`attention_head_size` is {config.attention_head_size}, but Trax's encoder-decoder has {size}."
        )
    if config.decoder_max_position_embeddings not in (None, config.maximum_length):
        raise ValueError(
            f"`decoder_max_position_embeddings` is {config.decoder_max_position_embeddings}, but Trax has one length for both, "
            f"{config.maximum_length}."
        )


def writing(config, encoder, settings):
    """The key map of a model of this configuration, and Trax's arguments as `json_settings` gives them for a language model.

    Args:
        encoder: the `Architecture` of the encoder.
    """
    size = config.decoder_vocab_size or config.vocab_size
    count = len(config.decoder_attn_layers or config.attn_layers)
    decoder = replace(encoder, vocab_size=size, shared_qk=(False,) * count)
    shared = config.share_encoder_decoder_embeddings
    model = {name: value for name, value in settings["model"].items() if name not in NOT_ITS_OWN}
    model |= {"input_vocab_size": config.vocab_size, "output_vocab_size": None if shared else size}
    model |= {"n_encoder_layers": len(config.attn_layers), "n_decoder_layers": count}
    settings = {**settings, "kind": MODEL, "model": model, "attention": settings["attention"][:1]}
    return entries_of(EncoderDecoder(encoder, decoder, shared)), settings


NOT_ITS_OWN = ("vocab_size", "d_attention_key", "d_attention_value", "n_layers")
