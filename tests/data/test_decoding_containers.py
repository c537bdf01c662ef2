"""Which containers are opened, and whether every frame of a file is returned or its loss reported."""

import contextlib
import io
import logging
import random
from fractions import Fraction

import av
import numpy as np
import pytest

from art.data.decoding import torchcodec, video
from art.data.decoding.frames import StoredClip, Unreadable
from art.data.decoding.video import VideoError, frame_times, iterate_frames, read_clip, read_frames
from art.data.transforms.sampling import segment_indices


@pytest.fixture
def encode(draw_number):
    """Writes numbered frames to a path or a file object, with ``sound`` seconds of noise."""

    def write(target, count=24, codec="libx264", *, sound=0.0, gop=6, rate=25, options=None, **container):
        opened = target if isinstance(target, io.RawIOBase) else str(target)
        with av.open(opened, "w", **container) as output:
            stream = output.add_stream(codec, rate=rate, options=options or {})
            stream.height, stream.width, stream.pix_fmt = (
                32,
                64,
                {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p"),
            )
            stream.gop_size = gop
            voice = output.add_stream("aac", rate=16000, layout="mono") if sound else None
            for i in range(count):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(draw_number(i), format="rgb24")))
            output.mux(stream.encode())
            noise = np.random.default_rng(0).normal(0, 0.2, (1, int(16000 * sound))).astype(np.float32)
            for i in range(0, noise.shape[1] - 1023, 1024):
                samples = av.AudioFrame.from_ndarray(noise[:, i : i + 1024], "fltp", "mono")
                samples.sample_rate, samples.pts, samples.time_base = 16000, i, Fraction(1, 16000)
                output.mux(voice.encode(samples))
            if voice is not None:
                output.mux(voice.encode())
        return target

    return write


class Pipe(io.RawIOBase):
    """A file that cannot seek, so that sizes in its header are not filled in."""

    def __init__(self):
        self.content = bytearray()

    def write(self, data):
        self.content += data
        return len(data)

    def writable(self):
        return True

    def seekable(self):
        return False


def plain_frames(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def assert_plain_frames(path):
    """The frames are those of PyAV without any selection."""
    expected, found = plain_frames(path), read_frames(path).permute(0, 2, 3, 1).numpy()
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert len(frame_times(path)) == len(expected) == len(list(iterate_frames(path)))


def without_first_packets(source, target, dropped, **container):
    with av.open(str(source)) as old, av.open(str(target), "w", **container) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in [packet for packet in old.demux(video=0) if packet.size][dropped:]:
            packet.stream = stream
            new.mux(packet)
    return target


SCRIPTS = {
    "concat": "ffconcat version 1.0\nfile {}\n",
    "playlist": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.5,\n{}\n#EXT-X-ENDLIST\n",
    "manifest": '<?xml version="1.0"?>\n<MPD profiles="dash:profile:isoff-main:2011"><BaseURL>{}</BaseURL></MPD>',
    "session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    "text": "file {}\n",
    "subtitles": "1\n00:00:00,000 --> 00:00:01,000\n{}\n",
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".m3u8", ".txt", ".srt"])
@pytest.mark.parametrize("kind", SCRIPTS)
def test_only_self_contained_files_are_opened(kind, suffix, tmp_path, encode, monkeypatch, decoder):
    monkeypatch.chdir(tmp_path)
    encode("other.ts", 4, format="mpegts")
    content = SCRIPTS[kind].format("other.ts").encode()
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(content)
    stored = StoredClip("in.tar/clip", {f"clip{suffix}": content})
    for clip in (path, stored):
        with pytest.raises(VideoError, match=r"is not a video file but|cannot be read: Invalid data"):
            read_clip(clip, 2, decoder=decoder)
    with pytest.raises(VideoError):
        list(iterate_frames(path))


def test_file_name_patterns_open_no_other_file(tmp_path, encode):
    frame = av.VideoFrame.from_ndarray(np.zeros((32, 64, 3), np.uint8), "rgb24")
    for name in ("1.png", "2.png", "%d.png", "*.png"):
        frame.save(str(tmp_path / name)) if name[0].isdigit() else (tmp_path / name).write_bytes(b"x")
    for name in ("%d.png", "*.png"):
        with pytest.raises(VideoError, match="is not a video file but"):
            read_frames(tmp_path / name)


