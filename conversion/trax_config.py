"""What a Trax configuration says about a `ReformerLM` or a `Reformer` (encoder-decoder), from `config.gin` or from JSON. Shapes of
weights overrule it.

JSON: {"kind": "ReformerLM" or "Reformer", "model": its arguments, "attention": [{"type": "local" or "lsh", arguments of the
attention class}, ...], "length": training length}; the attention entries are repeated up to the number of layers, as Trax does.
(A `Reformer` may have none: ordinary attention.)
"""

from dataclasses import dataclass, field, replace

from .gin import Bindings, Reference

SELF_ATTENTION, LSH_ATTENTION = "SelfAttention", "LSHSelfAttention"
JSON_TYPES = {
    "local": SELF_ATTENTION, "full": SELF_ATTENTION, "selfattention": SELF_ATTENTION,
    "lsh": LSH_ATTENTION, "lshselfattention": LSH_ATTENTION,
}  # fmt: skip
ACTIVATIONS = {  # Trax's name, small and without underscores: transformers'
    "relu": "relu", "gelu": "gelu", "fastgelu": "gelu_fast", "swish": "silu", "silu": "silu", "tanh": "tanh",
    "sigmoid": "sigmoid", "elu": "elu",
}  # fmt: skip
DEFAULT_MAX_LEN = 2048
ENCODER_DECODER = "Reformer"
OTHER_MODELS = ("Reformer2", "ConfigurableTerraformer", "Terraformer")
OTHER_LAYERS = "only SelfAttention and LSHSelfAttention have a counterpart"


@dataclass(frozen=True)
class Attention:
    """Arguments of one attention class, with Trax's defaults."""

    kind: str
    chunk_len: int | None = None
    n_chunks_before: int = 0
    n_chunks_after: int = 0
    n_hashes: int = 1
    n_buckets: int | tuple[int, ...] | None = None
    share_qk: bool = False
    attention_dropout: float = 0.0

    @property
    def shared_qk(self):
        return self.kind == LSH_ATTENTION or self.share_qk


DEFAULTS = {
    SELF_ATTENTION: Attention(SELF_ATTENTION),
    LSH_ATTENTION: Attention(LSH_ATTENTION, chunk_len=128, n_chunks_before=1),
}


@dataclass(frozen=True)
class TraxConfig:
    """None: not said. Sizes that weights have too are only compared with them."""

    attention: tuple[Attention, ...]
    activation: str = "gelu_fast"
    dropout: float = 0.1
    max_len: int = DEFAULT_MAX_LEN
    length: int | None = None
    pos_type: str | None = None
    bases: tuple[int, ...] = (11, 13, 14, 15)
    sizes: dict = field(default_factory=dict)  # vocab_size, d_model, ... as far as given
    not_read: tuple[str, ...] = ()  # files that a gin configuration includes
    encoder_decoder: bool = False


def from_json(settings):
    """A `TraxConfig` from the JSON form."""
    kind = str(settings.get("kind", "ReformerLM")).split(" ")[0]
    if kind in OTHER_MODELS:
        _reject_other(kind)
    model, attention = settings.get("model"), settings.get("attention")
    if kind == ENCODER_DECODER and attention is None:
        attention = ["full"]
    if not isinstance(model, dict) or not isinstance(attention, list) or not attention:
        raise ValueError("the JSON configuration must have `model`, an object, and `attention`, a list.")
    made = _config(model, tuple(_attention_of_json(entry) for entry in attention), settings.get("length"))
    return replace(made, encoder_decoder=kind == ENCODER_DECODER)


def _attention_of_json(entry):
    name = entry.get("type") if isinstance(entry, dict) else entry
    kind = JSON_TYPES.get(str(name).lower())
    if kind is None:
        raise ValueError(f"`attention` has the type {name!r}, but must have one of {sorted(JSON_TYPES)}.")
    return _attention(kind, entry.get if isinstance(entry, dict) else lambda name, default: default)


