"""Writes what Trax 1.3.8 and later read: `model.weights.npy.gz`, `model.pkl.gz`, `config.gin`, `config.json`.

Only a language model or an encoder-decoder whose layers Trax has can be written. The pickle names one class,
`trax.shapes.ShapeDtype`, for the input signature that `Layer.init_from_file` wants, and no weights.
"""

import gzip
import io
import json
import pickle

import numpy as np

from hf_reformer import ReformerForConditionalGeneration, ReformerModelWithLMHead

from . import trax_encoder_decoder
from .key_map import to_theirs
from .npy_stream import GZIP_LEVEL, write_npy_stream
from .trax_language_model import Architecture, Positions, language_model_entries

WRITABLE = ("local", "lsh", "full", "full_shared_qk")
TRAX_ACTIVATIONS = {"relu": "Relu", "gelu": "Gelu", "gelu_fast": "FastGelu", "silu": "Swish", "tanh": "Tanh"}
TRAX_ACTIVATIONS |= {"gelu_new": "FastGelu", "sigmoid": "Sigmoid", "elu": "Elu"}


def write_trax(folder, model_class, config, tensors):
    """Writes the four files into a folder; equal models give equal bytes.

    Raises:
        ValueError: the model has no counterpart in Trax.
    """
    _check_counterpart(model_class, config)
    arch = architecture_of_config(config)
    if config.is_encoder_decoder:
        entries, settings = trax_encoder_decoder.writing(config, arch, json_settings(config))
    else:
        entries, settings = language_model_entries(arch), json_settings(config)
    arrays = to_theirs(entries, tensors, "the model")
    write_npy_stream(folder / "model.weights.npy.gz", [array for _, array in arrays])
    with open(folder / "model.pkl.gz", "wb") as raw, gzip.GzipFile("", "wb", GZIP_LEVEL, raw, mtime=0) as stream:
        stream.write(checkpoint_pickle(settings["length"]))
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    (folder / "config.gin").write_text(gin_of(settings))


def _check_counterpart(model_class, config):
    if model_class is ReformerForConditionalGeneration:
        trax_encoder_decoder.check_counterpart(config)
    elif model_class is not ReformerModelWithLMHead:
        raise ValueError(
            f"the model is a {model_class.__name__}, but only language models and encoder-decoders have a counterpart in Trax."
        )
    foreign = sorted({kind for kind in config.attn_layers if kind not in WRITABLE})
    if foreign:
        raise ValueError(f"`attn_layers` holds {foreign}, which Trax cannot compute.")
    if not config.use_absolute_position_embeddings:
        raise ValueError("`use_absolute_position_embeddings` is False, but Trax's models have positions.")
    if not config.allow_duplicate_attention:
        raise ValueError("`allow_duplicate_attention` is False, which Trax cannot compute.")
    if config.hidden_act not in TRAX_ACTIVATIONS:
        raise ValueError(f"`hidden_act` is {config.hidden_act!r}, which Trax does not have.")


def architecture_of_config(config):
    """The shapes that Trax gives to a model of this configuration."""
    if config.axial_pos_embds:
        axes = len(config.axial_pos_shape)
        shapes = tuple(
            (1, *(size if i == axis else 1 for i in range(axes)), width)
            for axis, (size, width) in enumerate(zip(config.axial_pos_shape, config.axial_pos_embds_dim, strict=True))
        )
        positions = Positions("axial", shapes)
    else:
        positions = Positions("table", ((config.max_position_embeddings, config.hidden_size),))
    return Architecture(
        config.vocab_size, config.hidden_size, config.feed_forward_size, config.num_attention_heads,
        config.attention_head_size, config.attention_head_size,
        tuple(kind in ("lsh", "full_shared_qk") for kind in config.attn_layers), positions,
    )  # fmt: skip


