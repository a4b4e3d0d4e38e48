"""`hf-reformer convert` of Trax language models: the original's logits, every generation of files, every kind of model."""

import gzip
import json
import pickletools
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from helpers import assert_close, inject_rotations
from trax_checkpoints import (
    AXIAL,
    FIXTURES,
    LOCAL,
    LSH,
    fixture_weights,
    nest,
    random_weights,
    settings,
    write_config,
    write_flat,
    write_nested,
    write_newest,
    write_shards,
)

import hf_reformer
from hf_reformer import cli
from hf_reformer.conversion import convert
from hf_reformer.conversion.gin import parse_gin
from hf_reformer.conversion.trax_files import read_trax
from hf_reformer.conversion.trax_language_model import automatic_buckets

TOLERANCE = 1e-5
SHARED = (False, True)


def converted(source, output, **arguments):
    convert(source, output, **arguments)
    return hf_reformer.ReformerModelWithLMHead.from_pretrained(output)


def logits_like_trax(model, arrays, monkeypatch):
    rotations = {int(name[3:].split("_")[0]): array for name, array in arrays.items() if name.endswith("_rotations")}
    inject_rotations(monkeypatch, rotations)
    with torch.no_grad():
        return model(F.pad(arrays["tokens"].long(), (1, -1))).logits