def from_gin(bindings: Bindings):
    """A `TraxConfig` from the bindings of a gin file."""
    model = bindings.get("train", "model")
    name = model.name if isinstance(model, Reference) else "ReformerLM"
    if name in OTHER_MODELS:
        _reject_other(name)
    model = ENCODER_DECODER if name == ENCODER_DECODER else "ReformerLM"
    if not bindings.has(model):
        raise ValueError(f"the gin configuration binds no parameter of {model}.")
    type_of = "encoder_attention_type" if model == ENCODER_DECODER else "attention_type"
    types = bindings.get(model, type_of, bindings.get(model, "attention_types"))
    types = [Reference("", SELF_ATTENTION)] if types is None else types
    attention = tuple(_attention_of_gin(bindings, t) for t in (types if isinstance(types, list) else [types]))
    names = (*SIZES, *OTHERS, *OLD_NAMES)
    said = {name: bindings.get(model, name) for name in names}
    bases = bindings.get("FixedBasePositionalEncoding", "bases")
    length = bindings.get("batcher", "max_eval_length")
    made = _config({k: v for k, v in said.items() if v is not None}, attention, length, bases)
    return replace(made, not_read=bindings.includes, encoder_decoder=model == ENCODER_DECODER)


def _attention_of_gin(bindings, reference):
    name = reference.name if isinstance(reference, Reference) else str(reference)
    if name not in DEFAULTS:
        raise ValueError(f"the gin configuration has the attention {name}, but {OTHER_LAYERS}.")
    return _attention(name, lambda key, default: bindings.get(name, key, default, reference.scope))


def _attention(kind, get):
    default = DEFAULTS[kind]
    names = ("chunk_len", "n_chunks_before", "n_chunks_after", "n_hashes", "n_buckets", "share_qk", "attention_dropout")
    values = {name: get(name, getattr(default, name)) for name in names}
    values["n_buckets"] = tuple(values["n_buckets"]) if isinstance(values["n_buckets"], list) else values["n_buckets"]
    for name, least in (("chunk_len", 1), ("n_chunks_before", 0), ("n_chunks_after", 0), ("n_hashes", 1)):
        value = values[name]
        if not (value is None and name == "chunk_len" and kind == SELF_ATTENTION) and not _is_int(value, least):
            raise ValueError(f"`{kind}.{name}` is {value!r}, but must be an integer of at least {least}.")
    return Attention(kind, **values)


SIZES = ("vocab_size", "d_model", "d_ff", "d_attention_key", "d_attention_value", "n_layers", "n_heads")
SIZES += ("input_vocab_size", "output_vocab_size", "n_encoder_layers", "n_decoder_layers")
OTHERS = ("dropout", "max_len", "ff_activation", "pos_type", "pos_axial_shape", "pos_d_axial_embs")
OLD_NAMES = {"axial_pos_shape": "pos_axial_shape", "d_axial_pos_embs": "pos_d_axial_embs"}  # until Trax 1.3.7


def _config(model, attention, length, bases=None):
    model = {OLD_NAMES.get(name, name): value for name, value in model.items()}
    for name in ("max_len", *SIZES):
        if model.get(name) is not None and not _is_int(model[name], 1):
            raise ValueError(f"`{name}` is {model[name]!r}, but must be a positive integer.")
    if length is not None and not _is_int(length, 1):
        raise ValueError(f"the training length is {length!r}, but must be a positive integer.")
    sizes = {name: model[name] for name in (*SIZES, "pos_axial_shape", "pos_d_axial_embs") if model.get(name)}
    said = {"dropout": model.get("dropout"), "max_len": model.get("max_len"), "pos_type": model.get("pos_type")}
    said |= {"length": length, "bases": tuple(bases) if bases else None}
    said |= {"activation": _activation(model.get("ff_activation"))}
    return TraxConfig(attention, sizes=sizes, **{name: value for name, value in said.items() if value is not None})


def _activation(value):
    if value is None:
        return None
    name = value.name if isinstance(value, Reference) else str(value)
    activation = ACTIVATIONS.get(name.replace("_", "").lower())
    if activation is None:
        raise ValueError(f"`ff_activation` is {name!r}, but must be one of {sorted(ACTIVATIONS)}.")
    return activation


def _reject_other(kind):
    raise ValueError(
        f"the configuration is one of a {kind}; only a ReformerLM and a Reformer (encoder-decoder) are converted."
    )


def _is_int(value, least):
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
