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

from art.data.decoding import packets as packets_module
from art.data.decoding import pyav_decoder
from art.data.decoding.frame_converter import Pictures
from art.data.decoding.packets import Source
from art.data.decoding.video import (
    VideoError,
    decoded_bytes,
    frame_times,
    iterate_frames,
    read_chosen,
    read_clip,
    read_frames,
)
from art.data.transforms.sampling import FrameSampling, segment_indices
from benchmarks import data_leak


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
        """In ticks of 1/12 s: uneven ones last one to four of them."""
        return [i + 3 * (i // 5) + (i % 5 > 2) if self.uneven else i for i in range(count)]

    def write(self, numbered, folder, count=24):
        return numbered(
            folder / self.name, count, codec=self.codec, gop=self.gop, options=self.options, first=self.first,
            times=self.times(count), size=self.size,
        )  # fmt: skip

    def refused(self, decoder):
        return decoder == "torchcodec" and self.name in REFUSED


KINDS = [
    Kind("reordered.mp4"),
    Kind("plain.mp4", options={"bf": "0"}),
    Kind("keyframes.mp4", gop=1),
    Kind("open_gop.mp4", gop=6, options={"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=6:min-keyint=3"}),
    Kind("late.mp4", first=100),
    Kind("late.mkv", first=100, gop=6),
    Kind("quicktime.mov"),
    Kind("vp8.webm", "libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"}),
    Kind("vp9.webm", "libvpx-vp9", gop=6, options={"deadline": "realtime", "cpu-used": "8"}),
    Kind("xvid.avi", "mpeg4", gop=6, options={"b": "2M"}),
    Kind("xvid_reordered.avi", "mpeg4", gop=6, options={"bf": "2", "b": "2M"}),
    Kind("h264_reordered.avi", gop=6),
    Kind("late.ts", first=100, gop=6),
    Kind("motion_jpeg.avi", "mjpeg", options={"strict": "unofficial", "qmin": "2", "qmax": "2"}),
    Kind("odd.webm", "libvpx-vp9", gop=6, options={"deadline": "realtime", "cpu-used": "8"}, size=(33, 67)),
    Kind("odd.avi", "mpeg4", gop=6, options={"b": "2M"}, size=(35, 65)),
    Kind("uneven.mp4", gop=6, uneven=True),
    Kind("uneven.mkv", gop=10, uneven=True),
    Kind("uneven.webm", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}, uneven=True),
    Kind("pyramid.mp4", gop=30, options={"x264-params": "bframes=7:b-pyramid=normal:b-adapt=0:scenecut=0"}),
]

