"""Checks of a configuration: one `ValueError` that names the field, its value and what is allowed.

`check_fields` looks at each field, when a configuration is made; `check_model` also at fields together, when a model is
built from it (a configuration whose axial sizes do not fit its hidden size yet may be on its way to one that does).
"""

import difflib
import math

import torch
from transformers import GenerationConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

logger = logging.get_logger(__name__)

LSH_LAYERS = ("lsh", "strict_lsh")
LOCAL_LAYERS = ("local", "strict_local")
PUBLISHED_LAYERS = ("local", "lsh")
STRICT_LAYERS = ("strict_local", "strict_lsh")
SHARED_QK_LAYERS = ("lsh", "strict_lsh", "full_shared_qk")
ATTN_LAYERS = ["local", "lsh", "strict_local", "strict_lsh", "full", "full_shared_qk"]  # see `attention.add_layer_type`

POOLINGS = ("first", "last", "mean")
EMBEDDING_STARTS = ("balanced", "sinusoidal", "published")

MOST_ROUNDS = 2**16  # of hashing: what no memory holds is no request
FLAGS = ("axial_pos_embds", "is_decoder", "use_cache", "allow_duplicate_attention", "is_encoder_decoder")
FLAGS += ("share_encoder_decoder_embeddings", "exact_reversible", "use_absolute_position_embeddings")
# keywords that are no fields, and are read or carried along by transformers
NO_FIELDS = {
    "attn_implementation",
    "auto_map",
    "base_model_tp_plan",
    "custom_pipelines",
    "experts_implementation",
    "finetuning_task",
    "model_type",
    "name_or_path",
    "num_hidden_layers",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "task_specific_params",
    "tie_last_hidden_states",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    *GenerationConfig._get_default_generation_params(),
}


def reject(name, value, allowed):
    raise ValueError(f"`{name}` is {value!r}, but must be {allowed}.")


def is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def check_unknown(names, fields, from_file):
    """Names that are no `fields`: one that is near to a field is a mistake (in a file, whose other keys may be anybody's, it
    is only said), others are kept without effect, as in every configuration of transformers, and said."""
    for name in names:
        if name in NO_FIELDS or name.startswith("_"):
            continue
        near = difflib.get_close_matches(name, fields, 1, cutoff=0.8)
        if near and not from_file:
            raise ValueError(f"`{name}` is given, but must be a field of ReformerConfig: did you mean `{near[0]}`?")
        if near or not from_file:
            hint = f" Did you mean `{near[0]}`?" if near else ""
            logger.warning(f"`{name}` is no field of ReformerConfig: it is kept, and changes nothing.{hint}")


def check_inherited(config, more):
    """Fields of every configuration of transformers, which it takes apart before `check_fields`; more: keywords beside fields."""
    for name, dtype in (("dtype", config.dtype), ("torch_dtype", more.get("torch_dtype"))):
        named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if dtype is not None and not isinstance(named, torch.dtype):
            reject(name, dtype, "a type of PyTorch or its name, as 'float32'")
    for name, numbers in (("id2label", _keys(config.id2label)), ("label2id", _values(config.label2id))):
        if numbers is None or not all(is_int(x) or (isinstance(x, str) and x.isdecimal()) for x in numbers):
            reject(name, getattr(config, name), "a dictionary between whole numbers and names")


def _keys(mapping):
    return [] if mapping is None else list(mapping) if isinstance(mapping, dict) else None


def _values(mapping):
    return [] if mapping is None else list(mapping.values()) if isinstance(mapping, dict) else None


def check_fields(config):
    """Each field for itself, and those of one kind of layer where such layers are used."""
    _check_layers(config)
    _check_sizes(config)
    _check_flags(config)
    _check_dropout(config)
    _check_windows(config)
    _check_buckets(config)
    _check_axes(config)
    _check_parts(config)


