"""Training and evaluation batches, and the metrics of a batch. Batches depend only on the seed, epoch and index."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor

from art.data.datasets.base import ClipSet, open_dataset
from art.data.datasets.directories import GeneratedSplit, lacks_split_directories, open_directory, split_directory
from art.data.datasets.splits import GENERATED_SPLITS, SPLITS, check_splits, write_splits
from art.data.loader import build_loader, dataset_of
from art.data.transforms.augment import PairMix, TrainAugment
from art.data.transforms.rand_augment import RandAugment
from art.eval.metrics import ClassMismatch, check_same_classes
from art.model.pretrained import VideoClassifier
from art.terminal import plural
from art.train.config import ConfigError, DataConfig, OptimConfig
from art.train.distributed import DistContext
from art.train.runtime import fork_rng

#: Datasets of a user's own clips, whose splits may overlap.
_OWN_CLIPS = ("folder", "csv", "list")

_log = logging.getLogger(__name__)
_FEW_STEPS = 100  # batch statistics and weights of a new model are far from converged


@dataclass(frozen=True)
class Batch:
    """Clips of a dataset, or several views of each clip.

    Attributes:
        video: [B, T, 3, H, W], uint8 or float32 in 0..1.
        labels: [B] int64; for a mixed clip, its most probable class.
        indices: [B] int64 indices in the dataset, on the CPU.
        draws: [B, D] float32 random numbers for the augmentation of each clip, on the CPU; None after augmentation.
        soft_labels: [B, Y] float32 class probabilities of mixed clips; None if clips are not mixed.
    """

    video: Shaped[Tensor, "b t 3 h w"]
    labels: Int64[Tensor, " b"]
    indices: Int64[Tensor, " b"]
    draws: Float32[Tensor, "b d"] | None = None
    soft_labels: Float32[Tensor, "b y"] | None = None

    @property
    def targets(self) -> Tensor:
        """The targets of the loss: class probabilities of mixed clips, else labels."""
        return self.labels if self.soft_labels is None else self.soft_labels

    def split(self, size: int) -> list[Batch]:
        """Split the batch into microbatches of ``size`` clips; the last may be smaller."""
        values = [getattr(self, attribute.name) for attribute in fields(self)]
        return [
            Batch(*(None if value is None else value[start : start + size] for value in values))  # type: ignore[arg-type]
            for start in range(0, len(self.labels), size)
        ]


def open_split(data: DataConfig, split: str, run: Path | None = None) -> ClipSet:
    """Open a split of the configured dataset. ``run`` is the run directory that may contain the generated split
    for class directories; None makes it again."""
    if data.name == "folder":
        return open_directory(Path(data.root), split, **_split_options(data, run))
    return open_dataset(data.name, data.root, split)


def _split_options(data: DataConfig, run: Path | None) -> dict[str, Any]:
    table = None if run is None else run / SPLITS
    return {"table": table, "seed": data.split_seed, "test_fraction": data.test_fraction}


@dataclass(frozen=True)
class Splits:
    """The splits of a run, which have the same classes.

    Attributes:
        train: the clips for training.
        test: the clips of the reported accuracy.
        validation: the clips that select the best checkpoint, or None.
        generated: the generated split for class directories, or None.
    """

    train: ClipSet
    test: ClipSet
    validation: ClipSet | None
    generated: GeneratedSplit | None = None

    @classmethod
    def open(cls, data: DataConfig, run: Path | None = None) -> Splits:
        """Open all splits. ``run`` is the directory of a run that is resumed.

        Raises:
            ClassMismatch: the classes of a split differ from those of the training split.
            ConfigError: two splits are the same.
        """
        generated = _generated_split(data, run)
        opened = {} if generated is None else {clips.split: clips for clips in generated.clip_sets}
        train, test = (opened.get(name) or open_split(data, name, run) for name in (data.train_split, data.test_split))
        validation = open_split(data, data.validation_split, run) if data.validation_split is not None else None
        if validation is not None and validation.split == test.split and data.validation_split != data.test_split:
            raise ConfigError(
                f"data.test_split: {data.root} has no split {data.test_split!r}, and {test.split!r} is already "
                "data.validation_split; expected another split, or data.validation_split=null"
            )
        for other in (test, validation):
            if other is not None and other.class_names != train.class_names:
                raise ClassMismatch(
                    f"data: split {other.split!r} has the classes {', '.join(other.class_names)}; "
                    f"split {train.split!r} has {', '.join(train.class_names)}; expected the same"
                )
        return cls(train, test, validation, generated)

    def all(self) -> list[ClipSet]:
        """Return every split once."""
        splits = [self.train, self.test, *([] if self.validation is None else [self.validation])]
        return list({clip_set.split: clip_set for clip_set in splits}.values())

    def problems(self) -> list[str]:
        """Return warnings about the splits of a user's clips: how they were generated, and clips in two of them."""
        others = [clips for clips in (self.test, self.validation) if clips is not None]
        notes = [] if self.generated is None else self.generated.notes
        if self.train.name in _OWN_CLIPS:
            notes = [*notes, *(problem for other in others for problem in check_splits(self.train, other))]
        return list(dict.fromkeys(notes))

    def save(self, run: Path) -> None:
        """Save the generated split, if any, to a run directory."""
        if self.generated is not None and not (run / SPLITS).exists():
            write_splits(run / SPLITS, self.generated.splits)


