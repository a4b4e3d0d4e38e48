"""A whole Reformer on top of `hf_reformer.model.reference`: dense, functional, written from the specification.

It knows the model under test only by its configuration fields and its parameter names.
"""

import math

import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

from hf_reformer.model import reference

PUBLISHED = ("local", "lsh")


def dense_last_hidden_state(config, parameters, input_ids, attention_mask=None, rotations=None, inputs_embeds=None):
    """(B, L, 2 * hidden): the two streams side by side after the final layer norm.

    `parameters` maps names of `ReformerModel` to tensors; `rotations` maps the index of an LSH layer to its rotations.
    """
    embeds = (
        F.embedding(input_ids, parameters["embeddings.word_embeddings.weight"])
        if inputs_embeds is None
        else inputs_embeds
    )
    attention_stream = feed_forward_stream = embeds + _positions(config, parameters, embeds, attention_mask)
    for index in range(len(config.attn_layers)):
        weights = _below(parameters, f"encoder.layers.{index}.")
        attended = _attention(config, weights, index, feed_forward_stream, attention_mask, (rotations or {}).get(index))
        attention_stream = attention_stream + attended
        feed_forward_stream = feed_forward_stream + _feed_forward(config, weights, attention_stream)
    both = torch.cat([attention_stream, feed_forward_stream], dim=-1)
    return _layer_norm(config, _below(parameters, "encoder.layer_norm."), both)


def dense_lm_logits(config, parameters, input_ids, attention_mask=None, rotations=None):
    """(B, L, V): logits of `ReformerModelWithLMHead` or `ReformerForMaskedLM`, whose parameter names are expected."""
    hidden = dense_last_hidden_state(config, _below(parameters, "reformer."), input_ids, attention_mask, rotations)
    return hidden @ parameters["lm_head.decoder.weight"].T + parameters["lm_head.bias"]


def _below(parameters, prefix):
    return {name[len(prefix) :]: value for name, value in parameters.items() if name.startswith(prefix)}


def _layer_norm(config, weights, x):
    return F.layer_norm(x, x.shape[-1:], weights["weight"], weights["bias"], config.layer_norm_eps)


def _positions(config, parameters, embeds, attention_mask):
    batch, length = embeds.shape[:2]
    ids = torch.arange(length).expand(batch, length)
    if attention_mask is not None and not set(PUBLISHED) & set(config.attn_layers):
        ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    weights = _below(parameters, "embeddings.position_embeddings.")
    if not config.axial_pos_embds:
        return weights["embedding.weight"][ids]
    parts, rest = [], ids
    for axis in reversed(range(len(config.axial_pos_shape))):
        table = weights[f"weights.{axis}"].reshape(config.axial_pos_shape[axis], -1)
        parts.insert(0, table[rest % config.axial_pos_shape[axis]])
        rest = rest // config.axial_pos_shape[axis]
    return torch.cat(parts, dim=-1)


def _feed_forward(config, weights, x):
    x = _layer_norm(config, _below(weights, "feed_forward.layer_norm."), x)
    x = x @ weights["feed_forward.dense.dense.weight"].T + weights["feed_forward.dense.dense.bias"]
    x = ACT2FN[config.hidden_act](x)
    return x @ weights["feed_forward.output.dense.weight"].T + weights["feed_forward.output.dense.bias"]


