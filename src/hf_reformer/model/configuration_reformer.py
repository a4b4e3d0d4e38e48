"""Configuration of a Reformer: every field of transformers' `ReformerConfig`, and the layer types that are ours.

A forward pass only reads it. All checks raise `ValueError` at construction, and again when a model is built from it,
so that a field changed in between is checked too.
"""

import math
from typing import ClassVar

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .adapters import register_lora_targets

LSH_LAYERS = ("lsh", "strict_lsh")
LOCAL_LAYERS = ("local", "strict_local")
PUBLISHED_LAYERS = ("local", "lsh")
STRICT_LAYERS = ("strict_local", "strict_lsh")
SHARED_QK_LAYERS = ("lsh", "strict_lsh", "full_shared_qk")
ATTN_LAYERS = ("local", "lsh", "strict_local", "strict_lsh", "full", "full_shared_qk")
LARGEST_UNFACTORISED = 128  # buckets; above, two factors hash as finely with far fewer rotations (Trax does the same)


def _reject(name, value, allowed):
    raise ValueError(f"`{name}` is {value!r}, but must be {allowed}.")


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


class ReformerConfig(PreTrainedConfig):
    r"""
    Args:
        attn_layers (`list[str]`): attention of each layer, from the input up. `"local"` and `"lsh"` compute what Trax and
            transformers compute; `"strict_local"` and `"strict_lsh"` are strictly causal and blind to padding (for every
            new model); `"full"` is ordinary attention; `"full_shared_qk"` takes the parameters of an LSH layer and
            attends to everything but itself.
        reversible (`bool`): rebuild activations in backward (memory does not grow with depth), or keep them.
        allow_duplicate_attention (`bool`): a key met in several hash rounds counts several times. `False` gives the
            paper's \(\log N_{ij}\) correction (appendix A, eq. 13-16): it counts once.
        num_buckets (`int`, `list[int]` or `None`): hash buckets per round, one even number or even factors. `None`
            derives it from this configuration alone, see `bucket_factors`. 1 is allowed where every LSH layer is
            `"strict_lsh"` (no hashing: a window over the latest tokens).
        chunk_size_feed_forward (`int`): tokens at a time in the feed-forward, forward and backward; 0: chosen automatically.
        chunk_size_lm_head (`int`): tokens at a time in the language-model head. While training with labels the logits
            are then never kept (`logits` is None in the output); 0: all at once.
        hash_seed (`int` or `None`): fixes the rotations of all hashing, in training too; for `"lsh"` they are those of
            transformers with the same seed. `None`: fresh ones in every training forward, a fixed set in evaluation.

    All other fields, and all defaults, are those of transformers' `ReformerConfig`; the best-known published checkpoint is
    [google/reformer-crime-and-punishment](https://huggingface.co/google/reformer-crime-and-punishment). Two defaults for
    new models to look at: `eos_token_id=2` is byte 0x00 in the byte vocabulary (set it to `None`), and `layer_norm_eps` is
    1e-12 (Trax: 1e-6).

    Raises:
        ValueError: for each value or combination that no model can be built from; it says what is allowed.

    Differs from transformers: nothing is ever written into it by a forward pass, old key names (`attn_type`,
    `chunk_length`, `num_chunks_before`, `num_chunks_after`, `attention_probs_dropout_prob`, `seed`,
    `sinusoidal_pos_embds`) are understood, and `num_hidden_layers` must agree with `attn_layers`.
    """

    model_type = "reformer"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_buckets_states", "past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {}
    base_model_fsdp_plan: ClassVar[dict[str, str]] = {
        "embeddings": "free_full_weight",
        "encoder.layers.*": "free_full_weight",
        "encoder.layer_norm": "keep_full_weight",
    }

    attention_head_size: int = 64
    attn_layers: list[str] | tuple[str, ...] = ("local", "lsh", "local", "lsh", "local", "lsh")
    axial_norm_std: float = 1.0
    axial_pos_embds: bool = True
    axial_pos_shape: list[int] | tuple[int, ...] = (64, 64)
    axial_pos_embds_dim: list[int] | tuple[int, ...] = (64, 192)
    chunk_size_lm_head: int = 0
    eos_token_id: int | list[int] | None = 2
    feed_forward_size: int = 512
    hash_seed: int | None = None
    hidden_act: str = "relu"
    hidden_dropout_prob: float | int = 0.05
    hidden_size: int = 256
    initializer_range: float = 0.02
    is_decoder: bool = False
    layer_norm_eps: float = 1e-12
    local_num_chunks_before: int = 1
    local_num_chunks_after: int = 0
    local_attention_probs_dropout_prob: float | int = 0.05
    local_attn_chunk_length: int = 64
    lsh_attn_chunk_length: int | None = 64
    lsh_attention_probs_dropout_prob: float | None = 0.0
    lsh_num_chunks_before: int | None = 1
    lsh_num_chunks_after: int | None = 0
    max_position_embeddings: int = 4096
    num_attention_heads: int = 12
    num_buckets: int | list[int] | None = None
    num_hashes: int = 1
    vocab_size: int = 320
    tie_word_embeddings: bool = False
    use_cache: bool = True
    classifier_dropout: float | int | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = 0
    reversible: bool = True
    allow_duplicate_attention: bool = True

    def __post_init__(self, **kwargs):
        self._read_old_names(kwargs)
        if isinstance(self.attn_layers, str) or not isinstance(self.attn_layers, (list, tuple)):
            _reject("attn_layers", self.attn_layers, "a list of layer types, one per layer")
        num_hidden_layers = kwargs.pop("num_hidden_layers", None)
        self.num_hidden_layers = len(self.attn_layers) if num_hidden_layers is None else num_hidden_layers
        for name in ("axial_pos_shape", "axial_pos_embds_dim"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, tuple(getattr(self, name)))
        super().__post_init__(**kwargs)
        self.validate_reformer()

    def _read_old_names(self, kwargs):
        """Moves the key names of the 2020 releases to today's (a published configuration loads as it is)."""
        renamed = {
            "attention_probs_dropout_prob": ("lsh_attention_probs_dropout_prob", "local_attention_probs_dropout_prob"),
            "num_chunks_before": ("lsh_num_chunks_before", "local_num_chunks_before"),
            "num_chunks_after": ("lsh_num_chunks_after", "local_num_chunks_after"),
            "chunk_length": ("lsh_attn_chunk_length", "local_attn_chunk_length"),
            "seed": ("hash_seed",),
        }
        for old, names in renamed.items():
            if (value := kwargs.pop(old, None)) is not None:
                for name in names:
                    setattr(self, name, value)
        if kwargs.pop("sinusoidal_pos_embds", None):
            _reject("sinusoidal_pos_embds", True, "false: only learned and axial position embeddings exist")
        attn_type = kwargs.pop("attn_type", None)
        if attn_type is not None:
            kinds = {"lsh": ("lsh",), "local": ("local",), "mixed": ("local", "lsh")}
            if attn_type not in kinds:
                _reject("attn_type", attn_type, f"one of {sorted(kinds)}")
            count = kwargs.get("num_hidden_layers") or len(self.attn_layers)
            self.attn_layers = [kinds[attn_type][i % len(kinds[attn_type])] for i in range(count)]

    # --- what is derived from the fields ---------------------------------------------------------------------------

    @property
    def maximum_length(self) -> int:
        """Longest input in tokens: what the position embeddings cover."""
        if self.axial_pos_embds:
            return min(self.max_position_embeddings, math.prod(self.axial_pos_shape))
        return self.max_position_embeddings

    def bucket_factors(self, layer_type: str) -> list[int]:
        """Factors of the number of hash buckets of an LSH layer; it depends on nothing but this configuration.

        With `num_buckets=None`, `"strict_lsh"` takes the even number nearest to `maximum_length /
        lsh_attn_chunk_length` (its window then reaches back over the whole input), and `"lsh"` twice as many, the
        paper's m = 2 l / n_buckets at the maximum length. More than 128 are split into two factors, as Trax does.
        """
        if self.num_buckets is not None:
            return [self.num_buckets] if _is_int(self.num_buckets) else list(self.num_buckets)
        per_chunk = 1 if layer_type == "strict_lsh" else 2
        buckets = max(2, 2 * round(per_chunk * self.maximum_length / self.lsh_attn_chunk_length / 2))
        if buckets <= LARGEST_UNFACTORISED:
            return [buckets]
        first = 2 ** math.ceil(math.log2(math.sqrt(buckets)))
        return [first, 2 * max(1, round(buckets / first / 2))]

    def fields_that_hide_later_tokens(self) -> list[str]:
        """Fields that are 0, as is the default, so that strict layers of a model that is not `is_decoder` look back only."""
        kinds = {"local_num_chunks_after": "strict_local", "lsh_num_chunks_after": "strict_lsh"}
        one_sided = [name for name, kind in kinds.items() if self.uses(kind) and getattr(self, name) == 0]
        return [] if self.is_decoder else one_sided

    # --- checks ----------------------------------------------------------------------------------------------------

    def validate_reformer(self):
        """Raises `ValueError` for the first field or combination that no model can be built from."""
        self._validate_layers()
        self._validate_sizes()
        self._validate_dropout()
        self._validate_windows()
        self._validate_buckets()
        self._validate_positions()

    def _validate_layers(self):
        if not isinstance(self.attn_layers, (list, tuple)) or len(self.attn_layers) == 0:
            _reject("attn_layers", self.attn_layers, "a list of at least one layer type")
        for kind in self.attn_layers:
            if kind not in ATTN_LAYERS:
                _reject("attn_layers", list(self.attn_layers), f"made of {', '.join(ATTN_LAYERS)}; {kind!r} is not one")
        if self.num_hidden_layers != len(self.attn_layers):
            _reject(
                "num_hidden_layers", self.num_hidden_layers, f"{len(self.attn_layers)}, the length of `attn_layers`"
            )
        if self.tie_word_embeddings:
            _reject("tie_word_embeddings", True, "false: the head reads 2 * hidden_size, the embedding has hidden_size")
        if not isinstance(self.hidden_act, str) or self.hidden_act not in ACT2FN:
            _reject("hidden_act", self.hidden_act, f"one of {', '.join(sorted(ACT2FN))}")

    def _validate_sizes(self):
        positive = ["attention_head_size", "feed_forward_size", "hidden_size", "num_attention_heads", "num_hashes"]
        positive += ["vocab_size", "max_position_embeddings"]
        positive += ["local_attn_chunk_length"] if self.uses(*LOCAL_LAYERS) else []
        positive += ["lsh_attn_chunk_length"] if self.uses(*LSH_LAYERS) else []
        for name in positive:
            if not _is_int(getattr(self, name)) or getattr(self, name) < 1:
                _reject(name, getattr(self, name), "an integer of at least 1")
        for name in ("chunk_size_feed_forward", "chunk_size_lm_head"):
            if not _is_int(getattr(self, name)) or getattr(self, name) < 0:
                _reject(name, getattr(self, name), "an integer of at least 0")
        for name in ("initializer_range", "axial_norm_std", "layer_norm_eps"):
            if not isinstance(getattr(self, name), (int, float)) or not getattr(self, name) >= 0:
                _reject(name, getattr(self, name), "a number of at least 0")
        if self.hash_seed is not None and (not _is_int(self.hash_seed) or not 0 <= self.hash_seed < 2**63):
            _reject("hash_seed", self.hash_seed, "an integer from 0 to 2**63 - 1, or None")

    def _validate_dropout(self):
        names = ["hidden_dropout_prob", "classifier_dropout"]
        names += ["local_attention_probs_dropout_prob"] if self.uses(*LOCAL_LAYERS, "full") else []
        names += ["lsh_attention_probs_dropout_prob"] if self.uses(*SHARED_QK_LAYERS) else []
        for name in names:
            value = getattr(self, name)
            if value is None and name == "classifier_dropout":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                _reject(name, value, "a number from 0 up to, but not including, 1")

    def _validate_windows(self):
        for prefix, kinds in (("local", LOCAL_LAYERS), ("lsh", LSH_LAYERS)):
            if not self.uses(*kinds):
                continue
            before, after = f"{prefix}_num_chunks_before", f"{prefix}_num_chunks_after"
            for name in (before, after):
                if not _is_int(getattr(self, name)) or getattr(self, name) < 0:
                    _reject(name, getattr(self, name), "an integer of at least 0")
            strict = f"strict_{prefix}"
            if self.uses(strict) and self.is_decoder and getattr(self, before) == 0:
                _reject(before, 0, f"at least 1 for a causal {strict!r} layer, which sees nothing else")
            if self.uses(strict) and getattr(self, before) + getattr(self, after) == 0:
                _reject(before, 0, f"at least 1 (or `{after}`) for a {strict!r} layer, which sees nothing else")
            if self.uses(strict) and self.is_decoder and getattr(self, after) > 0:
                _reject(after, getattr(self, after), f"0 for a causal {strict!r} layer: it never looks ahead")

    def _validate_buckets(self):
        if self.num_buckets is None or not self.uses(*LSH_LAYERS):
            return
        factors = [self.num_buckets] if _is_int(self.num_buckets) else self.num_buckets
        even = isinstance(factors, (list, tuple)) and len(factors) > 0
        even = even and all(_is_int(factor) and factor >= 2 and factor % 2 == 0 for factor in factors)
        one_bucket = self.num_buckets == 1 and not self.uses("lsh")
        if not even and not one_bucket:
            _reject(
                "num_buckets", self.num_buckets, "None, a positive even integer or a list of them (1: strict_lsh only)"
            )

    def _validate_positions(self):
        if not self.axial_pos_embds:
            return
        for name in ("axial_pos_shape", "axial_pos_embds_dim"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not value or not all(_is_int(n) and n >= 1 for n in value):
                _reject(name, value, "a list of positive integers, one per axis")
        if len(self.axial_pos_shape) != len(self.axial_pos_embds_dim):
            _reject(
                "axial_pos_embds_dim", self.axial_pos_embds_dim, f"as long as `axial_pos_shape` {self.axial_pos_shape}"
            )
        if sum(self.axial_pos_embds_dim) != self.hidden_size:
            _reject(
                "axial_pos_embds_dim", self.axial_pos_embds_dim, f"a list with sum {self.hidden_size} (`hidden_size`)"
            )

    def to_dict(self):
        register_lora_targets()
        return super().to_dict()

    def uses(self, *kinds: str) -> bool:
        """Whether any layer is of one of these types."""
        return any(kind in kinds for kind in self.attn_layers)


__all__ = ["ReformerConfig"]
