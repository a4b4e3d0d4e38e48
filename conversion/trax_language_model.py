"""Trax's `ReformerLM`: its architecture from the shapes of its weights, and its key map.

Checkpoint order (the same in every generation of files): embedding | positions | for each block: layer norm, attention,
layer norm, dense, dense | layer norm over both streams | dense. `attention_entries`, `feed_forward_entries` and
`norm_entries` are what the map for an encoder-decoder is made of too.

Shapes: d model size, H heads, k and v sizes of query/key and value of a head, V vocabulary. Trax keeps one matrix per
head, heads first: (H, d, k); ours are joined, (H * D, d). Where k and v differ, D is the larger and the rest is zeros
(and queries are scaled where the score is), which changes no output.
"""

import math
from dataclasses import dataclass, replace

import torch

from .key_map import Entry, same, transposed
from .trax_config import LSH_ATTENTION, Attention, TraxConfig

ENCODER = "reformer.encoder"
POSITIONS = "reformer.embeddings.position_embeddings"
MIXED = "must be the same in all layers of a kind; only one value per kind can be kept"


@dataclass(frozen=True)
class Positions:
    """kind: axial, table, fixed-base or none; shapes of its arrays."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Architecture:
    """What the shapes decide. `shared_qk`: for each block whether queries and keys share a matrix."""

    vocab_size: int
    d_model: int
    d_ff: int
    n_heads: int
    d_key: int
    d_value: int
    shared_qk: tuple[bool, ...]
    positions: Positions

    @property
    def head_size(self):
        return max(self.d_key, self.d_value)

    @property
    def sizes(self):
        """In the names of Trax's arguments."""
        sizes = {"vocab_size": self.vocab_size, "d_model": self.d_model, "d_ff": self.d_ff, "n_heads": self.n_heads}
        sizes |= {"d_attention_key": self.d_key, "d_attention_value": self.d_value, "n_layers": len(self.shared_qk)}
        if self.positions.kind == "axial":
            shape, dims = axial_sizes(self.positions.shapes)
            sizes |= {"pos_axial_shape": list(shape), "pos_d_axial_embs": list(dims)}
        return sizes


def axial_sizes(shapes):
    """Axis lengths and widths from weights (1, 1, ..., length, ..., 1, width), one per axis."""
    return tuple(shape[1 + axis] for axis, shape in enumerate(shapes)), tuple(shape[-1] for shape in shapes)


# --- from shapes to an architecture ---------------------------------------------------------------------------------


def architecture_of(shapes, config: TraxConfig, where):
    """The architecture that a list of shapes, in checkpoint order, can only be.

    Raises:
        ValueError: it is not one of a `ReformerLM`. (Single wrong shapes are found by the key map later.)
    """
    if not shapes or len(shapes[0]) != 2:
        raise ValueError(f"{where}: the first array must be the embedding (vocabulary, d_model), not {shapes[:1]}.")
    vocab_size, d_model = shapes[0]
    norm = (d_model,)
    first = next((i for i in range(1, len(shapes) - 1) if shapes[i] == shapes[i + 1] == norm), None)
    runs = [] if first is None else _attention_runs(shapes, first)
    if not runs:
        raise ValueError(
            f"{where}: no attention weights (heads, {d_model}, head size) after a layer norm ({d_model},)."
        )
    _reject_other_models(shapes, runs, d_model, where)
    start, end = runs[0]
    heads, _, d_key = shapes[start]
    d_value = shapes[end - 2][2]
    inner = next((shape[1] for shape in shapes[end:] if len(shape) == 2 and shape[0] == d_model), None)
    if inner is None:
        raise ValueError(f"{where}: no feed-forward weights ({d_model}, d_ff) after the first attention.")
    shared = tuple(end - start == 3 for start, end in runs)
    positions = positions_of(shapes[1:first], d_model, config, where)
    return Architecture(vocab_size, d_model, inner, heads, d_key, d_value, shared, positions)


def _attention_runs(shapes, first):
    """(start, end) of each run of three-dimensional arrays."""
    runs = []
    for i in range(first, len(shapes)):
        if len(shapes[i]) == 3:
            if runs and runs[-1][1] == i:
                runs[-1][1] = i + 1
            else:
                runs.append([i, i + 1])
    return runs


def _reject_other_models(shapes, runs, d_model, where):
    for start, end in runs:
        if end - start not in (3, 4):
            raise ValueError(
                f"{where}: arrays {start} to {end - 1} must be 3 (shared) or 4 matrices of an attention layer."
            )
        if end < len(shapes) and len(shapes[end]) == 2:
            raise ValueError(
                f"{where}: array {end} of shape {shapes[end]} is an attention bias; attention has none here."
            )
    tail = [len(shape) for shape in shapes[-4:]]
    if tail == [1, 1, 2, 1] and shapes[-4] == (d_model,) and shapes[-2][0] == d_model:
        raise ValueError(
            f"{where}: the last layer norm has {d_model} values, not {2 * d_model}: an encoder-decoder or another model, "
            "not a ReformerLM."
        )


