"""What one token looked at: the weights are those that its values were weighed with."""

import pytest
import torch
from helpers import assert_close, build, tiny_config, tokens

from hf_reformer import ReformerForConditionalGeneration, ReformerForSequenceClassification, attention_map
from hf_reformer.model.attention import ATTENTION_CLASSES

LENGTH = 61


@pytest.mark.parametrize("once", [True, False], ids=["duplicates count once", "as often as met"])
@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("position", [0, 7, 30, -1])
def test_weights_times_values_are_what_the_layer_gave(is_decoder, position, once):
    config = tiny_config(
        list(ATTENTION_CLASSES), is_decoder=is_decoder, num_hashes=3, allow_duplicate_attention=not once
    )
    model, given = build(config), []
    for layer in model.base_model.encoder.layers:
        layer.attention.self_attention.register_forward_hook(
            lambda module, args, out: given.append((args[0][2][0], out.hidden_states[0]))
        )
    maps = attention_map(model, tokens(config, 1, LENGTH), position)
    assert [found.kind for found in maps] == list(ATTENTION_CLASSES)
    for found, (values, attended) in zip(maps, given, strict=True):
        assert found.weights.shape == (config.num_attention_heads, 3 if "lsh" in found.kind else 1, LENGTH)
        assert_close(found.weights.sum((1, 2)), torch.ones(config.num_attention_heads, dtype=torch.float64), 1e-10)
        mixed = torch.einsum("hrl,lhd->hd", found.weights, values)
        assert_close(mixed.flatten(), attended[position % LENGTH], 1e-9)
        assert not is_decoder or not found.weights[..., position % LENGTH + 1 :].any()


def test_a_strict_query_looks_into_its_own_bucket_of_each_round():
    config = tiny_config(["strict_local", "strict_lsh"], num_hashes=4)
    model = build(config)
    local, hashed = attention_map(model, tokens(config, 1, LENGTH), 50, num_hashes=2)
    assert local.buckets is None and hashed.buckets.shape == hashed.weights.shape == (
        config.num_attention_heads,
        2,
        LENGTH,
    )
    own = hashed.buckets[..., 50:51]
    seen = hashed.weights > 0
    assert seen.any() and (hashed.buckets == own)[seen].all()
    assert not any(layer.attention.self_attention._forward_hooks for layer in model.base_model.encoder.layers)


def test_an_encoder_decoder_is_refused():
    model = build(tiny_config(["full"], is_encoder_decoder=True, is_decoder=False), ReformerForConditionalGeneration)
    with pytest.raises(ValueError, match="`model` is a ReformerForConditionalGeneration"):
        attention_map(model, torch.zeros(1, 5, dtype=torch.long))


def test_a_model_with_a_head():
    config = tiny_config(["strict_local", "strict_lsh"], is_decoder=False)
    assert len(attention_map(build(config, ReformerForSequenceClassification), tokens(config, 1, 9))) == 2


@pytest.mark.parametrize(
    ("ids", "position", "message"),
    [(torch.zeros(2, 5, dtype=torch.long), 0, r"`input_ids` has the shape \(2, 5\)"),
     ([[1, 2]], 0, r"`input_ids` has the shape \(\)"),
     (torch.zeros(1, 5, dtype=torch.long), 5, "`position` is 5, but must be from -5 to 4")],
)  # fmt: skip
def test_bad_input(ids, position, message):
    model = build(tiny_config(["strict_lsh"]))
    with pytest.raises(ValueError, match=message):
        attention_map(model, ids, position)
    assert not model.base_model.encoder.layers[0].attention.self_attention._forward_hooks
