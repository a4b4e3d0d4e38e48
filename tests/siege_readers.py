"""Readers of files: sound files to damage, and what reading one means. `read` asserts what a right result is."""

import contextlib
import functools
import gzip
import io
import json
import os
import pickle
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from helpers import build, tiny_config
from siege import Finding
from trax_checkpoints import AXIAL, nest, npy_gz, random_weights, settings, write_config, write_nested

from hf_reformer import ReformerByteTokenizer, ReformerImageProcessor
from hf_reformer.cli.images import load_processor
from hf_reformer.cli.loading import load_config
from hf_reformer.cli.predict import rows_of
from hf_reformer.conversion import convert
from hf_reformer.conversion.gin import parse_gin
from hf_reformer.conversion.npy_stream import read_npy_stream
from hf_reformer.conversion.pickle_reader import read_pickle
from hf_reformer.conversion.torch_files import read_tensors
from hf_reformer.conversion.trax_config import from_gin, from_json
from hf_reformer.training.corpus import read_corpus
from hf_reformer.training.images import local_images
from hf_reformer.training.recipes import RECIPE_FOLDER, load_recipe
from hf_reformer.training.rows import read_rows
from hf_reformer.training.settings import ClassificationData, ImageData, PairData, QuestionData, TagData, TextData
from hf_reformer.training.verify_card import verify
from hf_reformer.training.vocabulary import load_tokenizer

ROOT = Path(__file__).parent.parent
WORK = Path(tempfile.mkdtemp(prefix="siege-"))  # one folder for a process: a case overwrites the one before


class Reader(NamedTuple):
    """seeds(): sound files as bytes. read(data): reads them; returns, or raises what a user is told."""

    seeds: object
    read: object


def written(name: str, data: bytes) -> Path:
    path = WORK / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def quietly(action):
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        return action()


# --- conversion -----------------------------------------------------------------------------------------------------


@functools.cache
def model():
    return build(tiny_config(["local", "lsh"]), dtype=torch.float32)


def torch_seeds():
    few = dict(list(model().state_dict().items())[:3])
    made = []
    for zipped in (True, False):
        stream = io.BytesIO()
        torch.save(few, stream, _use_new_zipfile_serialization=zipped)
        made.append(stream.getvalue())
    return made


def safetensors_seeds():
    from safetensors.torch import save

    return [save({"a": torch.ones(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)})]


def tensors_in(name):
    def read(data):
        found = read_tensors(written(name, data))
        assert sum(x.numel() * x.element_size() for x in found.values()) <= 64 * max(len(data), 1)

    return read


def pickle_seeds():
    weights = random_weights(AXIAL)
    objects = [
        {"step": 5, "flat_weights": weights[:2], "slots": None},
        nest(weights, (False, True), "head", 2),
        [(1, 2.5), {"a": b"x"}],
    ]
    return [pickle.dumps(item, protocol) for item in objects for protocol in (2, 4)]


def gin_seeds():
    folder = write_config(WORK / "gin", GIN)
    return [
        (folder / "config.gin").read_bytes(),
        b"a = [1, (2, 'x'), {'k': @b.C()}]\nc/D.e = %a\ninclude 'other.gin'\n",
    ]


GIN = """
# Parameters for ReformerLM:
import trax.models
n_tokens = 48
LSHSelfAttention.n_hashes = 2
LSHSelfAttention.n_buckets = [4, 2]
LSHSelfAttention.chunk_len = 6
SelfAttention.chunk_len = 4
ReformerLM.attention_type = [@SelfAttention, @LSHSelfAttention]
ReformerLM.vocab_size = 17
ReformerLM.max_len = %n_tokens
ReformerLM.axial_pos_shape = (6, 8)
ReformerLM.d_axial_pos_embs = (5, 7)
ReformerLM.ff_activation = @trax.layers.Relu
train.model = @trax.models.ReformerLM
"""


def converted(name, sound):
    """Converts a folder of which one file is damaged: a whole output or none."""

    def read(data):
        folder, output = WORK / f"source-{name}", WORK / f"output-{name}"
        if not folder.exists():
            sound(folder)
        written(f"source-{name}/{name}", data)
        try:
            quietly(lambda: convert(folder, output))
        except Exception:
            if output.exists() or any(path.name.startswith(f".{output.name}") for path in WORK.iterdir()):
                raise Finding("a refused conversion left an output") from None
            raise
        finally:
            remove(output)

    return read


def remove(folder):
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def sound_ours(folder):
    model().save_pretrained(folder)


def sound_with_tokenizer(folder):
    config = tiny_config(["local"], vocab_size=300)
    build(config, dtype=torch.float32).save_pretrained(folder)
    ReformerByteTokenizer().save_pretrained(folder)


def file_of(sound, name):
    with tempfile.TemporaryDirectory() as folder:
        sound(Path(folder, "x"))
        return [Path(folder, "x", name).read_bytes()]


