"""Batches of decoded clips, in an order that depends only on the seed, the epoch and the number of ranks."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from art.data.dataset import LANES, ClipDataset, Sample, ShardDataset, seeded_generator
from art.data.datasets.base import ClipSet
from art.data.shards import ShardSet

#: The result of :meth:`.dataset.ClipDataset.load`.
_Loaded = tuple[Sample | None, dict[int, str]]
#: A batch, the samples if they cannot be stacked, or None if all clips failed; and the failed clips.
_Collated = tuple[dict[str, Tensor] | list[Sample] | None, dict[int, str]]


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) pairs of each batch. The epoch is passed with the index because worker processes hold copies
    of the dataset, in which the epoch is not updated.

    Ranks share each batch of ``batch_size`` · ``world_size`` clips: each rank takes a contiguous part, in the order of
    the ranks, so that their concatenation is the batch of a single process and no clip is repeated. An incomplete last
    batch is split as evenly as possible; a rank without any clip has one batch less.
    """

    def __init__(
        self, dataset: ClipDataset, batch_size: int, shuffle: bool, drop_last: bool, rank: int = 0, world_size: int = 1
    ) -> None:
        self._dataset, self._batch_size, self._shuffle, self._drop_last = dataset, batch_size, shuffle, drop_last
        self._rank, self._world_size = rank, world_size
        self.skip = 0

    def num_batches(self) -> int:
        """Number of batches in a full epoch, including skipped ones."""
        full, rest = divmod(len(self._dataset), self._batch_size * self._world_size)
        begin, end = self._part_of_rank(0 if self._drop_last else rest)
        return full + (end > begin)

    def _part_of_rank(self, count: int) -> tuple[int, int]:
        """The range of this rank's clips in a batch of ``count`` clips."""
        return count * self._rank // self._world_size, count * (self._rank + 1) // self._world_size

    def __len__(self) -> int:
        return self.num_batches() - self.skip

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, count = self._dataset.epoch, len(self._dataset)
        order = list(range(count))
        if self._shuffle:
            order = torch.randperm(count, generator=seeded_generator(self._dataset.seed, epoch)).tolist()
        global_size = self._batch_size * self._world_size
        for batch in range(self.skip, self.num_batches()):
            shared = order[batch * global_size : (batch + 1) * global_size]
            begin, end = self._part_of_rank(len(shared))
            yield [(epoch, index) for index in shared[begin:end]]