#: What torchcodec cannot be held to: it must say so, and never give another frame.
REFUSED = {
    "xvid_reordered.avi": "reordered frames, whose times torchcodec cannot know: use data.decoder=pyav",
    "h264_reordered.avi": "reordered frames, whose times torchcodec cannot know: use data.decoder=pyav",
    "open_gop.mp4": "cannot be decoded by torchcodec: Requested next frame while there are no more frames left",
    "late.ts": "cannot be decoded by torchcodec|is counted differently by torchcodec",
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_sampled_frame_is_the_right_one(kind, decoder, tmp_path, numbered, read_numbers):
    path = kind.write(numbered, tmp_path)
    if kind.refused(decoder):
        with pytest.raises(VideoError, match=REFUSED[kind.name]):
            read_clip(path, 8, decoder=decoder)
        return
    assert read_numbers(read_frames(path, decoder=decoder)) == list(range(24))
    for num_frames in (1, 3, 8, 16, 24, 31):
        frames = read_clip(path, num_frames, decoder=decoder)
        assert frames.shape[2:] == kind.size
        assert read_numbers(frames) == segment_indices(24, num_frames).tolist()
    for seed in range(4):
        wanted = segment_indices(24, 5, torch.Generator().manual_seed(seed)).tolist()
        frames = read_clip(path, 5, generator=torch.Generator().manual_seed(seed), decoder=decoder)
        assert read_numbers(frames) == wanted


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_frame_alone_is_the_one_in_the_whole_file(kind, decoder, tmp_path, numbered):
    path = kind.write(numbered, tmp_path, 40)
    if kind.refused(decoder):
        return
    whole = read_frames(path, decoder=decoder)
    for position in range(40):
        assert torch.equal(read_chosen(path, lambda _, i=position: [i], decoder=decoder)[0], whole[position])
    for seed in range(6):  # some near to each other, some far, in any order, some twice
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(40, (2 + 3 * seed,), generator=generator).tolist()
        assert torch.equal(read_chosen(path, lambda _, c=chosen: c, decoder=decoder), whole[chosen])


@pytest.mark.parametrize("sampling", [FrameSampling(), FrameSampling("dense", 2)])
def test_views_come_one_after_the_other(sampling, tmp_path, numbered, read_numbers):
    path = numbered(tmp_path / "a.mp4", 24)
    frames = read_clip(path, 4, sampling=sampling, views=3)
    assert read_numbers(frames) == sampling.indices(24, 4, views=3).flatten().tolist()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_part_of_the_file_holds_exactly_its_frames(kind, decoder, tmp_path, numbered, read_numbers):
    path = kind.write(numbered, tmp_path, 60)
    if kind.refused(decoder):
        return
    ticks = [*kind.times(60), kind.times(60)[-1] + 1]
    for first, last in ((0, 10), (7, 8), (30, 45), (41, 60), (59, 60)):
        span = {"start": ticks[first] / 12, "end": ticks[last] / 12}
        assert read_numbers(read_frames(path, **span, decoder=decoder)) == list(range(first, last))
    assert read_numbers(read_frames(path, start=ticks[50] / 12, decoder=decoder)) == list(range(50, 60))
    expected = [30 + i for i in segment_indices(15, 4).tolist()]
    assert read_numbers(read_clip(path, 4, start=ticks[30] / 12, end=ticks[45] / 12, decoder=decoder)) == expected


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_frames_come_one_by_one_as_well(kind, tmp_path, numbered):
    path = kind.write(numbered, tmp_path, 60)
    for start, end in ((None, None), (7 / 12, 33 / 12), (50 / 12, None)):
        shown = list(iterate_frames(path, start=start, end=end))
        times = [float(item.ticks * item.source.time_base) for item in shown]
        assert times == frame_times(path, start=start, end=end)
        pictures = np.stack([item.frame.to_ndarray(format="rgb24") for item in shown])
        expected = read_frames(path, start=start, end=end).permute(0, 2, 3, 1).numpy()
        assert np.abs(pictures.astype(int) - expected).max() <= 2


def test_the_shape_is_that_of_the_file(tmp_path, numbered):
    video = read_clip(numbered(tmp_path / "a.mp4"), 5)
    assert video.shape == (5, 3, 32, 64)
    assert video.dtype == torch.uint8
    assert video.is_contiguous()


@pytest.fixture
def work(monkeypatch):
    """Counts packets listed, packets decoded and frames converted."""
    done = {"decoded": 0, "converted": 0, "listed": 0}
    convert, list_frames = Pictures.convert, Source.list_frames
    lean, careful = pyav_decoder._LeanWalk._packets, pyav_decoder._CarefulWalk._decode

    def count_lean(self, first, last):
        for packet in lean(self, first, last):
            done["decoded"] += packet is not None
            yield packet

    def count_careful(self, packets):
        for frame in careful(self, packets):
            done["decoded"] += 1
            yield frame

    def count_converted(self, frame):
        done["converted"] += 1
        return convert(self, frame)

    def count_listed(self, start, end):
        listing = list_frames(self, start, end)
        done["listed"] += len(listing.packets)
        return listing

    monkeypatch.setattr(pyav_decoder._LeanWalk, "_packets", count_lean)
    monkeypatch.setattr(pyav_decoder._CarefulWalk, "_decode", count_careful)
    monkeypatch.setattr(Pictures, "convert", count_converted)
    monkeypatch.setattr(Source, "list_frames", count_listed)
    return done


def test_a_single_frame_is_a_video(decoder, tmp_path, numbered, read_numbers):
    path = numbered(tmp_path / "one.mp4", 1)
    assert read_numbers(read_clip(path, 4, decoder=decoder)) == [0] * 4
    assert frame_times(path) == [0.0]


def test_what_nothing_leans_on_is_not_decoded(tmp_path, numbered, read_numbers, monkeypatch):
    path = numbered(tmp_path / "a.mp4", 60, gop=60, options={"x264-params": "bframes=3:b-adapt=0:scenecut=0"})
    settings = []
    decode = pyav_decoder._LeanWalk._packets

    def watch(self, first, last):
        for packet in decode(self, first, last):
            yield packet
            settings.append(self._context.skip_frame)

    monkeypatch.setattr(pyav_decoder._LeanWalk, "_packets", watch)
    assert read_numbers(read_clip(path, 2)) == [15, 45]
    assert settings.count("NONREF") > 40 and settings.count("DEFAULT") == 3  # two frames, and the end


def test_frames_that_do_not_come_out_are_looked_for_with_care(tmp_path, numbered, monkeypatch):
    path = numbered(tmp_path / "a.mp4", 30)
    expected = read_clip(path, 5)
    walked = []
    careful = pyav_decoder._CarefulWalk.frames

    def nothing(self, first, last, wanted):
        raise pyav_decoder._NotFound
        yield

    def count(self, times):
        walked.append(times)
        return careful(self, times)

    monkeypatch.setattr(pyav_decoder._LeanWalk, "_decode", nothing)
    monkeypatch.setattr(pyav_decoder._CarefulWalk, "frames", count)
    assert torch.equal(read_clip(path, 5), expected)
    assert len(walked) == 1


def test_a_frame_that_no_packet_gives_is_not_found(tmp_path, numbered):
    with pyav_decoder.open_source(numbered(tmp_path / "a.mp4", 6)) as source:
        walk = pyav_decoder._LeanWalk(source, source.list_frames(None, None))
        with pytest.raises(pyav_decoder._NotFound):
            list(walk._decode(0, 5, [-1]))


def test_files_larger_than_what_is_held_are_read_twice(tmp_path, numbered, monkeypatch):
    path = numbered(tmp_path / "a.mp4", 60, gop=10)
    expected = read_clip(path, 7)
    monkeypatch.setattr(packets_module, "HELD_BYTES", 1000)
    with pyav_decoder.open_source(path) as source:
        assert source.list_frames(None, None).held is None
    assert torch.equal(read_clip(path, 7), expected)


def test_decoding_takes_one_thread(tmp_path, numbered):
    with pyav_decoder.open_source(numbered(tmp_path / "a.mp4", 3)) as source:
        context = source.stream.codec_context
        assert (context.thread_count, str(context.thread_type)) in {(1, "ThreadType.NONE"), (1, "NONE"), (1, "0")}


def test_memory_stays_flat_over_hundreds_of_decodes(tmp_path):
    files = data_leak.write_files(tmp_path)
    found = data_leak.measure_leak(400, files)
    assert found["failed"] == 80, "one of five files is truncated"
    assert len(found["resident_bytes"]) == 100

    kept = []
    with pytest.raises(MemoryError, match="memory grew by"):
        data_leak.measure_leak(100, files[:1], lambda *a, **k: kept.append(torch.ones(2**18)))


def test_only_wanted_frames_are_converted_and_a_repeated_one_once(tmp_path, numbered, work):
    path = numbered(tmp_path / "a.mp4", 8)
    assert read_clip(path, 3).shape[0] == 3
    assert work["converted"] == 3
    assert read_clip(path, 16).shape[0] == 16
    assert work["converted"] == 3 + 8


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_what_lies_between_is_skipped(name, tmp_path, numbered, read_numbers, work):
    path = numbered(tmp_path / name, 240, gop=10)
    assert read_numbers(read_clip(path, 3)) == [40, 120, 200]
    assert work["decoded"] < 40
    work.update(decoded=0, listed=0)
    assert read_numbers(read_clip(path, 2, start=200 / 12, end=204 / 12)) == [201, 203]
    assert work["decoded"] < 20
    assert work["listed"] < 30


def turned(path, quarter_turns):
    """Write a rotation into the track header of an MP4 file, as a phone does."""
    a, b = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", content[matrix : matrix + 36])[0] == 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", *(v << 16 for v in (a, b, 0, -b, a, 0, 0, 0)), 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_a_camera_that_was_turned(quarter_turns, decoder, tmp_path, numbered):
    upright = read_frames(numbered(tmp_path / "a.mp4", 3), decoder=decoder).float()
    shown = read_frames(turned(numbered(tmp_path / "b.mp4", 3), quarter_turns), decoder=decoder).float()
    # The matrix turns the picture clockwise.
    assert torch.equal(shown, torch.rot90(upright, -quarter_turns, dims=(2, 3)))


@pytest.mark.parametrize(("short_side", "shape"), [(16, (16, 32)), (32, (32, 64)), (48, (48, 96))])
def test_scaling_keeps_the_aspect_ratio(short_side, shape, decoder, tmp_path, numbered, read_numbers):
    video = read_clip(numbered(tmp_path / "a.mp4"), 4, short_side=short_side, decoder=decoder)
    assert video.shape == (4, 3, *shape)
    assert read_numbers(video) == segment_indices(24, 4).tolist()


@pytest.mark.parametrize("short_side", [None, 20])
def test_the_size_in_memory_is_known_before(short_side, tmp_path, numbered, work):
    path = numbered(tmp_path / "a.mp4")
    announced = decoded_bytes(path, start=0.5, short_side=short_side)
    assert work["decoded"] == 0
    assert announced == read_frames(path, start=0.5, short_side=short_side).nbytes


def test_scaling_to_the_size_it_has_changes_nothing(tmp_path, numbered):
    path = numbered(tmp_path / "a.mp4")
    assert torch.equal(read_clip(path, 4, short_side=32), read_clip(path, 4))


def sound(path):
    with wave.open(str(path.with_suffix(".wav")), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    return path.with_suffix(".wav").rename(path)


def song(path):
    """Sound with a cover, which is stored as a video stream of one picture."""
    with av.open(str(path), "w") as container:
        cover, voice = container.add_stream("png"), container.add_stream("aac", rate=8000)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = Disposition.attached_pic.value
        for i in range(4):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.sample_rate, samples.pts, samples.time_base = 8000, 1024 * i, Fraction(1, 8000)
            container.mux(voice.encode(samples))
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
        picture.pts = 0
        container.mux(cover.encode(picture))
        container.mux([*cover.encode(), *voice.encode()])


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def damaged(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(content)
    return path


def faststart(path, numbered):
    """A numbered video whose index comes first, so that a cut leaves the index whole."""
    source = numbered(path.with_name("source.mp4"), options={"crf": "0"})
    with av.open(str(source)) as old, av.open(str(path), "w", options={"movflags": "+faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return path


BROKEN = {
    "missing.mp4": (lambda path, numbered: path, "there is no such file"),
    "folder.mp4": (lambda path, numbered: path.mkdir(), "is a folder without frames .*: it holds nothing"),
    "empty.mp4": (lambda path, numbered: path.touch(), r"is empty \(0 bytes\)"),
    "text.mp4": (lambda path, numbered: path.write_text("no video " * 100), "cannot be read: Invalid data"),
    "sound.avi": (lambda path, numbered: sound(path), "has no video that can be decoded, only audio"),
    "song.mp4": (lambda path, numbered: song(path), "has no video that can be decoded, only audio, cover"),
    "no_index.mp4": (lambda path, numbered: cut(numbered(path), 0.9), "cannot be read"),
    "cut.mp4": (lambda path, numbered: cut(faststart(path, numbered), 0.7), "is truncated or damaged at"),
    "cut.mkv": (lambda path, numbered: cut(numbered(path, options={"crf": "0"}), 0.7), "is truncated: .* says 2.00 s"),
    "cut.avi": (lambda path, numbered: cut(numbered(path, 99, codec="mpeg4"), 0.8), "is truncated"),
    "damaged.mp4": (lambda path, numbered: damaged(numbered(path, options={"crf": "0"})), "cannot be read|is damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_the_reason(name, decoder, tmp_path, numbered):
    prepare, reason = BROKEN[name]
    prepare(tmp_path / name, numbered)
    with pytest.raises(VideoError, match=reason) as caught:
        read_frames(tmp_path / name, decoder=decoder)
    assert caught.value.path == tmp_path / name
    assert str(caught.value) == f"{tmp_path / name}: {caught.value.reason}"


def test_a_part_without_frames_is_an_error(tmp_path, numbered):
    path = numbered(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match="has no video frame from 5 s to 6 s"):
        read_clip(path, 4, start=5.0, end=6.0)
    with pytest.raises(VideoError, match="has no video frame from 5 s to its end"):
        read_clip(path, 4, start=5.0)


def test_a_picture_size_that_changes_is_an_error(tmp_path, numbered):
    parts = [numbered(tmp_path / f"{size[0]}.webm", 6, codec="libvpx", size=size) for size in ((32, 64), (64, 128))]
    joined = tmp_path / "joined.mkv"
    with av.open(str(joined), "w") as new:
        stream = None
        for part, path in enumerate(parts):
            with av.open(str(path)) as old:
                stream = stream or new.add_stream_from_template(old.streams.video[0])
                for packet in old.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = packet.pts + 1000 * part
                        packet.stream = stream
                        new.mux(packet)
    with pytest.raises(VideoError, match="changes its picture size from 64×32 to 128×64"):
        read_frames(joined)


def test_impossible_arguments(tmp_path, numbered):
    path = numbered(tmp_path / "a.mp4", 3)
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        read_clip(path, 0)
    with pytest.raises(ValueError, match="short_side must be at least 1 pixel, got 0"):
        read_clip(path, 1, short_side=0)


def test_the_error_crosses_processes():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "is empty")))
    assert (str(error), error.path.name, error.reason) == ("a.mp4: is empty", "a.mp4", "is empty")


def test_odd_names(tmp_path, numbered, read_numbers):
    path = numbered(tmp_path / "a b%20" / "plain.mp4", 3)
    path = path.rename(path.with_name("10:30 é.mp4"))
    assert read_numbers(read_frames(path)) == [0, 1, 2]
