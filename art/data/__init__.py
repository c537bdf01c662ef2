"""Data: which clips there are, their frames, and what becomes of them on the way to the model."""

from art.data.datasets.clips import Clip, ClipSet
from art.data.datasets.registry import (
    RequiredFile,
    dataset_names,
    dataset_splits,
    open_dataset,
    register_dataset,
    required_files,
)
from art.data.decoding.video import VideoError, frame_times, read_clip, read_frames
from art.data.loading.dataset import ClipDataset, DataError, build_loader
from art.data.transforms.augment import CentreCrop, TrainAugment
from art.data.transforms.mix import PairMix
from art.data.transforms.rand_augment import RandAugment
from art.data.transforms.sampling import FrameSampling

__all__ = [
    "CentreCrop",
    "Clip",
    "ClipDataset",
    "ClipSet",
    "DataError",
    "FrameSampling",
    "PairMix",
    "RandAugment",
    "RequiredFile",
    "TrainAugment",
    "VideoError",
    "build_loader",
    "dataset_names",
    "dataset_splits",
    "frame_times",
    "open_dataset",
    "read_clip",
    "read_frames",
    "register_dataset",
    "required_files",
]
