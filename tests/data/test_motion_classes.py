import numpy as np
import pytest

pytest.importorskip("pybullet_data", reason="the recordings are inside the package pybullet")

from art.data.datasets.clips import mirror_by_words
from art.data.motion.classes import CLASSES
from art.data.motion.render import TRACKED
from art.data.motion.takes import load_take, sample

NAMES = [motion_class.name for motion_class in CLASSES]


def poses(motion_class):
    take = load_take(motion_class.action.take)
    return motion_class.edit(sample(take, np.linspace(0.05, 0.9, 12) * take.duration))


def test_names_and_joints_are_usable():
    assert len(set(NAMES)) == len(NAMES)
    assert all(motion_class.joint is None or motion_class.joint in TRACKED for motion_class in CLASSES)
    mirror = mirror_by_words(NAMES)
    assert any(i != other for i, other in enumerate(mirror))


def test_the_mirror_image_of_a_class_is_defined_by_the_other_side():
    for motion_class, other in zip(CLASSES, mirror_by_words(NAMES), strict=True):
        expected = (motion_class.joint or "").replace("left", "L").replace("right", "left").replace("L", "right")
        assert (CLASSES[other].joint or "") == expected


def test_no_two_classes_are_the_same_movement():
    seen = [
        np.hstack([p.root, p.rotation, *(p.joints[name] for name in sorted(p.joints))]) for p in map(poses, CLASSES)
    ]
    for i, first in enumerate(seen):
        for second in seen[i + 1 :]:
            assert np.abs(first - second).max() > 0.05


def test_an_edit_keeps_rotations_whole():
    for motion_class in CLASSES:
        for values in poses(motion_class).joints.values():
            assert np.isfinite(values).all()
            if values.shape[1] == 4:
                assert np.linalg.norm(values, axis=1) == pytest.approx(np.ones(12), abs=1e-3)
