"""The definition against values computed by hand, against PyTorch's cross-entropy, and against a plain loop."""

import math

import nce_rules
import pytest
import torch
import torch.nn.functional as F

from art_kernels import tracklet_nce
from art_kernels.tracklet_nce import reference
from art_kernels.tracklet_nce.passes import Pairs


def by_loop(anchors, candidates, positive, temperature, excluded=None):
    """The loss as the docstring says it, an anchor at a time."""
    losses = []
    for i, anchor in enumerate(anchors):
        others = [j for j in range(len(candidates)) if excluded is None or excluded[i] != j]
        logits = {j: anchor @ candidates[j] / temperature for j in others}
        mine = [logits[j] for j in others if positive(i, j)]
        if mine:
            losses.append(torch.stack(list(logits.values())).logsumexp(0) - sum(mine) / len(mine))
    return sum(losses) / len(losses) if losses else torch.zeros(())


def test_by_hand():
    anchors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    candidates = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    # Logits at temperature 0.5: (2, 6), (0, 4); the third anchor has no positive.
    first, second = math.log(math.exp(2) + math.exp(6)) - 2, math.log(1 + math.exp(4)) - 4
    loss = tracklet_nce(anchors, candidates, torch.tensor([0, 1, -1]), temperature=0.5, backend="reference")
    torch.testing.assert_close(loss, torch.tensor((first + second) / 2))


def test_statistics_by_hand():
    pairs = Pairs(torch.tensor([7, 8]), torch.tensor([7, 7, 9]), torch.tensor([1, -1]), "equal")
    logits = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    rows, columns = reference.tracklet_nce(torch.eye(2), logits.mT, pairs, torch.tensor(1.0), True)
    expected = [[math.log(math.e + math.e**3), torch.tensor([4.0, 5, 6]).logsumexp(0).item()], [1.0, 0.0], [1.0, 0.0]]
    torch.testing.assert_close(rows, torch.tensor(expected))
    expected = [
        [torch.tensor([1.0, 4]).logsumexp(0).item(), 5.0, torch.tensor([3.0, 6]).logsumexp(0).item()],
        [1.0, 0.0, 0.0],
        [1.0, 0.0, 0.0],
    ]
    torch.testing.assert_close(columns, torch.tensor(expected))


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_one_positive_is_cross_entropy_and_symmetric_is_that_of_clip(backend):
    anchors, candidates = (torch.randn(9, 4, dtype=torch.float64) for _ in range(2))
    index = torch.randperm(9)
    logits = anchors @ candidates.mT / 0.2
    call = {"temperature": 0.2, "backend": backend}
    expected = F.cross_entropy(logits, index)
    torch.testing.assert_close(tracklet_nce(anchors, candidates, index, **call), expected)
    expected = (expected + F.cross_entropy(logits.mT, index.argsort())) / 2
    torch.testing.assert_close(tracklet_nce(anchors, candidates, index, symmetric=True, **call), expected)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_every_form_of_positives_is_what_a_loop_makes_of_it(backend):
    anchors, candidates = torch.randn(8, 4, dtype=torch.float64), torch.randn(11, 4, dtype=torch.float64)
    index, excluded = torch.randint(-1, 11, (8,)), torch.randint(-1, 11, (8,))
    labels = torch.randint(3, (8,)), torch.randint(4, (11,))
    ids = torch.randint(40, (8,)) * 100, torch.randint(40, (11,)) * 100
    own, other = ids
    forms = [
        (index, lambda i, j: index[i] == j),
        (labels, lambda i, j: labels[0][i] == labels[1][j]),
        (
            nce_rules.same_class_other_video(*ids),
            lambda i, j: own[i] // 1000 == other[j] // 1000 and own[i] // 10 != other[j] // 10,
        ),
    ]
    for positives, positive in forms:
        for without in (None, excluded):
            loss = tracklet_nce(anchors, candidates, positives, temperature=0.5, excluded=without, backend=backend)
            expected = by_loop(anchors, candidates, positive, 0.5, without)
            assert expected > 0
            torch.testing.assert_close(loss, expected)
