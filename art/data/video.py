"""Reading frames out of video files with PyAV: exactly the wanted ones, and as little decoding as that takes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8
from torch import Tensor

from .packets import HELD_BACK, Listing, Source, Unreadable
from .sampling import SPARSE, FrameSampling

_SEEK_GAIN = 4  # jumping to a keyframe costs about as much as decoding this many frames

#: Converting one small frame in several threads takes longer than in one; before PyAV 17 there was only one.
ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}

_Path = str | os.PathLike[str]


class VideoError(Exception):
    """A video file that cannot be read: which one (``path``) and why (``reason``)."""

    def __init__(self, path: _Path, reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[Path, str]]:
        return VideoError, (self.path, self.reason)


def read_clip(
    path: _Path,
    num_frames: int,
    *,
    start: float | None = None,
    end: float | None = None,
    generator: torch.Generator | None = None,
    short_side: int | None = None,
    sampling: FrameSampling = SPARSE,
    views: int = 1,
) -> UInt8[Tensor, "n 3 h w"]:
    """``num_frames`` frames of a video file, or so many for each of several views; no other frame is converted to RGB.

    Args:
        path: the file.
        num_frames: T, how many frames to return; a shorter clip repeats some.
        start: where the clip starts, seconds since the first frame; None is the beginning of the file.
        end: where the clip ends (that frame is excluded); None is the end of the file.
        generator: draws at random which frames of a clip are taken (training); None takes fixed ones (test).
        short_side: scale the frames, keeping their aspect ratio, so that the shorter side has this many pixels; None
            leaves them as they are.
        sampling: which frames are taken, by default one of each of T segments of the clip.
        views: how many times T frames are taken, as :meth:`.sampling.FrameSampling.indices` chooses them.

    Returns:
        RGB, view after view (n = views · T), turned upright where the file says that the camera was not.

    Raises:
        VideoError: the file is missing, empty, damaged, truncated, has no video or no frame from ``start`` to ``end``.
        ValueError: ``num_frames`` or ``short_side`` is below 1.
    """
    with _opened(path) as source:
        listing = source.list_frames(start, end)
        wanted = sampling.indices(len(listing.times), num_frames, views=views, generator=generator)
        ascending, place = wanted.flatten().unique(return_inverse=True)  # views interleave
        frames = _Decoder(source, listing, short_side).read([listing.times[i] for i in ascending.tolist()])
        return frames if len(place) == len(frames) and views == 1 else frames[place]


def read_frames(
    path: _Path, *, start: float | None = None, end: float | None = None, short_side: int | None = None
) -> UInt8[Tensor, "n 3 h w"]:
    """Every frame from ``start`` to ``end``. Arguments and errors as in :func:`read_clip`."""
    with _opened(path) as source:
        listing = source.list_frames(start, end)
        return _Decoder(source, listing, short_side).read(listing.times)


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


def iterate_frames(path: _Path, *, start: float | None = None, end: float | None = None) -> Iterator[ShownFrame]:
    """The same frames as :func:`read_frames` gives, one after the other, without conversion. Errors as there."""
    with _opened(path) as source:
        listing = source.list_frames(start, end)
        for time, frame in _Decoder(source, listing, None).shown(listing.times):
            yield ShownFrame(time - source.origin, frame, source)


def decoded_bytes(
    path: _Path, *, start: float | None = None, end: float | None = None, short_side: int | None = None
) -> int:
    """How much memory :func:`read_frames` would take for its result; nothing is decoded. Errors as there."""
    with _opened(path) as source:
        count = len(source.list_frames(start, end).times)
        width, height = _scaled(source.stream.width, source.stream.height, short_side)
        return count * 3 * height * width


def frame_times(path: _Path, *, start: float | None = None, end: float | None = None) -> list[float]:
    """When each frame from ``start`` to ``end`` is shown, in seconds since the first of the file; nothing is decoded.

    Raises:
        VideoError: as in :func:`read_clip`.
    """
    with _opened(path) as source:
        return [source.seconds(time) for time in source.list_frames(start, end).times]


@contextlib.contextmanager
def _opened(path: _Path) -> Iterator[Source]:
    """The first video stream of a file; whatever then goes wrong with it becomes a :class:`VideoError`."""
    file = Path(path)
    try:
        _check_file(file)
        # "file:", or a colon in the name would be taken for a protocol.
        with av.open(f"file:{file}", metadata_errors="replace") as container:
            streams = [s for s in container.streams.video if s.codec_context is not None and not _is_cover(s)]
            if not streams:
                kinds = {"cover" if _is_cover(stream) else stream.type for stream in container.streams}
                raise Unreadable(f"has no video that can be decoded, only {', '.join(sorted(kinds)) or 'nothing'}")
            # Decoding runs beside training, in as many workers as there are cores to spare: one thread each.
            streams[0].codec_context.thread_type = "NONE"
            streams[0].codec_context.thread_count = 1
            yield Source(container, streams[0])
    except Unreadable as error:
        raise VideoError(path, str(error)) from None
    except (av.FFmpegError, OSError) as error:
        raise VideoError(path, f"cannot be read: {error.strerror or error}") from error


def _check_file(file: Path) -> None:
    if not file.exists():
        raise Unreadable("there is no such file")
    if not file.is_file():
        raise Unreadable("is not a file")
    if file.stat().st_size == 0:
        raise Unreadable("is empty (0 bytes)")


def _is_cover(stream: Stream) -> bool:
    """Whether the stream is the picture that goes with a piece of music."""
    return bool(stream.disposition & stream.disposition.attached_pic)


class _Decoder:
    """Takes the frames shown at given times out of a source, jumping ahead where that saves decoding."""

    def __init__(self, source: Source, listing: Listing, short_side: int | None) -> None:
        self._source = source
        self._listing = listing
        self._short_side = short_side
        self._reformatter = VideoReformatter()  # one for all frames: a new one would build its tables again
        self._position = 0  # the packet that is decoded next

    def read(self, times: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """The frames shown at ``times``, ascending; a repeated one is decoded once."""
        pictures: dict[int, np.ndarray] = {}
        cursor: _Cursor | None = None
        for time in times:
            if time in pictures:
                continue
            entry = 0 if self._source.counted else self._listing.entry[time]
            if cursor is None or entry >= self._position + _SEEK_GAIN:
                cursor = self._jump(entry)
            picture = pictures[time] = self._picture(self._shown_at(time, cursor))
            if picture.shape != pictures[times[0]].shape:
                sizes = [f"{p.shape[1]}×{p.shape[0]}" for p in (pictures[times[0]], picture)]
                raise Unreadable(f"changes its picture size from {sizes[0]} to {sizes[1]}")
        stacked = np.stack([pictures[time] for time in times])
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()

    def shown(self, times: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """The frames shown at ``times``, ascending, none of them skipped."""
        cursor = self._jump(0 if self._source.counted else self._listing.entry[times[0]])
        for time in times:
            yield time, self._shown_at(time, cursor)

    def _jump(self, position: int) -> _Cursor:
        packets = self._source.packets_from(self._listing.packets[position].time)
        self._position = position
        return _Cursor(self._frames(packets))

    def _frames(self, packets: Iterator[av.Packet]) -> Iterator[tuple[int, VideoFrame]]:
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
        seconds = self._source.seconds(shown_time)
        if shown_time < time and sum(shown_time < t <= time for t in self._listing.times) > HELD_BACK:
            raise Unreadable(f"cannot be decoded after {seconds:.2f} s")
        if frame.is_corrupt:
            raise Unreadable(f"is damaged at {seconds:.2f} s")
        return frame

    def _picture(self, frame: VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        width, height = _scaled(frame.width, frame.height, self._short_side)
        filtering = Interpolation.BILINEAR
        if width != frame.width or height != frame.height:
            filtering = Interpolation.AREA if width < frame.width else Interpolation.BICUBIC
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=filtering, **ONE_THREAD)
        return np.rot90(rgb.to_ndarray(), round(frame.rotation / 90))


def _scaled(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    if short_side is None:
        return width, height
    if short_side < 1:
        raise ValueError(f"short_side must be at least 1 pixel, got {short_side}")
    factor = short_side / min(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))


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
