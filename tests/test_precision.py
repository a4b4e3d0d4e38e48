"""Trainer and a plain loop in half precision: near float32, no further from it than ordinary autograd, learning.

`test_reversible.py` compares single steps over many depths; here it is what users call. Weights are large (std 0.3).
"""

import pytest
import torch
from helpers import build, gradients, tiny_config, tokens
from transformers import Trainer, TrainerCallback, TrainingArguments

import hf_reformer

LAYERS = ["strict_lsh", "strict_local", "lsh", "local"]
SIZES = {
    "hidden_size": 48, "axial_pos_embds_dim": [16, 32], "feed_forward_size": 96, "attention_head_size": 16,
    "axial_norm_std": 0.3, "hash_seed": 1,
}  # fmt: skip
STEPS = 12
ERROR = 0.2  # of the whole gradient, relative to float32's; most of it from tokens that rounding sends to other buckets
RATIO = 1.2  # and at most so many times that of ordinary autograd in the same precision


def model_of(reversible=True, **settings):
    return build(tiny_config(LAYERS, reversible=reversible, **SIZES, **settings), dtype=torch.float32).train()


class FirstGradients(TrainerCallback):
    def __init__(self):
        self.gradients = None

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients = gradients(model) if self.gradients is None else self.gradients


def trained(model, folder, **settings):
    """Losses, and the gradients of the first step, of a run over two rows, again and again."""
    rows = [{"input_ids": row, "labels": row} for row in tokens(model.config, 2, 48)] * STEPS
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=2, max_steps=STEPS, learning_rate=0.01, logging_steps=1,
        max_grad_norm=0, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        train_sampling_strategy="sequential", **settings,
    )  # fmt: skip
    seen = FirstGradients()
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[seen])
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], seen.gradients


def relative_error(actual, expected):
    assert actual.keys() == expected.keys() and all(gradient.isfinite().all() for gradient in actual.values())
    wrong = sum(float((actual[name].float() - gradient).square().sum()) for name, gradient in expected.items())
    return (wrong / sum(float(gradient.square().sum()) for gradient in expected.values())) ** 0.5


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return trained(model_of(), tmp_path_factory.mktemp("float32"))


PRECISIONS = {
    "bf16 autocast": (torch.float32, {"bf16": True}),
    "bf16 weights": (torch.bfloat16, {}),
    "bf16 weights and autocast": (torch.bfloat16, {"bf16": True}),
}


@pytest.mark.parametrize("dtype, settings", PRECISIONS.values(), ids=PRECISIONS)
def test_trainer(dtype, settings, exact, tmp_path):
    losses, ours = trained(model_of().to(dtype), tmp_path, **settings)
    ordinary = trained(model_of(reversible=False).to(dtype), tmp_path, **settings)[1]
    error = relative_error(ours, exact[1])
    assert 0 < error < ERROR and error <= RATIO * relative_error(ordinary, exact[1])
    assert all(gradient.dtype == dtype for gradient in ours.values())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_streams_stay_float32_with_half_precision_weights(dtype):
    model = model_of().to(dtype)
    out = model(tokens(model.config, 2, 48), output_hidden_states=True)
    assert {state.dtype for state in out.hidden_states} == {torch.float32}
    assert out.logits.dtype == dtype


def test_a_model_loaded_in_bf16_is_in_bf16(tmp_path):
    model_of().save_pretrained(tmp_path)
    model = hf_reformer.ReformerModelWithLMHead.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    input_ids = tokens(model.config, 2, 48)
    assert model(input_ids, labels=input_ids).loss.dtype == torch.float32


def test_fp16_autocast_with_loss_scaling(exact):
    """A plain loop, because Accelerate runs float32 when asked for fp16 on a CPU: scaled gradients are finite, unscaled ones
    near float32."""
    errors = []
    for reversible in (True, False):
        model = model_of(reversible)
        rows = tokens(model.config, 2, 48)
        optimiser, scaler = (
            torch.optim.AdamW(model.parameters(), lr=0.01),
            torch.amp.GradScaler("cpu", init_scale=2.0**12),
        )
        losses = []
        for step in range(STEPS):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = model(rows, labels=rows).loss
            scaler.scale(loss).backward()
            scaler.unscale_(optimiser)
            if step == 0:
                errors.append(relative_error(gradients(model), exact[1]))
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad()
            losses.append(float(loss.detach()))
        assert scaler.get_scale() == 2.0**12 and losses[-1] < 0.5 * losses[0]
    assert 0 < errors[0] < ERROR and errors[0] <= RATIO * errors[1]


def test_gradients_with_fp16_weights(exact):
    """Gradients only: AdamW's eps of 1e-8 is zero in fp16, whatever the model."""
    errors = []
    for reversible in (True, False):
        model = model_of(reversible).half()
        rows = tokens(model.config, 2, 48)
        (model(rows, labels=rows).loss * 2.0**10).backward()
        errors.append(relative_error({n: g.float() / 2.0**10 for n, g in gradients(model).items()}, exact[1]))
    assert 0 < errors[0] < ERROR and errors[0] <= RATIO * errors[1]
