"""The cache for generation, a transformers `Cache`: what each layer must remember so that new tokens cost little.

Every layer keeps keys and values of all tokens in buffers with room to grow (so the cache can be cropped exactly), and
reads of them only what its attention looks at: the latest window (`"local"`, `"strict_local"`), the latest members of the
token's buckets (`"strict_lsh"`), the window in sorted order (`"lsh"`), or everything (`"full"`, `"full_shared_qk"`). Layers
that share queries and keys keep the vectors before they are normalised, and the factor that normalises each.

For the strict and full types what comes out is the full forward's output, token for token, however the tokens are cut
into pieces. For `"local"` and `"lsh"` a new piece attends where the full forward over all tokens so far would put it; but
the full forward would also let earlier tokens attend elsewhere now (`"lsh"` moves its chunk borders), and what is
cached of them in the layers above stays as it was.

Shapes: B batch, H heads, D head size, R hash rounds, n new tokens, L tokens so far, C slots there is room for.
"""

from functools import wraps

import torch
from transformers.cache_utils import Cache

from .attention import ATTENTION_CLASSES
from .cache_hashed import LSHCacheLayer, StrictLSHCacheLayer
from .cache_layers import SharedWindowCacheLayer
from .configuration_checks import is_int
from .tracing import readable


class CachedTokens:
    """Which slots hold real tokens, shared by all layers of a cache.

    Attributes:
        length: L, including the piece that is being run.
        real: (B, L) bool, or None while no padding has been met.
        holes: how many slots behind its first real token are padding, in the row with most of them (or more).
    """

    def __init__(self):
        self.length, self.real, self.holes = 0, None, 0

    def add(self, new_tokens, real, batch):
        """Adds a piece; real: (B, n) bool, or None where all are real."""
        if real is not None and self.real is None:
            self.real = torch.ones(batch, self.length, dtype=torch.bool, device=real.device)
        self.length += new_tokens
        if self.real is None:
            return
        if real is None:
            real = torch.ones(batch, new_tokens, dtype=torch.bool, device=self.real.device)
        else:  # the one number that a forward waits for
            ahead = self.real.any(1, keepdim=True) | (real.cumsum(1) > 0)
            self.holes += int((ahead & ~real).sum(1).max())
        self.real = torch.cat([self.real, real], 1)

    def next_positions(self, real, new_tokens, device):
        """Positions of the next `new_tokens` tokens where padding is not counted, (B or 1, n)."""
        if self.real is None and real is None:
            return torch.arange(self.length, self.length + new_tokens, device=device)[None]
        past = self.length if self.real is None else self.real.sum(1, keepdim=True)
        steps = torch.arange(1, new_tokens + 1, device=device)[None] if real is None else real.long().cumsum(1)
        return (past + steps - 1).clamp(min=0)

    def crop(self, length):
        self.length = length
        self.real = None if self.real is None or length == 0 else self.real[:, :length]
        self.holes = 0 if self.real is None else self.holes

    def select_rows(self, select):
        self.real = None if self.real is None else select(self.real)


def _layer_class(kind):
    if not kind.hashes:
        return SharedWindowCacheLayer
    return StrictLSHCacheLayer if kind.strict else LSHCacheLayer


def _what_it_depends_on(config):
    """The fields of a configuration that decide what a cache holds, by name."""
    kinds = {name: ATTENTION_CLASSES[name] for name in config.attn_layers}
    fields = ["num_attention_heads", "attention_head_size"]
    for prefix in ("local", "lsh"):
        windows = (f"{prefix}_attn_chunk_length", f"{prefix}_num_chunks_before", f"{prefix}_num_chunks_after")
        fields += windows if any(kind.chunked and kind.prefix == prefix for kind in kinds.values()) else []
    found = {"attn_layers": list(config.attn_layers), **{name: getattr(config, name) for name in fields}}
    buckets = {name: config.bucket_factors(name) for name, kind in kinds.items() if kind.hashes}
    return {**found, "num_buckets": buckets} if buckets else found


# of the argument that holds it: in transformers to 5.23, from 5.24 on, and in its own Reformer
CACHE_NAMES = ("past_key_values", "cache", "past_buckets_states")


