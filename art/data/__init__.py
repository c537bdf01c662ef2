"""Datasets, decoding, sampling, augmentation, and batches of video clips."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from art._deprecated import renamed_names

if TYPE_CHECKING:
    from art.data.dataset import ClipDataset, DataError
    from art.data.datasets.base import (
        Clip,
        ClipSet,
        RequiredFile,
        dataset_names,
        dataset_splits,
        open_dataset,
        register_dataset,
        required_files,
    )
    from art.data.decoding.video import VideoError, frame_times, read_clip, read_frames
    from art.data.loader import build_loader
    from art.data.transforms.augment import CenterCrop, PairMix, TrainAugment
    from art.data.transforms.rand_augment import RandAugment
    from art.data.transforms.sampling import FrameSampling

__all__ = [
    "CenterCrop", "Clip", "ClipDataset", "ClipSet", "DataError", "FrameSampling", "PairMix", "RandAugment",
    "RequiredFile", "TrainAugment", "VideoError", "build_loader", "dataset_names", "dataset_splits", "frame_times",
    "open_dataset", "read_clip", "read_frames", "register_dataset", "required_files",
]  # fmt: skip

#: The module of each public name, imported when the name is first used.
_LAZY_EXPORTS = {
    **dict.fromkeys(("Clip", "ClipSet", "RequiredFile", "dataset_names", "dataset_splits"), "datasets.base"),
    **dict.fromkeys(("open_dataset", "register_dataset", "required_files"), "datasets.base"),
    **dict.fromkeys(("VideoError", "frame_times", "read_clip", "read_frames"), "decoding.video"),
    **dict.fromkeys(("ClipDataset", "DataError"), "dataset"),
    "build_loader": "loader",
    **dict.fromkeys(("CenterCrop", "PairMix", "TrainAugment"), "transforms.augment"),
    "RandAugment": "transforms.rand_augment",
    "FrameSampling": "transforms.sampling",
}
_resolve_old_name = renamed_names(__name__, {"CentreCrop": "CenterCrop"})


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        return _resolve_old_name(name)
    return getattr(importlib.import_module(f"art.data.{_LAZY_EXPORTS[name]}"), name)
