import mmap
import pickle
import struct
import wave
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition

from art.data.dataset import ClipDataset
from art.data.decoding.video import (
    VideoError,
    decoded_bytes,
    frame_times,
    iterate_frames,
    read_chosen,
    read_clip,
    read_frames,
)
from art.data.loader import build_loader
from art.data.prepare.reencode import reencode
from art.data.transforms.sampling import FrameSampling, segment_indices
from benchmarks import data_providers


@dataclass
class Kind:
    name: str
    codec: str = "libx264"
    gop: int = 12
    options: dict = field(default_factory=dict)
    first: int = 0
    size: tuple = (32, 64)
    uneven: bool = False

    def times(self, count):
        """Frame times in ticks of 1/12 s; uneven frames last one to four ticks."""
        return [i + 3 * (i // 5) + (i % 5 > 2) if self.uneven else i for i in range(count)]

    def write(self, numbered, directory, count=24):
        return numbered(
            directory / self.name, count, codec=self.codec, gop=self.gop, options=self.options, first=self.first,
            times=self.times(count), size=self.size,
        )  # fmt: skip

    def rejected_by(self, decoder):
        return decoder == "torchcodec" and self.name in REJECTED


VP9 = {"deadline": "realtime", "cpu-used": "8"}
KINDS = [
    Kind("reordered.mp4"),
    Kind("plain.mp4", options={"bf": "0"}),
    Kind("keyframes.mp4", gop=1),
    Kind("open_gop.mp4", gop=6, options={"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=6:min-keyint=3"}),
    Kind("late.mp4", first=100),
    Kind("late.mkv", first=100, gop=6),
    Kind("quicktime.mov"),
    Kind("vp8.webm", "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"}),
    Kind("vp9.webm", "libvpx-vp9", gop=6, options=VP9),
    Kind("xvid.avi", "mpeg4", gop=6, options={"b": "2M"}),
    Kind("xvid_reordered.avi", "mpeg4", gop=6, options={"bf": "2", "b": "2M"}),
    Kind("h264_reordered.avi", gop=6),
    Kind("late.ts", first=100, gop=6),
    Kind("motion_jpeg.avi", "mjpeg", options={"strict": "unofficial", "qmin": "2", "qmax": "2"}),
    Kind("odd.webm", "libvpx-vp9", gop=6, options=VP9, size=(33, 67)),
    Kind("odd.avi", "mpeg4", gop=6, options={"b": "2M"}, size=(35, 65)),
    Kind("uneven.mp4", gop=6, uneven=True),
    Kind("uneven.mkv", gop=10, uneven=True),
    Kind("uneven.webm", "libvpx-vp9", options=VP9, uneven=True),
    Kind("pyramid.mp4", gop=30, options={"x264-params": "bframes=7:b-pyramid=normal:b-adapt=0:scenecut=0"}),
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)

#: Files that torchcodec does not decode exactly: it must raise an error, and never return another frame.
REJECTED = {
    "xvid_reordered.avi": "reordered frames, whose times torchcodec cannot know: use data.decoder=pyav",
    "h264_reordered.avi": "reordered frames, whose times torchcodec cannot know: use data.decoder=pyav",
    "open_gop.mp4": "cannot be decoded by torchcodec: Requested next frame while there are no more frames left",
    "late.ts": "cannot be decoded by torchcodec|is numbered differently by torchcodec",
}


@each_kind
def test_sampled_frames(kind, decoder, tmp_path, numbered, read_numbers):
    path = kind.write(numbered, tmp_path)
    if kind.rejected_by(decoder):
        with pytest.raises(VideoError, match=REJECTED[kind.name]):
            read_clip(path, 8, decoder=decoder)
        return
    assert read_numbers(read_frames(path, decoder=decoder)) == list(range(24))
    for num_frames in (1, 3, 8, 16, 24, 31):
        frames = read_clip(path, num_frames, decoder=decoder)
        assert (frames.shape, frames.dtype) == ((num_frames, 3, *kind.size), torch.uint8)
        assert frames.is_contiguous()
        assert read_numbers(frames) == segment_indices(24, num_frames).tolist()
    for seed in range(4):
        wanted = segment_indices(24, 5, torch.Generator().manual_seed(seed)).tolist()
        frames = read_clip(path, 5, generator=torch.Generator().manual_seed(seed), decoder=decoder)
        assert read_numbers(frames) == wanted


@each_kind
def test_parts_of_a_file(kind, decoder, tmp_path, numbered, read_numbers):
    path = kind.write(numbered, tmp_path, 60)
    if kind.rejected_by(decoder):
        return
    frames = read_frames(path, decoder=decoder)
    for position in range(60):
        assert torch.equal(read_chosen(path, lambda _, i=position: [i], decoder=decoder)[0], frames[position])
    for seed in range(6):  # near and far, in any order, some repeated
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(60, (2 + 3 * seed,), generator=generator).tolist()
        assert torch.equal(read_chosen(path, lambda _, c=chosen: c, decoder=decoder), frames[chosen])
    ticks = [*kind.times(60), kind.times(60)[-1] + 1]
    for first, last in ((0, 10), (7, 8), (30, 45), (41, 60), (59, 60)):
        span = {"start": ticks[first] / 12, "end": ticks[last] / 12}
        assert read_numbers(read_frames(path, **span, decoder=decoder)) == list(range(first, last))
    assert read_numbers(read_frames(path, start=ticks[50] / 12, decoder=decoder)) == list(range(50, 60))
    expected = [30 + i for i in segment_indices(15, 4).tolist()]
    assert read_numbers(read_clip(path, 4, start=ticks[30] / 12, end=ticks[45] / 12, decoder=decoder)) == expected


@each_kind
def test_iterate_frames(kind, tmp_path, numbered):
    path = kind.write(numbered, tmp_path, 60)
    for start, end in ((None, None), (7 / 12, 33 / 12), (50 / 12, None)):
        items = list(iterate_frames(path, start=start, end=end))
        times = [float(item.ticks * item.source.time_base) for item in items]
        assert times == frame_times(path, start=start, end=end)
        images = np.stack([item.frame.to_ndarray(format="rgb24") for item in items])
        expected = read_frames(path, start=start, end=end).permute(0, 2, 3, 1).numpy()
        assert np.abs(images.astype(int) - expected).max() <= 2


@pytest.mark.parametrize(("name", "options"), [("a.mp4", {}), ("a.avi", {"codec": "mpeg4", "options": {"b": "2M"}})])
def test_frames_of_uneven_duration(name, options, tmp_path, numbered, read_numbers):
    times = [0, 1, 2, 5, 6, 10, 20, 21, 22, 40]
    path = numbered(tmp_path / name, 10, times=times, gop=4, **options)
    assert frame_times(path) == pytest.approx([t / 12 for t in times])
    assert read_numbers(read_frames(path, start=5 / 12, end=21 / 12)) == [3, 4, 5, 6]
    assert read_numbers(read_clip(path, 10)) == list(range(10))
    late = numbered(tmp_path / "late.mkv", 10, first=100)
    assert frame_times(late) == pytest.approx([i / 12 for i in range(10)], abs=1e-3), "from the first frame"


@pytest.mark.parametrize("sampling", [FrameSampling(), FrameSampling("dense", 2)])
def test_views_are_concatenated(sampling, tmp_path, numbered, read_numbers):
    frames = read_clip(numbered(tmp_path / "a.mp4", 24), 4, sampling=sampling, views=3)
    assert read_numbers(frames) == sampling.indices(24, 4, views=3).flatten().tolist()


def test_one_frame_and_special_characters(decoder, tmp_path, numbered, read_numbers):
    path = numbered(tmp_path / "a b%20" / "plain.mp4", 1)
    path = path.rename(path.with_name("10:30 é.mp4"))
    assert read_numbers(read_clip(path, 4, decoder=decoder)) == [0] * 4
    assert frame_times(path) == [0.0]


def test_dataset_with_each_decoder(decoder, clip_set, read_numbers):
    dataset = ClipDataset(clip_set, 5, train=True, decoder=decoder, seed=3)
    expected = ClipDataset(clip_set, 5, train=True, seed=3)
    cached = ClipDataset(clip_set, 5, train=True, decoder=decoder, seed=3, cache=True)
    for index in (0, 7):
        numbers = read_numbers(dataset[index]["video"])
        assert numbers == read_numbers(expected[index]["video"]) == read_numbers(cached[index]["video"])


def test_loader_workers_use_one_thread(clip_set):
    class Watched(ClipDataset):
        def stack(self, samples):
            batch = super().stack(samples)
            return batch | {"threads": torch.tensor([torch.get_num_threads()])}

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        loader = build_loader(Watched(clip_set, 4, train=False), 5, workers=2)
        threads = [int(batch["threads"]) for batch in loader]
        loader.close()
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 1]


