"""Bad configurations and inputs: each raises a ValueError that names the argument, the value and what is allowed."""

import pytest
import torch
from helpers import build, tiny_config, tokens

import hf_reformer
from hf_reformer.model import losses

LOCAL, LSH, STRICT_LOCAL, STRICT_LSH = ["local"] * 3, ["lsh"] * 3, ["strict_local"] * 3, ["strict_lsh"] * 3


def assert_explains(error, name, value):
    message = str(error.value)
    assert name in message, f"{name!r} is not named in: {message}"
    assert str(value) in message, f"the value {value!r} is not shown in: {message}"
    assert "must" in message, f"what is allowed is not said in: {message}"


# attn_layers, other fields, the field that the message names, the value that it shows
BAD_CONFIGURATIONS = {
    "unknown layer type": (["local", "lhs"], {}, "attn_layers", "lhs"),
    "layer type of another case": (["Local"], {}, "attn_layers", "Local"),
    "layer type that is no string": ([3], {}, "attn_layers", 3),
    "no layers": ([], {}, "attn_layers", "[]"),
    "fewer layers than num_hidden_layers": (LOCAL, {"num_hidden_layers": 12}, "num_hidden_layers", 12),
    "odd number of buckets": (LSH, {"num_buckets": 5}, "num_buckets", 5),
    "no buckets": (LSH, {"num_buckets": 0}, "num_buckets", 0),
    "negative number of buckets": (STRICT_LSH, {"num_buckets": -4}, "num_buckets", -4),
    "odd bucket factor": (LSH, {"num_buckets": [4, 3]}, "num_buckets", "[4, 3]"),
    "empty list of bucket factors": (LSH, {"num_buckets": []}, "num_buckets", "[]"),
    "one bucket in a published layer": (LSH, {"num_buckets": 1}, "num_buckets", 1),
    "one bucket as a factor": (STRICT_LSH, {"num_buckets": [4, 1]}, "num_buckets", "[4, 1]"),
    "axial dim of zero": (LOCAL, {"axial_pos_embds_dim": [14, 0]}, "axial_pos_embds_dim", "(14, 0)"),
    "axial shape of zero": (LOCAL, {"axial_pos_shape": [17, 0]}, "axial_pos_shape", "(17, 0)"),
    "empty axial shape": (LOCAL, {"axial_pos_shape": [], "axial_pos_embds_dim": []}, "axial_pos_shape", "()"),
    "a boolean as number of buckets": (STRICT_LSH, {"num_buckets": True}, "num_buckets", True),
    "infinite epsilon": (LOCAL, {"layer_norm_eps": float("inf")}, "layer_norm_eps", "inf"),
    "infinite initial spread": (LOCAL, {"initializer_range": float("inf")}, "initializer_range", "inf"),
    "initial spread that is no number": (LOCAL, {"initializer_range": float("nan")}, "initializer_range", "nan"),
    "epsilon that is a boolean": (LOCAL, {"layer_norm_eps": True}, "layer_norm_eps", True),
    "a word for a boolean": (LOCAL, {"is_decoder": "no"}, "is_decoder", "no"),
    "a number for a boolean": (LOCAL, {"reversible": 3}, "reversible", 3),
    "none for a boolean": (LOCAL, {"allow_duplicate_attention": None}, "allow_duplicate_attention", None),
    "a word for whether to cache": (LOCAL, {"use_cache": "no"}, "use_cache", "no"),
    "a number for axial positions": (LOCAL, {"axial_pos_embds": 0}, "axial_pos_embds", 0),
    "misspelt field": (LSH, {"num_hash": 4}, "num_hash", "num_hashes"),
    "unknown pooling": (LOCAL, {"pooling": "max"}, "pooling", "max"),
    "unknown start": (LOCAL, {"embedding_init": "normal"}, "embedding_init", "normal"),
    "spread of positions that is not used": (STRICT_LSH, {"embedding_init": "balanced"}, "axial_norm_std", 0.5),
    "no hash rounds": (LSH, {"num_hashes": 0}, "num_hashes", 0),
    "more hash rounds than any memory holds": (LSH, {"num_hashes": 2**63}, "num_hashes", 2**63),
    "half a hash round": (LSH, {"num_hashes": 1.5}, "num_hashes", 1.5),
    "no chunk length": (LSH, {"lsh_attn_chunk_length": None}, "lsh_attn_chunk_length", None),
    "chunk length of zero": (LSH, {"lsh_attn_chunk_length": 0}, "lsh_attn_chunk_length", 0),
    "local chunk length of zero": (LOCAL, {"local_attn_chunk_length": 0}, "local_attn_chunk_length", 0),
    "negative chunk length": (STRICT_LOCAL, {"local_attn_chunk_length": -4}, "local_attn_chunk_length", -4),
    "negative chunks before": (LSH, {"lsh_num_chunks_before": -1}, "lsh_num_chunks_before", -1),
    "negative local chunks before": (LOCAL, {"local_num_chunks_before": -1}, "local_num_chunks_before", -1),
    "negative chunks after": (LOCAL, {"local_num_chunks_after": -2}, "local_num_chunks_after", -2),
    "strict_lsh without neighbours": (STRICT_LSH, {"lsh_num_chunks_before": 0}, "lsh_num_chunks_before", 0),
    "strict_local without neighbours": (STRICT_LOCAL, {"local_num_chunks_before": 0}, "local_num_chunks_before", 0),
    "causal strict layer looking ahead": (STRICT_LSH, {"lsh_num_chunks_after": 1}, "lsh_num_chunks_after", 1),
    "causal strict_local looking ahead": (STRICT_LOCAL, {"local_num_chunks_after": 1}, "local_num_chunks_after", 1),
    "dropout above 1": (LOCAL, {"hidden_dropout_prob": 1.5}, "hidden_dropout_prob", 1.5),
    "dropout of 1": (LOCAL, {"hidden_dropout_prob": 1.0}, "hidden_dropout_prob", 1.0),
    "negative dropout": (LOCAL, {"hidden_dropout_prob": -0.1}, "hidden_dropout_prob", -0.1),
    "local attention dropout above 1": (
        LOCAL, {"local_attention_probs_dropout_prob": 2}, "local_attention_probs_dropout_prob", 2,
    ),
    "lsh attention dropout above 1": (
        LSH, {"lsh_attention_probs_dropout_prob": 1.2}, "lsh_attention_probs_dropout_prob", 1.2,
    ),
    "classifier dropout above 1": (LOCAL, {"classifier_dropout": 7.0}, "classifier_dropout", 7.0),
    "unknown activation": (LOCAL, {"hidden_act": "gleu"}, "hidden_act", "gleu"),
    "no vocabulary": (LOCAL, {"vocab_size": 0}, "vocab_size", 0),
    "no heads": (LOCAL, {"num_attention_heads": 0}, "num_attention_heads", 0),
    "head size of zero": (LOCAL, {"attention_head_size": 0}, "attention_head_size", 0),
    "no hidden size": (LOCAL, {"hidden_size": 0, "axial_pos_embds": False}, "hidden_size", 0),
    "no feed-forward": (LOCAL, {"feed_forward_size": 0}, "feed_forward_size", 0),
    "no positions": (LOCAL, {"max_position_embeddings": 0}, "max_position_embeddings", 0),
    "negative feed-forward chunk": (LOCAL, {"chunk_size_feed_forward": -1}, "chunk_size_feed_forward", -1),
    "negative head chunk": (LOCAL, {"chunk_size_lm_head": -1}, "chunk_size_lm_head", -1),
    "negative hash seed": (LSH, {"hash_seed": -1}, "hash_seed", -1),
    "negative initial spread": (LOCAL, {"initializer_range": -0.02}, "initializer_range", -0.02),
    "negative epsilon": (LOCAL, {"layer_norm_eps": -1e-6}, "layer_norm_eps", -1e-6),
    "labels that are a list": (LOCAL, {"id2label": ["a", "b"]}, "id2label", "['a', 'b']"),
    "labels by words": (LOCAL, {"id2label": {"a": 0}}, "id2label", "{'a': 0}"),
    "names of labels that are text": (LOCAL, {"label2id": "ab"}, "label2id", "ab"),
    "a type that PyTorch has not": (LOCAL, {"dtype": "float33"}, "dtype", "float33"),
    "a type that is a function": (LOCAL, {"dtype": "zeros"}, "dtype", "zeros"),
    "several types": (LOCAL, {"dtype": ("float32", 3)}, "dtype", "('float32', 3)"),
    "an old name for no type": (LOCAL, {"torch_dtype": 3}, "torch_dtype", 3),
    "tied embeddings": (LOCAL, {"tie_word_embeddings": True}, "tie_word_embeddings", True),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CONFIGURATIONS)
