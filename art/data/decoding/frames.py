"""Types shared by the decoders, conversion of decoded frames to a tensor, and clips stored as numbered images."""

from __future__ import annotations

import contextlib
import itertools
import re
import statistics
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8
from torch import Tensor

from art.data.datasets.annotations import FRAME_SUFFIXES

#: Reformatter option: one thread converts a small frame faster than several. Before PyAV 17 there was only one.
ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}

#: The last number of the name of a frame: an integer, or the decimals of a time.
_NUMBER = re.compile(r"(?P<before>.*?)((?P<whole>[0-9]+)\.)?(?P<number>[0-9]+)(?P<after>[^0-9]*)$")
#: A time in hours, minutes and seconds at the end of a name: 00-01-30.
_CLOCK = re.compile(r"(?P<before>.*?)(?P<h>\d{1,2})(?P<mark>[-_:.])(?P<m>\d{2})(?P=mark)(?P<s>\d{2})$")
_MIN_ROUNDED_STEP = 10  # at least this step between integers can be a rounded time, for example in milliseconds
_MAX_NAMES = 3  # file names listed in an error
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
#: In the compressed data of a JPEG image, 0xFF is followed by 0 or the number of a restart marker, or repeated.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_SCAN, _END = 0xDA, 0xD9


class Unreadable(Exception):
    """The reason why a video cannot be read. The caller, which has the path, adds it to the message."""


@dataclass(frozen=True)
class StoredClip:
    """A clip held in memory, for example one read from an archive."""

    name: str  # used in error messages
    files: Mapping[str, bytes]  # file name to content, of its one video file or all of its frames


class FrameSpan(ABC):
    """The frames of a video between two times. They are located when the span is opened and decoded by :meth:`read`."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Return the number of frames, at least one."""

    @property
    @abstractmethod
    def times(self) -> Sequence[float]:
        """Return the presentation time of each frame, ascending, in seconds since the first frame of the video. Raises
        Unreadable if the video has no timestamps."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Return height and width of a frame as stored, before rotation."""

    @property
    def lost(self) -> int:
        """Return the number of frames at the beginning of the file that cannot be decoded, which are not counted."""
        return 0

    @abstractmethod
    def read(self, positions: Sequence[int], short_side: int | None) -> UInt8[Tensor, "n 3 h w"]:
        """Decode the frames at ``positions``, one or more values in ``0..count-1`` in any order, to upright RGB.

        Repeated frames are decoded once. ``short_side`` is as in :func:`scaled_size`. Raises Unreadable if a frame
        cannot be decoded.
        """


#: Opens a video, given as a path or as the content of a file, and locates the frames from ``start`` (included) to
#: ``end`` (excluded), in seconds since the first frame. Raises Unreadable or OSError.
Decoder = Callable[[Path | bytes, float | None, float | None], AbstractContextManager[FrameSpan]]