def positions_of(shapes, d_model, config, where):
    axes = len(shapes)
    if axes == 0:
        if config.pos_type in ("sin-cos", "no"):
            return Positions(config.pos_type, ())
        raise ValueError(f"{where} has no position weights: `pos_type` must say whether they are 'sin-cos' or 'no'.")
    if config.pos_type and str(config.pos_type).startswith(("infinite", "time-bin")):
        raise ValueError(
            f"`pos_type` is {config.pos_type!r}, but must be one of axial, sin-cos, fixed-base, no, or None."
        )
    if axes == 1 and len(shapes[0]) in (2, 3) and shapes[0][-1] == d_model and math.prod(shapes[0][:-2]) == 1:
        return Positions("table", tuple(shapes))
    if _is_axial(shapes) and sum(shape[-1] for shape in shapes) == d_model:
        return Positions("axial", tuple(shapes))
    digits = d_model // shapes[0][-1] if shapes[0] and shapes[0][-1] else 0
    if digits and shapes[0] == (1, d_model // digits) and axes // digits == len(config.bases):
        return Positions("fixed-base", tuple(shapes))
    raise ValueError(f"{where}: position weights of shapes {shapes} are none that Trax makes for d_model {d_model}.")


def _is_axial(shapes):
    axes = len(shapes)
    return all(
        len(shape) == axes + 2 and all(size == 1 for i, size in enumerate(shape[:-1]) if i != axis + 1)
        for axis, shape in enumerate(shapes)
    )


# --- the key map ----------------------------------------------------------------------------------------------------


def language_model_entries(arch: Architecture):
    """All arrays of a `ReformerLM` in checkpoint order."""
    d = arch.d_model
    entries = [same("embedding", (arch.vocab_size, d), "reformer.embeddings.word_embeddings.weight")]
    entries += position_entries(arch.positions)
    for index in range(len(arch.shared_qk)):
        theirs, ours = f"block{index}", f"{ENCODER}.layers.{index}"
        entries += norm_entries(f"{theirs}.attn.ln", f"{ours}.attention.layer_norm", d)
        entries += attention_entries(f"{theirs}.attn", f"{ours}.attention", arch, arch.shared_qk[index])
        entries += norm_entries(f"{theirs}.ff.ln", f"{ours}.feed_forward.layer_norm", d)
        entries += feed_forward_entries(f"{theirs}.ff", f"{ours}.feed_forward", arch)
    entries += norm_entries("final.ln", f"{ENCODER}.layer_norm", 2 * d)
    entries += dense_entries("out.dense", "lm_head.decoder.weight", "lm_head.bias", 2 * d, arch.vocab_size)
    return entries


def position_entries(positions, theirs="pos", ours=POSITIONS):
    """Axial weights lose their leading 1; a table may have one. The others are made into a table separately."""
    if positions.kind == "axial":
        return [
            _reshaped(f"{theirs}.axial{i}", shape, f"{ours}.weights.{i}", shape[1:])
            for i, shape in enumerate(positions.shapes)
        ]
    if positions.kind == "table":
        shape = positions.shapes[0]
        return [_reshaped(f"{theirs}.table", shape, f"{ours}.embedding.weight", shape[-2:])]
    return [same(f"{theirs}.{i}", shape, None) for i, shape in enumerate(positions.shapes)]


def _reshaped(theirs, shape, ours, our_shape):
    return Entry(theirs, shape, ours, lambda x: x.reshape(our_shape), lambda x: x.reshape(shape))


def norm_entries(theirs, ours, size):
    return [same(f"{theirs}.scale", (size,), f"{ours}.weight"), same(f"{theirs}.bias", (size,), f"{ours}.bias")]


def dense_entries(theirs, weight, bias, size_in, size_out):
    return [transposed(f"{theirs}.w", (size_in, size_out), weight), same(f"{theirs}.b", (size_out,), bias)]


def feed_forward_entries(theirs, ours, arch):
    entries = []
    sizes = (arch.d_model, arch.d_ff, arch.d_model)
    for number, module in ((1, "dense.dense"), (2, "output.dense")):
        weight, bias = f"{ours}.{module}.weight", f"{ours}.{module}.bias"
        entries += dense_entries(f"{theirs}.dense{number}", weight, bias, *sizes[number - 1 : number + 1])
    return entries


def attention_entries(theirs, ours, arch, shared_qk, module="self_attention"):
    """Query and key (or one for both), value, output; no biases. `module`: ours, below `ours`, that projects."""
    heads, d, size = arch.n_heads, arch.d_model, arch.head_size
    # the score is divided by sqrt(head size): undo what a larger one does. Shared keys have unit length whatever the size
    scale = 1.0 if shared_qk else math.sqrt(size / arch.d_key)
    names = [("w_qk", "query_key")] if shared_qk else [("w_q", "query"), ("w_k", "key")]
    entries = [
        _projection(f"{theirs}.{name}", f"{ours}.{module}.{matrix}.weight", (heads, d, arch.d_key), size, factor)
        for (name, matrix), factor in zip(names, (scale, 1.0), strict=False)
    ]
    entries.append(_projection(f"{theirs}.w_v", f"{ours}.{module}.value.weight", (heads, d, arch.d_value), size))
    return [*entries, _output(f"{theirs}.w_o", f"{ours}.output.dense.weight", (heads, arch.d_value, d), size)]


def _projection(theirs, ours, shape, size, scale=1.0):
    """(H, d, k) -> (H * D, d)."""
    heads, d, width = shape

    def to_ours(x):
        x = torch.nn.functional.pad(x if scale == 1.0 else x * scale, (0, size - width))
        return x.transpose(1, 2).reshape(heads * size, d)

    return Entry(theirs, shape, ours, to_ours, lambda x: x.reshape(heads, size, d).transpose(1, 2)[..., :width] / scale)


def _output(theirs, ours, shape, size):
    """(H, v, d) -> (d, H * D)."""
    heads, width, d = shape

    def to_ours(x):
        return torch.nn.functional.pad(x, (0, 0, 0, size - width)).reshape(heads * size, d).t()

    return Entry(theirs, shape, ours, to_ours, lambda x: x.t().reshape(heads, size, d)[:, :width])


# --- which layer is of which kind -----------------------------------------------------------------------------------


def attention_of_layers(arch: Architecture, config: TraxConfig, notes):
    """One `Attention` per block. Where the configuration and the shapes disagree, the shapes win, with a note.

    Raises:
        ValueError: the shapes ask for a kind of attention that the configuration does not describe.
    """
    given = config.attention
    layers = [given[i % len(given)] for i in range(len(arch.shared_qk))]
    for i, (layer, shared) in enumerate(zip(layers, arch.shared_qk, strict=True)):
        if layer.shared_qk == shared:
            continue
        fitting = {other for other in given if other.shared_qk == shared}
        if not fitting and layer.kind != LSH_ATTENTION:
            fitting = {replace(layer, share_qk=shared)}
        if len(fitting) != 1:
            kind = "shares queries and keys" if shared else "has separate queries and keys"
            raise ValueError(
                f"block {i} {kind}, but the configuration describes {len(fitting)} such attentions, not 1."
            )
        layers[i] = fitting.pop()
        notes.append(f"block {i}: the shapes say {'shared' if shared else 'separate'} queries and keys; they win")
    return layers


def layer_settings(layers: list[Attention], length):
    """Fields of our configuration that describe the attention of all layers.

    Raises:
        ValueError: layers of one kind differ, or a layer has no counterpart.
    """
    settings = {"attn_layers": [_our_kind(i, layer) for i, layer in enumerate(layers)]}
    for kind in ("local", "lsh"):
        ours = [layer for i, layer in enumerate(layers) if settings["attn_layers"][i] == kind]
        values = {"attn_chunk_length": "chunk_len", "num_chunks_before": "n_chunks_before"}
        values |= {"num_chunks_after": "n_chunks_after"}
        settings |= {f"{kind}_{name}": _common(ours, theirs) for name, theirs in values.items() if ours}
        if kind == "lsh" and ours:
            settings |= {"num_hashes": _common(ours, "n_hashes"), "num_buckets": _buckets(ours, length)}
    for prefix, kinds in (("local", ("local", "full")), ("lsh", ("lsh", "full_shared_qk"))):
        dropped = [layer for layer, kind in zip(layers, settings["attn_layers"], strict=True) if kind in kinds]
        if dropped:
            settings[f"{prefix}_attention_probs_dropout_prob"] = _common(dropped, "attention_dropout")
    return settings


def _our_kind(index, layer):
    if layer.kind == LSH_ATTENTION:
        return "lsh"
    if layer.chunk_len is None:
        return "full_shared_qk" if layer.share_qk else "full"
    if layer.share_qk:
        raise ValueError(
            f"block {index} is chunked attention with shared queries and keys, which has no counterpart here "
            "(only unchunked or LSH attention shares them)."
        )
    return "local"


def _common(layers, name):
    values = {getattr(layer, name) for layer in layers}
    if len(values) > 1:
        raise ValueError(f"`{layers[0].kind}.{name}` is {sorted(map(str, values))}, but {MIXED}.")
    return values.pop()


def _buckets(layers, length):
    buckets = _common(layers, "n_buckets")
    if buckets is None:
        return automatic_buckets(length, _common(layers, "chunk_len"))
    return list(buckets) if isinstance(buckets, tuple) else buckets


def automatic_buckets(length, chunk_len):
    """What Trax takes for `n_buckets=None` at a sequence length: two buckets per chunk, two factors above 128."""
    buckets = 2 * max(1, length // chunk_len)
    if buckets <= 128:
        return buckets
    first = 2 ** math.ceil(math.log2(math.sqrt(buckets)))
    return [first, 2 * (buckets // (2 * first))]
