import pytest
import torch
from torch import nn

from art.train.gradients import Gradients


@pytest.fixture
def groups():
    """Gradients of norms 3 and 4 in one group, 12 in another; nothing in the third but a parameter without any."""
    first, second, head, unused = (nn.Parameter(torch.zeros(2)) for _ in range(4))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    head.grad = torch.tensor([0.0, -12.0])
    return {"backbone": [first, second], "head": [head], "bank": [unused]}


def test_norms_by_group_and_of_all(groups):
    norms = Gradients(groups).clip(measure=True)
    assert norms == pytest.approx(
        {"gradient_norm/total": 13.0, "gradient_norm/backbone": 5.0, "gradient_norm/head": 12.0}
    )
    assert groups["head"][0].grad.tolist() == [0.0, -12.0]


def test_clipping_tells_the_norms_from_before_it(groups):
    norms = Gradients(groups, max_norm=1.3).clip(measure=True)
    assert norms["gradient_norm/total"] == pytest.approx(13.0)
    assert groups["head"][0].grad.tolist() == pytest.approx([0.0, -1.2])
    assert groups["backbone"][0].grad.tolist() == pytest.approx([0.3, 0.0])
    assert Gradients(groups).clip(measure=True)["gradient_norm/total"] == pytest.approx(1.3)


def test_it_clips_as_pytorch_does(groups):
    copies = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    for copy, p in zip(copies, [*groups["backbone"], *groups["head"]], strict=True):
        copy.grad = p.grad.clone()
    torch.nn.utils.clip_grad_norm_(copies, 2.0)
    assert Gradients(groups, max_norm=2.0).clip(measure=False) == {}
    for copy, p in zip(copies, [*groups["backbone"], *groups["head"]], strict=True):
        torch.testing.assert_close(copy.grad, p.grad)


def test_nothing_is_computed_where_nothing_is_asked(groups, monkeypatch):
    def stop(*_, **__):
        raise AssertionError("computed a norm")

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", stop)
    assert Gradients(groups).clip(measure=False) == {}
    assert Gradients({"backbone": [], "head": groups["bank"]}, max_norm=1.0).clip(measure=True) == {}