class ShardOrder(BatchOrder):
    """The batches of a dataset in shards.

    The shards of an epoch are shuffled, and so are the clips of each shard (in evaluation, both are in order). Each
    rank has a contiguous part of this sequence, cut into batches, which are taken round-robin from ``LANES`` positions.
    The batches and their order depend on the seed, the epoch and the number of ranks, not on the workers.
    """

    _dataset: ShardDataset

    def _range_of_rank(self) -> tuple[int, int]:
        """The range of this rank's clips in an epoch."""
        count = len(self._dataset)
        begin, end = self._part_of_rank(count)
        if self._drop_last:  # the same number of batches on each rank
            end = begin + count // self._world_size // self._batch_size * self._batch_size
        return begin, end

    def num_batches(self) -> int:
        """Number of batches in a full epoch, including skipped ones."""
        begin, end = self._range_of_rank()
        return -(-(end - begin) // self._batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter([[(self._dataset.epoch, index) for index in batch] for batch in self.batches()])

    def batches(self) -> list[list[int]]:
        """The clips of each remaining batch of this rank, in order."""
        members = self._dataset.members
        if self._shuffle:
            generator = seeded_generator(self._dataset.seed, self._dataset.epoch)
            sequence: list[int] = []
            for shard in torch.randperm(len(members), generator=generator).tolist():
                permutation = torch.randperm(len(members[shard]), generator=generator).tolist()
                sequence += [members[shard][i] for i in permutation]
        else:
            sequence = list(itertools.chain.from_iterable(members))
        own = sequence[slice(*self._range_of_rank())]
        batches = [own[i : i + self._batch_size] for i in range(0, len(own), self._batch_size)]
        ends = [len(batches) // LANES * lane + min(len(batches) % LANES, lane) for lane in range(LANES + 1)]
        lanes = [batches[begin:end] for begin, end in itertools.pairwise(ends)]
        interleaved = itertools.chain.from_iterable(itertools.zip_longest(*lanes))
        return [batch for batch in interleaved if batch is not None][self.skip :]


class ClipLoader:
    """Iterates over the batches of one epoch, in the format of :meth:`.dataset.ClipDataset.stack`.

    A clip that cannot be read is replaced in training and skipped in evaluation (so that a batch may be smaller), and
    recorded in ``dataset.bad``; too many of them raise a :class:`~art.data.dataset.DataError`.
    """

    def __init__(self, dataset: ClipDataset, order: BatchOrder, workers: int, pin_memory: bool) -> None:
        self.dataset, self._order, self._workers, self._pin_memory = dataset, order, workers, pin_memory
        self._loader = self._new_loader()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        try:
            for batch, failures in self._loader:
                self.dataset.record_failures(failures)
                if isinstance(batch, list):  # of different sizes: raise here, without the traceback of a worker
                    batch = self.dataset.stack(batch)
                if batch is not None:
                    yield batch
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """Stop the worker processes. Iterating again starts new ones."""
        self._loader = self._new_loader()  # the workers stop when the last reference to their loader is dropped

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Set the epoch, from 0, which determines the order and the sampling. To resume an interrupted epoch, ``skip``
        batches are skipped at its beginning, without decoding them."""
        if not 0 <= skip <= self._order.num_batches():
            raise ValueError(f"skip must be in 0..{self._order.num_batches()}, the batches of an epoch, got {skip}")
        self.dataset.set_epoch(epoch)
        self._order.skip = skip

    def _new_loader(self) -> DataLoader[Any]:
        return DataLoader(
            _WorkerDataset(self.dataset),
            batch_sampler=self._order,
            num_workers=self._workers,
            collate_fn=functools.partial(_collate, self.dataset),
            pin_memory=self._pin_memory,
            persistent_workers=self._workers > 0,  # keeps their caches and known failures
        )


class ShardLoader(ClipLoader):
    """A :class:`ClipLoader` for shards. Each epoch starts new workers with the batches of that epoch."""

    def _new_loader(self) -> DataLoader[Any]:
        batches = _WorkerBatches(cast(ShardDataset, self.dataset), cast(ShardOrder, self._order))
        return DataLoader(batches, batch_size=None, num_workers=self._workers, pin_memory=self._pin_memory)


class _WorkerDataset(Dataset[Any]):
    """The dataset in worker processes: returns failures with the samples, as only the main process records them."""

    def __init__(self, dataset: ClipDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, item: tuple[int, int]) -> _Loaded:
        return self._dataset.load(*item)


def _collate(dataset: ClipDataset, loaded: Sequence[_Loaded]) -> _Collated:
    samples = [sample for sample, _ in loaded if sample is not None]
    failures = {index: reason for _, failed in loaded for index, reason in failed.items()}
    if not samples:
        return None, failures
    same_size = len({sample["video"].shape for sample in samples}) == 1
    return dataset.stack(samples) if same_size else samples, failures


class _WorkerBatches(IterableDataset[Any]):
    """The batches in worker processes: worker w of W makes every W-th batch from w, the order in which the main process
    requests them."""

    def __init__(self, dataset: ShardDataset, order: ShardOrder) -> None:
        self._dataset, self._order = dataset, order

    def __iter__(self) -> Iterator[_Collated]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        dataset, batches = self._dataset, self._order.batches()[first::step]
        shard_of = dataset.clip_set.shard_of
        remaining = Counter(shard_of[index] for batch in batches for index in batch)
        for batch in batches:
            yield _collate(dataset, [dataset.load(dataset.epoch, index) for index in batch])
            remaining.subtract(shard_of[index] for index in batch)
            for shard in {shard_of[index] for index in batch}:
                if not remaining[shard]:
                    dataset.release(shard)


def dataset_of(clip_set: ClipSet) -> type[ClipDataset]:
    """The dataset class that reads ``clip_set``: from files, or from shards."""
    return ShardDataset if isinstance(clip_set, ShardSet) else ClipDataset


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
    """Build the loader of a dataset.

    Args:
        dataset: the clips.
        batch_size: clips per batch and rank.
        workers: number of decoding processes; 0 decodes in the calling process. Does not affect the batches.
        shuffle: shuffle the clips in each epoch. None shuffles in training and not in evaluation.
        drop_last: drop the last batch if it is incomplete.
        pin_memory: return batches in page-locked memory, from which copies to a GPU are faster.
        rank: index of this process among those that share the batches.
        world_size: number of processes that share the batches. Together they form the batches of one process with
            ``batch_size`` · ``world_size`` clips; see :class:`.loader.BatchOrder`.

    Raises:
        ValueError: an argument is out of range, ``drop_last`` leaves no batch, or a rank would have no clip in the last
            training batch.

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
    global_size = batch_size * world_size
    if drop_last and len(dataset) < global_size:
        raise ValueError(
            f"batch_size {batch_size} on {world_size} ranks with drop_last leaves no batch of {len(dataset)} clips; "
            f"expected at most {len(dataset) // world_size}"
        )
    if dataset.train and not drop_last and 0 < len(dataset) % global_size < world_size:
        raise ValueError(
            f"batches of {batch_size} clips on {world_size} ranks leave a rank without a clip in the last step of "
            f"{len(dataset)} clips; use drop_last or another batch_size"
        )
    in_shards = isinstance(dataset, ShardDataset)
    order_type, loader_type = (ShardOrder, ShardLoader) if in_shards else (BatchOrder, ClipLoader)
    order = order_type(dataset, batch_size, dataset.train if shuffle is None else shuffle, drop_last, rank, world_size)
    return loader_type(dataset, order, workers, pin_memory)
