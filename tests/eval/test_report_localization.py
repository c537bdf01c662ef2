import itertools
import json
import math

import numpy as np
import pytest
import torch
from blob_model import GRID, NAMES, BlobModel, blob_path, read_blob

from art.data.datasets.base import Clip, ClipSet
from art.eval.report.localization import (
    HUMAN_BONES,
    HitRates,
    body_cells,
    bone_indices,
    cell_of,
    defining_limb,
    expected_random_joint,
    expected_random_region,
    measure_localization,
    score_clip,
    summarize,
)
from art.model.loading import build_model

JOINT_NAMES = ("hand", "foot")


def test_body_cells_of_a_joint_and_a_bone():
    joint = np.array([[[0.3, 0.6]]])  # 4 x 4 cells: column 1.2, row 2.4
    alone = np.zeros((1, 4, 4), dtype=bool)
    alone[0, 2, 1] = True
    np.testing.assert_array_equal(body_cells(joint, [], (4, 4), reach=0.0), alone)
    # Within half a cell: columns 0.7 to 1.7 and rows 1.9 to 2.9.
    wide = np.zeros((1, 4, 4), dtype=bool)
    wide[0, 1:3, 0:2] = True
    np.testing.assert_array_equal(body_cells(joint, [], (4, 4), reach=0.5), wide)
    bone = np.array([[[0.125, 0.125], [0.625, 0.375]]])  # from cell (0, 0) to (1, 2), through (0, 1) and (1, 1)
    cells = body_cells(bone, [(0, 1)], (4, 4), reach=0.0)
    assert np.argwhere(cells[0]).tolist() == [[0, 0], [0, 1], [1, 1], [1, 2]]
    assert np.argwhere(body_cells(bone, [], (4, 4), reach=0.0)[0]).tolist() == [[0, 0], [1, 2]], "without the bone"


def test_body_cells_contain_the_points_along_the_bones():
    rng = np.random.default_rng(0)
    joints = rng.uniform(-0.3, 1.3, (20, 5, 2))
    bones = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]
    u = np.linspace(0, 1, 2001)[:, None]
    for grid in ((4, 4), (3, 7)):
        found = body_cells(joints, bones, grid, reach=0.0)
        for t in range(len(joints)):
            points = np.concatenate([joints[t, a] * (1 - u) + joints[t, b] * u for a, b in bones])
            points = points[((points >= 0) & (points < 1)).all(1)]
            expected = np.zeros(grid, dtype=bool)
            expected[tuple((points[:, ::-1] * grid).astype(int).T)] = True
            missing = expected & ~found[t]
            assert not missing.any(), "every cell that contains a point of the body"
            assert (found[t] & ~expected).sum() <= 1, "and no other, except for corners between two points"


def test_unknown_joints_are_in_no_cell():
    assert not body_cells(np.full((1, 2, 2), np.nan), [(0, 1)], (4, 4)).any()


def test_cell_of_is_the_nearest_cell_outside_the_image():
    points = np.array([[0.0, 0.99], [1.0, -0.2], [0.5, 0.5]])
    assert cell_of(points, (2, 4)).tolist() == [[0.125, 0.75], [0.875, 0.25], [0.625, 0.75]]


def test_bones_of_unknown_joints():
    assert bone_indices(("a", "b", "c"), [("c", "a")]) == [(2, 0)]
    with pytest.raises(ValueError, match=r"not tracked: chest, .*tracked ones are hand, foot"):
        bone_indices(JOINT_NAMES, HUMAN_BONES)


def brute_force(choices, tracklets):
    """Return the expected (mean, best, any) hits if tracklets choose uniformly among ``choices`` [c][t]."""
    totals = np.zeros(3)
    for chosen in itertools.product(choices, repeat=tracklets):
        hits = np.array(chosen)  # [K, T]
        totals += [hits.mean(0).sum(), hits.sum(1).max(), hits.any(0).sum()]
    return totals / len(choices) ** tracklets


@pytest.mark.parametrize("tracklets", [1, 2, 3])
def test_expected_random_region_by_enumeration(tracklets):
    regions = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]  # three frames, four regions each, near or not
    clips = list(itertools.product(*regions))  # one region in each frame, independently
    expected = brute_force(clips, tracklets) if tracklets < 3 else None
    result = expected_random_region(np.array([1 / 4, 2 / 4, 0.0]), tracklets)
    if expected is None:  # 64^3 clips take too long; the distribution of hits is 3/8, 4/8, 1/8
        below = [3 / 8, 7 / 8]
        expected = [0.75, sum(1 - b**3 for b in below), (1 - 0.75**3) + (1 - 0.5**3)]
    assert (result.single, result.best, result.any) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("tracklets", [1, 2, 3])
