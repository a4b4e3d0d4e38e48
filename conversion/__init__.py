"""Checkpoints of other formats to `hf_reformer`'s and back; `hf-reformer convert` is its command.

One module and one key map per format: `trax_language_model` (Trax `ReformerLM`, files read by `trax_files`) and
`transformers_format`. Nothing in a source is ever executed or imported: pickles are read by `pickle_reader`, which knows
a handful of names and calls none of what they name.
"""

from .converting import Report, convert

__all__ = ["Report", "convert"]
