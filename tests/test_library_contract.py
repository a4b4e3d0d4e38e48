"""What people do with any transformers model: Trainer, resizing, checkpointing, saving, the Auto classes, any length."""

import json

import pytest
import torch
import transformers
from helpers import build, tiny_config, tokens
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    Trainer,
    TrainingArguments,
)

import hf_reformer

KINDS = ["local", "lsh", "strict_local", "strict_lsh"]
AUTO = {
    AutoModel: "ReformerModel",
    AutoModelForTextEncoding: "ReformerModel",
    AutoModelForCausalLM: "ReformerModelWithLMHead",
    AutoModelForMaskedLM: "ReformerForMaskedLM",
    AutoModelForSequenceClassification: "ReformerForSequenceClassification",
    AutoModelForTokenClassification: "ReformerForTokenClassification",
    AutoModelForQuestionAnswering: "ReformerForQuestionAnswering",
}


@pytest.mark.parametrize(
    "head", ["ReformerModelWithLMHead", "ReformerForMaskedLM", "ReformerForSequenceClassification"]
)
def test_trainer_learns_a_constant(head, tmp_path):
    """Six steps lower the loss of every head on examples that are all alike."""
    config = tiny_config(KINDS, is_decoder=head == "ReformerModelWithLMHead", initializer_range=0.05)
    torch.manual_seed(0)
    model = getattr(hf_reformer, head)(config)
    row = tokens(config, 1, 23)[0]
    labels = torch.tensor(1) if head.endswith("SequenceClassification") else row
    examples = [{"input_ids": row, "labels": labels} for _ in range(24)]
    arguments = TrainingArguments(
        output_dir=tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=6, logging_steps=1,
        learning_rate=0.01, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=examples)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 1000])
def test_any_length_trains_and_evaluates(length):
    config = tiny_config(
        KINDS,
        local_attn_chunk_length=64,
        lsh_attn_chunk_length=64,
        axial_pos_shape=[32, 32],
        max_position_embeddings=1024,
    )
    model, input_ids = build(config, dtype=torch.float32), tokens(config, 1, length)
    assert model(input_ids).logits.shape == (1, length, 19)
    labels = None if length == 1 else input_ids  # a single token has no next one
    output = model.train()(input_ids, labels=labels)
    (output.logits.square().mean() if labels is None else output.loss).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.reformer.encoder.layers[0].feed_forward.dense.dense.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [11, 25])
