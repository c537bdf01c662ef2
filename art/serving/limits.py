"""What a clip may be: checked from its first bytes and its packets, before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from av import time_base as CLOCK

from art.data.packets import Source, Unreadable
from art.data.pyav_decoder import open_source

#: How the containers begin that may come in: (where, the bytes, FFmpeg's name of it). Any other is not opened at all:
#: FFmpeg also reads playlists and session descriptions, which name further files and addresses for it to open.
_BEGINNINGS = (
    *((4, kind, "mov") for kind in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
)
#: How many bytes :func:`container_of` has to see.
BEGINNING = 12


class Refused(Exception):
    """A clip that is not looked at; the message is for the person who brought it."""


@dataclass(frozen=True)
class Limits:
    """What a clip may be at most.

    Attributes:
        megabytes: of the file, 10⁶ bytes each.
        seconds: to its last frame.
        frames: all of them are drawn, whatever their rate.
        megapixels: of a frame, 10⁶ pixels each.

    Raises:
        ValueError: one of them is not above 0.
    """

    megabytes: float = 64.0
    seconds: float = 30.0
    frames: int = 1800
    megapixels: float = 9.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"--max-{field.name}: got {getattr(self, field.name)}, expected more than 0")

    @property
    def bytes(self) -> int:
        """Of the file."""
        return round(self.megabytes * 1e6)

    def too_large(self, name: str, size: int | None) -> Refused:
        """What to say of a file of ``size`` bytes; None: more than may be."""
        came = "is larger than that" if size is None else f"has {size / 1e6:.1f} MB"
        return Refused(
            f"A clip may have {self.megabytes:g} MB here, and “{name}” {came}. Cut it, or save it in a smaller size."
        )


def container_of(beginning: bytes) -> str | None:
    """FFmpeg's name of a container by the first :data:`BEGINNING` bytes of a file; None: none that may come in."""
    for start, mark, name in _BEGINNINGS:
        if beginning[start : start + len(mark)] == mark and (name != "avi" or beginning.startswith(b"RIFF")):
            return name
    return None


def check_beginning(beginning: bytes, name: str) -> None:
    """Raise Refused unless a file that begins so is of a container that may come in."""
    if not beginning:
        raise Refused(f"“{name}” is empty: there are 0 bytes in it.")
    if container_of(beginning) is None:
        raise Refused(f"“{name}” is no video that this page reads. It takes MP4, MOV, WebM, MKV and AVI files.")


def check_clip(path: Path, limits: Limits) -> None:
    """Raise Refused unless a clip can be opened and is within the limits. No frame is decoded, and no more packets are
    read than may be.

    Args:
        path: a file of a container that may come in; it is called by its name in what is said.
    """
    with path.open("rb") as file:
        beginning = file.read(BEGINNING)
    check_beginning(beginning, path.name)
    try:
        with open_source(path) as source:
            # The mark and FFmpeg's own guess must agree on what the file is.
            if container_of(beginning) not in source.container.format.name.split(","):
                raise Unreadable(f"is not what its beginning says, but {source.container.format.name}")
            _check_pictures(source, path.name, limits)
            _check_packets(source, path.name, limits)
    except (Unreadable, OSError) as error:
        raise unreadable(path.name, str(error)) from error


def unreadable(name: str, reason: str) -> Refused:
    """What to say of a clip that cannot be read, as the decoders say why."""
    return Refused(f"“{name}” {reason}. The file may be damaged or cut off: see whether it plays, or save it again.")


def _check_pictures(source: Source, name: str, limits: Limits) -> None:
    width, height = source.stream.width, source.stream.height
    if width * height > limits.megapixels * 1e6:
        raise Refused(
            f"The pictures of a clip may have {limits.megapixels:g} megapixels here, and those of “{name}” are "
            f"{width}×{height}, which is {width * height / 1e6:.1f}. Save it in a smaller size."
        )


def _check_packets(source: Source, name: str, limits: Limits) -> None:
    count = 0
    for packet in source.packets_from(source.origin):
        if packet.size == 0:
            continue
        time = count if source.counted else packet.pts
        count += 1
        if time is not None and source.seconds(time) > limits.seconds:
            header = (source.container.duration or 0) / CLOCK
            came = f"lasts {header:.1f} s" if header > limits.seconds else "lasts longer"
            raise Refused(f"A clip may last {limits.seconds:g} s here, and “{name}” {came}. Cut it shorter.")
        if count > limits.frames:
            raise Refused(
                f"A clip may have {limits.frames} frames here, and “{name}” has more. Cut it shorter, or save it with "
                "fewer frames a second."
            )