def test_bad_configuration(case):
    attn_layers, fields, name, value = BAD_CONFIGURATIONS[case]
    with pytest.raises(ValueError) as error:
        tiny_config(attn_layers, **fields)
    assert_explains(error, name, value)


BAD_TOGETHER = {
    "axial dims not summing to hidden_size": (LOCAL, {"axial_pos_embds_dim": [5, 8]}, "axial_pos_embds_dim", "(5, 8)"),
    "axial dims fewer than axes": (LOCAL, {"axial_pos_embds_dim": [14]}, "axial_pos_embds_dim", "(14,)"),
    "fewer points than positions": (STRICT_LSH, {"max_position_embeddings": 222}, "axial_pos_shape", "(17, 13)"),
}


@pytest.mark.parametrize("case", BAD_TOGETHER)
def test_fields_that_contradict_each_other_are_refused_when_the_model_is_built(case):
    """Not before: transformers makes such configurations on the way to others."""
    attn_layers, fields, name, value = BAD_TOGETHER[case]
    config = tiny_config(attn_layers, **fields)
    with pytest.raises(ValueError) as error:
        hf_reformer.ReformerModel(config)
    assert_explains(error, name, value)


def test_layers_given_as_a_single_string():
    with pytest.raises(ValueError, match="attn_layers"):
        hf_reformer.ReformerConfig(attn_layers="local")


