"""The semantics bank: prompts, class selection, the agent copy, and its moving average."""

import pytest
import torch
from torch.testing import assert_close

from art.model.semantics import TEMPLATES, SemanticsBank, cosine, encode_prompts


def letters(texts):
    """A text encoder: the length, and the number of a's."""
    return torch.tensor([[len(t), t.count("a")] for t in texts], dtype=torch.float32)


def identity_bank(semantics, momentum=0.9):
    bank = SemanticsBank(semantics, semantics.shape[-1], momentum)
    with torch.no_grad():
        bank.projection.weight.copy_(torch.eye(semantics.shape[-1]))
        bank.projection.bias.zero_()
    return bank


def test_encode_prompts():
    bank = encode_prompts(letters, ["a", "bb"], ["{label}", "x{label}a"])
    assert bank.tolist() == [[[1, 1], [2, 0]], [[3, 2], [4, 1]]]
    assert encode_prompts(letters, ["a"], TEMPLATES).shape == (16, 1, 2)
    with pytest.raises(ValueError, match=r"does not contain '\{label\}'"):
        encode_prompts(letters, ["a"], ["no place"])
    with pytest.raises(ValueError, match="templates is empty"):
        encode_prompts(letters, ["a"], [])


def test_select_returns_the_best_prompt_of_the_best_classes():
    # Two prompts, three classes, two channels.
    semantics = torch.tensor([[[1.0, 0], [0, 1], [-1, 0]], [[1.0, 1], [0, -1], [3, 4]]])
    bank = identity_bank(semantics)
    selection = bank.select(torch.tensor([[0.6, 0.8], [0.0, -2.0]]), 2)
    # First video: cosines are (0.6, 0.99), (0.8, -0.8), (-0.6, 1); second: (0, -0.7), (-1, 1), (0, -0.8).
    assert selection.classes.tolist() == [[2, 0], [1, 0]]
    assert selection.semantics[0].tolist() == [[3, 4], [1, 1]]
    assert selection.semantics[1].tolist() == [[0, -1], [1, 0]]


def test_select_has_gradients_only_for_the_projection():
    bank = identity_bank(torch.randn(2, 3, 4))
    video = torch.randn(2, 4, requires_grad=True)
    bank.select(video, 2).semantics.sum().backward()
    assert video.grad is None
    assert bank.agent.grad is None
    assert bank.projection.weight.grad is not None


def test_class_logits_are_the_maximum_over_prompts():
    semantics = torch.tensor([[[2.0, 0], [0, 1]], [[1.0, 1], [0, -1]]])
    logits = identity_bank(semantics).class_logits(torch.tensor([[0.0, 3.0]]))
    assert_close(logits, torch.tensor([[2**-0.5, 1.0]]))


def test_ema_update():
    bank = identity_bank(torch.zeros(1, 2, 2), momentum=0.75)
    with torch.no_grad():
        bank.agent.fill_(4.0)
    bank.ema_update()
    assert_close(bank.bank, torch.full((1, 2, 2), 1.0))
    bank.ema_update()
    assert_close(bank.bank, torch.full((1, 2, 2), 1.75))
    assert "bank" in bank.state_dict()


def test_cosine_of_a_zero_vector_is_zero():
    assert cosine(torch.zeros(1, 3), torch.randn(2, 2, 3)).abs().max() == 0