FASTSTART = {"options": {"movflags": "+faststart"}}
CONTAINERS = {
    "sound.mp4": {"sound": 1.2, **FASTSTART},
    "silent.mp4": FASTSTART,
    "fragments.mp4": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "indexed.mp4": {"options": {"movflags": "+dash+global_sidx+frag_keyframe"}},
    "a.mov": {"codec": "mjpeg", **FASTSTART},
    "a.mkv": {"sound": 1.0},
    "a.webm": {"codec": "libvpx"},
    "a.avi": {"codec": "mpeg4", "sound": 1.0},
    "a.flv": {"codec": "flv"},
    "a.wmv": {"codec": "wmv2", "format": "asf"},
    "a.gif": {"codec": "gif", "count": 8},
    "a.ogv": {"codec": "libvpx", "format": "ogg"},
    "a.ts": {"sound": 1.0},
    "a.m2ts": {"format": "mpegts"},
    "a.mpg": {"codec": "mpeg2video", "format": "mpeg"},
    "h264.mxf": {},
    "mpeg2.mxf": {"codec": "mpeg2video"},
    "a.y4m": {"codec": "wrapped_avframe", "format": "yuv4mpegpipe"},
    "a.rm": {"codec": "rv10"},
    "a.swf": {"codec": "flv"},
    "a.ivf": {"codec": "libvpx"},
}


