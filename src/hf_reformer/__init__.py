"""The Reformer as a Hugging Face model package."""

from .auto import register
from .caching import ReformerCache
from .configuration_reformer import ReformerConfig
from .heads import ReformerForQuestionAnswering, ReformerForSequenceClassification, ReformerForTokenClassification
from .image_processing_reformer import ReformerImageProcessor
from .modeling_reformer import (
    ReformerForCausalLM,
    ReformerForMaskedLM,
    ReformerModel,
    ReformerModelWithLMHead,
    ReformerPreTrainedModel,
)
from .tokenization_reformer import ReformerByteTokenizer, ReformerTokenizer

__version__ = "0.1.0"

register()

__all__ = [
    "ReformerByteTokenizer",
    "ReformerCache",
    "ReformerConfig",
    "ReformerForCausalLM",
    "ReformerForMaskedLM",
    "ReformerForQuestionAnswering",
    "ReformerForSequenceClassification",
    "ReformerForTokenClassification",
    "ReformerImageProcessor",
    "ReformerModel",
    "ReformerModelWithLMHead",
    "ReformerPreTrainedModel",
    "ReformerTokenizer",
    "__version__",
]
