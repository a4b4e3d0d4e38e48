"""Reads a checkpoint of any known format, writes one of ours, of transformers' or of Trax's, whole or not at all."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import GenerationConfig

import hf_reformer
from hf_reformer.files import replacing_folder

from . import limits, transformers_format, trax_config, trax_language_model, trax_positions
from .bounded import read_json, read_text
from .fingerprint import fingerprint
from .gin import parse_gin
from .key_map import match_by_name, match_in_order
from .key_map import to_ours as map_to_ours
from .model_card import model_card
from .torch_files import find_tensors, is_torch, read_tensors
from .trax_files import find_trax, is_trax, read_trax
from .trax_writer import write_trax

TARGETS = ("hf_reformer", "transformers", "trax")
BYTE_VOCABULARY = 258
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass
class Checkpoint:
    """A checkpoint in our names. `notes`: sentences on what was decided, for the card."""

    model_class: type
    config: hf_reformer.ReformerConfig
    tensors: dict[str, torch.Tensor]
    origin: str
    notes: list[str] = field(default_factory=list)


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
        max_length: rows of a position table that Trax computes instead of storing; default: the training length.

    Raises:
        ValueError: the source is not sound, does not fit the configuration, or has no counterpart in the target.
    """
    source, output = Path(source), Path(output)
    if to not in TARGETS:
        raise ValueError(f"`to` is {to!r}, but must be one of {', '.join(TARGETS)}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"the output {output} exists already; give a folder that does not exist or is empty.")
    checkpoint = read_checkpoint(source, config, max_length)
    model = build(checkpoint)
    print_ = fingerprint(model)
    tokenizer = find_tokenizer(tokenizer, source, checkpoint.config)
    with replacing_folder(output) as folder:
        if to == "trax":
            write_trax(folder, checkpoint.model_class, checkpoint.config, checkpoint.tensors)
        else:
            write_ours(folder, model, tokenizer, checkpoint, print_, output.name)
        if to == "transformers":
            rewrite_config(folder, checkpoint.config)
    return Report(output, checkpoint.origin, checkpoint.notes, print_)


# --- reading --------------------------------------------------------------------------------------------------------


def read_checkpoint(source, config=None, max_length=None):
    """The checkpoint at `source`, whatever its format."""
    folder = source if source.is_dir() else source.parent
    if not source.exists() and not (folder.is_dir() and source.name):
        raise ValueError(f"the source {source} does not exist.")
    trax = find_trax(source) if source.is_dir() else source
    tensors = find_tensors(source) if source.is_dir() else source
    if source.is_dir() and tensors is not None:
        return read_transformers(tensors, config or folder / "config.json")
    if trax is not None and (source.is_dir() or is_trax(source)):
        return read_trax_language_model(trax, config or _config_beside(folder), max_length)
    if not source.is_dir() and is_torch(source):
        return read_transformers(tensors, config or folder / "config.json")
    raise ValueError(
        f"{source} holds no checkpoint that is known: model.safetensors, pytorch_model.bin (or their index), "
        "model.pkl, model.pkl.gz or model.weights.npy.gz."
    )


def _config_beside(folder):
    for name in ("config.gin", "config.json"):
        if (folder / name).exists():
            return folder / name
    raise ValueError(f"{folder} has neither config.gin nor config.json: give the architecture with --config.")


def read_transformers(path, config):
    """transformers' checkpoint, or ours."""
    fields, tensors = read_json(config), read_tensors(path)
    model_class, our_config, tensors = transformers_format.to_ours(fields, tensors, path)
    types = sorted({str(tensor.dtype) for tensor in tensors.values()})
    tensors, dtype = _one_dtype(tensors)
    notes = [f"weights of {', '.join(types)} are all {dtype} now"] if len(types) > 1 else []
    return Checkpoint(model_class, our_config, tensors, f"{path.name} in the layout of transformers", notes)


def read_trax_language_model(path, config_path, max_length=None):
    """A Trax `ReformerLM`."""
    file, notes = read_trax(path), []
    fields = {} if str(config_path).endswith(".gin") else read_json(config_path)
    if fields.get("model_type") == "reformer" or "attn_layers" in fields:
        config = _trax_config_of_ours(hf_reformer.ReformerConfig.from_dict(fields))
    else:
        config = trax_config.from_json(fields) if fields else trax_config.from_gin(parse_gin(read_text(config_path)))
    notes += [f"the configuration includes {name}, which was not read" for name in config.not_read]
    shapes = [tuple(array.shape) for array in file.arrays]
    arch = trax_language_model.architecture_of(shapes, config, path)
    notes += [
        f"{name} is {value} by the shapes of the weights; the configuration said {config.sizes[name]}"
        for name, value in arch.sizes.items()
        if name in config.sizes and config.sizes[name] != value
    ]
    entries = trax_language_model.language_model_entries(arch)
    arrays = match_in_order(entries, file.arrays, path)
    arrays, dtype = _one_dtype(arrays)
    tensors = map_to_ours(entries, arrays, path)
    our_config = our_config_of(arch, config, notes, max_length)
    tensors |= materialised_positions(arch, config, arrays, our_config.max_position_embeddings, dtype)
    our_config.dtype = dtype
    step = "" if file.step is None else f", step {file.step:,}"
    origin = f"a Trax ReformerLM ({file.generation}{step})"
    return Checkpoint(hf_reformer.ReformerModelWithLMHead, our_config, tensors, origin, notes)


def _one_dtype(arrays):
    """Arrays as stored; where they are of several types, all in the widest of them, which loses nothing."""
    dtype = None
    for array in arrays.values():
        dtype = array.dtype if dtype is None else torch.promote_types(dtype, array.dtype)
    return {name: array.to(dtype) for name, array in arrays.items()}, dtype


def _trax_config_of_ours(config):
    """A `TraxConfig` from a configuration in our names, as the old converter of transformers wanted it."""
    from .trax_writer import _attention_arguments

    attention = [_attention_arguments(config, kind) for kind in config.attn_layers]
    settings = {"model": {"max_len": config.maximum_length, "dropout": config.hidden_dropout_prob}}
    settings |= {"attention": attention, "length": config.maximum_length}
    made = trax_config.from_json(settings)
    return trax_config.TraxConfig(**{**vars(made), "activation": config.hidden_act})


def our_config_of(arch, config, notes, max_length=None):
    """The configuration of our model; sizes from the shapes, the rest from Trax's configuration."""
    axial = arch.positions.kind == "axial"
    shape, dims = trax_language_model.axial_sizes(arch.positions.shapes) if axial else ((), ())
    longest = torch.Size(shape).numel() if axial else max_length or max(config.max_len, config.length or 1)
    if arch.positions.kind == "table":
        longest = arch.positions.shapes[0][-2]
    if not axial:
        limits.check_positions(longest, arch.d_model)
    length = config.length or min(longest, config.max_len)
    layers = trax_language_model.attention_of_layers(arch, config, notes)
    settings = trax_language_model.layer_settings(layers, length)
    if "lsh" in settings["attn_layers"] and all(layer.n_buckets is None for layer in layers):
        notes.append(
            f"Trax chooses the number of buckets by the length of each input; {settings['num_buckets']} is its choice "
            f"for {length:,} tokens, now fixed"
        )
    if axial:
        settings |= {"axial_pos_shape": shape, "axial_pos_embds_dim": dims}
    return hf_reformer.ReformerConfig(
        vocab_size=arch.vocab_size, hidden_size=arch.d_model, feed_forward_size=arch.d_ff, axial_pos_embds=axial,
        num_attention_heads=arch.n_heads, attention_head_size=arch.head_size, hidden_act=config.activation,
        hidden_dropout_prob=config.dropout, max_position_embeddings=longest, layer_norm_eps=1e-6, is_decoder=True,
        pad_token_id=0, eos_token_id=1 if arch.vocab_size == BYTE_VOCABULARY else None, **settings,
    )  # fmt: skip


def materialised_positions(arch, config, arrays, length, dtype):
    """{key: table} for encodings that Trax computes; empty for those that it stores."""
    kind, size = arch.positions.kind, arch.d_model
    if kind in ("axial", "table"):
        return {}
    if kind == "sin-cos":
        table = trax_positions.sin_cos_table(length, size)
    elif kind == "no":
        table = torch.zeros(length, size)
    else:
        weights = [arrays[f"pos.{i}"] for i in range(len(arch.positions.shapes))]
        digits = size // weights[0].shape[-1]
        rows = [weights[i * digits : (i + 1) * digits] for i in range(len(config.bases))]
        start = weights[-1] if len(weights) > digits * len(rows) else None
        table = trax_positions.fixed_base_table(length, rows, start, config.bases)
    return {f"{trax_language_model.POSITIONS}.embedding.weight": table.to(dtype)}


# --- writing --------------------------------------------------------------------------------------------------------


def build(checkpoint):
    """The model with these very tensors; every shape is checked first."""
    limits.check_settings(checkpoint.config)
    entries = transformers_format.entries_of(checkpoint.model_class, checkpoint.config)
    match_by_name(entries, checkpoint.tensors, "the converted checkpoint")
    model = limits.parameters_of(checkpoint.model_class, checkpoint.config)
    model.load_state_dict(checkpoint.tensors, assign=True)
    return model.eval()


def find_tokenizer(choice, source, config):
    """A tokenizer, a list of files to copy, or None."""
    folder = source if source.is_dir() else source.parent
    length = config.maximum_length
    if choice is None:
        if (folder / "spiece.model").exists():
            choice = folder / "spiece.model"
        elif (folder / "tokenizer.json").exists():
            return [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
        else:
            choice = "byte" if config.vocab_size == BYTE_VOCABULARY else "none"
    if choice == "none":
        return None
    if choice == "byte":
        if config.vocab_size < BYTE_VOCABULARY:
            raise ValueError(f"`tokenizer` is 'byte', but the vocabulary has {config.vocab_size} tokens, not 258.")
        return hf_reformer.ReformerByteTokenizer(model_max_length=length)
    tokenizer = _sentencepiece(Path(choice), length)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"{choice} has {len(tokenizer)} pieces, but the vocabulary has {config.vocab_size} tokens.")
    return tokenizer


def _sentencepiece(path, length):
    if not path.is_file():
        raise ValueError(f"the tokenizer {path} is not a file; give 'byte', 'none' or a SentencePiece model.")
    try:
        return hf_reformer.ReformerTokenizer.from_pretrained(
            path.parent, vocab_file=str(path), model_max_length=length, local_files_only=True
        )
    except Exception as error:  # sentencepiece, protobuf and tokenizers raise of all kinds
        raise ValueError(f"{path} cannot be read as a SentencePiece model: {error}") from error


def write_ours(folder, model, tokenizer, checkpoint, fingerprint_, title):
    """Weights, configurations, tokenizer and card."""
    if isinstance(tokenizer, list):
        copy_tokenizer(tokenizer, folder)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)
        if tokenizer.eos_token_id is not None and "Trax" in checkpoint.origin:
            model.config.eos_token_id = tokenizer.eos_token_id
    config = model.config
    if model.can_generate():
        model.generation_config = GenerationConfig(pad_token_id=config.pad_token_id, eos_token_id=config.eos_token_id)
    model.save_pretrained(folder)
    card = model_card(model, checkpoint.origin, checkpoint.notes, fingerprint_, title)
    (folder / "README.md").write_text(card, encoding="utf-8")
    for path in folder.iterdir():
        path.chmod((folder / "config.json").stat().st_mode)  # safetensors writes files that only the owner can read


def copy_tokenizer(files, folder):
    """As they are, but for references to code (`auto_map`), which is not copied."""
    for path in files:
        if path.name == "tokenizer_config.json":
            fields = {name: value for name, value in read_json(path).items() if name != "auto_map"}
            (folder / path.name).write_text(json.dumps(fields, indent=2) + "\n")
        else:
            shutil.copyfile(path, folder / path.name)


def rewrite_config(folder, config):
    """config.json with the fields that transformers understands."""
    fields = transformers_format.config_for_transformers(config)
    written = json.loads((folder / "config.json").read_text())
    fields |= {name: written[name] for name in ("architectures", "dtype") if name in written}
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
