import itertools
from fractions import Fraction

import av
import numpy as np
import pytest

from art.data.decoding.video import VideoError, frame_times, read_frames
from art.data.parallel import Stopped
from art.data.prepare import reencode as reencode_module
from art.data.prepare.reencode import Encoding, WriteError, check_encoder, reencode

VARIABLE = [0, 1, 2, 5, 6, 11, 12, 20, 21, 22, 23, 40, 41, 42, 50, 51, 60, 61, 62, 63, 64, 65, 66, 90]
KINDS = {
    "reordered.mp4": {},
    "late.mkv": {"first": 100, "gop": 6},
    "quick.mp4": {"rate": 60},
    "variable.mp4": {"times": VARIABLE, "rate": 90, "options": {"bf": "2"}},
    "variable.mkv": {"times": VARIABLE, "rate": 30},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "xvid.avi": {"codec": "mpeg4", "options": {"b": "2M", "bf": "2"}},
    "h264.avi": {"gop": 6},
    "late.ts": {"first": 100},
}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "clip.mp4"


def keyframes(path):
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    return [i for i, p in enumerate(sorted(packets, key=lambda packet: packet.pts)) if p.is_keyframe]


def write_frames(path, values, pixel_format="yuv420p", codec="libx264", rotation=0, **tags):
    """Write RGB frames [t, h, w, 3], nearly lossless."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12, options={"crf": "4"} if codec.startswith("libx264") else {})
        stream.height, stream.width, stream.pix_fmt = *values.shape[1:3], pixel_format
        if rotation:
            stream.set_display_rotation(rotation)
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        color_options = {f"dst_{name}": tags.get(name) for name in ("colorspace", "color_range")}
        for i, value in enumerate(values):
            frame = av.VideoFrame.from_ndarray(value, "rgb24").reformat(format=pixel_format, **color_options)
            frame.pts, frame.time_base = i, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def color_patches(height=64, width=96, count=3):
    """Frames with a large patch of another color in each corner."""
    patches = np.array([[(200, 40, 30), (30, 180, 60)], [(40, 50, 210), (240, 240, 240)]], np.uint8)
    rows, columns = np.arange(height) >= height // 2, np.arange(width) >= width // 2
    return np.repeat(patches[np.ix_(rows.astype(int), columns.astype(int))][None], count, axis=0)


@pytest.mark.parametrize("name", KINDS)
def test_frames_and_times_are_kept(name, tmp_path, target, numbered, read_numbers):
    source = numbered(tmp_path / name, 24, **KINDS[name])
    before, changed = source.read_bytes(), source.stat().st_mtime_ns
    result = reencode(source, target, Encoding(crf=18))
    assert read_numbers(read_frames(target)) == list(range(24))
    assert frame_times(target) == pytest.approx(frame_times(source), abs=1e-9)
    assert (result.frames, result.bytes) == (24, target.stat().st_size)
    assert source.read_bytes() == before
    assert source.stat().st_mtime_ns == changed
    assert [path.name for path in target.parent.iterdir()] == ["clip.mp4"]
    reencode(source, target.with_name("again.mp4"), Encoding(crf=18))
    assert target.read_bytes() == target.with_name("again.mp4").read_bytes()


@pytest.mark.parametrize("every", [12, 5, 1])
def test_keyframes_are_exactly_where_requested(every, tmp_path, target, numbered):
    # A new scene starts at frame 18, where x264 places a keyframe by default.
    frames = np.zeros((30, 32, 64, 3), np.uint8)
    frames[18:] = np.random.default_rng(0).integers(0, 256, (32, 64, 3))
    source = write_frames(tmp_path / "a.mp4", frames)
    assert keyframes(source) != list(range(0, 30, every))
    reencode(source, target, Encoding(keyframe_every=every))
    assert keyframes(target) == list(range(0, 30, every))


@pytest.mark.parametrize("name", ["reordered.mp4", "vp9.webm", "xvid.avi"])
def test_cut_has_exactly_its_frames(name, tmp_path, target, numbered, read_numbers):
    source = numbered(tmp_path / name, 60, **{**KINDS[name], "gop": 25})
    for first, last in ((0, 10), (7, 8), (30, 45), (41, None)):
        reencode(source, target, Encoding(crf=18), start=first / 12, end=last and last / 12)
        count = (last or 60) - first
        assert read_numbers(read_frames(target)) == list(range(first, first + count))
        assert frame_times(target) == pytest.approx([i / 12 for i in range(count)], abs=1e-3)  # WebM rounds to 1 ms
        assert keyframes(target) == list(range(0, count, 12))


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((64, 96), 320, (64, 96)),
        ((64, 96), 32, (32, 48)),
        ((96, 64), 32, (48, 32)),
        ((90, 160), 32, (32, 56)),  # 56.9: 57 is odd
        ((31, 63), 320, (30, 62)),
        ((33, 64), 32, (32, 62)),
    ],
)
def test_size(size, short_side, expected, tmp_path, target):
    source = write_frames(tmp_path / "a.mp4", color_patches(*size), "yuv444p")  # which may be odd
    reencode(source, target, Encoding(short_side=short_side))
    assert read_frames(target).shape == (3, 3, *expected)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_frames_are_written_upright(rotation, tmp_path, target):
    source = write_frames(tmp_path / "a.mp4", color_patches(44, 64), rotation=rotation)
    shown = read_frames(source)
    assert shown.shape[2:] == ((64, 44) if rotation % 180 else (44, 64))
    reencode(source, target, Encoding(crf=10))
    with av.open(str(target)) as container:
        assert next(container.decode(video=0)).rotation == 0
    assert (read_frames(target).float() - shown.float()).abs().mean() < 3


@pytest.mark.parametrize(
    ("pixel_format", "codec", "tags"),
    [
        ("yuv420p", "libx264", {}),
        ("yuv420p", "libx264", {"colorspace": 1, "color_primaries": 1, "color_trc": 1}),
        ("yuv420p", "libx264", {"color_range": 2}),
        ("yuvj420p", "libx264", {}),
        ("yuv444p10le", "libx264", {}),
        ("rgb24", "libx264rgb", {}),
    ],
)
@pytest.mark.parametrize("rotation", [0, 90])
def test_colors_are_kept(pixel_format, codec, tags, rotation, tmp_path, target):
    source = write_frames(tmp_path / "a.mp4", color_patches(), pixel_format, codec, rotation, **tags)
    reencode(source, target, Encoding(crf=10))
    difference = read_frames(target).float() - read_frames(source).float()
    assert difference.mean(dim=(0, 2, 3)).abs().max() < 2.5
    assert difference.abs().mean() < 3
    with av.open(str(target)) as container:
        context = container.streams.video[0].codec_context
        assert context.format.name in ("yuv420p", "yuvj420p")
        assert context.colorspace != 0, "the colorspace of RGB"
        for name, value in tags.items():
            assert getattr(context, name) == value


@pytest.mark.parametrize(("rotation", "expected"), [(0, Fraction(4, 3)), (90, Fraction(3, 4))])
def test_pixel_aspect_ratio_is_kept_and_rotated(rotation, expected, tmp_path, target):
    shape = Fraction(4, 3)
    reencode(write_frames(tmp_path / "a.mp4", color_patches(), rotation=rotation, sample_aspect_ratio=shape), target)
    with av.open(str(target)) as container:
        assert container.streams.video[0].sample_aspect_ratio == expected


def test_sound_is_dropped(tmp_path, target):
    source = tmp_path / "a.mp4"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=12)
        video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for value in color_patches(count=12):
            container.mux(video.encode(av.VideoFrame.from_ndarray(value, "rgb24")))
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        tone.sample_rate = 16000
        container.mux(sound.encode(tone))
        container.mux([*video.encode(), *sound.encode()])
    reencode(source, target)
    with av.open(str(target)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert len(frame_times(target)) == 12


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated", "damaged"])
def test_broken_original_leaves_no_file(damage, tmp_path, target, numbered):
    source = tmp_path / "a.avi"
    if damage != "missing":
        content = numbered(source, 60, codec="mpeg4").read_bytes()
        contents = {"empty": b"", "text": b"no video " * 20, "truncated": content[: len(content) // 2]}
        source.write_bytes(contents.get(damage, b""))
    if damage == "damaged":
        content = numbered(source.with_suffix(".mp4"), 60, gop=60).read_bytes()
        start = content.index(b"mdat") + 1000
        source.write_bytes(content[:start] + bytes(4000) + content[start + 4000 :])
    target.parent.mkdir()
    target.write_bytes(b"previous")
    with pytest.raises(VideoError) as caught:
        reencode(source, target)
    assert caught.value.path == source
    assert target.read_bytes() == b"previous"
    assert [path.name for path in target.parent.iterdir()] == ["clip.mp4"]


def test_frame_size_that_changes(video_with_two_sizes, target):
    with pytest.raises(VideoError, match="changes its frame size from 64×32 to 128×64"):
        reencode(video_with_two_sizes, target)
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("size", [0, 5_000, 60_000])
def test_full_disk_leaves_no_partial_file(size, tmp_path, target, limited_file_size):
    frames = np.random.default_rng(0).integers(0, 256, (24, 64, 96, 3)).astype(np.uint8)
    source = write_frames(tmp_path / "a.mp4", frames)
    with limited_file_size(size), pytest.raises(WriteError, match="File too large") as caught:
        reencode(source, target)
    assert caught.value.filename == str(target)
    assert not list(target.parent.iterdir())
    sizes = [reencode(source, target, Encoding(crf=crf)).bytes for crf in (15, 23, 35)]
    assert sizes[0] > sizes[1] > max(sizes[2], 80_000), "without the limit it works"


def test_output_is_verified(tmp_path, target, numbered, monkeypatch):
    source, write = numbered(tmp_path / "a.mp4"), reencode_module._write

    def drop_first(container, stream, frame):
        if frame is None or frame.pts != 0:
            write(container, stream, frame)

    monkeypatch.setattr(reencode_module, "_write", drop_first)
    with pytest.raises(VideoError, match="23 of 24 frames kept their time"):
        reencode(source, target)
    assert not list(target.parent.iterdir())


def test_stop(tmp_path, target, numbered):
    calls = itertools.count(1)
    with pytest.raises(Stopped):
        reencode(numbered(tmp_path / "a.mp4"), target, stop=lambda: next(calls) == 5)
    assert next(calls) == 6
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_side": 15}, "short_side must be an even number of pixels, at least 16, got 15"),
        ({"short_side": 321}, "short_side must be an even number"),
        ({"keyframe_every": 0}, "keyframe_every must be at least 1 frame, got 0"),
        ({"crf": 52}, r"crf must be in 0\.\.51, got 52"),
        ({"crf": -1}, r"crf must be in 0\.\.51, got -1"),
    ],
)
def test_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Encoding(**settings)


def test_missing_encoder(monkeypatch):
    check_encoder()
    monkeypatch.setattr("art.data.prepare.reencode.CODEC", "no_such_codec")
    with pytest.raises(ModuleNotFoundError, match="no encoder 'no_such_codec'"):
        check_encoder()
