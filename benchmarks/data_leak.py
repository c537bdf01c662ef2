"""Whether memory stays flat over many decodes, of good files and bad."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import torch

from art.data.decoding.video import VideoError, read_clip
from benchmarks.data_fresh import resident_bytes
from benchmarks.data_videos import VideoCase, write_video

#: Growth from the second quarter of the decodes to the last that the system's allocator may cause by itself.
ALLOWED_BYTES = 4 * 2**20
_LOOKS = 100


def write_files(folder: Path) -> list[Path]:
    """Small videos of several kinds, a truncated one, and a folder of frames."""
    case = VideoCase("leak", 112, 112, 12)
    files = [write_video(folder / "a.mp4", case, 36), write_video(folder / "b.mkv", case, 36)]
    files.append(write_video(folder / "c.avi", case, 36, codec="mpeg4"))
    files.append(folder / "cut.mkv")
    files[-1].write_bytes(files[1].read_bytes()[: files[1].stat().st_size * 2 // 3])
    files.append(folder / "frames")
    files[-1].mkdir()
    with av.open(str(files[0])) as container:
        for i, frame in enumerate(container.decode(video=0)):
            frame.to_image().save(files[-1] / f"{i + 1:05d}.jpg")
    return files


def measure_leak(decodes: int, files: Sequence[Path], read: Callable[..., Any] = read_clip) -> dict[str, Any]:
    """Decode clips of `files` in turn, and look at the memory of the process a hundred times on the way.

    Returns:
        "decodes", "failed" (clips that could not be read, as they should not), "resident_bytes" (at each look), and
        "growth_bytes", from the median of the second quarter to that of the last; "seconds".

    Raises:
        MemoryError: it grew by more than `ALLOWED_BYTES`.
        OSError: the system does not tell the memory of a process.
    """
    if resident_bytes() is None:
        raise OSError("the memory of a process is read from /proc, which is not there")
    looks: list[int] = []
    failed, start = 0, time.monotonic()
    generator = torch.Generator().manual_seed(0)
    for i in range(decodes):
        try:
            read(files[i % len(files)], 8, generator=generator, short_side=64)
        except VideoError:
            failed += 1
        if (i + 1) * _LOOKS // decodes > i * _LOOKS // decodes:
            looks.append(resident_bytes() or 0)
    quarter = len(looks) // 4
    growth = int(statistics.median(looks[-quarter:]) - statistics.median(looks[quarter : 2 * quarter]))
    if growth > ALLOWED_BYTES:
        raise MemoryError(f"memory grew by {growth / 2**20:.1f} MiB over the later half of {decodes} decodes")
    return {
        "decodes": decodes,
        "failed": failed,
        "growth_bytes": growth,
        "resident_bytes": looks,
        "seconds": time.monotonic() - start,
    }
