import numpy as np
import pytest
import torch

from art.eval.similarities import bank_similarities, quantiles
from art.model.semantics import SemanticsBank


@pytest.fixture
def bank():
    """Two prompts of three classes along the axes of the latent space; the second prompt of class 2 is along axis 3."""
    semantics = torch.zeros(2, 3, 4)
    for label in range(3):
        semantics[:, label, label] = 1.0 + label
    semantics[1, 2] = torch.tensor([0.0, 0.0, 0.0, 5.0])
    made = SemanticsBank(semantics, 4, momentum=0.9)
    with torch.no_grad():
        made.projection.weight.copy_(torch.eye(4))
        made.projection.bias.zero_()
    return made


def test_cosines_by_what_they_compare(bank):
    video = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    found = bank_similarities(bank, video, torch.tensor([1, 2]))
    np.testing.assert_allclose(found["similarity_own_class"], [0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found["similarity_other_classes"], [0.6, 0.0, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found["similarity_between_classes"], [0.0, 0.0, 0.0], atol=1e-7)
    with torch.no_grad():
        bank.bank[:, 0] = bank.bank[:, 1]
    assert bank_similarities(bank, video, torch.tensor([1, 2]))["similarity_between_classes"].max() == pytest.approx(1)


def test_three_quantiles_each():
    found = quantiles({"some": np.linspace(0, 1, 101, dtype=np.float32)})
    assert found == pytest.approx({"some/p05": 0.05, "some/p50": 0.5, "some/p95": 0.95})
