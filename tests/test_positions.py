"""Models without positions: words alone enter, so that the same weights read inputs of any length."""

import pytest
import torch
from helpers import assert_close, build, tiny_config, tokens
from transformers import AutoModelForCausalLM

import hf_reformer
from hf_reformer import ReformerCache
from hf_reformer.conversion.converting import convert

KINDS = ["strict_local", "strict_lsh", "full", "lsh", "local", "full_shared_qk"]


def config_of(kinds=KINDS, **changes):
    changes = {
        "use_absolute_position_embeddings": False,
        "max_position_embeddings": 97,
        "num_buckets": [2, 4],
        **changes,
    }
    return tiny_config(kinds, **changes)


@pytest.mark.parametrize("table", [True, False])
def test_it_is_the_model_whose_positions_are_0(table):
    model = build(config_of(axial_pos_embds=table))
    other = build(config_of(axial_pos_embds=table, use_absolute_position_embeddings=True))
    missing, unexpected = other.load_state_dict(model.state_dict(), strict=False)
    assert unexpected == [] and missing and all("position_embeddings" in name for name in missing)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name in missing:
                parameter.zero_()
    ids = tokens(model.config, 2, 61)
    assert_close(model(ids).logits, other(ids).logits, 1e-12)


def test_the_cache_gives_what_the_forward_gives():
    model = build(config_of(["strict_local", "strict_lsh", "full"], use_cache=True))
    ids = tokens(model.config, 2, 53)
    expected, cache = model(ids, use_cache=False).logits, ReformerCache(model.config)
    found = [model(piece, past_key_values=cache).logits for piece in ids.split([20, 1, 1, 31], 1)]
    assert_close(torch.cat(found, 1), expected, 1e-10)


def test_the_same_weights_read_a_longer_input_and_the_end_depends_on_the_window_alone():
    """Of a local layer that sees one token back, the last of two layers knows three tokens, wherever they stand."""
    short = config_of(["strict_local"] * 2, local_attn_chunk_length=1, max_position_embeddings=16)
    long = config_of(["strict_local"] * 2, local_attn_chunk_length=1, max_position_embeddings=900)
    model, other = build(short), build(long)
    other.load_state_dict(model.state_dict())
    ids = tokens(long, 1, 900)
    assert_close(other(ids).logits[:, -1], model(ids[:, -3:]).logits[:, -1], 1e-12)
    with pytest.raises(ValueError, match=r"16.*`max_position_embeddings`"):
        model(ids)


def test_it_is_saved_and_says_so(tmp_path):
    model = build(config_of(["strict_local", "strict_lsh"]), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokens(model.config, 1, 40)
    assert_close(again.eval()(ids).logits, model(ids).logits, 1e-5)
    assert "no positions" in str(again) and not any("position_embeddings" in name for name in again.state_dict())
    with pytest.raises(ValueError, match="`use_absolute_position_embeddings` is 3"):
        hf_reformer.ReformerConfig(use_absolute_position_embeddings=3)


@pytest.mark.parametrize("target", ["trax", "transformers"])
def test_formats_that_have_positions_refuse_it(tmp_path, target):
    build(config_of(["local", "lsh"]), dtype=torch.float32).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="`use_absolute_position_embeddings` is False"):
        convert(tmp_path / "model", tmp_path / "output", to=target, tokenizer="none")
