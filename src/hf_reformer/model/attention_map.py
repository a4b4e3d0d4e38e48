"""Which tokens one token looked at: the probabilities of every layer, by head and round of hashing, with the buckets.

`output_attentions` hands out all queries' probabilities, (B, H, chunks of all rounds, chunk length, window), in the order of the
slots, which says nothing to a reader. Here it is one query, and tokens in their own order.
"""

from typing import NamedTuple

import torch

from .attention import pad
from .attention_blocks import ALONE, LOG2E, EagerBlocks, gather, unit_keys
from .attention_layout import Block
from .tokenwise import MANY_TOKENS


class LayerMap(NamedTuple):
    """What one token looked at in one layer.

    `weights` (H, R, L): probabilities of the keys in each round; all of a head sum to 1, and are what the values are weighed
    with. A key that is met in several rounds has a weight in each. `buckets` (H, R, L), int64: the bucket of each token, or None
    where a layer does not hash (then R is 1).
    """

    kind: str
    weights: torch.Tensor
    buckets: torch.Tensor | None


@torch.no_grad()
def attention_map(model, input_ids, position=-1, num_hashes=None) -> list[LayerMap]:
    """Which tokens the one at `position` looked at, in each layer from the input up.

    Args:
        model: a `ReformerModel`, or one with a head, in evaluation mode. No encoder-decoder.
        input_ids: (1, L), at most 65,536 tokens.
        position: of the token that looks; negative from the end.
        num_hashes: rounds, instead of the configuration's.

    Raises:
        ValueError: for an encoder-decoder, several rows, too many tokens, or a position outside.
    """
    body = model.base_model
    if body.config.is_encoder_decoder:
        raise ValueError(f"`model` is a {type(model).__name__}, but must be a model that reads one sequence.")
    shape = tuple(getattr(input_ids, "shape", ()))
    length = shape[-1] if shape else 0
    if len(shape) != 2 or shape[0] != 1 or not 1 <= length <= MANY_TOKENS:
        raise ValueError(f"`input_ids` has the shape {shape}, but must be (1, L) with L from 1 to {MANY_TOKENS:,}.")
    if not -length <= position < length:
        raise ValueError(f"`position` is {position}, but must be from {-length} to {length - 1}.")
    maps, hooks = [], []

    def look(attention, args, given, output):
        maps.append(map_of(attention, args[0], output.routing, given["rotations"], position % length))

    try:
        for layer in body.encoder.layers:
            attention = layer.attention.self_attention
            hooks.append(attention.register_forward_hook(look, with_kwargs=True))
        body(input_ids, num_hashes=num_hashes, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def map_of(attention, vectors, routing, rotations, query):
    """The row of one query in what a layer's attention did with these vectors, each (1, L, H, D)."""
    length = vectors[2].shape[1]
    if not attention.chunked:
        return LayerMap(attention.layer_type, _full_row(*vectors[:2], attention.rule, query)[:, None], None)
    q, k, v = (pad(x, attention.padded_length(length)) for x in vectors)
    layout, routing = attention.layout(q, length, rotations, None, routing)
    rings, heads = layout.rings, attention.heads
    weights, lses = v.new_zeros((heads, rings.rounds, q.shape[1])), v.new_empty((heads, rings.rounds, 1))
    tokens, slots = rings.as_rings(rings.tokens), rings.slots
    q, k, v = (None if x is None else x.reshape(-1, x.shape[-1]) for x in (q, k, v))
    for r in range(rings.rounds):
        for head in range(heads):
            chunk, place = divmod(int(slots[r, head, query]), layout.windows.chunk)
            ring = head if rings.joined else r * rings.rows + head
            chunk += r * layout.chunks_per_round if rings.joined else 0
            block = Block(r, ring, ring + 1, chunk, chunk + 1)
            found, total, lse = EagerBlocks.softmax(gather(q, k, v, layout, block), layout, block)
            keys = layout.take(tokens, block)[0].to(torch.int64)
            weights[head, r].index_add_(0, keys, (found / total)[0, place].to(weights.dtype))
            lses[head, r] = lse[0, place]
    alone = (lses < ALONE).all(1)[:, 0]
    weights *= (lses / LOG2E).softmax(1)  # one softmax over all rounds
    weights[alone] = 0.0
    weights[alone, 0, query] = 1.0
    return LayerMap(attention.layer_type, weights[..., :length], _buckets(attention, routing, length))


def _full_row(q, k, rule, query):
    """(H, L): one row of what `full_attention` works with; shared queries and keys where `k` is None."""
    keys = unit_keys(q) if k is None else k * q.shape[-1] ** -0.5
    scores = torch.einsum("hd,lhd->hl", q[0, query].to(keys.dtype), keys[0])
    step = torch.arange(q.shape[1], device=q.device) - query
    seen = rule.sees(step)
    return scores.masked_fill(~(seen if seen.any() else step == 0), float("-inf")).softmax(-1)


def _buckets(attention, routing, length):
    """(H, R, L) int64, or None."""
    if routing is None or not attention.hashes:
        return None
    order = routing.order.to(torch.int64)
    buckets = torch.empty_like(order).scatter_(2, order, routing.sorted_buckets.to(torch.int64))
    return buckets.transpose(0, 1)[..., :length]
