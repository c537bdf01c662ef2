import colorsys
from dataclasses import replace

import av
import numpy as np
import pytest

pytest.importorskip("pybullet_data", reason="the recordings and the renderer are in the package pybullet")

from art.data.decoding.video import read_frames
from art.data.motion import render
from art.data.motion.render import (
    DISTANCE,
    HUE,
    PITCH,
    SPEED,
    TRACKED,
    YAW,
    ClipJob,
    Renderer,
    View,
    clip_poses,
    render_clip,
    sample_bins,
    sample_params,
    write_video,
)
from art.data.motion.takes import CLASSES, load_take, resample

VIEW = View(20.0, 10.0, 2.6, 48.0, body=(0.9, 0.1, 0.1), floor=(0.2, 0.4, 0.9), light=(0.5, 2.0, 0.0))
POSES = resample(load_take("walk"), np.array([0.0, 0.3]))

PARAMS = {
    split: [
        sample_params(motion_class, split, seed=0, class_index=c, index=i, frames=8)
        for c, motion_class in enumerate(CLASSES)
        for i in range(20)
    ]
    for split in ("train", "test")
}
DISJOINT = {
    "yaw": (YAW, lambda params: params.view.yaw),
    "body hue": (HUE, lambda params: params.body_hue),
    "floor hue": (HUE, lambda params: params.floor_hue),
}
SHARED = {
    "pitch": (*PITCH, lambda params: params.view.pitch),
    "distance": (*DISTANCE, lambda params: params.view.distance),
    "speed": (*SPEED, lambda params: params.speed),
}


@pytest.mark.parametrize("name", DISJOINT)
def test_splits_have_disjoint_yaws_and_hues(name):
    (low, high, bins), value = DISJOINT[name]
    train, test = (np.array([value(params) for params in PARAMS[split]]) for split in ("train", "test"))
    gap = 0.2 * (high - low) / bins
    assert np.abs(train[:, None] - test[None]).min() >= gap * 0.999
    used = [np.unique(((values - low) * bins / (high - low)).astype(int)) for values in (train, test)]
    assert used[0].tolist() == list(range(0, bins, 2))
    assert used[1].tolist() == list(range(1, bins, 2))


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("split", PARAMS)
def test_other_parameters_cover_their_range(name, split):
    low, high, value = SHARED[name]
    values = [value(params) for params in PARAMS[split]]
    assert low <= min(values) < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < max(values) <= high


def test_colors_have_the_sampled_hue():
    for params in PARAMS["train"][:50] + PARAMS["test"][:50]:
        assert colorsys.rgb_to_hsv(*params.view.body)[0] == pytest.approx(params.body_hue)
        assert colorsys.rgb_to_hsv(*params.view.floor)[0] == pytest.approx(params.floor_hue)


def test_parameters_depend_on_seed_split_class_and_index():
    def sample(seed=0, split="train", class_index=0, index=0, frames=4):
        return sample_params(CLASSES[0], split, seed=seed, class_index=class_index, index=index, frames=frames)

    changes = ({}, {}, {"seed": 1}, {"split": "test"}, {"class_index": 1}, {"index": 1})
    yaws = [sample(**change).view.yaw for change in changes]
    assert yaws[0] == yaws[1] and len(set(yaws)) == 5
    few, many = sample(), sample(frames=24)
    assert (few.view, few.times[0], few.times[-1]) == (many.view, many.times[0], many.times[-1])
    with pytest.raises(ValueError, match="split must be one of train, test, got 'val'"):
        sample(split="val")


def test_times_and_poses_of_clips():
    for c, motion_class in enumerate(CLASSES):
        action, take = motion_class.action, load_take(motion_class.action.take)
        for params in PARAMS["train"][20 * c : 20 * (c + 1)]:
            assert (np.diff(params.times) >= 0).all()
            if action.periodic:
                assert 0 <= params.times[0] <= take.duration
                assert params.times[-1] - params.times[0] == pytest.approx(action.seconds * params.speed)
            else:
                assert 0 <= params.times[0] <= 0.1 * action.seconds
                assert params.times[-1] <= take.duration
        poses = clip_poses(motion_class, PARAMS["train"][20 * c])
        assert poses.root.shape == (8, 3)
        assert all(np.isfinite(values).all() for values in poses.joints.values())


def test_sample_bins():
    rng = np.random.default_rng(0)
    values = np.array([sample_bins(rng, 10.0, 20.0, 4, "test") for _ in range(300)])
    for low, high in ((12.75, 14.75), (17.75, 19.75)):
        inside = values[(values >= low) & (values <= high)]
        assert len(inside) > 100
        assert inside.min() < low + 0.1
        assert inside.max() > high - 0.1
        values = values[(values < low) | (values > high)]
    assert len(values) == 0


