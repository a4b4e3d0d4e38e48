"""Muon against its definition, with the singular value decomposition in place of the iteration."""

import copy

import pytest
import torch

from hf_reformer.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 7, 29), (3, 29, 7)])
def test_orthogonalising_keeps_the_singular_vectors_and_makes_the_values_about_one(shape):
    generator = torch.Generator().manual_seed(0)
    matrices = (
        torch.randn(shape, generator=generator, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    )
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    values = left.mT @ result @ right.mT
    diagonal = values.diagonal(dim1=-2, dim2=-1)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    torch.testing.assert_close(values, torch.diag_embed(diagonal), rtol=0, atol=1e-8)


def test_every_matrix_moves_by_its_own_momentum_whatever_the_grouping():
    generator = torch.Generator().manual_seed(1)
    shapes = [(11, 5), (5, 11), (11, 5)]
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    expected = [parameter.detach().clone() for parameter in parameters]
    means = [torch.zeros(shape) for shape in shapes]
    optimizer = Muon(parameters, lr=0.03, momentum=0.9)
    for _ in range(3):
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            means[i] = 0.9 * means[i] + 0.1 * parameter.grad
            update = orthogonalise((0.1 * parameter.grad + 0.9 * means[i])[None])[0]
            expected[i] = expected[i] - 0.03 * max(1, shapes[i][0] / shapes[i][1]) ** 0.5 * update
        optimizer.step()
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-5, atol=1e-5)


def test_a_parameter_without_gradient_stays():
    parameters = [torch.nn.Parameter(torch.ones(3, 5)) for _ in range(2)]
    parameters[0].grad = torch.ones(3, 5)
    Muon(parameters).step()
    assert not torch.equal(parameters[0], torch.ones(3, 5))
    assert torch.equal(parameters[1], torch.ones(3, 5))


def test_its_state_can_be_saved_and_loaded():
    parameter = torch.nn.Parameter(torch.eye(5))
    optimizer = Muon([parameter])
    parameter.grad = torch.arange(25.0).view(5, 5)
    optimizer.step()
    twin = torch.nn.Parameter(parameter.detach().clone())
    twin_optimizer = Muon([twin])
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, o in ((parameter, optimizer), (twin, twin_optimizer)):
        p.grad = torch.ones(5, 5)
        o.step()
    assert torch.equal(parameter, twin)


def test_only_matrices_are_allowed():
    with pytest.raises(ValueError, match=r"shape \(5,\); allowed are matrices"):
        Muon([torch.nn.Parameter(torch.ones(5))])
