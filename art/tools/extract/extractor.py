"""The features of a frozen backbone for the clips of a dataset, and what identifies them."""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from art.backbones.base import Backbone
from art.data.dataset import ClipDataset
from art.data.datasets.base import ClipSet
from art.data.features import DTYPES, FORMAT, check_range
from art.data.loader import dataset_of
from art.data.parallel import Stopped, stop_requested
from art.data.transforms.augment import CenterCrop, TrainAugment
from art.model.files import state_sha256
from art.model.loading import build_model
from art.train.batches import open_split
from art.train.config import Config
from art.train.runtime import autocast, provenance, resolve_device

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractSettings:
    """What to extract.

    Attributes:
        config: ``data``, ``model``, ``precision``, ``seed`` and ``optim.batch_size`` (views per forward pass) are used.
        splits: names of the splits.
        layers: further layers whose tokens are stored, see :meth:`art.backbones.Backbone.named_features`.
        views: views per clip: the first is that of evaluation, further ones are augmented as in training.
        dtype: of the stored features: "float16", "bfloat16" or "float32".

    Raises:
        ValueError: a value is out of range.
    """

    config: Config
    splits: tuple[str, ...] = ("train", "test")
    layers: tuple[int, ...] = ()
    views: int = 1
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ValueError(f"views: got {self.views}, expected at least 1")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: got {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if not self.splits or len(set(self.splits)) != len(self.splits):
            raise ValueError(f"splits: got {', '.join(self.splits) or 'none'}, expected different names, at least one")


class Extractor:
    """A frozen backbone on one device, and the clips of the splits.

    Args:
        settings: what to extract.
        device: "auto", "cpu", "cuda", …
    """

    def __init__(self, settings: ExtractSettings, device: str) -> None:
        self.settings, self.device = settings, resolve_device(device)
        config, options = settings.config, settings.config.model
        self.clip_sets = {split: open_split(config.data, split) for split in settings.splits}
        class_names = self.clip_sets[settings.splits[0]].class_names
        if options.pretrained is None:
            _log.warning("model.pretrained is null: the features are those of a backbone with random weights")
        torch.manual_seed(config.seed)  # of a backbone without pretrained weights
        model = build_model("backbone", class_names, options)
        self.backbone: Backbone = model.backbone.eval().requires_grad_(False).to(self.device)
        self.crop: CenterCrop = model.center_crop
        self.num_frames = options.num_frames
        self.views = {split: _ClipViews(self, clip_set) for split, clip_set in self.clip_sets.items()}
        with torch.inference_mode():
            size = self.backbone.input_size
            blank = torch.zeros(1, self.num_frames, 3, size, size, dtype=torch.uint8, device=self.device)
            named = self.backbone.named_features(blank, settings.layers)
        self.tensors = {name: tensor[0] for name, tensor in named.items()}
        self.seconds = {"decode": 0.0, "forward": 0.0}  # spent so far

    @property
    def clip_bytes(self) -> int:
        """Bytes per clip on disk."""
        numbers = sum(tensor.numel() for tensor in self.tensors.values())
        return self.settings.views * numbers * DTYPES[self.settings.dtype].itemsize

    def extract(self, split: str, clips: Sequence[int]) -> tuple[dict[str, Tensor], dict[int, str]]:
        """Return the tensors of a part, and why clips are missing from it, by their position in the list of clips.

        Raises:
            FeatureError: a value is not finite, or does not fit the dtype.
        """
        settings = self.settings
        per_batch = max(1, settings.config.optim.batch_size // settings.views)
        workers = min(settings.config.data.workers, -(-len(clips) // per_batch))
        chosen = Subset(self.views[split], clips)
        batches = iter(DataLoader(chosen, batch_size=per_batch, num_workers=workers, collate_fn=list))
        rows = {
            name: torch.empty(len(clips), settings.views, *tensor.shape, dtype=DTYPES[settings.dtype])
            for name, tensor in self.tensors.items()
        }
        stored: list[int] = []
        errors: dict[int, str] = {}
        for start in range(0, len(clips), per_batch):
            if stop_requested():
                raise Stopped
            begun = time.perf_counter()
            loaded = dict(zip(clips[start : start + per_batch], next(batches), strict=True))
            decoded = time.perf_counter()
            errors |= {clip: video for clip, video in loaded.items() if isinstance(video, str)}
            read = {clip: video for clip, video in loaded.items() if clip not in errors}
            if read:
                names = [f"{clip} ({self.clip_sets[split].relative_path(clip)})" for clip in read]
                for name, tensor in self._forward(torch.stack(list(read.values())), names).items():
                    rows[name][len(stored) : len(stored) + len(read)] = tensor
                stored += read
            self.seconds["decode"] += decoded - begun
            self.seconds["forward"] += time.perf_counter() - decoded
        tensors = {name: tensor[: len(stored)] for name, tensor in rows.items()}
        return {**tensors, "clip": torch.tensor(stored, dtype=torch.int64)}, errors

    def _forward(self, videos: UInt8[Tensor, "b v t 3 s s"], clips: Sequence[str]) -> dict[str, Tensor]:
        """Return the features in the stored dtype, on the CPU; ``clips`` are names for error messages."""
        dtype, precision = DTYPES[self.settings.dtype], self.settings.config.precision
        parts: dict[str, list[Tensor]] = {}
        largest: dict[str, list[Float[Tensor, " m"]]] = {}
        with torch.inference_mode():
            for batch in videos.flatten(0, 1).split(self.settings.config.optim.batch_size):
                with autocast(self.device, precision):
                    named = self.backbone.named_features(batch.to(self.device), self.settings.layers)
                for name, tensor in named.items():
                    maximum = torch.linalg.vector_norm(tensor.flatten(1).float(), math.inf, dim=1)
                    largest.setdefault(name, []).append(maximum.cpu())
                    parts.setdefault(name, []).append(tensor.to(dtype).cpu())
        for name, maxima in largest.items():
            check_range(name, torch.cat(maxima).unflatten(0, videos.shape[:2]).amax(1), dtype, clips)
        return {name: torch.cat(tensors).unflatten(0, videos.shape[:2]) for name, tensors in parts.items()}


class _ClipViews(Dataset[Any]):
    """The views of each clip of a split, ``[V, T, 3, S, S]`` uint8, or the reason why it cannot be read."""

    def __init__(self, extractor: Extractor, clip_set: ClipSet) -> None:
        settings = extractor.settings
        data = settings.config.data
        self._crop, self._views = extractor.crop, settings.views
        options: dict[str, Any] = {
            "frame_size": data.frame_size, "sampling": data.frame_sampling, "decoder": data.decoder,
            "max_failed_fraction": 1.0,
        }  # fmt: skip
        make = functools.partial(dataset_of(clip_set), clip_set, extractor.num_frames, **options)
        self._plain: ClipDataset = make(train=False)
        self._augment = TrainAugment(
            extractor.backbone.input_size, scale=data.crop_scale, aspect=data.crop_aspect, flip=0.0, dtype=torch.uint8
        )
        seed, draws = settings.config.seed, self._augment.num_draws
        self._random: ClipDataset | None = make(train=True, seed=seed, draws=draws) if settings.views > 1 else None

    def __len__(self) -> int:
        return len(self._plain)

    def __getitem__(self, index: int) -> UInt8[Tensor, "v t 3 s s"] | str:
        sample, failures = self._plain.load(0, index)
        if sample is None:
            return failures[index]
        views = [self._crop(sample["video"][None])[0]]
        for view in range(1, self._views):
            assert self._random is not None
            sample, failures = self._random.load(view, index)
            if sample is None or failures:
                return failures[index]
            labels = torch.tensor([sample["label"]])
            views.append(self._augment(sample["video"][None], labels, sample["draws"][None])[0][0])
        return torch.stack(views)


def make_manifest(extractor: Extractor, num_parts: Mapping[str, int]) -> dict[str, Any]:
    """Return everything that determines the features, and where they come from.

    Args:
        extractor: of the features.
        num_parts: number of files of each split.
    """
    settings, backbone = extractor.settings, extractor.backbone
    config, options = settings.config, settings.config.model
    first = extractor.clip_sets[settings.splits[0]]
    tokens = extractor.tensors["tokens"]
    return {
        "format": FORMAT,
        "backbone": {
            "name": options.backbone, "options": options.backbone_options, "pretrained": options.pretrained,
            "sha256": state_sha256(backbone), "license": backbone.license, "framewise": backbone.framewise,
            "mean": _color(backbone, "image_mean"), "std": _color(backbone, "image_std"),
        },
        "num_frames": options.num_frames,
        "sampling": asdict(config.data.frame_sampling),
        "segments": 1,
        "decoder": config.data.decoder,
        "input_size": backbone.input_size,
        "test_crop": options.test_crop,
        "frame_size": config.data.frame_size,
        "precision": config.precision,
        "shape": {"num_steps": tokens.shape[0], "grid": list(extractor.backbone.grid), "channels": tokens.shape[2]},
        "prefix_tokens": extractor.tensors["prefix"].shape[1] if "prefix" in extractor.tensors else 0,
        "layers": list(settings.layers),
        "tensors": {name: list(tensor.shape) for name, tensor in extractor.tensors.items()},
        "dtype": settings.dtype,
        "views": settings.views,
        "augment": {"scale": list(config.data.crop_scale), "aspect": list(config.data.crop_aspect)},
        "seed": config.seed,
        "dataset": {"name": config.data.name, "root": str(Path(config.data.root).absolute())},
        "class_names": list(first.class_names),
        "prompts": list(first.prompts),
        "groups": list(first.groups),
        "splits": {
            split: {
                "clips": len(clip_set),
                "sha256": _clips_sha256(clip_set),
                "parts": num_parts[split],
            }
            for split, clip_set in extractor.clip_sets.items()
        },
        "versions": {**provenance(), **_library_versions()},
    }  # fmt: skip


def _color(backbone: Backbone, name: str) -> list[float] | None:
    """Return a constant of the color normalization; None if the backbone does not have it."""
    values = getattr(backbone, name, None)
    return None if values is None else [round(value, 6) for value in values.flatten().tolist()]


def _library_versions() -> dict[str, str]:
    """Return the versions of loaded libraries that read clips or have the backbone."""
    names = ("av", "torchcodec", "timm", "transformers", "open_clip")
    # ``packages_distributions`` would read the list of files of every installed package, which takes seconds.
    return {name: version("open_clip_torch" if name == "open_clip" else name) for name in names if name in sys.modules}


def _clips_sha256(clip_set: ClipSet) -> str:
    lines = (f"{clip_set.relative_path(i)} {clip.start} {clip.end} {clip.label}\n" for i, clip in enumerate(clip_set))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