@pytest.fixture(scope="module")
def renderer():
    with Renderer(64) as renderer:
        yield renderer


def test_frames_show_the_body_at_the_joints(renderer):
    frames, joints = renderer.render(POSES, VIEW)
    assert frames.shape == (2, 64, 64, 3)
    assert frames.dtype == np.uint8
    assert joints.shape == (2, len(TRACKED), 2)
    for frame, positions in zip(frames, joints, strict=True):
        body = frame[..., 0].astype(int) > frame[..., 2].astype(int) + 20
        assert 0.01 < body.mean() < 0.3
        rows, columns = np.nonzero(body)
        for x, y in positions * 64:
            assert np.hypot(columns + 0.5 - x, rows + 0.5 - y).min() < 3


def test_joints_are_anatomically_plausible(renderer):
    (positions,) = renderer.render(resample(load_take("walk"), np.zeros(1)), VIEW)[1]
    front = dict(zip(TRACKED, positions, strict=True))
    assert front["neck"][1] < front["chest"][1] < front["right_hip"][1] < front["right_knee"][1]
    assert front["right_knee"][1] < front["right_ankle"][1]
    assert front["right_shoulder"][0] < front["left_shoulder"][0], "from the front, the right side is on the left"
    behind = dict(zip(TRACKED, renderer.render(POSES, replace(VIEW, yaw=180.0))[1][0], strict=True))
    assert behind["right_shoulder"][0] > behind["left_shoulder"][0]


def test_rendering_does_not_depend_on_earlier_calls(renderer, capfd):
    first = renderer.render(POSES, VIEW)
    renderer.render(POSES, replace(VIEW, yaw=-40.0, body=(0.1, 0.9, 0.1)))
    second = renderer.render(POSES, VIEW)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    with Renderer(32) as small:
        assert small.render(POSES, VIEW)[0].shape == (2, 32, 32, 3)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", ""), "pybullet's output is suppressed"


def test_write_video(tmp_path):
    ramp = np.linspace(30, 220, 48).astype(np.uint8)
    frames = np.stack([np.roll(np.broadcast_to(ramp[None, :, None], (48, 48, 3)), 4 * i, axis=1) for i in range(30)])
    write_video(tmp_path / "a.mp4", frames, fps=12)
    decoded = read_frames(tmp_path / "a.mp4").permute(0, 2, 3, 1).numpy()
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 3
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (12, 30)
        keyframes = [packet.pts * stream.time_base * 12 for packet in container.demux(stream) if packet.is_keyframe]
    assert keyframes[0] == 0
    assert np.diff([float(k) for k in [*keyframes, 30]]).max() <= 12
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def moving_disc(size):
    """24 frames of a disc that moves over a checkerboard."""
    y, x = np.mgrid[:size, :size]
    board = np.where((x // 8 + y // 8) % 2 == 0, 90, 150)
    centers = size / 4 + 5 * np.arange(24)
    frames = [np.where(np.hypot(x - center, y - size / 2) < size / 10, 220 - x + y, board) for center in centers]
    return np.stack(frames)[..., None].repeat(3, -1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [64, 112])
def test_video_bytes_are_the_same_on_every_cpu(tmp_path, monkeypatch, size):
    frames, path, written = moving_disc(size), tmp_path / "a.mp4", []
    for _ in range(10):
        dirty = [np.full(1000 * n, 255, dtype=np.uint8) for n in range(1, 60)]  # memory that the encoder will reuse
        del dirty
        write_video(path, frames, fps=12)
        written.append(path.read_bytes())
    params = render._DETERMINISTIC["x264-params"]
    monkeypatch.setitem(render._DETERMINISTIC, "x264-params", f"{params}:asm=0")  # a CPU without vector instructions
    write_video(path, frames, fps=12)
    assert set(written) == {path.read_bytes()}


def test_render_clip(tmp_path):
    job = ClipJob(tmp_path, "test", 3, 12, seed=0, size=64, frames=4, fps=12)
    assert job.path == "clips/test/03_012.mp4"
    render_clip(job)
    video, joints = (tmp_path / job.path).read_bytes(), np.load(job.joints_file)
    render_clip(job)
    assert joints.shape == (4, len(TRACKED), 2)
    assert read_frames(tmp_path / job.path).shape == (4, 3, 64, 64)
    assert (tmp_path / job.path).read_bytes() == video
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["03_012.mp4", "03_012.npy"]
