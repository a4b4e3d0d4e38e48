"""Damaged and hostile checkpoints: each is refused with a ValueError, or converts whole; none crashes, hangs, fills memory
or leaves a half result. The corpus is converted in a process of its own, so that a crash is seen as one."""

import gzip
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import hf_reformer.conversion.pickle_reader as pickle_reader
import numpy as np
import pytest
import torch
from helpers import build, tiny_config
from hf_reformer.conversion import convert
from hf_reformer.conversion.npy_stream import read_npy_stream
from hf_reformer.conversion.pickle_reader import read_pickle
from trax_checkpoints import (
    AXIAL,
    FIXTURES,
    nest,
    npy_gz,
    random_weights,
    settings,
    write_config,
    write_flat,
    write_nested,
    write_newest,
)

WORKER = Path(__file__).parent / "damage_worker.py"
MAX_GROWTH = 300  # MiB, of a process that converts files of a few KiB
COMPLETE = {"README.md", "config.json", "model.safetensors"}


def run_corpus(corpus):
    """{case: (outcome, message, seconds, growth, files of the output)}; every case must have answered."""
    process = subprocess.run(
        [sys.executable, str(WORKER), str(corpus)], capture_output=True, text=True, timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    results = {line[0]: line[1:] for line in map(json.loads, process.stdout.splitlines())}
    unanswered = sorted(set(os.listdir(corpus)) - results.keys())
    assert not unanswered, f"{unanswered[0]} ended the process ({process.returncode}): {process.stderr[-2000:]}"
    return results


def assert_harmless(results, refused=False):
    for name, (kind, message, seconds, growth, files, left) in results.items():
        assert kind in ("ValueError",) if refused else kind in ("ValueError", "converted"), f"{name}: {kind} {message}"
        assert (files is not None and set(files) >= COMPLETE) if kind == "converted" else files is None, name
        assert growth < MAX_GROWTH and seconds < 15, f"{name}: {seconds:.1f} s, {growth:.0f} MiB"
        assert left == [], f"{name} left {left}"


# --- damage by chance -----------------------------------------------------------------------------------------------


def sound_sources(folder):
    """One small source per format: {name: (folder, file to damage)}."""
    weights, config = random_weights(AXIAL), settings()
    tree = nest(weights, (False, True), "head", 2)
    write_newest(folder / "npy", weights, config)
    write_flat(folder / "flat", weights, config)
    write_nested(folder / "nested", tree, config)
    (write_config(folder / "jax", lm01_config()) / "model.pkl.gz").write_bytes(
        (FIXTURES / "lm01.save_to_file.pkl.gz").read_bytes()
    )
    model = build(tiny_config(["local", "lsh"]), dtype=torch.float32)
    for name in ("safetensors", "zip", "legacy", "config"):
        model.save_pretrained(folder / name)
    for name in ("zip", "legacy"):
        (folder / name / "model.safetensors").unlink()
        torch.save(
            dict(model.state_dict()), folder / name / "pytorch_model.bin", _use_new_zipfile_serialization=name == "zip"
        )
    files = {"npy": "model.weights.npy.gz", "flat": "model.pkl.gz", "nested": "model.pkl", "jax": "model.pkl.gz"}
    files |= {"safetensors": "model.safetensors", "zip": "pytorch_model.bin", "legacy": "pytorch_model.bin"}
    files |= {"config": "config.json"}
    return {name: (folder / name, file) for name, file in files.items()}


def lm01_config():
    return json.loads((FIXTURES / "lm01.json").read_text()) | {"length": 32}


def damaged(data, compressed, chance):
    """Cut short, or with flipped bits; of gzipped data what is inside is damaged, for the checksum sees all else."""
    inside = compressed and chance.random() < 0.7
    data = bytearray(gzip.decompress(data) if inside else data)
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
    else:
        reach = chance.choice([64, 512, len(data)])  # headers are where damage matters most
        for _ in range(chance.choice([1, 1, 4, 32])):
            data[chance.randrange(min(reach, len(data)))] ^= 1 << chance.randrange(8)
    return gzip.compress(bytes(data)) if inside else bytes(data)


def write_damaged_corpus(corpus, folder, per_format, seed=0):
    chance = random.Random(seed)
    for name, (source, file) in sound_sources(folder).items():
        shutil.copytree(source, corpus / f"sound-{name}")
        for i in range(per_format):
            case = corpus / f"damaged-{name}-{i}"
            shutil.copytree(source, case)
            data = (source / file).read_bytes()
            (case / file).write_bytes(damaged(data, data[:2] == b"\x1f\x8b", chance))


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What became of both corpora, converted by one process: {kind: {case: answer}}."""
    folder = tmp_path_factory.mktemp("damage")
    write_damaged_corpus(folder / "corpus", folder / "sound", 16)
    write_hostile_corpus(folder / "corpus", tmp_path_factory.mktemp("work"))
    results = run_corpus(folder / "corpus")
    kinds = ("sound", "damaged", "hostile")
    return {kind: {name: x for name, x in results.items() if name.startswith(kind)} for kind in kinds}


def test_sound_sources_convert(answers):
    assert {answer[0] for answer in answers["sound"].values()} == {"converted"}


def test_cut_and_flipped_files(answers):
    assert_harmless(answers["damaged"])
    assert sum(answer[0] == "ValueError" for answer in answers["damaged"].values()) > 60  # it does reach the readers


@pytest.mark.slow
def test_many_cut_and_flipped_files(tmp_path):
    write_damaged_corpus(tmp_path / "corpus", tmp_path / "sound", 400, seed=1)
    assert_harmless(run_corpus(tmp_path / "corpus"))


# --- damage by intent -----------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_pickles():
    """Pickles that Python's own `pickle.load` would run, hang or drown in."""
    touch = Call(os.system, "touch /tmp/hf_reformer_was_here")
    doubling = "(t" + "".join(f"2\x86q{chr(i)}" for i in range(1, 60)) + "}q\x00(h\x3bK\x01u"
    yield "system", pickle.dumps({"flat_weights": touch}, 4)
    yield "system-protocol-0", pickle.dumps({"flat_weights": touch}, 0)
    yield "eval", pickle.dumps({"flat_weights": Call(eval, "1")}, 4)
    yield "getattr", pickle.dumps({"flat_weights": Call(getattr, "", "join")}, 2)
    yield "dotted-name", b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93."
    yield "build-on-dict", b"\x80\x04}}b."
    yield "huge-memo-index", b"\x80\x04]r\xff\xff\xff\x7f."
    yield "huge-bytes", b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x."
    yield "huge-frame", b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"]."
    yield "nested-tuple-as-key", b"\x80\x02" + b")" + b"2\x86" * 60 + b"}" + b"\x85" + b"]" + b"s."
    yield "hash-bomb", doubling.encode("latin-1") + b"."
    yield "deep", b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b"."
    yield "many-objects", b"\x80\x02(" + b"}" * 3_000_000 + b"l."
    yield "wide-tree", wide_tree()
    yield "cycle", b"\x80\x02}q\x00X\x0c\x00\x00\x00flat_weights]q\x01h\x01as."
    yield "extension", b"\x80\x02\x82\x01."
    yield "persistent", b"\x80\x02K\x01Q."
    yield "buffer", b"\x80\x05\x97."
    yield "no-stop", b"\x80\x02]"
    yield "empty", b""


def wide_tree():
    """A list that contains itself ten times per level, over 30 levels: 10^30 leaves in 700 bytes."""
    data = b"\x80\x02}X\x0c\x00\x00\x00flat_weights]q\x00"
    for level in range(30):
        data += b"](" + bytes([ord("h"), level]) * 10 + b"eq" + bytes([level + 1])
    return data + b"s."


def array_pickle(**changes):
    """A flat checkpoint with one array whose description is changed."""
    state = {"shape": (2, 3), "code": "f4", "data": bytes(24)} | changes
    array = _Described(state)
    return pickle.dumps({"flat_weights": [array]}, 4)


class _Described:
    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        s = self.state
        dtype = np.dtype(s["code"])
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, s["shape"], dtype, False, s["data"])