def test_a_field_of_the_wrong_type():
    with pytest.raises(ValueError, match="hidden_size"):
        hf_reformer.ReformerConfig(hidden_size="large")


def test_a_configuration_changed_to_something_bad_is_refused_by_the_model():
    config = tiny_config(LOCAL)
    with pytest.raises(ValueError, match="hidden_act"):
        config.hidden_act = "gleu"
        hf_reformer.ReformerModel(config)


UNUSED_FIELDS = {
    "null LSH fields in a local model": (LOCAL, dict.fromkeys(("lsh_attn_chunk_length", "lsh_num_chunks_before"))),
    "odd buckets in a local model": (STRICT_LOCAL, {"num_buckets": 5}),
    "one bucket in a strict_lsh model": (STRICT_LSH, {"num_buckets": 1}),
    "axial dims without axial positions": (LOCAL, {"axial_pos_embds": False, "axial_pos_embds_dim": [1, 2]}),
    "dropout of 0": (LOCAL, {"hidden_dropout_prob": 0}),
    "3 axes": (LOCAL, {"axial_pos_shape": [5, 7, 3], "axial_pos_embds_dim": [2, 3, 9]}),
    "no neighbours in a published layer": (LSH, {"lsh_num_chunks_before": 0}),
}


@pytest.mark.parametrize("case", UNUSED_FIELDS)
def test_configurations_that_are_odd_but_right_are_not_refused(case):
    attn_layers, fields = UNUSED_FIELDS[case]
    build(tiny_config(attn_layers, **fields))(tokens(tiny_config(LOCAL), 2, 9))


