"""The batches of a run. What a training batch holds depends on the seed, the epoch and its number alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor

from art.data.datasets.clips import ClipSet
from art.data.datasets.registry import open_dataset
from art.data.loading.dataset import build_loader, dataset_of
from art.data.transforms.augment import TrainAugment
from art.data.transforms.mix import PairMix
from art.data.transforms.rand_augment import RandAugment
from art.eval.metrics import ClassMismatch, check_same_classes
from art.model.pretrained import VideoClassifier
from art.train.config import Config, ConfigError
from art.train.distributed import Ranks
from art.train.randomness import untouched_random_state


@dataclass(frozen=True)
class Batch:
    """Some clips of a set, or views of them: then several may be of one clip.

    Attributes:
        video: [B, T, 3, H, W], uint8 or float32 in 0..1.
        labels: [B] int64; of a mixed clip, the class that has most of it.
        indices: [B] int64, which clip of the set each one is; always on the CPU.
        draws: [B, D] float32, the random numbers of each clip before its augmentation; always on the CPU.
        shares: [B, Y] float32, the share of each class in mixed clips; None where none was mixed.
    """

    video: Shaped[Tensor, "b t 3 h w"]
    labels: Int64[Tensor, " b"]
    indices: Int64[Tensor, " b"]
    draws: Float32[Tensor, "b d"] | None = None
    shares: Float32[Tensor, "b y"] | None = None

    @property
    def targets(self) -> Tensor:
        """What the loss is taken of: the labels, or the shares of mixed clips."""
        return self.labels if self.shares is None else self.shares

    def split(self, size: int) -> list[Batch]:
        """In parts of ``size`` clips, of which the last may have fewer."""
        own = [getattr(self, attribute.name) for attribute in fields(self)]
        parts: list[list[Any]] = [
            [None if values is None else values[start : start + size] for values in own]
            for start in range(0, len(self.labels), size)
        ]
        return [Batch(*values) for values in parts]


def open_split(config: Config, split: str) -> ClipSet:
    """One split of the configured data set."""
    return open_dataset(config.data.name, Path(config.data.root), split)


@dataclass(frozen=True)
class Splits:
    """The clip sets of a run, which have the same classes."""

    train: ClipSet
    test: ClipSet
    validation: ClipSet | None

    @classmethod
    def open(cls, config: Config) -> Splits:
        """Opens them all.

        Raises:
            ClassMismatch: if the splits have other classes than the training split.
        """
        data = config.data
        train, test = open_split(config, data.train_split), open_split(config, data.test_split)
        validation = open_split(config, data.validation_split) if data.validation_split is not None else None
        for other in (test, validation):
            if other is not None and other.class_names != train.class_names:
                raise ClassMismatch(
                    f"data: split {other.split!r} has the classes {', '.join(other.class_names)}; "
                    f"split {train.split!r} has {', '.join(train.class_names)}; expected the same"
                )
        return cls(train, test, validation)


class TrainingBatches:
    """The augmented batches of the training split, epoch by epoch.

    Of several ranks each makes its part of every batch; the clips are the same for any number of ranks and workers, bit
    for bit (on one kind of device).

    A last batch that is not full is left out (batch normalisation does not like small batches), unless it is the only
    one: our reading.

    Raises:
        ConfigError: the clips of a batch cannot be divided among the ranks.
    """

    def __init__(
        self,
        clip_set: ClipSet,
        config: Config,
        model: VideoClassifier,
        device: torch.device,
        *,
        ranks: Ranks | None = None,
    ) -> None:
        data, ranks = config.data, ranks or Ranks(device)
        self._augment = _augmentation(clip_set, config, model)
        self._mix = (
            PairMix(len(clip_set.class_names), mixup=data.mixup, cutmix=data.cutmix, probability=data.mix_probability)
            if data.mixes
            else None
        )
        dataset = dataset_of(clip_set)(
            clip_set,
            model.num_frames,
            train=True,
            seed=config.seed,
            frame_size=data.frame_size,
            sampling=model.sampling,
            draws=self._augment.num_draws + (0 if self._mix is None else self._mix.num_draws),
            cache=data.cache,
            max_bad_share=data.max_bad_share,
            decoder=data.decoder,
        )
        size = config.optim.batch_size
        _check_divides(ranks, min(size, len(dataset)), in_pairs=self._mix is not None)
        self._loader = build_loader(
            dataset,
            -(-size // ranks.world_size),
            workers=ranks.workers(data.workers),
            drop_last=len(dataset) >= size,
            pin_memory=device.type == "cuda",
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        self._batches = len(self._loader)
        self._device = device
        #: Clips that go through the model at once.
        self.part_size = max(1, size // ranks.world_size // config.optim.accumulate)

    def __len__(self) -> int:
        """Batches a whole epoch."""
        return self._batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number ``start`` on, decoded, on the CPU; draws from no global generator."""
        self._loader.set_epoch(epoch, skip=start)
        batches = iter(self._loader)
        with untouched_random_state():  # torch draws a seed for the workers from them, for some epochs and not others
            loaded = next(batches, None)
        while loaded is not None:
            yield Batch(loaded["video"], loaded["label"], loaded["index"], loaded["draws"])
            loaded = next(batches, None)

    def prepare(self, batch: Batch) -> Batch:
        """The batch on the device (moved as uint8) and augmented there, at the model's input size; a flipped clip has
        its mirror's label, a mixed one also shares of classes."""
        assert batch.draws is not None  # of `epoch`
        own, of_pair = batch.draws.split([self._augment.num_draws, batch.draws.shape[1] - self._augment.num_draws], 1)
        video, labels = self._augment(*_moved(batch, self._device), own)
        if self._mix is None:
            return Batch(video, labels, batch.indices)
        video, shares = self._mix(video, labels, of_pair)
        return Batch(video, shares.argmax(1), batch.indices, shares=shares)


