"""Data: which clips there are, their frames, and what becomes of them on the way to the model."""

from .augment import CentreCrop, TrainAugment
from .clips import Clip, ClipSet
from .dataset import ClipDataset, DataError, build_loader
from .mix import PairMix
from .rand_augment import RandAugment
from .registry import RequiredFile, dataset_names, dataset_splits, open_dataset, register_dataset, required_files
from .sampling import FrameSampling
from .video import VideoError, frame_times, read_clip, read_frames

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