BAD_HEADS = {
    "language model that is no decoder": ("ReformerModelWithLMHead", {"is_decoder": False}, "is_decoder", False),
    "masked language model that is a decoder": ("ReformerForMaskedLM", {"is_decoder": True}, "is_decoder", True),
    "causal head, local layers looking ahead": (
        "ReformerModelWithLMHead", {"local_num_chunks_after": 1}, "local_num_chunks_after", 1,
    ),
    "causal head, LSH layers looking ahead": (
        "ReformerModelWithLMHead", {"lsh_num_chunks_after": 1}, "lsh_num_chunks_after", 1,
    ),
    "question answering without two labels": (
        "ReformerForQuestionAnswering", {"num_labels": 3, "is_decoder": False}, "num_labels", 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_HEADS)
def test_head_that_does_not_fit_the_configuration(case):
    head, fields, name, value = BAD_HEADS[case]
    with pytest.raises(ValueError) as error:
        getattr(hf_reformer, head)(tiny_config(["local", "lsh"], **fields))
    assert_explains(error, name, value)


LENGTH = 9  # of the inputs below; the model takes up to 221 tokens and has 19 of them


def ids(*shape):
    return torch.zeros(shape, dtype=torch.long)


def one_at(value, *shape):
    changed = ids(*shape)
    changed[-1, -1] = value
    return changed


BAD_INPUTS = {
    "neither ids nor embeddings": ({}, "input_ids", "neither"),
    "ids and embeddings": ({"input_ids": ids(2, 9), "inputs_embeds": torch.zeros(2, 9, 14)}, "inputs_embeds", "both"),
    "ids of one dimension": ({"input_ids": ids(9)}, "input_ids", "(9,)"),
    "ids of three dimensions": ({"input_ids": ids(2, 9, 1)}, "input_ids", "(2, 9, 1)"),
    "ids that are floats": ({"input_ids": torch.zeros(2, 9)}, "input_ids", "float32"),
    "an id beyond the vocabulary": ({"input_ids": one_at(19, 2, 9)}, "input_ids", 19),
    "a negative id": ({"input_ids": one_at(-1, 2, 9)}, "input_ids", -1),
    "no tokens": ({"input_ids": ids(2, 0)}, "input_ids", "0"),
    "more tokens than positions": ({"input_ids": ids(2, 222)}, "input_ids", 222),
    "more embeddings than positions": ({"inputs_embeds": torch.zeros(2, 222, 14)}, "inputs_embeds", 222),
    "embeddings of another width": ({"inputs_embeds": torch.zeros(2, 9, 13)}, "inputs_embeds", 13),
    "embeddings of two dimensions": ({"inputs_embeds": torch.zeros(9, 14)}, "inputs_embeds", "(9, 14)"),
    "positions of another length": ({"input_ids": ids(2, 9), "position_ids": ids(2, 8)}, "position_ids", "(2, 8)"),
    "positions of another batch": ({"input_ids": ids(2, 9), "position_ids": ids(3, 9)}, "position_ids", "(3, 9)"),
    "too few positions": ({"input_ids": ids(2, 9), "position_ids": ids(8)}, "position_ids", "8"),
    "a position too far": ({"input_ids": ids(2, 9), "position_ids": one_at(221, 2, 9)}, "position_ids", 221),
    "a negative position": ({"input_ids": ids(2, 9), "position_ids": one_at(-1, 2, 9)}, "position_ids", -1),
    "mask of another length": ({"input_ids": ids(2, 9), "attention_mask": ids(2, 10)}, "attention_mask", "(2, 10)"),
    "mask of another batch": ({"input_ids": ids(2, 9), "attention_mask": ids(1, 9)}, "attention_mask", "(1, 9)"),
    "mask of four dimensions": (
        {"input_ids": ids(2, 9), "attention_mask": torch.ones(2, 1, 9, 9)}, "attention_mask", "(2, 1, 9, 9)",
    ),
    "additive mask": (
        {"input_ids": ids(2, 9), "attention_mask": -1e9 * torch.ones(2, 9)}, "attention_mask", "-1000000000.0",
    ),
    "labels of another length": ({"input_ids": ids(2, 9), "labels": ids(2, 8)}, "labels", "(2, 8)"),
    "labels of another batch": ({"input_ids": ids(2, 9), "labels": ids(1, 9)}, "labels", "(1, 9)"),
    "labels of one dimension": ({"input_ids": ids(2, 9), "labels": ids(18)}, "labels", "(18,)"),
    "a label beyond the vocabulary": ({"input_ids": ids(2, 9), "labels": one_at(19, 2, 9)}, "labels", 19),
    "a negative label": ({"input_ids": ids(2, 9), "labels": one_at(-2, 2, 9)}, "labels", -2),
    "labels that are floats": ({"input_ids": ids(2, 9), "labels": torch.zeros(2, 9)}, "labels", "float32"),
    "no hash rounds": ({"input_ids": ids(2, 9), "num_hashes": 0}, "num_hashes", 0),
    "negative hash rounds": ({"input_ids": ids(2, 9), "num_hashes": -2}, "num_hashes", -2),
    "more hash rounds than any memory holds": ({"input_ids": ids(2, 9), "num_hashes": 2**63}, "num_hashes", 2**63),
    "half a hash round": ({"input_ids": ids(2, 9), "num_hashes": 2.5}, "num_hashes", 2.5),
    "ids that are a list": ({"input_ids": [[1, 2]]}, "input_ids", "list"),
    "ids that are an array": ({"input_ids": ids(2, 9).numpy()}, "input_ids", "ndarray"),
    "ids that are booleans": ({"input_ids": ids(2, 9).bool()}, "input_ids", "bool"),
    "embeddings that are a list": ({"inputs_embeds": [[[0.0] * 14]]}, "inputs_embeds", "list"),
    "embeddings that are integers": ({"inputs_embeds": ids(2, 9, 14)}, "inputs_embeds", "int64"),
    "a mask that is a list": ({"input_ids": ids(1, 2), "attention_mask": [[1, 1]]}, "attention_mask", "list"),
    "positions that are a list": ({"input_ids": ids(1, 2), "position_ids": [[0, 1]]}, "position_ids", "list"),
    "positions that go back": (
        {"input_ids": ids(2, 9), "position_ids": torch.tensor([[0, 1, 2, 3, 4, 1, 2, 3, 4]])}, "position_ids", "4 back to 1",
    ),
    "labels that are a list": ({"input_ids": ids(1, 2), "labels": [[1, 1]]}, "labels", "list"),
    "a misspelt argument": ({"input_ids": ids(2, 9), "attention_maks": ids(2, 9)}, "attention_maks", "attention_mask"),
    "an argument that is none": ({"input_ids": ids(2, 9), "segments": 3}, "segments", "position_ids"),
}  # fmt: skip


@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "masked"])
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_of_a_language_model(case, is_decoder):
    inputs, name, value = BAD_INPUTS[case]
    model = build(tiny_config(["local", "lsh", "strict_lsh"], is_decoder=is_decoder), dtype=torch.float32)
    with pytest.raises(ValueError) as error:
        model(**inputs)
    assert_explains(error, name, value)


