"""Layer types "local" and "lsh" compute what transformers 5.23 computes: logits, losses and every gradient by name.

float32, relative tolerance 1e-5 of each tensor's largest entry. transformers drops the bias of its language-model head,
so that bias is zero here and its gradient is compared with the logits' own.
"""

import pytest
import torch
from helpers import assert_close, assert_same_tensors, build, cotangent, gradients, second_bias, tokens
from transformers.models.reformer import modeling_reformer as published
from transformers.models.reformer.configuration_reformer import ReformerConfig as PublishedConfig

import hf_reformer

TOLERANCE = 1e-5
LENGTH = 48  # in training, transformers takes nothing but multiples of both chunk lengths that fill the axial shape
LAYERS = {"local": ["local"] * 3, "lsh": ["lsh"] * 3, "mixed": ["local", "lsh", "lsh", "local"]}


def published_config(attn_layers, **changes):
    settings = {
        "attn_layers": attn_layers,
        "vocab_size": 19,
        "hidden_size": 14,
        "num_attention_heads": 3,
        "attention_head_size": 5,
        "feed_forward_size": 11,
        "axial_pos_shape": [8, 6],
        "axial_pos_embds_dim": [5, 9],
        "axial_norm_std": 0.5,
        "initializer_range": 0.3,
        "layer_norm_eps": 1e-6,
        "max_position_embeddings": LENGTH,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 6,
        "num_buckets": 4,
        "num_hashes": 2,
        "hash_seed": 5,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
        "use_cache": False,
    }
    return PublishedConfig(**{**settings, **changes})


def pair(config, head=None, seed=0):
    """The same weights in our class and in the one of the same name in transformers, float32."""
    head = head or ("ReformerModelWithLMHead" if config.is_decoder else "ReformerForMaskedLM")
    our_config = hf_reformer.ReformerConfig.from_dict(config.to_dict())
    ours = build(our_config, getattr(hf_reformer, head), seed=seed, dtype=torch.float32)
    if hasattr(ours, "lm_head"):
        torch.nn.init.zeros_(ours.lm_head.bias)
    theirs = getattr(published, head, None)(config).eval()
    theirs.load_state_dict(ours.state_dict() | second_bias(theirs))
    return ours, theirs


