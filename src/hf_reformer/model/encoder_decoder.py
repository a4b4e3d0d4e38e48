"""Encoder-decoder Reformers, for translation and summarisation: a reversible encoder, and a reversible decoder whose layers also
read the encoder's output (the paper's translation model, section 5; Trax's `Reformer`).

Shapes: B batch, S length of the source, L of the target, V vocabulary of the target.
"""

import re
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from .cache import leaves_cache_on_failure
from .configuration_reformer import ReformerConfig
from .generation import ReformerGenerationMixin, check_cache
from .inputs import as_ids, check_keywords, check_labels, check_logits_to_keep, check_memory
from .layer import ReformerDecoderLayer
from .losses import shifted_right
from .modeling_reformer import ReformerLanguageModel, ReformerModel, ReformerPreTrainedModel, normed_head
from .tracing import readable


class ReformerSourceEncoder(ReformerModel):
    """The encoder: (B, S) -> (B, S, hidden), the mean of both streams after the layer norm."""

    averaged = True
    _supports_sequence_parallel = False

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        num_hashes: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutput:
        """Arguments as of `ReformerModel.forward`; no others, so that `generate` hands over none."""
        hidden_states, context = self._begin(
            input_ids, attention_mask, position_ids, inputs_embeds, num_hashes, None, False, output_attentions
        )
        encoded = self.encoder(hidden_states, context, self._gives_hidden_states(output_hidden_states))
        return BaseModelOutput(encoded.last_hidden_state, encoded.hidden_states, encoded.attentions)


class ReformerTargetDecoder(ReformerModel):
    """The decoder: of a target (B, L) and an encoder's output (B, S, hidden) both streams, (B, L, hidden) each."""

    layer_class = ReformerDecoderLayer
    averaged = True

    def __init__(self, config):
        super().__init__(config)
        if config.share_encoder_decoder_embeddings:
            self.embeddings.word_embeddings = None  # the encoder's are

    def forward(self, target, memory, real_memory, words=None, output_hidden_states=None, last=0):
        """`EncoderOutput` before the final norm, and the cache.

        Args:
            target: keywords of `ReformerModel._begin`.
            memory: (B, S, hidden). real_memory: (B, S) bool, False for padding, or None.
            words: the encoder's table of words, or None for the decoder's own.
            last: only so many tokens, the last (0: all).
        """
        if target["past"] is not None:
            check_cache(target["past"], self.config).check_source(memory)
        try:
            hidden_states, context = self._begin(**target, words=words)
        except ValueError as error:  # in the names that it was called with
            names = "`(input_ids|inputs_embeds|attention_mask|position_ids)`"
            raise ValueError(re.sub(names, r"`decoder_\1`", str(error))) from None
        if context.documents is not None and readable(memory):
            raise ValueError(
                "`decoder_position_ids` begins again within a row, as of several documents, but must not: each would read all of "
                "the source."
            )
        if context.cache is not None:
            context.cache.note_source(memory)
        context = replace(context, memory=memory, real_memory=real_memory)
        with torch.set_grad_enabled(torch.is_grad_enabled() and context.cache is None):
            asked = self._gives_hidden_states(output_hidden_states)
            return self.encoder.streams(hidden_states, context, asked, last), context.cache


@dataclass(frozen=True)
class _Read:
    """What both parts gave: the encoder's `BaseModelOutput`, the decoder's `EncoderOutput` and its cache."""

    source: BaseModelOutput
    target: object
    cache: object

    def outputs(self):
        """Fields that the outputs with and without a head share."""
        return {
            "past_key_values": self.cache,
            "decoder_hidden_states": self.target.hidden_states,
            "decoder_attentions": self.target.attentions,
            "cross_attentions": self.target.cross_attentions,
            "encoder_last_hidden_state": self.source[0],
            "encoder_hidden_states": getattr(self.source, "hidden_states", None),
            "encoder_attentions": getattr(self.source, "attentions", None),
        }


