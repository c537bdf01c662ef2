"""Frames out of video files with torchcodec, for those who have it and the FFmpeg that it looks for.

Which frames a clip holds is found with PyAV, as for the default decoder; torchcodec is asked for them by number, and
what it gives is compared with the times that they must have. Where it counts otherwise the clip is an error, never
another frame. One thing it does not tell: damage within a frame that FFmpeg has painted over.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import importlib
import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from art.data.decoding.interface import scaled_size
from art.data.decoding.packets import ListedSpan, Listing, Source, Unreadable
from art.data.decoding.pyav_decoder import open_source

_INSTEAD = "use data.decoder=pyav for it"
_PROBE_SIZE, _PROBE_FRAMES = 64, 8


@functools.cache
def probe() -> str | None:
    """Why torchcodec cannot be used here, or None: whether it imports says little, so that it has to decode a video."""
    try:
        decoders = importlib.import_module("torchcodec.decoders")
    except Exception as error:  # OSError, RuntimeError and ImportError have been seen, by what is missing
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"cannot be imported ({type(error).__name__}: {' '.join(lines)[:300]})"
    try:
        decoder = decoders.VideoDecoder(_probe_video(), num_ffmpeg_threads=1)
        frames = decoder.get_frames_at(list(range(_PROBE_FRAMES))).data
    except Exception as error:
        return f"does not decode a probe ({type(error).__name__}: {str(error)[:300]})"
    means = frames.float().mean(dim=(1, 2, 3)).tolist()
    right = len(means) == _PROBE_FRAMES and all(
        abs(mean - grey) < 10 for mean, grey in zip(means, _probe_greys(), strict=True)
    )
    return None if right else "decodes a probe wrongly"


def _probe_greys() -> list[int]:
    return [20 + 25 * i for i in range(_PROBE_FRAMES)]


def _probe_video() -> bytes:
    """A small MPEG-4 video, which every FFmpeg can write and read: frame i is grey, 20 + 25·i."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = _PROBE_SIZE, _PROBE_SIZE, "yuv420p"
        for i, grey in enumerate(_probe_greys()):
            picture = np.full((_PROBE_SIZE, _PROBE_SIZE, 3), grey, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


@contextlib.contextmanager
def open_span(file: Path | bytes, start: float | None, end: float | None) -> Iterator[TorchcodecSpan]:
    """A :class:`~art.data.decoding.interface.Decoder`."""
    with open_source(file) as source:
        if source.counted and source.stream.codec_context.has_b_frames:
            raise Unreadable(f"is an AVI file with reordered frames, whose times torchcodec cannot know: {_INSTEAD}")
        listing = source.list_frames(start, end)
        skipped = 0
        if start is not None:
            skipped = bisect.bisect_left(source.list_frames(None, end).times, listing.times[0])
        yield TorchcodecSpan(file, source, listing, skipped)


class TorchcodecSpan(ListedSpan):
    """A :class:`~art.data.decoding.interface.FrameSpan`."""

    def __init__(self, file: Path | bytes, source: Source, listing: Listing, skipped: int) -> None:
        super().__init__(source, listing)
        self._file = file
        self._skipped = skipped  # frames of the file before the span

    def read(self, positions: Sequence[int], short_side: int | None) -> UInt8[Tensor, "n 3 h w"]:
        """The frames at some positions, as :class:`~art.data.decoding.interface.FrameSpan` has it."""
        wanted = sorted(set(positions))
        try:
            decoder = importlib.import_module("torchcodec.decoders").VideoDecoder(
                self._file, num_ffmpeg_threads=1, stream_index=self._source.stream.index
            )  # one thread, as everywhere: a worker has a core
            found = decoder.get_frames_at([self._skipped + position for position in wanted])
        except (RuntimeError, IndexError, ValueError) as error:
            first_line = (str(error).splitlines() or [""])[0]
            raise Unreadable(f"cannot be decoded by torchcodec: {first_line}") from error
        self._check_times(wanted, found.pts_seconds.tolist())
        place = {position: i for i, position in enumerate(wanted)}
        frames = _scaled(found.data, short_side)
        return frames[torch.tensor([place[position] for position in positions])].contiguous()

    def _check_times(self, wanted: Sequence[int], found: Sequence[float]) -> None:
        if self._source.counted:
            return
        for position, seconds in zip(wanted, found, strict=True):
            time = self._listing.times[position]
            if abs(seconds - float(time * self._source.time_base)) > 1e-6:
                raise Unreadable(
                    f"is counted differently by torchcodec, which gives the frame at {seconds:.3f} s for that at "
                    f"{self._source.seconds(time):.3f} s: {_INSTEAD}"
                )


def _scaled(frames: UInt8[Tensor, "n 3 h w"], short_side: int | None) -> UInt8[Tensor, "n 3 h2 w2"]:
    """Scaled by PyTorch: the scaling that torchcodec offers needs torchvision."""
    size = scaled_size(frames.shape[2], frames.shape[3], short_side)
    if size == frames.shape[2:]:
        return frames
    return F.interpolate(frames, size, mode="bilinear", antialias=True)
