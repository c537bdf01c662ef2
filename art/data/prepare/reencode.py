"""One video into another that is quick to read in training: small, upright, with a keyframe every few frames."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from art.data.decoding.frames import ONE_THREAD
from art.data.decoding.pyav import TimedFrame, VideoSource
from art.data.decoding.video import VideoError, frame_times, iterate_frames
from art.data.files import atomic_write
from art.data.parallel import Stopped

CODEC: Final = "libx264"
# fastdecode: the result is read many times. x264 left to itself takes for some sums what the CPU does fastest, which
# gives other bits on other CPUs. Keyframes stand where they are wanted, and at no cut of scenes besides.
_OPTIONS = {"preset": "veryfast", "tune": "fastdecode"}
_X264 = "cpu-independent=1:scenecut=0:open-gop=0"
_FINEST = 1_000_000  # ticks a second that the encoder and MP4 carry without trouble
_RGB, _BT601 = 0, 5  # values of av.video.reformatter.Colorspace
_FOLLOW = 1e-4  # seconds by which a time may be off after it went through the file's clock


class WriteError(OSError):
    """The new file cannot be written: the disk is full, say. Its source is not to blame."""


@dataclass(frozen=True)
class Encoding:
    """How videos are written.

    Attributes:
        short_side: pixels of the shorter side; a smaller picture is not enlarged.
        keyframe_every: frames from one keyframe to the next.
        crf: x264's constant rate factor, 0 (no loss) to 51; lower is better and larger.

    Raises:
        ValueError: one of them is out of its range.
    """

    short_side: int = 320
    keyframe_every: int = 12
    crf: int = 23

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.short_side % 2:
            raise ValueError(f"short_side must be an even number of pixels, at least 16, got {self.short_side}")
        if self.keyframe_every < 1:
            raise ValueError(f"keyframe_every must be at least 1 frame, got {self.keyframe_every}")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf must lie in 0..51, got {self.crf}")

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in {**asdict(self), **_OPTIONS}.items())

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that a picture gets: in proportion, even, not above its own."""
        factor = self.short_side / min(width, height)
        return _even(width, factor), _even(height, factor)


@dataclass(frozen=True)
class Made:
    """What became of a file: its frames, its bytes."""

    frames: int
    bytes: int