class ReformerEncoderDecoderModel(ReformerPreTrainedModel):
    """Encoder and decoder without a head (`config.is_encoder_decoder` must be true).

    Each part has a configuration of its own, `encoder.config` and `decoder.config`, made from the model's: of the fields of the
    latter, only `num_hashes` and what is handed out are looked at again in each call.
    """

    def __init__(self, config: ReformerConfig):
        config = ReformerConfig.of(config)
        if not config.is_encoder_decoder:
            raise ValueError("`config.is_encoder_decoder` is False, but must be True for an encoder-decoder.")
        super().__init__(config)
        self.encoder = ReformerSourceEncoder(config.encoder_part())
        self.decoder = ReformerTargetDecoder(config.decoder_part())
        self.post_init()

    @property
    def width(self):
        """Of what a head reads of a token."""
        return self.decoder.width

    def get_input_embeddings(self):
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.encoder.set_input_embeddings(value)

    def get_encoder(self, modality=None):
        return self.encoder

    def get_decoder(self):
        return self.decoder

    @leaves_cache_on_failure
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        encoder_outputs=None,
        num_hashes: int | None = None,
        past_key_values=None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> Seq2SeqModelOutput:
        """The decoder's states (B, L, hidden), after the norm.

        Args:
            input_ids: (B, S) token ids of the source; or `inputs_embeds`, (B, S, hidden); or `encoder_outputs`, what
                `get_encoder()` gave of it, so that it is read once.
            attention_mask: (B, S), 1 for tokens of the source, 0 for padding (on either side), or None.
            decoder_input_ids: (B, L) token ids of the target, which begins with `config.decoder_start_token_id`; or
                `decoder_inputs_embeds`, (B, L, hidden).
            decoder_attention_mask: (B, L), or with a cache of P tokens (B, P + L), or None.
            decoder_position_ids: see `ReformerModel.forward`.
            num_hashes: rounds of hashing, in both parts.
            past_key_values: a `ReformerCache`, which holds the target so far, and keys and values of the source.
            output_attentions: of both parts, and `cross_attentions`, (B, H, L, S) of each layer.

        Raises:
            ValueError: for inputs of a wrong shape or range, and a cache of another source.
        """
        check_keywords(self, kwargs)
        read = self.read(
            (input_ids, attention_mask, inputs_embeds, encoder_outputs),
            (decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds, decoder_position_ids),
            num_hashes, past_key_values, use_cache, output_hidden_states, output_attentions,
        )  # fmt: skip
        normed = self.decoder.encoder.normed(*read.target.last_hidden_state)
        return Seq2SeqModelOutput(last_hidden_state=normed, **read.outputs())

    def read(
        self, source, target, num_hashes, past, use_cache, output_hidden_states=None, output_attentions=None, last=0
    ):
        """`_Read` before the final norm.

        Args:
            source: ids, mask, embeddings and outputs of the encoder; target: ids, mask, embeddings and positions.
        """
        (input_ids, attention_mask, inputs_embeds, encoder_outputs), (ids, mask, embeds, positions) = source, target
        if ids is None and embeds is None:
            raise ValueError("`decoder_input_ids` is None, but must be given (or `decoder_inputs_embeds`, or labels).")
        config = self.config
        num_hashes = config.num_hashes if num_hashes is None else num_hashes
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, None, inputs_embeds, num_hashes, output_hidden_states, output_attentions
            )
        elif input_ids is not None or inputs_embeds is not None:
            name = "inputs_embeds" if input_ids is None else "input_ids"
            raise ValueError(
                f"`{name}` is given, but must be None where `encoder_outputs` is given: the source is read already."
            )
        memory, begun = encoder_outputs[0], ids if embeds is None else embeds
        check_memory(memory, attention_mask, config.hidden_size, begun.shape[0] if torch.is_tensor(begun) else None)
        words = self.encoder.get_input_embeddings() if config.share_encoder_decoder_embeddings else None
        given = {
            "input_ids": ids, "attention_mask": mask, "position_ids": positions, "inputs_embeds": embeds,
            "num_hashes": num_hashes, "past": past, "use_cache": use_cache, "output_attentions": output_attentions,
        }  # fmt: skip
        real = self._real_memory(attention_mask, memory)
        return _Read(encoder_outputs, *self.decoder(given, memory, real, words, output_hidden_states, last))

    @staticmethod
    def _real_memory(attention_mask, memory):
        real = ReformerModel._real_tokens(attention_mask, memory.shape[1])
        return None if real is None else real.to(memory.device)