def arrays_of(case):
    with np.load(FIXTURES / f"{case}.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def load_file(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def assert_same_files(first, second):
    ours, theirs = load_file(first), load_file(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# --- the original's logits, through the command line ----------------------------------------------------------------


@pytest.mark.parametrize("case", ["lm01", "lm03", "lm04", "lm05", "lm08", "lm14"])
def test_logits_of_the_original(case, tmp_path, monkeypatch, capsys):
    arrays = arrays_of(case)
    config = json.loads((FIXTURES / f"{case}.json").read_text()) | {"length": arrays["tokens"].shape[1]}
    source = write_newest(tmp_path / "source", fixture_weights(case), config)
    arguments = ["--config", str(source / "config.json"), "--output", str(tmp_path / "out")]
    assert cli.main(["convert", str(source), *arguments]) == 0
    assert "weights sha256:" in capsys.readouterr().out
    model = hf_reformer.ReformerModelWithLMHead.from_pretrained(tmp_path / "out")
    assert_close(logits_like_trax(model, arrays, monkeypatch), arrays["logits"], TOLERANCE)


def test_log_probabilities_of_the_nested_pickle_of_2020(tmp_path, monkeypatch):
    source = write_config(tmp_path / "source", json.loads((FIXTURES / "leg02.json").read_text()))
    shutil.copy(FIXTURES / "leg02.model.pkl", source / "model.pkl")
    arrays = arrays_of("leg02")
    model = converted(source, tmp_path / "out")
    actual = logits_like_trax(model, arrays, monkeypatch).log_softmax(-1)
    assert_close(actual, arrays["log_probs"], TOLERANCE)


def test_files_written_by_jax_are_read():
    saved = read_trax(FIXTURES / "lm01.save_to_file.pkl.gz").arrays
    for array, expected in zip(saved, fixture_weights("lm01"), strict=True):
        assert np.array_equal(array.numpy(), expected)


def test_the_dictionary_beside_weights_of_a_real_training_run_is_read(tmp_path):
    config = json.loads((FIXTURES / "lm14.json").read_text()) | {"length": 64}
    source = write_newest(tmp_path / "source", fixture_weights("lm14"), config)
    shutil.copy(FIXTURES / "lm14.model.pkl.gz", source / "model.pkl.gz")
    assert "step 600" in convert(source, tmp_path / "out").origin


# --- generations ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def newest(tmp_path_factory):
    """A converted checkpoint of the newest generation, to compare with."""
    folder = tmp_path_factory.mktemp("newest")
    convert(write_newest(folder / "source", random_weights(AXIAL), settings()), folder / "out")
    return folder / "out"


@pytest.mark.parametrize("protocol", range(6))
def test_flat_weights_in_the_pickle(newest, tmp_path, protocol):
    source = write_flat(tmp_path / "source", random_weights(AXIAL), settings(), protocol)
    convert(source, tmp_path / "out")
    assert_same_files(tmp_path / "out", newest)


def test_shards(newest, tmp_path):
    convert(write_shards(tmp_path / "source", random_weights(AXIAL), settings()), tmp_path / "out")
    assert_same_files(tmp_path / "out", newest)


@pytest.mark.parametrize("chunked", [False, True], ids=["", "chunked feed-forward"])
@pytest.mark.parametrize("generation", ["head", "2020-05", "1.2.4"])
def test_nested_weights(newest, tmp_path, generation, chunked):
    tree = nest(random_weights(AXIAL), SHARED, generation, len(AXIAL), chunked)
    convert(write_nested(tmp_path / "source", tree, settings()), tmp_path / "out")
    assert_same_files(tmp_path / "out", newest)


@pytest.mark.parametrize("name", ["model_100.weights.npy.gz", "lowest_loss.weights.npy.gz"])
def test_a_single_file_of_any_name(newest, tmp_path, name):
    source = write_newest(tmp_path / "source", random_weights(AXIAL), settings())
    (source / "model.pkl.gz").unlink()
    (source / "model.weights.npy.gz").rename(source / name)
    convert(source / name, tmp_path / "out")
    convert(source, tmp_path / "found")
    assert_same_files(tmp_path / "out", newest)
    assert_same_files(tmp_path / "found", newest)


def as_bfloat16_bits(weights):
    return [torch.from_numpy(w).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16) for w in weights]


@pytest.mark.parametrize("generation", ["npy", "pickle", "shards"])
def test_bfloat16_stays_as_stored(newest, tmp_path, generation):
    bits = as_bfloat16_bits(random_weights(AXIAL))
    pairs = [(b, "bfloat16") for b in bits]
    write = {"npy": write_newest, "pickle": write_flat, "shards": write_shards}[generation]
    model = converted(write(tmp_path / "source", bits if generation == "npy" else pairs, settings()), tmp_path / "out")
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(newest).items()}
    actual = load_file(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


# --- kinds of models ------------------------------------------------------------------------------------------------


def embedding_of(model, length):
    """Position vectors alone."""
    with torch.no_grad():
        return model.reformer.embeddings.position_embeddings(torch.arange(length)[None])[0]


def test_positions_with_three_axes(tmp_path):
    weights = random_weights([(1, 2, 1, 1, 3), (1, 1, 4, 1, 4), (1, 1, 1, 6, 5)])
    model = converted(write_newest(tmp_path / "source", weights, settings()), tmp_path / "out")
    parts = [np.broadcast_to(w, (1, 2, 4, 6, w.shape[-1])).reshape(48, -1) for w in weights[1:4]]
    assert torch.equal(embedding_of(model, 48), torch.from_numpy(np.concatenate(parts, 1)))


def test_a_length_for_positions_that_are_stored_is_refused(tmp_path):
    source = write_newest(tmp_path / "source", random_weights(AXIAL), settings())
    with pytest.raises(ValueError, match="`max_length` is 5, but this checkpoint stores its positions"):
        convert(source, tmp_path / "out", max_length=5)


@pytest.mark.parametrize("shape", [(40, 12), (1, 40, 12)])
def test_a_learned_table_of_positions(tmp_path, shape):
    weights = random_weights([shape])
    config = settings(pos_axial_shape=[6, 8])  # as the shipped gin files say, although no axial weights exist
    model = converted(write_newest(tmp_path / "source", weights, config), tmp_path / "out")
    assert model.config.maximum_length == 40
    assert torch.equal(embedding_of(model, 40), torch.from_numpy(weights[1].reshape(40, 12)))


def test_sin_cos_positions_are_written_out(tmp_path):
    source = write_newest(tmp_path / "source", random_weights([]), settings(pos_type="sin-cos"))
    model = converted(source, tmp_path / "out")
    angle = np.arange(48)[:, None] * 10000.0 ** (-np.arange(0, 12, 2) / 12)
    expected = torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], 1)).float()
    assert_close(embedding_of(model, 48), expected, 1e-5)


def test_no_positions(tmp_path):
    source = write_newest(tmp_path / "source", random_weights([]), settings(pos_type="no"))
    assert not embedding_of(converted(source, tmp_path / "out"), 48).any()


