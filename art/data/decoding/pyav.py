"""Frame-exact decoding with PyAV.

Decoding has two stages. First, the packets of the file are listed, without decoding any: this is cheap and returns the
true time of every frame, regardless of the frame count, frame rate and start time in the header. Then only the packets
needed for the requested frames are decoded.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8
from torch import Tensor

from art.data.decoding.frames import FrameSpan, Unreadable, assemble_clip

#: A decoder may fail to return this many frames at the end of an undamaged stream.
MAX_TAIL_LOSS = 2

#: Up to this many compressed bytes are kept in memory between listing and decoding.
MAX_CACHED_BYTES = 32 * 2**20

#: Seconds. Matroska rounds times to 1 ms, so a frame may start up to half of that before its true time.
TOLERANCE = 6e-4

#: Codecs in which a frame marked "not referenced" can be skipped. (In HEVC, frames of a higher temporal layer may still
#: reference it.)
_SKIPPABLE = ("h264", "mpeg4", "mpeg2video", "mpeg1video")

#: Restarting the decoder at a keyframe costs about as much as decoding this many frames, without and with a seek.
_RESTART_COST, _SEEK_COST = 2, 4


class PacketInfo(NamedTuple):
    """One compressed frame."""

    time: int  # presentation time, in ticks of its VideoSource
    keyframe: bool  # decoding can start here
    shown: bool  # False for a frame that an edit list keeps only as a reference for others


class FrameIndex(NamedTuple):
    """The packets of a file and the frames of the requested span."""

    packets: list[PacketInfo]  # those that were read, in decoding order
    cached: list[av.Packet] | None  # their content; None if it exceeds MAX_CACHED_BYTES
    entry: dict[int, int]  # for the time of each packet, the position of the packet at which decoding has to start
    times: list[int]  # of the requested frames, ascending


@contextlib.contextmanager
def open_source(file: Path | bytes) -> Iterator[VideoSource]:
    """Open the first decodable video stream of a file, given as a path or as its content. Raises Unreadable if there is
    none, or if FFmpeg reports an error, on opening or later."""
    try:
        # Without "file:", a name with a colon would be parsed as a protocol.
        opened = io.BytesIO(file) if isinstance(file, bytes) else f"file:{file}"
        with av.open(opened, "r", metadata_errors="replace") as container:
            streams = [s for s in container.streams.video if s.codec_context is not None and not _is_cover(s)]
            if not streams:
                kinds = {"cover" if _is_cover(stream) else stream.type for stream in container.streams}
                raise Unreadable(f"has no video that can be decoded, only {', '.join(sorted(kinds)) or 'nothing'}")
            # Data loading already uses one worker process per core.
            streams[0].codec_context.thread_type = "NONE"
            streams[0].codec_context.thread_count = 1
            yield VideoSource(container, streams[0])
    except av.FFmpegError as error:  # not all of them are OSError
        raise Unreadable(f"cannot be read: {error.strerror or error}") from error


def _is_cover(stream: Stream) -> bool:
    """Whether the stream is the cover image of an audio file."""
    return bool(stream.disposition & stream.disposition.attached_pic)


class VideoSource:
    """The video stream of an open file. Its clock has ticks of ``time_base`` seconds; ``origin`` is the first frame.

    AVI stores no presentation times, and the demuxer's guesses are wrong for reordered frames. With ``no_timestamps``,
    a time is therefore the number of a frame, and the file is always read from its beginning. Each frame occupies a
    slot of the frame rate; the slots in between may be empty, which repeats the frame before.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self.time_base, self.origin = Fraction(stream.time_base or 1), stream.start_time or 0
        self._first = self.origin
        self._early = self.origin - int(10 / self.time_base)
        self.no_timestamps = False
        self._slots: list[int] = []  # slot of each frame; filled by index_frames
        if container.format.name == "avi":
            rate = stream.average_rate
            if not rate:
                raise Unreadable("is an AVI file without a frame rate")
            self.no_timestamps, self.time_base, self.origin = True, 1 / Fraction(rate), 0

    def ticks(self, time: int) -> int:
        """Return ticks of ``time_base`` since the first frame."""
        if self.no_timestamps and self._slots:
            return self._slots[min(time, len(self._slots) - 1)] - self._slots[0]
        return time - self.origin

    def seconds(self, time: int) -> float:
        """Return seconds since the first frame."""
        return float(self.ticks(time) * self.time_base)

    def packets_from(self, time: int) -> Iterator[av.Packet]:
        """Return the packets from the last keyframe at or before ``time``; without timestamps, all packets.

        The last packet is empty, which flushes the decoder.
        """
        target, step = time, 1.0
        while not self.no_timestamps and target > self.origin:
            self.container.seek(target, stream=self.stream)
            packets = self._packets()
            # Some demuxers do not seek to a keyframe. Others compare with the decoding time, which is earlier than the
            # presentation time, and may seek to a keyframe that is too late.
            keyframe = next((packet for packet in packets if packet.is_keyframe), None)
            if keyframe is not None and keyframe.pts is not None and keyframe.pts <= time:
                return itertools.chain([keyframe], packets)
            target -= int(step / self.time_base)
            step *= 2
        try:
            # Seek to well before the first frame, to skip no packet. Some demuxers (AVI, FLV) reject that.
            self.container.seek(self._early, stream=self.stream)
        except av.FFmpegError:
            self.container.seek(self._first, stream=self.stream)
        return self._packets()

    def _packets(self) -> Iterator[av.Packet]:
        for packet in self.container.demux(self.stream):
            # The empty packet at the end flushes the decoder. Elsewhere (AVI: repeat the frame) it would end decoding.
            if packet.size or packet.dts is None:
                yield packet

    def index_frames(self, start: float | None, end: float | None) -> FrameIndex:
        """List the frames from ``start`` (included) to ``end`` (excluded), in seconds since the first frame. Raises
        Unreadable if there are none, or the file is damaged or truncated."""
        packets, cached = self._read_packets(start or 0.0, end)
        if end is None:
            self._check_length(packets)
        times = sorted(packet.time for packet in packets if packet.shown)
        if start is not None or end is not None:
            first = (start or 0.0) - TOLERANCE
            last = float("inf") if end is None else end - TOLERANCE
            times = [time for time in times if first <= self.seconds(time) < last]
        if not times:
            span = f" from {start or 0:g} s to {'its end' if end is None else f'{end:g} s'}"
            raise Unreadable(f"has no video frame{'' if start is None and end is None else span}")
        return FrameIndex(packets, cached, _decoding_entries(packets), times)

    def _read_packets(self, start: float, end: float | None) -> tuple[list[PacketInfo], list[av.Packet] | None]:
        packets: list[PacketInfo] = []
        cached: list[av.Packet] | None = []
        total_bytes = 0
        slots: list[int] = []
        dts_end = None if self.no_timestamps else end
        for packet in self.packets_from(self.origin + int(start / self.time_base)):
            if packet.size == 0:
                continue
            time = len(packets) if self.no_timestamps else packet.pts
            if time is None:
                raise Unreadable("contains a frame without a presentation time")
            if packet.is_corrupt:
                raise Unreadable(f"is truncated or damaged at {self.seconds(time):.2f} s")
            if dts_end is not None and packet.dts is not None and self.seconds(packet.dts) >= dts_end:
                break  # no frame is shown before it is decoded
            slots.append(time if packet.dts is None else packet.dts)
            packets.append(PacketInfo(time, packet.is_keyframe, not packet.is_discard))
            total_bytes += packet.size
            if cached is not None:
                cached.append(packet)
                cached = None if total_bytes > MAX_CACHED_BYTES else cached
        self._slots = sorted(slots) if self.no_timestamps else []  # the k-th frame shown has the k-th slot
        return packets, cached

    def _check_length(self, packets: Sequence[PacketInfo]) -> None:
        """Detect files truncated between two packets, if the header has a duration."""
        expected = self._expected_end()
        if expected is None or not packets:
            return
        times = self._slots or [packet.time for packet in packets]
        interval = (max(times) - min(times)) / max(len(times) - 1, 1)
        end = max(times) + interval
        if expected - end > (MAX_TAIL_LOSS + 0.5) * interval:
            first = self._slots[0] if self._slots else self.origin
            found, header = (float((time - first) * self.time_base) for time in (end, expected))
            raise Unreadable(f"is truncated: it ends after {found:.2f} s, but its header specifies {header:.2f} s")

    def _expected_end(self) -> float | None:
        """End time according to the header, in ticks; None if unknown or not needed (a truncated MP4 cannot be opened,
        or its last packet is marked as corrupt)."""
        if self.no_timestamps:
            return self.stream.frames or None
        if "matroska" not in self.container.format.name:
            return None
        tag = self.stream.metadata.get("DURATION", "").strip("\0 ")
        if tag:
            hours, minutes, seconds = tag.split(":")
            return (int(hours) * 3600 + int(minutes) * 60 + float(seconds)) / float(self.time_base)
        if self.container.duration and len(self.container.streams) == 1:  # an audio stream may be longer
            return self.container.duration / av.time_base / float(self.time_base)
        return None