LYING_ARRAYS = {
    "array-huge-shape": {"shape": (2**40, 2**20)},
    "array-negative": {"shape": (-2, -3)},
    "array-float-shape": {"shape": (2.0, 3)},
    "array-too-short": {"data": bytes(20)},
    "array-too-long": {"data": bytes(28)},
    "array-objects": {"code": "O", "data": [None] * 6},
    "array-text": {"code": "U1"},
    "array-of-lists": {"data": [0.0] * 6},
    "array-many-dimensions": {"shape": (1,) * 64, "data": bytes(4)},
    "array-integers": {"code": "i4"},
    "array-void": {"code": "V4"},
}


def header(text, version=b"\x01\x00"):
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + size + text.encode("latin-1")


def hostile_streams():
    """Bodies of .npy.gz files."""
    fields = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"
    yield "npy-huge-shape", header(fields % ("<f4", "(1099511627776, 1048576)")) + bytes(64)
    yield "npy-long-number", header(fields % ("<f4", "(%s,)" % ("9" * 3000)))
    yield "npy-negative", header(fields % ("<f4", "(-1,)"))
    yield "npy-objects", header(fields % ("|O", "(1,)")) + pickle.dumps([os.system])
    yield "npy-code", header("{'descr': __import__('os').system('x'), 'fortran_order': False, 'shape': (1,), }")
    yield "npy-nested", header("(" * 3000)
    yield "npy-header-size", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{"
    yield "npy-version", header(fields % ("<f4", "()"), b"\x09\x00") + bytes(4)
    yield "npy-fields", header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }") + bytes(4)
    yield "npy-rubbish-behind", gzip.decompress(npy_gz(random_weights(AXIAL))) + b"more"
    yield "npy-short", gzip.decompress(npy_gz(random_weights(AXIAL)))[:-1]
    yield "npy-empty", b""


