"""The batches of a run. What a training batch holds depends on the seed, the epoch and its number alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from art.data.augment import TrainAugment
from art.data.clips import ClipSet
from art.data.dataset import ClipDataset, build_loader
from art.data.registry import open_dataset
from art.pretrained import VideoClassifier

from .config import Config
from .metrics import ClassMismatch, check_same_classes
from .randomness import untouched_random_state


@dataclass(frozen=True)
class Batch:
    """Some clips of a set.

    Attributes:
        video: [B, T, 3, H, W], uint8 or float32 in 0..1.
        labels: [B] int64.
        indices: [B] int64, which clip of the set each one is; always on the CPU.
    """

    video: Shaped[Tensor, "b t 3 h w"]
    labels: Int64[Tensor, " b"]
    indices: Int64[Tensor, " b"]


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

    A last batch that is not full is left out (batch normalisation does not like small batches), unless it is the only
    one: our reading.
    """

    def __init__(self, clip_set: ClipSet, config: Config, model: VideoClassifier, device: torch.device) -> None:
        data = config.data
        dataset = ClipDataset(
            clip_set,
            model.num_frames,
            train=True,
            seed=config.seed,
            frame_size=data.frame_size,
            cache=data.cache,
            max_bad_share=data.max_bad_share,
            decoder=data.decoder,
        )
        size = config.optim.batch_size
        self._loader = build_loader(
            dataset, size, workers=data.workers, drop_last=len(dataset) >= size, pin_memory=device.type == "cuda"
        )
        self._batches = len(self._loader)
        self._augment = TrainAugment(
            model.input_size,
            scale=data.crop_scale,
            flip=data.flip,
            mirror=clip_set.mirror,
            brightness=data.brightness,
            contrast=data.contrast,
            saturation=data.saturation,
            hue=data.hue,
            permute_channels=data.permute_channels,
        )
        self._device = device

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
            yield Batch(loaded["video"], loaded["label"], loaded["index"])
            loaded = next(batches, None)

    def prepare(self, batch: Batch) -> Batch:
        """The batch on the device and augmented, at the model's input size; a flipped clip has its mirror's label."""
        video, labels = self._augment(*_moved(batch, self._device))
        return Batch(video, labels, batch.indices)


class EvaluationBatches:
    """The clips of a split in order, each once, on the device: the centre frame of each segment, the centre crop.

    Raises:
        ClassMismatch: before anything is read, if the split has other classes than the model.
    """

    def __init__(self, clip_set: ClipSet, config: Config, model: VideoClassifier, device: torch.device) -> None:
        check_same_classes(model.class_names, clip_set.class_names)
        data = config.data
        dataset = ClipDataset(
            clip_set,
            model.num_frames,
            train=False,
            frame_size=data.frame_size,
            cache=data.cache,
            max_bad_share=data.max_bad_share,
            decoder=data.decoder,
        )
        pinned = device.type == "cuda"
        self._loader = build_loader(dataset, config.optim.batch_size, workers=data.workers, pin_memory=pinned)
        self._crop = model.centre_crop
        self._device = device

    def __iter__(self) -> Iterator[Batch]:
        for loaded in self._loader:
            batch = Batch(loaded["video"], loaded["label"], loaded["index"])
            video, labels = _moved(batch, self._device)
            yield Batch(self._crop(video), labels, batch.indices)


def _moved(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    return batch.video.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
