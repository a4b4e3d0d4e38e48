"""The Reformer and its heads as transformers models. Shapes: B batch, L length, V vocabulary, 2 * hidden: both streams."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import MaskedLMOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .adapters import register_lora_targets
from .cache import CACHE_NAMES, CachedTokens, ReformerCache, leaves_cache_on_failure, take_cache
from .configuration_reformer import PUBLISHED_LAYERS, ReformerConfig
from .embeddings import (
    AxialPositionEmbeddings,
    PositionTable,
    ReformerEmbeddings,
    initialise_positions,
    initialise_words,
)
from .encoder import EncoderOutput, ReformerEncoder, final_norm
from .generation import ReformerGenerationMixin, check_cache
from .inputs import (
    as_ids,
    check_inputs,
    check_keywords,
    check_labels,
    check_logits_to_keep,
    check_packing,
    check_position_ids,
    check_sequence,
    check_size,
)
from .layer import Context, ReformerLayer
from .losses import IGNORED, mean_token_loss, next_token_labels, token_losses
from .outputs import ReformerCausalLMOutput, ReformerModelOutput
from .recompute import has_own_hooks
from .tokenwise import tokenwise
from .tracing import tracing

logger = logging.get_logger(__name__)

LEAST_TOKENS = 64  # that the head works on at a time, however large the vocabulary


class ReformerPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation for all Reformer models."""

    config: ReformerConfig
    base_model_prefix = "reformer"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ReformerLayer", "ReformerDecoderLayer"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _keys_to_ignore_on_load_unexpected = [r"lm_head\.decoder\.bias"]  # checkpoints of 2020: the same as lm_head.bias
    _supports_context_parallel = False
    _supports_sequence_parallel = False  # by `hf_reformer.parallel`
    sequence = None  # of the model without head: a `SequenceGroup` within `sequence_parallel`
    _supports_sdpa = True
    _supports_flex_attn = False

    def __init__(self, config, *args, **kwargs):
        config.validate_reformer()
        register_lora_targets()
        super().__init__(config, *args, **kwargs)

    def get_correct_attn_implementation(self, requested_attention, is_init_check=False):
        """`"eager"` by default: on CPUs measured fastest (see `attention_blocks.py`); `"sdpa"` on request."""
        if requested_attention not in (None, "eager", "sdpa"):
            raise ValueError(f"`attn_implementation` is {requested_attention!r}, but must be 'eager' or 'sdpa'.")
        return "eager" if requested_attention is None else requested_attention

    @torch.no_grad()
    def _init_weights(self, module):
        """Normal with `initializer_range`; biases 0, norms 1; words and positions as `config.embedding_init` says."""
        if isinstance(module, AxialPositionEmbeddings):
            self._init_weights(module.weights)
        elif isinstance(module, nn.ParameterList):
            initialise_positions(list(module), self.config)
        elif isinstance(module, PositionTable):
            initialise_positions([module.weight], self.config)
        elif isinstance(module, nn.Embedding):
            initialise_words(module.weight, self.config)
        else:
            super()._init_weights(module)
        if isinstance(module, ReformerOnlyLMHead):
            init.zeros_(module.bias)

    def extra_repr(self):
        """What `print(model)` says of all layers together."""
        return self.config.summary() if self.base_model is self else ""