def test_fixed_base_positions_are_written_out(tmp_path):
    weights = random_weights([(1, 3)] * 4 * 8 + [(1, 1, 24)], d=24)
    source = write_newest(tmp_path / "source", weights, settings(pos_type="fixed-base"))
    model = converted(source, tmp_path / "out")
    expected = np.zeros((48, 24), np.float64)
    for number, base in enumerate((11, 13, 14, 15)):
        for digit in range(8):
            values = np.arange(48) // base**digit % base
            expected[:, 3 * digit : 3 * digit + 3] += values[:, None] * weights[1 + 8 * number + digit]
    expected[0] += weights[33].reshape(-1)
    assert_close(embedding_of(model, 48).double(), torch.from_numpy(expected), 1e-6)


@pytest.mark.parametrize(
    ("length", "chunk", "buckets"),
    [(96, 16, 12), (64, 8, 16), (5, 8, 2), (8192, 128, 128), (12288, 128, [16, 12]), (65536, 256, [32, 16])],
)
def test_automatic_buckets(length, chunk, buckets):
    assert automatic_buckets(length, chunk) == buckets


def test_automatic_buckets_are_fixed_with_a_note(tmp_path):
    source = write_newest(tmp_path / "source", random_weights(AXIAL), settings([LOCAL, LSH | {"n_buckets": None}]))
    report = convert(source, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["num_buckets"] == 16
    assert any("16 is its choice for 48 tokens" in note for note in report.notes)


@pytest.mark.parametrize(("key", "value"), [(5, 3), (3, 5)])
@pytest.mark.parametrize("shared_qk", [False, True], ids=["separate", "shared"])
def test_values_of_another_size_than_keys(tmp_path, key, value, shared_qk):
    weights = random_weights([(40, 12)], shared=[shared_qk], key=key, value=value)
    attention = {"type": "local", "chunk_len": None, "share_qk": shared_qk}
    model = converted(write_newest(tmp_path / "source", weights, settings([attention])), tmp_path / "out")
    assert model.config.attn_layers == ["full_shared_qk" if shared_qk else "full"]
    x = np.random.default_rng(1).standard_normal((9, 12)).astype(np.float32)
    with torch.no_grad():
        layer = model.reformer.encoder.layers[0].attention
        vectors = layer.self_attention.project(torch.from_numpy(x)[None])
        actual = layer.output(layer.self_attention(vectors).hidden_states)[0]
    expected = attention_in_numpy(x, weights[4 : 7 if shared_qk else 8], shared_qk)
    assert_close(actual, torch.from_numpy(expected), 1e-4 if shared_qk else 1e-5)


def attention_in_numpy(x, weights, shared_qk):
    """Trax's unchunked causal attention, one head after the other."""
    out = np.zeros_like(x)
    for matrices in zip(*weights, strict=True):
        q, k, v = x @ matrices[0], x @ matrices[-3], x @ matrices[-2]
        k = q / np.sqrt((q**2).mean(-1, keepdims=True) + 1e-6) if shared_qk else k
        scores = q @ k.T / np.sqrt(q.shape[1]) - 1e9 * np.triu(np.ones((len(x), len(x))), 1)
        scores = scores - 1e5 * np.eye(len(x)) * shared_qk
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out += (p / p.sum(-1, keepdims=True)) @ v @ matrices[-1]
    return out.astype(np.float32)


# --- configurations -------------------------------------------------------------------------------------------------

GIN = """
import trax.layers
include 'other.gin'
attn_type = [
    @SelfAttention,  # nearby
    @trax.layers.LSHSelfAttention,
]
layers = 2
SelfAttention.chunk_len = 4
SelfAttention.n_chunks_before = 1
SelfAttention.attention_dropout = 0.25
# SelfAttention.chunk_len = 1000
LSHSelfAttention.chunk_len = 6
LSHSelfAttention.n_buckets = (4, 8)
LSHSelfAttention.n_hashes = 2
train.model = @trax.models.ReformerLM
train.steps_text = 'a = 1  # not a comment'
train.checkpoints_at = \\
    [1000, 5000,
     10000]
filter.len_map = {'inputs': (1, 15360)}
ReformerLM.attention_type = %attn_type
ReformerLM.dropout = 2e-1
ReformerLM.ff_activation = @trax.layers.Relu
ReformerLM.max_len = 48
ReformerLM.n_heads = 3
ReformerLM.n_layers = %layers
ReformerLM.axial_pos_shape = (6, 8)
ReformerLM.d_axial_pos_embs= (5, 7)  # sum 12
"""


def test_a_gin_file_beside_the_checkpoint_is_read(tmp_path):
    convert(write_newest(tmp_path / "gin", random_weights(AXIAL), GIN), tmp_path / "from_gin")
    attention = [LOCAL | {"attention_dropout": 0.25}, LSH | {"n_buckets": [4, 8]}]
    source = write_newest(tmp_path / "json", random_weights(AXIAL), settings(attention, dropout=0.2))
    convert(source, tmp_path / "from_json")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("from_gin", "from_json")]
    assert configs[0] == configs[1]
    assert configs[0]["num_buckets"] == [4, 8]
    assert configs[0]["layer_norm_eps"] == 1e-6


