"""Trax's encoder-decoder: the original's logits, loss and gradients, conversion in and out, and what cannot be converted."""

import gzip
import json

import numpy as np
import pytest
import torch
from helpers import assert_close, assert_same_tensors, build, tiny_config
from test_conversion_trax import arrays_of, load_file
from trax_checkpoints import FIXTURES, fixture_weights, write_newest

from hf_reformer import ReformerForConditionalGeneration
from hf_reformer.conversion import convert
from hf_reformer.conversion.trax_config import from_json
from hf_reformer.conversion.trax_encoder_decoder import architecture_of, entries_of

TOLERANCE = 1e-5
SETTINGS = json.loads((FIXTURES / "ed01.json").read_text())
TABLE = [(24, 12)]
AXIAL = [(1, 6, 1, 5), (1, 1, 4, 7)]


def weights(positions=TABLE, layers=(3, 1), target_vocabulary=None, d=12, d_ff=20, heads=2, key=6, value=6, vocab=17):
    """Weights of a `Reformer` of which nothing is 0 or 1, in checkpoint order."""
    attention = [(d,), (d,), *[(heads, d, key)] * 2, (heads, d, value), (heads, value, d)]
    dense = [(d,), (d,), (d, d_ff), (d_ff,), (d_ff, d), (d,)]
    shapes = [(vocab, d), *positions, *[*attention, *dense] * layers[0], (d,), (d,)]
    shapes += ([(target_vocabulary, d)] if target_vocabulary else []) + list(positions)
    shapes += [*attention, *attention, *dense] * layers[1] + [
        (d,),
        (d,),
        (d, target_vocabulary or vocab),
        (target_vocabulary or vocab,),
    ]
    generator = np.random.default_rng(0)
    return [(0.4 * generator.standard_normal(shape)).astype(np.float32) for shape in shapes]


def settings(**model):
    return {"kind": "Reformer", "model": {"ff_activation": "relu", "max_len": 24, **model}}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The oracle's model as ours, and its arrays."""
    folder = tmp_path_factory.mktemp("trax")
    convert(write_newest(folder / "source", fixture_weights("ed01"), SETTINGS), folder / "ours")
    return ReformerForConditionalGeneration.from_pretrained(folder / "ours").eval(), arrays_of("ed01")


def test_logits_loss_and_gradients_of_the_original(original):
    model, arrays = original
    source, target = arrays["source"].long(), arrays["target"].long()
    shifted = torch.nn.functional.pad(target, (1, 0))[:, :-1]  # padding is read too, as the original does
    output = model(
        source, (source != 0).long(), decoder_input_ids=shifted, labels=target.masked_fill(target == 0, -100)
    )
    assert_close(output.logits, arrays["logits"], TOLERANCE)
    assert_close(output.loss, arrays["loss"], TOLERANCE)
    output.loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    shapes = [tuple(array.shape) for array in fixture_weights("ed01")]
    entries = entries_of(architecture_of(shapes, from_json(SETTINGS), "the fixture"))
    ours = {entry.theirs: entry.to_theirs(found[entry.ours]) for entry in entries}
    theirs = {name.removeprefix("grad."): array for name, array in arrays.items() if name.startswith("grad.")}
    assert_same_tensors(ours, theirs, 2 * TOLERANCE)


@pytest.mark.parametrize("config", ["config.gin", "config.json"])
@pytest.mark.parametrize("target_vocabulary", [None, 23, 24])  # 24: as long as the table of positions
@pytest.mark.parametrize("positions", [TABLE, AXIAL], ids=["table", "axial"])
def test_to_trax_and_back_is_bit_for_bit(tmp_path, positions, target_vocabulary, config):
    given = weights(positions, target_vocabulary=target_vocabulary)
    convert(write_newest(tmp_path / "source", given, settings()), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "trax", to="trax")
    with gzip.open(tmp_path / "trax" / "model.weights.npy.gz") as stream:
        written = [np.load(stream) for _ in given]
        assert stream.read() == b""
    assert all(np.array_equal(a, b) for a, b in zip(written, given, strict=True))
    convert(tmp_path / "trax", tmp_path / "again", config=tmp_path / "trax" / config)
    again, ours = load_file(tmp_path / "again"), load_file(tmp_path / "ours")
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)
    fields = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("again", "ours")]
    assert fields[0] == fields[1]


def test_heads_whose_values_are_larger_than_their_keys(tmp_path):
    """The model is the same as one with room for both, whose scores are divided by the smaller size."""
    convert(write_newest(tmp_path / "source", weights(key=4, value=6), settings()), tmp_path / "ours")
    model = ReformerForConditionalGeneration.from_pretrained(tmp_path / "ours")
    query = model.get_decoder().encoder.layers[0].cross_attention.cross_attention.query.weight
    given = weights(key=4, value=6)[2 + 3 * 12 + 2 + 1 + 6 + 2]
    assert query.shape == (12, 12)
    expected = torch.from_numpy(given).transpose(1, 2) * (6 / 4) ** 0.5
    assert_close(query.detach().view(2, 6, 12)[:, :4], expected, 1e-6)
    assert float(query.view(2, 6, 12)[:, 4:].abs().max()) == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (settings() | {"attention": [{"type": "lsh"}]}, "must be ordinary"),
        (settings() | {"kind": "ConfigurableTerraformer"}, "ConfigurableTerraformer"),
        (settings() | {"kind": "ReformerLM", "attention": ["full"]}, "encoder-decoder"),
        ("train.model = @trax.models.Reformer2", "Reformer2"),
        ("train.model = @trax.models.Reformer", "binds no parameter of Reformer"),
    ],
)
def test_configurations_that_cannot_be_followed(tmp_path, config, message):
    source = write_newest(tmp_path / "source", weights(), config)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage", [lambda w: w[:-1], lambda w: [*w, w[-1]], lambda w: w[:20], lambda w: w[:2], lambda w: w[:40]]
)
def test_arrays_that_do_not_fit(tmp_path, damage):
    source = write_newest(tmp_path / "source", damage(weights()), settings())
    with pytest.raises(ValueError):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_layers": ["full", "strict_local"]}, "'full' ones only"),
        ({"attention_head_size": 6}, "attention_head_size"),
        ({"decoder_max_position_embeddings": 30, "axial_pos_embds": False}, "decoder_max_position_embeddings"),
    ],
)
def test_models_that_trax_has_not(tmp_path, changes, message):
    sizes = {"hidden_size": 15, "axial_pos_embds_dim": [5, 10], "hidden_act": "relu", "is_decoder": False}
    given = {"attn_layers": ["full", "full"], "is_encoder_decoder": True, **sizes, **changes}
    layers = given.pop("attn_layers")
    model = build(tiny_config(layers, **given), ReformerForConditionalGeneration, dtype=torch.float32)
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "ours", tmp_path / "trax", to="trax")
    with pytest.raises(ValueError, match="transformers has no encoder-decoder"):
        convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
    assert not (tmp_path / "trax").exists()
