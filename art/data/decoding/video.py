"""Reading the frames of a clip: a video file, a directory of frames, or a clip in a shard."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from art._deprecated import renamed_names
from art.data.datasets.annotations import FRAME_SUFFIXES
from art.data.decoding import pyav, torchcodec
from art.data.decoding.frames import (
    Decoder,
    FrameSpan,
    StoredClip,
    Unreadable,
    open_images,
    scaled_size,
)
from art.data.decoding.pyav import TimedFrame
from art.data.transforms.sampling import SPARSE, FrameSampling

_log = logging.getLogger(__name__)
_Path = str | os.PathLike[str]

#: Values of ``data.decoder``.
DECODERS = ("pyav", "torchcodec", "auto")

__getattr__ = renamed_names(__name__, {"ShownFrame": "TimedFrame"})


class VideoError(Exception):
    """A clip cannot be read. ``path`` is its path and ``reason`` the cause.

    Examples:
        >>> from pathlib import Path
        >>> from art.data import VideoError, read_clip
        >>> _ = Path("broken.mp4").write_bytes(b"")
        >>> try:
        ...     read_clip("broken.mp4", 8)
        ... except VideoError as error:
        ...     print(error)
        broken.mp4: is empty (0 bytes)
    """

    def __init__(self, path: _Path, reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[Path, str]]:
        return VideoError, (self.path, self.reason)


@functools.cache
def find_decoder(name: str) -> Decoder:
    """Return the decoder of video files for a value of ``data.decoder``.

    ``"pyav"`` is always available. ``"torchcodec"`` requires that package and FFmpeg's shared libraries. ``"auto"``
    uses torchcodec if it decodes a test video, and PyAV otherwise, and logs its choice. All decoders return the same
    frames, but colors may differ by rounding, so that runs with ``"auto"`` may not be reproducible on another machine.

    Raises:
        ValueError: the name is unknown.
        ImportError: ``name`` is ``"torchcodec"``, which cannot be imported or does not decode a test video.
    """
    if name not in DECODERS:
        raise ValueError(f"decoder {name!r} is unknown, expected one of {', '.join(DECODERS)}")
    problem = None if name == "pyav" else torchcodec.probe()
    if problem is not None and name == "torchcodec":
        raise ImportError(
            f"data.decoder=torchcodec: torchcodec {problem}. Install a torchcodec built for this PyTorch (pip install "
            "'art-kernels[torchcodec]') and FFmpeg's shared libraries, or use data.decoder=pyav"
        )
    if problem is not None:
        _log.warning("data.decoder=auto: videos are decoded with PyAV, because torchcodec %s", problem)
    elif name == "auto":
        _log.info("data.decoder=auto: videos are decoded with torchcodec")
    return pyav.open_span if name == "pyav" or problem is not None else torchcodec.open_span


def read_clip(
    path: _Path | StoredClip,
    num_frames: int,
    *,
    start: float | None = None,
    end: float | None = None,
    generator: torch.Generator | None = None,
    short_side: int | None = None,
    sampling: FrameSampling = SPARSE,
    views: int = 1,
    decoder: str = "pyav",
) -> UInt8[Tensor, "n 3 h w"]:
    """Read ``num_frames`` frames of a clip for each view. Only these frames are converted to RGB.

    Args:
        path: a video file, a directory of numbered frames (``00001.jpg``, …), one of these in memory, or the path of a
            clip in a shard (see :mod:`art.data.shards`), which is read up to that clip.
        num_frames: number of frames T; a shorter clip repeats frames.
        start: start of the clip, in seconds since the first frame; None is the beginning of the file.
        end: end of the clip (exclusive), in seconds since the first frame; None is the end of the file.
        generator: samples frames at random (training); None selects fixed frames (evaluation).
        short_side: scale frames to this many pixels on the shorter side, keeping the aspect ratio; None keeps the size.
        sampling: how frames are selected, by default one from each of T equal segments of the clip.
        views: number of times T frames are selected, see :meth:`.FrameSampling.indices`.
        decoder: decoder of video files, one of :data:`art.data.decoding.video.DECODERS`.

    Returns:
        RGB frames, view by view (n = views · T), rotated upright according to the file's metadata.

    Raises:
        VideoError: the file is missing, empty, damaged or truncated, or has no video, or no frame between ``start`` and
            ``end``.
        ValueError: ``num_frames`` or ``short_side`` is below 1, or the decoder is unknown.
        ImportError: the decoder is not available.

    Examples:
        >>> from art.data import read_clip
        >>> read_clip("clip.mp4", num_frames=4, short_side=32).shape
        torch.Size([4, 3, 32, 32])
    """

    def choose(count: int) -> list[int]:
        return sampling.indices(count, num_frames, views=views, generator=generator).flatten().tolist()

    return read_chosen(path, choose, start=start, end=end, short_side=short_side, decoder=decoder)


def read_chosen(
    path: _Path | StoredClip,
    choose: Callable[[int], Sequence[int]],
    *,
    start: float | None = None,
    end: float | None = None,
    short_side: int | None = None,
    decoder: str = "pyav",
) -> UInt8[Tensor, "n 3 h w"]:
    """Read the frames whose positions ``choose`` returns for the number of frames of the clip. Positions start at 0 and
    may be in any order and repeat. Other arguments and errors are those of :func:`read_clip`."""
    with open_clip(path, start, end, decoder) as span:
        return span.read(choose(span.count), short_side)


def read_frames(
    path: _Path,
    *,
    start: float | None = None,
    end: float | None = None,
    short_side: int | None = None,
    decoder: str = "pyav",
) -> UInt8[Tensor, "n 3 h w"]:
    """Read every frame from ``start`` to ``end``. Arguments and errors are those of :func:`read_clip`.

    Examples:
        >>> from art.data import read_frames
        >>> read_frames("clip.mp4", start=0.0, end=0.5).shape
        torch.Size([5, 3, 64, 64])
    """
    return read_chosen(path, range, start=start, end=end, short_side=short_side, decoder=decoder)


def iterate_frames(path: _Path, *, start: float | None = None, end: float | None = None) -> Iterator[TimedFrame]:
    """Yield the frames of :func:`read_frames` one at a time, without conversion. Raises VideoError for a directory of
    frames, which has no timestamps."""
    with _naming_path(path):
        if _is_directory(Path(path)):
            raise Unreadable("is a directory of frames, which has no timestamps")
        yield from pyav.iterate_span(Path(path), start, end)


def decoded_bytes(
    path: _Path,
    *,
    start: float | None = None,
    end: float | None = None,
    short_side: int | None = None,
    decoder: str = "pyav",
) -> int:
    """Return the size in bytes of the result of :func:`read_frames`, without decoding."""
    with open_clip(path, start, end, decoder) as span:
        height, width = scaled_size(*span.size, short_side)
        return span.count * 3 * height * width


def frame_times(path: _Path, *, start: float | None = None, end: float | None = None) -> list[float]:
    """Return the presentation time of each frame from ``start`` to ``end``, in seconds since the first frame of the
    file, without decoding.

    Raises:
        VideoError: as for :func:`read_clip`, or the path is a directory of frames, which has no timestamps.

    Examples:
        >>> from art.data import frame_times
        >>> frame_times("clip.mp4")[:3]
        [0.0, 0.1, 0.2]
    """
    with open_clip(path, start, end, "pyav") as span:
        return list(span.times)


@contextlib.contextmanager
def open_clip(path: _Path | StoredClip, start: float | None, end: float | None, decoder: str) -> Iterator[FrameSpan]:
    """Open a clip to read its frames in several steps. Arguments and errors are those of :func:`read_clip`."""
    open_video = find_decoder(decoder)
    with _naming_path(path.name if isinstance(path, StoredClip) else path):
        if not isinstance(path, StoredClip) and Path(path).parent.suffix == ".tar":
            from art.data.shards import find_stored_clip

            path = find_stored_clip(Path(path))
        if isinstance(path, StoredClip):
            opened = _open_stored(path.files, start, end, open_video)
        elif _is_directory(Path(path)):
            directory = Path(path)
            names = (entry.name for entry in directory.iterdir())
            opened = open_images(names, lambda name: _read_image(directory / name), start, end)
        else:
            opened = open_video(Path(path), start, end)
        with opened as span:
            if span.lost:
                _warn_lost_frames(path.name if isinstance(path, StoredClip) else os.fspath(path), span.lost)
            yield span


def _open_stored(
    files: Mapping[str, bytes], start: float | None, end: float | None, open_video: Decoder
) -> AbstractContextManager[FrameSpan]:
    name, *others = files
    if others or name.lower().endswith(FRAME_SUFFIXES):
        return open_images(files, files.__getitem__, start, end)
    if not files[name]:
        raise Unreadable("is empty (0 bytes)")
    return open_video(files[name], start, end)


def _read_image(path: Path) -> bytes:
    # Reading a named pipe would wait for its writer.
    if not path.is_file() and not path.is_dir() and path.exists():
        raise Unreadable(f"contains {path.name}, which is not a regular file")
    try:
        return path.read_bytes()
    except OSError as error:
        kind = f"cannot be read: {error.strerror or error}"
        if isinstance(error, IsADirectoryError):
            kind = "is a directory, not an image"
        elif isinstance(error, FileNotFoundError) and path.is_symlink():
            kind = f"is a link to a file that does not exist: {path.readlink()}"
        raise Unreadable(f"contains {path.name}, which {kind}") from error


@contextlib.contextmanager
def _naming_path(path: _Path) -> Iterator[None]:
    """Turn errors of the decoders and the operating system into a :class:`VideoError`."""
    try:
        yield
    except Unreadable as error:
        raise VideoError(path, str(error)) from error.__cause__
    except OSError as error:
        raise VideoError(path, f"cannot be read: {error.strerror or error}") from error


def _is_directory(path: Path) -> bool:
    """Return whether a path is a directory and not a file. Raises Unreadable if it is neither, or the file is empty."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: the path contains a null character
        raise Unreadable("there is no such file") from None
    if stat.S_ISDIR(status.st_mode):
        return True
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("is not a file")
    if status.st_size == 0:
        raise Unreadable("is empty (0 bytes)")
    return False


@functools.cache
def _warn_lost_frames(path: str, count: int) -> None:
    frames = "frame is" if count == 1 else f"{count} frames are"
    _log.warning("%s: the first %s skipped, because decoding has to start at a keyframe", path, frames)