def _decoding_entries(packets: Sequence[PacketInfo]) -> dict[int, int]:
    entries: dict[int, int] = {}
    keyframes: list[int] = []
    for position, packet in enumerate(packets):
        if packet.keyframe:
            keyframes.append(position)
        # A frame shown before its keyframe also references the previous keyframe (open GOP).
        entry = next((k for k in reversed(keyframes) if packets[k].time <= packet.time), 0)
        entries.setdefault(packet.time, entry)
    return entries


class IndexedSpan(FrameSpan):
    """Base of the spans whose frames are located with PyAV."""

    def __init__(self, source: VideoSource, index: FrameIndex) -> None:
        self._source, self._index = source, index

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self._index.times)

    @property
    def times(self) -> list[float]:
        """Presentation time of each frame, in seconds since the first frame of the file."""
        return [self._source.seconds(time) for time in self._index.times]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width according to the header."""
        return self._source.stream.height, self._source.stream.width


class PyAVSpan(IndexedSpan):
    """Frames decoded with PyAV."""

    def read(self, positions: Sequence[int], short_side: int | None) -> UInt8[Tensor, "n 3 h w"]:
        """See :meth:`FrameSpan.read`."""
        times = [self._index.times[position] for position in positions]
        wanted = sorted(set(times))
        if not self._source.no_timestamps:
            with contextlib.suppress(_FrameMissing):
                return assemble_clip(_decode_frames(_FastReader(self._source, self._index), wanted), times, short_side)
        return assemble_clip(_decode_frames(_SafeReader(self._source, self._index), wanted), times, short_side)


@contextlib.contextmanager
def open_span(file: Path | bytes, start: float | None, end: float | None) -> Iterator[PyAVSpan]:
    """Open a span of the first video stream that PyAV's FFmpeg can decode."""
    with open_source(file) as source:
        yield PyAVSpan(source, source.index_frames(start, end))


