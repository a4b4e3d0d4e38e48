"""Configuration of a Reformer: every field of transformers' `ReformerConfig`, and what is ours.

A forward pass only reads it. All checks (`configuration_checks`) raise `ValueError`: those of single fields when it is made,
all of them when a model is built from it, so that a field changed in between is checked too.
"""

import copy
import dataclasses
import math
from typing import ClassVar

from transformers import PreTrainedConfig

from .configuration_checks import (  # noqa: F401 (modules of layers ask for their kinds here)
    ATTN_LAYERS,
    LOCAL_LAYERS,
    LSH_LAYERS,
    PUBLISHED_LAYERS,
    SHARED_QK_LAYERS,
    STRICT_LAYERS,
    check_fields,
    check_inherited,
    check_model,
    check_unknown,
    is_int,
    reject,
)

LARGEST_UNFACTORISED = 128  # buckets; above, two factors hash as finely with far fewer rotations (Trax does the same)
NOTE = (
    "Layers of this model are of the Python package hf_reformer: `import hf_reformer` before loading it (or "
    "trust_remote_code=True, where its code lies beside). transformers' own Reformer does not know them."
)
REVERSIBLE = {True: "reversible", False: "not reversible", "auto": "reversible beyond {} MiB of activations"}
# for_bytes: layers, hidden, heads (of 64), feed-forward; about 0.5, 5, 37 and 146 million parameters
SIZES = {
    "tiny": (2, 128, 2, 512),
    "small": (6, 256, 4, 1024),
    "base": (12, 512, 8, 2048),
    "large": (12, 1024, 16, 4096),
}


