"""Reads a checkpoint of any known format, writes one of ours, of transformers' or of Trax's, whole or not at all."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from transformers import GenerationConfig

from hf_reformer.files import check_place, replacing_folder

from . import limits, transformers_format, trax_format
from .bounded import inside
from .fingerprint import fingerprint
from .key_map import match_by_name
from .model_card import model_card
from .tokenizer_files import find_tokenizer, write_tokenizer
from .torch_files import find_tensors
from .trax_files import find_trax
from .trax_writer import write_trax

TARGETS = ("hf_reformer", "transformers", "trax")


@dataclass
class Report:
    """What a conversion did."""

    output: Path
    origin: str
    notes: list[str]
    fingerprint: str


def convert(source, output, *, config=None, to="hf_reformer", tokenizer=None, max_length=None):
    """Converts the checkpoint `source` and writes the folder `output`.

    Args:
        source: a folder, or one file of a checkpoint.
        output: a folder that does not exist yet, or is empty. It appears only once everything in it is complete.
        config: `config.gin` or JSON; by default what lies beside the source.
        to: "hf_reformer", "transformers" or "trax".
        tokenizer: "byte", "none" or a SentencePiece model; by default a `spiece.model` or `tokenizer.json` beside the
            source, and bytes for a vocabulary of 258.
        max_length: rows of a position table that Trax computes instead of storing, an error for other checkpoints;
            default: the training length.

    Raises:
        ValueError: the source is not sound, does not fit the configuration, or has no counterpart in the target.
    """
    source, output = Path(source), Path(output)
    if to not in TARGETS:
        raise ValueError(f"`to` is {to!r}, but must be one of {', '.join(TARGETS)}.")
    if max_length is not None and max_length < 1:
        raise ValueError(f"`max_length` is {max_length}, but must be at least 1.")
    check_place(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"the output {output} exists already; give a folder that does not exist or is empty.")
    try:
        checkpoint = read_checkpoint(source, config, max_length)
        tokenizer = find_tokenizer(tokenizer, source, checkpoint.config)
    except OSError as error:
        raise ValueError(f"{error.filename or source} cannot be read: {error.strerror or error}.") from error
    model = build(checkpoint)
    print_ = fingerprint(model)
    with replacing_folder(output) as folder:
        if to == "trax":
            write_trax(folder, checkpoint.model_class, checkpoint.config, checkpoint.tensors)
        else:
            write_ours(folder, model, tokenizer, checkpoint, print_, output.name)
        if to == "transformers":
            rewrite_config(folder, checkpoint.config)
    return Report(output, checkpoint.origin, checkpoint.notes, print_)


# --- reading --------------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """find(source): the file to read in a folder, or the source itself where its name is one of the format; else None.
    read(path, config, max_length): the `Checkpoint`. configs: names of configurations that may lie beside it."""

    find: Callable
    read: Callable
    configs: tuple[str, ...]


FORMATS = (
    Format(find_tensors, transformers_format.read, ("config.json",)),
    Format(find_trax, trax_format.read, ("config.gin", "config.json")),
)


def read_checkpoint(source, config=None, max_length=None):
    """The checkpoint at `source`, whatever its format."""
    if not source.exists():
        raise ValueError(f"the source {source} does not exist.")
    folder = source if source.is_dir() else source.parent
    for form in FORMATS:
        if (path := form.find(source)) is not None:
            return form.read(path, config or _config_beside(folder, form.configs), max_length)
    raise ValueError(
        f"{source} holds no checkpoint that is known: model.safetensors, pytorch_model.bin (or their index), "
        "model.pkl, model.pkl.gz or model.weights.npy.gz."
    )


def _config_beside(folder, names):
    for name in names:
        if (folder / name).exists():
            return inside(folder, name)
    raise ValueError(f"{folder} has no {' and no '.join(names)}: give the architecture with --config.")


# --- writing --------------------------------------------------------------------------------------------------------


def build(checkpoint):
    """The model with these very tensors; every shape is checked first."""
    limits.check_settings(checkpoint.config)
    entries = transformers_format.entries_of(checkpoint.model_class, checkpoint.config)
    match_by_name(entries, checkpoint.tensors, "the converted checkpoint")
    model = limits.parameters_of(checkpoint.model_class, checkpoint.config)
    model.load_state_dict(checkpoint.tensors, assign=True)
    return model.eval()


def write_ours(folder, model, tokenizer, checkpoint, fingerprint_, title):
    """Weights, configurations, tokenizer and card."""
    config = model.config
    tokenizer = write_tokenizer(folder, tokenizer, config)
    if tokenizer is not None and tokenizer.eos_token_id is not None and "Trax" in checkpoint.origin:
        config.eos_token_id = tokenizer.eos_token_id
    if model.can_generate():
        model.generation_config = GenerationConfig(pad_token_id=config.pad_token_id, eos_token_id=config.eos_token_id)
    model.save_pretrained(folder)
    card = model_card(model, checkpoint.origin, checkpoint.notes, fingerprint_, title)
    (folder / "README.md").write_text(card, encoding="utf-8")
    for path in folder.iterdir():
        path.chmod((folder / "config.json").stat().st_mode)  # safetensors writes files that only the owner can read


def rewrite_config(folder, config):
    """config.json with the fields that transformers understands."""
    fields = transformers_format.config_for_transformers(config)
    written = json.loads((folder / "config.json").read_text())
    fields |= {name: written[name] for name in ("architectures", "dtype") if name in written}
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
