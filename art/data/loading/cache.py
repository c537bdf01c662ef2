"""Decoded clips kept in memory."""

from __future__ import annotations

import logging

from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

from art.data.datasets.clips import Clip
from art.data.decoding.video import decoded_bytes, read_frames

_log = logging.getLogger(__name__)

#: A clip is only kept if it takes at most so many bytes decoded: a long one is better sampled than held.
CACHED_CLIP_LIMIT = 32 * 2**20


class FrameCache:
    """Holds clips decoded as a whole, until ``limit`` bytes are in use by all worker processes together.

    Raises:
        ValueError: the limit is negative.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"cache_limit must be 0 bytes or more, got {limit}")
        self._limit = limit
        self._held: dict[int, UInt8[Tensor, "n 3 h w"]] = {}
        self._bytes = 0
        self._refused: set[int] = set()

    def frames(
        self, index: int, clip: Clip, short_side: int | None, decoder: str = "pyav"
    ) -> UInt8[Tensor, "n 3 h w"] | None:
        """All frames of a clip, None if they are too many to be held."""
        if index in self._held:
            return self._held[index]
        if index in self._refused:
            return None
        size = decoded_bytes(clip.path, start=clip.start, end=clip.end, short_side=short_side, decoder=decoder)
        worker = get_worker_info()
        limit = self._limit // (1 if worker is None else worker.num_workers)
        if size > CACHED_CLIP_LIMIT or self._bytes + size > limit:
            if not self._refused:
                _log.warning(
                    "the cache does not take clip %s (%.0f MiB; %.0f of %.0f MiB are in use, at most %.0f a clip), nor "
                    "others that do not fit: they are decoded each time",
                    clip,
                    *(value / 2**20 for value in (size, self._bytes, limit, CACHED_CLIP_LIMIT)),
                )
            self._refused.add(index)
            return None
        frames = read_frames(clip.path, start=clip.start, end=clip.end, short_side=short_side, decoder=decoder)
        self._held[index] = frames
        self._bytes += frames.nbytes
        return frames