def padded_length(config, length):
    """Length to which published layers pad: a multiple of their chunk lengths, once longer than the shortest chunk."""
    chunks = {"local": config.local_attn_chunk_length, "lsh": config.lsh_attn_chunk_length}
    chunks = [chunks[kind] for kind in set(config.attn_layers) & set(PUBLISHED)]
    if not chunks or length <= min(chunks):
        return length
    multiple = math.lcm(*chunks)
    return -(-length // multiple) * multiple


def _attention(config, weights, index, x, attention_mask, rotations):
    kind = config.attn_layers[index]
    x = _layer_norm(config, _below(weights, "attention.layer_norm."), x)

    def project(name):
        return _split_heads(config, x @ weights[f"attention.self_attention.{name}.weight"].T)

    common = {"causal": config.is_decoder, "attention_mask": attention_mask}
    if kind in ("local", "strict_local"):
        out = reference.dense_local_attention(
            project("query"), project("key"), project("value"), **common,
            chunk_length=config.local_attn_chunk_length, num_chunks_before=config.local_num_chunks_before,
            num_chunks_after=config.local_num_chunks_after, strict=kind == "strict_local",
            padded_length=padded_length(config, x.shape[1]) if kind == "local" else None,
        )  # fmt: skip
    elif kind == "full":
        out = reference.dense_full_attention(project("query"), project("key"), project("value"), **common)
    elif kind == "full_shared_qk":
        out = reference.dense_full_shared_qk_attention(project("query_key"), project("value"), **common)
    else:
        qk = project("query_key")
        out = reference.dense_lsh_attention(
            qk, project("value"), reference.hash_buckets(qk, rotations.to(qk.dtype), config.num_buckets), **common,
            chunk_length=config.lsh_attn_chunk_length, num_chunks_before=config.lsh_num_chunks_before,
            num_chunks_after=config.lsh_num_chunks_after, strict=kind == "strict_lsh",
            allow_duplicate_attention=getattr(config, "allow_duplicate_attention", True),
            padded_length=padded_length(config, x.shape[1]) if kind == "lsh" else None,
        )  # fmt: skip
    return out.transpose(1, 2).flatten(2) @ weights["attention.output.dense.weight"].T


def _split_heads(config, x_BLd):
    return x_BLd.unflatten(-1, (config.num_attention_heads, config.attention_head_size)).transpose(1, 2)


def dense_encoder_decoder_logits(config, parameters, source, target, masks=(None, None), rotations=None):
    """(B, L, V): logits of `ReformerForConditionalGeneration`, from the definition in Trax's `Reformer`: each half of the decoder
    adds to one stream what it makes of the other, in turn, and both parts end with the norm of the streams' mean."""
    encoder, decoder = config.encoder_part(), config.decoder_part()
    weights = _below(parameters, "reformer.encoder.")
    words = weights["embeddings.word_embeddings.weight"]
    x1 = x2 = F.embedding(source, words) + _positions(encoder, weights, source, masks[0])
    for index in range(len(encoder.attn_layers)):
        layer = _below(weights, f"encoder.layers.{index}.")
        x1 = x1 + _attention(encoder, layer, index, x2, masks[0], rotations[index])
        x2 = x2 + _feed_forward(encoder, layer, x1)
    memory = _layer_norm(config, _below(weights, "encoder.layer_norm."), (x1 + x2) / 2)

    weights = _below(parameters, "reformer.decoder.")
    words = weights.get("embeddings.word_embeddings.weight", words)
    x1 = x2 = F.embedding(target, words) + _positions(decoder, weights, target, masks[1])
    for index in range(len(decoder.attn_layers)):
        layer = _below(weights, f"encoder.layers.{index}.")
        x1 = x1 + _attention(decoder, layer, index, x2, masks[1], rotations[index])
        x2 = x2 + _cross_attention(config, _below(layer, "cross_attention."), x1, memory, masks[0])
        x1 = x1 + _feed_forward(decoder, layer, x2)
        x1, x2 = x2, x1
    last = _layer_norm(config, _below(weights, "encoder.layer_norm."), (x1 + x2) / 2)
    return last @ parameters["lm_head.decoder.weight"].T + parameters["lm_head.bias"]


def _cross_attention(config, weights, x, memory, memory_mask):
    x = _layer_norm(config, _below(weights, "layer_norm."), x)
    q = _split_heads(config, x @ weights["cross_attention.query.weight"].T)
    k, v = (_split_heads(config, memory @ weights[f"cross_attention.{name}.weight"].T) for name in ("key", "value"))
    scores = q @ k.transpose(2, 3) / math.sqrt(config.attention_head_size)
    if memory_mask is not None:
        scores = scores.masked_fill(memory_mask[:, None, None] == 0, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ weights["output.dense.weight"].T
