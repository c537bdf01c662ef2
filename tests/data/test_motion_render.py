from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pybullet_data", reason="the recordings and the renderer are inside the package pybullet")

from art.data.motion.render import TRACKED, Stage, View
from art.data.motion.takes import load_take, sample

VIEW = View(20.0, 10.0, 2.6, 48.0, body=(0.9, 0.1, 0.1), floor=(0.2, 0.4, 0.9), light=(0.5, 2.0, 0.0))
POSES = sample(load_take("walk"), np.array([0.0, 0.3]))


@pytest.fixture(scope="module")
def stage():
    with Stage(64) as stage:
        yield stage


def is_body(frame):
    return frame[..., 0].astype(int) > frame[..., 2].astype(int) + 20


def test_frames_show_a_person_where_the_joints_are(stage):
    frames, joints = stage.film(POSES, VIEW)
    assert frames.shape == (2, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert joints.shape == (2, len(TRACKED), 2)
    for frame, positions in zip(frames, joints, strict=True):
        body = is_body(frame)
        assert 0.01 < body.mean() < 0.3
        rows, columns = np.nonzero(body)
        for x, y in positions * 64:
            assert np.hypot(columns + 0.5 - x, rows + 0.5 - y).min() < 3


def test_joints_are_where_a_person_has_them(stage):
    (positions,) = stage.film(sample(load_take("walk"), np.zeros(1)), VIEW)[1]
    place = dict(zip(TRACKED, positions, strict=True))
    assert place["neck"][1] < place["chest"][1] < place["right_hip"][1] < place["right_knee"][1]
    assert place["right_knee"][1] < place["right_ankle"][1]
    assert place["right_shoulder"][0] < place["left_shoulder"][0], "seen from the front, the right is on the left"
    behind = dict(zip(TRACKED, stage.film(POSES, replace(VIEW, yaw=180.0))[1][0], strict=True))
    assert behind["right_shoulder"][0] > behind["left_shoulder"][0]


def test_the_same_call_gives_the_same_bits_whatever_came_before(stage):
    first = stage.film(POSES, VIEW)
    stage.film(POSES, replace(VIEW, yaw=-40.0, body=(0.1, 0.9, 0.1)))
    second = stage.film(POSES, VIEW)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_the_size_is_the_stages():
    with Stage(32) as small:
        assert small.film(POSES, VIEW)[0].shape == (2, 32, 32, 3)


def test_building_a_stage_prints_nothing(capfd):
    with Stage(32):
        pass
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