class ReformerModel(ReformerPreTrainedModel):
    """The Reformer without a head."""

    layer_class = ReformerLayer
    averaged = False  # the streams at the end, instead of standing side by side
    _supports_sequence_parallel = True

    def __init__(self, config: ReformerConfig):
        config = ReformerConfig.of(config)
        if config.is_encoder_decoder:
            raise ValueError(
                "`config.is_encoder_decoder` is True, but must be False for this class: load the model by AutoModelForSeq2SeqLM, "
                "or build a ReformerForConditionalGeneration."
            )
        super().__init__(config)
        for name in config.fields_that_hide_later_tokens():
            logger.warning(
                f"`{name}` is 0: strict layers of this model, which is not `is_decoder`, see no later tokens."
            )
        self.embeddings = ReformerEmbeddings(config)
        self.encoder = ReformerEncoder(config, self.layer_class, self.averaged)
        self.post_init()

    @property
    def width(self):
        """Of what a head reads of a token."""
        return self.encoder.width

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    @leaves_cache_on_failure
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        num_hashes: int | None = None,
        past_buckets_states=None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        past_key_values=None,
        **kwargs,
    ) -> ReformerModelOutput:
        """Both streams after the last layer.

        Args:
            input_ids: (B, L) token ids; or `inputs_embeds`: (B, L, hidden). Any L from 1 to `config.maximum_length`.
            attention_mask: (B, L), 1 for tokens, 0 for padding (on either side), or None. With a cache that holds P
                tokens (B, P + L), of which only the last L columns are read: what was padding stays padding.
            position_ids: (B, L) or (1, L), below `config.maximum_length`. Default: 0, 1, 2, ..., or on from what is cached;
                padding is not counted where no layer is of a published type.
            num_hashes: rounds of hashing, instead of `config.num_hashes`.
            past_key_values: a `ReformerCache`, which is added to; the L tokens follow those in it. The names `cache` and
                `past_buckets_states` are understood too.
            use_cache: make a new cache and return it. Default: `config.use_cache` for causal models in evaluation
                without gradients, else False. No gradient flows through a forward with a cache.
            output_hidden_states: hand out the second stream below, between and above the layers, (B, L, hidden) each.
            output_attentions: hand out the probabilities, without gradient: (B, H, chunks of all rounds, chunk length,
                window) or, of layers that do not chunk, (B, H, L, L).

        Raises:
            ValueError: for inputs of a wrong shape or range.
        """
        check_keywords(self, kwargs)
        past = take_cache({"past_buckets_states": past_buckets_states, "past_key_values": past_key_values})
        hidden_states, context = self._begin(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, past, use_cache, output_attentions
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and context.cache is None):
            encoded = self.encoder(hidden_states, context, self._gives_hidden_states(output_hidden_states))
        return ReformerModelOutput(
            last_hidden_state=encoded.last_hidden_state,
            past_buckets_states=context.cache,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _streams(self, *arguments, output_hidden_states=None, last=0):
        """For a head that works piece by piece: `EncoderOutput` before the final norm, so that its result, (B, L, 2 *
        hidden), never exists as a whole, and the cache. arguments: of `_begin`. last: only so many tokens, the last."""
        hidden_states, context = self._begin(*arguments)
        with torch.set_grad_enabled(torch.is_grad_enabled() and context.cache is None):
            encoded = self.encoder.streams(
                hidden_states, context, self._gives_hidden_states(output_hidden_states), last
            )
        return encoded, context.cache

    def _begin(
        self,
        input_ids,
        attention_mask,
        position_ids,
        inputs_embeds,
        num_hashes,
        past,
        use_cache,
        output_attentions,
        words=None,
    ):
        """Checks the inputs of a forward pass, begins a piece in the cache, and embeds: (B, L, hidden) and a `Context`. `words`:
        looks ids up, instead of the model's own table."""
        config = self.config
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "nn.DataParallel copies a model without its parameters, so that reversible layers would train nothing. Launch "
                "one process for each GPU: `accelerate launch script.py` or `torchrun --nproc_per_node=N script.py`."
            )
        input_ids = None if input_ids is None else as_ids("input_ids", input_ids)
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        if self.sequence is not None:
            check_sequence(use_cache or past is not None, output_attentions)
        cache = None if self.sequence is not None else self._cache(past, use_cache)
        cached = 0 if cache is None else cache.get_seq_length()
        shape = check_inputs(config, input_ids, inputs_embeds, attention_mask, num_hashes, cached)
        device, shards = (input_ids if inputs_embeds is None else inputs_embeds).device, None
        if self.sequence is not None:
            shards, attention_mask, position_ids = self.sequence.shards(
                shape, config.num_attention_heads, device, attention_mask, position_ids
            )
            shape = shards.shape
            check_size(config, "input_ids of all processes", shape)
        real_tokens = self._real_tokens(attention_mask, shape[1])
        if cache is not None:
            cache.check(shape[0], num_hashes)
        if position_ids is None:
            position_ids, documents = self._default_positions(shape[1], real_tokens, device, cache), None
        else:
            position_ids, documents = check_position_ids(config, position_ids, shape, real_tokens)
            documents = None if tracing() else check_packing(config, documents, cache)
        num_hashes = config.num_hashes if num_hashes is None else num_hashes
        if cache is not None:
            cache.begin(shape[1], shape[0], real_tokens, num_hashes)
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            inputs_embeds = words(input_ids) if words is not None and inputs_embeds is None else inputs_embeds
            own = position_ids if shards is None else position_ids[:, shards.own]
            hidden_states = self.embeddings(input_ids, own, inputs_embeds)
        return hidden_states, Context(
            real_tokens, num_hashes, output_attentions, cache, documents=documents, shards=shards
        )

    def _gives_hidden_states(self, asked):
        return self.config.output_hidden_states if asked is None else asked

    def _cache(self, past, use_cache):
        """The cache to add to: the given one, a new one, or None."""
        if past is not None:
            if not self.config.is_decoder:
                raise ValueError("`past_key_values` must be None where `config.is_decoder` is False.")
            check_cache(past, self.config).settle()
            return past
        if use_cache is None:
            use_cache = self.config.use_cache and not torch.is_grad_enabled() and not tracing()
        return ReformerCache(self.config) if use_cache and self.config.is_decoder and not self.training else None

    @staticmethod
    def _real_tokens(attention_mask, length):
        """(B, L) bool for the last `length` tokens, or None where nothing is padding, which is faster."""
        if attention_mask is None:
            return None
        real_tokens = attention_mask[:, -length:].to(torch.bool)
        if not torch.compiler.is_compiling() and bool(real_tokens.all()):
            return None
        return real_tokens

    def _default_positions(self, length, real_tokens, device, cache=None):
        past = 0 if cache is None else cache.get_seq_length()
        if self.config.uses(*PUBLISHED_LAYERS):
            return torch.arange(past, past + length, device=device)[None]
        tokens = CachedTokens() if cache is None else cache.tokens
        return tokens.next_positions(real_tokens, length, device)


