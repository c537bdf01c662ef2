"""The cosine that is zero, with zero gradient, at zero vectors."""

import pytest
import torch
from torch.autograd import gradcheck

from art_kernels.cosine import cosine_norms, unit_vectors


def test_unit_vectors(device):
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]], device=device, requires_grad=True)
    units = unit_vectors(vectors)
    torch.testing.assert_close(units.tolist(), [[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]])
    (gradient,) = torch.autograd.grad(units[:, 0].sum(), [vectors])
    torch.testing.assert_close(gradient.tolist(), [[0.128, -0.096], [0.0, 0.0], [0.5, 0.0]])


@pytest.mark.parametrize("length", [1e-15, 1e15])
def test_direction_does_not_depend_on_length(device, length):
    vectors = torch.tensor([[0.6, 0.8]], device=device) * length
    torch.testing.assert_close(unit_vectors(vectors).tolist(), [[0.6, 0.8]])


def test_norms_of_vanishing_vectors_are_infinite():
    norms = cosine_norms(torch.tensor([4.0, 0.0, 1e-40, 1e-36]))
    torch.testing.assert_close(norms.tolist(), [2.0, torch.inf, torch.inf, 1e-18])


def test_gradient():
    vectors = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(unit_vectors, (vectors,))