def test_resized_embeddings_keep_what_they_knew(size):
    model = build(tiny_config(KINDS))
    input_ids = tokens(model.config, 2, 30).clamp(max=10)
    expected, bias = model(input_ids).logits, model.lm_head.bias.detach().clone()
    model.resize_token_embeddings(size)
    common = min(size, 19)
    assert model.config.vocab_size == size and model.lm_head.bias.shape == (size,)
    assert torch.equal(model.lm_head.bias[:common], bias[:common])
    torch.testing.assert_close(model(input_ids).logits[..., :common], expected[..., :common], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("reversible", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reversible):
    model = build(tiny_config(KINDS, reversible=reversible, hash_seed=1)).train()
    input_ids = tokens(model.config, 2, 30)
    grads = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(input_ids, labels=input_ids).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for expected, actual in zip(*grads, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("auto_class", AUTO, ids=lambda c: c.__name__)
def test_auto_classes_give_ours_and_a_checkpoint_comes_back(auto_class, tmp_path):
    cls = getattr(hf_reformer, AUTO[auto_class])
    model = build(tiny_config(KINDS, is_decoder=auto_class is AutoModelForCausalLM), cls, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is cls and (tmp_path / "model.safetensors").exists()
    input_ids = tokens(model.config, 2, 30)
    assert torch.equal(loaded(input_ids)[0], model(input_ids)[0])


def test_new_axial_positions_are_drawn_with_their_own_deviation():
    config = tiny_config(KINDS, axial_pos_shape=[100, 90], max_position_embeddings=9000, axial_norm_std=0.7)
    weights = hf_reformer.ReformerModel(config).embeddings.position_embeddings.weights
    assert 0.6 < float(torch.cat([w.detach().flatten() for w in weights]).std()) < 0.8


@pytest.mark.parametrize("watch", ["hook on a layer", "hook inside a layer", "output_hidden_states"])
def test_what_a_forward_without_gradients_shows_is_not_written_over(watch, monkeypatch):
    monkeypatch.setattr("hf_reformer.model.encoder.WORTH_REUSING", 1)
    model = build(tiny_config(["strict_local", "strict_lsh", "lsh"])).eval()
    input_ids, seen = tokens(model.config, 2, 41), []
    layers = model.reformer.encoder.layers
    with torch.no_grad():
        expected = model(input_ids, output_hidden_states=True).hidden_states[1:]
    if watch == "hook on a layer":
        for layer in layers:
            layer.register_forward_hook(lambda layer, inputs, outputs: seen.append(outputs[1]))
    elif watch == "hook inside a layer":
        for layer in layers[1:]:
            layer.attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        expected = expected[:-1]
    with torch.no_grad():
        outputs = model(input_ids, output_hidden_states=watch == "output_hidden_states")
    seen = outputs.hidden_states[1:] if watch == "output_hidden_states" else seen
    assert len(seen) == len(expected)
    for actual, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-6)


def test_memory_of_the_streams_is_used_again_without_gradients(monkeypatch):
    """Nobody watches, so that each layer writes into the streams it was given; the logits do not change."""
    model = build(tiny_config(["strict_local", "strict_lsh", "lsh"])).eval()
    input_ids = tokens(model.config, 2, 41)
    with torch.no_grad():
        expected = model(input_ids).logits
        monkeypatch.setattr("hf_reformer.model.encoder.WORTH_REUSING", 1)
        memory, kind = set(), type(model.reformer.encoder.layers[0])
        forward = kind.forward

        def watched(self, *arguments):
            result = forward(self, *arguments)
            memory.update(stream.data_ptr() for stream in result[:2])
            return result

        monkeypatch.setattr(kind, "forward", watched)
        assert torch.equal(model(input_ids).logits, expected)
    assert len(memory) == 2


STRICT = ["strict_local", "strict_lsh"]


def fresh(attn_layers, cls=hf_reformer.ReformerModel, **fields):
    return cls(
        hf_reformer.ReformerConfig(attn_layers=attn_layers, hidden_size=64, max_position_embeddings=2048, **fields)
    )


def deviations(model):
    """Of words, and of each axis of positions."""
    embeddings = model.get_input_embeddings().weight, *model.embeddings.position_embeddings.weights
    return [float(weight.detach().square().mean().sqrt()) for weight in embeddings]


@pytest.mark.parametrize("layers", [STRICT, ["full"], ["full_shared_qk"]], ids=str)
def test_words_and_positions_of_a_new_model_start_at_one_size(layers):
    words, *positions = deviations(fresh(layers))
    assert all(0.6 * words < size < 1.6 * words for size in positions)


@pytest.mark.parametrize("layers", [["lsh"], ["local"], [*STRICT, "lsh"]], ids=str)
def test_published_layer_types_start_as_published(layers):
    words, *positions = deviations(fresh(layers))
    assert 0.018 < words < 0.022 and all(0.8 < size < 1.2 for size in positions)


@pytest.mark.parametrize("start", ["balanced", "sinusoidal", "published"])
def test_the_start_is_a_field_and_is_saved(start, tmp_path):
    model = fresh(STRICT, embedding_init=start, initializer_range=0.07)
    words, *positions = deviations(model)
    wanted = {"balanced": (1, 1), "sinusoidal": (1, 0.5**0.5), "published": (0.07, 1)}[start]
    assert words == pytest.approx(wanted[0], rel=0.1) and positions == pytest.approx([wanted[1]] * 2, rel=0.15)
    model.save_pretrained(tmp_path)
    assert hf_reformer.ReformerConfig.from_pretrained(tmp_path).embedding_init == start
    assert deviations(hf_reformer.ReformerModel.from_pretrained(tmp_path)) == [words, *positions]


def test_a_given_spread_of_positions_is_kept():
    words, *positions = deviations(fresh(STRICT, axial_norm_std=0.3))
    assert words == pytest.approx(0.02, rel=0.1) and positions == pytest.approx([0.3] * 2, rel=0.15)


def test_sinusoids_tell_all_positions_apart():
    model = fresh(STRICT, embedding_init="sinusoidal")
    table = model.embeddings.position_embeddings.eval()(torch.arange(2048)[None])[0]
    distances = torch.cdist(table, table) + 1e3 * torch.eye(2048)
    assert distances.min() > 0.05


@pytest.mark.parametrize("axial", [True, False])
def test_learned_positions_start_as_words_do_too(axial):
    model = fresh(STRICT, axial_pos_embds=axial)
    positions = model.embeddings.position_embeddings(torch.arange(2048)[None]).detach()
    words = model.get_input_embeddings().weight.detach()
    assert 0.6 < float(positions.square().mean().sqrt() / words.square().mean().sqrt()) < 1.6


POOLED = {
    "causal": ({"is_decoder": True}, STRICT, "last"),
    "sees both sides": ({}, ["full", *STRICT], "mean"),
    "published": ({}, [*STRICT, "lsh"], "first"),
    "causal and published": ({"is_decoder": True}, ["local", "lsh"], "last"),
}


@pytest.mark.parametrize("case", POOLED)
def test_what_a_classifier_reads_by_default_and_keeps_when_saved(case, tmp_path):
    fields, layers, expected = POOLED[case]
    ahead = {} if fields else {"local_num_chunks_after": 1, "lsh_num_chunks_after": 1}
    model = fresh(layers, hf_reformer.ReformerForSequenceClassification, **ahead, **fields)
    model.save_pretrained(tmp_path)
    loaded = hf_reformer.ReformerForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.pooling == loaded.config.pooling == expected


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_classifiers_and_embeddings_read_real_tokens_only(pooling, side):
    config = tiny_config(["full", *STRICT], is_decoder=False, num_labels=3, pooling=pooling)
    config.local_num_chunks_after = config.lsh_num_chunks_after = 1
    model = build(config, hf_reformer.ReformerForSequenceClassification)
    input_ids, before = tokens(config, 1, 13), {"left": 7, "right": 0, "both": 4}[side]
    padded = torch.cat([tokens(config, 1, before, 1), input_ids, tokens(config, 1, 7 - before, 2)], 1)
    mask = torch.zeros(1, 20, dtype=torch.int64)
    mask[:, before : before + 13] = 1
    alone = model.reformer(input_ids).last_hidden_state[0]
    expected = {"first": alone[0], "last": alone[-1], "mean": alone.mean(0)}[pooling]
    pooled = hf_reformer.pool(model.reformer(padded, attention_mask=mask).last_hidden_state, mask, pooling)
    torch.testing.assert_close(pooled[0], expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[0], model.classifier(expected))


def test_a_classifier_made_from_a_causal_checkpoint_reads_more_than_the_first_byte(tmp_path):
    build(tiny_config(STRICT), dtype=torch.float32).save_pretrained(tmp_path)
    model = hf_reformer.ReformerForSequenceClassification.from_pretrained(tmp_path)
    input_ids = tokens(model.config, 2, 30)
    input_ids[:, 0] = 5
    assert not torch.allclose(*model.eval()(input_ids).logits)


@pytest.mark.parametrize(
    "bad", [{"pooling": "max"}, {"attention_mask": torch.ones(2, 4)}, {"attention_mask": [[1, 1, 1]]}]
)
def test_bad_arguments_of_pool(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}` is"):
        hf_reformer.pool(torch.zeros(2, 3, 5), **bad)


@pytest.mark.parametrize("length", [1, 997, 4096, 65_536, 1_000_000])
def test_one_line_builds_a_model_of_bytes(length):
    config = hf_reformer.ReformerConfig.for_bytes(length, "tiny")
    assert (config.maximum_length, config.vocab_size, config.eos_token_id, config.is_decoder) == (
        length,
        258,
        None,
        True,
    )
    assert not config.uses("local", "lsh")
    with torch.device("meta"):
        hf_reformer.ReformerModelWithLMHead(config)


def test_a_model_of_bytes_trains_and_generates():
    torch.manual_seed(0)
    model = hf_reformer.ReformerModelWithLMHead(hf_reformer.ReformerConfig.for_bytes(300, "tiny"))
    input_ids = tokens(model.config, 1, 70)
    assert model(input_ids, labels=input_ids).loss.isfinite()
    assert model.eval().generate(input_ids[:, :9], max_new_tokens=5, do_sample=False).shape == (1, 14)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_sizes_of_models_of_bytes_grow(size):
    order = ["tiny", "small", "base", "large"]
    with torch.device("meta"):
        counts = [
            hf_reformer.ReformerModel(
                hf_reformer.ReformerConfig.for_bytes(size=name, is_decoder=False)
            ).num_parameters()
            for name in order[: order.index(size) + 1]
        ]
    assert counts == sorted(counts)


@pytest.mark.parametrize(("name", "value"), [("size", "huge"), ("length", 0), ("length", 1.5)])
def test_bad_arguments_of_for_bytes(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is {value!r}, but must be"):
        hf_reformer.ReformerConfig.for_bytes(**{name: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"max_position_embeddings": 32_768},
        {"axial_pos_shape": [128, 256]},
        {"axial_pos_shape": [4, 8, 1024], "hidden_size": 31},
        {"max_position_embeddings": 32_768, "axial_pos_embds": False},
        {"max_position_embeddings": 32_768, "axial_pos_shape": [200, 200], "hidden_size": 37},
    ],
    ids=str,
)
@pytest.mark.parametrize("layers", [STRICT, ["local", "lsh"]], ids=str)
def test_sizes_of_positions_follow_from_those_that_are_given(layers, fields):
    config = hf_reformer.ReformerConfig(attn_layers=layers, **fields)
    with torch.device("meta"):
        hf_reformer.ReformerModel(config)
    assert config.maximum_length == 32_768


def test_configurations_of_transformers_load_unchanged():
    """Also one whose grid is smaller than its maximum (as in transformers' own tests), and one that fits no model."""
    for fields in ({}, {"axial_pos_shape": [4, 8], "max_position_embeddings": 512}, {"hidden_size": 37}):
        theirs = transformers.ReformerConfig(**fields).to_dict()
        ours = hf_reformer.ReformerConfig.from_dict(theirs).to_dict()
        assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.parametrize("auto_class", AUTO, ids=lambda c: c.__name__)
def test_configurations_of_transformers_class_give_our_models(auto_class):
    fields = tiny_config(["local", "lsh"], is_decoder=auto_class is AutoModelForCausalLM).to_dict()
    theirs = transformers.ReformerConfig(**{name: fields[name] for name in transformers.ReformerConfig().to_dict()})
    cls = getattr(hf_reformer, AUTO[auto_class])
    for model in (cls(theirs), auto_class.from_config(theirs)):
        assert type(model) is cls and type(model.config) is hf_reformer.ReformerConfig
        assert model.config is model.base_model.config


def test_a_configuration_of_another_model_is_refused():
    with pytest.raises(ValueError, match="is a BertConfig, but must be a hf_reformer.ReformerConfig"):
        hf_reformer.ReformerModel(transformers.BertConfig())


def test_outputs_hold_the_cache_under_all_its_names():
    model, input_ids = build(tiny_config(KINDS, use_cache=True)), tokens(tiny_config(KINDS), 1, 9)
    with torch.no_grad():
        for output in (model(input_ids), model.reformer(input_ids)):
            cache = output.past_buckets_states
            assert isinstance(cache, hf_reformer.ReformerCache)
            for name in ("past_buckets_states", "past_key_values", "cache"):
                assert name in output and output[name] is output.get(name) is getattr(output, name) is cache
            assert "last" not in output and output.get("last", 3) == 3 and output.to_tuple()[1] is cache
            assert list(output)[1] == "past_buckets_states"


def test_printing_a_model_tells_its_kind_of_attention():
    said = str(build(tiny_config(["strict_local", "strict_lsh", "strict_lsh"])))
    for part in ("strict_local x 1, strict_lsh x 2", "2 hash rounds", "lsh chunks of 6", "up to 221 tokens", "causal"):
        assert said.count(part) == 1, part


@pytest.mark.parametrize(("layers", "noted"), [(STRICT, True), (["full"], True), (["local", "lsh"], False)])
def test_a_saved_strict_model_names_the_package_that_reads_it(layers, noted, tmp_path):
    tiny_config(layers).save_pretrained(tmp_path)
    assert ("hf_reformer" in json.loads((tmp_path / "config.json").read_text()).get("_note", "")) == noted
    loaded = hf_reformer.ReformerConfig.from_pretrained(tmp_path)
    assert not hasattr(loaded, "_note") and loaded.attn_layers == layers


def test_an_answer_on_padding_gives_the_loss_of_transformers():
    """A row padded on the left whose label 0 says that there is no answer."""
    theirs = transformers.ReformerConfig(**{
        name: value for name, value in tiny_config(["local"], is_decoder=False, num_labels=2).to_dict().items()
        if name in transformers.ReformerConfig().to_dict()
    })  # fmt: skip
    ours = build(hf_reformer.ReformerConfig.of(theirs), hf_reformer.ReformerForQuestionAnswering)
    other = transformers.models.reformer.modeling_reformer.ReformerForQuestionAnswering(theirs).double().eval()
    other.load_state_dict(ours.state_dict())
    input_ids, mask = tokens(ours.config, 2, 12), torch.tensor([[0] * 4 + [1] * 8] * 2)
    spans = {"start_positions": torch.tensor([0, 2]), "end_positions": torch.tensor([0, 3])}
    losses = [model(input_ids, attention_mask=mask, **spans).loss for model in (ours, other)]
    torch.testing.assert_close(*losses, atol=1e-10, rtol=1e-10)
