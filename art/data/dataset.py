"""Clips as a PyTorch dataset: decoded and sampled, reproducible for a seed regardless of the number of workers."""

from __future__ import annotations

import functools
import itertools
import logging
import stat
import warnings
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from art.data.datasets.base import Clip, ClipSet
from art.data.decoding.frames import StoredClip, scaled_size
from art.data.decoding.video import VideoError, find_decoder, open_clip, read_clip
from art.data.files import is_url
from art.data.shards import ShardSet, read_shard
from art.data.transforms.augment import check_views, three_squares
from art.data.transforms.sampling import SPARSE, FrameSampling
from art.terminal import plural

_log = logging.getLogger(__name__)

#: Maximum decoded size of a cached clip, in bytes: caching a long clip costs more memory than it saves time.
CACHED_CLIP_LIMIT = 32 * 2**20
_MAX_LISTED = 10  # failed clips listed in an error
#: Batches are taken round-robin from this many positions of the epoch. Workers whose number divides it read each shard
#: once (those at a boundary twice), others several times.
LANES = 8


class DataError(RuntimeError):
    """The clips of a dataset cannot be used; the message names them.

    Examples:
        >>> from pathlib import Path
        >>> from art.data import Clip, ClipDataset, ClipSet
        >>> missing = ClipSet("mine", "test", Path("."), (Clip(Path("missing.mp4"), 0),), ("walk", "run"))
        >>> ClipDataset(missing, 2, train=False)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        art.data.dataset.DataError: ...
    """


class Sample(TypedDict):
    """One decoded clip: its frames, or the concatenated frames of several views, and the random numbers for its
    augmentation (none in evaluation)."""

    video: UInt8[Tensor, "n 3 h w"]
    label: int
    index: int
    draws: Float32[Tensor, " d"]


def seeded_generator(*entropy: int) -> torch.Generator:
    """A CPU generator whose state is a hash of some non-negative integers."""
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def check_clip_set(clip_set: ClipSet) -> dict[int, str]:
    """Check that every file exists and is not empty, without opening it. Returns the problem of each clip with a
    missing or empty file, by the index of the clip."""
    problems = {path: _file_problem(path) for path in dict.fromkeys(clip.path for clip in clip_set)}
    return {i: problem for i, clip in enumerate(clip_set) if (problem := problems[clip.path]) is not None}


def _file_problem(path: Path) -> str | None:
    try:
        status = path.stat()
    except OSError as error:
        return "there is no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
    return "is empty (0 bytes)" if stat.S_ISREG(status.st_mode) and status.st_size == 0 else None


class FrameCache:
    """Keeps all frames of decoded clips in memory, up to ``limit`` bytes in all worker processes together."""

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"cache_limit must be 0 bytes or more, got {limit}")
        self._limit = limit
        self._frames: dict[int, UInt8[Tensor, "n 3 h w"]] = {}
        self._bytes = 0
        self._rejected: set[int] = set()

    def frames(
        self,
        index: int,
        clip: Clip,
        source: Callable[[], Path | StoredClip],
        short_side: int | None,
        decoder: str = "pyav",
    ) -> UInt8[Tensor, "n 3 h w"] | None:
        """All frames of a clip, or None if they do not fit in the cache. ``source`` returns the file or stored clip,
        which is opened once, and only if the frames are not in the cache."""
        if index in self._frames or index in self._rejected:
            return self._frames.get(index)
        with open_clip(source(), clip.start, clip.end, decoder) as span:
            height, width = scaled_size(*span.size, short_side)
            if not self._fits(index, clip, span.count * 3 * height * width):
                return None
            frames = span.read(range(span.count), short_side)
        self._frames[index] = frames
        self._bytes += frames.nbytes
        return frames

    def _fits(self, index: int, clip: Clip, size: int) -> bool:
        """Whether ``size`` more bytes fit in the cache. Otherwise the clip is not tried again."""
        worker = get_worker_info()
        limit = self._limit // (1 if worker is None else worker.num_workers)
        if size <= CACHED_CLIP_LIMIT and self._bytes + size <= limit:
            return True
        if not self._rejected:
            _log.warning(
                "clip %s does not fit in the cache (%.0f MiB; %.0f of %.0f MiB are in use, at most %.0f per clip); "
                "clips that do not fit are decoded every time",
                clip,
                *(value / 2**20 for value in (size, self._bytes, limit, CACHED_CLIP_LIMIT)),
            )
        self._rejected.add(index)
        return False