def _generated_split(data: DataConfig, run: Path | None) -> GeneratedSplit | None:
    root = Path(data.root)
    if (
        data.name != "folder"
        or data.train_split not in GENERATED_SPLITS
        or not root.is_dir()
        or not lacks_split_directories(root)
    ):
        return None
    return split_directory(root, **_split_options(data, run))


class TrainingBatches:
    """Augmented batches of the training split.

    Each rank loads its part of every batch. On one kind of device, clips are bitwise identical for any number of ranks
    and workers. An incomplete last batch is dropped (batch norm needs large batches) unless it is the only one: our
    reading.

    Args:
        clip_set: the training split.
        data: decoding and augmentation.
        optim: ``batch_size`` and ``accumulate``.
        model: the model, for the number and size of frames and its sampling.
        device: device of the augmentation.
        seed: seed of frame sampling and augmentation.
        dist_ctx: the ranks; None: this process only.

    Attributes:
        microbatch_size: clips per forward pass on this rank.

    Raises:
        ConfigError: the clips of a batch cannot be divided among the ranks.
    """

    def __init__(
        self,
        clip_set: ClipSet,
        data: DataConfig,
        optim: OptimConfig,
        model: VideoClassifier,
        device: torch.device,
        *,
        seed: int = 0,
        dist_ctx: DistContext | None = None,
    ) -> None:
        dist_ctx = dist_ctx or DistContext(device)
        self._augment = TrainAugment(
            model.input_size,
            scale=data.crop_scale,
            aspect=data.crop_aspect,
            flip=data.flip,
            mirror=clip_set.mirror,
            brightness=data.brightness,
            contrast=data.contrast,
            saturation=data.saturation,
            hue=data.hue,
            permute_channels=data.permute_channels,
            rand_augment=RandAugment(data.rand_augment, data.rand_magnitude) if data.rand_augment else None,
        )
        self._mix = (
            PairMix(len(clip_set.class_names), mixup=data.mixup, cutmix=data.cutmix, probability=data.mix_probability)
            if data.mixes
            else None
        )
        draws = self._augment.num_draws + (0 if self._mix is None else self._mix.num_draws)
        size, world_size = optim.batch_size, dist_ctx.world_size
        clips = min(size, len(clip_set))
        multiple = world_size * (1 if self._mix is None else 2)
        if dist_ctx.is_distributed and clips % multiple:
            pairs = "" if self._mix is None else ", and data.mixup and data.cutmix need pairs"
            raise ConfigError(
                f"optim.batch_size: a step has {clips} clips for {world_size} ranks, expected a multiple of {multiple} "
                f"(it is the number of clips over all ranks, which must be equal on each rank{pairs})"
            )
        self._loader = _loader(
            clip_set, data, model, dist_ctx, -(-size // world_size), drop_last=len(clip_set) >= size,
            train=True, seed=seed, draws=draws,
        )  # fmt: skip
        self._num_batches = len(self._loader)
        steps = optim.epochs * self._num_batches
        if steps < _FEW_STEPS and dist_ctx.is_main:
            _log.warning(
                "optim.epochs: %s of %s in batches of %d are only %s, too few to train a "
                "new model; expected some hundreds, for example with more epochs or a smaller optim.batch_size",
                plural(optim.epochs, "epoch"), plural(len(clip_set), "clip"), size, plural(steps, "optimizer step"),
            )  # fmt: skip
        self._device = device
        self.microbatch_size = max(1, size // world_size // optim.accumulate)

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return self._num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield decoded batches on the CPU from index ``start``; does not advance the global random generators."""
        self._loader.set_epoch(epoch, skip=start)
        batches = iter(self._loader)
        with fork_rng():  # DataLoader draws a seed for its workers, in some epochs only
            loaded = next(batches, None)
        while loaded is not None:
            yield Batch(loaded["video"], loaded["label"], loaded["index"], loaded["draws"])
            loaded = next(batches, None)

    def prepare(self, batch: Batch) -> Batch:
        """Move the batch to the device as uint8 and augment it at the model's input size.

        A flipped clip gets the label of its mirrored class; mixed clips get ``soft_labels``.
        """
        assert batch.draws is not None  # set by epoch()
        draws, pair_draws = batch.draws.split(
            [self._augment.num_draws, batch.draws.shape[1] - self._augment.num_draws], 1
        )
        video, labels = self._augment(*_to_device(batch, self._device), draws)
        if self._mix is None:
            return Batch(video, labels, batch.indices)
        video, soft_labels = self._mix(video, labels, pair_draws)
        return Batch(video, soft_labels.argmax(1), batch.indices, soft_labels=soft_labels)


class EvaluationBatches:
    """Clips of a split in order, on the device: each in ``data.test_views`` · ``data.test_crops`` consecutive views.

    With one view, frames are centered in time and center-cropped. Each rank has a part of the clips.

    Args:
        clip_set: the split.
        data: decoding and views.
        optim: ``batch_size`` and ``accumulate`` limit the number of clips per forward pass.
        model: the model, for the number and size of frames and its sampling.
        device: device of the batches.
        single_view: use one view regardless of ``data``.
        dist_ctx: the ranks; None: this process only.

    Attributes:
        groups: ``groups`` of the dataset.
        views: views per clip.

    Raises:
        ClassMismatch: the split and the model have different classes; raised before any clip is read.
    """

    def __init__(
        self,
        clip_set: ClipSet,
        data: DataConfig,
        optim: OptimConfig,
        model: VideoClassifier,
        device: torch.device,
        *,
        single_view: bool = False,
        dist_ctx: DistContext | None = None,
    ) -> None:
        dist_ctx = dist_ctx or DistContext(device)
        check_same_classes(model.class_names, clip_set.class_names)
        views, crops = (1, 1) if single_view else (data.test_views, data.test_crops)
        self.groups = clip_set.groups
        self.views = views * crops
        self._size = max(1, optim.batch_size // dist_ctx.world_size // optim.accumulate)
        clips = max(1, self._size // self.views)
        self._loader = _loader(clip_set, data, model, dist_ctx, clips, train=False, views=views, crops=crops)
        self._crop = model.center_crop
        self._device = device

    def __iter__(self) -> Iterator[Batch]:
        for loaded in self._loader:
            views = loaded["video"].unflatten(1, (self.views, -1)).flatten(0, 1)
            labels, indices = (loaded[name].repeat_interleave(self.views) for name in ("label", "index"))
            for batch in Batch(views, labels, indices).split(self._size):  # one clip may have more views than fit
                video, labels = _to_device(batch, self._device)
                yield Batch(self._crop(video), labels, batch.indices)


def _loader(
    clip_set: ClipSet,
    data: DataConfig,
    model: VideoClassifier,
    dist_ctx: DistContext,
    batch_size: int,
    *,
    drop_last: bool = False,
    **dataset_options: Any,
) -> Any:
    dataset = dataset_of(clip_set)(
        clip_set,
        model.num_frames,
        frame_size=data.frame_size,
        sampling=model.sampling,
        cache=data.cache,
        max_failed_fraction=data.max_failed_fraction,
        decoder=data.decoder,
        **dataset_options,
    )
    return build_loader(
        dataset,
        batch_size,
        workers=dist_ctx.num_workers(data.workers),
        drop_last=drop_last,
        pin_memory=dist_ctx.device.type == "cuda",
        rank=dist_ctx.rank,
        world_size=dist_ctx.world_size,
    )


def _to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    return batch.video.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of a step over all ranks.

    Attributes:
        losses: mean of each loss term over the clips, as "loss/<term>".
        correct: correctly classified clips.
        clips: number of clips.
        non_finite_clips: dataset indices of this rank's clips in microbatches with a non-finite term.
    """

    losses: dict[str, float]
    correct: int
    clips: int
    non_finite_clips: list[int]


class MicrobatchMetrics:
    """Collects the metrics of the microbatches of a step, detached, on the device."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._rows: list[Float[Tensor, " n"]] = []
        self._latents: list[Float[Tensor, "b d"]] = []
        self._labels: list[Int64[Tensor, " b"]] = []
        self._indices: list[list[int]] = []

    def add(self, terms: Mapping[str, Tensor], outputs: Mapping[str, Tensor], microbatch: Batch) -> None:
        """Add the loss terms (means over the clips) and outputs of :class:`art.train.parallel.ModelWithLoss`."""
        self._names = tuple(terms)
        correct = (outputs["logits"].argmax(1) == microbatch.labels).sum()
        self._rows.append(torch.stack([*(term.detach().float() for term in terms.values()), correct.float()]))
        if "video_latent" in outputs:
            self._latents.append(outputs["video_latent"].detach())
        self._labels.append(microbatch.labels)
        self._indices.append(microbatch.indices.tolist())

    @property
    def labels(self) -> Int64[Tensor, " b"]:
        """Labels of this rank's clips."""
        return torch.cat(self._labels)

    @property
    def video_latent(self) -> Float[Tensor, "b d"]:
        """x_cls of this rank's clips in the space of the semantics; kind "art" only."""
        return torch.cat(self._latents)

    def reduce(self, dist_ctx: DistContext) -> StepMetrics:
        """Reduce over microbatches and ranks, which have equal numbers of clips. A collective operation."""
        own = torch.stack(self._rows)  # [microbatches, terms + 1]
        own_rows, summed_rows = torch.stack([own, dist_ctx.all_reduce(own)]).tolist()  # one device-to-host copy
        sizes = [len(indices) for indices in self._indices]
        clips = sum(sizes)
        losses = {
            f"loss/{name}": sum(size / clips * row[i] for size, row in zip(sizes, summed_rows, strict=True))
            / dist_ctx.world_size
            for i, name in enumerate(self._names)
        }
        non_finite = [
            index
            for indices, row in zip(self._indices, own_rows, strict=True)
            if not all(map(math.isfinite, row))
            for index in indices
        ]
        correct = int(sum(row[-1] for row in summed_rows))
        return StepMetrics(losses, correct, clips * dist_ctx.world_size, non_finite)