@pytest.mark.parametrize("value", [-1, 1.5, "x", True, None, torch.tensor([0.5])])
def test_logits_to_keep_that_are_none(value):
    model = build(tiny_config(LOCAL), dtype=torch.float32)
    with pytest.raises(ValueError) as error:
        model(input_ids=ids(2, 9), logits_to_keep=value)
    assert_explains(error, "logits_to_keep", "")


@pytest.mark.parametrize(
    "kept", [0, 1, 9, 20, torch.tensor([3, 5]), torch.tensor([[3], [5]], dtype=torch.int32)], ids=str
)
def test_logits_to_keep_that_are_right(kept):
    model = build(tiny_config(LOCAL), dtype=torch.float32)
    logits = model(input_ids=ids(2, 9)).logits
    if torch.is_tensor(kept):
        expected = logits[torch.arange(2)[:, None], kept.long()]
    else:
        expected = logits[:, -kept:]
    torch.testing.assert_close(model(input_ids=ids(2, 9), logits_to_keep=kept).logits, expected)


WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32)


@pytest.mark.parametrize("dtype", WHOLE, ids=str)
@pytest.mark.parametrize("head", ["ReformerModelWithLMHead", "ReformerForMaskedLM", "ReformerForTokenClassification"])
def test_tokens_labels_and_positions_of_any_integer_type(head, dtype):
    config = tiny_config(LOCAL, is_decoder=head == "ReformerModelWithLMHead", num_labels=19)
    model, input_ids = build(config, getattr(hf_reformer, head)), tokens(config, 2, 9)
    positions = torch.arange(9)[None]
    expected = model(input_ids, labels=input_ids, position_ids=positions).loss
    for name in ("input_ids", "labels", "position_ids"):
        inputs = {"input_ids": input_ids, "labels": input_ids, "position_ids": positions}
        assert torch.equal(model(**{**inputs, name: inputs[name].to(dtype)}).loss, expected), name


def test_unsigned_labels_that_look_like_an_ignored_one_count():
    """-100 as uint8 is 156, a byte like others."""
    config = tiny_config(LOCAL, is_decoder=False, vocab_size=258)
    model, input_ids = build(config), tokens(config, 2, 9)
    labels = torch.full((2, 9), 156)
    expected = model(input_ids, labels=labels).loss
    assert expected > 0 and torch.equal(model(input_ids, labels=labels.to(torch.uint8)).loss, expected)


