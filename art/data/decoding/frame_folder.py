"""Frames out of a folder of numbered pictures, as toolkits extract videos to: ``00001.jpg``, ``00002.jpg``, …

The number at the end of a name gives the order (``img_00010.jpg`` comes after ``img_00009.jpg``, ``10.png`` after
``9.png``); numbers may begin anywhere, and go up in steps of any one size. A number that is missing in between is a
frame that was lost, a number that is there twice is two videos in one folder, and a picture without a number belongs to
neither: the clip is bad, as a truncated video file is. Files of other kinds are passed over.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import av
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from jaxtyping import UInt8
from torch import Tensor

from art.data.datasets.annotations import FRAME_SUFFIXES
from art.data.decoding.frame_converter import Pictures
from art.data.decoding.packets import Unreadable

#: What files of each kind begin with, and the bytes that end a whole one.
_FORMATS = {"mjpeg": (b"\xff\xd8\xff", b"\xff\xd9"), "png": (b"\x89PNG\r\n\x1a\n", b"IEND")}
_LISTED = 3  # so many names are given in an error


@contextlib.contextmanager
def open_folder(path: Path, start: float | None, end: float | None) -> Iterator[PicturesSpan]:
    """What a :class:`~art.data.decoding.interface.Decoder` does, for folders."""
    _check_no_span(start, end)
    yield PicturesSpan(numbered_frames(entry.name for entry in path.iterdir()), lambda name: (path / name).read_bytes())


@contextlib.contextmanager
def open_pictures(files: Mapping[str, bytes], start: float | None, end: float | None) -> Iterator[PicturesSpan]:
    """Likewise of pictures that are in memory, by their names."""
    _check_no_span(start, end)
    yield PicturesSpan(numbered_frames(files), files.__getitem__)


def _check_no_span(start: float | None, end: float | None) -> None:
    if start is not None or end is not None:
        raise Unreadable(
            "is a folder of frames, in which nothing tells the time: a part by seconds cannot be found; make a folder "
            "of that part, or give the video file"
        )


def numbered_frames(files: Iterable[str]) -> list[str]:
    """Of the names of files, those of frames, in the order of their numbers.

    Raises:
        Unreadable: there is none, or they are no whole series; the message names the files.
    """
    names = sorted(name for name in files if not name.startswith("."))
    frames: dict[int, str] = {}
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if dot + suffix.lower() not in FRAME_SUFFIXES:
            continue
        found = re.search(r"[0-9]+$", stem)
        if found is None:
            raise Unreadable(f"holds {name}, a picture without a number at the end of its name")
        number = int(found.group())
        if number in frames:
            raise Unreadable(f"holds frame {number} twice: {frames[number]} and {name}")
        frames[number] = name
    if not frames:
        there = ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
        raise Unreadable(f"is a folder without frames ({', '.join(FRAME_SUFFIXES)}): it holds {there or 'nothing'}")
    _check_steps(sorted(frames))
    return [frames[number] for number in sorted(frames)]


def _check_steps(numbers: Sequence[int]) -> None:
    steps = [later - earlier for earlier, later in itertools.pairwise(numbers)]
    if not steps:
        return
    step = min(steps)
    gap = next((position for position, found in enumerate(steps) if found != step), None)
    if gap is not None:
        lost = round((numbers[-1] - numbers[0]) / step) + 1 - len(numbers)
        raise Unreadable(
            f"lacks frame {numbers[gap] + step}, between {numbers[gap]} and {numbers[gap + 1]}"
            + (f" ({lost} are missing in all)" if lost > 1 else "")
        )


class PicturesSpan:
    """A :class:`~art.data.decoding.interface.FrameSpan` of pictures.

    Args:
        names: of them, in order.
        load: gives the content of one.
    """

    def __init__(self, names: Sequence[str], load: Callable[[str], bytes]) -> None:
        self._names = names
        self._load = load

    @property
    def count(self) -> int:
        """How many frames there are."""
        return len(self._names)

    @property
    def times(self) -> list[float]:
        """Nothing tells: always an error."""
        raise Unreadable("is a folder of frames, in which nothing tells the time")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first frame."""
        first = self._decode(self._names[0])
        return first.height, first.width

    def read(self, positions: Sequence[int], short_side: int | None) -> UInt8[Tensor, "n 3 h w"]:
        """The frames at some positions, as :class:`~art.data.decoding.interface.FrameSpan` has it."""
        pictures = Pictures(positions, short_side)
        for position in dict.fromkeys(positions):
            pictures.put(position, self._decode(self._names[position]))
        return pictures.clip

    def _decode(self, name: str) -> VideoFrame:
        content = self._load(name)
        codec = next((codec for codec, (head, _) in _FORMATS.items() if content.startswith(head)), None)
        if codec is None:
            raise Unreadable(f"holds {name}, which is {'no JPEG or PNG picture' if content else 'empty (0 bytes)'}")
        if _FORMATS[codec][1] not in content[-1024:]:
            raise Unreadable(f"holds {name}, which is truncated")
        context = VideoCodecContext.create(codec, "r")
        assert isinstance(context, VideoCodecContext)  # of these codecs
        context.thread_count = 1
        try:
            frames = [*context.decode(av.Packet(content)), *context.decode(None)]
        except av.FFmpegError as error:
            raise Unreadable(f"holds {name}, which cannot be read: {error.strerror or error}") from error
        if not frames or frames[0].is_corrupt:
            raise Unreadable(f"holds {name}, which is damaged")
        return frames[0]