def test_a_byte_order_mark_hides_no_binding(tmp_path):
    gin = "\ufeffSelfAttention.chunk_len = 4\nLSHSelfAttention.chunk_len = 6\nLSHSelfAttention.n_buckets = 4\n"
    gin += "ReformerLM.attention_type = [@SelfAttention, @LSHSelfAttention]\n"
    convert(write_newest(tmp_path / "source", random_weights(AXIAL), gin), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["attn_layers"] == ["local", "lsh"]


def test_what_a_gin_file_includes_is_said_not_to_be_read(tmp_path):
    report = convert(write_newest(tmp_path / "source", random_weights(AXIAL), GIN), tmp_path / "out")
    assert "the configuration includes other.gin, which was not read" in report.notes


@pytest.mark.parametrize(
    ("gin", "message"),
    [
        ("a = 1\nSelfAttention:\n  chunk_len = 4\n", "line 2.*'SelfAttention:'"),
        ("a = 1\n\n# x\nSelfAttention.chunk_len 4\n", "line 4.*'SelfAttention.chunk_len 4'"),
        ("a = 1 b = 2\n", "line 1.*'b = 2'|line 1.*' b = 2'"),
        ("a = '''x\nReformerLM.d_model = 99\n'''\n", "line 1|`a`"),
        ("a = 2 * 3", "line 1"),
    ],
)
def test_no_line_of_a_gin_file_is_overlooked(gin, message):
    with pytest.raises(ValueError, match=message):
        parse_gin(gin)


def test_shapes_win_over_the_configuration(newest, tmp_path):
    wrong = settings([LSH, LOCAL], n_heads=7, n_layers=9, d_model=99, vocab_size=5, pos_axial_shape=[3, 3])
    report = convert(write_newest(tmp_path / "source", random_weights(AXIAL), wrong), tmp_path / "out")
    assert_same_files(tmp_path / "out", newest)
    assert json.loads((tmp_path / "out/config.json").read_text())["attn_layers"] == ["local", "lsh"]
    for name in ("n_heads", "n_layers", "d_model", "vocab_size", "pos_axial_shape", "block 0", "block 1"):
        assert any(name in note for note in report.notes), name


def test_default_activation_is_fast_gelu(tmp_path):
    config = settings()
    del config["model"]["ff_activation"]
    model = converted(write_newest(tmp_path / "source", random_weights(AXIAL), config), tmp_path / "out")
    assert model.config.hidden_act == "gelu_fast"


# --- errors ---------------------------------------------------------------------------------------------------------


def change(weights, **changes):
    """`remove=`, `insert=` and `reshape=` at some index."""
    if (index := changes.get("remove")) is not None:
        del weights[index]
    if (index := changes.get("append")) is not None:
        weights += [np.zeros((index,), np.float32)] * 2
    for index in changes.get("reshape", ()):
        weights[index] = np.concatenate([weights[index]] * 2)
    return weights


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"append": 3}, ["unused: array 30", "unused: array 31"]),
        ({"remove": 29}, ["missing: out.dense.b"]),
        ({"reshape": (9, 26)}, ["block0.ff.ln.scale has (12,)", "final.ln.scale has (24,)"]),
    ],
)
def test_everything_that_does_not_fit_is_listed(tmp_path, changes, mentions):
    weights = change(random_weights(AXIAL), **changes)
    source = write_newest(tmp_path / "source", weights, settings())
    with pytest.raises(ValueError) as error:
        convert(source, tmp_path / "out")
    for mention in mentions:
        assert mention in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (settings([LOCAL, LSH | {"n_buckets": 3}]), "num_buckets"),
        (settings([LOCAL, LSH | {"n_chunks_after": 1}]), "lsh_num_chunks_after"),
        (settings([LOCAL | {"share_qk": True}, LSH | {"type": "other"}]), "attention"),
        (settings([{"type": "local", "chunk_len": 4, "share_qk": True}] * 2), "separate queries|shared queries"),
        (settings([LOCAL]), "shared queries and keys"),
        (settings(ff_activation="maxout"), "ff_activation"),
        (settings() | {"kind": "Reformer"}, "no encoder and decoder"),
        ({"model": {}}, "`attention`"),
        ("ReformerLM.n_layers = os.system('x')", "n_layers"),
        ("ReformerLM.n_layers = %n", "%n"),
        ("a = %b\nb = %a\nReformerLM.n_layers = %a", "refers to itself"),
        ("ReformerLM.n_layers = " + "[" * 500, "nested|early"),
    ],
)
def test_configurations_that_cannot_be_followed(tmp_path, config, message):
    source = write_newest(tmp_path / "source", random_weights(AXIAL), config)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out")


