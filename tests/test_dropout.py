"""Dropout with cheap masks: the right rate, the right scale, independent, reproducible, and PyTorch's where that is better."""

import pytest
import torch
from torch import nn

from hf_reformer.model.dropout import STEPS, Dropout


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_numbers_are_dropped_at_the_rate_and_the_others_scaled(p, dtype):
    torch.manual_seed(0)
    ones = torch.ones(3, 211, 331, dtype=dtype)
    out = Dropout(p)(ones)
    kept = out != 0
    rate = round(p * STEPS) / STEPS
    error = (rate * (1 - rate) / ones.numel()) ** 0.5
    assert abs(1 - kept.double().mean().item() - p) < 4 * error + 1 / STEPS
    assert torch.equal(out[kept], torch.full_like(out[kept], 1 / (1 - rate)))


def test_neighbours_and_calls_are_independent():
    torch.manual_seed(0)
    layer, ones = Dropout(0.5), torch.ones(200_003)
    first, second = layer(ones) / 2, layer(ones) / 2
    bound = 4 / len(ones) ** 0.5
    for lag in (1, 2, 3, 4, 5, 8, 16):
        assert abs(4 * ((first[lag:] - 0.5) * (first[:-lag] - 0.5)).mean().item()) < bound
    assert abs(4 * ((first - 0.5) * (second - 0.5)).mean().item()) < bound


def test_the_seed_reproduces_a_mask_and_its_gradient_is_the_mask():
    x = torch.randn(5, 7, 3, requires_grad=True)
    torch.manual_seed(1)
    first = Dropout(0.3)(x)
    torch.manual_seed(1)
    assert torch.equal(first, Dropout(0.3)(x))
    (grad,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(grad * x, first)
    assert 0 < int((grad == 0).sum()) < grad.numel()


@pytest.mark.parametrize("p", [0.0, 1e-7, 1.0])
def test_probabilities_that_16_bits_cannot_tell_are_left_to_pytorch(p):
    x = torch.randn(50, 40)
    torch.manual_seed(0)
    ours = Dropout(p)(x)
    torch.manual_seed(0)
    assert torch.equal(ours, nn.Dropout(p)(x))


def test_evaluation_drops_nothing():
    x = torch.randn(50, 40)
    assert Dropout(0.5).eval()(x) is x