def some_padding(length):
    """The second example is shorter than the first, which has a hole."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, -max(1, length // 3) :] = 0
    mask[0, 7:9] = 0
    return mask


def both_logits_and_gradients(ours, theirs, mask):
    input_ids = tokens(ours.config, 2, LENGTH)
    results = []
    for model in (ours, theirs):
        logits = model.train()(input_ids, attention_mask=mask).logits
        (logits * cotangent(logits, mask)).sum().backward()
        grads = gradients(model)
        grads.pop("lm_head.decoder.bias", None)
        results.append((logits.detach(), grads))
    return results


@pytest.mark.parametrize("masked", [False, True], ids=["all real", "masked"])
@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("num_hashes", [1, 2, 4])
@pytest.mark.parametrize("layers", LAYERS)
def test_logits_and_every_gradient(layers, num_hashes, is_decoder, masked):
    after = 0 if is_decoder else 1
    config = published_config(
        LAYERS[layers], num_hashes=num_hashes, is_decoder=is_decoder, local_num_chunks_after=after,
        lsh_num_chunks_after=after,
    )  # fmt: skip
    mask = some_padding(LENGTH) if masked else None
    (logits, grads), (their_logits, their_grads) = both_logits_and_gradients(*pair(config), mask)
    real = torch.ones(2, LENGTH, dtype=torch.bool) if mask is None else mask.bool()
    assert_close(logits[real], their_logits[real], TOLERANCE)
    their_grads["lm_head.bias"] = cotangent(logits, mask).sum(dim=(0, 1))
    assert_same_tensors(grads, their_grads, TOLERANCE)


@pytest.mark.parametrize("num_buckets", [[2, 4], [4, 2, 6], [6]])
def test_factorised_buckets(num_buckets):
    config = published_config(LAYERS["mixed"], num_buckets=num_buckets, is_decoder=True)
    (logits, grads), (their_logits, their_grads) = both_logits_and_gradients(*pair(config), None)
    grads.pop("lm_head.bias")
    assert_close(logits, their_logits, TOLERANCE)
    assert_same_tensors(grads, their_grads, TOLERANCE)


@pytest.mark.parametrize("chunks", [0, 2, 3])
@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "bidirectional"])
def test_other_numbers_of_neighbouring_chunks(chunks, is_decoder):
    after = 0 if is_decoder else chunks
    config = published_config(
        LAYERS["mixed"], is_decoder=is_decoder, local_num_chunks_before=chunks, lsh_num_chunks_before=chunks,
        local_num_chunks_after=after, lsh_num_chunks_after=after,
    )  # fmt: skip
    (logits, grads), (their_logits, their_grads) = both_logits_and_gradients(*pair(config), None)
    grads.pop("lm_head.bias")
    assert_close(logits, their_logits, TOLERANCE)
    assert_same_tensors(grads, their_grads, TOLERANCE)


@pytest.mark.parametrize("chunks", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [7, 8, 12])
def test_more_neighbouring_chunks_than_there_are(length, chunks):
    """A ring of two or three chunks of 4 with up to four neighbours on each side."""
    config = published_config(
        LAYERS["local"], local_num_chunks_before=chunks, local_num_chunks_after=chunks, is_decoder=False
    )
    ours, theirs = pair(config)
    input_ids = tokens(config, 2, length)
    with torch.no_grad():
        assert_close(ours(input_ids).logits, theirs(input_ids).logits, TOLERANCE)


@pytest.mark.parametrize("masked", [False, True], ids=["all real", "masked"])
@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("length", [1, 3, 4, 5, 6, 7, 11, 12, 13, 23, 47])
def test_lengths_that_are_no_multiple_in_evaluation(length, layers, is_decoder, masked):
    config = published_config(LAYERS[layers], is_decoder=is_decoder)
    ours, theirs = pair(config)
    input_ids = tokens(config, 2, length)
    mask = some_padding(length) if masked and length > 1 else torch.ones(2, length, dtype=torch.long)
    given = {"attention_mask": mask} if masked else {}
    with torch.no_grad():
        logits, their_logits = ours(input_ids, **given).logits, theirs(input_ids, **given).logits
    assert logits.shape == (2, length, config.vocab_size)
    assert_close(logits[mask.bool()], their_logits[mask.bool()], TOLERANCE)


def test_unequal_chunk_lengths_pad_to_their_least_common_multiple():
    config = published_config(LAYERS["mixed"], is_decoder=False, local_attn_chunk_length=8, lsh_attn_chunk_length=6)
    ours, theirs = pair(config)
    for length in (7, 8, 9, 23, 25):
        input_ids = tokens(config, 2, length)
        with torch.no_grad():
            assert_close(ours(input_ids).logits, theirs(input_ids).logits, TOLERANCE)


def test_number_of_hash_rounds_given_to_forward():
    config = published_config(LAYERS["mixed"], is_decoder=True)
    ours, theirs = pair(config)
    input_ids = tokens(config, 2, LENGTH)
    with torch.no_grad():
        other = ours(input_ids, num_hashes=3).logits
        assert_close(other, theirs(input_ids, num_hashes=3).logits, TOLERANCE)
        assert (other - ours(input_ids).logits).abs().max() > 1e-2


def test_learned_positions():
    config = published_config(LAYERS["mixed"], is_decoder=True, axial_pos_embds=False, max_position_embeddings=53)
    (logits, grads), (their_logits, their_grads) = both_logits_and_gradients(*pair(config), None)
    grads.pop("lm_head.bias")
    assert_close(logits, their_logits, TOLERANCE)
    assert_same_tensors(grads, their_grads, TOLERANCE)


def test_inputs_embeds():
    config = published_config(LAYERS["mixed"], is_decoder=True)
    ours, theirs = pair(config)
    embeds = torch.randn(2, LENGTH, config.hidden_size)
    with torch.no_grad():
        assert_close(ours(inputs_embeds=embeds).logits, theirs(inputs_embeds=embeds).logits, TOLERANCE)


def test_feed_forward_in_chunks():
    config = published_config(LAYERS["mixed"], is_decoder=True, chunk_size_feed_forward=8)
    (logits, grads), (their_logits, their_grads) = both_logits_and_gradients(*pair(config), None)
    grads.pop("lm_head.bias")
    assert_close(logits, their_logits, TOLERANCE)
    assert_same_tensors(grads, their_grads, TOLERANCE)


@pytest.mark.parametrize("act", ["relu", "gelu_fast", "gelu_new", "silu"])
def test_activation_functions(act):
    config = published_config(LAYERS["local"], is_decoder=True, hidden_act=act)
    ours, theirs = pair(config)
    input_ids = tokens(config, 2, LENGTH)
    with torch.no_grad():
        assert_close(ours(input_ids).logits, theirs(input_ids).logits, TOLERANCE)


def test_hidden_states():
    config = published_config(LAYERS["mixed"], is_decoder=True)
    ours, theirs = pair(config, "ReformerModel")
    input_ids = tokens(config, 2, 41)
    with torch.no_grad():
        mine = ours(input_ids, output_hidden_states=True)
        other = theirs(input_ids, output_hidden_states=True)
    assert len(mine.hidden_states) == len(config.attn_layers) + 1
    for state, their_state in zip(mine.hidden_states, other.hidden_states, strict=True):
        assert state.shape == (2, 41, config.hidden_size)
        assert_close(state, their_state[:, :41], TOLERANCE)
    assert_close(mine.last_hidden_state, other.last_hidden_state, TOLERANCE)


@pytest.mark.parametrize("num_hashes, is_decoder", [(1, True), (1, False), (2, False)])
@pytest.mark.parametrize("length", [3, 24, LENGTH])
def test_attention_probabilities(length, num_hashes, is_decoder):
    """Not with several causal rounds, where theirs spreads a lonely token's probability over all sightings of itself."""
    config = published_config(LAYERS["mixed"], is_decoder=is_decoder, num_hashes=num_hashes)
    ours, theirs = pair(config)
    input_ids = tokens(config, 2, length)
    with torch.no_grad():
        mine = ours(input_ids, output_attentions=True).attentions
        other = theirs(input_ids, output_attentions=True).attentions
    assert len(mine) == len(other) == len(config.attn_layers)
    for attention, their_attention in zip(mine, other, strict=True):
        assert attention.shape == their_attention.shape
        assert_close(attention, their_attention, TOLERANCE)