class ReformerCache(Cache):
    """What a causal Reformer remembers of the tokens it has seen; pass it as `past_key_values`, it is changed in place.

    (transformers calls it `cache` from 5.24 on: each model here understands both names.)

    Supports everything that transformers does with a cache: `crop`, `reorder_cache`, `batch_repeat_interleave`,
    `batch_select_indices`, `reset`, and `copy.deepcopy` to continue one prompt in several ways.

    Args:
        config: of the model; of an encoder-decoder the cache is its decoder's, and holds keys and values of the source too.
        reserve: tokens to make room for at once (memory grows by itself, this only saves copying).
    """

    def __init__(self, config, reserve: int = 0):
        self.tokens = CachedTokens()
        config = config.decoder_part() if config.is_encoder_decoder else config
        kinds = [ATTENTION_CLASSES[name] for name in config.attn_layers]
        super().__init__(layers=[_layer_class(kind)(config, kind, self.tokens, reserve) for kind in kinds])
        self.num_hashes = None
        self.source = None  # (B, n), a few numbers of the encoder's output whose keys and values the layers hold
        self.made_for = _what_it_depends_on(config)

    def check_config(self, config):
        """Raises `ValueError` where a model of this configuration would read something else into what is cached."""
        wanted = _what_it_depends_on(config)
        for name in [*wanted, *self.made_for]:
            if self.made_for.get(name) != wanted.get(name):
                raise ValueError(
                    f"`past_key_values` was made for `{name}` {self.made_for.get(name)}, but must have been made for "
                    f"{wanted.get(name)}, which this model has."
                )

    def settle(self):
        """Called before a forward: forgets which tokens were real of those that were cropped since the last one."""
        if any(layer.length != self.tokens.length for layer in self.layers):
            self.crop_to(min(layer.length for layer in self.layers))

    def crop_to(self, length):
        self.tokens.crop(length)
        for layer in self.layers:
            layer.crop_to(length)

    def begin(self, new_tokens, batch, real, num_hashes):
        """Called before the layers run over a new piece; real: (B, n) bool or None."""
        if self.tokens.length == 0:
            self.num_hashes = num_hashes
            self.source = None
            for layer in self.layers:
                layer.rotations = layer.source = None
        self.tokens.add(new_tokens, real, batch)

    def check(self, batch, num_hashes):
        """Whether a piece of `batch` rows, with this many rounds (None: the same as before), goes with what is cached."""
        if self.get_seq_length() == 0:
            return
        if batch != len(self.layers[0].keys):
            raise ValueError(
                f"`past_key_values` holds {len(self.layers[0].keys)} rows, but the input has {batch}: they must agree."
            )
        if num_hashes is not None and num_hashes != self.num_hashes:
            raise ValueError(
                f"`num_hashes` is {num_hashes}, but must be {self.num_hashes}, with which `past_key_values` was hashed."
            )

    def check_source(self, memory):
        """Whether what is cached was read beside this encoder's output (B, S, hidden)."""
        if self.get_seq_length() == 0 or self.source is None or not readable(memory):
            return
        fits = all(layer.source[0].shape[2] == memory.shape[1] for layer in self.layers)
        given = _few_numbers(memory)
        fits = fits and given.shape == self.source.shape
        if not fits or not torch.allclose(given, self.source.to(given), rtol=1e-2, atol=1e-2):
            raise ValueError(
                "`past_key_values` holds the keys and values of another source, but must be of the one given: begin a new one."
            )

    def note_source(self, memory):
        """Called as the first piece of a target begins."""
        self.source = _few_numbers(memory) if self.source is None else self.source

    def _select_rows(self, select):
        self.tokens.select_rows(select)
        self.source = None if self.source is None else select(self.source)

    def reorder_cache(self, beam_idx):
        beam_idx = self._rows("beam_idx", beam_idx)
        if beam_idx is None:
            return
        if beam_idx.device.type == "cpu" and torch.equal(beam_idx, torch.arange(len(self.layers[0].keys))):
            return
        super().reorder_cache(beam_idx)
        self._select_rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats):
        if not is_int(repeats) or repeats < 1:
            raise ValueError(f"`repeats` is {repeats!r}, but must be a whole number of at least 1.")
        super().batch_repeat_interleave(repeats)
        self._select_rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices):
        indices = self._rows("indices", indices)
        if indices is not None:
            super().batch_select_indices(indices)
            self._select_rows(lambda x: x.index_select(0, indices.to(x.device)))

    def _rows(self, name, rows):
        """Numbers (n) of rows, or a mask (B) of them, as numbers; None for a cache that holds nothing yet, and so no rows."""
        try:
            rows = torch.as_tensor(rows)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ValueError(f"`{name}` is {rows!r}, but must be the numbers of rows.") from None
        count = len(self.layers[0].keys) if self.get_seq_length() > 0 else None
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool and tuple(rows.shape) == (count,) else rows
        if (
            rows.dim() != 1
            or rows.dtype == torch.bool
            or rows.is_floating_point()
            or rows.is_complex()
            or len(rows) == 0
        ):
            raise ValueError(
                f"`{name}` is a tensor {tuple(rows.shape)} of {rows.dtype}, but must be the numbers of rows, (n)."
            )
        rows = rows.to(torch.int64)
        if count is not None and readable(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < count):
            raise ValueError(
                f"`{name}` is {rows.tolist()}, but must be numbers from 0 to {count - 1}, the rows of the cache."
            )
        return None if count is None else rows


def _few_numbers(memory):
    """(B, at most 61) of an encoder's output, from all over it."""
    flat = memory.detach().flatten(1)
    return flat[:, :: max(1, flat.shape[1] // 61)][:, :61].to(torch.float32)


def take_cache(keywords):
    """The cache among the keywords of a call, or None: taken out, by whichever of `CACHE_NAMES`.

    Raises:
        ValueError: where several names hold different ones.
    """
    given = {name: keywords.pop(name, None) for name in CACHE_NAMES}
    given = {name: past for name, past in given.items() if past is not None}
    first = next(iter(given), None)
    for name, past in given.items():
        if past is not given[first]:
            raise ValueError(f"`{name}` is given beside `{first}`, but must be None or the same: both name the cache.")
    return given.get(first)


def leaves_cache_on_failure(forward):
    """Decorates a model's forward: it understands all names of the cache, and where it fails, a `ReformerCache` that it was
    given holds what it held before."""

    @wraps(forward)
    def with_way_back(*args, **kwargs):
        """A failure leaves the cache as it was."""
        past = take_cache(kwargs)
        if past is not None:
            kwargs["past_key_values"] = past
        caches = [x for x in (*args, *kwargs.values()) if type(x).__name__ == "ReformerCache"]
        if not caches:
            return forward(*args, **kwargs)
        caches[0].settle()
        length = caches[0].tokens.length
        try:
            return forward(*args, **kwargs)
        except BaseException:
            caches[0].crop_to(length)
            raise

    return with_way_back


__all__ = ["ReformerCache"]
