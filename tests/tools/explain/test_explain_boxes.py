import numpy as np
import pytest

from art.tools.explain.boxes import response_boxes


def box_of(weights, **given):
    return response_boxes(np.array(weights, dtype=np.float32)[None, None], **given)[0, 0]


def test_the_box_holds_the_cells_that_are_joined_with_the_peak():
    # The 8 below on the right is as high, but touches only by a corner; the 3 is too low.
    assert box_of([[0, 8, 0, 0], [0, 9, 7, 0], [0, 3, 0, 8], [0, 0, 0, 0]]) == pytest.approx([0.25, 0, 0.75, 0.5])


def test_a_bent_region_is_followed_around_its_corners():
    assert box_of([[9, 9, 9], [0, 0, 9], [9, 9, 9], [0, 0, 0]]) == pytest.approx([0, 0, 1, 0.75])


def test_a_higher_level_gives_a_smaller_box():
    weights = [[0, 0, 0, 0], [0, 9, 7, 0]]
    assert box_of(weights, level=0.9) == pytest.approx([0.25, 0.5, 0.5, 1])


def test_a_map_without_a_peak_is_all_of_the_picture():
    assert box_of(np.full((3, 3), 1 / 9)) == pytest.approx([0, 0, 1, 1])


@pytest.mark.parametrize("level", [0, 1.1])
def test_levels_out_of_range(level):
    with pytest.raises(ValueError, match="level is"):
        box_of(np.ones((2, 2)), level=level)