def reencode(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    encoding: Encoding | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Made:
    """Write a video again as H.264 in MP4, without its sound; the original is only read.

    There are as many frames as :func:`.video.read_frames` gives of the original, with the same times between them
    (a varying rate stays so), upright. Colours are tagged as in the original.

    Args:
        source: the original.
        target: the new file, which is there as a whole or not at all; one that is there is replaced.
        encoding: how it is written; None: short side 320, a keyframe every 12 frames.
        start: seconds since the first frame of the original where the new file begins; None is its beginning.
        end: where it ends (that frame is excluded); None is the end of the original.
        stop: asked before each frame whether to give up.

    Raises:
        VideoError: the original cannot be read as a whole, or the new file does not hold its frames.
        WriteError: the new file cannot be written.
        Stopped: ``stop`` said so.
    """
    encoding = encoding or Encoding()
    made: list[Made] = []

    def write(partial: Path) -> None:
        times = _encode(Path(source), partial, encoding, start, end, stop)
        _check_result(Path(source), partial, times)
        made.append(Made(len(times), partial.stat().st_size))

    try:
        atomic_write(Path(target), write)
    except WriteError as error:
        raise WriteError(error.errno, error.strerror, str(target)) from error
    return made[0]


def _encode(
    source: Path,
    target: Path,
    encoding: Encoding,
    start: float | None,
    end: float | None,
    stop: Callable[[], bool],
) -> list[float]:
    """Write the frames; returns the time of each, in seconds since the first."""
    size: tuple[int, int] | None = None
    with contextlib.closing(_Writer(target, encoding)) as writer:
        for shown in iterate_frames(source, start=start, end=end):
            if stop():
                raise Stopped
            new = shown.frame.width, shown.frame.height
            if size is not None and new != size:
                sizes = " to ".join(f"{width}×{height}" for width, height in (size, new))
                raise VideoError(source, f"changes its picture size from {sizes}")
            size = new
            writer.add(shown)
        writer.finish()
    return writer.times


def check_encoder() -> None:
    """Raise ModuleNotFoundError if this PyAV was built without the encoder."""
    try:
        av.codec.Codec(CODEC, "w")
    except av.codec.codec.UnknownCodecError:
        raise ModuleNotFoundError(
            f"the installed PyAV has no encoder {CODEC!r}; PyPI's wheels have it: pip install --force-reinstall av"
        ) from None


class _Writer:
    """Encodes the frames of one video; closing it completes the file."""

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self.times: list[float] = []  # of each frame that was written, in seconds since the first
        self._path = path
        self._encoding = encoding
        self._reformatter = VideoReformatter()
        self._output: tuple[OutputContainer, VideoStream] | None = None
        self._first = self._last = 0
        self._clock = Fraction(1)

    def add(self, shown: TimedFrame) -> None:
        quarter_turns = round(shown.frame.rotation / 90)
        frame = _upright(self._small(shown.frame), quarter_turns)
        if self._output is None:
            self._first, self._last, self._clock = shown.ticks, -1, _clock(shown.source.time_base)
            self._output = self._open(shown.source, frame, quarter_turns)
        tick = round((shown.ticks - self._first) * shown.source.time_base / self._clock)
        self._last = max(tick, self._last + 1)  # x264 takes no two frames of one time
        self.times.append(float(self._last * self._clock))
        frame.pts, frame.time_base = self._last, self._clock
        frame.pict_type = PictureType.NONE  # or what was a keyframe would be one again
        _write(*self._output, frame)

    def finish(self) -> None:
        """Write what the encoder holds back."""
        if self._output is not None:
            _write(*self._output, None)

    def close(self) -> None:
        """Write the index and close."""
        try:
            if self._output is not None:
                self._output[0].close()
        except (av.FFmpegError, OSError) as error:
            raise _write_error(error) from error

    def _open(self, source: VideoSource, frame: VideoFrame, quarter_turns: int) -> tuple[OutputContainer, VideoStream]:
        every, original = self._encoding.keyframe_every, source.stream.codec_context
        options = {**_OPTIONS, "crf": str(self._encoding.crf)}
        options["x264-params"] = f"{_X264}:keyint={every}:min-keyint={every}"
        try:
            # A partial file has no suffix that tells its format. With the index in front it is read with less seeking.
            container = av.open(f"file:{self._path}", "w", format="mp4", options={"movflags": "+faststart"})
        except (av.FFmpegError, OSError) as error:
            raise _write_error(error) from error
        rate = Fraction(source.stream.average_rate or 25).limit_denominator(1001)
        stream = container.add_stream(CODEC, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
        context = stream.codec_context
        context.time_base, context.thread_count = self._clock, 1  # there is a process for each core
        context.colorspace, context.color_range = frame.colorspace, frame.color_range
        context.color_primaries, context.color_trc = original.color_primaries, original.color_trc
        shape = source.stream.sample_aspect_ratio
        if shape:
            context.sample_aspect_ratio = 1 / shape if quarter_turns % 2 else shape
        return container, stream

    def _small(self, frame: VideoFrame) -> VideoFrame:
        width, height = self._encoding.size(frame.width, frame.height)
        filtering = Interpolation.AREA if (width, height) != (frame.width, frame.height) else Interpolation.BILINEAR
        colours = {"dst_colorspace": _BT601} if frame.colorspace == _RGB else {}
        return self._reformatter.reformat(
            frame, width, height, "yuv420p", interpolation=filtering, **colours, **ONE_THREAD
        )


def _upright(frame: VideoFrame, quarter_turns: int) -> VideoFrame:
    """A yuv420p frame turned anticlockwise."""
    if quarter_turns % 4 == 0:
        return frame
    height, width = frame.height, frame.width
    values: UInt8[np.ndarray, " n"] = frame.to_ndarray().reshape(-1)
    luma, chroma = height * width, height * width // 4
    planes = [values[:luma].reshape(height, width)]
    planes += [values[luma + i * chroma :][:chroma].reshape(height // 2, width // 2) for i in range(2)]
    turned = [np.rot90(plane, quarter_turns) for plane in planes]
    new_height, new_width = turned[0].shape
    stacked = np.concatenate([plane.reshape(-1) for plane in turned]).reshape(new_height * 3 // 2, new_width)
    result = VideoFrame.from_ndarray(stacked, format="yuv420p")
    result.colorspace, result.color_range = frame.colorspace, frame.color_range
    return result


def _even(length: int, factor: float) -> int:
    """The even number next to ``length * factor``, and not above ``length``."""
    return max(2, min(2 * round(length * factor / 2), length // 2 * 2))


def _clock(time_base: Fraction) -> Fraction:
    """The file's own clock, or one that is as fine as makes sense."""
    return time_base if time_base.denominator <= _FINEST else Fraction(1, _FINEST)


def _write(container: OutputContainer, stream: VideoStream, frame: VideoFrame | None) -> None:
    try:
        container.mux(stream.encode(frame))
    except (av.FFmpegError, OSError) as error:
        raise _write_error(error) from error


def _write_error(error: av.FFmpegError | OSError) -> WriteError:
    return WriteError(error.errno or errno.EIO, error.strerror or str(error))


def _check_result(source: Path, partial: Path, expected: list[float]) -> None:
    """Look at what was written: a disk that loses data does not always say so."""
    try:
        times = frame_times(partial)
    except VideoError as error:
        raise WriteError(errno.EIO, f"what was written cannot be read: {error.reason}") from error
    if len(times) != len(expected) or any(
        abs(time - wanted) > _FOLLOW for time, wanted in zip(times, expected, strict=True)
    ):
        raise VideoError(source, f"cannot be written again: of {len(expected)} frames {len(times)} kept their time")