def sound_nested(folder):
    write_nested(folder, nest(random_weights(AXIAL), (False, True), "head", 2), settings())


# --- models, tokenizers, recipes ------------------------------------------------------------------------------------


def config_file(data):
    written("config/config.json", data)
    config = quietly(lambda: load_config(str(WORK / "config")))
    assert config.model_type


def tokenizer_seeds(name):
    with tempfile.TemporaryDirectory() as folder:
        ReformerByteTokenizer(model_max_length=64).save_pretrained(folder)
        return [Path(folder, name).read_bytes()]


def tokenizer_file(name):
    def read(data):
        folder = WORK / f"tokenizer-{name}"
        if not folder.exists():
            ReformerByteTokenizer(model_max_length=64).save_pretrained(folder)
        written(f"tokenizer-{name}/{name}", data)
        found = quietly(lambda: load_tokenizer(str(folder), 64, vocab_size=500))
        assert all(0 <= i < 500 for i in found("a b").input_ids)

    return read


def sentencepiece_seeds():
    import sentencepiece

    stream = io.BytesIO()
    text = "the cat sat on the mat and looked at the rat\n" * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=stream, vocab_size=30, model_type="bpe", minloglevel=9,
        hard_vocab_limit=False,
    )  # fmt: skip
    return [stream.getvalue()]


def sentencepiece_file(data):
    from hf_reformer.conversion.tokenizer_files import find_tokenizer

    path = written("spiece/spiece.model", data)
    config = tiny_config(["local"], vocab_size=320)
    found = quietly(lambda: find_tokenizer(str(path), path.parent, config))
    assert all(0 <= i < 320 for i in found("the cat").input_ids)


def recipe_file(data):
    made = load_recipe(str(written("recipe.yaml", data)))
    assert made.task


def recipe_seeds():
    return [path.read_bytes() for path in sorted(RECIPE_FOLDER.glob("*.yaml"))][:6]


def processor_seeds():
    with tempfile.TemporaryDirectory() as folder:
        ReformerImageProcessor(size={"height": 4, "width": 4}, token_offset=2, first_values=[1] * 256).save_pretrained(
            folder
        )
        return [Path(folder, "preprocessor_config.json").read_bytes()]


def processor_file(data):
    written("processor/preprocessor_config.json", data)
    made = quietly(lambda: load_processor(str(WORK / "processor"), None))
    quietly(lambda: made(np.full((5, 5, 3), 9, np.uint8)))


def card(data):
    folder = WORK / "card"
    written("card/README.md", data)
    said = {"same_data_as_the_card": None}
    quietly(lambda: verify(folder, evaluate=lambda *_, **__: said))


def card_seeds():
    return [path.read_bytes() for path in sorted((ROOT / "src/hf_reformer/pretrained").glob("*/README.md"))]


# --- data -----------------------------------------------------------------------------------------------------------


def image_seeds():
    from PIL import Image

    made = []
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "ICO"):
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, kind)
        made.append(stream.getvalue())
    return made


def image_file(data):
    path = written("pictures/a.png", data)
    processor = ReformerImageProcessor(size={"height": 3, "width": 3})
    ids = quietly(lambda: processor(str(path)))["input_ids"][0]
    assert len(ids) == 27 and ids.min() >= 0 and ids.max() < 256
    found = quietly(lambda: local_images(str(path.parent), ImageData(size=3, resize=True)))
    assert len(found) == 1 and found[0].shape == (27,)


def array_seeds():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 12), np.uint8)
    made = []
    for save in (
        np.save,
        lambda stream, x: np.savez(stream, data=x),
        lambda stream, x: np.savez_compressed(stream, data=x),
    ):
        stream = io.BytesIO()
        save(stream, pixels)
        made.append(stream.getvalue())
    return made


def array_file(data):
    path = written("arrays/a.npz" if data[:2] == b"PK" else "arrays/a.npy", data)
    found = local_images(str(path), ImageData(size=2))
    assert all(found[i].shape == (12,) for i in range(min(len(found), 9)))


ROWS = {
    ClassificationData: [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}],
    QuestionData: [{"question": "who?", "context": "the cat", "answers": {"text": ["cat"], "answer_start": [4]}}],
    TagData: [{"tokens": ["a", "b"], "ner_tags": ["O", "B-X"]}],
    PairData: [{"source": "abc", "target": "cba"}],
}


def row_seeds():
    return ["".join(json.dumps(row) + "\n" for row in rows * 2).encode() for rows in ROWS.values()]


def row_file(data):
    kind = (ClassificationData, QuestionData, TagData, PairData)[
        0 if b'"label' in data else 1 if b'"answ' in data else 2 if b'"ner' in data else 3
    ]
    path = fresh(f"rows-{len(data) % 7}.jsonl", data)
    found = quietly(lambda: read_rows(kind(files=str(path), evaluation_files=str(path)), 0))
    assert len(found.training) >= 1


