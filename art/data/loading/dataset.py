"""Clips as a PyTorch data set: decoded, sampled, and the same for a seed whatever the number of workers."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from art.data.datasets.clips import ClipSet
from art.data.decoding.frames import StoredClip
from art.data.decoding.video import VideoError, find_decoder, read_clip
from art.data.loading.cache import FrameCache
from art.data.loading.loader import BatchOrder, ClipLoader
from art.data.transforms.augment import three_squares
from art.data.transforms.sampling import SPARSE, FrameSampling

_log = logging.getLogger(__name__)

_LISTED = 10  # so many bad clips are named in an error


class DataError(RuntimeError):
    """The clips of a data set cannot be used as they are; the message names them.

    Examples:
        >>> from pathlib import Path
        >>> from art.data import Clip, ClipDataset, ClipSet
        >>> gone = ClipSet("mine", "test", Path("."), (Clip(Path("gone.mp4"), 0),), ("walk", "run"))
        >>> ClipDataset(gone, 2, train=False)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        art.data.loading.dataset.DataError: ...
    """


class Sample(TypedDict):
    """One clip, decoded: its frames, or those of several views one after the other, and the random numbers that
    belong to it (none in evaluation)."""

    video: UInt8[Tensor, "n 3 h w"]
    label: int
    index: int
    draws: Float32[Tensor, " d"]


def check_clip_set(clip_set: ClipSet) -> dict[int, str]:
    """Look for every file without opening it.

    Returns:
        for each clip whose file is missing or empty, its index in the set and what is wrong.
    """
    found: dict[Path, str | None] = {}
    for clip in clip_set:
        if clip.path not in found:
            found[clip.path] = _problem(clip.path)
    return {i: problem for i, clip in enumerate(clip_set) if (problem := found[clip.path]) is not None}


class ClipDataset(Dataset[Sample]):
    """The clips of one split.

    ``dataset[i]`` depends on the seed, the epoch and i only, and so do the random numbers that come with it for its
    augmentation: batches may be put together in any way. In training its frames are drawn at random, in evaluation they
    are fixed, and there may be several views of them.

    A clip that cannot be read is named in a warning and stands in :attr:`bad`. In training the next good one takes its
    place; in evaluation ``dataset[i]`` is an error, and the loader of :func:`build_loader` leaves the clip out. When
    more than ``max_bad_share`` of all clips turn out bad, it is a :class:`DataError`. Missing and empty files are found
    before the first clip is read.

    Args:
        clip_set: the clips.
        num_frames: T, frames a clip.
        train: whether frames are sampled at random and bad clips replaced.
        seed: of the sampling.
        frame_size: every frame is scaled until its shorter side has this many pixels and cut to a square, placed at
            random along the longer side in training and in the middle in evaluation. None leaves frames as they are;
            then all files must have one size.
        sampling: which frames of a clip are taken.
        views: in evaluation, so many times T frames of each clip, as :class:`.sampling.FrameSampling` chooses them.
        crops: in evaluation, 3 gives each view three times, cut to the squares at the beginning, in the middle and at
            the end of the longer side (of square frames they are the same); 1 once.
        draws: so many random numbers, uniform in [0, 1), come with each training clip.
        cache: keep decoded clips (of at most ``art.data.loading.cache.CACHED_CLIP_LIMIT`` bytes each) in memory. Each worker
            process keeps its own, so that few workers, or none, make best use of it.
        cache_limit: bytes that all processes together may keep.
        max_bad_share: the share of clips, 0..1, that may be bad.
        decoder: of video files, one of :data:`art.data.decoding.video.DECODERS`.

    Raises:
        DataError: too many files are missing or empty.
        ValueError: an argument is out of its range.

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
        max_bad_share: float = 0.0,
        decoder: str = "pyav",
    ) -> None:
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        if frame_size is not None and frame_size < 1:
            raise ValueError(f"frame_size must be at least 1 pixel, got {frame_size}")
        if views < 1:
            raise ValueError(f"views must be at least 1, got {views}")
        if crops not in (1, 3):
            raise ValueError(f"crops must be 1 or 3, got {crops}")
        if train and (views, crops) != (1, 1):
            raise ValueError(f"views is {views} and crops is {crops}, expected 1 each in training")
        if draws < 0:
            raise ValueError(f"draws must be 0 or more, got {draws}")
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share must lie in 0..1, got {max_bad_share}")
        self.clip_set = clip_set
        self.num_frames = num_frames
        self.train = train
        self.seed = seed
        self.frame_size = frame_size
        self.sampling, self.views, self.crops, self.draws = sampling, views, crops, draws
        self.max_bad_share = max_bad_share
        find_decoder(decoder)  # whether it can be used is known before any work starts
        self.decoder = decoder
        self.epoch = 0
        self._cache = FrameCache(cache_limit) if cache else None
        self._known: dict[int, str] = {}  # bad clips that this process has met: they are not tried again
        self._bad: dict[int, str] = {}  # those that have been counted
        self.record(self._missing())
        self._known.update(self._bad)

    #: Of :func:`build_loader`: what puts clips into batches, and what loads them.
    order_type: type[BatchOrder] = BatchOrder
    loader_type: type[ClipLoader] = ClipLoader

    def __len__(self) -> int:
        return len(self.clip_set)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        sample, failures = self.draw(self.epoch, index)
        self.record(failures)
        if sample is None:
            raise DataError(f"clip {self.clip_set.clips[index]} cannot be read: {failures[index]}")
        return sample

    @property
    def bad(self) -> dict[Path, str]:
        """The clips that could not be read so far, and why."""
        return {self.clip_set.clips[index].path: reason for index, reason in sorted(self._bad.items())}

    def set_epoch(self, epoch: int) -> None:
        """Sample other frames than in any other epoch."""
        self.epoch = epoch

    def draw(self, epoch: int, index: int) -> tuple[Sample | None, dict[int, str]]:
        """Clip ``index`` in ``epoch``, without counting what fails: the half of the work that a worker process does.

        Returns:
            the sample (of another clip where a bad one is replaced; None where it cannot be), and the clips that
            failed on the way, as :meth:`record` takes them.
        """
        failures: dict[int, str] = {}
        for candidate in self._candidates(index) if self.train else (index,):
            if candidate not in self._known:
                # Seeded by the index that was asked for: a clip that stands in for others is not sampled alike.
                generator = self._generator(epoch, index) if self.train else None
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

    def record(self, failures: Mapping[int, str]) -> None:
        """Count clips that failed, with a warning for each new one.

        Raises:
            DataError: they are too many now.
        """
        new = {index: reason for index, reason in failures.items() if index not in self._bad}
        if not new:
            return
        self._bad.update(new)
        if len(self._bad) / len(self) > self.max_bad_share:
            raise DataError(self._complaint(f"more than max_bad_share={self.max_bad_share:g} allows"))
        if self.train and len(self._bad) == len(self):
            raise DataError(self._complaint("so that none is left to train on"))
        for index, reason in new.items():
            fate = "replaced by the next" if self.train else "left out"
            _log.warning("clip %s is %s: %s", self.clip_set.clips[index], fate, reason)

    def stack(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """One batch: ``video`` [B, crops · views · T, 3, H, W] uint8, ``label`` [B] and ``index`` [B] int64, and
        ``draws`` [B, D] float32, those of each clip.

        Raises:
            DataError: the clips differ in size.
        """
        first = samples[0]
        for other in samples:
            if other["video"].shape != first["video"].shape:
                named = [
                    f"{self.clip_set.clips[sample['index']]} ({sample['video'].shape[3]}×{sample['video'].shape[2]})"
                    for sample in (first, other)
                ]
                raise DataError(
                    f"clips of different sizes cannot form a batch: {' and '.join(named)}. Give frame_size, which "
                    "brings every clip to one size"
                )
        return {
            "video": torch.stack([sample["video"] for sample in samples]),
            "label": torch.tensor([sample["label"] for sample in samples]),
            "index": torch.tensor([sample["index"] for sample in samples]),
            "draws": torch.stack([sample["draws"] for sample in samples]),
        }

    def _missing(self) -> dict[int, str]:
        """The clips that are known to be bad before the first is read."""
        return check_clip_set(self.clip_set)

    def _candidates(self, index: int) -> Iterable[int]:
        """A clip and, in the order in which they are tried, those that may stand in for it."""
        return ((index + step) % len(self) for step in range(len(self)))

    def _source(self, index: int) -> Path | StoredClip:
        """What a clip is read from."""
        return self.clip_set.clips[index].path

    def _generator(self, epoch: int, index: int) -> torch.Generator:
        state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))

    def _read(self, index: int, generator: torch.Generator | None) -> UInt8[Tensor, "n 3 h w"]:
        clip = self.clip_set.clips[index]
        frames = self._cache.frames(index, clip, self.frame_size, self.decoder) if self._cache else None
        if frames is not None:
            chosen = self.sampling.indices(len(frames), self.num_frames, views=self.views, generator=generator)
            frames = frames[chosen.flatten()]
        else:
            frames = read_clip(
                self._source(index),
                self.num_frames,
                start=clip.start,
                end=clip.end,
                generator=generator,
                short_side=self.frame_size,
                sampling=self.sampling,
                views=self.views,
                decoder=self.decoder,
            )
        if self.crops == 3:
            return torch.cat(three_squares(frames))
        return frames if self.frame_size is None else _square(frames, self.frame_size, generator)

    def _complaint(self, too_many: str) -> str:
        name = f"{self.clip_set.name}/{self.clip_set.split}"
        share = f"{len(self._bad)} of {len(self)} clips ({len(self._bad) / len(self):.1%})"
        listed = [f"  {self.clip_set.clips[i]}: {reason}" for i, reason in sorted(self._bad.items())[:_LISTED]]
        if len(self._bad) > _LISTED:
            listed.append(f"  and {len(self._bad) - _LISTED} more")
        advice = "Mend or remove them, or raise max_bad_share:"
        return "\n".join([f"{name}: {share} cannot be read, {too_many}. {advice}", *listed])


