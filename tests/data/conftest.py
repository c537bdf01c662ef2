"""Fixtures. Test videos show the number of each frame in binary, as eight black or white squares."""

import contextlib
import json
import resource
from fractions import Fraction

import av
import numpy as np
import pytest

from art.data.datasets.base import Clip, ClipSet
from art.data.decoding import torchcodec
from art.data.shards import write_shards

SQUARE = 16
HEIGHT, WIDTH = 2 * SQUARE, 4 * SQUARE


def draw(number, height=HEIGHT, width=WIDTH):
    """Draw a number, [height, width, 3] uint8: bit i is square i, row by row."""
    bits = np.array([(number >> i) & 1 for i in range(8)], dtype=np.uint8).reshape(2, 4) * 255
    gray = np.kron(bits, np.ones((height // 2, width // 4), dtype=np.uint8))
    gray = np.pad(gray, ((0, height % 2), (0, width % 4)), mode="edge")
    return np.repeat(gray[..., None], 3, axis=2)


def numbers(video):
    """Return the number that each frame of ``video`` [t, 3, h, w] shows."""
    video = video[..., : video.shape[2] // 2 * 2, : video.shape[3] // 4 * 4]
    t, _, h, w = video.shape
    squares = video.float().reshape(t, 3, 2, h // 2, 4, w // 4).mean(dim=(1, 3, 5)).reshape(t, 8)
    assert ((squares < 64) | (squares > 192)).all(), "the squares are neither black nor white"
    return [sum(int(bit > 128) << i for i, bit in enumerate(frame)) for frame in squares.tolist()]


def write(path, count=24, *, codec="libx264", gop=12, times=None, options=None, first=0, rate=12, size=(HEIGHT, WIDTH)):
    """Write ``count`` numbered frames; ``times`` are in units of 1/rate seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "18", **(options or {})} if codec == "libx264" else options or {}
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(draw(i, *size), format="rgb24")
            frame.pts, frame.time_base = first + (times[i] if times else i), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def numbered():
    return write


@pytest.fixture
def draw_number():
    return draw


@pytest.fixture
def read_numbers():
    return numbers


@pytest.fixture
def video_with_two_sizes(tmp_path):
    """A Matroska file of six frames of 64×32, then six of 128×64."""
    path = tmp_path / "two_sizes.mkv"
    with av.open(str(path), "w") as new:
        stream = None
        for part, size in enumerate(((32, 64), (64, 128))):
            with av.open(str(write(tmp_path / f"{part}.webm", 6, codec="libvpx", size=size))) as old:
                stream = stream or new.add_stream_from_template(old.streams.video[0])
                for packet in old.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = packet.pts + 1000 * part
                        packet.stream = stream
                        new.mux(packet)
    return path


@pytest.fixture
def limited_file_size():
    """Limits the size of files: writing beyond it fails, as on a full disk."""

    @contextlib.contextmanager
    def limit(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def write_files(tmp_path):
    """Writes text files below ``tmp_path``, from names (which create empty files) and mappings of names to text."""

    def write_all(*files):
        for part in files:
            for name, text in ({part: ""} if isinstance(part, str) else part).items():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return write_all


@pytest.fixture
def relative_paths():
    return lambda clip_set: [clip_set.relative_path(i) for i in range(len(clip_set))]


@pytest.fixture
def clip_set(tmp_path, numbered):
    """Ten clips of 24 frames, of two alternating classes."""
    source = numbered(tmp_path / "source.mp4", options={"bf": "0"})
    clips = []
    for i in range(10):
        path = tmp_path / f"{i}.mp4"
        path.write_bytes(source.read_bytes())
        clips.append(Clip(path, i % 2))
    return ClipSet("numbers", "train", tmp_path, tuple(clips), ("even", "odd"))


@pytest.fixture
def spoil(clip_set):
    """Overwrites the files of some clips with text."""

    def write_over(*indices):
        for index in indices:
            clip_set.clips[index].path.write_text("no video " * 20)

    return write_over


@pytest.fixture
def motion_root(tmp_path):
    """The files of a motion dataset, without its videos."""
    (tmp_path / "dataset.json").write_text('{"size": 112}')
    (tmp_path / "classes.txt").write_text("turn left\nturn right\nrun\n")
    for split in ("train", "test"):
        lines = [
            "path,label,class,yaw,start",
            f"clips/{split}/a.mp4,2,run,10.0,0.5",
            f"clips/{split}/b.mp4,0,turn left,1,3",
        ]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    positions = [[[0.1, 0.2], [0.3, 0.4]]] * 3
    (tmp_path / "joints.json").write_text(json.dumps({"names": ["x", "y"], "clips": {"clips/train/a.mp4": positions}}))
    return tmp_path


@pytest.fixture(params=["pyav", "torchcodec"])
def decoder(request):
    """The name of each decoder that can be used."""
    problem = torchcodec.probe() if request.param == "torchcodec" else None
    if problem is not None:
        pytest.skip(f"torchcodec {problem}")
    return request.param


@pytest.fixture
def many(tmp_path, numbered):
    """40 clips of one small video under 40 names, in three classes."""
    content = numbered(tmp_path / "source.mp4", 8, options={"bf": "0"}).read_bytes()
    root = tmp_path / "clips"
    root.mkdir()
    clips = tuple(Clip(root / f"{i}.mp4", i % 3) for i in range(40))
    for clip in clips:
        clip.path.write_bytes(content)
    return ClipSet("numbers", "train", root, clips, ("a", "b", "c"), ("A", "B", "C"), (1, 0, 2))


@pytest.fixture
def shards(many, tmp_path):
    """The same clips in ten shards of four."""
    size = many.clips[0].path.stat().st_size
    return write_shards(many, tmp_path / "shards", shard_bytes=4 * size)