def test_classes_and_spans_of_any_integer_type():
    config = tiny_config(LOCAL, is_decoder=False, num_labels=3)
    model, input_ids = build(config, hf_reformer.ReformerForSequenceClassification), tokens(config, 2, 9)
    expected = model(input_ids, labels=torch.tensor([2, 1])).loss
    assert all(torch.equal(model(input_ids, labels=torch.tensor([2, 1]).to(dtype)).loss, expected) for dtype in WHOLE)
    config = tiny_config(LOCAL, is_decoder=False, num_labels=2)
    model, span = build(config, hf_reformer.ReformerForQuestionAnswering), torch.tensor([2, 5])
    expected = model(input_ids, start_positions=span, end_positions=span).loss
    for dtype in WHOLE:
        small = span.to(dtype)
        assert torch.equal(model(input_ids, start_positions=small, end_positions=small).loss, expected)


NO_LABELS = {
    "ReformerModelWithLMHead": {"labels": torch.full((2, 9), -100)},
    "ReformerForMaskedLM": {"labels": torch.full((2, 9), -100)},
    "ReformerForTokenClassification": {"labels": torch.full((2, 9), -100)},
    "ReformerForSequenceClassification": {"labels": torch.full((2,), -100)},
    "ReformerForQuestionAnswering": {
        "start_positions": torch.tensor([9, 40]),
        "end_positions": torch.tensor([-100, 9]),
    },
}


@pytest.mark.parametrize("head", NO_LABELS)
def test_a_loss_over_no_label_is_zero_and_said_once(head, caplog):
    losses.logger.warning_once.cache_clear()
    config = tiny_config(LOCAL, is_decoder=head == "ReformerModelWithLMHead", num_labels=2)
    model = build(config, getattr(hf_reformer, head), dtype=torch.float32).train()
    with caplog.at_level("WARNING"):
        for _ in range(2):
            loss = model(tokens(config, 2, 9), **NO_LABELS[head]).loss
            loss.backward()
    assert loss == 0 and all(bool((p.grad == 0).all()) for p in model.parameters() if p.grad is not None)
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "no label" in caplog.text


def test_no_items_in_a_batch_of_accumulated_gradients():
    model, input_ids = build(tiny_config(LOCAL), dtype=torch.float32), ids(2, 9)
    for none in (0, torch.tensor(0)):
        assert model(input_ids, labels=torch.full((2, 9), -100), num_items_in_batch=none).loss == 0


def test_keywords_that_libraries_pass_are_not_refused():
    """transformers' pipelines, generate, Trainer and collators, peft, tokenizers with segments."""
    passed = {
        "return_dict": True, "use_cache": False, "output_attentions": False, "output_hidden_states": False,
        "token_type_ids": ids(2, 9), "cache_position": torch.arange(9), "num_items_in_batch": 18, "is_causal": True,
        "output_router_logits": False, "head_mask": None,
    }  # fmt: skip
    for head in ("ReformerModel", *NO_LABELS):
        config = tiny_config(LOCAL, is_decoder=head == "ReformerModelWithLMHead", num_labels=2)
        build(config, getattr(hf_reformer, head), dtype=torch.float32)(input_ids=ids(2, 9), **passed)


@pytest.mark.parametrize("head", NO_LABELS)
def test_a_misspelt_argument_of_any_head(head):
    config = tiny_config(LOCAL, is_decoder=head == "ReformerModelWithLMHead", num_labels=2)
    model = build(config, getattr(hf_reformer, head), dtype=torch.float32)
    with pytest.raises(ValueError, match="`input_embeds` is given, but must be an argument of .*`inputs_embeds`"):
        model(input_ids=ids(2, 9), input_embeds=torch.zeros(2, 9, 14))


def test_a_start_in_front_of_the_text_is_refused():
    model = build(tiny_config(LOCAL, is_decoder=False, num_labels=2), hf_reformer.ReformerForQuestionAnswering)
    with pytest.raises(ValueError, match="`start_positions` holds -5, but must"):
        model(ids(1, 9), start_positions=torch.tensor([-5]), end_positions=torch.tensor([3]))


