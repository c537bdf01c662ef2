import numpy as np
import pytest

pytest.importorskip("pybullet_data", reason="the recordings are inside the package pybullet")

from art.data.motion.classes import CLASSES
from art.data.motion.takes import load_take
from art.data.motion.views import DISTANCE, HUE, PITCH, SPEED, YAW, alternating, draw_shot, poses_of


def shots(split, seed=0, per_class=20):
    return [
        draw_shot(motion_class, split, seed=seed, class_index=c, index=i, frames=8)
        for c, motion_class in enumerate(CLASSES)
        for i in range(per_class)
    ]


TRAIN, TEST = shots("train"), shots("test")

NOT_SHARED = {
    "yaw": (YAW, lambda shot: shot.view.yaw),
    "body hue": (HUE, lambda shot: shot.body_hue),
    "floor hue": (HUE, lambda shot: shot.floor_hue),
}


@pytest.mark.parametrize("name", NOT_SHARED)
def test_train_and_test_share_no_camera_and_no_colour(name):
    (low, high, bins), value = NOT_SHARED[name]
    train, test = (np.array([value(shot) for shot in split]) for split in (TRAIN, TEST))
    gap = 0.2 * (high - low) / bins
    assert np.abs(train[:, None] - test[None]).min() >= gap * 0.999
    in_bin = [np.unique(((values - low) * bins / (high - low)).astype(int)) for values in (train, test)]
    assert in_bin[0].tolist() == list(range(0, bins, 2)), "training must use every bin of its own"
    assert in_bin[1].tolist() == list(range(1, bins, 2))


def test_colours_on_the_picture_are_those_drawn():
    import colorsys

    for shot in TRAIN[:50] + TEST[:50]:
        assert colorsys.rgb_to_hsv(*shot.view.body)[0] == pytest.approx(shot.body_hue)
        assert colorsys.rgb_to_hsv(*shot.view.floor)[0] == pytest.approx(shot.floor_hue)


def test_the_other_numbers_cover_their_ranges_in_both_splits():
    ranges = {
        "pitch": (*PITCH, lambda shot: shot.view.pitch),
        "distance": (*DISTANCE, lambda shot: shot.view.distance),
        "speed": (*SPEED, lambda shot: shot.speed),
    }
    for low, high, value in ranges.values():
        for split in (TRAIN, TEST):
            values = [value(shot) for shot in split]
            assert low <= min(values) < low + 0.1 * (high - low)
            assert high - 0.1 * (high - low) < max(values) <= high


def test_a_shot_is_a_function_of_seed_split_class_and_index():
    def yaw(seed=0, split="train", class_index=0, index=0):
        return draw_shot(CLASSES[0], split, seed=seed, class_index=class_index, index=index, frames=4).view.yaw

    assert yaw() == yaw()
    assert len({yaw(), yaw(seed=1), yaw(split="test"), yaw(class_index=1), yaw(index=1)}) == 5


def test_the_number_of_frames_changes_nothing_else():
    few, many = (draw_shot(CLASSES[0], "train", seed=0, class_index=0, index=0, frames=n) for n in (4, 24))
    assert few.view == many.view
    assert (few.times[0], few.times[-1]) == (many.times[0], many.times[-1])


def test_times_run_through_the_action():
    for c, motion_class in enumerate(CLASSES):
        action, take = motion_class.action, load_take(motion_class.action.take)
        for shot in TRAIN[20 * c : 20 * (c + 1)]:
            assert (np.diff(shot.times) >= 0).all()
            if action.anywhere:
                assert 0 <= shot.times[0] <= take.duration
                assert shot.times[-1] - shot.times[0] == pytest.approx(action.seconds * shot.speed)
            else:
                assert 0 <= shot.times[0] <= 0.1 * action.seconds
                assert shot.times[-1] <= take.duration


def test_poses_are_those_of_the_class():
    for c, motion_class in enumerate(CLASSES):
        poses = poses_of(motion_class, TRAIN[20 * c])
        assert poses.root.shape == (8, 3)
        assert all(np.isfinite(values).all() for values in poses.joints.values())


def test_alternating_bins():
    rng = np.random.default_rng(0)
    drawn = np.array([alternating(rng, 10.0, 20.0, 4, "test") for _ in range(300)])
    for low, high in ((12.75, 14.75), (17.75, 19.75)):
        inside = drawn[(drawn >= low) & (drawn <= high)]
        assert len(inside) > 100
        assert inside.min() < low + 0.1
        assert inside.max() > high - 0.1
        drawn = drawn[(drawn < low) | (drawn > high)]
    assert len(drawn) == 0


def test_an_unknown_split():
    with pytest.raises(ValueError, match="split must be one of train, test, got 'val'"):
        draw_shot(CLASSES[0], "val", seed=0, class_index=0, index=0, frames=4)
