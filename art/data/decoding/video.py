"""Frames of a clip, whatever it is stored as: the entrance to the decoders."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from art.data.datasets.annotations import FRAME_SUFFIXES
from art.data.decoding.frame_converter import ONE_THREAD
from art.data.decoding.frame_folder import open_folder, open_pictures
from art.data.decoding.interface import Decoder, FrameSpan, StoredClip, find_decoder, scaled_size
from art.data.decoding.packets import Unreadable
from art.data.decoding.pyav_decoder import ShownFrame, open_frames
from art.data.transforms.sampling import SPARSE, FrameSampling

__all__ = [
    "ONE_THREAD",
    "ShownFrame",
    "VideoError",
    "decoded_bytes",
    "frame_times",
    "iterate_frames",
    "read_chosen",
    "read_clip",
    "read_frames",
]

_Path = str | os.PathLike[str]


class VideoError(Exception):
    """A video file that cannot be read: which one (``path``) and why (``reason``).

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
    """``num_frames`` frames of a clip, or so many for each of several views; no other frame is converted to RGB.

    Args:
        path: a video file, a folder of frames (see :mod:`art.data.decoding.frame_folder`), either in memory, or the path of a
            clip in shards (see :mod:`art.data.loading.shards`), which reads its shard up to there.
        num_frames: T, how many frames to return; a shorter clip repeats some.
        start: where the clip starts, seconds since the first frame; None is the beginning of the file.
        end: where the clip ends (that frame is excluded); None is the end of the file.
        generator: draws at random which frames of a clip are taken (training); None takes fixed ones (test).
        short_side: scale the frames, keeping their aspect ratio, so that the shorter side has this many pixels; None
            leaves them as they are.
        sampling: which frames are taken, by default one of each of T segments of the clip.
        views: how many times T frames are taken, as :meth:`.sampling.FrameSampling.indices` chooses them.
        decoder: of video files, one of :data:`art.data.decoding.interface.DECODERS`.

    Returns:
        RGB, view after view (n = views · T), turned upright where the file says that the camera was not.

    Raises:
        VideoError: the file is missing, empty, damaged, truncated, has no video or no frame from ``start`` to ``end``.
        ValueError: ``num_frames`` or ``short_side`` is below 1, or the decoder is unknown.
        ImportError: the decoder cannot be used here.

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
    """The frames that ``choose`` names, given how many the clip has: positions from 0, in any order, some perhaps
    repeated. Other arguments and errors as in :func:`read_clip`."""
    with _opened(path, start, end, decoder) as span:
        return span.read(choose(span.count), short_side)


def read_frames(
    path: _Path,
    *,
    start: float | None = None,
    end: float | None = None,
    short_side: int | None = None,
    decoder: str = "pyav",
) -> UInt8[Tensor, "n 3 h w"]:
    """Every frame from ``start`` to ``end``. Arguments and errors as in :func:`read_clip`.

    Examples:
        >>> from art.data import read_frames
        >>> read_frames("clip.mp4", start=0.0, end=0.5).shape
        torch.Size([5, 3, 64, 64])
    """
    return read_chosen(path, range, start=start, end=end, short_side=short_side, decoder=decoder)


def iterate_frames(path: _Path, *, start: float | None = None, end: float | None = None) -> Iterator[ShownFrame]:
    """The same frames as :func:`read_frames` gives, one after the other, without conversion. Errors as there; a folder
    of frames is one too, because it holds no times."""
    with _naming(path):
        _check_file(Path(path))
        yield from open_frames(Path(path), start, end)


def decoded_bytes(
    path: _Path,
    *,
    start: float | None = None,
    end: float | None = None,
    short_side: int | None = None,
    decoder: str = "pyav",
) -> int:
    """How much memory :func:`read_frames` would take for its result; nothing is decoded. Errors as there."""
    with _opened(path, start, end, decoder) as span:
        height, width = scaled_size(*span.size, short_side)
        return span.count * 3 * height * width


def frame_times(path: _Path, *, start: float | None = None, end: float | None = None) -> list[float]:
    """When each frame from ``start`` to ``end`` is shown, in seconds since the first of the file; nothing is decoded.

    Raises:
        VideoError: as in :func:`read_clip`; or the path is a folder of frames, which holds no times.

    Examples:
        >>> from art.data import frame_times
        >>> frame_times("clip.mp4")[:3]
        [0.0, 0.1, 0.2]
    """
    with _opened(path, start, end, "pyav") as span:
        return list(span.times)


@contextlib.contextmanager
def _opened(path: _Path | StoredClip, start: float | None, end: float | None, decoder: str) -> Iterator[FrameSpan]:
    """The span of a clip."""
    open_file = find_decoder(decoder)
    if not isinstance(path, StoredClip) and Path(path).parent.suffix == ".tar":
        from art.data.loading.shards import find_stored_clip

        with _naming(path):
            path = find_stored_clip(Path(path))
    if isinstance(path, StoredClip):
        with _naming(path.name), _opened_content(path.files, start, end, open_file) as span:
            yield span
        return
    file = Path(path)
    with _naming(path):
        folder = file.is_dir()
        if not folder:
            _check_file(file)
        with (open_folder if folder else open_file)(file, start, end) as span:
            yield span


@contextlib.contextmanager
def _naming(path: _Path) -> Iterator[None]:
    """Whatever goes wrong with a file becomes a :class:`VideoError`."""
    try:
        yield
    except Unreadable as error:
        raise VideoError(path, str(error)) from error.__cause__
    except OSError as error:
        raise VideoError(path, f"cannot be read: {error.strerror or error}") from error


def _opened_content(
    files: Mapping[str, bytes], start: float | None, end: float | None, open_file: Decoder
) -> AbstractContextManager[FrameSpan]:
    name, *others = files
    if others or name.lower().endswith(FRAME_SUFFIXES):
        return open_pictures(files, start, end)
    if not files[name]:
        raise Unreadable("is empty (0 bytes)")
    return open_file(files[name], start, end)


def _check_file(file: Path) -> None:
    if not file.exists():
        raise Unreadable("there is no such file")
    if not file.is_file():
        raise Unreadable("is not a file")
    if file.stat().st_size == 0:
        raise Unreadable("is empty (0 bytes)")
