"""``art extract``: the features of a frozen backbone for every clip of a dataset, written once."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from art.backbones.base import Backbone
from art.data.dataset import ClipDataset, DataError, seeded_generator
from art.data.datasets.base import ClipSet
from art.data.features import (
    DTYPES,
    FORMAT,
    PART_BYTES,
    is_complete,
    part_path,
    write_index,
    write_manifest,
    write_part,
)
from art.data.files import check_writable
from art.data.loader import dataset_of
from art.data.parallel import Stopped, map_processes, stop_requested, worker_slot
from art.data.shards import ShardSet
from art.data.transforms.augment import CenterCrop, TrainAugment
from art.model.loading import build_model
from art.terminal import Progress
from art.train.batches import open_split
from art.train.config import Config
from art.train.runtime import autocast, provenance, raise_on_sigterm, resolve_device


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
        torch.manual_seed(config.seed)  # of a backbone without pretrained weights
        model = build_model("backbone", class_names, options)
        self.backbone: Backbone = model.backbone.eval().requires_grad_(False).to(self.device)
        self.crop: CenterCrop = model.center_crop
        self.num_frames = options.num_frames
        self.views = {split: _ClipViews(self, clip_set) for split, clip_set in self.clip_sets.items()}
        with torch.inference_mode():
            size = self.backbone.input_size
            blank = torch.zeros(1, self.num_frames, 3, size, size, dtype=torch.uint8, device=self.device)
            self.grid = self.backbone(blank).grid
            named = self.backbone.named_features(blank, settings.layers)
        self.tensors = {name: tensor[0] for name, tensor in named.items()}
        self.seconds = {"decode": 0.0, "forward": 0.0, "write": 0.0}

    @property
    def clip_bytes(self) -> int:
        """Bytes per clip on disk."""
        numbers = sum(tensor.numel() for tensor in self.tensors.values())
        return self.settings.views * numbers * DTYPES[self.settings.dtype].itemsize

    def extract(self, split: str, clips: Sequence[int]) -> tuple[dict[str, Tensor], dict[int, str]]:
        """Return the tensors of a part, and why clips are missing from it, by their position in the list of clips."""
        settings, dtype = self.settings, DTYPES[self.settings.dtype]
        per_batch = max(1, settings.config.optim.batch_size // settings.views)
        workers = min(settings.config.data.workers, -(-len(clips) // per_batch))
        chosen = Subset(self.views[split], clips)
        loader: DataLoader[Any] = DataLoader(chosen, batch_size=per_batch, num_workers=workers, collate_fn=list)
        shapes = {name: (settings.views, *tensor.shape) for name, tensor in self.tensors.items()}
        rows: dict[str, list[Tensor]] = {name: [] for name in shapes}
        stored, errors = [], {}
        for start, loaded in zip(range(0, len(clips), per_batch), self._timed(loader, "decode"), strict=True):
            if stop_requested():
                raise Stopped
            videos = []
            for clip, video in zip(clips[start : start + per_batch], loaded, strict=True):
                if isinstance(video, str):
                    errors[clip] = video
                else:
                    stored.append(clip)
                    videos.append(video)
            if videos:
                begun = time.perf_counter()
                for name, tensor in self._forward(torch.stack(videos)).items():
                    rows[name].append(tensor.to(dtype))
                self.seconds["forward"] += time.perf_counter() - begun
        tensors = {
            name: torch.cat(parts) if parts else torch.empty(0, *shapes[name], dtype=dtype)
            for name, parts in rows.items()
        }
        return {**tensors, "clip": torch.tensor(stored, dtype=torch.int64)}, errors

    def _forward(self, videos: UInt8[Tensor, "b v t 3 s s"]) -> dict[str, Tensor]:
        flat, limit, layers = videos.flatten(0, 1), self.settings.config.optim.batch_size, self.settings.layers
        parts: dict[str, list[Tensor]] = {}
        with torch.inference_mode(), autocast(self.device, self.settings.config.precision):
            for batch in flat.split(limit):
                for name, tensor in self.backbone.named_features(batch.to(self.device), layers).items():
                    parts.setdefault(name, []).append(tensor.float().cpu())
        return {name: torch.cat(tensors).unflatten(0, videos.shape[:2]) for name, tensors in parts.items()}

    def _timed(self, loader: DataLoader[Any], name: str) -> Iterator[Any]:
        batches = iter(loader)
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            self.seconds[name] += time.perf_counter() - begun
            if batch is None:
                return
            yield batch


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


@dataclass(frozen=True)
class Plan:
    """Size and duration of an extraction.

    Attributes:
        clips: number of clips.
        tokens: per clip and view.
        clip_bytes: bytes per clip.
        free_bytes: free space on the disk.
        seconds: estimated duration on one device, from a few clips; None if it was not measured.
    """

    clips: int
    tokens: int
    clip_bytes: int
    free_bytes: int
    seconds: float | None = None

    @property
    def total_bytes(self) -> int:
        """Bytes of all clips."""
        return self.clips * self.clip_bytes


def plan(extractor: Extractor, out: Path, measured_clips: int = 0) -> Plan:
    """Return size and, if ``measured_clips`` is above 0, duration of an extraction, by extracting some clips."""
    clips = sum(len(clip_set) for clip_set in extractor.clip_sets.values())
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    steps, tokens = extractor.tensors["tokens"].shape[:2]
    seconds = None
    if measured_clips:
        split = extractor.settings.splits[0]
        chosen = list(range(min(measured_clips, len(extractor.clip_sets[split]))))
        begun = time.perf_counter()
        extractor.extract(split, chosen)
        seconds = (time.perf_counter() - begun) / len(chosen) * clips
    return Plan(clips, steps * tokens, extractor.clip_bytes, shutil.disk_usage(existing).free, seconds)


@dataclass(frozen=True)
class Extracted:
    """What an extraction wrote.

    Attributes:
        clips: clips with features.
        errors: clips that could not be read.
        parts: number of files.
        kept: number of files that already existed.
        seconds: time of this process by stage ("decode", "forward", "write") if one device was used, else empty.
    """

    clips: int
    errors: int
    parts: int
    kept: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Part:
    settings: ExtractSettings
    split: str
    clips: tuple[int, ...]
    path: Path


def extract(settings: ExtractSettings, out: Path, *, devices: Sequence[str] = ("auto",)) -> Extracted:
    """Write the features of all clips to a directory; existing parts are kept. See :mod:`art.data.features`.

    Args:
        settings: what to extract.
        out: a directory that is new, empty, or from a call with the same settings.
        devices: one process per entry extracts; a single one extracts in this process.

    Raises:
        FeatureError: the directory has other features, or a value does not fit the dtype.
        ValueError: the disk is too small; raised before any work.
        DataError: too many clips cannot be read.
        Interrupted: on SIGTERM; finished parts are kept.
    """
    check_writable(out, "out")
    extractor = _extractor(settings, devices[0])
    planned = plan(extractor, out)
    parts = list(_parts(extractor, out))
    missing = [part for part in parts if not is_complete(part.path)]
    needed = sum(len(part.clips) for part in missing) * planned.clip_bytes
    if needed > planned.free_bytes:
        raise ValueError(
            f"out: {out} needs {needed / 2**30:.1f} GiB, but the disk has {planned.free_bytes / 2**30:.1f} GiB free; "
            "use another disk, fewer frames or views, or a backbone with fewer tokens"
        )
    write_manifest(out, _manifest(extractor, parts))
    workers = min(len(devices), len(missing))
    if workers > 1:  # each process loads the backbone
        extractor.backbone.cpu()
    with raise_on_sigterm(), Progress("extract", len(missing), "part") as bar:
        if missing:
            with closing(map_processes(_extract_part, missing, workers, devices[:workers])) as done:
                for _ in done:
                    bar.update()
    errors = 0
    for split, clip_set in extractor.clip_sets.items():
        rows = [
            {"path": clip_set.relative_path(number), "start": clip.start, "end": clip.end, "label": clip.label}
            for number, clip in enumerate(clip_set)
        ]
        failed = write_index(out, split, rows, sum(part.split == split for part in parts))
        _check_failures(clip_set, failed, settings.config.data.max_failed_fraction)
        errors += len(failed)
    seconds = dict(extractor.seconds) if workers <= 1 else {}
    return Extracted(planned.clips - errors, errors, len(parts), len(parts) - len(missing), seconds)


def _check_failures(clip_set: ClipSet, failed: Mapping[int, str], limit: float) -> None:
    if len(failed) > limit * len(clip_set):
        clip, reason = next(iter(failed.items()))
        raise DataError(
            f"{clip_set.name}/{clip_set.split}: {len(failed)} of {len(clip_set)} clips cannot be read, more than "
            f"data.max_failed_fraction={limit:g} allows; the first is {clip_set.clips[clip]}: {reason}"
        )


def _parts(extractor: Extractor, out: Path) -> Iterator[_Part]:
    """Divide the clips of each split, in random order, into files. Shards were shuffled when they were written."""
    settings = extractor.settings
    for split, clip_set in extractor.clip_sets.items():
        order = list(range(len(clip_set)))
        if not isinstance(clip_set, ShardSet):
            order = torch.randperm(len(order), generator=seeded_generator(settings.config.seed)).tolist()
        size = max(1, PART_BYTES // extractor.clip_bytes)
        for number, start in enumerate(range(0, len(order), size)):
            yield _Part(settings, split, tuple(order[start : start + size]), part_path(out, split, number))


def _extract_part(part: _Part) -> None:
    """Extract and write one part, in a worker process if there are several; the backbone is kept between parts."""
    extractor = _extractor(part.settings, worker_slot())
    tensors, errors = extractor.extract(part.split, part.clips)
    begun = time.perf_counter()
    write_part(part.path, tensors, errors)
    extractor.seconds["write"] += time.perf_counter() - begun


_extractors: dict[tuple[str, str], Extractor] = {}  # the last one of this process


def _extractor(settings: ExtractSettings, device: str) -> Extractor:
    key = (json.dumps(asdict(settings), sort_keys=True, default=str), device)
    if key not in _extractors:
        _extractors.clear()
        _extractors[key] = Extractor(settings, device)
    return _extractors[key]


def _manifest(extractor: Extractor, parts: Sequence[_Part]) -> dict[str, Any]:
    """Return everything that determines the features, and where they come from."""
    settings, backbone = extractor.settings, extractor.backbone
    config, options = settings.config, settings.config.model
    first = extractor.clip_sets[settings.splits[0]]
    tokens = extractor.tensors["tokens"]
    return {
        "format": FORMAT,
        "backbone": {
            "name": options.backbone, "options": options.backbone_options, "pretrained": options.pretrained,
            "sha256": _digest_of(backbone), "license": backbone.license, "framewise": backbone.framewise,
        },
        "num_frames": options.num_frames,
        "sampling": asdict(config.data.frame_sampling),
        "input_size": backbone.input_size,
        "test_crop": options.test_crop,
        "frame_size": config.data.frame_size,
        "precision": config.precision,
        "shape": {"num_steps": tokens.shape[0], "grid": list(extractor.grid), "channels": tokens.shape[2]},
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
                "sha256": _digest_of_clips(clip_set),
                "parts": sum(part.split == split for part in parts),
            }
            for split, clip_set in extractor.clip_sets.items()
        },
        "versions": provenance(),
    }  # fmt: skip


def _digest_of(backbone: Backbone) -> str:
    digest = hashlib.sha256()
    for name, tensor in backbone.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest_of_clips(clip_set: ClipSet) -> str:
    lines = (f"{clip_set.relative_path(i)} {clip.start} {clip.end} {clip.label}\n" for i, clip in enumerate(clip_set))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