class ReformerForConditionalGeneration(ReformerLanguageModel, ReformerGenerationMixin):
    """The encoder-decoder with a head that says, at each token of the target, what the next one is."""

    body_class = ReformerEncoderDecoderModel

    def get_encoder(self, modality=None):
        return self.reformer.encoder

    def get_decoder(self):
        return self.reformer.decoder

    def resize_token_embeddings(self, *args, **kwargs):
        """Raises `ValueError` where source and target have tables of their own: only one could be resized."""
        if not self.config.share_encoder_decoder_embeddings:
            raise ValueError(
                "`share_encoder_decoder_embeddings` is False, but must be True for embeddings that are resized together."
            )
        table = super().resize_token_embeddings(*args, **kwargs)
        for part in (self.reformer, self.reformer.encoder, self.reformer.decoder):
            part.config.vocab_size = self.config.vocab_size
        return table

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor):
        """Labels (B, L), -100 where ignored -> what the decoder reads: `decoder_start_token_id`, then all but the last."""
        start, padding = self.config.decoder_start_token_id, self.config.pad_token_id
        return shifted_right(as_ids("labels", labels), start, start if padding is None else padding)

    @leaves_cache_on_failure
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        encoder_outputs=None,
        num_hashes: int | None = None,
        past_key_values=None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs,
    ) -> Seq2SeqLMOutput:
        """Logits (B, L, V), and with `labels` their mean cross entropy. Other arguments as of `ReformerEncoderDecoderModel`.

        Args:
            labels: (B, L), the target itself, -100 where ignored: the token at each place is what is predicted there. Where
                no decoder inputs are given, they are the labels, shifted right.
            logits_to_keep: only the last so many positions, or these; the loss needs all of them.
            num_items_in_batch: divides the summed loss, instead of the number of labels (gradient accumulation).
        """
        check_keywords(self, kwargs)
        logits_to_keep = check_logits_to_keep(logits_to_keep)
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            labels = check_labels("labels", labels, labels.shape if labels.dim() == 2 else (0, 0), self.target_size)
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        labels = self._checked_labels("labels", labels, decoder_input_ids, decoder_inputs_embeds)
        use_cache = False if use_cache is None and labels is not None else use_cache
        read = self.reformer.read(
            (input_ids, attention_mask, inputs_embeds, encoder_outputs),
            (decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds, decoder_position_ids),
            num_hashes, past_key_values, use_cache, output_hidden_states, output_attentions,
            last=logits_to_keep if labels is None and isinstance(logits_to_keep, int) else 0,
        )  # fmt: skip
        streams = read.target.last_hidden_state
        if labels is None:
            streams = tuple(slice_logits_to_keep(x, logits_to_keep) for x in streams)
        with torch.set_grad_enabled(torch.is_grad_enabled() and read.cache is None):
            head = (
                streams,
                partial(normed_head, averaged=True),
                (*self.reformer.decoder.encoder.final_norm, self.lm_head),
            )
            loss, logits = self._loss_and_logits(head, labels, num_items_in_batch)
        if labels is not None and logits is not None and (torch.is_tensor(logits_to_keep) or logits_to_keep):
            logits = slice_logits_to_keep(logits, logits_to_keep)
        return Seq2SeqLMOutput(loss=loss, logits=logits, **read.outputs())


__all__ = ["ReformerEncoderDecoderModel", "ReformerForConditionalGeneration"]
