"""The Reformer as a Hugging Face model package."""

from .tokenization_reformer import ReformerByteTokenizer, ReformerTokenizer

__version__ = "0.1.0"

__all__ = ["ReformerByteTokenizer", "ReformerTokenizer", "__version__"]
