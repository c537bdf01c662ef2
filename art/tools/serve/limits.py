"""What a clip may be, and what is asked about each. Loads neither torch nor FFmpeg: the page answers before both."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

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
        for name in (one.name for one in fields(self)):
            if not getattr(self, name) > 0:
                raise ValueError(f"--max-{name}: got {getattr(self, name)}, expected more than 0")

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


@dataclass(frozen=True)
class Asking:
    """What is asked of a model about each clip.

    Attributes:
        top_k: classes to name.
        moments: beginnings of the clip that are classified; 0 is none, and no chart.
        limits: what a clip may be.

    Raises:
        ValueError: a number out of range.
    """

    top_k: int = 5
    moments: int = 24
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name, least in (("top_k", 1), ("moments", 0)):
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise ValueError(f"{flag}: got {getattr(self, name)}, expected at least {least}")


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