def json_settings(config):
    """The arguments of Trax's `ReformerLM` and of its attention layers."""
    model = {
        "vocab_size": config.vocab_size, "d_model": config.hidden_size, "d_ff": config.feed_forward_size,
        "d_attention_key": config.attention_head_size, "d_attention_value": config.attention_head_size,
        "n_layers": len(config.attn_layers), "n_heads": config.num_attention_heads,
        "dropout": config.hidden_dropout_prob, "max_len": config.maximum_length,
        "ff_activation": TRAX_ACTIVATIONS[config.hidden_act],
    }  # fmt: skip
    if config.axial_pos_embds:
        model |= {"pos_type": "axial", "pos_axial_shape": list(config.axial_pos_shape)}
        model |= {"pos_d_axial_embs": list(config.axial_pos_embds_dim)}
    attention = [_attention_arguments(config, kind) for kind in config.attn_layers]
    return {"kind": "ReformerLM", "length": config.maximum_length, "model": model, "attention": attention}


def _attention_arguments(config, kind):
    prefix = "lsh" if kind in ("lsh", "full_shared_qk") else "local"
    full = kind in ("full", "full_shared_qk")
    arguments = {"type": "lsh" if kind == "lsh" else "local"}
    arguments["chunk_len"] = None if full else getattr(config, f"{prefix}_attn_chunk_length")
    arguments["n_chunks_before"] = 0 if full else getattr(config, f"{prefix}_num_chunks_before")
    arguments["n_chunks_after"] = 0 if full else getattr(config, f"{prefix}_num_chunks_after")
    arguments["attention_dropout"] = getattr(config, f"{prefix}_attention_probs_dropout_prob")
    if kind == "full_shared_qk":
        arguments["share_qk"] = True
    if kind == "lsh":
        factors = config.bucket_factors("lsh")
        arguments |= {"n_hashes": config.num_hashes, "n_buckets": factors[0] if len(factors) == 1 else factors}
    return arguments


CLASSES = {"local": "SelfAttention", "lsh": "LSHSelfAttention"}


def gin_of(settings):
    """The same as gin bindings. Kinds of attention that share a class (local and full) are told apart by scopes."""
    kinds = {json.dumps(arguments, sort_keys=True): arguments for arguments in settings["attention"]}
    names = {key: f"kind{i}/{CLASSES[arguments['type']]}" for i, (key, arguments) in enumerate(kinds.items())}
    layers = [f"@{names[json.dumps(arguments, sort_keys=True)]}" for arguments in settings["attention"]]
    model, types = settings["kind"], f"attention_type = [{', '.join(layers)}]"
    if model == trax_encoder_decoder.MODEL:
        types = f"encoder_attention_type = {layers[0]}"
    lines = ["import trax.layers", "import trax.models", "", f"train.model = @trax.models.{model}"]
    for key, arguments in kinds.items():
        lines += [f"{names[key]}.{name} = {value!r}" for name, value in arguments.items() if name != "type"]
    lines += [f"{model}.{types}"]
    for name, value in settings["model"].items():
        text = f"@trax.layers.{value}" if name == "ff_activation" else repr(value)
        lines.append(f"{model}.{name} = {text}")
    return "\n".join(lines) + "\n"


class ShapeDtype:
    """Stands for `trax.shapes.ShapeDtype` while pickling; Trax is not needed."""

    __slots__ = ("dtype", "shape")

    def __reduce_ex__(self, protocol):
        return NewObject, (), (None, {"shape": self.shape, "dtype": self.dtype})


class NewObject:
    """The name that is written as `trax.shapes.ShapeDtype`."""


class _Pickler(pickle._Pickler):
    """Writes `NewObject` under the name of Trax's class, without importing Trax."""

    def save_global(self, obj, name=None):
        if obj is not NewObject:
            return super().save_global(obj, name)
        self.save("trax.shapes")
        self.save("ShapeDtype")
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)

    dispatch = dict(pickle._Pickler.dispatch)
    dispatch[type] = save_global


def checkpoint_pickle(length):
    """What `training.Loop` puts into `model.pkl.gz` when weights are in their own file: step 0, no history, no state."""
    signature = ShapeDtype()
    signature.shape, signature.dtype = (1, length), np.dtype(np.int32)
    checkpoint = {
        "step": 0,
        "flat_weights": GZIP_LEVEL,
        "flat_state": [],
        "flat_eval_state": [],
        "history": {"_values": {}},
        "slots_per_task": [],
        "input_signature": signature,
        "version_timestamp": "Mar-10-2021",
    }
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=4).dump(checkpoint)
    return buffer.getvalue()
