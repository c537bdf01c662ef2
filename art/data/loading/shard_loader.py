"""Batches out of shards: each read as one stream, by one worker, in an order of the seed and the epoch."""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from art.data.decoding.frames import StoredClip
from art.data.decoding.video import VideoError
from art.data.loading.dataset import ClipDataset
from art.data.loading.loader import BatchOrder, ClipLoader, collate
from art.data.loading.shards import ShardSet, read_shard

if TYPE_CHECKING:
    from art.data.loading.loader import Collated

#: Batches come from so many places of an epoch in turn. Workers whose number divides it read each shard once (those
#: at the borders twice), others several times.
LANES = 8


class ShardDataset(ClipDataset):
    """The clips of a split that is in shards; what is said of :class:`~art.data.loading.dataset.ClipDataset` holds.

    A clip stands in for a bad one where both are in one shard. A shard that cannot be opened, or ends too soon, makes
    the clips bad that it should have held.

    Shards are in memory, compressed, from their first clip to their last: about ``LANES`` of them at a time, of all
    workers together.
    """

    clip_set: ShardSet

    def __init__(self, clip_set: ShardSet, num_frames: int, **options: Any) -> None:
        self._held: OrderedDict[int, tuple[dict[str, StoredClip], str]] = OrderedDict()
        shards = range(len(clip_set.shards))
        self.members: list[list[int]] = [[] for _ in shards]
        for index, shard in enumerate(clip_set.shard_of):
            self.members[shard].append(index)
        super().__init__(clip_set, num_frames, **options)

    def _missing(self) -> dict[int, str]:
        """Nothing is known before a shard is opened, but whether it is there where it is a file."""
        return {
            index: f"its shard {place} is not there"
            for place, members in zip(self.clip_set.shards, self.members, strict=True)
            if ":" not in place and not Path(place).exists()
            for index in members
        }

    def _candidates(self, index: int) -> Iterable[int]:
        """The clips of the same shard, from this one on."""
        members = self.members[self.clip_set.shard_of[index]]
        place = members.index(index)
        return itertools.chain(members[place:], members[:place])

    def _source(self, index: int) -> StoredClip:
        shard, key = self.clip_set.shard_of[index], self.clip_set.clips[index].path.name
        if shard not in self._held:
            self._held[shard] = self._load(shard)
            while len(self._held) > 2 * LANES:  # where no loader releases them
                self._held.popitem(last=False)
        self._held.move_to_end(shard)
        clips, problem = self._held[shard]
        if key not in clips:
            problem = problem or f"shard {self.clip_set.shards[shard]} ends without it"
            raise VideoError(self.clip_set.clips[index].path, problem)
        return clips[key]

    def release(self, shard: int) -> None:
        """Forget the content of a shard."""
        self._held.pop(shard, None)

    def _load(self, shard: int) -> tuple[dict[str, StoredClip], str]:
        """The clips of a shard by their keys, and what went wrong where they are not all."""
        clips: dict[str, StoredClip] = {}
        try:
            for key, clip in read_shard(self.clip_set.shards[shard]):
                clips[key] = clip
        except OSError as error:
            return clips, str(error)
        return clips, ""


class ShardOrder(BatchOrder):
    """Which clips form each batch.

    The epoch is a row of shards in an order of its own, and of the clips of each in an order of their own (one after
    the other in evaluation). Each rank has one stretch of the row, cut into batches; these come from ``LANES`` places
    of it in turn. The batches and their order depend on the seed, the epoch and the number of ranks, not on workers.
    """

    _dataset: ShardDataset

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(dataset, batch_size, shuffle, drop_last, rank, world_size)
        count = len(dataset)
        self._begin, self._end = self._stretch(count)
        if drop_last:  # as many batches for each rank
            self._end = self._begin + count // world_size // batch_size * batch_size

    def whole_epoch(self) -> int:
        """The number of batches of an epoch with nothing skipped."""
        return -(-(self._end - self._begin) // self._batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter([[(self._dataset.epoch, index) for index in batch] for batch in self.batches()])

    def batches(self) -> list[list[int]]:
        """The clips of each batch of this rank, in the order of the batches, without what is skipped."""
        members = self._dataset.members
        shards: Iterable[int] = range(len(members))
        row: list[int] = []
        if self._shuffle:
            state = np.random.SeedSequence([self._dataset.seed, self._dataset.epoch]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state[0]))
            for shard in torch.randperm(len(members), generator=generator).tolist():
                row += [members[shard][i] for i in torch.randperm(len(members[shard]), generator=generator).tolist()]
        else:
            row = [index for shard in shards for index in members[shard]]
        own = row[self._begin : self._end]
        cut = [own[i : i + self._batch_size] for i in range(0, len(own), self._batch_size)]
        ends = [len(cut) // LANES * lane + min(len(cut) % LANES, lane) for lane in range(LANES + 1)]
        lanes = [cut[begin:end] for begin, end in itertools.pairwise(ends)]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*lanes))
        return [batch for batch in turns if batch is not None][self.skip :]


class ShardLoader(ClipLoader):
    """A :class:`~art.data.loading.loader.ClipLoader` of shards. Workers begin anew with each epoch, whose plan they are given.

    The size of the set and the memory for shards are those of :class:`ShardDataset`.
    """

    def _new_loader(self) -> DataLoader[Any]:
        batches = _ShardBatches(cast(ShardDataset, self.dataset), cast(ShardOrder, self._order))
        return DataLoader(batches, batch_size=None, num_workers=self._workers, pin_memory=self._pin_memory)


class _ShardBatches(IterableDataset[Any]):
    """What worker processes hold: worker w of W makes batch w, W + w, …, in which order they are asked for them."""

    def __init__(self, dataset: ShardDataset, order: ShardOrder) -> None:
        self._dataset, self._order = dataset, order

    def __iter__(self) -> Iterator[tuple[Collated, dict[int, str]]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        dataset, batches = self._dataset, self._order.batches()[first::step]
        shard_of = dataset.clip_set.shard_of
        left = Counter(shard_of[index] for batch in batches for index in batch)
        for batch in batches:
            yield collate(dataset, [dataset.draw(dataset.epoch, index) for index in batch])
            left.subtract(shard_of[index] for index in batch)
            for shard in {shard_of[index] for index in batch}:
                if not left[shard]:
                    dataset.release(shard)


ShardDataset.order_type, ShardDataset.loader_type = ShardOrder, ShardLoader