def check_model(config):
    """What no model can be built from."""
    check_fields(config)
    if config.is_heterogeneous:
        reject("per_layer_config", "given", "left out: layers differ by `attn_layers` alone")
    if not config.has_axial_positions:
        return
    shape, dims = config.axial_pos_shape, config.axial_pos_embds_dim
    if len(shape) != len(dims):
        reject("axial_pos_embds_dim", dims, f"as long as `axial_pos_shape` {shape}")
    if sum(dims) != config.hidden_size:
        reject("axial_pos_embds_dim", dims, f"a list with sum {config.hidden_size} (`hidden_size`)")
    positions, maximum = math.prod(shape), config.max_position_embeddings
    if positions < maximum:
        if not config.uses(*PUBLISHED_LAYERS):
            allowed = (
                f"one whose product is at least {maximum} (`max_position_embeddings`); left out, it follows from that"
            )
            reject("axial_pos_shape", shape, allowed)
        logger.warning_once(
            f"`max_position_embeddings` is {maximum}, but `axial_pos_shape` {shape} has {positions} positions: "
            f"inputs may have at most {positions} tokens."
        )


def _check_layers(config):
    if not isinstance(config.attn_layers, (list, tuple)) or len(config.attn_layers) == 0:
        reject("attn_layers", config.attn_layers, "a list of at least one layer type")
    for kind in config.attn_layers:
        if kind not in ATTN_LAYERS:
            reject("attn_layers", list(config.attn_layers), f"made of {', '.join(ATTN_LAYERS)}; {kind!r} is not one")
    if config.num_hidden_layers != len(config.attn_layers):
        reject("num_hidden_layers", config.num_hidden_layers, f"{len(config.attn_layers)}, the length of `attn_layers`")
    if not isinstance(config.hidden_act, str) or config.hidden_act not in ACT2FN:
        reject("hidden_act", config.hidden_act, f"one of {', '.join(sorted(ACT2FN))}")


