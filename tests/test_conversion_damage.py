"""Damaged and hostile checkpoints: each is refused with a ValueError, or converts whole; none crashes, hangs, fills memory
or leaves a half result. The corpus is converted in a process of its own, so that a crash is seen as one."""

import gzip
import io
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

import numpy as np
import pytest
import torch
from helpers import build, tiny_config
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

import hf_reformer.conversion.pickle_reader as pickle_reader
import hf_reformer.conversion.pickled_names as pickled_names
import hf_reformer.conversion.torch_files as torch_files
from hf_reformer.conversion import convert
from hf_reformer.conversion.npy_stream import read_npy_stream
from hf_reformer.conversion.pickle_reader import read_pickle

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
    folder, work = tmp_path_factory.mktemp("damage"), tmp_path_factory.mktemp("work")
    write_damaged_corpus(folder / "corpus", folder / "sound", 16)
    write_hostile_corpus(folder / "corpus", work)
    results = run_corpus(folder / "corpus")
    assert not (work / "was_here").exists()  # what a hostile file does when it is run
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


def hostile_pickles(touch):
    """Pickles that Python's own `pickle.load` would run, hang or drown in."""
    yield "system", pickle.dumps({"flat_weights": touch}, 4)
    yield "system-protocol-0", pickle.dumps({"flat_weights": touch}, 0)
    yield "eval", pickle.dumps({"flat_weights": Call(eval, "1")}, 4)
    yield "getattr", pickle.dumps({"flat_weights": Call(getattr, "", "join")}, 2)
    yield "dotted-name", b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93."
    yield "build-on-dict", b"\x80\x04}}b."
    yield "huge-memo-index", b"\x80\x04]r\xff\xff\xff\x7f."
    yield "huge-bytes", b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x."
    yield "huge-frame", b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"]."
    yield "copied-object", b"\x80\x02]2\x86."
    for kind, tree in (("tuples", DOUBLED_TUPLES), ("lists", DOUBLED_LISTS)):
        yield f"{kind}-as-key", b"\x80\x02}" + tree + b"Ns."
        yield f"{kind}-as-module", b"\x80\x02" + tree + b"X\x01\x00\x00\x00a\x93."
        yield f"{kind}-as-type", b"\x80\x02cnumpy\ndtype\n" + tree + b"\x85R."
        yield f"{kind}-as-shape", array_of_shape(tree)
    number = b"\x8b" + struct.pack("<i", 500_000) + b"\x7f" * 500_000
    yield "long-numbers-as-shape", array_of_shape(b"(" + number * 14 + b"t")
    yield "one-array-often", pickle.dumps({"flat_weights": [np.zeros(10**6, np.float32)] * 5000}, 4)
    yield "deep", b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b"."
    yield "many-objects", b"\x80\x02(" + b"}" * 3_000_000 + b"l."
    yield "wide-tree", wide_tree()
    yield "cycle", b"\x80\x02}q\x00X\x0c\x00\x00\x00flat_weights]q\x01h\x01as."
    yield "extension", b"\x80\x02\x82\x01."
    yield "persistent", b"\x80\x02K\x01Q."
    yield "buffer", b"\x80\x05\x97."
    yield "no-stop", b"\x80\x02]"
    yield "empty", b""


def doubled(build):
    """A container that holds another twice, and so on for 60 levels: 2^60 leaves to print or to hash."""
    levels = b"".join(b"0" + build(bytes([ord("h"), level]) * 2) + b"q" + bytes([level + 1]) for level in range(60))
    return b")q\x00" + levels


DOUBLED_TUPLES = doubled(lambda items: items + b"\x86")
DOUBLED_LISTS = doubled(lambda items: b"](" + items + b"e")


def array_of_shape(shape):
    """The opcodes of an array."""
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    return b"\x80\x02" + made + b"(K\x01" + shape + b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R\x89C\x00tb."


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