def table_seeds(kind):
    if kind == "csv":
        return [b'text,label\n"good, old",1\nbad,0\n\xc3\xbc,1\n']
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["good", "bad"], "label": ["yes", "no"]}), stream)
    return [stream.getvalue()]


def table_file(kind):
    def read(data):
        path = fresh(f"rows.{kind}", data)
        found = quietly(lambda: read_rows(ClassificationData(files=str(path), evaluation_files=str(path)), 0))
        assert len(found.training) >= 1

    return read


def fresh(name, data):
    """Datasets keeps a copy of every file that it reads, so each case has a folder of its own, with that copy in it."""
    import datasets

    remove(WORK / "data")
    datasets.config.HF_DATASETS_CACHE = str(WORK / "data" / "cache")
    datasets.config.DOWNLOADED_DATASETS_PATH = WORK / "data" / "downloads"
    os.environ["HF_DATASETS_CACHE"] = str(WORK / "data" / "cache")
    datasets.disable_progress_bars()
    return written(f"data/{name}", data)


def text_file(data):
    path = written("text/a.txt", data)
    found = read_corpus(TextData(files=str(path), context=4), 0)
    assert len(found.training) + len(found.held_out) <= len(data)
    assert int(found.held_out_sizes.sum()) == len(found.held_out)


def prediction_rows(data):
    import argparse

    path = written("predict.jsonl", data)
    rows = list(rows_of(argparse.Namespace(question=None, texts=[], data=[str(path)])))
    assert all(isinstance(row, dict) for row in rows)


def trained_bpe(data):
    path = written("text/b.txt", data)
    found = read_corpus(TextData(files=str(path), context=4, tokenizer="byte-bpe", vocab_size=270), 0)
    assert int(found.held_out_sizes.sum()) + 1 >= 0


TEXTS = [b"Sort, then look at your neighbours.\n" * 20, "ünïcode \N{SNOWMAN}\n".encode() * 30, bytes(range(256)) * 3]
JSON_CONFIG = [json.dumps(settings()).encode(), (ROOT / "tests/fixtures/lm01.json").read_bytes()]
TRAX_GIN = lambda data: from_gin(parse_gin(data.decode("utf-8", "replace")))

READERS = {
    "pickle": Reader(pickle_seeds, read_pickle),
    "PyTorch file": Reader(torch_seeds, tensors_in("a.bin")),
    "safetensors": Reader(safetensors_seeds, tensors_in("a.safetensors")),
    "weights of Trax (.npy.gz)": Reader(
        lambda: [npy_gz(random_weights(AXIAL)), gzip.decompress(npy_gz(random_weights(AXIAL)))],
        lambda data: read_npy_stream(written("a.npy.gz", data)),
    ),
    "gin": Reader(gin_seeds, TRAX_GIN),
    "JSON of Trax": Reader(lambda: JSON_CONFIG, lambda data: from_json(json_of(data))),
    "conversion: config.json": Reader(lambda: file_of(sound_ours, "config.json"), converted("config.json", sound_ours)),
    "conversion: model.pkl": Reader(lambda: file_of(sound_nested, "model.pkl"), converted("model.pkl", sound_nested)),
    "conversion: tokenizer.json": Reader(
        lambda: file_of(sound_with_tokenizer, "tokenizer.json"), converted("tokenizer.json", sound_with_tokenizer)
    ),
    "SentencePiece model": Reader(sentencepiece_seeds, sentencepiece_file),
    "config.json": Reader(lambda: file_of(sound_ours, "config.json"), config_file),
    "tokenizer.json": Reader(lambda: tokenizer_seeds("tokenizer.json"), tokenizer_file("tokenizer.json")),
    "tokenizer_config.json": Reader(
        lambda: tokenizer_seeds("tokenizer_config.json"), tokenizer_file("tokenizer_config.json")
    ),
    "preprocessor_config.json": Reader(processor_seeds, processor_file),
    "recipe (YAML)": Reader(recipe_seeds, recipe_file),
    "model card": Reader(card_seeds, card),
    "image": Reader(image_seeds, image_file),
    "arrays of images (.npy, .npz)": Reader(array_seeds, array_file),
    "rows (.jsonl)": Reader(row_seeds, row_file),
    "rows (.csv)": Reader(lambda: table_seeds("csv"), table_file("csv")),
    "rows (.parquet)": Reader(lambda: table_seeds("parquet"), table_file("parquet")),
    "rows to predict (.jsonl)": Reader(row_seeds, prediction_rows),
    "text": Reader(lambda: TEXTS, text_file),
    "text for a vocabulary": Reader(lambda: TEXTS, trained_bpe),
}


def json_of(data):
    from hf_reformer.conversion.bounded import read_json

    return read_json(written("trax.json", data))
