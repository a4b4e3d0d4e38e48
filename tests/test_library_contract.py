"""What people do with any transformers model: Trainer, resizing, checkpointing, saving, the Auto classes, any length."""

import pytest
import torch
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