def last_frame_end(path):
    """The first byte after the last packet that contains a frame, or 0 if the container does not report positions."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size and packet.pos is not None]
        return packets[0].pos, max(packet.pos + packet.size for packet in packets)


@pytest.mark.parametrize("name", CONTAINERS)
def test_no_truncated_file_is_read_as_whole(name, tmp_path, encode):
    arguments = dict(CONTAINERS[name])
    movie_options = {"container_options": arguments.pop("options")} if "options" in arguments else {}
    whole = encode(tmp_path / f"whole_{name}", **arguments, **movie_options)
    assert_plain_frames(whole)
    first, end = last_frame_end(whole)
    content, rng, silent = whole.read_bytes(), random.Random(0), []
    for _ in range(12):
        path = tmp_path / name
        length = rng.randrange(first, end)
        path.write_bytes(content[:length])
        with contextlib.suppress(VideoError):
            silent.append((length, len(read_frames(path))))
        with contextlib.suppress(VideoError):
            silent.append((length, len(frame_times(path))))
    assert not silent, f"of {len(content)} bytes: {silent}"


def test_truncation_message_and_parts_before_it(tmp_path, encode):
    whole = encode(tmp_path / "whole.mp4", sound=1.2, container_options=FASTSTART["options"])
    with av.open(str(whole)) as container:
        sounds = sorted(packet.pos for packet in container.demux(audio=0) if packet.size)
    path = tmp_path / "a.mp4"
    path.write_bytes(whole.read_bytes()[: sounds[len(sounds) // 2] + 1])
    message = r"is truncated: it ends after 0\.\d+ s, but its header specifies 1\.\d+ s \([\d,]+ of at least [\d,]+ by"
    with pytest.raises(VideoError, match=message):
        read_frames(path)
    assert len(read_frames(path, end=0.2)) == 5, "a part that ends before the missing data can be read"


def test_reserved_space_after_the_frames_is_no_loss(tmp_path, encode, read_numbers):
    path = encode(tmp_path / "a.mp4", 8, container_options=FASTSTART["options"])
    content = bytearray(path.read_bytes())
    box = content.index(b"mdat") - 4
    content[box : box + 4] = (int.from_bytes(content[box : box + 4], "big") + 5000).to_bytes(4, "big")
    path.write_bytes(content)
    assert read_numbers(read_frames(path)) == list(range(8))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "mpeg4"), ("a.mkv", "mpeg4"), ("a.webm", "libvpx"), ("a.mp4", "mpeg4")]
)
@pytest.mark.parametrize("count", [1, 2])
def test_files_of_few_frames(name, codec, count, tmp_path, encode, read_numbers):
    path = encode(tmp_path / name, count, codec)
    assert read_numbers(read_frames(path)) == list(range(count))
    assert len(frame_times(path)) == count


@pytest.mark.parametrize(
    ("format_name", "codec"), [("avi", "mpeg4"), ("matroska", "mpeg4"), ("webm", "libvpx"), ("flv", "flv")]
)
def test_files_written_to_a_pipe(format_name, codec, tmp_path, encode, read_numbers):
    pipe = encode(Pipe(), 10, codec, format=format_name)
    path = tmp_path / f"a.{format_name}"
    path.write_bytes(pipe.content)
    assert read_numbers(read_frames(path)) == list(range(10))
    path.write_bytes(pipe.content[: last_frame_end(path)[1] - 3])
    with pytest.raises(VideoError, match="truncated"):
        read_frames(path)


@pytest.mark.parametrize("count", [0, 1, 10**3, 2**32 - 1])
def test_avi_with_a_wrong_frame_count(count, tmp_path, encode, read_numbers):
    path = encode(tmp_path / "a.avi", 6, "mpeg4")
    content = bytearray(path.read_bytes())
    for position in (content.index(b"avih") + 24, content.index(b"strh") + 40):
        content[position : position + 4] = count.to_bytes(4, "little")
    path.write_bytes(content)
    assert read_numbers(read_frames(path)) == list(range(6))


@pytest.mark.parametrize("tag", [b"", b"1", b"x:y:z", b"99:00:00.0", b"00:00:00,24", b"-1:00:00", b"::"])
def test_matroska_with_a_wrong_duration(tag, tmp_path, encode, read_numbers):
    path = encode(tmp_path / "a.mkv", 6)
    old = b"00:00:00.240000000"
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, tag.ljust(len(old), b"\0")))
    assert read_numbers(read_frames(path)) == list(range(6))


@pytest.mark.parametrize("bframes", ["0", "2"])
@pytest.mark.parametrize(
    ("name", "codec"), [("a.h264", "libx264"), ("a.hevc", "libx265"), ("a.m2v", "mpeg2video"), ("a.m1v", "mpeg1video")]
)
def test_raw_streams(name, codec, bframes, tmp_path, encode, monkeypatch):
    options = {"x265-params": f"log-level=none:bframes={bframes}"} if codec == "libx265" else {"bf": bframes}
    format_name = {"a.m2v": "mpeg2video", "a.m1v": "mpeg1video"}.get(name, name[2:])
    path = encode(tmp_path / name, 20, codec, options=options, format=format_name)
    assert_plain_frames(path)
    times = frame_times(path)
    assert times == pytest.approx([i / 25 for i in range(20)])
    frames = read_frames(path)
    assert (read_frames(path, start=0.4, end=0.8) == frames[10:20]).all()
    monkeypatch.setattr("art.data.decoding.source.MAX_CACHED_BYTES", 10)
    assert (read_clip(path, 20) == frames).all()


def test_joined_files(tmp_path, encode, read_numbers):
    part = encode(tmp_path / "a.ts", 10, format="mpegts").read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(3 * part)
    assert_plain_frames(path)
    assert read_numbers(read_frames(path)) == 3 * list(range(10))
    assert frame_times(path) == pytest.approx([i / 25 for i in range(30)], abs=1e-3)
    assert read_numbers(read_frames(path, start=0.32, end=0.48)) == [8, 9, 0, 1]
    with (
        pytest.raises(Unreadable, match=r"is a raw stream or joined files.*data.decoder=pyav"),
        torchcodec.open_span(path, None, None),
    ):
        pass


def test_transport_stream_with_missing_packets(tmp_path, encode):
    content = encode(tmp_path / "a.ts", 24, options={"crf": "5"}, gop=24).read_bytes()
    middle = len(content) // 188 // 2 * 188
    path = tmp_path / "b.ts"
    path.write_bytes(content[:middle] + content[middle + 5 * 188 :])
    with pytest.raises(VideoError, match="damaged"):
        read_frames(path)


def test_palette(tmp_path, monkeypatch):
    palette = np.zeros((256, 4), np.uint8)
    palette[:, 0], palette[:, 1], palette[:, 3] = 255, np.arange(256), 255 - np.arange(256)
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("rawvideo", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "pal8"
        for i in range(4):
            indices = np.full((32, 64), 60 * i, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray((indices, palette), "pal8")))
    assert_plain_frames(path)
    with pytest.raises(Unreadable, match="has a palette"), torchcodec.open_span(path, None, None):
        pass
    monkeypatch.setattr("art.data.decoding.source.MAX_CACHED_BYTES", 10)
    assert_plain_frames(path)


WITHOUT_KEYFRAME = [
    ("a.ts", "libx264", {"format": "mpegts"}),
    ("a.mp4", "mpeg4", {}),
    ("h.mp4", "libx264", {}),
    ("a.mkv", "libvpx", {}),
    ("a.avi", "libx264", {}),
    ("a.mpg", "mpeg2video", {"format": "mpeg"}),
    ("a.h264", "libx264", {"format": "h264"}),
]


@pytest.mark.parametrize(("name", "codec", "container"), WITHOUT_KEYFRAME)
def test_frames_before_the_first_keyframe_are_skipped(
    name, codec, container, tmp_path, encode, read_numbers, caplog, monkeypatch
):
    whole = encode(tmp_path / f"whole_{name}", 20, codec, gop=8, **container)
    path = without_first_packets(whole, tmp_path / name, 3, **container)
    with caplog.at_level(logging.WARNING):
        assert read_numbers(read_frames(path)) == list(range(8, 20))
    assert f"{path}: the first 5 frames are skipped, because decoding has to start at a keyframe" in caplog.text
    assert frame_times(path)[0] > 0.1
    with pytest.raises(Unreadable, match="torchcodec"), torchcodec.open_span(path, None, None):
        pass
    monkeypatch.setattr("art.data.decoding.source.MAX_CACHED_BYTES", 10)
    assert read_numbers(read_frames(path)) == list(range(8, 20))


def test_file_without_a_keyframe(tmp_path, encode):
    whole = encode(tmp_path / "whole.ts", 8, gop=8, format="mpegts")
    path = without_first_packets(whole, tmp_path / "a.ts", 1, format="mpegts")
    with pytest.raises(VideoError, match="has no keyframe"):
        read_frames(path)


def test_frame_size_that_changes(video_with_two_sizes):
    with pytest.raises(VideoError, match="changes its frame size from 64×32 to 128×64"):
        list(iterate_frames(video_with_two_sizes))


def test_torchcodec_lists_a_part_once(tmp_path, encode, monkeypatch):
    calls, index_frames = [], torchcodec.VideoSource.index_frames
    monkeypatch.setattr(
        torchcodec.VideoSource, "index_frames", lambda self, *span: calls.append(span) or index_frames(self, *span)
    )
    with torchcodec.open_span(encode(tmp_path / "a.mp4"), 0.4, 0.6) as span:
        assert (span.count, span._skipped, len(calls)) == (5, 10, 1)


INTRA_REFRESH = {"x264-params": "intra-refresh=1:keyint=8", "bf": "0"}


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.flv", "a.ts"])
def test_gradual_refresh_is_decoded_from_a_complete_picture(name, tmp_path, encode, read_numbers):
    path = encode(tmp_path / name, 60, options=INTRA_REFRESH, format="mpegts" if name == "a.ts" else None)
    assert read_numbers(read_clip(path, 8)) == segment_indices(60, 8).tolist()
    for first in (9, 33, 52):
        assert read_numbers(read_frames(path, start=first / 25, end=(first + 4) / 25)) == list(range(first, first + 4))
    with pytest.raises(Unreadable, match="refreshes its picture gradually"), torchcodec.open_span(path, None, None):
        pass


def test_equal_and_disordered_times(tmp_path, encode, read_numbers):
    for name, codec, options in (
        ("a.mkv", "mpeg4", {"rate": 4000}),
        ("b.mkv", "libx264", {"rate": 4000}),
        ("a.flv", "flv", {"rate": 2400}),
        ("a.webm", "libvpx", {"rate": 1500}),
        ("a.asf", "mpeg2video", {"options": {"bf": "2"}}),
        ("a.mxf", "libx264", {}),
    ):
        path = encode(tmp_path / name, 12, codec, **options)
        assert read_numbers(read_frames(path)) == list(range(12)), name
        assert len(list(iterate_frames(path))) == len(frame_times(path)) == 12


@pytest.mark.parametrize("options", [{}, {"mpegts_m2ts_mode": "1"}])
@pytest.mark.parametrize(("codec", "count"), [("mpeg2video", 1), ("mpeg2video", 2), ("libx264", 1)])
def test_short_transport_stream(codec, count, options, tmp_path, encode, read_numbers):
    path = encode(tmp_path / "a.ts", count, codec, format="mpegts", container_options=options)
    assert read_numbers(read_frames(path)) == list(range(count))


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [("a.swf", "flv", {}), ("a.rm", "rv10", {}), ("a.m4v", "mpeg4", {"format": "m4v", "options": {"bf": "2"}})],
)
def test_part_of_a_file_that_cannot_seek(name, codec, container, tmp_path, encode, read_numbers, monkeypatch):
    path = encode(tmp_path / name, 20, codec, **container)
    assert read_numbers(read_frames(path, start=0.3, end=0.52)) == [8, 9, 10, 11, 12]
    monkeypatch.setattr("art.data.decoding.source.MAX_CACHED_BYTES", 10)
    assert read_numbers(read_frames(path, start=0.3, end=0.52)) == [8, 9, 10, 11, 12]
    assert read_numbers(read_clip(path, 20)) == list(range(20))


@pytest.mark.parametrize(
    ("format_name", "options", "tails"),
    [
        ("mpegts", {}, [b"\0", bytes(100)]),
        ("mpegts", {"mpegts_m2ts_mode": "1"}, [b"\0", bytes(100)]),
        ("mp4", {"movflags": "frag_keyframe+empty_moov"}, [b"\0", b"\0\0", b"abcde"]),
        ("matroska", {"live": "1"}, [b"TAG" + b"x" * 125]),
        ("yuv4mpegpipe", {}, [b"\0"]),
        ("mxf", {}, [b"\0"]),
        ("swf", {}, [b"\0"]),
        ("ivf", {}, [b"\0", bytes(20)]),
    ],
)
def test_bytes_after_the_end(format_name, options, tails, tmp_path, encode, read_numbers):
    codec = {"yuv4mpegpipe": "wrapped_avframe", "swf": "flv", "ivf": "libvpx"}.get(format_name, "libx264")
    path = encode(tmp_path / "whole", 7, codec, format=format_name, container_options=options)
    content = path.read_bytes()
    for tail in tails:
        path.write_bytes(content + tail)
        assert read_numbers(read_frames(path)) == list(range(7))


def mutate(content, rng):
    """Flip bytes, truncate, or delete or duplicate a block."""
    content, start = bytearray(content), rng.randrange(len(content))
    end = start + rng.randrange(1, len(content) // 4)
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.choice((1, 10))):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == 1:
        del content[start:]
    elif kind == 2:
        del content[start:end]
    else:
        content[start:start] = content[start:end]
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.ts", "libx264")],
)
def test_mutated_files_are_read_or_raise_one_error(name, codec, tmp_path, encode):
    content = encode(tmp_path / name, 8, codec, gop=4).read_bytes()
    path, rng = tmp_path / f"mutated_{name}", random.Random(name)
    for _ in range(40):
        path.write_bytes(mutate(content, rng))
        with contextlib.suppress(VideoError):
            assert read_frames(path).shape[1] == 3
            list(iterate_frames(path))


def test_warning_is_logged_once_per_file(caplog):
    for _ in range(2):
        video._warn_lost_frames("once.ts", 1)
    assert caplog.text.count("once.ts: the first frame is skipped") == 1