def _check_sizes(config):
    positive = ["attention_head_size", "feed_forward_size", "hidden_size", "num_attention_heads", "num_hashes"]
    positive += ["vocab_size", "max_position_embeddings"]
    positive += ["local_attn_chunk_length"] if config.uses(*LOCAL_LAYERS) else []
    positive += ["lsh_attn_chunk_length"] if config.uses(*LSH_LAYERS) else []
    for names, least in ((positive, 1), (("chunk_size_feed_forward", "chunk_size_lm_head"), 0)):
        for name in names:
            if not is_int(getattr(config, name)) or getattr(config, name) < least:
                reject(name, getattr(config, name), f"an integer of at least {least}")
    for name in ("initializer_range", "axial_norm_std", "layer_norm_eps", "activation_budget"):
        value = getattr(config, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            reject(name, value, "a finite number of at least 0")
    if config.num_hashes > MOST_ROUNDS:
        reject("num_hashes", config.num_hashes, f"an integer from 1 to {MOST_ROUNDS:,}")
    if config.hash_seed is not None and (not is_int(config.hash_seed) or not 0 <= config.hash_seed < 2**63):
        reject("hash_seed", config.hash_seed, "an integer from 0 to 2**63 - 1, or None")


def _check_flags(config):
    for name in FLAGS:
        if not isinstance(getattr(config, name), bool):
            reject(name, getattr(config, name), "true or false")
    if not isinstance(config.reversible, bool) and config.reversible != "auto":
        reject("reversible", config.reversible, 'true, false or "auto"')
    if config.tie_word_embeddings is not False:
        reject(
            "tie_word_embeddings",
            config.tie_word_embeddings,
            "false: the head reads 2 * hidden_size, the embedding has hidden_size",
        )
    if config.pooling is not None and config.pooling not in POOLINGS:
        reject("pooling", config.pooling, f"one of {', '.join(POOLINGS)}, or None")
    if config.embedding_init not in EMBEDDING_STARTS:
        reject("embedding_init", config.embedding_init, f"one of {', '.join(EMBEDDING_STARTS)}, or None")
    if config.embedding_init != "published" and config.axial_norm_std != 1:
        reject("axial_norm_std", config.axial_norm_std, f"left out where `embedding_init` is {config.embedding_init!r}")


def _check_dropout(config):
    names = ["hidden_dropout_prob", "classifier_dropout", "cross_attention_probs_dropout_prob"]
    names += ["local_attention_probs_dropout_prob"] if config.uses(*LOCAL_LAYERS, "full") else []
    names += ["lsh_attention_probs_dropout_prob"] if config.uses(*SHARED_QK_LAYERS) else []
    for name in names:
        value = getattr(config, name)
        if value is None and name == "classifier_dropout":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            reject(name, value, "a number from 0 up to, but not including, 1")


def _check_windows(config):
    for prefix, kinds in (("local", LOCAL_LAYERS), ("lsh", LSH_LAYERS)):
        if not config.uses(*kinds):
            continue
        before, after = f"{prefix}_num_chunks_before", f"{prefix}_num_chunks_after"
        for name in (before, after):
            if not is_int(getattr(config, name)) or getattr(config, name) < 0:
                reject(name, getattr(config, name), "an integer of at least 0")
        strict = f"strict_{prefix}"
        if config.uses(strict) and config.is_decoder and getattr(config, before) == 0:
            reject(before, 0, f"at least 1 for a causal {strict!r} layer, which sees nothing else")
        if config.uses(strict) and getattr(config, before) + getattr(config, after) == 0:
            reject(before, 0, f"at least 1 (or `{after}`) for a {strict!r} layer, which sees nothing else")
        if config.uses(strict) and config.is_decoder and getattr(config, after) > 0:
            reject(after, getattr(config, after), f"0 for a causal {strict!r} layer: it never looks ahead")


def _check_buckets(config):
    if config.num_buckets is None or not config.uses(*LSH_LAYERS):
        return
    factors = [config.num_buckets] if is_int(config.num_buckets) else config.num_buckets
    even = isinstance(factors, (list, tuple)) and len(factors) > 0
    even = even and all(is_int(factor) and factor >= 2 and factor % 2 == 0 for factor in factors)
    one_bucket = is_int(config.num_buckets) and config.num_buckets == 1 and not config.uses("lsh")
    if not even and not one_bucket:
        allowed = "None, a positive even integer or a list of them (1: strict_lsh only)"
        reject("num_buckets", config.num_buckets, allowed)


def _check_axes(config):
    if config.has_axial_positions:
        for name in ("axial_pos_shape", "axial_pos_embds_dim"):
            value = getattr(config, name)
            if not isinstance(value, (list, tuple)) or not value or not all(is_int(n) and n >= 1 for n in value):
                reject(name, value, "a list of positive integers, one per axis")


def _check_parts(config):
    """Fields of an encoder-decoder; each part by itself is checked as its model is built."""
    own = ("decoder_attn_layers", "decoder_vocab_size", "decoder_max_position_embeddings")
    if not config.is_encoder_decoder:
        for name in own:
            if getattr(config, name) is not None:
                reject(name, getattr(config, name), "None where `is_encoder_decoder` is False")
        return
    if config.is_decoder:
        reject("is_decoder", True, "false where `is_encoder_decoder` is True: its decoder is causal anyway")
    layers = config.decoder_attn_layers
    if layers is not None and (not isinstance(layers, (list, tuple)) or not layers):
        reject("decoder_attn_layers", layers, "a list of at least one layer type, or None")
    for kind in layers or ():
        if kind not in ATTN_LAYERS:
            reject("decoder_attn_layers", list(layers), f"made of {', '.join(ATTN_LAYERS)}; {kind!r} is not one")
    for name in own[1:]:
        value = getattr(config, name)
        if value is not None and (not is_int(value) or value < 1):
            reject(name, value, "an integer of at least 1, or None")
    if config.share_encoder_decoder_embeddings and config.decoder_vocab_size not in (None, config.vocab_size):
        allowed = f"{config.vocab_size} (`vocab_size`) where `share_encoder_decoder_embeddings` is True"
        reject("decoder_vocab_size", config.decoder_vocab_size, allowed)
    size = config.decoder_vocab_size or config.vocab_size
    start = config.decoder_start_token_id
    if not is_int(start) or not 0 <= start < size:
        reject("decoder_start_token_id", start, f"an integer from 0 to {size - 1}")