def _square(frames: UInt8[Tensor, "t 3 h w"], size: int, generator: torch.Generator | None) -> UInt8[Tensor, "t 3 s s"]:
    spare = frames.shape[2] + frames.shape[3] - 2 * size  # only the longer side has any
    start = spare // 2 if generator is None else int(torch.randint(spare + 1, (), generator=generator))
    if frames.shape[2] > size:
        return frames[:, :, start : start + size]
    return frames[:, :, :, start : start + size]


def _problem(path: Path) -> str | None:
    try:
        status = path.stat()
    except OSError as error:
        return "there is no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
    return "is empty (0 bytes)" if stat.S_ISREG(status.st_mode) and status.st_size == 0 else None


def dataset_of(clip_set: ClipSet) -> type[ClipDataset]:
    """The kind of data set that reads ``clip_set``: from files, or from shards."""
    from art.data.loading.shards import ShardSet

    if not isinstance(clip_set, ShardSet):
        return ClipDataset
    from art.data.loading.shard_loader import ShardDataset

    return ShardDataset


def build_loader(
    dataset: ClipDataset,
    batch_size: int,
    *,
    workers: int = 0,
    shuffle: bool | None = None,
    drop_last: bool = False,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> ClipLoader:
    """A loader of ``dataset``.

    Args:
        dataset: the clips.
        batch_size: clips a batch (of each rank).
        workers: processes that decode; 0 decodes in the calling process. Changes the speed, never a batch.
        shuffle: whether each epoch has an order of its own; None is yes in training and no in evaluation.
        drop_last: leave out the last batch where it is not full.
        pin_memory: hand batches over in page-locked memory, from which copies to a GPU are faster.
        rank: which of the processes that share the work this is.
        world_size: how many they are. Together their batches are those of one process with a ``batch_size`` so many
            times as large: each takes its part of them, as :class:`.loader.BatchOrder` says.

    Raises:
        ValueError: an argument is out of its range, or ``drop_last`` leaves no batch, or the last training batch would
            leave a rank without a clip.

    Examples:
        >>> from art.data import ClipDataset, build_loader, open_dataset
        >>> dataset = ClipDataset(open_dataset("folder", "data/mine", "train"), num_frames=4, train=True)
        >>> batch = next(iter(build_loader(dataset, batch_size=2)))
        >>> batch["video"].shape
        torch.Size([2, 4, 3, 64, 64])
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} of world_size {world_size}, expected 0 <= rank < world_size")
    together = batch_size * world_size
    if drop_last and len(dataset) < together:
        raise ValueError(
            f"batch_size {batch_size} on {world_size} ranks with drop_last leaves no batch of {len(dataset)} clips; "
            f"expected at most {len(dataset) // world_size}"
        )
    if dataset.train and not drop_last and 0 < len(dataset) % together < world_size:
        raise ValueError(
            f"the last of {len(dataset)} clips in batches of {batch_size} on {world_size} ranks leave a rank without "
            "a clip in the last step; use drop_last or another batch_size"
        )
    shuffled = dataset.train if shuffle is None else shuffle
    order = dataset.order_type(dataset, batch_size, shuffled, drop_last, rank, world_size)
    return dataset.loader_type(dataset, order, workers, pin_memory)