class TimedFrame(NamedTuple):
    """A decoded frame, not rotated, in the pixel format of the file."""

    ticks: int  # presentation time, in units of source.time_base since the first frame of the file
    frame: VideoFrame
    source: VideoSource


def iterate_span(path: Path, start: float | None, end: float | None) -> Iterator[TimedFrame]:
    """Yield every frame from ``start`` to ``end`` without conversion. Raises Unreadable if there are none, or one
    cannot be decoded."""
    with open_source(path) as source:
        index = source.index_frames(start, end)
        for time, frame in _decode_frames(_SafeReader(source, index), index.times):
            yield TimedFrame(source.ticks(time), frame, source)


def _decode_frames(reader: _FastReader | _SafeReader, times: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    for time, frame in reader.frames(times):
        if frame.is_corrupt:
            raise Unreadable(f"is damaged at {reader.source.seconds(time):.2f} s")
        yield time, frame


class _FrameMissing(Exception):
    """The decoder did not return a frame at the time of its packet."""


class _FastReader:
    """Decodes from a keyframe to each requested frame, skipping frames that no other frame references.

    Raises :class:`_FrameMissing` if a frame is not returned at its time, as in damaged or irregular files.
    """

    def __init__(self, source: VideoSource, index: FrameIndex) -> None:
        self.source, self._index = source, index
        self._context = source.stream.codec_context
        self._can_skip = self._context.name in _SKIPPABLE

    def frames(self, times: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield time and frame for each of ``times``, which are ascending."""
        position = {packet.time: i for i, packet in enumerate(self._index.packets)}
        cost = _SEEK_COST if self._index.cached is None else _RESTART_COST
        run: list[int] = []  # frames decoded without a restart
        first = last = 0  # their packets
        for time in times:
            entry = self._index.entry[time]
            if run and entry >= last + cost:
                yield from self._decode(first, last, run)
                run = []
            first, last = (first, max(last, position[time])) if run else (entry, position[time])
            run.append(time)
        yield from self._decode(first, last, run)

    def _decode(self, first: int, last: int, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        missing = set(wanted)
        self._context.flush_buffers()
        for packet in self._packets(first, last):
            if self._can_skip:
                self._context.skip_frame = "DEFAULT" if packet is None or packet.pts in missing else "NONREF"
            for frame in self._context.decode(packet):
                if frame.pts in missing:
                    missing.remove(frame.pts)
                    yield frame.pts, frame
        if missing:
            self._context.skip_frame = "DEFAULT"
            raise _FrameMissing

    def _packets(self, first: int, last: int) -> Iterator[av.Packet | None]:
        if self._index.cached is not None:
            yield from self._index.cached[first : last + 1]
        else:
            packets = self.source.packets_from(self._index.packets[first].time)
            yield from itertools.islice(packets, last + 1 - first)
        yield None  # flushes the decoder


class _SafeReader:
    """Decodes every frame from a keyframe, like a player, and returns the frame on screen at each requested time."""

    def __init__(self, source: VideoSource, index: FrameIndex) -> None:
        self.source, self._index = source, index
        self._position = 0  # of the next packet to decode
        self._decoded: Iterator[tuple[int, VideoFrame]] | None = None
        self._shown: tuple[int, VideoFrame] | None = None
        self._next: tuple[int, VideoFrame] | None = None

    def frames(self, times: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Yield time and frame for each of ``times``, which are ascending."""
        for time in times:
            entry = 0 if self.source.no_timestamps else self._index.entry[time]
            if self._decoded is None or entry >= self._position + _SEEK_COST:
                self._position = entry
                self._decoded = self._decode(self.source.packets_from(self._index.packets[entry].time))
                self._shown = self._next = None
            yield time, self._frame_at(time, self._decoded)

    def _decode(self, packets: Iterator[av.Packet]) -> Iterator[tuple[int, VideoFrame]]:
        count = 0
        for packet in packets:
            self._position += 1
            for frame in packet.decode():
                time = count if self.source.no_timestamps else frame.pts
                if time is None:
                    raise Unreadable("contains a frame without a presentation time")
                count += 1
                yield time, frame

    def _frame_at(self, time: int, decoded: Iterator[tuple[int, VideoFrame]]) -> VideoFrame:
        """Return the last frame at or before ``time``, or the first frame if all are later (a stream that was cut
        between keyframes starts with packets that cannot be decoded)."""
        while self._shown is None or self._shown[0] < time:
            self._next = self._next or next(decoded, None)
            if self._next is None or self._next[0] > time:
                break
            self._shown, self._next = self._next, None
        found = self._shown or self._next
        if found is None:
            raise Unreadable("cannot be decoded: the decoder returned no frame")
        shown_time, frame = found
        if shown_time < time and sum(shown_time < t <= time for t in self._index.times) > MAX_TAIL_LOSS:
            raise Unreadable(f"cannot be decoded after {self.source.seconds(shown_time):.2f} s")
        return frame
