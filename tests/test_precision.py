"""Trainer and a plain loop in half precision: near float32, no further from it than ordinary autograd, learning.

`test_reversible.py` compares single steps over many depths; here it is what users call. Weights are large (std 0.3).
"""

import pytest
import torch
from helpers import build, cotangent, gradients, tiny_config, tokens
from torch.utils._python_dispatch import TorchDispatchMode
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


# --- attention in half precision --------------------------------------------------------------------------------------

CHUNKED = ["local", "lsh", "strict_local", "strict_lsh"]


@pytest.fixture
def half_products(monkeypatch):
    """Products in half precision, whatever this CPU has instructions for."""
    monkeypatch.setattr("hf_reformer.model.attention_blocks.product_type", lambda v: v.dtype)


class Products(TorchDispatchMode):
    """Types of the factors of all batched products, and of what is exponentiated."""

    def __init__(self):
        super().__init__()
        self.factors, self.exponents = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name == "bmm":
            self.factors |= {args[0].dtype, args[1].dtype} - {torch.float64}  # of hashing
        elif name in ("exp2", "exp2_", "logaddexp2", "log2"):
            self.exponents.add(args[0].dtype)
        return function(*args, **(kwargs or {}))


def attention_of(kind, dtype, **changes):
    """A layer's attention over vectors (2, 61, 3, 16), which are numbers of half precision: outputs and gradients."""
    config = tiny_config([kind], **SIZES, num_hashes=3, **changes)
    module = build(config).reformer.encoder.layers[0].attention.self_attention
    generator = torch.Generator().manual_seed(3)
    vectors = [torch.randn(2, 61, 3, 16, generator=generator).to(torch.bfloat16) for _ in range(3)]
    given = [x.to(dtype).requires_grad_() for x in vectors]
    q, k, v = (given[0], None, given[2]) if module.shared else given
    rotations = module.sample_rotations(3, q.device, torch.float64)
    with Products() as products:
        out = module.over_all((q, k, v), rotations).hidden_states
        (out * cotangent(out)).sum().backward()
    return products, {"out": out, **{str(i): x.grad for i, x in enumerate(given) if x.grad is not None}}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", CHUNKED)
def test_attention_multiplies_in_half_precision_and_adds_up_in_float32(kind, implementation, half_products):
    """At most 8 times as far from float64 as one rounding of each number."""
    exact = attention_of(kind, torch.float64)[1]
    products, half = attention_of(kind, torch.bfloat16, attn_implementation=implementation)
    assert products.factors == ({torch.bfloat16} if implementation == "eager" else set())
    assert products.exponents <= {torch.float32}
    for name, expected in exact.items():
        rounded = expected.to(torch.bfloat16).double() - expected
        error = half[name].double() - expected
        assert half[name].dtype == torch.bfloat16
        assert float(error.norm() / rounded.norm()) < 8, name


def test_a_cpu_without_the_instructions_multiplies_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    products, _ = attention_of("strict_lsh", torch.bfloat16)
    assert products.factors == {torch.float32}


def half_model(kinds):
    return build(tiny_config(kinds, **SIZES), dtype=torch.bfloat16)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["strict_local", "strict_lsh"])
def test_strict_layers_are_exactly_causal_and_blind_to_padding_in_half_precision(kind, half_products):
    model = half_model([kind] * 3)
    ids = tokens(model.config, 2, 53)
    logits = model(ids).logits
    assert logits.dtype == torch.bfloat16
    changed = ids.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % model.config.vocab_size
    assert torch.equal(model(changed).logits[:, :40], logits[:, :40])
    assert not torch.equal(model(changed).logits[:, 40:], logits[:, 40:])
    mask = torch.ones_like(ids)
    mask[:, 45:] = 0
    padded = model(ids, attention_mask=mask).logits[:, :45]
    other = ids.masked_fill(mask == 0, 1)
    assert torch.equal(model(other, attention_mask=mask).logits[:, :45], padded)


@torch.no_grad()
@pytest.mark.parametrize(
    "kinds", [["strict_local", "strict_lsh"] * 2, ["local", "lsh"] * 2], ids=["strict", "published"]
)
def test_cached_decoding_in_half_precision_is_the_forward_up_to_rounding_and_its_cache_half_as_large(
    kinds, half_products
):
    model = half_model(kinds)
    ids = tokens(model.config, 2, 47)
    wide = build(tiny_config(kinds, **SIZES), dtype=torch.float32)
    caches = [hf_reformer.ReformerCache(model.config) for _ in range(2)]
    pieces = [ids[:, :30], *ids[:, 30:].split(1, 1)]
    cached, exact = (
        torch.cat([m(piece, past_key_values=cache).logits.double() for piece in pieces], 1)
        for m, cache in zip((model, wide), caches, strict=True)
    )
    full = model(ids).logits.double()
    error = (cached - exact).norm() / exact.norm()
    assert error < 1.5 * (full - exact).norm() / exact.norm() + 1e-3
    assert (cached - full).norm() / full.norm() < 0.1
    for half, single in zip(*(cache.layers for cache in caches), strict=True):
        assert half.keys.dtype == half.values.dtype == torch.bfloat16
        assert half.keys.nbytes * 2 == single.keys.nbytes