def test_expected_random_joint_by_enumeration(tracklets):
    near = np.array([[1, 1, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0]], dtype=bool)  # [T, J]
    visible = np.ones_like(near)
    visible[1, 3] = False
    result = expected_random_joint(near, visible, tracklets)
    seen = (near & visible).T.astype(int).tolist()
    assert (result.single, result.best, result.any) == pytest.approx(tuple(brute_force(seen, tracklets)))


def test_score_of_a_clip():
    # 5 x 5 cells; the hand is in cell (2, 2), the foot in cell (4, 2); the limb is the hand.
    joints = np.tile([[0.5, 0.5], [0.5, 0.9]], (4, 1, 1))
    joints[3, 0] = [1.2, 0.5]  # out of view in the last frame
    on, off = [0.5, 0.5], [0.1, 0.1]
    peaks = np.array([[on, off], [off, on], [off, off], [on, on]])
    score = score_clip(peaks, joints, 0, [(0, 1)], (5, 5), radius=0.1, reach=0.0)
    assert (score.frames, score.out_of_view) == (3, 1)
    assert score.hits.tolist() == [1, 1]
    assert score.tracklets == HitRates(single=1, best=1, any=2)
    # The body: cells (2, 2), (3, 2), (4, 2); one of them within 0.1 of the hand.
    assert score.random_region.single == pytest.approx(3 * 1 / 3)
    assert score.random_region.any == pytest.approx(3 * (1 - (2 / 3) ** 2))
    at_most = [(2 / 3) ** 3, (2 / 3) ** 3 + 3 * (1 / 3) * (2 / 3) ** 2, 1 - (1 / 3) ** 3]
    assert score.random_region.best == pytest.approx(sum(1 - f**2 for f in at_most))
    assert score.random_joint == HitRates(single=1.5, best=pytest.approx(3 * 3 / 4), any=pytest.approx(3 * 3 / 4))
    assert score.center == 0, "the center (0.5, 0.7) is in cell (3, 2)"
    assert score.reachable == 3


def test_radius_is_inclusive():
    joints = np.array([[[0.5, 0.5]]])
    for offset, hit in ((0.1, 1), (0.1001, 0)):
        score = score_clip(np.array([[[0.5 + offset, 0.5]]]), joints, 0, [], (5, 5), radius=0.1)
        assert score.tracklets.single == hit


def test_reachable_is_zero_on_a_coarse_grid():
    joints = np.array([[[0.05, 0.05]]])
    assert score_clip(np.array([[[0.25, 0.25]]]), joints, 0, [], (2, 2), radius=0.1).reachable == 0


def test_smaller_reach_raises_the_chance_level():
    joints = np.array([[[0.3, 0.3], [0.7, 0.7]]])
    peaks = np.zeros((1, 1, 2))
    loose, tight = (score_clip(peaks, joints, 0, [(0, 1)], (7, 7), reach=r).random_region.single for r in (0.5, 0.0))
    assert 0 < loose < tight < 1


def test_summary_weights_clips_by_their_frames():
    joints = np.tile([[0.5, 0.5], [0.5, 0.9]], (4, 1, 1))
    hit, miss = np.tile([0.5, 0.5], (4, 1, 1)), np.tile([0.1, 0.1], (4, 1, 1))
    away = joints.copy()
    away[1:, 0] = 2.0
    scores = [
        score_clip(hit, joints, 0, [(0, 1)], (5, 5), reach=0.0),
        score_clip(miss, away, 0, [(0, 1)], (5, 5), reach=0.0),
        score_clip(hit, np.full_like(joints, 2.0), 0, [(0, 1)], (5, 5)),
    ]
    result = summarize(scores)
    assert (result.clips, result.frames, result.out_of_view) == (2, 5, 7)
    assert result.tracklets == HitRates(0.8, 0.8, 0.8) and result.per_tracklet == (0.8,)
    assert result.above_chance == pytest.approx(((1 - 1 / 3) + (0 - 1 / 3)) / 2)
    assert result.above_chance_error == pytest.approx(0.5), "the standard deviation of (2/3, -1/3) is 1/√2"
    assert summarize(scores[:1]).above_chance_error is None
    with pytest.raises(ValueError, match="none with a frame"):
        summarize(scores[2:])