class ReformerConfig(PreTrainedConfig):
    r"""
    Args:
        attn_layers (`list[str]`): attention of each layer, from the input up. `"local"` and `"lsh"` compute what Trax and
            transformers compute; `"strict_local"` and `"strict_lsh"` are strictly causal and blind to padding (for every
            new model); `"full"` is ordinary attention; `"full_shared_qk"` takes the parameters of an LSH layer and
            attends to everything but itself.
        reversible (`bool` or `"auto"`): rebuild activations in backward (memory does not grow with depth), or keep them, which
            is faster. `"auto"`: keep those of an input for which they take no more than `activation_budget`, by an estimate.
        activation_budget (`float`): what `reversible="auto"` may keep for one backward, in MiB.
        exact_reversible (`bool`): what layers add to the streams is rounded to a grid (float32: multiples of 2^-15, float64: of
            2^-44), in training and inference alike, so that backward rebuilds every activation bit for bit at any depth, as
            long as the streams stay below 512. Its gradient is the identity. Half precision does so always.
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

        axial_pos_shape, axial_pos_embds_dim, max_position_embeddings: left out, they follow from each other and from
            `hidden_size`: a grid of two axes that holds `max_position_embeddings` (4,096) positions, or as many of these
            as the grid given has points.
        use_absolute_position_embeddings (`bool`): False: words carry no positions, so that nothing of a place enters what is
            hashed and compared, and a model may read inputs longer than those it was trained on. Layers know the order
            from what they may see alone; a `local_attn_chunk_length` of 1 gives local layers that see each token and the
            one before.
        embedding_init (`str` or `None`): how words and positions of a new model start. `"balanced"`: both normal, of size 1,
            as in Trax; `"sinusoidal"`: words of size 1, sinusoids as positions; `"published"`: words with
            `initializer_range` (0.02), positions with `axial_norm_std` (1), under which words are at first noise. `None`:
            balanced, but published for models with a `"local"` or `"lsh"` layer, or where `axial_norm_std` is given.
        pooling (`str` or `None`): what a sequence classifier reads, of the real tokens: the `"first"`, the `"last"` or
            their `"mean"`. `None`: the last of causal models, as of transformers' other decoders; the first where a layer
            is `"local"` or `"lsh"`, as of transformers' Reformer; else the mean.

        is_encoder_decoder (`bool`): the configuration of a `ReformerForConditionalGeneration`. `attn_layers` are its encoder's.
        decoder_attn_layers (`list[str]` or `None`): its decoder's; `None`: the same.
        decoder_vocab_size (`int` or `None`): `None`: `vocab_size`.
        decoder_max_position_embeddings (`int` or `None`): of the target; `None`: as of the source.
        share_encoder_decoder_embeddings (`bool`): one table of words for source and target.
        decoder_start_token_id (`int` or `None`): what a target begins with; `None`: `pad_token_id`.
        cross_attention_probs_dropout_prob (`float`): dropout of the probabilities with which the decoder reads the encoder.

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
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_buckets_states", "past_key_values", "cache", "encoder_last_hidden_state",
    ]  # fmt: skip
    attribute_map: ClassVar[dict[str, str]] = {}
    base_model_fsdp_plan: ClassVar[dict[str, str]] = {
        "embeddings": "free_full_weight",
        "encoder.layers.*": "free_full_weight",
        "encoder.layer_norm": "keep_full_weight",
    }

    attention_head_size: int = 64
    attn_layers: list[str] | tuple[str, ...] = ("local", "lsh", "local", "lsh", "local", "lsh")
    axial_norm_std: float | None = None
    axial_pos_embds: bool = True
    axial_pos_shape: list[int] | tuple[int, ...] | None = None
    axial_pos_embds_dim: list[int] | tuple[int, ...] | None = None
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
    max_position_embeddings: int | None = None
    num_attention_heads: int = 12
    num_buckets: int | list[int] | None = None
    num_hashes: int = 1
    vocab_size: int = 320
    tie_word_embeddings: bool = False
    use_cache: bool = True
    classifier_dropout: float | int | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = 0
    reversible: bool | str = True
    activation_budget: float | int = 1024
    exact_reversible: bool = False
    allow_duplicate_attention: bool = True
    use_absolute_position_embeddings: bool = True
    embedding_init: str | None = None
    pooling: str | None = None
    decoder_attn_layers: list[str] | tuple[str, ...] | None = None
    decoder_vocab_size: int | None = None
    decoder_max_position_embeddings: int | None = None
    share_encoder_decoder_embeddings: bool = True
    decoder_start_token_id: int | None = None
    cross_attention_probs_dropout_prob: float | int = 0.0

    # transformers looks at each access for other names and for fields of single layers, of which there are none here: fields are
    # read at every call, a hundred times for a token, and this took a tenth of its time
    __getattribute__ = object.__getattribute__

    def __post_init__(self, _from_file=False, **kwargs):
        self._read_old_names(kwargs)
        if isinstance(self.attn_layers, str) or not isinstance(self.attn_layers, (list, tuple)):
            reject("attn_layers", self.attn_layers, "a list of layer types, one per layer")
        check_unknown(kwargs, [field.name for field in dataclasses.fields(self)], _from_file)
        kwargs.pop("_note", None)
        num_hidden_layers = kwargs.pop("num_hidden_layers", None)
        self.num_hidden_layers = len(self.attn_layers) if num_hidden_layers is None else num_hidden_layers
        if self.embedding_init is None:
            published = self.uses(*PUBLISHED_LAYERS) or self.axial_norm_std is not None
            self.embedding_init = "published" if published else "balanced"
        self.axial_norm_std = 1.0 if self.axial_norm_std is None else self.axial_norm_std
        self._let_positions_follow(_from_file)
        if self.is_encoder_decoder and self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.pad_token_id
        check_inherited(self, kwargs)
        super().__post_init__(**kwargs)
        check_fields(self)

    def _let_positions_follow(self, from_file):
        """Fields of positions that are None, from those that are not; lists become tuples."""
        for name in ("axial_pos_shape", "axial_pos_embds_dim"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, tuple(getattr(self, name)))
        shape, length = self.axial_pos_shape, self.max_position_embeddings
        if length is None:
            countable = self.has_axial_positions and isinstance(shape, tuple) and all(map(is_int, shape))
            length = self.max_position_embeddings = math.prod(shape) if countable else 4096
        if shape is None and is_int(length) and length > 0:
            inner = 2 ** math.ceil(math.log2(length) / 2)
            shape = self.axial_pos_shape = (-(-length // inner), inner)
        if self.axial_pos_embds_dim is None and is_int(self.hidden_size) and isinstance(shape, tuple) and shape:
            first = self.hidden_size // (
                4 if len(shape) == 2 else len(shape)
            )  # of two axes, the inner tells more apart
            self.axial_pos_embds_dim = (first,) * (len(shape) - 1) + (self.hidden_size - first * (len(shape) - 1),)

        if from_file and self.has_axial_positions and not self.uses(*PUBLISHED_LAYERS):
            # until 0.1 it could be larger than the grid, without effect
            self.max_position_embeddings = self.maximum_length

    @classmethod
    def for_bytes(cls, length=65_536, size="small", **fields):
        """A model of bytes (`ReformerByteTokenizer`) that reads up to `length` of them, with strict layers.

        Args:
            length: bytes; the axial sizes follow.
            size: `"tiny"`, `"small"`, `"base"` or `"large"`: layers, hidden size, heads and feed-forward.
            fields: any others, or other values; `is_decoder=False` makes a model whose layers see both sides.
        """
        if size not in SIZES:
            reject("size", size, f"one of {', '.join(SIZES)}")
        if not is_int(length) or length < 1:
            reject("length", length, "an integer of at least 1")
        layers, hidden, heads, feed_forward = SIZES[size]
        ahead = 0 if fields.get("is_decoder", True) else 1
        chosen = {
            "attn_layers": ("strict_local", "strict_lsh") * (layers // 2),
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "feed_forward_size": feed_forward,
            "max_position_embeddings": length,
            "num_hashes": 2,
            "layer_norm_eps": 1e-6,
            "is_decoder": True,
            "local_num_chunks_after": ahead,
            "lsh_num_chunks_after": ahead,
            "vocab_size": 258,
            "eos_token_id": None,  # 2, the default, is byte 0
            "reversible": "auto",
        }
        return cls(**{**chosen, **fields})

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        return super().from_dict({**config_dict, "_from_file": True}, **kwargs)

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
            reject("sinusoidal_pos_embds", True, "false: only learned and axial position embeddings exist")
        attn_type = kwargs.pop("attn_type", None)
        if attn_type is not None:
            kinds = {"lsh": ("lsh",), "local": ("local",), "mixed": ("local", "lsh")}
            if attn_type not in kinds:
                reject("attn_type", attn_type, f"one of {sorted(kinds)}")
            count = kwargs.get("num_hidden_layers") or len(self.attn_layers)
            self.attn_layers = [kinds[attn_type][i % len(kinds[attn_type])] for i in range(count)]

    # --- what is derived from the fields ---------------------------------------------------------------------------

    @property
    def has_axial_positions(self) -> bool:
        """Whether positions are points of a grid; else they are rows of a table, or there are none."""
        return self.axial_pos_embds and self.use_absolute_position_embeddings

    @property
    def maximum_length(self) -> int:
        """Longest input in tokens: what the position embeddings cover."""
        if self.has_axial_positions:
            return min(self.max_position_embeddings, math.prod(self.axial_pos_shape))
        return self.max_position_embeddings

    def bucket_factors(self, layer_type: str) -> list[int]:
        """Factors of the number of hash buckets of an LSH layer; it depends on nothing but this configuration.

        With `num_buckets=None`, `"strict_lsh"` takes the even number nearest to `maximum_length /
        lsh_attn_chunk_length` (its window then reaches back over the whole input), and `"lsh"` twice as many, the
        paper's m = 2 l / n_buckets at the maximum length. More than 128 are split into two factors, as Trax does.
        """
        if self.num_buckets is not None:
            return [self.num_buckets] if is_int(self.num_buckets) else list(self.num_buckets)
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

    @classmethod
    def of(cls, config):
        """`config` itself, or what an object of transformers' own `ReformerConfig` says as one of these."""
        if hasattr(config, "validate_reformer"):  # not by class: a checkpoint that carries its own code has another
            return config
        if getattr(config, "model_type", None) != "reformer":
            raise ValueError(f"`config` is a {type(config).__name__}, but must be a hf_reformer.ReformerConfig.")
        return cls.from_dict(config.to_dict())

    def encoder_part(self):
        """The configuration of the encoder of an encoder-decoder."""
        return self._part(is_decoder=False)

    def decoder_part(self):
        """The configuration of the decoder of an encoder-decoder; its layers look at nothing that comes later."""
        part = self._part(
            is_decoder=True, local_num_chunks_after=0, lsh_num_chunks_after=0,
            attn_layers=self.decoder_attn_layers or self.attn_layers, vocab_size=self.decoder_vocab_size or self.vocab_size,
        )  # fmt: skip
        if self.decoder_max_position_embeddings is not None:
            part.max_position_embeddings = self.decoder_max_position_embeddings
            part.axial_pos_shape = part.axial_pos_embds_dim = None
            part._let_positions_follow(False)
        return part

    def _part(self, **changes):
        if not self.is_encoder_decoder:
            reject("is_encoder_decoder", False, "true: other models have one part")
        part = copy.deepcopy(self)
        of_both = ("decoder_attn_layers", "decoder_vocab_size", "decoder_max_position_embeddings")
        for name, value in {"is_encoder_decoder": False, **dict.fromkeys(of_both), **changes}.items():
            setattr(part, name, value)
        part.num_hidden_layers = len(part.attn_layers)
        return part

    def default_pooling(self) -> str:
        """What `pooling=None` stands for."""
        if self.is_decoder:
            return "last"
        return "first" if self.uses(*PUBLISHED_LAYERS) else "mean"

    def validate_reformer(self):
        """Raises `ValueError` for the first field or combination that no model can be built from."""
        check_model(self)

    def to_dict(self):
        """With a note for those who meet it without this package, where only this package can read it."""
        plain = not self.is_encoder_decoder and all(kind in PUBLISHED_LAYERS for kind in self.attn_layers)
        note = {} if plain else {"_note": NOTE}
        return {**note, **super().to_dict()}

    def summary(self) -> str:
        """What `print(model)` says first."""
        kinds = ", ".join(f"{kind} x {list(self.attn_layers).count(kind)}" for kind in dict.fromkeys(self.attn_layers))
        parts = [f"layers: {kinds}", "causal" if self.is_decoder else "sees both sides"]
        if self.is_encoder_decoder:
            parts[1] = f"decoder: {', '.join(self.decoder_attn_layers or self.attn_layers)}"
        for prefix, used in (("local", LOCAL_LAYERS), ("lsh", LSH_LAYERS)):
            if self.uses(*used):
                before, after = (getattr(self, f"{prefix}_num_chunks_{side}") for side in ("before", "after"))
                parts.append(
                    f"{prefix} chunks of {getattr(self, f'{prefix}_attn_chunk_length')} ({before} before, {after} after)"
                )
        if self.uses(*LSH_LAYERS):
            buckets = {kind: self.bucket_factors(kind) for kind in LSH_LAYERS if self.uses(kind)}
            parts.append(f"{self.num_hashes} hash rounds, buckets {', '.join(f'{k} {b}' for k, b in buckets.items())}")
        return "; ".join(
            [
                *parts,
                f"up to {self.maximum_length:,} tokens"
                + ", no positions" * (not self.use_absolute_position_embeddings),
                REVERSIBLE[self.reversible].format(self.activation_budget),
            ]
        )

    def uses(self, *kinds: str) -> bool:
        """Whether any layer is of one of these types."""
        return any(kind in kinds for kind in self.attn_layers)


__all__ = ["ReformerConfig"]