class ClipDataset(Dataset[Sample]):
    """The clips of one split.

    ``dataset[i]``, including the random numbers for its augmentation, depends only on the seed, the epoch and i, so
    that batches can be formed in any way. Frames are sampled at random in training and at fixed positions in
    evaluation, where a clip may have several views.

    A clip that cannot be read is logged as a warning and listed in :attr:`bad`. In training it is replaced by the next
    readable clip; in evaluation ``dataset[i]`` raises an error, and the loader of :func:`build_loader` skips the clip.
    If more than ``max_failed_fraction`` of all clips fail, a :class:`DataError` is raised. Missing and empty files are
    detected before the first clip is read.

    Args:
        clip_set: the clips.
        num_frames: T, frames per clip.
        train: sample frames at random and replace unreadable clips.
        seed: seed of the sampling.
        frame_size: resize every frame to this shorter side (pixels) and crop it to a square, at a random position
            along the longer side in training and in the center in evaluation. None keeps frames as they are, which
            requires files of the same size.
        sampling: which frames of a clip are used.
        views: in evaluation, number of views of T frames each, chosen by :class:`.sampling.FrameSampling`.
        crops: in evaluation, 3 repeats each view three times, cropped to the squares at the beginning, in the center
            and at the end of the longer side (for square frames they are equal); 1 uses each view once.
        draws: number of random numbers, uniform in [0, 1), that are returned with each training clip.
        cache: keep decoded clips (of at most ``art.data.dataset.CACHED_CLIP_LIMIT`` bytes each) in memory.
            Each worker process has its own cache, so use few workers, or none.
        cache_limit: bytes that all processes together may cache.
        max_failed_fraction: fraction of clips, 0..1, that may fail.
        decoder: decoder of video files, one of :data:`art.data.decoding.video.DECODERS`.
        max_bad_share: deprecated name of ``max_failed_fraction``.

    Raises:
        DataError: too many files are missing or empty.
        ValueError: an argument is out of range.

    Examples:
        >>> from art.data import ClipDataset, open_dataset
        >>> dataset = ClipDataset(open_dataset("folder", "data/mine", "test"), num_frames=4, train=False)
        >>> sample = dataset[0]
        >>> sample["video"].shape, sample["video"].dtype, sample["label"]
        (torch.Size([4, 3, 64, 64]), torch.uint8, 0)
    """

    def __init__(
        self,
        clip_set: ClipSet,
        num_frames: int,
        *,
        train: bool,
        seed: int = 0,
        frame_size: int | None = None,
        sampling: FrameSampling = SPARSE,
        views: int = 1,
        crops: int = 1,
        draws: int = 0,
        cache: bool = False,
        cache_limit: int = 4 * 2**30,
        max_failed_fraction: float = 0.0,
        decoder: str = "pyav",
        max_bad_share: float | None = None,
    ) -> None:
        if max_bad_share is not None:
            warnings.warn("max_bad_share is now max_failed_fraction", DeprecationWarning, stacklevel=2)
            max_failed_fraction = max_bad_share
        for name, value, least in (("num_frames", num_frames, 1), ("seed", seed, 0), ("draws", draws, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if frame_size is not None and frame_size < 1:
            raise ValueError(f"frame_size must be at least 1 pixel, got {frame_size}")
        check_views(views, crops)
        if train and (views, crops) != (1, 1):
            raise ValueError(f"views is {views} and crops is {crops}, expected 1 each in training")
        if not 0 <= max_failed_fraction <= 1:
            raise ValueError(f"max_failed_fraction must be in 0..1, got {max_failed_fraction}")
        find_decoder(decoder)  # raises if the decoder is not available, before any work starts
        self.clip_set, self.num_frames, self.train, self.seed = clip_set, num_frames, train, seed
        self.sampling, self.views, self.crops, self.draws = sampling, views, crops, draws
        self.frame_size, self.decoder, self.max_failed_fraction = frame_size, decoder, max_failed_fraction
        self.epoch = 0
        self._cache = FrameCache(cache_limit) if cache else None
        self._known: dict[int, str] = {}  # failures seen in this process, which are not tried again
        self._bad: dict[int, str] = {}  # failures that have been recorded
        self.record_failures(self._find_missing())
        self._known.update(self._bad)

    def __len__(self) -> int:
        return len(self.clip_set)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        sample, failures = self.load(self.epoch, index)
        self.record_failures(failures)
        if sample is None:
            raise DataError(f"clip {self.clip_set.clips[index]} cannot be read: {failures[index]}")
        return sample

    @property
    def bad(self) -> dict[Path, str]:
        """The clips that could not be read so far, and the reasons."""
        return {self.clip_set.clips[index].path: reason for index, reason in sorted(self._bad.items())}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes the frames sampled in training."""
        self.epoch = epoch

    def load(self, epoch: int, index: int) -> tuple[Sample | None, dict[int, str]]:
        """Load clip ``index`` in ``epoch`` without recording failures. This part runs in worker processes.

        Returns:
            the sample (of another clip if the clip failed and is replaced, or None if it cannot be), and the clips
            that failed, for :meth:`record_failures`.
        """
        failures: dict[int, str] = {}
        for candidate in self._candidates(index) if self.train else (index,):
            if candidate not in self._known:
                # Seeded by the requested index: one clip that replaces several others is sampled differently for each.
                generator = seeded_generator(self.seed, epoch, index) if self.train else None
                try:
                    video = self._read(candidate, generator)
                except VideoError as error:
                    self._known[candidate] = error.reason
                else:
                    label = self.clip_set.clips[candidate].label
                    draws = torch.empty(0) if generator is None else torch.rand(self.draws, generator=generator)
                    return {"video": video, "label": label, "index": candidate, "draws": draws}, failures
            failures[candidate] = self._known[candidate]
        return None, failures

    def record_failures(self, failures: Mapping[int, str]) -> None:
        """Record failed clips, with a warning for each new one.

        Raises:
            DataError: too many clips have failed.
        """
        new = {index: reason for index, reason in failures.items() if index not in self._bad}
        if not new:
            return
        self._bad.update(new)
        if len(self._bad) / len(self) > self.max_failed_fraction:
            raise DataError(self._failure_report(f"more than max_failed_fraction={self.max_failed_fraction:g} allows"))
        if self.train and len(self._bad) == len(self):
            raise DataError(self._failure_report("so there is no clip to train on"))
        for index, reason in new.items():
            action = "replaced by the next" if self.train else "skipped"
            _log.warning("clip %s is %s: %s", self.clip_set.clips[index], action, reason)

    def stack(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Stack samples into a batch: ``video`` [B, crops · views · T, 3, H, W] uint8, ``label`` [B] and ``index`` [B]
        int64, and ``draws`` [B, D] float32.

        Raises:
            DataError: the clips differ in size.
        """
        first = samples[0]
        for other in samples:
            if other["video"].shape != first["video"].shape:
                sizes = [
                    f"{self.clip_set.clips[sample['index']]} ({sample['video'].shape[3]}×{sample['video'].shape[2]})"
                    for sample in (first, other)
                ]
                raise DataError(
                    f"clips of different sizes cannot form a batch: {' and '.join(sizes)}. Set frame_size, which "
                    "resizes all clips to the same size"
                )
        return {
            "video": torch.stack([sample["video"] for sample in samples]),
            "label": torch.tensor([sample["label"] for sample in samples]),
            "index": torch.tensor([sample["index"] for sample in samples]),
            "draws": torch.stack([sample["draws"] for sample in samples]),
        }

    def _find_missing(self) -> dict[int, str]:
        """The clips that are known to be unreadable before the first one is read."""
        return check_clip_set(self.clip_set)

    def _candidates(self, index: int) -> Iterable[int]:
        """A clip and its possible replacements, in order."""
        return ((index + step) % len(self) for step in range(len(self)))

    def _source(self, index: int) -> Path | StoredClip:
        """The file or stored clip to decode."""
        return self.clip_set.clips[index].path

    def _read(self, index: int, generator: torch.Generator | None) -> UInt8[Tensor, "n 3 h w"]:
        clip, frames = self.clip_set.clips[index], None
        if self._cache is not None:
            source = functools.partial(self._source, index)
            frames = self._cache.frames(index, clip, source, self.frame_size, self.decoder)
        if frames is not None:
            chosen = self.sampling.indices(len(frames), self.num_frames, views=self.views, generator=generator)
            frames = frames[chosen.flatten()]
        else:
            frames = read_clip(
                self._source(index), self.num_frames, start=clip.start, end=clip.end, generator=generator,
                short_side=self.frame_size, sampling=self.sampling, views=self.views, decoder=self.decoder,
            )  # fmt: skip
        if self.crops == 3:
            return torch.cat(three_squares(frames))
        return frames if self.frame_size is None else _crop_square(frames, self.frame_size, generator)

    def _failure_report(self, problem: str) -> str:
        name = f"{self.clip_set.name}/{self.clip_set.split}"
        count = f"{len(self._bad)} of {plural(len(self), 'clip')} ({len(self._bad) / len(self):.1%})"
        listed = [f"  {self.clip_set.clips[i]}: {reason}" for i, reason in sorted(self._bad.items())[:_MAX_LISTED]]
        if len(self._bad) > _MAX_LISTED:
            listed.append(f"  and {len(self._bad) - _MAX_LISTED} more")
        remedy = (
            "There may be more: `art prepare NAME --root DIR` checks all. Repair or remove them, or raise "
            "max_failed_fraction:"
        )
        return "\n".join([f"{name}: {count} cannot be read, {problem}. {remedy}", *listed])


def _crop_square(
    frames: UInt8[Tensor, "t 3 h w"], size: int, generator: torch.Generator | None
) -> UInt8[Tensor, "t 3 s s"]:
    spare = frames.shape[2] + frames.shape[3] - 2 * size  # along the longer side
    start = spare // 2 if generator is None else int(torch.randint(spare + 1, (), generator=generator))
    return frames.narrow(2 if frames.shape[2] > size else 3, start, size)


class ShardDataset(ClipDataset):
    """The clips of a split stored in shards; see :class:`ClipDataset`.

    A clip that cannot be read is replaced by one of the same shard. If a shard cannot be opened, or is truncated, the
    clips missing from it are recorded as failed.

    A shard is held in memory, compressed, while its clips are in use: about ``LANES`` shards at a time in all workers
    together.
    """

    clip_set: ShardSet

    def __init__(self, clip_set: ShardSet, num_frames: int, **options: Any) -> None:
        self._open_shards: OrderedDict[int, tuple[dict[str, StoredClip], str]] = OrderedDict()
        self.members: list[list[int]] = [[] for _ in clip_set.shards]  # the clips of each shard
        for index, shard in enumerate(clip_set.shard_of):
            self.members[shard].append(index)
        super().__init__(clip_set, num_frames, **options)

    def _find_missing(self) -> dict[int, str]:
        """The clips of missing shard files. Remote ones are not checked before they are opened."""
        return {
            index: f"its shard {place} does not exist"
            for place, members in zip(self.clip_set.shards, self.members, strict=True)
            if not is_url(place) and not Path(place).is_file()
            for index in members
        }

    def _candidates(self, index: int) -> Iterable[int]:
        """The clips of the same shard, starting from this one."""
        members = self.members[self.clip_set.shard_of[index]]
        position = bisect_left(members, index)
        return itertools.chain(members[position:], members[:position])

    def _source(self, index: int) -> StoredClip:
        shard, key = self.clip_set.shard_of[index], self.clip_set.clips[index].path.name
        if shard not in self._open_shards:
            self._open_shards[shard] = self._load_shard(shard)
            while len(self._open_shards) > 2 * LANES:  # used without a loader, which releases them
                self._open_shards.popitem(last=False)
        self._open_shards.move_to_end(shard)
        clips, problem = self._open_shards[shard]
        if key not in clips:
            problem = problem or f"not found in shard {self.clip_set.shards[shard]}"
            raise VideoError(self.clip_set.clips[index].path, problem)
        return clips[key]

    def release(self, shard: int) -> None:
        """Free the memory of a shard."""
        self._open_shards.pop(shard, None)

    def _load_shard(self, shard: int) -> tuple[dict[str, StoredClip], str]:
        """The clips of a shard by key, and the error if not all of them could be read."""
        clips: dict[str, StoredClip] = {}
        try:
            clips.update(read_shard(self.clip_set.shards[shard]))
        except OSError as error:
            return clips, str(error)
        return clips, ""
