"""What a step gives, of each part in which its batch went through the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from art.train.batches import Batch
from art.train.distributed import Ranks


@dataclass(frozen=True)
class StepOutcome:
    """A step in numbers, over all ranks.

    Attributes:
        losses: the mean of each term over the clips, as "loss/<term>".
        correct: how many clips the model had right.
        clips: how many there were.
        suspects: which clips of this rank, as indices into their set, were in parts with a term that is not finite.
    """

    losses: dict[str, float]
    correct: int
    clips: int
    suspects: list[int]


class PartOutcomes:
    """Collects what the parts of a step give, on the device, without what the backward pass needs."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._rows: list[Float[Tensor, " n"]] = []
        self._latents: list[Float[Tensor, "b d"]] = []
        self._labels: list[Int64[Tensor, " b"]] = []
        self._indices: list[list[int]] = []

    def add(self, terms: Mapping[str, Tensor], answers: Mapping[str, Tensor], part: Batch) -> None:
        """Terms by name, each the mean over the clips of the part; answers as of :class:`~.parallel.Objective`."""
        self._names = tuple(terms)
        right = (answers["logits"].argmax(1) == part.labels).sum()
        self._rows.append(torch.stack([*(term.detach().float() for term in terms.values()), right.float()]))
        if "video_latent" in answers:
            self._latents.append(answers["video_latent"].detach())
        self._labels.append(part.labels)
        self._indices.append(part.indices.tolist())

    @property
    def labels(self) -> Int64[Tensor, " b"]:
        """Of this rank's clips."""
        return torch.cat(self._labels)

    @property
    def video_latent(self) -> Float[Tensor, "b d"]:
        """Of this rank's clips, x_cls in the space of the semantics; of kind "art" alone."""
        return torch.cat(self._latents)

    def fetched(self, ranks: Ranks) -> StepOutcome:
        """All of it from the device at once. All ranks call this, with as many clips each."""
        own = torch.stack(self._rows)  # parts × (terms and correct)
        of_rank, of_all = torch.stack([own, ranks.total(own)]).tolist()
        sizes = [len(indices) for indices in self._indices]
        clips = sum(sizes)
        losses = {
            f"loss/{name}": sum(size / clips * part[i] for size, part in zip(sizes, of_all, strict=True))
            / ranks.world_size
            for i, name in enumerate(self._names)
        }
        suspects = [
            index
            for indices, part in zip(self._indices, of_rank, strict=True)
            if not all(map(math.isfinite, part))
            for index in indices
        ]
        correct = sum(part[-1] for part in of_all)
        return StepOutcome(losses, int(correct), clips * ranks.world_size, suspects)