def test_positions_of_padding_may_be_anything():
    """`generate` gives padding on the left the position 1, in front of 0."""
    model = build(tiny_config(STRICT_LSH), dtype=torch.float32)
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    model(input_ids=ids(1, 5), attention_mask=mask, position_ids=torch.tensor([[1, 1, 0, 1, 2]]))


def test_too_many_tokens_are_counted_once_and_the_remedy_is_named():
    with pytest.raises(ValueError) as error:
        build(tiny_config(LOCAL), dtype=torch.float32)(input_ids=ids(1, 222))
    assert str(error.value).count("222") == 1 and str(error.value).count("221") == 2
    assert "cut them" in str(error.value) and "max_position_embeddings" in str(error.value)


def test_unknown_fields_of_a_file_are_kept(caplog):
    fields = {**tiny_config(LOCAL).to_dict(), "finetuned_by": "somebody", "num_hash": 4}
    with caplog.at_level("WARNING"):
        config = hf_reformer.ReformerConfig.from_dict(fields)
    assert config.finetuned_by == "somebody" and config.num_hash == 4
    assert [record.message for record in caplog.records if "finetuned" in record.message] == []
    assert "num_hashes" in caplog.text


BAD_LABELS = {
    "one label for two sequences": ("ReformerForSequenceClassification", {"labels": ids(1)}, "labels", "(1,)"),
    "a label for each token": ("ReformerForSequenceClassification", {"labels": ids(2, 9)}, "labels", "(2, 9)"),
    "a class that does not exist": ("ReformerForSequenceClassification", {"labels": ids(2) + 3}, "labels", 3),
    "a token class that does not exist": ("ReformerForTokenClassification", {"labels": one_at(3, 2, 9)}, "labels", 3),
    "token labels of another length": ("ReformerForTokenClassification", {"labels": ids(2, 8)}, "labels", "(2, 8)"),
    "start positions of another batch": (
        "ReformerForQuestionAnswering", {"start_positions": ids(3), "end_positions": ids(2)}, "start_positions", "(3,)",
    ),
    "end positions of another batch": (
        "ReformerForQuestionAnswering", {"start_positions": ids(2), "end_positions": ids(3)}, "end_positions", "(3,)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_of_other_heads(case):
    head, labels, name, value = BAD_LABELS[case]
    num_labels = 2 if head == "ReformerForQuestionAnswering" else 3
    config = tiny_config(LOCAL, is_decoder=False, num_labels=num_labels)
    model = build(config, getattr(hf_reformer, head), dtype=torch.float32)
    with pytest.raises(ValueError) as error:
        model(input_ids=ids(2, LENGTH), **labels)
    assert_explains(error, name, value)


def test_a_forward_writes_nothing_into_the_configuration():
    config = tiny_config(["local", "lsh", "strict_lsh"], num_buckets=None, is_decoder=False, num_labels=3)
    for head in ("ReformerForMaskedLM", "ReformerForSequenceClassification", "ReformerForTokenClassification"):
        model = build(config, getattr(hf_reformer, head), dtype=torch.float32)
        before = model.config.to_dict()
        labels = ids(2) if head == "ReformerForSequenceClassification" else ids(2, 61)
        model.train()(input_ids=ids(2, 61), labels=labels)
        assert model.config.to_dict() == before


@pytest.mark.parametrize("number", ["4", -1, float("nan"), True, torch.tensor([1, 2]), torch.tensor(True)], ids=str)
def test_a_number_of_items_that_is_none(number):
    model = build(tiny_config(LOCAL), dtype=torch.float32)
    with pytest.raises(ValueError, match="num_items_in_batch"):
        model(ids(2, 9), labels=ids(2, 9), num_items_in_batch=number)


@pytest.mark.parametrize("number", [18, 18.0, torch.tensor(18), torch.tensor([18.0])], ids=str)
def test_a_number_of_items_gives_one_loss(number):
    model = build(tiny_config(LOCAL), dtype=torch.float32)
    found = model(ids(2, 9), labels=ids(2, 9), num_items_in_batch=number).loss
    assert found.shape == ()
    torch.testing.assert_close(found, model(ids(2, 9), labels=ids(2, 9)).loss * 16 / 18)