def scaled_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Return height and width scaled so that the shorter side has ``short_side`` pixels; None keeps the size."""
    if short_side is None:
        return height, width
    if short_side < 1:
        raise ValueError(f"short_side must be at least 1 pixel, got {short_side}")
    factor = short_side / min(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


class Orientation(NamedTuple):
    """How an image is shown upright: first transposed, then mirrored horizontally and vertically."""

    transposed: bool
    mirrored_x: bool
    mirrored_y: bool


def orientation(frame: VideoFrame) -> Orientation:
    """Return the orientation of a decoded frame, from its display matrix. Other angles are rounded to 90 degrees."""
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know all kinds of side data, such as EXIF, but returns the rotation
        quarter_turns = round(frame.rotation / 90) % 4
        return Orientation(quarter_turns % 2 == 1, quarter_turns in (2, 3), quarter_turns in (1, 2))
    if data is None:
        return Orientation(False, False, False)
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
    if abs(a) + abs(d) >= abs(b) + abs(c):  # (x, y) is shown at (a x + c y, b x + d y)
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def orient(image: np.ndarray, upright: Orientation) -> np.ndarray:
    """Apply an orientation to the first two dimensions (height and width) of an image."""
    image = image.swapaxes(0, 1) if upright.transposed else image
    return image[:: -1 if upright.mirrored_y else 1, :: -1 if upright.mirrored_x else 1]


class FrameConverter:
    """Converts decoded frames to upright RGB arrays with ``short_side`` pixels on the shorter side."""

    def __init__(self, short_side: int | None = None) -> None:
        self._short_side = short_side
        self._reformatter = VideoReformatter()  # shared by all frames, because building its tables is slow

    def convert(self, frame: VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        """Return one frame as RGB, scaled and rotated upright."""
        height, width = scaled_size(frame.height, frame.width, self._short_side)
        interpolation = Interpolation.BILINEAR
        if (height, width) != (frame.height, frame.width):
            interpolation = Interpolation.AREA if width < frame.width else Interpolation.BICUBIC
        rgb = self._reformatter.reformat(frame, width, height, "rgb24", interpolation=interpolation, **ONE_THREAD)
        return orient(rgb.to_ndarray(), orientation(frame))


def assemble_clip(
    frames: Iterable[tuple[int, VideoFrame]], keys: Sequence[int], short_side: int | None
) -> UInt8[Tensor, "n 3 h w"]:
    """Convert each frame once and store it at every position that its key has in ``keys``, which lists the key of each
    frame of the clip. Raises Unreadable if the frames differ in size."""
    converter = FrameConverter(short_side)
    positions: dict[int, list[int]] = {}
    for position, key in enumerate(keys):
        positions.setdefault(key, []).append(position)
    clip = torch.empty(0, dtype=torch.uint8)
    for key, frame in frames:
        image = converter.convert(frame)
        height, width = image.shape[:2]
        if len(clip) == 0:
            clip = _empty_clip(len(keys), height, width)
        elif clip.shape[2:] != image.shape[:2]:
            raise size_change(clip.shape[3], clip.shape[2], width, height)
        first, *others = positions[key]
        clip.numpy()[first] = image.transpose(2, 0, 1)
        for other in others:
            clip[other] = clip[first]
    return clip


def _empty_clip(count: int, height: int, width: int) -> UInt8[Tensor, "n 3 h w"]:
    try:
        return torch.empty(count, 3, height, width, dtype=torch.uint8)
    except RuntimeError as error:  # not enough memory
        gigabytes = count * 3 * height * width / 1e9
        raise Unreadable(f"needs {gigabytes:.0f} GB of memory for {count} frames of {width}×{height}") from error


def size_change(width: int, height: int, new_width: int, new_height: int) -> Unreadable:
    """Return the error for a clip whose frames differ in size."""
    sizes = f"{width}×{height} to {new_width}×{new_height}"
    return Unreadable(f"changes its frame size from {sizes}; use a part with one size, or scale all frames to one")


# Directories of numbered images (00001.jpg, 00002.jpg, …), the format in which common toolkits extract frames. The last
# number of a name is its position, or its time, with or without decimals (0.04.jpg). Numbers may start anywhere and
# have any constant step, up to rounding. A missing or duplicate number or an image without one makes the clip
# unreadable, like a truncated video file. Files of other types are ignored.


@contextlib.contextmanager
def open_images(
    names: Iterable[str], load: Callable[[str], bytes], start: float | None, end: float | None
) -> Iterator[ImageSpan]:
    """Open the frames among some files, of which ``load`` returns the content; ``start`` and ``end`` must be None."""
    if start is not None or end is not None:
        raise Unreadable(
            "is a directory of frames, which has no timestamps, so a start or end in seconds cannot be located; use a "
            "directory with the frames of that part, or the video file"
        )
    yield ImageSpan(numbered_frames(names), load)


def read_files(path: Path) -> dict[str, bytes]:
    """The files of a :class:`StoredClip` from a video or a directory of frames. Raises Unreadable if there are none."""
    if not path.is_dir():
        if not path.is_file() and path.exists():  # reading a named pipe would wait for its writer
            raise Unreadable("is not a regular file")
        content = path.read_bytes()
        if not content:
            raise Unreadable("is empty (0 bytes)")
        return {path.suffix.lower().lstrip(".") or "video": content}
    names = numbered_frames(entry.name for entry in path.iterdir())
    numbered = (f"{i:06d}{Path(name).suffix.lower()}" for i, name in enumerate(names))
    return {stored: (path / name).read_bytes() for stored, name in zip(numbered, names, strict=True)}


def numbered_frames(files: Iterable[str]) -> list[str]:
    """Select the frames among file names and sort them by number.

    Raises:
        Unreadable: there are no frames, or their numbers are not a complete series; the message names the files.
    """
    names = sorted(name for name in files if not name.startswith("."))
    matches: dict[str, re.Match[str]] = {}
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if dot + suffix.lower() not in FRAME_SUFFIXES:
            continue
        match = _NUMBER.search(stem)
        if match is None or match["after"] != next(iter(matches.values()), match)["after"]:
            raise Unreadable(f"contains {name}, an image without a number at the end of its name")
        matches[name] = match
    if not matches:
        found = ", ".join(names[:_MAX_NAMES]) + (", …" if len(names) > _MAX_NAMES else "")
        raise Unreadable(
            f"is a directory without frames ({', '.join(FRAME_SUFFIXES)}): it contains {found or 'nothing'}"
        )
    series = _without_constant_number(matches)
    error = clock_error = None
    if len({(match["before"], match["whole"]) for match in series.values()}) > 1:
        clock = _clock_times(series)
        try:
            if clock is not None:
                return _sort_numbers(clock, 0)
        except Unreadable as problem:
            clock_error = problem
    for decimals in _possible_decimals(list(series.values())):
        try:
            return _sort_frames(series, decimals)
        except Unreadable as problem:
            error = problem
    assert error is not None
    raise clock_error or error


def _clock_times(names: Iterable[str]) -> dict[str, int] | None:
    """Return the seconds in names that contain hours, minutes and seconds (00-01-30); None if not all do."""
    seconds, starts = {}, set()
    for name in names:
        found = _CLOCK.search(name.rpartition(".")[0])
        if found is None or int(found["m"]) > 59 or int(found["s"]) > 59:
            return None
        starts.add(found["before"])
        seconds[name] = 3600 * int(found["h"]) + 60 * int(found["m"]) + int(found["s"])
    return seconds if len(starts) == 1 else None


def _without_constant_number(matches: Mapping[str, re.Match[str]]) -> Mapping[str, re.Match[str]]:
    """Use the number before the last one, if the last one is the same in all names (img_10_5fps)."""
    while len(matches) > 1 and len({(match["whole"], match["number"]) for match in matches.values()}) == 1:
        shorter = {name: _NUMBER.search(match["before"]) for name, match in matches.items()}
        if any(match is None for match in shorter.values()):
            break
        matches = {name: match for name, match in shorter.items() if match is not None}
    return matches


def _possible_decimals(matches: Sequence[re.Match[str]]) -> list[int]:
    """Return how many decimals the numbers can have: 0 for integers, also after other numbers (shot1.0004); more for
    times (0.04, 1.00). If all have the same whole part, they can be either."""
    wholes = {match["whole"] for match in matches}
    if wholes == {None} or len({match["before"] for match in matches}) > 1:
        return [0]
    decimals = max(len(match["number"]) for match in matches if match["whole"])
    return [decimals] if len(wholes) > 1 else [0, decimals]


def _sort_frames(matches: Mapping[str, re.Match[str]], decimals: int) -> list[str]:
    numbers: dict[str, int] = {}
    for name, match in matches.items():
        number = int(match["number"])
        if decimals:
            whole, part = (match["whole"], match["number"]) if match["whole"] else (match["number"], "")
            number = int(whole + part.ljust(decimals, "0"))
        numbers[name] = number
    return _sort_numbers(numbers, decimals)


def _sort_numbers(numbers: Mapping[str, int], decimals: int) -> list[str]:
    frames: dict[int, str] = {}
    for name, number in numbers.items():
        if number in frames:
            raise Unreadable(f"contains frame {_as_name(number, decimals)} twice: {frames[number]} and {name}")
        frames[number] = name
    _check_steps(sorted(frames), decimals)
    return [frames[number] for number in sorted(frames)]


def _as_name(number: int, decimals: int) -> str:
    return f"{number / 10**decimals:.{decimals}f}" if decimals else str(number)


def _check_steps(numbers: Sequence[int], decimals: int) -> None:
    """Raise Unreadable if a series with a constant step has gaps. Steps of times are rounded, so that they may differ
    by one; if they differ by more, the frame rate varies."""
    steps = [after - before for before, after in itertools.pairwise(numbers)] or [1]
    step = statistics.median_low(steps) if decimals else min(steps)
    rounding = int(step >= (2 if decimals else _MIN_ROUNDED_STEP))
    lengths = [max(1, round(found / step)) for found in steps]
    regular = all(abs(found - n * step) <= n * rounding for found, n in zip(steps, lengths, strict=True))
    if rounding and not regular:
        return
    gap = next((i for i, n in enumerate(lengths) if n > 1 or steps[i] - step > rounding), None)
    if gap is not None:
        before, lost, after = (_as_name(n, decimals) for n in (numbers[gap], numbers[gap] + step, numbers[gap + 1]))
        missing = round((numbers[-1] - numbers[0]) / step) + 1 - len(numbers)
        raise Unreadable(
            f"is missing frame {lost}, between {before} and {after}"
            + (f" ({missing} frames are missing in total)" if missing > 1 else "")
        )


class ImageSpan(FrameSpan):
    """Frames stored as image files, in the order of their names. ``load`` returns the content of a file."""

    def __init__(self, names: Sequence[str], load: Callable[[str], bytes]) -> None:
        self._names, self._load = names, load

    @property
    def count(self) -> int:
        """Return the number of frames."""
        return len(self._names)

    @property
    def times(self) -> list[float]:
        """Raise Unreadable."""
        raise Unreadable("is a directory of frames, which has no timestamps")

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the first frame."""
        first = self._decode(self._names[0])
        return first.height, first.width

    def read(self, positions: Sequence[int], short_side: int | None) -> UInt8[Tensor, "n 3 h w"]:
        """See :meth:`FrameSpan.read`."""
        frames = ((position, self._decode(self._names[position])) for position in dict.fromkeys(positions))
        return assemble_clip(frames, positions, short_side)

    def _decode(self, name: str) -> VideoFrame:
        content = self._load(name)
        codec = image_codec(content)
        if codec is None:
            kind = "not a JPEG, PNG, BMP or WebP image" if content else "empty (0 bytes)"
            raise Unreadable(f"contains {name}, which is {kind}")
        end = image_end(codec, content)
        if end is None:
            raise Unreadable(f"contains {name}, which is truncated")
        content = content[:end]
        context = VideoCodecContext.create(codec, "r")
        assert isinstance(context, VideoCodecContext)
        context.thread_count = 1
        try:
            frames = [*context.decode(av.Packet(content)), *context.decode(None)]
        except av.FFmpegError as error:
            raise Unreadable(f"contains {name}, which cannot be read: {error.strerror or error}") from error
        if not frames or frames[0].is_corrupt:
            raise Unreadable(f"contains {name}, which is damaged")
        return frames[0]