def bomb(megabytes, head=b""):
    """Zeros that shrink a thousandfold: one gzip member of 16 MiB, again and again."""
    return gzip.compress(head) + gzip.compress(bytes(2**24)) * (megabytes // 16)


def hostile_torch_files(folder):
    """Files called pytorch_model.bin."""
    model = build(tiny_config(["local"]), dtype=torch.float32)
    torch.save(dict(model.state_dict()) | {"x": Call(os.system, "touch /tmp/hf_reformer_was_here")}, folder / "call")
    yield "torch-call", (folder / "call").read_bytes()
    torch.save(dict(model.state_dict()), folder / "zip")
    for name, change in (("compressed", zipfile.ZIP_DEFLATED), ("member-bomb", None)):
        with zipfile.ZipFile(folder / "zip") as old, zipfile.ZipFile(folder / name, "w") as new:
            for member in old.infolist():
                new.writestr(member.filename, old.read(member), change or zipfile.ZIP_STORED)
            if change is None:
                new.writestr("archive/data/9", bytes(2**28), zipfile.ZIP_DEFLATED)
        yield f"torch-{name}", (folder / name).read_bytes()
    torch.save(model, folder / "module")
    yield "torch-module", (folder / "module").read_bytes()
    torch.save([1, 2], folder / "list")
    yield "torch-list", (folder / "list").read_bytes()
    yield "torch-plain-pickle", pickle.dumps({"x": Call(os.system, "touch /tmp/hf_reformer_was_here")})
    yield "torch-huge-storage", legacy_with_storage(2**40)


def legacy_with_storage(count):
    """The legacy layout, with a storage that is said to be huge."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    storage += b"\x8a\x08" + struct.pack("<q", count) + b"NtQ"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    )
    body = b"\x80\x02}X\x01\x00\x00\x00x" + tensor + b"s."
    return b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {})) + body + pickle.dumps(["0"], 2)


def write_hostile_corpus(corpus, work):
    def case(name, file, data, config=None):
        folder = write_config(corpus / f"hostile-{name}", settings() if config is None else config)
        (folder / file).write_bytes(data)
        return folder

    for name, data in hostile_pickles():
        case(f"pickle-{name}", "model.pkl.gz" if name == "system" else "model.pkl", data)
    for name, changes in LYING_ARRAYS.items():
        case(name, "model.pkl", array_pickle(**changes))
    for name, data in hostile_streams():
        case(name, "model.weights.npy.gz", gzip.compress(data))
    for name, data in hostile_torch_files(work):
        case(name, "pytorch_model.bin", data, tiny_config(["local"]).to_dict())
    head = header("{'descr': '<f4', 'fortran_order': False, 'shape': (67108864, 4), }")
    case("bomb-npy", "model.weights.npy.gz", bomb(1024, head))
    case("bomb-pickle", "model.pkl.gz", bomb(1024))
    case("shards-many", "model.pkl.gz", gzip.compress(pickle.dumps({"flat_weights": 10**12})))
    case("device", "ignored", b"")
    (corpus / "hostile-device/model.pkl.gz").symlink_to("/dev/zero")
    case("fifo", "ignored", b"")
    os.mkfifo(corpus / "hostile-fifo/model.pkl")
    weights = npy_gz(random_weights(AXIAL))
    for name, text in (("deep", "[" * 100_000), ("list", "[]"), ("types", '{"model": 3, "attention": 4}')):
        (case(f"json-{name}", "model.weights.npy.gz", weights) / "config.json").write_text(text)
    case("gin-deep", "model.weights.npy.gz", weights, "ReformerLM.n_layers = " + "(" * 50_000)


def test_hostile_files_are_refused(answers):
    assert_harmless(answers["hostile"], refused=True)
    assert not os.path.exists("/tmp/hf_reformer_was_here")


def test_a_refused_name_is_said(tmp_path):
    source = write_config(tmp_path / "source", settings())
    (source / "model.pkl").write_bytes(pickle.dumps({"weights": Call(os.system, "x")}))
    with pytest.raises(ValueError, match=r"names (posix|nt)\.system"):
        convert(source, tmp_path / "out")


def test_reading_a_pickle_imports_nothing(monkeypatch):
    """Not even the modules of the names that are allowed."""
    monkeypatch.setattr("builtins.__import__", lambda name, *_, **__: pytest.fail(f"imported {name}"))
    data = b"\x80\x04\x8c\x0btrax.shapes\x8c\nShapeDtype\x93)\x81."
    assert isinstance(read_pickle(data), pickle_reader.Inert)


@pytest.mark.parametrize("name", ["<f4", ">f4", "<f2", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_byte_and_memory_order(tmp_path, name, order):
    array = np.asarray(np.arange(6).reshape(2, 3), dtype=name, order=order)
    (tmp_path / "x.npy.gz").write_bytes(npy_gz([array]))
    pickled = read_pickle(pickle.dumps([array], 4))[0].to_tensor()
    for tensor in (read_npy_stream(tmp_path / "x.npy.gz")[0], pickled):
        assert tensor.tolist() == array.tolist()
        assert tensor.element_size() == array.itemsize
