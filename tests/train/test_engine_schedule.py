import pytest

from art.train.config import OptimConfig
from art.train.schedule import learning_rate_factor


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (199, 1.0), (200, 0.1), (399, 0.1), (400, 0.01), (499, 0.01)])
def test_the_papers_schedule_divides_by_ten_every_twenty_epochs(step, expected):
    assert learning_rate_factor(OptimConfig(), step, steps_per_epoch=10) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (10, 0.75), (15, 0.5), (20, 0.25), (30, 0.0), (31, 0.0)])
def test_cosine(step, expected):
    optim = OptimConfig(schedule="cosine", epochs=3)
    assert learning_rate_factor(optim, step, steps_per_epoch=10) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.05), (9, 0.5), (19, 1.0), (20, 1.0), (200, 0.1)])
def test_warm_up_rises_linearly_to_the_schedule(step, expected):
    assert learning_rate_factor(OptimConfig(warmup_epochs=2), step, steps_per_epoch=10) == pytest.approx(expected)


def test_warm_up_of_half_an_epoch():
    factors = [learning_rate_factor(OptimConfig(warmup_epochs=0.5), step, steps_per_epoch=4) for step in range(3)]
    assert factors == pytest.approx([0.5, 1.0, 1.0])


@pytest.mark.parametrize(("step", "steps_per_epoch"), [(-1, 10), (0, 0)])
def test_positions_that_cannot_be_are_refused(step, steps_per_epoch):
    with pytest.raises(ValueError, match="steps_per_epoch"):
        learning_rate_factor(OptimConfig(), step, steps_per_epoch)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"optim\.schedule: got 'linear'"):
        learning_rate_factor(OptimConfig(schedule="linear"), 0, 1)