def test_layers_of_one_kind_must_agree(tmp_path):
    weights = random_weights(AXIAL, shared=[False, True, True])
    source = write_newest(tmp_path / "source", weights, settings([LOCAL, LSH, LSH | {"n_hashes": 3}]))
    with pytest.raises(ValueError, match=r"n_hashes.*'2', '3'"):
        convert(source, tmp_path / "out")


def test_an_encoder_decoder_is_named(tmp_path):
    weights = random_weights([(40, 12)])
    weights[-4:-1] = [weights[-4][:12], weights[-3][:12], weights[-2][:12]]
    with pytest.raises(ValueError, match="encoder-decoder"):
        convert(write_newest(tmp_path / "source", weights, settings()), tmp_path / "out")


# --- and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["config.gin", "config.json"])
@pytest.mark.parametrize("positions", [AXIAL, [(48, 12)], [(1, 2, 1, 1, 3), (1, 1, 4, 1, 4), (1, 1, 1, 6, 5)]])
def test_to_trax_and_back_is_bit_for_bit(tmp_path, positions, config):
    weights = random_weights(positions, shared=[False, True, False, True])
    attention = [LOCAL, LSH, {"type": "full", "chunk_len": None}, LSH]
    convert(write_newest(tmp_path / "source", weights, settings(attention)), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "trax", to="trax")
    for array, expected in zip(read_trax(tmp_path / "trax/model").arrays, weights, strict=True):
        assert np.array_equal(array.numpy(), expected)
    convert(tmp_path / "trax", tmp_path / "again", config=tmp_path / "trax" / config)
    assert_same_files(tmp_path / "again", tmp_path / "ours")
    ours, again = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "again"))
    assert ours == again


def test_to_trax_refuses_what_trax_cannot_compute(tmp_path):
    config = hf_reformer.ReformerConfig(
        attn_layers=["strict_lsh"], is_decoder=True, hidden_size=12, axial_pos_embds=False, num_buckets=4
    )
    hf_reformer.ReformerModelWithLMHead(config).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="strict_lsh"):
        convert(tmp_path / "ours", tmp_path / "trax", to="trax")
    assert not (tmp_path / "trax").exists()


def test_the_written_pickle_names_one_class_of_trax(tmp_path):
    source = write_newest(tmp_path / "source", random_weights(AXIAL), settings())
    convert(source, tmp_path / "trax", to="trax")
    data = gzip.decompress((tmp_path / "trax/model.pkl.gz").read_bytes())
    strings = [argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)]
    assert "trax.shapes" in strings
    assert not {"hf_reformer", "conversion"} & {part for text in strings for part in text.split(".")}
