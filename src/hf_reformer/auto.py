"""Registers the classes over model type `reformer`, so that transformers' Auto classes and pipelines give ours."""

from pathlib import Path

import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.utils import is_vision_available

from .model.configuration_reformer import ReformerConfig
from .model.encoder_decoder import ReformerForConditionalGeneration
from .model.heads import ReformerForQuestionAnswering, ReformerForSequenceClassification, ReformerForTokenClassification
from .model.image_completion import register as register_images
from .model.image_processing_reformer import ReformerImageProcessor
from .model.modeling_reformer import ReformerForMaskedLM, ReformerModel, ReformerModelWithLMHead
from .model.question_answering import register as register_questions
from .model.tokenization_reformer import NUM_BYTES, NUM_SPECIAL_TOKENS, ReformerByteTokenizer, ReformerTokenizer

# every Auto class in which transformers lists its own Reformer must be here: one left out would silently build that one
MODELS = {
    AutoModel: ReformerModel,
    AutoModelForTextEncoding: ReformerModel,
    AutoModelForCausalLM: ReformerModelWithLMHead,
    AutoModelForMaskedLM: ReformerForMaskedLM,
    AutoModelForSequenceClassification: ReformerForSequenceClassification,
    AutoModelForTokenClassification: ReformerForTokenClassification,
    AutoModelForQuestionAnswering: ReformerForQuestionAnswering,
    AutoModelForSeq2SeqLM: ReformerForConditionalGeneration,
}


class TokenizerOfRepository(ReformerTokenizer):
    """The tokenizer of a repository that does not name its class: SentencePiece where it brings such a model, bytes where it
    brings nothing and has their vocabulary (google/reformer-enwik8)."""

    @classmethod
    def from_pretrained(cls, name, *inputs, **kwargs):
        tokenizer = ReformerTokenizer.from_pretrained(name, *inputs, **kwargs)
        if len(tokenizer) > len(tokenizer.all_special_tokens):
            return tokenizer
        passed = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
        config = AutoConfig.from_pretrained(name, **{key: kwargs[key] for key in passed if key in kwargs})
        size = NUM_SPECIAL_TOKENS + NUM_BYTES
        if config.vocab_size != size:
            raise ValueError(
                f"{name} has no tokenizer files, and `vocab_size` {config.vocab_size}, which must be {size} for bytes: load the "
                "tokenizer that it was trained with by itself."
            )
        return ReformerByteTokenizer(model_max_length=config.maximum_length, name_or_path=str(name))


SHIPPED = Path(__file__).parent / "pretrained"


def pretrained(name: str) -> str:
    """The folder of a checkpoint that ships with this package, for `from_pretrained`.

    Raises:
        ValueError: for other names; it lists those that there are.
    """
    names = shipped()
    if name not in names:
        raise ValueError(f"`name` is {name!r}, but must be one of {', '.join(names)}, which ship with hf_reformer.")
    return str(SHIPPED / name)


def shipped() -> list[str]:
    """Names of the checkpoints that ship with this package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def register():
    """Called on import; again it changes nothing."""
    AutoConfig.register("reformer", ReformerConfig, exist_ok=True)
    for auto_class, model_class in MODELS.items():
        auto_class.register(ReformerConfig, model_class, exist_ok=True)
        # an object of transformers' own class, as somebody has who changed one import of two; our models convert it
        auto_class._model_mapping.register(transformers.ReformerConfig, model_class, exist_ok=True)
    AutoTokenizer.register(
        ReformerConfig,
        tokenizer_class=TokenizerOfRepository,  # where no tokenizer_config.json names a class
        fast_tokenizer_class=ReformerByteTokenizer,
        exist_ok=True,
    )
    if is_vision_available():  # Pillow
        classes = dict.fromkeys(
            ("pil", "torchvision"), ReformerImageProcessor
        )  # the latter is asked for where it is installed
        AutoImageProcessor.register(ReformerConfig, image_processor_classes=classes, exist_ok=True)
    register_images()
    register_questions()