def _check_divides(ranks: Ranks, clips: int, *, in_pairs: bool) -> None:
    """A mean over the ranks is that over the clips of a batch only where each has as many."""
    parts = ranks.world_size * (2 if in_pairs else 1)
    if ranks.several and clips % parts:
        pairs = ", and data.mixup and data.cutmix need pairs" if in_pairs else ""
        raise ConfigError(
            f"optim.batch_size: a step has {clips} clips for {ranks.world_size} ranks, expected a multiple of {parts}: "
            f"it counts the clips of the whole run, each rank takes as many{pairs}"
        )


def _augmentation(clip_set: ClipSet, config: Config, model: VideoClassifier) -> TrainAugment:
    data = config.data
    return TrainAugment(
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


class EvaluationBatches:
    """The clips of a split in order, on the device: each once, with the frames in the middle and the centre crop, or
    in ``data.test_views`` · ``data.test_crops`` views, which follow each other as if they were clips.

    Of several ranks each has clips of its own.

    Args:
        once: one view, whatever the configuration says.

    Raises:
        ClassMismatch: before anything is read, if the split has other classes than the model.
    """

    def __init__(
        self,
        clip_set: ClipSet,
        config: Config,
        model: VideoClassifier,
        device: torch.device,
        *,
        once: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        ranks = ranks or Ranks(device)
        check_same_classes(model.class_names, clip_set.class_names)
        data = config.data
        dataset = dataset_of(clip_set)(
            clip_set,
            model.num_frames,
            train=False,
            frame_size=data.frame_size,
            sampling=model.sampling,
            views=1 if once else data.test_views,
            crops=1 if once else data.test_crops,
            cache=data.cache,
            max_bad_share=data.max_bad_share,
            decoder=data.decoder,
        )
        self.groups = clip_set.groups
        self.views = dataset.views * dataset.crops
        self._size = max(1, config.optim.batch_size // ranks.world_size // config.optim.accumulate)
        self._loader = build_loader(
            dataset,
            max(1, self._size // self.views),
            workers=ranks.workers(data.workers),
            pin_memory=device.type == "cuda",
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        self._crop = model.centre_crop
        self._device = device

    def __iter__(self) -> Iterator[Batch]:
        for loaded in self._loader:
            views = loaded["video"].unflatten(1, (self.views, -1)).flatten(0, 1)
            labels, indices = (loaded[name].repeat_interleave(self.views) for name in ("label", "index"))
            # A clip of many views may be more than the model takes at once.
            for part in zip(*(values.split(self._size) for values in (views, labels, indices)), strict=True):
                batch = Batch(*part)
                video, own = _moved(batch, self._device)
                yield Batch(self._crop(video), own, batch.indices)


def _moved(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    return batch.video.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