class ReformerOnlyLMHead(nn.Module):
    """(B, L, width) -> logits (B, L, V), with a bias."""

    tokenwise = True

    def __init__(self, config, width, vocab_size):
        super().__init__()
        self.chunk_size = config.chunk_size_lm_head
        self.decoder = nn.Linear(width, vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden_states):
        return self.decoder(hidden_states) + self.bias


def normed_head(layer_norm, dropout, lm_head, y1, y2, averaged=False):
    """Both streams (B, L, hidden) -> logits (B, L, V)."""
    return lm_head(final_norm(layer_norm, dropout, y1, y2, averaged))


def _head(lm_head, hidden_states):
    return lm_head(hidden_states)


class ReformerLanguageModel(ReformerPreTrainedModel):
    """What the language models share: the head, and the loss over it."""

    body_class = ReformerModel
    _supports_sequence_parallel = True

    def __init__(self, config: ReformerConfig):
        config = ReformerConfig.of(config)
        super().__init__(config)
        self.reformer = self.body_class(config)
        self.lm_head = ReformerOnlyLMHead(config, self.reformer.width, self.target_size)
        self.post_init()

    @property
    def target_size(self):
        """V, of what is predicted."""
        return self.config.decoder_vocab_size or self.config.vocab_size

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        """Replaces the decoder; the bias keeps its values and grows (with zeros) or shrinks with it."""
        bias = self.lm_head.bias
        missing = new_embeddings.weight.shape[0] - bias.shape[0]
        if missing != 0:
            bias = nn.Parameter(nn.functional.pad(bias.detach(), (0, missing)), requires_grad=bias.requires_grad)
        self.lm_head.decoder, self.lm_head.bias = new_embeddings, bias

    def _read(self, *arguments, last=0, **options):
        """What the head reads, its function and modules, and the output of the model below: the streams before the final
        norm, or its result where a hook may want to see that as a whole. arguments: of `ReformerModel._begin`."""
        encoder = self.reformer.encoder
        if has_own_hooks(self.reformer) or has_own_hooks(encoder):
            names = ("input_ids", "attention_mask", "position_ids", "inputs_embeds", "num_hashes", "past_key_values")
            given = dict(zip((*names, "use_cache", "output_attentions"), arguments, strict=True))
            output = self.reformer(**given, **options, return_dict=True)
            read = (output.last_hidden_state[:, -last:],), _head, (self.lm_head,)
            return read, EncoderOutput(None, output.hidden_states, output.attentions), output.past_key_values
        output, cache = self.reformer._streams(*arguments, last=last, **options)
        return (output.last_hidden_state, normed_head, (*encoder.final_norm, self.lm_head)), output, cache

    def _checked_labels(self, name, labels, input_ids, inputs_embeds):
        """Before anything is put into a cache. (What is wrong with the inputs themselves is said later.)"""
        tokens = inputs_embeds if input_ids is None else input_ids
        return check_labels(name, labels, tokens.shape[:2], self.target_size) if torch.is_tensor(tokens) else None

    def _loss_and_logits(self, read, labels, num_items_in_batch):
        """`read`: as `_read` gives it."""
        inputs, head, modules = read
        chunk = self.config.chunk_size_lm_head
        numbers = max(self.reformer.width, self.target_size)
        size = {"step": chunk} if chunk else {"numbers": numbers, "least": LEAST_TOKENS}
        if labels is None:
            return None, tokenwise(head, modules, *inputs, **size)
        labels = labels.to(inputs[0].device)
        if num_items_in_batch is None and self.reformer.sequence is not None:
            num_items_in_batch = self.reformer.sequence.sum((labels != IGNORED).sum())
        with_logits = not (self.training and chunk > 0)
        losses, logits = tokenwise(token_losses(head, with_logits), modules, *inputs, labels, **size)
        return mean_token_loss(losses, labels, num_items_in_batch), logits