def test_invalid_score_arguments():
    peaks, joints = np.zeros((3, 1, 2)), np.full((3, 2, 2), 0.5)
    with pytest.raises(ValueError, match="same frames"):
        score_clip(peaks[:2], joints, 0, [], (4, 4))
    with pytest.raises(ValueError, match="limb is 2"):
        score_clip(peaks, joints, 2, [], (4, 4))


def hand_and_foot(clip):
    """The hand is the blob, in a file of four times the frames shown; the foot stays in a corner."""
    hand = np.repeat(blob_path(clip.label), 4, axis=0)
    return np.stack([hand, np.full_like(hand, 0.875)], axis=1)


def test_model_that_follows_the_blob(blob_clips):
    model = BlobModel().train()
    result = measure_localization(
        model,
        blob_clips,
        hand_and_foot,
        joint_names=JOINT_NAMES,
        defining=("hand", "hand", None),
        bones=[JOINT_NAMES],
        read=read_blob,
    )
    assert result.overall.per_tracklet == (1.0, 0.0), "bright follows the hand, dark never does"
    assert result.overall.tracklets == HitRates(0.5, 1.0, 1.0)
    assert (result.overall.clips, result.overall.frames, result.skipped_clips) == (8, 8 * 6, 4)
    assert result.grid == (GRID, GRID) and result.overall.reachable == 1.0
    assert 0 < result.overall.random_region.single < 0.5
    assert list(result.per_joint) == ["hand"] and result.per_joint["hand"] == result.overall
    assert model.training and set(model.modes) == {(False, False)}, "eval mode, restored afterwards"
    stored = json.loads(json.dumps(result.to_dict()))
    assert stored["overall"]["tracklets"]["best"] == 1.0 and stored["radius"] == 0.1


def test_joints_are_those_of_the_frames_shown(blob_clips):
    """With the first frames instead of the centers, the hand moves a quarter of the distance."""
    arguments = {"joint_names": JOINT_NAMES, "defining": ("hand", None, None), "bones": [JOINT_NAMES]}
    wrong = measure_localization(
        BlobModel(tracklets=1),
        blob_clips,
        hand_and_foot,
        indices=lambda count, frames: np.arange(frames),
        read=read_blob,
        **arguments,
    )
    assert math.isclose(wrong.overall.tracklets.single, 2 / 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": BlobModel("backbone")}, "has no maps"),
        ({"defining": ("hand",)}, "1 entries, expected one for each of 3"),
        ({"defining": ("hand", "nose", None)}, "not tracked: nose"),
        ({"defining": (None, None, None)}, "nothing to measure"),
        ({"bones": [("hand", "knee")]}, "not tracked: knee"),
    ],
)
def test_invalid_arguments_are_reported_before_reading_clips(blob_clips, change, message):
    def unread(clip):
        raise AssertionError("a clip was read")

    arguments = {"model": BlobModel(), "defining": ("hand",) * len(NAMES), "bones": [JOINT_NAMES], **change}
    model = arguments.pop("model")
    with pytest.raises(ValueError, match=message):
        measure_localization(model, blob_clips, hand_and_foot, joint_names=JOINT_NAMES, read=unread, **arguments)


@pytest.fixture
def motion(tmp_path):
    """Two clips of three frames of 40 pixels, in which the right ankle moves from the center to the lower right."""
    ankle = [[0.5, 0.5], [0.75, 0.75], [0.95, 0.95]]
    clips = {f"clips/test/{name}.mp4": [[[0.1, 0.1], position] for position in ankle] for name in "ab"}
    (tmp_path / "joints.json").write_text(json.dumps({"names": ["neck", "right_ankle"], "clips": clips}))
    (tmp_path / "dataset.json").write_text(json.dumps({"size": 40}))
    names = ["walk", "kick with the right leg"]
    return ClipSet("motion", "test", tmp_path, [Clip(tmp_path / path, i) for i, path in enumerate(clips)], names)


@pytest.mark.parametrize(("fraction", "expected"), [(1.0, [0.5, 0.75, 0.95]), (0.5, [0.5, 1.0, 1.4])])
def test_defining_limb_is_in_the_coordinates_of_the_crop(motion, configured, tmp_path, fraction, expected):
    torch.manual_seed(0)
    config = configured(tmp_path, f"model.test_crop={fraction}")
    limb = defining_limb(motion, build_model("backbone", motion.class_names, config.model))
    assert limb(motion.clips[0]) is None, "no joint distinguishes a walk"
    np.testing.assert_allclose(limb(motion.clips[1]), np.stack([expected] * 2, axis=1))