def hostile_torch_files(folder, touch):
    """Files called pytorch_model.bin."""
    model = build(tiny_config(["local"]), dtype=torch.float32)
    torch.save(dict(model.state_dict()) | {"x": touch}, folder / "call")
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
    torch.save({"x": torch.zeros(1).expand(2**40)}, folder / "expanded")
    yield "torch-expanded", (folder / "expanded").read_bytes()
    yield "torch-plain-pickle", pickle.dumps({"x": touch})
    yield "torch-huge-storage", legacy_with_storage(2**40)
    yield "torch-text", b"weights"
    yield "torch-empty", b""
    for name, data in {"huge-storage": legacy_with_storage(2**28), "call": legacy_with_call(folder, touch)}.items():
        yield f"torch-{name}-zip-behind", data + zip_of({"archive/data.pkl": pickle.dumps({}, 2)})


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


def legacy_with_call(folder, touch):
    torch.save({"x": touch}, folder / "legacy", _use_new_zipfile_serialization=False)
    return (folder / "legacy").read_bytes()


def zip_of(members):
    """The bytes of a zip archive: {name of a member: its bytes}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


HOSTILE_SETTINGS = {
    "rounds": {"num_hashes": 10**8},
    "buckets": {"num_buckets": 10**10},
    "factors": {"num_buckets": [2] * 60},
    "chunk": {"lsh_attn_chunk_length": 10**10},
    "local-chunk": {"local_attn_chunk_length": 10**10},
    "chunks-before": {"lsh_num_chunks_before": 10**8},
    "layers": {"attn_layers": ["local"] * 100_000, "num_hidden_layers": 100_000},
    "vocabulary": {"vocab_size": 2**60},
}


def write_hostile_settings(corpus):
    """Sound weights beside a configuration that claims memory or time without end."""
    model = build(tiny_config(["local", "lsh"]), dtype=torch.float32)
    for name, changes in HOSTILE_SETTINGS.items():
        folder = corpus / f"hostile-settings-{name}"
        model.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(model.config.to_dict() | changes))
    rows = settings([{"type": "local", "chunk_len": None}], 2**20, pos_type="sin-cos", max_len=2**20)
    sizes = {"d": 2**16, "d_ff": 1, "heads": 1, "key": 1, "value": 1, "vocab": 1}
    write_newest(corpus / "hostile-settings-positions", random_weights([], [False], **sizes), rows)


def write_hostile_corpus(corpus, work):
    touch = Call(os.system, f"touch {work}/was_here")

    def case(name, file, data, config=None):
        folder = write_config(corpus / f"hostile-{name}", settings() if config is None else config)
        (folder / file).write_bytes(data)
        return folder

    for name, data in hostile_pickles(touch):
        case(f"pickle-{name}", "model.pkl.gz" if name == "system" else "model.pkl", data)
    for name, changes in LYING_ARRAYS.items():
        case(name, "model.pkl", array_pickle(**changes))
    for name, data in hostile_streams():
        case(name, "model.weights.npy.gz", gzip.compress(data))
    for name, data in hostile_torch_files(work, touch):
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
    write_hostile_settings(corpus)
    case("gin-deep", "model.weights.npy.gz", weights, "ReformerLM.n_layers = " + "(" * 50_000)


def test_hostile_files_are_refused(answers):
    assert_harmless(answers["hostile"], refused=True)


def test_the_payload_of_the_hostile_files_does_run_where_pickles_are_trusted(tmp_path):
    pickle.loads(pickle.dumps(Call(os.system, f"touch {tmp_path}/was_here")))
    assert (tmp_path / "was_here").exists()


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


# --- what a pickle may name and call --------------------------------------------------------------------------------


def name_in_a_pickle(module, name, stacked):
    """The opcodes that put a name on the stack, in the form of protocol 4 or of the ones before."""
    if not stacked:
        return f"c{module}\n{name}\n".encode()
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"


FOREIGN_NAMES = [
    ("posix", "system"),
    ("numpy", "load"),  # a known module, another name
    ("os", "dtype"),  # a known name, another module
    ("numpy.core.multiarray", "fromfile"),
    ("trax.shapes", "History"),  # both known, but not together
    ("torch", "FloatStorage"),  # known in PyTorch's files only
    ("numpy", "dtype.__class__"),
    ("Numpy", "dtype"),
    ("numpy", "dtype "),
    ("", ""),
]


@pytest.mark.parametrize("stacked", [False, True], ids=["GLOBAL", "STACK_GLOBAL"])
@pytest.mark.parametrize(("module", "name"), FOREIGN_NAMES)
def test_a_name_is_known_only_together_with_its_module(module, name, stacked):
    with pytest.raises(ValueError, match=r"names .*\..*, which no checkpoint needs"):
        read_pickle(b"\x80\x04" + name_in_a_pickle(module, name, stacked) + b".")


@pytest.mark.parametrize("names", [pickled_names.NAMES, torch_files._names(10)], ids=["Trax", "PyTorch"])
def test_names_stand_for_nothing_from_elsewhere(names):
    """A name that is let in by mistake (`eval: eval`) would be an object of another module than these two."""
    for name, meaning in names.items():
        home = getattr(meaning, "__module__", None) or type(meaning).__module__
        assert home in ("hf_reformer.conversion.pickled_names", "hf_reformer.conversion.torch_files"), name


def test_the_names_are_those_of_checkpoints():
    """All of them: whoever adds one reads here what it lets in."""
    modules = {module for module, _ in pickled_names.NAMES}
    assert modules == {
        "numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric",
        "jax._src.array", "trax.shapes", "trax.history", "trax.supervised.history", "collections", "builtins",
        "__builtin__", "_codecs", "ml_dtypes",
    }  # fmt: skip
    of_python = {
        name for name in pickled_names.NAMES if name[0] in ("collections", "builtins", "__builtin__", "_codecs")
    }
    assert of_python == {
        ("collections", "defaultdict"), ("builtins", "list"), ("__builtin__", "list"), ("__builtin__", "bytes"),
        ("_codecs", "encode"),
    }  # fmt: skip


def test_even_a_known_name_is_called_only_if_it_is_one_of_the_functions_for_it():
    calls = []
    with pytest.raises(ValueError, match="calls something that is not to be called"):
        read_pickle(b"\x80\x02ca\nb\n)R.", {("a", "b"): lambda: calls.append(1)})
    assert not calls


@pytest.mark.parametrize(
    ("name", "opcodes", "message"),
    [
        ("numpy\ndtype", b")\x81.", "makes an object of a class"),  # NEWOBJ
        ("trax.shapes\nShapeDtype", b"]R.", "calls something"),  # REDUCE with a list for its arguments
        ("trax.shapes\nShapeDtype", b"K\x01R.", "calls something"),
        ("numpy\nndarray", b")R.", "calls something"),  # a name that is only passed on
        ("numpy\nndarray", b"}b.", "changes an object"),  # BUILD
        ("numpy.core.multiarray\n_reconstruct", b"c__builtin__\nlist\n\x85R.", "of another class than numpy.ndarray"),
        ("numpy\ndtype", b"X\x01\x00\x00\x00O\x85R.", "an array of type 'O'"),
    ],
)
def test_known_names_are_used_as_checkpoints_use_them(name, opcodes, message):
    with pytest.raises(ValueError, match=message):
        read_pickle(f"\x80\x02c{name}\n".encode("latin-1") + opcodes)


@pytest.mark.parametrize("opcodes", [b"]2", b"\x82\x01", b"P1\n", b"i\nb\n", b"(o", b"\x97", b"\x8f", b"))\x92"])
def test_opcodes_that_no_checkpoint_needs_are_refused(opcodes):
    """Copies, the extension registry, persistent names, old-style instances, buffers, sets, NEWOBJ_EX."""
    with pytest.raises(ValueError, match="the opcode [A-Z_0-9]+, which no checkpoint needs"):
        read_pickle(b"\x80\x02" + opcodes + b".")


def test_bytes_in_old_pickles_are_latin_1_or_refused():
    data = b"\x80\x02c_codecs\nencode\nX\x02\x00\x00\x00\xc3\xa9X\x04\x00\x00\x00utf8\x86R."
    with pytest.raises(ValueError, match="not written as Latin-1"):
        read_pickle(data)
    assert read_pickle(data.replace(b"X\x04\x00\x00\x00utf8", b"X\x06\x00\x00\x00latin1")) == b"\xe9"


def test_a_jax_array_is_made_from_a_numpy_array_or_refused():
    made = b"cnumpy.core.multiarray\nscalar\n(cnumpy\nndarray\nK\x00\x85C\x01bt)"
    with pytest.raises(ValueError, match="not made from a NumPy array"):
        read_pickle(b"\x80\x02cjax._src.array\n_reconstruct_array\n(" + made + b"tR.")


@pytest.fixture
def torch_load_is_not_reached(monkeypatch):
    """What `_look_through` refuses is refused by it alone."""
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: pytest.fail("torch.load was reached"))


ARCHIVE = zip_of({"archive/data.pkl": pickle.dumps({}, 2)})
CALL = pickle.dumps(Call(os.system, "x"), 2)
UNSEEN = {
    "storage": (legacy_with_storage(2**20), "1,048,576 elements, more than the file can hold"),
    "zip behind a legacy file": (legacy_with_storage(2**20) + ARCHIVE, "1,048,576 elements"),
    "zip behind a call": (CALL + ARCHIVE, r"names (posix|nt)\.system"),
    "another pickle": (pickle.dumps({}, 2), "not one that torch.save writes"),
    "text": (b"weights", "neither as a zip archive nor as a pickle"),
    "text before a zip": (b"weights" + ARCHIVE, "neither as a zip archive nor as a pickle"),
    "nothing": (b"", "neither as a zip archive nor as a pickle"),
    "archive before an archive": (zip_of({"archive/data.pkl": CALL}) + ARCHIVE, "something stands before them"),
    "a name in capitals": (zip_of({"archive/x": b"", "archive/DATA.PKL": CALL}), r"names (posix|nt)\.system"),
    "one name twice": (zip_of({"archive/data.pkl": pickle.dumps({}, 2), "archive/Data.pkl": CALL}), "the same name"),
    "a cut archive": (ARCHIVE[:-30], "not a zip file"),
}


@pytest.mark.usefixtures("torch_load_is_not_reached")
@pytest.mark.parametrize(("data", "message"), UNSEEN.values(), ids=UNSEEN)
def test_a_pytorch_file_is_looked_through_as_torch_reads_it(tmp_path, data, message):
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        torch_files.read_tensors(tmp_path / "pytorch_model.bin")


def test_opcodes_are_counted():
    with pytest.raises(ValueError, match="more than 1,000,000 opcodes"):
        read_pickle(b"\x80\x02(" + b"N" * 10**6 + b"t.")


@pytest.mark.parametrize("dropped", ["_look_through", "weights_only"])
def test_either_of_both_guards_alone_keeps_a_pytorch_file_from_running(tmp_path, monkeypatch, dropped):
    torch.save({"x": Call(os.system, f"touch {tmp_path}/was_here")}, tmp_path / "pytorch_model.bin")
    if dropped == "_look_through":
        monkeypatch.setattr(torch_files, "_look_through", lambda *arguments: None)
    else:
        load = torch.load
        monkeypatch.setattr(torch, "load", lambda path, **options: load(path, **options | {"weights_only": False}))
    with pytest.raises(ValueError, match="is refused"):
        torch_files.read_tensors(tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "was_here").exists()


def test_tensors_that_claim_more_than_their_file_holds_are_refused(tmp_path):
    torch.save({"x": torch.zeros(1).expand(2**40)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="its tensors claim 4,398,046,511,104"):
        torch_files.read_tensors(tmp_path / "pytorch_model.bin")
