"""Batches of clips, decoded beside training, in an order that depends on the seed and the epoch only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

if TYPE_CHECKING:
    from art.data.loading.dataset import ClipDataset, Sample

    _Draw = tuple[Sample | None, dict[int, str]]
    Collated = dict[str, Tensor] | list[Sample] | None


class ClipLoader:
    """Iterating gives the batches of one epoch, as :meth:`.dataset.ClipDataset.stack` describes them.

    A clip that cannot be read is replaced in training, left out in evaluation (so that a batch may be smaller), and
    counted in ``dataset.bad``; too many of them are a :class:`~art.data.loading.dataset.DataError`.
    """

    def __init__(self, dataset: ClipDataset, order: BatchOrder, workers: int, pin_memory: bool) -> None:
        self.dataset = dataset
        self._order = order
        self._workers = workers
        self._pin_memory = pin_memory
        self._loader = self._new_loader()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        try:
            for batch, failures in self._loader:
                self.dataset.record(failures)
                if isinstance(
                    batch, list
                ):  # did not stack: complained about here, where no worker's traceback is added
                    batch = self.dataset.stack(batch)
                if batch is not None:
                    yield batch
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        """End the worker processes. Iterating again starts new ones."""
        self._loader = self._new_loader()  # nothing else holds the old one, and with it they go

    def _new_loader(self) -> DataLoader[Any]:
        draws = _Draws(self.dataset)
        return DataLoader(
            draws,
            batch_sampler=self._order,
            num_workers=self._workers,
            collate_fn=draws.collate,
            pin_memory=self._pin_memory,
            persistent_workers=self._workers > 0,  # they keep what they cached, and which clips are bad
        )

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Go to an epoch, with the order and the sampling that belong to it.

        Args:
            epoch: from 0.
            skip: so many batches at its beginning are left out, undecoded: where an interrupted epoch goes on.

        Raises:
            ValueError: there are not so many batches.
        """
        if not 0 <= skip <= self._order.whole_epoch():
            raise ValueError(f"skip must lie in 0..{self._order.whole_epoch()}, the batches of an epoch, got {skip}")
        self.dataset.set_epoch(epoch)
        self._order.skip = skip


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """Which clips form each batch. The epoch travels with the index, since worker processes hold copies of the data
    set that do not hear of a new one.

    Several ranks share each batch of ``batch_size`` · ``world_size`` clips: each takes one stretch of it, in the order
    of the ranks, so that no clip comes twice and put together they are the batch of one process. A last batch that is
    not full is shared likewise, as evenly as can be; a rank to which no clip is left has one batch less.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._dataset = dataset
        self._rank, self._world_size = rank, world_size
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._drop_last = drop_last
        self.skip = 0

    def whole_epoch(self) -> int:
        """The number of batches of an epoch with nothing skipped."""
        full, rest = divmod(len(self._dataset), self._batch_size * self._world_size)
        begin, end = self._stretch(0 if self._drop_last else rest)
        return full + (end > begin)

    def _stretch(self, count: int) -> tuple[int, int]:
        """Which of the ``count`` clips of a batch are this rank's."""
        return count * self._rank // self._world_size, count * (self._rank + 1) // self._world_size

    def __len__(self) -> int:
        return self.whole_epoch() - self.skip

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, count = self._dataset.epoch, len(self._dataset)
        order = list(range(count))
        if self._shuffle:
            state = np.random.SeedSequence([self._dataset.seed, epoch]).generate_state(1, np.uint64)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(int(state[0]))).tolist()
        for batch in range(self.skip, self.whole_epoch()):
            together = self._batch_size * self._world_size
            shared = order[batch * together : (batch + 1) * together]
            begin, end = self._stretch(len(shared))
            yield [(epoch, index) for index in shared[begin:end]]


class _Draws(Dataset[Any]):
    """What worker processes hold: it hands failures over with the samples, since only the main process can count."""

    def __init__(self, dataset: ClipDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, item: tuple[int, int]) -> _Draw:
        return self._dataset.draw(*item)

    def collate(self, draws: list[_Draw]) -> tuple[Collated, dict[int, str]]:
        return collate(self._dataset, draws)


def collate(dataset: ClipDataset, draws: Sequence[_Draw]) -> tuple[Collated, dict[int, str]]:
    """A batch of what :meth:`.dataset.ClipDataset.draw` gave (unstacked where the sizes differ, None where all failed),
    and the clips that failed."""
    samples = [sample for sample, _ in draws if sample is not None]
    failures = {index: reason for _, failed in draws for index, reason in failed.items()}
    if not samples:
        return None, failures
    alike = len({sample["video"].shape for sample in samples}) == 1
    return dataset.stack(samples) if alike else samples, failures