@pytest.mark.slow
def test_memory_is_constant_over_hundreds_of_decodes(tmp_path):
    files = data_providers.write_leak_files(tmp_path)
    found = data_providers.measure_leak(400, files)
    assert found["failed"] == 80, "one of five files is truncated"
    assert len(found["resident_bytes"]) == 100

    kept = []

    def leak(*_, **__):
        kept.append(mmap.mmap(-1, 2**20))  # not from the heap, which may contain free memory of earlier tests
        kept[-1].write(bytes(2**20))

    with pytest.raises(MemoryError, match="memory grew by"):
        data_providers.measure_leak(100, files[:1], leak)


def write_matrix(path, a, b, c, d):
    """Write a display matrix to the track header of an MP4 file, like a phone."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", content[matrix : matrix + 36])[0] == 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", *(v << 16 for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_rotated_camera(quarter_turns, decoder, tmp_path, numbered):
    upright = read_frames(numbered(tmp_path / "a.mp4", 3), decoder=decoder).float()
    a, b = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    path = write_matrix(numbered(tmp_path / "b.mp4", 3), a, b, -b, a)
    rotated = read_frames(path, decoder=decoder).float()
    assert torch.equal(rotated, torch.rot90(upright, -quarter_turns, dims=(2, 3)))  # the matrix rotates clockwise


MIRRORED = {
    (-1, 0, 0, 1): lambda frames: frames.flip(3),
    (1, 0, 0, -1): lambda frames: frames.flip(2),
    (0, 1, 1, 0): lambda frames: frames.mT,
    (0, -1, -1, 0): lambda frames: frames.mT.flip(2, 3),
    (0, 0, 0, 0): lambda frames: frames,
}


@pytest.mark.parametrize("matrix", MIRRORED)
def test_mirrored_camera(matrix, tmp_path, numbered):
    upright = read_frames(numbered(tmp_path / "a.mp4", 3))
    path = write_matrix(numbered(tmp_path / "b.mp4", 3), *matrix)
    assert torch.equal(read_frames(path), MIRRORED[matrix](upright))
    if any(matrix):
        reencode(path, tmp_path / "c.mp4")
        difference = read_frames(tmp_path / "c.mp4").float() - MIRRORED[matrix](upright).float()
        assert difference.abs().mean() < 3


@pytest.mark.parametrize(("short_side", "shape"), [(16, (16, 32)), (32, (32, 64)), (48, (48, 96))])
def test_scaling_keeps_the_aspect_ratio(short_side, shape, decoder, tmp_path, numbered, read_numbers):
    path = numbered(tmp_path / "a.mp4")
    video = read_clip(path, 4, short_side=short_side, decoder=decoder)
    assert video.shape == (4, 3, *shape)
    assert read_numbers(video) == segment_indices(24, 4).tolist()
    if short_side == 32:
        assert torch.equal(video, read_clip(path, 4, decoder=decoder))
    part = {"start": 0.5, "short_side": short_side, "decoder": decoder}
    assert decoded_bytes(path, **part) == read_frames(path, **part).nbytes


def write_sound(path):
    with wave.open(str(path.with_suffix(".wav")), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    return path.with_suffix(".wav").rename(path)


def write_song(path):
    """Sound with a cover, which is stored as a video stream of one frame."""
    with av.open(str(path), "w") as container:
        cover, voice = container.add_stream("png"), container.add_stream("aac", rate=8000)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = Disposition.attached_pic.value
        for i in range(4):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.sample_rate, samples.pts, samples.time_base = 8000, 1024 * i, Fraction(1, 8000)
            container.mux(voice.encode(samples))
        image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
        image.pts = 0
        container.mux(cover.encode(image))
        container.mux([*cover.encode(), *voice.encode()])


def truncate(path, fraction):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


def damage(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(content)
    return path


def faststart(path, numbered):
    """A numbered video with its index at the start, so that truncation keeps the index."""
    source = numbered(path.with_name("source.mp4"), options={"crf": "0"})
    with av.open(str(source)) as old, av.open(str(path), "w", options={"movflags": "+faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return path


LOSSLESS = {"options": {"crf": "0"}}
BROKEN = {
    "missing.mp4": (lambda path, numbered: path, "there is no such file"),
    "dir.mp4": (lambda path, numbered: path.mkdir(), "is a directory without frames .*: it contains nothing"),
    "empty.mp4": (lambda path, numbered: path.touch(), r"is empty \(0 bytes\)"),
    "text.mp4": (lambda path, numbered: path.write_text("no video " * 100), "cannot be read: Invalid data"),
    "sound.avi": (lambda path, numbered: write_sound(path), "has no video that can be decoded, only audio"),
    "song.mp4": (lambda path, numbered: write_song(path), "has no video that can be decoded, only audio, cover"),
    "no_index.mp4": (lambda path, numbered: truncate(numbered(path), 0.9), "cannot be read"),
    "cut.mp4": (lambda path, numbered: truncate(faststart(path, numbered), 0.7), "is truncated: it ends"),
    "cut.mkv": (lambda path, numbered: truncate(numbered(path, **LOSSLESS), 0.7), "is truncated: .* specifies 2.00 s"),
    "cut.avi": (lambda path, numbered: truncate(numbered(path, 99, codec="mpeg4"), 0.8), "is truncated"),
    "damaged.mp4": (lambda path, numbered: damage(numbered(path, **LOSSLESS)), "cannot be read|is damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_error_names_the_file_and_the_reason(name, decoder, tmp_path, numbered):
    prepare, reason = BROKEN[name]
    prepare(tmp_path / name, numbered)
    with pytest.raises(VideoError, match=reason) as caught:
        read_frames(tmp_path / name, decoder=decoder)
    assert caught.value.path == tmp_path / name
    assert str(caught.value) == f"{tmp_path / name}: {caught.value.reason}"


def test_frame_size_that_changes(video_with_two_sizes):
    with pytest.raises(VideoError, match="changes its frame size from 64×32 to 128×64"):
        read_frames(video_with_two_sizes)


def test_invalid_arguments(tmp_path, numbered):
    path = numbered(tmp_path / "a.mp4", 3)
    for span, message in (
        ({"start": 5.0, "end": 6.0}, "has no video frame from 5 s to 6 s"),
        ({"start": 5.0}, "has no video frame from 5 s to its end"),
        ({"end": 0.0}, "has no video frame from 0 s to 0 s"),
    ):
        with pytest.raises(VideoError, match=message):
            read_clip(path, 4, **span)
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        read_clip(path, 0)
    with pytest.raises(ValueError, match="short_side must be at least 1 pixel, got 0"):
        read_clip(path, 1, short_side=0)


def test_video_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "is empty")))
    assert (str(error), error.path.name, error.reason) == ("a.mp4: is empty", "a.mp4", "is empty")
