"""Decoding with torchcodec, an optional alternative to PyAV.

The frames of a clip are located with PyAV, as in the default decoder. torchcodec decodes them by number, and their
times are compared with the expected ones: if torchcodec numbers frames differently, reading the clip raises an error
instead of returning another frame. Unlike PyAV, torchcodec does not report damage that FFmpeg concealed.
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

from art.data.decoding.frames import Unreadable, scaled_size
from art.data.decoding.pyav import IndexedSpan
from art.data.decoding.source import FrameIndex, VideoSource, open_source

_ADVICE = "use data.decoder=pyav for it"
_PROBE_SIZE = 64
_PROBE_LEVELS = [20 + 25 * i for i in range(8)]


@functools.cache
def probe() -> str | None:
    """Return why torchcodec cannot be used, or None. It has to decode a video, because a successful import does not
    mean that its FFmpeg libraries work."""
    try:
        decoders = importlib.import_module("torchcodec.decoders")
    except Exception as error:  # OSError, RuntimeError or ImportError, depending on what is missing
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"cannot be imported ({type(error).__name__}: {' '.join(lines)[:300]})"
    try:
        decoder = decoders.VideoDecoder(_probe_video(), num_ffmpeg_threads=1)
        frames = decoder.get_frames_at(list(range(len(_PROBE_LEVELS)))).data
    except Exception as error:
        return f"does not decode a test video ({type(error).__name__}: {str(error)[:300]})"
    means = frames.float().mean(dim=(1, 2, 3)).tolist()
    correct = len(means) == len(_PROBE_LEVELS) and np.allclose(means, _PROBE_LEVELS, rtol=0, atol=10)
    return None if correct else "decodes a test video incorrectly"


def _probe_video() -> bytes:
    """Return a small MPEG-4 video, which every FFmpeg build can write and read, with one gray level per frame."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = _PROBE_SIZE, _PROBE_SIZE, "yuv420p"
        for i, level in enumerate(_PROBE_LEVELS):
            frame = av.VideoFrame.from_ndarray(np.full((_PROBE_SIZE, _PROBE_SIZE, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


@contextlib.contextmanager
def open_span(file: Path | bytes, start: float | None, end: float | None) -> Iterator[TorchcodecSpan]:
    """Open a span of the first video stream, located with PyAV and decoded with torchcodec."""
    with open_source(file) as source:
        index = source.index_frames(None, end)
        is_avi = source.container.format.name == "avi"
        if source.no_timestamps and (not is_avi or source.stream.codec_context.has_b_frames):
            kind = "an AVI file with reordered frames" if is_avi else "a raw stream or joined files"
            raise Unreadable(f"is {kind}, whose times torchcodec cannot know: {_ADVICE}")
        if source.stream.codec_context.pix_fmt == "pal8":
            raise Unreadable(f"has a palette, which torchcodec may not receive: {_ADVICE}")
        if source.refreshed:
            raise Unreadable(f"refreshes its picture gradually, and torchcodec returns incomplete frames: {_ADVICE}")
        if index.lost:
            raise Unreadable(f"starts before a keyframe, and torchcodec may number its frames differently: {_ADVICE}")
        times = source.select_times(index.times, start, end)
        yield TorchcodecSpan(file, source, index._replace(times=times), bisect.bisect_left(index.times, times[0]))


class TorchcodecSpan(IndexedSpan):
    """Frames decoded with torchcodec. ``skipped`` is the number of frames of the file before the span."""

    def __init__(self, file: Path | bytes, source: VideoSource, index: FrameIndex, skipped: int) -> None:
        super().__init__(source, index)
        self._file = file
        self._skipped = skipped

    def read(self, positions: Sequence[int], short_side: int | None) -> UInt8[Tensor, "n 3 h w"]:
        """See :meth:`FrameSpan.read`."""
        wanted = sorted(set(positions))
        try:
            decoder = importlib.import_module("torchcodec.decoders").VideoDecoder(
                self._file if isinstance(self._file, bytes) else self._file.absolute(),  # otherwise parsed as a URL
                num_ffmpeg_threads=1,
                stream_index=self._source.stream.index,
            )
            found = decoder.get_frames_at([self._skipped + position for position in wanted])
        except (RuntimeError, IndexError, ValueError) as error:
            first_line = (str(error).splitlines() or [""])[0]
            raise Unreadable(f"cannot be decoded by torchcodec: {first_line}") from error
        self._check_times(wanted, found.pts_seconds.tolist())
        order = {position: i for i, position in enumerate(wanted)}
        frames = _resize(found.data, short_side)
        return frames[torch.tensor([order[position] for position in positions])].contiguous()

    def _check_times(self, wanted: Sequence[int], found: Sequence[float]) -> None:
        if self._source.no_timestamps:
            return
        for position, seconds in zip(wanted, found, strict=True):
            time = self._index.times[position]
            if abs(seconds - float(time * self._source.time_base)) > 1e-6:
                raise Unreadable(
                    f"is numbered differently by torchcodec, which returns the frame at {seconds:.3f} s instead of the "
                    f"one at {self._source.seconds(time):.3f} s: {_ADVICE}"
                )


def _resize(frames: UInt8[Tensor, "n 3 h w"], short_side: int | None) -> UInt8[Tensor, "n 3 h2 w2"]:
    """Resize with PyTorch, because torchcodec's resizing requires torchvision."""
    size = scaled_size(frames.shape[2], frames.shape[3], short_side)
    if size == frames.shape[2:]:
        return frames
    return F.interpolate(frames, size, mode="bilinear", antialias=True)
