import numpy as np
import pytest

from art.data.datasets.base import mirror_by_words
from art.data.motion.render import TRACKED
from art.data.motion.takes import (
    CLASSES,
    JOINT_WIDTHS,
    hold_joint,
    load_take,
    mirror,
    resample,
    rotation_about,
    take_from_table,
)

NAMES = [motion_class.name for motion_class in CLASSES]


def make_take(*, loops):
    """Five poses, 0.1 s apart, that move 1 m per pose along X, with knees that bend by 1 rad per pose."""
    turned, moving = [rotation_about((0, 1, 0), 30.0)] * 5, np.arange(5.0)[:, None]
    root = np.column_stack([np.full(5, 0.1), moving, np.full(5, 0.9), np.full(5, 0.2)])
    joints = [turned if width == 4 else moving for width in JOINT_WIDTHS.values()]
    return take_from_table("test", np.hstack([root, turned, *joints]), loops=loops)


@pytest.fixture
def take():
    return make_take(loops=True)


def test_take_from_table(take):
    assert take.times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert take.duration == pytest.approx(0.4)
    assert take.root[2] == pytest.approx([2, 0.9, 0.2])
    assert {name: values.shape[1] for name, values in take.joints.items()} == JOINT_WIDTHS
    assert take.joints["left_knee"][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_resample_interpolates(take):
    between = resample(take, np.array([0.05, 0.125]))
    assert between.joints["right_knee"][:, 0] == pytest.approx([0.5, 1.25])
    assert between.root[:, 0] == pytest.approx([0.5, 1.25])
    assert between.rotation == pytest.approx(np.tile(rotation_about((0, 1, 0), 30.0), (2, 1)))


def test_resample_outside_the_recording(take):
    outside = np.array([-0.1, 0.5])
    looped = resample(take, outside)
    assert looped.joints["right_knee"][:, 0] == pytest.approx([3, 1])
    assert looped.root[:, 0] == pytest.approx([-1, 5]), "each cycle continues at the end of the previous one"
    assert looped.root[:, 1] == pytest.approx([0.9, 0.9])
    assert resample(make_take(loops=False), outside).joints["right_knee"][:, 0] == pytest.approx([0, 4])


def test_mirror_swaps_sides_and_is_an_involution(take):
    take.joints["left_knee"][:] = 7.0
    mirrored = mirror(take)
    assert (mirrored.joints["right_knee"] == 7.0).all()
    assert mirrored.root[:, 2] == pytest.approx([-0.2] * 5)
    assert mirrored.rotation[0] == pytest.approx(rotation_about((0, 1, 0), -30.0))
    back = mirror(mirrored)
    assert all(np.array_equal(back.joints[name], values) for name, values in take.joints.items())
    assert np.array_equal(back.rotation, take.rotation)


def test_hold_joint(take):
    strength = np.array([0.0, 0.5, 1.0, 1.0, 1.0])
    bent = hold_joint(take, "right_knee", np.array([10.0]), strength).joints["right_knee"][:, 0]
    assert bent == pytest.approx([0, 5.5, 10, 10, 10])
    for sign in (1, -1):  # q and -q are the same rotation
        turned = hold_joint(take, "neck", sign * rotation_about((0, 1, 0), 70.0), strength).joints["neck"]
        assert turned[0] == pytest.approx(rotation_about((0, 1, 0), 30.0))
        assert turned[1] == pytest.approx(rotation_about((0, 1, 0), 50.0)), "along the shorter arc"
        assert np.linalg.norm(turned, axis=1) == pytest.approx(np.ones(5))


def test_load_take():
    pytest.importorskip("pybullet_data", reason="the recordings are in the package pybullet")
    take = load_take("walk")
    assert take.loops
    assert take.duration > 0.5
    assert np.linalg.norm(take.rotation, axis=1) == pytest.approx(np.ones(len(take.times)), abs=1e-3)
    with pytest.raises(ValueError, match=r"take 'wlk' does not exist; expected one of .*walk"):
        load_take("wlk")


def test_class_names_and_joints():
    assert len(set(NAMES)) == len(NAMES)
    assert all(motion_class.joint is None or motion_class.joint in TRACKED for motion_class in CLASSES)
    pairs = mirror_by_words(NAMES)
    assert any(i != other for i, other in enumerate(pairs))
    for motion_class, other in zip(CLASSES, pairs, strict=True):
        expected = (motion_class.joint or "").replace("left", "L").replace("right", "left").replace("L", "right")
        assert (CLASSES[other].joint or "") == expected


def test_classes_differ_and_keep_unit_quaternions():
    pytest.importorskip("pybullet_data", reason="the recordings are in the package pybullet")
    movements = []
    for motion_class in CLASSES:
        take = load_take(motion_class.action.take)
        poses = motion_class.edit(resample(take, np.linspace(0.05, 0.9, 12) * take.duration))
        for values in poses.joints.values():
            assert np.isfinite(values).all()
            if values.shape[1] == 4:
                assert np.linalg.norm(values, axis=1) == pytest.approx(np.ones(12), abs=1e-3)
        joints = [poses.joints[name] for name in sorted(poses.joints)]
        movements.append(np.hstack([poses.root, poses.rotation, *joints]))
    for i, first in enumerate(movements):
        for second in movements[i + 1 :]:
            assert np.abs(first - second).max() > 0.05
