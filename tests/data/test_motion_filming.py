import av
import numpy as np
import pytest

from art.data.decoding.video import read_frames
from art.data.motion import filming
from art.data.motion.filming import Filming, Job, write_video


def test_a_written_video_shows_what_was_given(tmp_path):
    ramp = np.linspace(30, 220, 48).astype(np.uint8)
    frames = np.stack([np.roll(np.broadcast_to(ramp[None, :, None], (48, 48, 3)), 4 * i, axis=1) for i in range(30)])
    write_video(tmp_path / "a.mp4", frames, fps=12)
    shown = read_frames(tmp_path / "a.mp4").permute(0, 2, 3, 1).numpy()
    assert shown.shape == frames.shape
    assert np.abs(shown.astype(int) - frames).mean() < 3
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (12, 30)
        keyframes = [packet.pts * stream.time_base * 12 for packet in container.demux(stream) if packet.is_keyframe]
    assert keyframes[0] == 0
    assert np.diff([float(k) for k in [*keyframes, 30]]).max() <= 12
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def disc_over_tiles(size):
    """24 frames in which a disc moves over a floor of tiles."""
    y, x = np.mgrid[:size, :size]
    floor = np.where((x // 8 + y // 8) % 2 == 0, 90, 150)
    centres = size / 4 + 5 * np.arange(24)
    frames = [np.where(np.hypot(x - cx, y - size / 2) < size / 10, 220 - x + y, floor) for cx in centres]
    return np.stack(frames)[..., None].repeat(3, -1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [64, 112])
def test_the_same_frames_give_the_same_bytes_on_every_cpu(tmp_path, monkeypatch, size):
    frames, path, written = disc_over_tiles(size), tmp_path / "a.mp4", []
    for _ in range(10):
        dirty = [np.full(1000 * n, 255, dtype=np.uint8) for n in range(1, 60)]  # which the encoder's memory then holds
        del dirty
        write_video(path, frames, fps=12)
        written.append(path.read_bytes())
    params = filming._SAME_BITS["x264-params"]
    monkeypatch.setitem(filming._SAME_BITS, "x264-params", f"{params}:asm=0")  # as on a CPU that has nothing special
    write_video(path, frames, fps=12)
    assert set(written) == {path.read_bytes()}


def test_a_filmed_clip(tmp_path):
    pytest.importorskip("pybullet_data", reason="the recordings and the renderer are inside the package pybullet")
    from art.data.motion.render import TRACKED, Stage

    job = Job("test", 3, 12)
    assert job.path == "clips/test/03_012.mp4"
    shared = Filming(tmp_path, seed=0, size=64, frames=4, fps=12)
    with Stage(64) as stage:
        shared.film(stage, job)
        video, joints = (tmp_path / job.path).read_bytes(), np.load(job.joints_file(tmp_path))
        shared.film(stage, job)
    assert joints.shape == (4, len(TRACKED), 2)
    assert read_frames(tmp_path / job.path).shape == (4, 3, 64, 64)
    assert (tmp_path / job.path).read_bytes() == video
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["03_012.mp4", "03_012.npy"]
