"""Features of a frozen backbone on disk.

A directory has ``manifest.json``, which identifies everything that determines the features, and for each split
``index.json``, its clips in stored order, and ``part-000000.safetensors``, … with up to about 256 MiB each:

- ``tokens`` ``[n, V, T', N, C]``, without the repetition over the frames of a tubelet; other requested layers are
  ``tokens.<layer>``,
- ``class_token`` ``[n, V, C]`` and, if the backbone has class or register tokens, ``prefix`` ``[n, V, T', P, C]``,
- ``clip`` ``[n]`` int64, the position of each row in the split's list of clips.

Clips are shuffled once, so that reading a file from its beginning is a fair sample. A part exists only with its
``part-000000.json``, which is written last and has its size and SHA-256.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from art.backbones.base import Features
from art.data.files import PARTIAL, WriteError, file_sha256, read_json_mapping, write_text
from art.terminal import plural, short_repr

MANIFEST = "manifest.json"
CONFIG = "config.yaml"  # the configuration of the extraction, to build the backbone again
FORMAT = 1
PART_BYTES = 256 * 2**20
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
#: Largest magnitude that is stored in float16; its largest finite number is 65,504.
FLOAT16_LIMIT = 6e4


_REQUIRED = ("backbone", "shape", "layers", "splits", "class_names", "groups", "dataset", "dtype", "views")


class FeatureError(ValueError):
    """A feature directory is damaged, unfinished, or of another format; the message names the file."""


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json``, or check that the existing one is equal, see :func:`check_manifest`."""
    if (directory / MANIFEST).is_file():
        check_manifest(directory, manifest)
    else:
        write_text(directory / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def check_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Raise FeatureError, which names the differing fields, if the directory has features with another manifest."""
    former, manifest = _fields(read_manifest(directory)), _fields(manifest)
    differing = sorted(name for name in {*former, *manifest} if former.get(name) != manifest.get(name))
    if differing:
        changes = "; ".join(
            f"{name} was {short_repr(former.get(name))}, is {short_repr(manifest.get(name))}" for name in differing
        )
        raise FeatureError(f"{directory} has other features: {changes}; choose another directory, or remove it")


def _fields(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that determine the features, those of a mapping by names such as ``splits.train.clips``."""
    fields: dict[str, Any] = {}
    for name, value in manifest.items():
        if name == "versions":  # may differ when an extraction is resumed
            continue
        if isinstance(value, Mapping):
            fields |= {f"{name}.{inner}": each for inner, each in _fields(value).items()}
        else:
            fields[name] = value
    return fields


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read ``manifest.json``.

    Raises:
        FileNotFoundError: If the directory has no manifest.
        DamagedFile: If it cannot be read.
        FeatureError: If it is of another format.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a directory written by art extract")
    manifest = read_json_mapping(path)
    if manifest.get("format") != FORMAT:
        raise FeatureError(f"{path} has format {manifest.get('format')!r}; this version reads {FORMAT}")
    missing = [name for name in _REQUIRED if name not in manifest]
    if missing or "framewise" not in manifest["backbone"]:
        lacks = ", ".join(missing) or "backbone.framewise"
        raise FeatureError(f"{path} lacks {lacks}: it is damaged or of an earlier version; run art extract again")
    return manifest


def part_path(directory: Path, split: str, number: int) -> Path:
    """Return the path of a part."""
    return directory / split / f"part-{number:06d}.safetensors"


def save_part(path: Path, tensors: Mapping[str, Tensor], errors: Mapping[int, str]) -> dict[str, Any]:
    """Write the tensors of a part under a temporary name; :func:`finish_part` makes it valid.

    Args:
        path: of the part.
        tensors: see the top of this module.
        errors: why clips of this part have no row, by their position in the split's list of clips.

    Returns:
        The rows of the part, for :func:`finish_part`.

    Raises:
        WriteError: If the file cannot be written, for example because the disk is full.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        partial.chmod(path.parent.stat().st_mode & 0o666)  # safetensors writes for one user
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise WriteError(f"{path} cannot be written ({error}); finished parts are kept") from error
    return {"clips": tensors["clip"].tolist(), "errors": {str(clip): why for clip, why in errors.items()}}


def finish_part(path: Path, rows: Mapping[str, Any]) -> None:
    """Rename what :func:`save_part` wrote, then write the file with its size and SHA-256, which makes it valid."""
    partial = path.with_name(path.name + PARTIAL)
    record = {"bytes": partial.stat().st_size, "sha256": file_sha256(partial), **rows}
    partial.replace(path)
    write_text(path.with_suffix(".json"), json.dumps(record) + "\n")


def remove_partial(directory: Path, splits: Iterable[str]) -> None:
    """Remove what a killed extraction left incomplete: files that it, or safetensors, was writing."""
    for split in splits:
        for pattern in (f"*{PARTIAL}", ".tmp*"):
            for path in (directory / split).glob(pattern):
                path.unlink()


def write_index(directory: Path, split: str, rows: Sequence[Mapping[str, Any]], num_parts: int) -> dict[int, str]:
    """Write ``index.json`` of a split once all parts exist, and return why clips have no features, by their position.

    Args:
        directory: of the features.
        split: name of the split.
        rows: path, start, end, label and, if the dataset has groups, group of each clip.
        num_parts: number of parts.
    """
    places: dict[int, dict[str, int]] = {}
    errors: dict[int, str] = {}
    for number in range(num_parts):
        record = read_json_mapping(part_path(directory, split, number).with_suffix(".json"))
        places |= {clip: {"part": number, "row": row} for row, clip in enumerate(record["clips"])}
        errors |= {int(clip): reason for clip, reason in record["errors"].items()}
    index = [
        {**row, **places.get(clip, {}), **({"error": errors[clip]} if clip in errors else {})}
        for clip, row in enumerate(rows)
    ]
    write_text(directory / split / "index.json", json.dumps({"clips": index}, ensure_ascii=False) + "\n")
    return errors


def check_range(name: str, largest: Float[Tensor, " n"], dtype: torch.dtype, clips: Sequence[str]) -> None:
    """Raise FeatureError, which names the clip, if a tensor does not fit its dtype.

    Args:
        name: of the tensor.
        largest: the largest magnitude of each clip, before the conversion.
        dtype: in which it is stored.
        clips: names of the clips.
    """
    limit = FLOAT16_LIMIT if dtype == torch.float16 else torch.finfo(dtype).max
    for clip, value in zip(clips, largest.tolist(), strict=True):
        if not math.isfinite(value):
            raise FeatureError(f"{name} of clip {clip} is not finite: check the weights of the backbone")
        if value > limit:
            raise FeatureError(
                f"{name} of clip {clip} reaches {value:.3g}, and {str(dtype).removeprefix('torch.')} ends at "
                f"{torch.finfo(dtype).max:.3g}; use --dtype bfloat16"
            )


def is_complete(path: Path) -> bool:
    """Return whether a part was written completely and still has its size; does not read it."""
    record = path.with_suffix(".json")
    return record.is_file() and path.is_file() and read_json_mapping(record).get("bytes") == path.stat().st_size


def read_part(path: Path, *, verify: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a part.

    Args:
        path: of the part.
        verify: also compare the SHA-256.

    Raises:
        FeatureError: If the part is missing, incomplete or damaged.
    """
    if not is_complete(path):
        raise FeatureError(f"{path} is missing or incomplete; run art extract again, which writes what is missing")
    if verify and file_sha256(path) != read_json_mapping(path.with_suffix(".json"))["sha256"]:
        raise FeatureError(f"{path} is damaged: its SHA-256 differs; remove it and run art extract again")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise FeatureError(f"{path} is damaged ({error}); remove it and run art extract again") from error


@dataclass(frozen=True)
class FeatureBatch:
    """Features of B clips.

    Attributes:
        features: in float32; ``tokens`` ``[B, T', N, C]``.
        labels: ``[B]``.
        clips: ``[B]``, positions in the split's list of clips.
    """

    features: Features
    labels: Int64[Tensor, " b"]
    clips: Int64[Tensor, " b"]


class FeatureSplit:
    """The features of one split.

    Attributes:
        manifest: of the directory.
        paths: ``[n]``, the clips, relative to the root of the dataset.
        groups: ``[n]``, clips of the same group, such as a person, are never divided between training and test. Without
            groups in the dataset, clips of the same file.
        labels: ``[n]``.
        spans: ``[n]``, start and end of each clip in its file, in seconds; None is the beginning or the end.
        errors: why a clip has no features, by its position.

    Args:
        directory: written by ``art extract``.
        split: name of the split.
        layers: whose tokens are concatenated along the token axis of each time step: "last", and those that were
            stored additionally.
        cache_bytes: parts are kept in memory, in the stored dtype, if the whole split is at most this large.

    Raises:
        FileNotFoundError: If there are no features.
        FeatureError: If the extraction is unfinished.
        ValueError: If a layer was not stored.
    """

    def __init__(
        self, directory: Path, split: str, *, layers: Sequence[str] = ("last",), cache_bytes: int = 4 * 2**30
    ) -> None:
        self.manifest, self.directory, self.split = read_manifest(directory), directory, split
        self._tensors, self._layers = _tensor_names(directory, self.manifest, layers), layers
        height, width = self.manifest["shape"]["grid"]
        self._grid = (height, width)
        splits = sorted(self.manifest["splits"])
        if split not in splits:
            raise FileNotFoundError(f"{directory} has no features of split {split!r}; it has {', '.join(splits)}")
        index = directory / split / "index.json"
        if not index.is_file():
            raise FeatureError(f"{index} does not exist: the extraction is unfinished; run art extract again")
        try:
            rows = read_json_mapping(index)["clips"]
            self.paths = [row["path"] for row in rows]
            self.groups = [row.get("group") or row["path"] for row in rows]
            self.labels = torch.tensor([row["label"] for row in rows], dtype=torch.int64)
            self.spans = [(row["start"], row["end"]) for row in rows]
            self.errors = {number: row["error"] for number, row in enumerate(rows) if row.get("error")}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FeatureError(f"{index} is damaged ({error!r}); run art extract again") from error
        classes = len(self.manifest["class_names"])
        if len(rows) != self.manifest["splits"][split]["clips"] or not 0 <= int(self.labels.max()) < classes:
            raise FeatureError(f"{index} is damaged: its clips are not those of the manifest; run art extract again")
        self._parts = [part_path(directory, split, number) for number in range(self.manifest["splits"][split]["parts"])]
        for path in self._parts:
            if not is_complete(path):
                raise FeatureError(f"{path} is missing or incomplete; run art extract again")
        self.num_bytes = sum(path.stat().st_size for path in self._parts)
        self._cache: dict[int, dict[str, Tensor]] | None = {} if self.num_bytes <= cache_bytes else None

    def __len__(self) -> int:
        """Number of clips with features."""
        return len(self.paths) - len(self.errors)

    def batches(
        self,
        batch_size: int,
        *,
        generator: torch.Generator | None = None,
        subset: Tensor | None = None,
    ) -> Iterator[FeatureBatch]:
        """Iterate over the clips once, one part at a time; the next part is read in the background.

        Args:
            batch_size: clips per batch; the last batch of a part may be smaller.
            generator: shuffles the parts, and the clips of each, and chooses a view of each clip. None: stored order
                and the first view.
            subset: ``[n]`` bool, which clips of the list to return; None: all.
        """
        order = list(range(len(self._parts)))
        if generator is not None:
            order = torch.randperm(len(order), generator=generator).tolist()
        for part in _prefetch(order, self._load):
            clips = part["clip"]
            rows = torch.arange(len(clips)) if subset is None else subset[clips].nonzero()[:, 0]
            if generator is not None:
                rows = rows[torch.randperm(len(rows), generator=generator)]
            for chosen in rows.split(batch_size):
                if len(chosen):
                    yield self._batch(part, chosen, generator)

    def _batch(self, part: Mapping[str, Tensor], rows: Tensor, generator: torch.Generator | None) -> FeatureBatch:
        views = part["class_token"].shape[1]
        view = torch.zeros(len(rows), dtype=torch.int64)
        if generator is not None and views > 1:
            view = torch.randint(views, (len(rows),), generator=generator)
        flat = rows * views + view  # index_select is faster than indexing with two tensors
        names = ["class_token", *self._tensors]
        named = {name: part[name].flatten(0, 1).index_select(0, flat).float() for name in names}
        clips = part["clip"][rows]
        return FeatureBatch(Features.from_named(named, self._grid, self._layers), self.labels[clips], clips)

    def _load(self, number: int) -> dict[str, Tensor]:
        if self._cache is None:
            return read_part(self._parts[number])
        if number not in self._cache:
            self._cache[number] = read_part(self._parts[number])
        return self._cache[number]


def shape_of(manifest: Mapping[str, Any], layers: Sequence[str]) -> tuple[int, tuple[int, int], int]:
    """Return time steps, grid and channels of features with these layers, whose grids are below each other."""
    shape = manifest["shape"]
    height, width = shape["grid"]
    return shape["num_steps"], (len(layers) * height, width), shape["channels"]


def _tensor_names(directory: Path, manifest: Mapping[str, Any], layers: Sequence[str]) -> list[str]:
    stored = {"last": "tokens", **{str(layer): f"tokens.{layer}" for layer in manifest["layers"]}}
    for layer in layers:
        if layer not in stored:
            raise ValueError(
                f"layers: {directory} has no layer {layer!r}; expected some of {', '.join(stored)}, or run art extract "
                "--layers"
            )
    return [stored[layer] for layer in layers]


class JoinedFeatures:
    """The clips of several splits of a directory in one list, with the interface of :class:`FeatureSplit`.

    Args:
        splits: of the same directory.
    """

    def __init__(self, splits: Sequence[FeatureSplit]) -> None:
        self.splits, self.manifest = splits, splits[0].manifest
        self.paths = [path for split in splits for path in split.paths]
        self.groups = [group for split in splits for group in split.groups]
        self.labels = torch.cat([split.labels for split in splits])
        self.num_bytes = sum(split.num_bytes for split in splits)
        starts = np.cumsum([0, *(len(split.paths) for split in splits)]).tolist()
        self.missing = [start + clip for start, split in zip(starts, splits, strict=False) for clip in split.errors]

    def __len__(self) -> int:
        """Number of clips with features."""
        return sum(map(len, self.splits))

    def batches(
        self, batch_size: int, *, generator: torch.Generator | None = None, subset: Tensor | None = None
    ) -> Iterator[FeatureBatch]:
        """Iterate over the clips of one split after the other; see :meth:`FeatureSplit.batches`."""
        start = 0
        for split in self.splits:
            own = None if subset is None else subset[start : start + len(split.paths)]
            for batch in split.batches(batch_size, generator=generator, subset=own):
                yield replace(batch, clips=batch.clips + start)
            start += len(split.paths)


def _prefetch(numbers: Sequence[int], load: Callable[[int], dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yield ``load(number)`` of each number, and load the next one in a thread meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = [pool.submit(load, number) for number in numbers[:1]]
        for position in range(len(numbers)):
            part = coming.pop().result()
            coming += [pool.submit(load, number) for number in numbers[position + 1 : position + 2]]
            yield part


def verify(directory: Path) -> int:
    """Compare the checksum of every part, and return the number of parts.

    Raises:
        FeatureError: A part is missing or damaged.
    """
    count = 0
    for split, facts in read_manifest(directory)["splits"].items():
        for number in range(facts["parts"]):
            read_part(part_path(directory, split, number), verify=True)
            count += 1
    return count


def describe(directory: Path) -> str:
    """Return a text with the origin of the features, their sizes, and statistics of the first part of each split."""
    manifest = read_manifest(directory)
    backbone, shape = manifest["backbone"], manifest["shape"]
    lines = [
        f"backbone   {backbone['name']}, weights {backbone['pretrained'] or 'random'}, license "
        f"{backbone['license'] or 'unknown'}, SHA-256 {backbone['sha256'][:12]}",
        f"tokens     {shape['num_steps']} time steps of {shape['grid'][0]}×{shape['grid'][1]}, "
        f"{shape['channels']} channels, {manifest['dtype']}, {plural(manifest['views'], 'view')}",
    ]
    for split, facts in manifest["splits"].items():
        features = FeatureSplit(directory, split, cache_bytes=0)
        lines.append(
            f"{split:<10} {plural(len(features), 'clip')} in {plural(facts['parts'], 'file')}, "
            f"{features.num_bytes / 2**20:.1f} MiB"
            + (f", {plural(len(features.errors), 'clip')} failed" if features.errors else "")
        )
        for name, tensor in read_part(part_path(directory, split, 0)).items():
            if tensor.is_floating_point() and len(tensor):
                values = tensor.float()
                per_channel = values.abs().flatten(0, -2).amax(0)
                ratio = float(per_channel.max() / per_channel.median().clamp(min=1e-9))
                lines.append(
                    f"  {name:<14} mean {values.mean():+.3f}, std {values.std():.3f}, largest {per_channel.max():.3g}, "
                    f"largest channel {ratio:.1f} × the median"
                )
    return "\n".join(lines)
