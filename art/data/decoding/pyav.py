"""Frame-exact decoding with PyAV: only the packets needed for the requested frames are decoded."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
from av.video.frame import VideoFrame
from jaxtyping import UInt8
from torch import Tensor

from art.data.decoding.frames import FrameSpan, Unreadable, assemble_clip, size_change
from art.data.decoding.source import FrameIndex, VideoSource, open_source

#: A decoder may fail to return this many frames at the end of an undamaged stream.
MAX_TAIL_LOSS = 2

#: Codecs in which a frame marked "not referenced" can be skipped. (In HEVC, frames of a higher temporal layer may still
#: reference it.)
_SKIPPABLE = ("h264", "mpeg4", "mpeg2video", "mpeg1video")

#: Restarting the decoder at a keyframe costs about as much as decoding this many frames, without and with a seek.
_RESTART_COST, _SEEK_COST = 2, 4


class IndexedSpan(FrameSpan):
    """Base of the spans whose frames are located with PyAV."""

    def __init__(self, source: VideoSource, index: FrameIndex) -> None:
        self._source, self._index = source, index

    @property
    def count(self) -> int:
        """Return the number of frames."""
        return len(self._index.times)

    @property
    def times(self) -> list[float]:
        """Return the presentation time of each frame, in seconds since the first frame of the file."""
        return [self._source.seconds(time) for time in self._index.times]

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width according to the header."""
        return self._source.stream.height, self._source.stream.width

    @property
    def lost(self) -> int:
        """Return the number of frames before the first keyframe, which are not counted."""
        return self._index.lost


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
        size = None
        for time, frame in _decode_frames(_SafeReader(source, index), index.times):
            size = size or (frame.width, frame.height)
            if size != (frame.width, frame.height):
                raise size_change(*size, frame.width, frame.height)
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
            entry = self._first_packet() if self.source.no_timestamps else self._index.entry[time]
            if self._decoded is None or (entry >= self._position + _SEEK_COST and not self.source.no_timestamps):
                self._position = entry
                self._decoded = self._decode(self._packets(entry))
                self._shown = self._next = None
            yield time, self._frame_at(time, self._decoded)

    def _first_packet(self) -> int:
        """Return the position of the first packet to decode in a file without timestamps."""
        lost, packets = self._index.lost, self._index.packets
        return lost if lost < len(packets) and packets[lost].keyframe else 0

    def _packets(self, entry: int) -> Iterator[av.Packet]:
        if self._index.cached is not None:
            self.source.stream.codec_context.flush_buffers()
            return itertools.chain(self._index.cached[entry:], [av.Packet()])
        packets = self.source.packets_from(self._index.packets[entry].time)
        return itertools.islice(packets, entry, None) if self.source.no_timestamps else packets

    def _decode(self, packets: Iterator[av.Packet]) -> Iterator[tuple[int, VideoFrame]]:
        number = self._index.lost
        context = self.source.stream.codec_context
        for packet in packets:
            self._position += 1
            for frame in context.decode(packet if packet.size else None):
                time = number if self.source.no_timestamps else frame.pts
                if time is None:
                    raise Unreadable("contains a frame without a presentation time")
                number += 1
                yield time, frame

    def _frame_at(self, time: int, decoded: Iterator[tuple[int, VideoFrame]]) -> VideoFrame:
        """Return the last frame at or before ``time``, or the first frame if all are later. Raises Unreadable if the
        decoder did not return more than MAX_TAIL_LOSS frames in between."""
        while self._shown is None or self._shown[0] < time:
            self._next = self._next or next(decoded, None)
            if self._next is None or self._next[0] > time:
                break
            self._shown, self._next = self._next, None
        found = self._shown or self._next
        if found is None:
            raise Unreadable("cannot be decoded: the decoder returned no frame")
        found_time, frame = found
        if found_time != time:
            low, high = (found_time + 1, time) if found_time < time else (time, found_time - 1)
            lost = [t for t in self._index.times if low <= t <= high]
            if len(lost) > MAX_TAIL_LOSS:
                part = " to ".join(f"{self.source.seconds(t):.2f} s" for t in (lost[0], lost[-1]))
                raise Unreadable(f"is damaged: the decoder returned none of the {len(lost)} frames from {part}")
        return frame
