"""Re-encoding of one video for fast reading in training: small, upright, with a keyframe every few frames."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
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

from art.data.decoding.frames import ONE_THREAD, Orientation, orient, orientation
from art.data.decoding.pyav import TimedFrame
from art.data.decoding.video import VideoError, frame_times, iterate_frames
from art.data.files import WriteError, atomic_write
from art.data.parallel import Stopped

CODEC: Final = "libx264"
# fastdecode, because the result is read many times. Without cpu-independent, x264 selects algorithms by CPU type, which
# changes the output. Keyframes are placed only where requested, not at scene changes.
_OPTIONS = {"preset": "veryfast", "tune": "fastdecode"}
_X264 = "cpu-independent=1:scenecut=0:open-gop=0"
_MAX_RATE = 1_000_000  # ticks per second that the encoder and MP4 support
_RGB, _BT601 = 0, 5  # values of av.video.reformatter.Colorspace
_TIME_TOLERANCE = 1e-4  # seconds


@dataclass(frozen=True)
class Encoding:
    """Encoding settings.

    Attributes:
        short_side: pixels of the shorter side; smaller videos are not enlarged.
        keyframe_every: distance of keyframes, in frames.
        crf: constant rate factor of x264, 0 (lossless) to 51; lower means better quality and larger files.

    Raises:
        ValueError: a value is out of range.
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
            raise ValueError(f"crf must be in 0..51, got {self.crf}")

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in {**asdict(self), **_OPTIONS}.items())

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the encoded width and height: the aspect ratio is kept, both are even, and neither is enlarged."""
        scale = self.short_side / min(width, height)
        even_width, even_height = (max(2, min(2 * round(n * scale / 2), n // 2 * 2)) for n in (width, height))
        return even_width, even_height


@dataclass(frozen=True)
class EncodeResult:
    """Number of frames and bytes of an encoded file."""

    frames: int
    bytes: int


def check_encoder() -> None:
    """Raise ModuleNotFoundError if the installed PyAV has no H.264 encoder."""
    try:
        av.codec.Codec(CODEC, "w")
    except av.codec.codec.UnknownCodecError:
        raise ModuleNotFoundError(
            f"the installed PyAV has no encoder {CODEC!r}, unlike the wheels on PyPI: pip install --force-reinstall av"
        ) from None


def reencode(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    encoding: Encoding | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> EncodeResult:
    """Encode a video as H.264 in MP4, without sound. The original is not modified.

    The result has the frames that :func:`art.data.read_frames` returns for the original, upright, with the same
    intervals (a variable frame rate is kept) and color tags.

    Args:
        source: the original.
        target: the new file, written atomically; an existing file is replaced.
        encoding: encoding settings; None is the default: short side 320, a keyframe every 12 frames.
        start: start in the original, in seconds since its first frame; None is its beginning.
        end: end in the original (exclusive); None is its end.
        stop: called before each frame; encoding is abandoned if it returns True.

    Raises:
        VideoError: the original cannot be read completely, or the times of its frames cannot be kept.
        WriteError: the new file cannot be written.
        Stopped: ``stop`` returned True.
    """
    encoding = encoding or Encoding()
    results: list[EncodeResult] = []

    def write(partial: Path) -> None:
        times = _encode(Path(source), partial, encoding, start, end, stop)
        _check_result(Path(source), partial, times)
        results.append(EncodeResult(len(times), partial.stat().st_size))

    try:
        atomic_write(Path(target), write)
    except WriteError as error:
        raise WriteError(error.errno, error.strerror, str(target)) from error
    return results[0]


def _encode(
    source: Path, target: Path, encoding: Encoding, start: float | None, end: float | None, stop: Callable[[], bool]
) -> list[float]:
    """Write the frames and return the time of each, in seconds since the first."""
    with contextlib.closing(_Writer(target, encoding)) as writer:
        for item in iterate_frames(source, start=start, end=end):
            if stop():
                raise Stopped
            writer.add(item)
        writer.flush()
    return writer.times


def _check_result(source: Path, partial: Path, expected: list[float]) -> None:
    """Read the new file back, because a failing disk may lose data without an error."""
    try:
        times = frame_times(partial)
    except VideoError as error:
        raise WriteError(errno.EIO, f"the new file cannot be read: {error.reason}") from error
    if len(times) != len(expected) or not np.allclose(times, expected, rtol=0, atol=_TIME_TOLERANCE):
        raise VideoError(source, f"cannot be re-encoded: {len(times)} of {len(expected)} frames kept their time")


class _Writer:
    """Encodes the frames of one video; closing it completes the file."""

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self.times: list[float] = []  # of each written frame, in seconds since the first
        self._path, self._encoding = path, encoding
        self._reformatter = VideoReformatter()
        self._output: tuple[OutputContainer, VideoStream] | None = None
        self._first = self._last = 0
        self._time_base = Fraction(1)

    def add(self, item: TimedFrame) -> None:
        upright = orientation(item.frame)
        frame = _orient(self._resize(item.frame), upright)
        if self._output is None:
            self._first, self._last = item.ticks, -1
            base = item.source.time_base
            self._time_base = base if base.denominator <= _MAX_RATE else Fraction(1, _MAX_RATE)
            self._output = self._open(item, frame, upright)
        tick = round((item.ticks - self._first) * item.source.time_base / self._time_base)
        self._last = max(tick, self._last + 1)  # x264 rejects two frames with the same time
        self.times.append(float(self._last * self._time_base))
        frame.pts, frame.time_base = self._last, self._time_base
        frame.pict_type = PictureType.NONE  # otherwise keyframes of the original would be kept as keyframes
        _write(*self._output, frame)

    def flush(self) -> None:
        if self._output is not None:
            _write(*self._output, None)

    def close(self) -> None:
        with _write_errors():
            if self._output is not None:
                self._output[0].close()

    def _open(self, item: TimedFrame, frame: VideoFrame, upright: Orientation) -> tuple[OutputContainer, VideoStream]:
        every, original = self._encoding.keyframe_every, item.source.stream
        options = {**_OPTIONS, "crf": str(self._encoding.crf)}
        options["x264-params"] = f"{_X264}:keyint={every}:min-keyint={every}"
        with _write_errors():
            # The format is explicit because a partial file has no suffix. With faststart, the index comes first, which
            # reduces seeking.
            container = av.open(f"file:{self._path}", "w", format="mp4", options={"movflags": "+faststart"})
        rate = Fraction(original.average_rate or 25).limit_denominator(1001)
        stream = container.add_stream(CODEC, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
        context = stream.codec_context
        context.time_base, context.thread_count = self._time_base, 1  # there is one process per core
        context.colorspace, context.color_range = frame.colorspace, frame.color_range
        context.color_primaries = original.codec_context.color_primaries
        context.color_trc = original.codec_context.color_trc
        pixel_shape = original.sample_aspect_ratio
        if pixel_shape:
            context.sample_aspect_ratio = 1 / pixel_shape if upright.transposed else pixel_shape
        return container, stream

    def _resize(self, frame: VideoFrame) -> VideoFrame:
        width, height = self._encoding.size(frame.width, frame.height)
        interpolation = Interpolation.AREA if (width, height) != (frame.width, frame.height) else Interpolation.BILINEAR
        colorspace = {"dst_colorspace": _BT601} if frame.colorspace == _RGB else {}
        return self._reformatter.reformat(
            frame, width, height, "yuv420p", interpolation=interpolation, **colorspace, **ONE_THREAD
        )


def _orient(frame: VideoFrame, upright: Orientation) -> VideoFrame:
    """Return a yuv420p frame rotated and mirrored upright."""
    if not any(upright):
        return frame
    height, width = frame.height, frame.width
    values: UInt8[np.ndarray, " n"] = frame.to_ndarray().reshape(-1)
    luma, chroma = height * width, height * width // 4
    planes = [values[:luma].reshape(height, width)]
    planes += [values[luma + i * chroma :][:chroma].reshape(height // 2, width // 2) for i in range(2)]
    rotated = [orient(plane, upright) for plane in planes]
    new_height, new_width = rotated[0].shape
    stacked = np.concatenate([plane.reshape(-1) for plane in rotated]).reshape(new_height * 3 // 2, new_width)
    result = VideoFrame.from_ndarray(stacked, format="yuv420p")
    result.colorspace, result.color_range = frame.colorspace, frame.color_range
    return result


def _write(container: OutputContainer, stream: VideoStream, frame: VideoFrame | None) -> None:
    with _write_errors():
        container.mux(stream.encode(frame))


@contextlib.contextmanager
def _write_errors() -> Iterator[None]:
    """Turn errors of FFmpeg and the operating system into :class:`WriteError`."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise WriteError(error.errno or errno.EIO, error.strerror or str(error)) from error
