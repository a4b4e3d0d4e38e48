"""Registers the classes over model type `reformer`, so that transformers' Auto classes and pipelines give ours."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.utils import is_vision_available

from .model.configuration_reformer import ReformerConfig
from .model.heads import ReformerForQuestionAnswering, ReformerForSequenceClassification, ReformerForTokenClassification
from .model.image_processing_reformer import ReformerImageProcessor
from .model.modeling_reformer import ReformerForMaskedLM, ReformerModel, ReformerModelWithLMHead
from .model.tokenization_reformer import ReformerByteTokenizer, ReformerTokenizer

# every Auto class in which transformers lists its own Reformer must be here: one left out would silently build that one
MODELS = {
    AutoModel: ReformerModel,
    AutoModelForTextEncoding: ReformerModel,
    AutoModelForCausalLM: ReformerModelWithLMHead,
    AutoModelForMaskedLM: ReformerForMaskedLM,
    AutoModelForSequenceClassification: ReformerForSequenceClassification,
    AutoModelForTokenClassification: ReformerForTokenClassification,
    AutoModelForQuestionAnswering: ReformerForQuestionAnswering,
}


def register():
    """Called on import; again it changes nothing."""
    AutoConfig.register("reformer", ReformerConfig, exist_ok=True)
    for auto_class, model_class in MODELS.items():
        auto_class.register(ReformerConfig, model_class, exist_ok=True)
    AutoTokenizer.register(
        ReformerConfig,
        tokenizer_class=ReformerTokenizer,  # of repositories with a SentencePiece model
        fast_tokenizer_class=ReformerByteTokenizer,
        exist_ok=True,
    )
    if is_vision_available():  # Pillow
        classes = dict.fromkeys(
            ("pil", "torchvision"), ReformerImageProcessor
        )  # the latter is asked for where it is installed
        AutoImageProcessor.register(ReformerConfig, image_processor_classes=classes, exist_ok=True)
