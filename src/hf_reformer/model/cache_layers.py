"""What one layer of a `ReformerCache` remembers, and its attention to it: layers that do not hash.

Shapes: B batch, H heads, D head size, R hash rounds, n new tokens, L tokens so far, C slots there is room for.
"""

import torch
from transformers.cache_utils import CacheLayerMixin

from .attention_blocks import unit_key_scale
from .cache_decoding import BLOCK_QUERIES, attend, capacity, own_chunk_repeats, sees_cached
from .configuration_checks import is_int


class ReformerCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, and its part of the decoding. A module calls `fill` with the first piece, which it
    attends over by itself, and `attend` with each one after.

    Args:
        kind: the class of the module.
        tokens: the `CachedTokens` that all layers share.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self, config, kind, tokens, reserve=0):
        super().__init__()
        self.config, self.tokens, self.reserve = config, tokens, reserve
        self.shared = "key" not in kind.projections
        self.length = 0
        self.scales = None  # (B, H, C), with shared queries and keys
        self.rotations = None  # the ones that everything in this cache is hashed with
        self.source = None  # keys and values of an encoder's output, (B, H, S, D) each

    # --- what transformers asks of a cache layer

    def lazy_initialization(self, key_states, value_states):
        """Empty buffers for keys and values (B, H, n, D)."""
        self.dtype, self.device = value_states.dtype, value_states.device
        self._make_room(value_states.shape[0], value_states.shape[1], value_states.shape[3], value_states.shape[2])
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        """Stores keys and values (B, H, n, D); returns those of all tokens."""
        if not self.is_initialized or (self.length == 0 and self._of_another_kind(value_states)):
            self.lazy_initialization(key_states, value_states)
        self.thaw()
        start, end = self.length, self.length + value_states.shape[2]
        if end > self.keys.shape[2]:
            self._make_room(*value_states.shape[:2], value_states.shape[3], end)
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        if self.shared:
            wide = key_states.to(self.scales.dtype)
            self.scales[:, :, start:end] = unit_key_scale(wide)[..., 0]
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self):
        return self.length

    def get_max_length(self):
        return -1

    def get_mask_sizes(self, query_length):
        return self.length + query_length, 0

    def reset(self):
        """Forgets everything, the rotations too; keeps the memory."""
        self.crop_to(0)
        self.rotations = self.source = None

    def crop(self, tokens_to_remove):
        """Takes back the latest tokens; a number of at most 0, as everywhere in transformers."""
        if not is_int(tokens_to_remove) or tokens_to_remove > 0:
            raise ValueError(
                f"`tokens_to_remove` is {tokens_to_remove!r}, but must be a whole number of at most 0: -n removes n tokens."
            )
        if tokens_to_remove < 0:
            self.crop_to(max(0, self.length + tokens_to_remove))

    def reorder_cache(self, beam_idx):
        self.select_rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats):
        self.select_rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices):
        self.select_rows(lambda x: x[indices.to(x.device) if isinstance(indices, torch.Tensor) else indices])

    # --- what our modules ask of it

    def fill(self, module, q, k, v, rotations, routing):
        """The first piece, (B, n, H, D) each (k None where it is q), over which `module` attended by itself."""
        self.store(q, k, v)

    def attend(self, module, q, k, v, rotations):
        """A later piece, (B, n, H, D) each: its output (B, n, H, D), and the probabilities (B, H, n, K)."""
        raise NotImplementedError

    def store(self, q, k, v):
        """(B, n, H, D) each. Returns the slot of the first."""
        start = self.length
        self.update((q if k is None else k).detach().transpose(1, 2), v.detach().transpose(1, 2))
        return start

    def crop_to(self, length):
        self.length = length

    def select_rows(self, select):
        """Applies `select` to every tensor with a batch dimension."""
        if self.length > 0:
            for name in ("keys", "values", "scales"):
                self._select_used(name, select, dim=2)
            if self.rotations is not None and self.rotations.dim() == 5:
                self.rotations = select(self.rotations)
            self.source = None if self.source is None else tuple(map(select, self.source))

    def real(self):
        """(B, L) bool or None, on this layer's device."""
        return None if self.tokens.real is None else self.tokens.real[:, : self.length].to(self.device)

    def thaw(self):
        """Tensors that were made in inference mode cannot be written to outside of it; copies of them can."""
        if not torch.is_inference_mode_enabled():
            thaw(self)

    def _of_another_kind(self, values):
        return (self.values.shape[0], self.dtype, self.device) != (values.shape[0], values.dtype, values.device)

    def _select_used(self, name, select, dim):
        """`select` on a buffer, without copying what is not in use."""
        old = getattr(self, name)
        if old is None:
            return
        used = select(old.narrow(dim, 0, self.length))
        new = old.new_empty((used.shape[0], *old.shape[1:]))
        new.narrow(dim, 0, self.length).copy_(used)
        setattr(self, name, new)

    def _make_room(self, batch, heads, size, length):
        room = capacity(length, self.reserve, self.config.maximum_length)
        self.keys = self._grown(self.keys, (batch, heads, room, size), self.dtype)
        self.values = self._grown(self.values, (batch, heads, room, size), self.dtype)
        if self.shared:
            self.scales = self._grown(self.scales, (batch, heads, room), torch.promote_types(self.dtype, torch.float32))

    def _grown(self, old, shape, dtype):
        new = torch.empty(shape, dtype=dtype, device=self.device)
        if old is not None and self.length > 0:
            new[:, :, : self.length] = old[:, :, : self.length]
        return new


