"""Heads for classification and question answering. Shapes: B batch, L length, 2 * hidden: both streams."""

import torch
from torch import nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .configuration_reformer import ReformerConfig
from .inputs import check_is_tensor, check_keywords, check_labels, check_sequence_labels, check_spans
from .losses import problem_type_of, sequence_loss, span_loss, token_cross_entropy
from .modeling_reformer import ReformerModel, ReformerPreTrainedModel
from .pooling import pool

logger = logging.get_logger(__name__)


def _classifier_dropout(config):
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


class ReformerClassificationHead(nn.Module):
    """Dropout, dense, tanh, dropout, dense over one token: (B, 2 * hidden) -> (B, labels)."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_states):
        hidden_states = torch.tanh(self.dense(self.dropout(hidden_states)))
        return self.out_proj(self.dropout(hidden_states))


class ReformerForSequenceClassification(ReformerPreTrainedModel):
    """A label (or a number) for a whole sequence, read from its tokens as `config.pooling` says; where that is None, what it
    stands for is written into the configuration, and saved with the model."""

    accepts_loss_kwargs = False  # the loss is a mean over rows

    def __init__(self, config: ReformerConfig):
        config = ReformerConfig.of(config)
        super().__init__(config)
        self.num_labels = config.num_labels
        self.reformer = ReformerModel(config)
        self.classifier = ReformerClassificationHead(config)
        if config.pooling is None:
            config.pooling = config.default_pooling()
        if config.is_decoder and config.pooling == "first":
            logger.warning(
                "`config.pooling` is 'first' in a causal model: the first token, which the classifier reads, sees no other."
            )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        num_hashes: int | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Logits (B, labels), and with `labels` the loss of `config.problem_type`.

        Differs from transformers: padding, on either side, is never read.
        """
        check_keywords(self, kwargs)
        outputs = self.reformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            num_hashes=num_hashes,
            use_cache=False,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.classifier(pool(outputs.last_hidden_state, attention_mask, self.config.pooling))
        loss = None
        if labels is not None:
            check_is_tensor("labels", labels)
            problem_type = problem_type_of(self.config, labels)
            classes = problem_type == "single_label_classification"
            labels = check_sequence_labels(labels, len(logits), self.num_labels, classes)
            loss = sequence_loss(logits, labels, problem_type)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class ReformerForTokenClassification(ReformerPreTrainedModel):
    """A label for every token."""

    def __init__(self, config: ReformerConfig):
        config = ReformerConfig.of(config)
        super().__init__(config)
        self.num_labels = config.num_labels
        self.reformer = ReformerModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

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
    ) -> TokenClassifierOutput:
        """Logits (B, L, labels), and with `labels` (B, L) (-100: ignored) their mean cross entropy."""
        check_keywords(self, kwargs)
        outputs = self.reformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            num_hashes=num_hashes,
            use_cache=False,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        labels = check_labels("labels", labels, logits.shape[:2], self.num_labels, "`num_labels`")
        loss = None if labels is None else token_cross_entropy(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class ReformerForQuestionAnswering(ReformerPreTrainedModel):
    """The start and the end of an answer inside the text."""

    accepts_loss_kwargs = False  # the loss is a mean over rows

    def __init__(self, config: ReformerConfig):
        config = ReformerConfig.of(config)
        if config.num_labels != 2:
            raise ValueError(
                f"`num_labels` is {config.num_labels}, but must be 2 for question answering: start and end."
            )
        super().__init__(config)
        self.num_labels = config.num_labels
        self.reformer = ReformerModel(config)
        self.qa_outputs = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        num_hashes: int | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """Start and end logits (B, L), and with both positions (B) the mean of the two cross entropies.

        Differs from transformers: in the loss, padding is no candidate, so that it does not depend on its amount (unless a
        label itself is padding).
        """
        check_keywords(self, kwargs)
        outputs = self.reformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            num_hashes=num_hashes,
            use_cache=False,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)
        start_positions, end_positions = check_spans(start_positions, end_positions, len(start_logits))
        loss = None
        if start_positions is not None:
            loss = span_loss(start_logits, end_logits, start_positions, end_positions, attention_mask)
        return QuestionAnsweringModelOutput(loss, start_logits, end_logits, outputs.hidden_states, outputs.attentions)
