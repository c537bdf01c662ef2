"""Frames out of video files with PyAV: exactly the wanted ones, and as little decoding as that takes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
from av.stream import Stream
from av.video.frame import VideoFrame
from jaxtyping import UInt8
from torch import Tensor

from art.data.decoding.frame_converter import Pictures
from art.data.decoding.packets import HELD_BACK, ListedSpan, Listing, Source, Unreadable

#: Codecs in which nothing ever leans on a frame that says so of itself, whatever is wanted later. (In HEVC a frame that
#: is "not referenced" may be, by frames of a higher temporal layer.)
_DISPOSABLE = ("h264", "mpeg4", "mpeg2video", "mpeg1video")

#: Decoding anew from a keyframe costs about as much as so many frames; with a seek in the file, as so many.
_RESTART_GAIN, _SEEK_GAIN = 2, 4


@contextlib.contextmanager
def open_span(file: Path | bytes, start: float | None, end: float | None) -> Iterator[PyAVSpan]:
    """A :class:`~art.data.decoding.interface.Decoder`: the first video stream of a file that PyAV's FFmpeg can decode."""
    with open_source(file) as source:
        yield PyAVSpan(source, source.list_frames(start, end))


@contextlib.contextmanager
def open_source(file: Path | bytes) -> Iterator[Source]:
    """The first video stream that can be decoded of a file, or of the content of one.

    Raises:
        Unreadable: there is none, or FFmpeg finds something wrong with the file, now or later.
    """
    try:
        # "file:", or a colon in the name would be taken for a protocol.
        opened = io.BytesIO(file) if isinstance(file, bytes) else f"file:{file}"
        with av.open(opened, "r", metadata_errors="replace") as container:
            streams = [s for s in container.streams.video if s.codec_context is not None and not _is_cover(s)]
            if not streams:
                kinds = {"cover" if _is_cover(stream) else stream.type for stream in container.streams}
                raise Unreadable(f"has no video that can be decoded, only {', '.join(sorted(kinds)) or 'nothing'}")
            # Decoding runs beside training, in as many workers as there are cores to spare: one thread each.
            streams[0].codec_context.thread_type = "NONE"
            streams[0].codec_context.thread_count = 1
            yield Source(container, streams[0])
    except av.FFmpegError as error:  # some are no OSError
        raise Unreadable(f"cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class ShownFrame:
    """A decoded frame as the decoder gives it: not turned upright, in the file's own pixel format.

    Attributes:
        ticks: when it is shown, in units of ``source.time_base`` since the first frame of the file.
        frame: the picture.
        source: the file that it comes from.
    """

    ticks: int
    frame: VideoFrame
    source: Source


def open_frames(path: Path, start: float | None, end: float | None) -> Iterator[ShownFrame]:
    """Every frame from ``start`` to ``end``, one after the other, without conversion.

    Raises:
        Unreadable: as a :class:`~art.data.decoding.interface.Decoder` does.
    """
    with open_source(path) as source:
        listing = source.list_frames(start, end)
        for time, frame in _CarefulWalk(source, listing).frames(listing.times):
            _check_whole(source, time, frame)
            yield ShownFrame(source.ticks(time), frame, source)


def _is_cover(stream: Stream) -> bool:
    """Whether the stream is the picture that goes with a piece of music."""
    return bool(stream.disposition & stream.disposition.attached_pic)


class PyAVSpan(ListedSpan):
    """A :class:`~art.data.decoding.interface.FrameSpan`."""

    def read(self, positions: Sequence[int], short_side: int | None) -> UInt8[Tensor, "n 3 h w"]:
        """The frames at some positions, as :class:`~art.data.decoding.interface.FrameSpan` has it."""
        times = [self._listing.times[position] for position in positions]
        try:
            return self._read(times, short_side, lean=not self._source.counted)
        except _NotFound:
            return self._read(times, short_side, lean=False)

    def _read(self, times: Sequence[int], short_side: int | None, *, lean: bool) -> UInt8[Tensor, "n 3 h w"]:
        pictures = Pictures(times, short_side)
        walk = _LeanWalk(self._source, self._listing) if lean else _CarefulWalk(self._source, self._listing)
        for time, frame in walk.frames(sorted(set(times))):
            _check_whole(self._source, time, frame)
            pictures.put(time, frame)
        return pictures.clip


def _check_whole(source: Source, time: int, frame: VideoFrame) -> None:
    if frame.is_corrupt:
        raise Unreadable(f"is damaged at {source.seconds(time):.2f} s")


class _NotFound(Exception):
    """A frame did not come out of the decoder where its packet promised it."""


class _LeanWalk:
    """Decodes from keyframe to wanted frame, and of what lies between only what other frames lean on.

    Where a frame does not come out at its time, as happens with damaged or oddly made files, it is :class:`_NotFound`.
    """

    def __init__(self, source: Source, listing: Listing) -> None:
        self._source = source
        self._listing = listing
        self._context = source.stream.codec_context
        self._skips = self._context.name in _DISPOSABLE

    def frames(self, times: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """The frames at ``times``, ascending, each with its time."""
        place = {packet.time: position for position, packet in enumerate(self._listing.packets)}
        gain = _SEEK_GAIN if self._listing.held is None else _RESTART_GAIN
        run: list[int] = []
        first = last = 0  # packets, in the order of decoding
        for time in times:
            entry = self._listing.entry[time]
            if run and entry >= last + gain:
                yield from self._decode(first, last, run)
                run = []
            first, last = (entry, place[time]) if not run else (first, max(last, place[time]))
            run.append(time)
        yield from self._decode(first, last, run)

    def _decode(self, first: int, last: int, wanted: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """From a keyframe up to the last packet that is needed; then the decoder gives back what it still holds."""
        missing = set(wanted)
        self._context.flush_buffers()
        for packet in self._packets(first, last):
            if self._skips:
                self._context.skip_frame = "DEFAULT" if packet is None or packet.pts in missing else "NONREF"
            for frame in self._context.decode(packet):
                if frame.pts in missing:
                    missing.remove(frame.pts)
                    yield frame.pts, frame
        if missing:
            self._context.skip_frame = "DEFAULT"
            raise _NotFound

    def _packets(self, first: int, last: int) -> Iterator[av.Packet | None]:
        if self._listing.held is not None:
            yield from self._listing.held[first : last + 1]
        else:
            packets = self._source.packets_from(self._listing.packets[first].time)
            for _ in range(first, last + 1):
                yield next(packets)
        yield None


class _CarefulWalk:
    """Decodes every frame from a keyframe on, as a player does, and takes for each time the one then on the screen."""

    def __init__(self, source: Source, listing: Listing) -> None:
        self._source = source
        self._listing = listing
        self._position = 0  # the packet that is decoded next

    def frames(self, times: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """The frames at ``times``, ascending, each with its time."""
        cursor: _Cursor | None = None
        for time in times:
            entry = 0 if self._source.counted else self._listing.entry[time]
            if cursor is None or entry >= self._position + _SEEK_GAIN:
                cursor = self._jump(entry)
            yield time, self._shown_at(time, cursor)

    def _jump(self, position: int) -> _Cursor:
        packets = self._source.packets_from(self._listing.packets[position].time)
        self._position = position
        return _Cursor(self._decode(packets))

    def _decode(self, packets: Iterable[av.Packet]) -> Iterator[tuple[int, VideoFrame]]:
        count = 0
        for packet in packets:
            self._position += 1
            for frame in packet.decode():
                time = count if self._source.counted else frame.pts
                if time is None:
                    raise Unreadable("holds a frame without a time of display")
                count += 1
                yield time, frame

    def _shown_at(self, time: int, cursor: _Cursor) -> VideoFrame:
        shown_time, frame = cursor.advance(time)
        if shown_time < time and sum(shown_time < t <= time for t in self._listing.times) > HELD_BACK:
            raise Unreadable(f"cannot be decoded after {self._source.seconds(shown_time):.2f} s")
        return frame


class _Cursor:
    """Walks forward through decoded frames, which come in the order they are shown."""

    def __init__(self, frames: Iterator[tuple[int, VideoFrame]]) -> None:
        self._frames = frames
        self._ahead: tuple[int, VideoFrame] | None = None
        self._shown: tuple[int, VideoFrame] | None = None

    def next_time(self) -> float:
        """The time of the frame that comes next, infinite at the end."""
        if self._ahead is None:
            self._ahead = next(self._frames, None)
        return float("inf") if self._ahead is None else self._ahead[0]

    def advance(self, time: int) -> tuple[int, VideoFrame]:
        """The last frame whose time is at most ``time``; the first of all where even that one is later, because a
        stream cut without care begins with packets that nothing can decode."""
        while self._shown is None or self._shown[0] < time:
            if self.next_time() > time:
                break
            self._shown, self._ahead = self._ahead, None
        found = self._shown or self._ahead
        if found is None:
            raise Unreadable("cannot be decoded: not one frame comes out")
        return found