@pytest.mark.parametrize("head", ["ReformerModelWithLMHead", "ReformerForMaskedLM"])
def test_language_model_loss(head):
    config = published_config(LAYERS["mixed"], is_decoder=head == "ReformerModelWithLMHead")
    input_ids = tokens(config, 2, LENGTH)
    labels = input_ids.masked_fill(some_padding(LENGTH) == 0, -100)
    losses = [model.train()(input_ids, labels=labels).loss for model in pair(config, head)]
    assert_close(losses[0], losses[1], TOLERANCE)


CLASSIFICATION = {
    "single_label_classification": (3, lambda: torch.tensor([2, 0])),
    "multi_label_classification": (3, lambda: torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
    "regression": (1, lambda: torch.tensor([0.7, -2.0])),
}


@pytest.mark.parametrize("problem_type", CLASSIFICATION)
def test_sequence_classification(problem_type):
    num_labels, labels = CLASSIFICATION[problem_type]
    config = published_config(
        LAYERS["mixed"], is_decoder=False, num_labels=num_labels, problem_type=problem_type, classifier_dropout=0.0
    )
    input_ids, results = tokens(config, 2, LENGTH), []
    for model in pair(config, "ReformerForSequenceClassification"):
        out = model.train()(input_ids, attention_mask=some_padding(LENGTH), labels=labels())
        out.loss.backward()
        results.append(({"logits": out.logits, "loss": out.loss}, gradients(model)))
    assert_same_tensors(results[0][0], results[1][0], TOLERANCE)
    assert_same_tensors(results[0][1], results[1][1], TOLERANCE)


def test_question_answering():
    config = published_config(LAYERS["mixed"], is_decoder=False, num_labels=2)
    input_ids, results = tokens(config, 2, LENGTH), []
    start, end = torch.tensor([3, 40]), torch.tensor([9, 60])  # 60 lies outside and is ignored
    for model in pair(config, "ReformerForQuestionAnswering"):
        out = model.train()(input_ids, start_positions=start, end_positions=end)
        out.loss.backward()
        outputs = {"start": out.start_logits, "end": out.end_logits, "loss": out.loss}
        results.append((outputs, gradients(model)))
    assert_same_tensors(results[0][0], results[1][0], TOLERANCE)
    for _, named in results:  # gradients of a softmax add up to 0: of these, only rounding is left
        assert named.pop("qa_outputs.bias").abs().max() < 1e-6
        assert named.pop("reformer.encoder.layer_norm.bias").abs().max() < 1e-6
    assert_same_tensors(results[0][1], results[1][1], TOLERANCE)


HEADS = {
    "ReformerModel": True,
    "ReformerModelWithLMHead": True,
    "ReformerForMaskedLM": False,
    "ReformerForSequenceClassification": False,
    "ReformerForQuestionAnswering": False,
}


@pytest.mark.parametrize("axial", [True, False], ids=["axial positions", "learned positions"])
@pytest.mark.parametrize("head", HEADS)
def test_our_checkpoint_loads_in_transformers(head, axial, tmp_path):
    config = published_config(LAYERS["mixed"], is_decoder=HEADS[head], axial_pos_embds=axial)
    ours, _ = pair(config, head)
    ours.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    theirs, report = getattr(published, head).from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == set(second_bias(theirs)), report  # it stays 0: see docs/guides/migration.md
    assert not report["unexpected_keys"] and not report["mismatched_keys"], report
    assert_same_tensors(dict(theirs.state_dict()), ours.state_dict() | second_bias(theirs), 0.0)


@pytest.mark.parametrize("axial", [True, False], ids=["axial positions", "learned positions"])
@pytest.mark.parametrize("head", HEADS)
def test_a_checkpoint_of_transformers_loads_here(head, axial, tmp_path):
    config = published_config(LAYERS["mixed"], is_decoder=HEADS[head], axial_pos_embds=axial)
    torch.manual_seed(7)
    theirs = getattr(published, head)(config)
    theirs.save_pretrained(tmp_path)
    ours, report = getattr(hf_reformer, head).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert_same_tensors(ours.state_dict() | second_bias(theirs), dict(theirs.state_dict()), 0.0)


def test_every_field_and_default_of_their_configuration_is_kept():
    theirs = PublishedConfig(attn_layers=["local", "lsh"], num_hashes=3, axial_pos_shape=[16, 8]).to_dict()
    ours = hf_reformer.ReformerConfig.from_dict(theirs).to_dict()
    assert {name: ours.get(name) for name in theirs} == theirs
    defaults, our_defaults = PublishedConfig().to_dict(), hf_reformer.ReformerConfig().to_dict()
    assert {name: our_defaults.get(name) for name in defaults} == defaults
