import numpy as np
import pytest

from art.tools.explain.in_time import at, place_of

SAMPLED = np.array([2, 6, 10])


@pytest.mark.parametrize(
    ("frame", "value"), [(0, 1.0), (2, 1.0), (3, 1.5), (4, 2.0), (6, 3.0), (9, 6.0), (10, 7.0), (11, 7.0)]
)
def test_between_shown_frames_values_lie_on_a_straight_line(frame, value):
    place = place_of(frame, SAMPLED)
    assert place.seen
    assert at(np.array([[1.0], [3.0], [7.0]]), place) == pytest.approx([value])


def test_frames_far_from_a_window_are_not_seen():
    assert [place_of(frame, np.array([20, 22, 24])).seen for frame in (0, 17, 18, 26, 27, 99)] == [
        False, False, True, True, False, False,
    ]  # fmt: skip


def test_repeated_frames_and_a_single_one():
    assert [place_of(f, np.array([0, 0, 1, 1]))[:3] for f in (0, 1, 5)] == [(0, 0, 0.0), (2, 2, 0.0), (3, 3, 0.0)]
    assert place_of(1, np.array([1])).seen
