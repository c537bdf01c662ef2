import numpy as np
import pytest

from art.data.motion.takes import (
    FRAME_COLUMNS,
    JOINT_WIDTHS,
    blend_rotations,
    held,
    load_take,
    mirrored,
    other_side,
    rotation_about,
    sample,
    take_from_table,
)


@pytest.fixture
def take():
    """Five poses, 0.1 s apart, that walk 1 m a pose along X, with knees that bend by 1 a pose."""
    table = np.zeros((5, FRAME_COLUMNS))
    table[:, 0] = 0.1
    table[:, 1] = np.arange(5)
    table[:, 2] = 0.9
    table[:, 3] = 0.2
    column = 4
    for width in (4, *JOINT_WIDTHS.values()):
        if width == 4:
            table[:, column : column + 4] = rotation_about((0, 1, 0), 30.0)
        else:
            table[:, column] = np.arange(5)
        column += width
    return take_from_table("made up", table, loops=True)


def test_a_table_is_taken_apart(take):
    assert take.times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert take.duration == pytest.approx(0.4)
    assert take.root[2] == pytest.approx([2, 0.9, 0.2])
    assert {name: values.shape[1] for name, values in take.joints.items()} == JOINT_WIDTHS
    assert take.joints["left_knee"][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_sampling_interpolates(take):
    between = sample(take, np.array([0.05, 0.125]))
    assert between.joints["right_knee"][:, 0] == pytest.approx([0.5, 1.25])
    assert between.root[:, 0] == pytest.approx([0.5, 1.25])
    assert between.rotation == pytest.approx(np.tile(rotation_about((0, 1, 0), 30.0), (2, 1)))


def test_a_loop_goes_on_and_anything_else_stands_still(take):
    later = sample(take, np.array([-0.1, 0.5]))
    assert later.joints["right_knee"][:, 0] == pytest.approx([3, 1])
    assert later.root[:, 0] == pytest.approx([-1, 5]), "each cycle continues where the one before ended"
    assert later.root[:, 1] == pytest.approx([0.9, 0.9])
    stopped = sample(take_from_table("stops", _table(take), loops=False), np.array([-0.1, 0.5]))
    assert stopped.joints["right_knee"][:, 0] == pytest.approx([0, 4])


def _table(take):
    steps = np.append(np.diff(take.times), 0.1)[:, None]
    return np.hstack([steps, take.root, take.rotation, *take.joints.values()])


def test_a_mirror_swaps_sides_and_twice_is_once(take):
    take.joints["left_knee"][:] = 7.0
    other = mirrored(take)
    assert (other.joints["right_knee"] == 7.0).all()
    assert other.root[:, 2] == pytest.approx([-0.2] * 5)
    assert other.rotation[0] == pytest.approx(rotation_about((0, 1, 0), -30.0))
    back = mirrored(other)
    assert all(np.array_equal(back.joints[name], values) for name, values in take.joints.items())
    assert np.array_equal(back.rotation, take.rotation)


def test_sides_have_names():
    assert [other_side(name) for name in ("left_knee", "right_hip", "chest")] == ["right_knee", "left_hip", "chest"]


def test_a_joint_is_held_as_strongly_as_asked(take):
    strength = np.array([0.0, 0.5, 1.0, 1.0, 1.0])
    bent = held(take, "right_knee", np.array([10.0]), strength).joints["right_knee"][:, 0]
    assert bent == pytest.approx([0, 5.5, 10, 10, 10])
    raised = held(take, "neck", rotation_about((1, 0, 0), 90.0), strength).joints["neck"]
    assert raised[0] == pytest.approx(rotation_about((0, 1, 0), 30.0))
    assert raised[2] == pytest.approx(rotation_about((1, 0, 0), 90.0))
    assert np.linalg.norm(raised, axis=1) == pytest.approx(np.ones(5))


def test_rotations_blend_along_the_shorter_arc():
    first, second = rotation_about((0, 1, 0), 0.0)[None], rotation_about((0, 1, 0), 40.0)[None]
    half = np.array([[0.5]])
    expected = rotation_about((0, 1, 0), 20.0)
    assert blend_rotations(first, second, half)[0] == pytest.approx(expected)
    assert blend_rotations(first, -second, half)[0] == pytest.approx(expected)


def test_recorded_takes_can_be_read():
    pytest.importorskip("pybullet_data", reason="the recordings are inside the package pybullet")
    take = load_take("walk")
    assert take.loops
    assert take.duration > 0.5
    assert np.linalg.norm(take.rotation, axis=1) == pytest.approx(np.ones(len(take.times)), abs=1e-3)
    with pytest.raises(ValueError, match=r"take 'wlk' is not among the recorded ones; expected one of .*walk"):
        load_take("wlk")
