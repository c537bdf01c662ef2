import av
import pytest

from art.data.decoding.packets import Source, Unreadable
from art.data.decoding.video import frame_times, read_clip, read_frames
from art.data.transforms.sampling import segment_indices


def test_frames_of_uneven_duration(tmp_path, numbered, read_numbers):
    times = [0, 1, 2, 5, 6, 10, 20, 21, 22, 40]
    path = numbered(tmp_path / "uneven.mp4", 10, times=times)
    assert frame_times(path) == pytest.approx([t / 12 for t in times])
    assert read_numbers(read_frames(path, start=5 / 12, end=21 / 12)) == [3, 4, 5, 6]


def test_times_begin_at_the_first_frame(tmp_path, numbered):
    path = numbered(tmp_path / "late.mkv", 10, first=100)
    assert frame_times(path) == pytest.approx([i / 12 for i in range(10)], abs=1e-3)


def test_a_header_without_a_frame_count(tmp_path, numbered, read_numbers):
    path = numbered(tmp_path / "a.mkv")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    assert read_numbers(read_clip(path, 3)) == segment_indices(24, 3).tolist()


@pytest.fixture
def source(tmp_path, numbered):
    """Opens a numbered video of 60 frames as the code does."""
    containers = []

    def open_source(name, **options):
        path = numbered(tmp_path / name, 60, **options)
        containers.append(av.open(str(path)))
        return Source(containers[-1], containers[-1].streams.video[0])

    yield open_source
    for container in containers:
        container.close()


def test_a_listing_is_complete_and_in_order(source):
    listing = source("a.mp4", gop=10).list_frames(None, None)
    assert len(listing.packets) == len(listing.times) == 60
    assert listing.times == sorted(packet.time for packet in listing.packets)
    assert [packet.time for packet in listing.packets] != listing.times, "this file is decoded in another order"


@pytest.mark.parametrize("open_gop", [False, True])
def test_decoding_starts_at_a_keyframe_shown_before(open_gop, source):
    extra = {"x264-params": f"open-gop={int(open_gop)}:bframes=3:b-adapt=0:keyint=10:min-keyint=10:scenecut=0"}
    opened = source("a.mp4", gop=10, options=extra)
    listing = opened.list_frames(None, None)
    leading = 0
    for position, packet in enumerate(listing.packets):
        entry = listing.entry[packet.time]
        assert listing.packets[entry].keyframe
        assert listing.packets[entry].time <= packet.time
        assert entry <= position
        before = [i for i, other in enumerate(listing.packets[: position + 1]) if other.keyframe]
        leading += entry != before[-1]
    assert (leading > 0) == open_gop, "frames shown before their keyframe need the one before it"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_packets_come_from_a_keyframe_at_or_before(name, source):
    opened = source(name, gop=10, first=30)
    times = opened.list_frames(None, None).times
    for number in (0, 5, 10, 37, 59):
        packet = next(opened.packets_from(times[number]))
        assert packet.is_keyframe
        assert packet.pts <= times[number]
        assert number - 20 < times.index(packet.pts)


def test_only_the_asked_part_is_read(source):
    opened = source("a.mp4", gop=5)
    listing = opened.list_frames(40 / 12, 45 / 12)
    assert [round(opened.seconds(time) * 12) for time in listing.times] == [40, 41, 42, 43, 44]
    assert len(listing.packets) < 20


def test_frames_of_avi_are_counted(source):
    opened = source("a.avi", codec="libx264", gop=10)
    listing = opened.list_frames(1.0, 2.0)
    assert opened.counted
    assert listing.times == list(range(12, 24))
    assert [opened.seconds(time) for time in (0, 12)] == [0.0, 1.0]


def test_slots_of_avi_may_be_empty(tmp_path, numbered, read_numbers):
    times = [0, 1, 2, 5, 6, 10, 20, 21, 22, 40]
    path = numbered(tmp_path / "uneven.avi", 10, times=times, codec="mpeg4", gop=4, options={"b": "2M"})
    assert frame_times(path) == pytest.approx([t / 12 for t in times])
    assert read_numbers(read_frames(path, start=5 / 12, end=21 / 12)) == [3, 4, 5, 6]
    assert read_numbers(read_clip(path, 10)) == list(range(10))


def test_what_cannot_be_listed(source):
    opened = source("a.mp4")
    with pytest.raises(Unreadable, match="has no video frame from 0 s to 0"):
        opened.list_frames(None, 0.0)
    with pytest.raises(Unreadable, match="has no video frame from 9 s to its end"):
        opened.list_frames(9.0, None)
