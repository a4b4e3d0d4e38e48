"""Gradients in training mode, dropout on, against finite differences: the derivative of what forward really computes."""

import pytest
import torch
from helpers import DROPOUT, build, cotangent, tiny_config, tokens

STEP = 1e-6
KINDS = ["local", "lsh", "strict_local", "strict_lsh", "full", "full_shared_qk"]


def objective(model, input_ids, **inputs):
    """A scalar whose random numbers (dropout, rotations) are the same at every call."""
    torch.manual_seed(17)
    logits = model(input_ids, **inputs).logits
    return (logits * cotangent(logits)).mean()


def assert_gradient_is_the_slope(model, input_ids, **inputs):
    """Along three random directions in the space of all parameters, to 1e-6."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(objective(model, input_ids, **inputs), parameters)
    generator = torch.Generator().manual_seed(23)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for parameter, part in zip(parameters, direction, strict=True):
                    parameter.add_(part, alpha=sign * STEP)
                values.append(objective(model, input_ids, **inputs))
                for parameter, part in zip(parameters, direction, strict=True):
                    parameter.sub_(part, alpha=sign * STEP)
        slope = (values[0] - values[1]) / (2 * STEP)
        expected = sum((g * part).sum() for g, part in zip(gradients, direction, strict=True))
        assert abs(slope - expected) < 1e-6 * max(abs(slope), 1e-2), (slope, expected)


@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "ordinary autograd"])
@pytest.mark.parametrize("is_decoder", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("kind", KINDS)
def test_slope_of_a_model_with_dropout(kind, is_decoder, reversible):
    config = tiny_config([kind] * 3, is_decoder=is_decoder, reversible=reversible, **DROPOUT)
    model = build(config).train()
    assert_gradient_is_the_slope(model, tokens(config, 2, 41))


@pytest.mark.parametrize("kind", ["lsh", "strict_lsh"])
def test_slope_when_a_key_counts_once(kind):
    config = tiny_config([kind] * 3, num_hashes=4, allow_duplicate_attention=False, **DROPOUT)
    assert_gradient_is_the_slope(build(config).train(), tokens(config, 2, 41))


def test_slope_with_padding():
    config = tiny_config(KINDS, **DROPOUT)
    mask = torch.ones(2, 41, dtype=torch.long)
    mask[0, 3:11] = 0
    mask[1, 30:] = 0
    assert_gradient_is_the_slope(build(config).train(), tokens(config, 2, 41), attention_mask=mask)