def image_codec(content: bytes) -> str | None:
    """Return FFmpeg's decoder of an image file by its first bytes; None if it is none of JPEG, PNG, BMP and WebP."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    heads = {b"\xff\xd8\xff": "mjpeg", _PNG_HEAD: "png", b"BM": "bmp"}
    return next((codec for head, codec in heads.items() if content.startswith(head)), None)


def image_end(codec: str, content: bytes) -> int | None:
    """Return the number of bytes of the image at the start of ``content``; None if it is truncated."""
    if codec == "mjpeg":
        return _jpeg_end(content)
    if codec == "png":
        return _png_end(content)
    if codec == "webp":
        end = 8 + int.from_bytes(content[4:8], "little")
        return end if end <= len(content) else None
    return len(content)  # the decoder compares the size of a BMP image with its header


def _jpeg_end(content: bytes) -> int | None:
    position, in_scan = 2, False
    while True:
        marker = (_JPEG_MARKER.search if in_scan else _JPEG_MARKER.match)(content, position)
        if marker is None:
            return None
        kind, position = marker[1][0], marker.end()
        if kind == _END:
            return position
        position += int.from_bytes(content[position : position + 2], "big")  # a segment starts with its length
        in_scan = kind == _SCAN


def _png_end(content: bytes) -> int | None:
    position = len(_PNG_HEAD)
    while position < len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        if end > len(content):
            return None
        if content[position + 4 : position + 8] == b"IEND":
            return end
        position = end
    return None
