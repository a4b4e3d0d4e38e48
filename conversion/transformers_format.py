"""Checkpoints of transformers' own Reformer, 2020 to today, and back.

The parameters have the same names here and there, so the key map is the identity over the model's parameters, after:

- `lm_head.decoder.bias` (written until 4.x, the same as `lm_head.bias`) is merged into it;
- constants that early versions stored as buffers (`..._mask_value_float16`, ...) are dropped;
- `LayerNorm.gamma` and `.beta`, as TensorFlow called them, become `weight` and `bias`.

Old names of configuration fields are read by `ReformerConfig` itself.
"""

import re

import torch

import hf_reformer

from . import limits
from .bounded import read_json
from .checkpoint import Checkpoint, one_dtype
from .key_map import check, match_by_name, same
from .torch_files import read_tensors

CLASSES = {
    "ReformerModel": hf_reformer.ReformerModel,
    "ReformerModelWithLMHead": hf_reformer.ReformerModelWithLMHead,
    "ReformerForMaskedLM": hf_reformer.ReformerForMaskedLM,
    "ReformerForSequenceClassification": hf_reformer.ReformerForSequenceClassification,
    "ReformerForTokenClassification": hf_reformer.ReformerForTokenClassification,
    "ReformerForQuestionAnswering": hf_reformer.ReformerForQuestionAnswering,
    "ReformerEncoderDecoderModel": hf_reformer.ReformerEncoderDecoderModel,
    "ReformerForConditionalGeneration": hf_reformer.ReformerForConditionalGeneration,
}
CONSTANTS = re.compile(r"(^|\.)((self_)?mask_value_float(16|32)|position_ids)$")
THEIR_LAYERS = ("local", "lsh")
OURS_ONLY = ("reversible", "activation_budget", "allow_duplicate_attention", "embedding_init", "pooling")
OURS_ONLY += ("decoder_attn_layers", "decoder_vocab_size", "decoder_max_position_embeddings", "decoder_start_token_id")
OURS_ONLY += ("share_encoder_decoder_embeddings", "cross_attention_probs_dropout_prob")
OURS_ONLY += ("use_absolute_position_embeddings", "exact_reversible")


def read(path, config, max_length=None):
    """transformers' checkpoint, or ours."""
    if max_length is not None:
        raise ValueError(f"`max_length` is {max_length}, but this checkpoint stores its positions and their number.")
    fields, tensors = read_json(config), read_tensors(path)
    model_class, config, tensors = to_ours(fields, tensors, path)
    types = sorted({str(tensor.dtype) for tensor in tensors.values()})
    tensors, dtype = one_dtype(tensors)
    notes = [f"weights of {', '.join(types)} are all {dtype} now"] if len(types) > 1 else []
    return Checkpoint(model_class, config, tensors, f"{path.name} in the layout of transformers", notes)


def model_class_of(config_fields, names):
    """The class that a checkpoint was saved from: `architectures`, else what the names of its tensors say."""
    architectures = config_fields.get("architectures")
    for architecture in architectures if isinstance(architectures, list) else ():
        if isinstance(architecture, str) and architecture in CLASSES:
            return CLASSES[architecture]
    if config_fields.get("is_encoder_decoder"):
        headed = any(name.startswith("lm_head.") for name in names)
        return CLASSES["ReformerForConditionalGeneration" if headed else "ReformerEncoderDecoderModel"]
    if any(name.startswith("lm_head.") for name in names):
        decoder = config_fields.get("is_decoder", False)
        return CLASSES["ReformerModelWithLMHead" if decoder else "ReformerForMaskedLM"]
    heads = {"classifier.dense.": "ReformerForSequenceClassification", "qa_outputs.": "ReformerForQuestionAnswering"}
    heads |= {"classifier.": "ReformerForTokenClassification"}
    for prefix, name in heads.items():
        if any(tensor.startswith(prefix) for tensor in names):
            return CLASSES[name]
    return CLASSES["ReformerModel"]


def entries_of(model_class, config):
    """The key map: the parameters of the model, found on the meta device, where they take no memory."""
    model = limits.parameters_of(model_class, config)
    return [same(name, tensor.shape, name) for name, tensor in model.state_dict().items()]


def modern_names(tensors, where):
    """Tensors under today's names; ValueError where two old names contradict each other."""
    renamed = {}
    for name, tensor in tensors.items():
        if CONSTANTS.search(name):
            continue
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        name = "lm_head.bias" if name == "lm_head.decoder.bias" else name
        if name in renamed and not torch.equal(renamed[name], tensor):
            check([f"{name} is there twice, with different values"], where)
        renamed[name] = tensor
    return renamed


def to_ours(config_fields, tensors, where):
    """(model class, configuration, {name: tensor})."""
    if config_fields.get("model_type", "reformer") != "reformer":
        raise ValueError(f"`model_type` is {config_fields['model_type']!r}, but must be 'reformer'.")
    tensors = modern_names(tensors, where)
    model_class = model_class_of(config_fields, tensors)
    config = our_config(config_fields)
    limits.check_layers(config, tensors, where)
    match_by_name(entries_of(model_class, config), tensors, where)
    wrong = [f"{name} is of {tensor.dtype}" for name, tensor in tensors.items() if not tensor.is_floating_point()]
    check(wrong, where)
    return model_class, config, tensors


def our_config(fields):
    """The configuration; a reference to code (`auto_map`) stays behind, for the code itself is not converted."""
    if fields.get("quantization_config"):
        raise ValueError("the checkpoint is quantised (`quantization_config`): convert the one that it was made from.")
    return hf_reformer.ReformerConfig.from_dict({name: value for name, value in fields.items() if name != "auto_map"})


def config_for_transformers(config):
    """The fields that transformers understands, as a dictionary.

    Raises:
        ValueError: the model computes something that transformers cannot.
    """
    if config.is_encoder_decoder:
        raise ValueError("`is_encoder_decoder` is True, but transformers has no encoder-decoder of Reformers.")
    foreign = sorted({kind for kind in config.attn_layers if kind not in THEIR_LAYERS})
    if foreign:
        raise ValueError(f"`attn_layers` holds {foreign}, which transformers' Reformer cannot compute.")
    if not config.use_absolute_position_embeddings:
        raise ValueError("`use_absolute_position_embeddings` is False, but transformers' Reformer has positions.")
    if not config.allow_duplicate_attention:
        raise ValueError("`allow_duplicate_attention` is False, which transformers' Reformer cannot compute.")
    if config.pooling not in (None, "first"):
        raise ValueError(
            f"`pooling` is {config.pooling!r}, but transformers' Reformer can only read the 'first' token."
        )
    fields = {name: value for name, value in config.to_dict().items() if name not in OURS_ONLY}
    if config.uses("lsh") and config.num_buckets is None:
        factors = config.bucket_factors("lsh")
        fields["num_buckets"] = factors[0] if len(factors) == 1 else factors
    return fields
