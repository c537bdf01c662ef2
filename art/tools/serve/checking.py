"""A clip held to the limits, by its packets: nothing is decoded."""

from __future__ import annotations

from pathlib import Path

from av import time_base as CLOCK

from art.data.decoding.frames import Unreadable
from art.data.decoding.pyav import VideoSource, open_source
from art.tools.serve.limits import BEGINNING, Limits, Refused, check_beginning, container_of


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


def _check_pictures(source: VideoSource, name: str, limits: Limits) -> None:
    width, height = source.stream.width, source.stream.height
    if width * height > limits.megapixels * 1e6:
        raise Refused(
            f"The pictures of a clip may have {limits.megapixels:g} megapixels here, and those of “{name}” are "
            f"{width}×{height}, which is {width * height / 1e6:.1f}. Save it in a smaller size."
        )


def _check_packets(source: VideoSource, name: str, limits: Limits) -> None:
    count = 0
    for packet in source.packets_from(source.origin):
        if packet.size == 0:
            continue
        time = count if source.no_timestamps else packet.pts
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
