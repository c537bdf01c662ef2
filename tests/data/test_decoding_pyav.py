import contextlib

import pytest
import torch

from art.data.decoding import pyav
from art.data.decoding import source as source_module
from art.data.decoding.frames import FrameConverter
from art.data.decoding.source import VideoSource
from art.data.decoding.video import decoded_bytes, read_clip


@pytest.fixture
def source(tmp_path, numbered):
    """Opens a numbered video of 60 frames."""
    with contextlib.ExitStack() as stack:
        yield lambda name, **options: stack.enter_context(pyav.open_source(numbered(tmp_path / name, 60, **options)))


@pytest.fixture
def work(monkeypatch):
    """Counts packets listed, packets decoded and frames converted."""
    done = {"decoded": 0, "converted": 0, "listed": 0}
    convert, index_frames = FrameConverter.convert, VideoSource.index_frames
    fast_packets, safe_decode = pyav._FastReader._packets, pyav._SafeReader._decode

    def count_fast(self, first, last):
        for packet in fast_packets(self, first, last):
            done["decoded"] += packet is not None
            yield packet

    def count_safe(self, packets):
        for frame in safe_decode(self, packets):
            done["decoded"] += 1
            yield frame

    def count_converted(self, frame):
        done["converted"] += 1
        return convert(self, frame)

    def count_listed(self, start, end):
        index = index_frames(self, start, end)
        done["listed"] += len(index.packets)
        return index

    monkeypatch.setattr(pyav._FastReader, "_packets", count_fast)
    monkeypatch.setattr(pyav._SafeReader, "_decode", count_safe)
    monkeypatch.setattr(FrameConverter, "convert", count_converted)
    monkeypatch.setattr(VideoSource, "index_frames", count_listed)
    return done


def test_index_is_complete_and_sorted(source):
    index = source("a.mp4", gop=10).index_frames(None, None)
    assert len(index.packets) == len(index.times) == 60
    assert index.times == sorted(packet.time for packet in index.packets)
    assert [packet.time for packet in index.packets] != index.times, "this file has another decoding order"


def test_part_after_an_open_gop_loses_no_frame(tmp_path, numbered):
    path = numbered(tmp_path / "a.mp4", 24, options={"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=6"})
    for first in range(0, 24, 3):
        with pyav.open_span(path, first / 12, (first + 3) / 12) as span:
            assert (span.lost, span.count) == (0, 3)


@pytest.mark.parametrize("open_gop", [False, True])
def test_decoding_starts_at_an_earlier_keyframe(open_gop, source):
    extra = {"x264-params": f"open-gop={int(open_gop)}:bframes=3:b-adapt=0:keyint=10:min-keyint=10:scenecut=0"}
    index = source("a.mp4", gop=10, options=extra).index_frames(None, None)
    leading = 0
    for position, packet in enumerate(index.packets):
        entry = index.entry[packet.time]
        assert index.packets[entry].keyframe
        assert index.packets[entry].time <= packet.time
        assert entry <= position
        before = [i for i, other in enumerate(index.packets[: position + 1]) if other.keyframe]
        leading += entry != before[-1]
    assert (leading > 0) == open_gop, "frames shown before their keyframe need the previous one"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_packets_start_at_a_keyframe_at_or_before_the_time(name, source):
    opened = source(name, gop=10, first=30)
    times = opened.index_frames(None, None).times
    for number in (0, 5, 10, 37, 59):
        packet = next(opened.packets_from(times[number]))
        assert packet.is_keyframe
        assert packet.pts <= times[number]
        assert number - 20 < times.index(packet.pts)


def test_only_packets_of_the_span_are_read(source):
    opened = source("a.mp4", gop=5)
    index = opened.index_frames(40 / 12, 45 / 12)
    assert [round(opened.seconds(time) * 12) for time in index.times] == [40, 41, 42, 43, 44]
    assert len(index.packets) < 20


def test_avi_frames_are_numbered(source):
    opened = source("a.avi", codec="libx264", gop=10)
    index = opened.index_frames(1.0, 2.0)
    assert opened.no_timestamps
    assert index.times == list(range(12, 24))
    assert [opened.seconds(time) for time in (0, 12)] == [0.0, 1.0]


def test_unreferenced_frames_are_skipped(tmp_path, numbered, read_numbers, monkeypatch):
    path = numbered(tmp_path / "a.mp4", 60, gop=60, options={"x264-params": "bframes=3:b-adapt=0:scenecut=0"})
    settings = []
    packets = pyav._FastReader._packets

    def record(self, first, last):
        for packet in packets(self, first, last):
            yield packet
            settings.append(self._context.skip_frame)

    monkeypatch.setattr(pyav._FastReader, "_packets", record)
    assert read_numbers(read_clip(path, 2)) == [15, 45]
    assert settings.count("NONREF") > 40
    assert settings.count("DEFAULT") == 3, "two frames and the flush"


def test_missing_frame_falls_back_to_the_safe_reader(tmp_path, numbered, monkeypatch):
    path = numbered(tmp_path / "a.mp4", 30)
    expected = read_clip(path, 5)
    calls = []
    safe_frames = pyav._SafeReader.frames

    def fail(self, first, last, wanted):
        raise pyav._FrameMissing
        yield

    def record(self, times):
        calls.append(times)
        return safe_frames(self, times)

    monkeypatch.setattr(pyav._FastReader, "_decode", fail)
    monkeypatch.setattr(pyav._SafeReader, "frames", record)
    assert torch.equal(read_clip(path, 5), expected)
    assert len(calls) == 1
    monkeypatch.undo()
    with pyav.open_source(path) as source, pytest.raises(pyav._FrameMissing):
        list(pyav._FastReader(source, source.index_frames(None, None))._decode(0, 5, [-1]))


def test_large_files_are_read_twice_on_one_thread(tmp_path, numbered, monkeypatch):
    path = numbered(tmp_path / "a.mp4", 60, gop=10)
    expected = read_clip(path, 7)
    monkeypatch.setattr(source_module, "MAX_CACHED_BYTES", 1000)
    with pyav.open_source(path) as source:
        assert source.index_frames(None, None).cached is None
        context = source.stream.codec_context
        assert (context.thread_count, str(context.thread_type)) in {(1, "ThreadType.NONE"), (1, "NONE"), (1, "0")}
    assert torch.equal(read_clip(path, 7), expected)


def test_each_frame_is_converted_once(tmp_path, numbered, work):
    path = numbered(tmp_path / "a.mp4", 8)
    assert decoded_bytes(path) > 0
    assert work["decoded"] == 0
    assert read_clip(path, 3).shape[0] == 3
    assert work["converted"] == 3
    assert read_clip(path, 16).shape[0] == 16
    assert work["converted"] == 3 + 8


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_distant_frames_are_not_decoded(name, tmp_path, numbered, read_numbers, work):
    path = numbered(tmp_path / name, 240, gop=10)
    assert read_numbers(read_clip(path, 3)) == [40, 120, 200]
    assert work["decoded"] < 40
    work.update(decoded=0, listed=0)
    assert read_numbers(read_clip(path, 2, start=200 / 12, end=204 / 12)) == [201, 203]
    assert work["decoded"] < 20
    assert work["listed"] < 30
