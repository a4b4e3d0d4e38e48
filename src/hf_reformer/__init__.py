"""The Reformer as a Hugging Face model package."""

from .auto import pretrained, register
from .model.attention_map import LayerMap, attention_map
from .model.cache import ReformerCache
from .model.configuration_reformer import ReformerConfig
from .model.encoder_decoder import ReformerEncoderDecoderModel, ReformerForConditionalGeneration
from .model.heads import ReformerForQuestionAnswering, ReformerForSequenceClassification, ReformerForTokenClassification
from .model.image_completion import ReformerImagePipeline
from .model.image_processing_reformer import ReformerImageProcessor
from .model.modeling_reformer import (
    ReformerForCausalLM,
    ReformerForMaskedLM,
    ReformerModel,
    ReformerModelWithLMHead,
    ReformerPreTrainedModel,
)
from .model.pieces import set_piece_memory
from .model.pooling import pool
from .model.question_answering import ReformerQuestionAnsweringPipeline
from .model.tokenization_reformer import ReformerByteTokenizer, ReformerTokenizer

__version__ = "0.1.0"

register()

__all__ = [
    "LayerMap",
    "ReformerByteTokenizer",
    "ReformerCache",
    "ReformerConfig",
    "ReformerEncoderDecoderModel",
    "ReformerForCausalLM",
    "ReformerForConditionalGeneration",
    "ReformerForMaskedLM",
    "ReformerForQuestionAnswering",
    "ReformerForSequenceClassification",
    "ReformerForTokenClassification",
    "ReformerImagePipeline",
    "ReformerImageProcessor",
    "ReformerModel",
    "ReformerModelWithLMHead",
    "ReformerPreTrainedModel",
    "ReformerQuestionAnsweringPipeline",
    "ReformerTokenizer",
    "__version__",
    "attention_map",
    "pool",
    "pretrained",
    "set_piece_memory",
]