def thaw(holder):
    """Replaces the inference tensors among an object's attributes by copies."""
    for name, value in vars(holder).items():
        if isinstance(value, torch.Tensor) and value.is_inference():
            setattr(holder, name, value.clone())


class SharedWindowCacheLayer(ReformerCacheLayer):
    """Layer types whose heads all see the same keys: those that do not hash."""

    def attend(self, module, q, k, v, rotations):
        start = self.store(q, k, v)
        q_BHnD = q.transpose(1, 2)
        outputs, probabilities = [], None
        for block in range(start, self.length, BLOCK_QUERIES):
            end = min(block + BLOCK_QUERIES, self.length)
            out, probabilities = self.attend_block(module, q_BHnD[:, :, block - start : end - start], block, end)
            outputs.append(out)
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        return out.transpose(1, 2), probabilities if len(outputs) == 1 else None

    def attend_block(self, module, q, start, end):
        first, seen, weights = self.window(module, start, end)
        keys, values = self.keys[:, :, first:end], self.values[:, :, first:end]
        scale = self.scales[:, :, None, first:end] if self.shared else q.shape[-1] ** -0.5
        return attend(q, keys, values, scale, seen, weights, self.values[:, :, start:end])

    def window(self, module, start, end):
        """First slot that matters to queries in the slots from `start` to `end`, which keys from there on each query
        sees (None: all of them), and how often each counts (None: once)."""
        rule, real = module.rule, self.real()
        real = None if real is None else real[:, :end]
        chunk, before = (module.chunk_length, module.before) if module.chunked and not module.strict else (None, 0)
        first = start - rule.before - self.tokens.holes if chunk is None else (start // chunk - before) * chunk
        first, seen = max(0, first), None
        if end - start > 1 or real is not None or not rule.is_interval:
            seen = sees_cached(rule, start, end, first, real, self.device, chunk, before)
        return first, seen, None if chunk is None else self.repeats(module, start, end, first)

    def repeats(self, module, start, end, first):
        """(n, K), how often a key counts, or None where each counts once: a query's own chunk, in a short `"local"` input."""
        chunk = module.chunk_length
        repeats = own_chunk_repeats(module.padded_length(self.length), chunk, module.before, module.after)
        if repeats == 1:
            return None
        slots = torch.arange(first, end, device=self.device)
        own = slots // chunk == slots[start - first :, None] // chunk
        return torch.where(own, float(repeats), 1.0).to(torch.promote_types(self.dtype, torch.float32))