class ReformerModelWithLMHead(ReformerLanguageModel, ReformerGenerationMixin):
    """The causal language model (`config.is_decoder` must be true): position t predicts token t + 1."""

    def __init__(self, config: ReformerConfig):
        config = ReformerConfig.of(config)
        if not config.is_decoder:
            raise ValueError("`config.is_decoder` is False, but must be True for a causal language model.")
        for prefix, kind in (("local", "local"), ("lsh", "lsh")):
            after = getattr(config, f"{prefix}_num_chunks_after")
            if config.uses(kind) and after != 0:
                raise ValueError(f"`{prefix}_num_chunks_after` is {after}, but must be 0 for a causal language model.")
        super().__init__(config)
        self.loss_type = "ForCausalLM"  # not to be guessed from the class's name; `Trainer` reads it

    @leaves_cache_on_failure
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        num_hashes: int | None = None,
        past_buckets_states=None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        past_key_values=None,
        **kwargs,
    ) -> ReformerCausalLMOutput:
        """Logits (B, L, V), and with `labels` (B, L) (-100: ignored) the mean cross entropy of the next token.

        Args:
            logits_to_keep: only the last so many positions, or these; the loss needs all of them.
            num_items_in_batch: divides the summed loss, instead of the number of labels (gradient accumulation).
            kwargs: `shift_labels` (B, L), labels that are shifted already. It has no name of its own in the signature
                because `Trainer` evaluates a loss only where the data hold all arguments named "...labels".
        """
        check_keywords(self, kwargs)
        logits_to_keep = check_logits_to_keep(logits_to_keep)
        if self.reformer.sequence is not None:
            check_sequence(False, False, logits_to_keep)
        shift_labels = kwargs.get("shift_labels")
        no_loss = labels is None and shift_labels is None
        past = take_cache({"past_buckets_states": past_buckets_states, "past_key_values": past_key_values})
        use_cache = False if use_cache is None and not no_loss else use_cache
        labels = self._checked_labels("labels", labels, input_ids, inputs_embeds)
        shift_labels = self._checked_labels("shift_labels", shift_labels, input_ids, inputs_embeds)
        read, output, cache = self._read(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, past, use_cache, output_attentions,
            output_hidden_states=output_hidden_states,
            last=logits_to_keep if no_loss and isinstance(logits_to_keep, int) else 0,
        )  # fmt: skip
        if labels is not None and shift_labels is None:
            sequence = self.reformer.sequence
            shift_labels = (next_token_labels if sequence is None else sequence.next_token_labels)(labels)
        if shift_labels is None:
            read = (tuple(slice_logits_to_keep(x, logits_to_keep) for x in read[0]), *read[1:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            loss, logits = self._loss_and_logits(read, shift_labels, num_items_in_batch)
        if shift_labels is not None and logits is not None and (torch.is_tensor(logits_to_keep) or logits_to_keep):
            logits = slice_logits_to_keep(logits, logits_to_keep)  # all of them would be a view, which FSDP warns of
        return ReformerCausalLMOutput(
            loss=loss,
            logits=logits,
            past_buckets_states=cache,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


ReformerForCausalLM = ReformerModelWithLMHead


class ReformerForMaskedLM(ReformerLanguageModel):
    """The masked language model (`config.is_decoder` must be false)."""

    def __init__(self, config: ReformerConfig):
        config = ReformerConfig.of(config)
        if config.is_decoder:
            raise ValueError("`config.is_decoder` is True, but must be False for a masked language model.")
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        num_hashes: int | None = None,
        labels: torch.LongTensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Logits (B, L, V), and with `labels` (B, L) (-100: ignored) their mean cross entropy."""
        check_keywords(self, kwargs)
        labels = self._checked_labels("labels", labels, input_ids, inputs_embeds)
        read, output, _ = self._read(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, None, False, output_attentions,
            output_hidden_states=output_hidden_states,
        )  # fmt: skip
        loss, logits = self._loss_and_logits(read, labels, num_items_in_batch)
        return MaskedLMOutput(loss, logits, output.hidden_states, output.attentions)
