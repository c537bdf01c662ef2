"""Test clips of ``art probe``: their frames, and the predictions and attention maps of all heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from art.data.dataset import ClipDataset
from art.data.datasets.base import Clip, ClipSet, open_dataset
from art.data.features import FeatureBatch, FeatureSplit
from art.data.loader import dataset_of
from art.data.transforms.augment import CenterCrop
from art.data.transforms.sampling import FrameSampling
from art.eval.metrics import Evaluation, compute_metrics
from art.heads import Head, HeadOutput

_BATCH = 32


class ClipUnreadable(RuntimeError):
    """The frames of a clip cannot be read; the message is the reason."""


class ClipFrames:
    """The frames that the features of a split were computed from: those of evaluation, center-cropped.

    Args:
        split: the features; the manifest names dataset, sampling and crop.

    Attributes:
        clip_set: the clips, in the order of the features; None if the dataset is not there any more.
        problem: why there is no dataset; empty if there is one.
    """

    def __init__(self, split: FeatureSplit) -> None:
        manifest = split.manifest
        self.clip_set: ClipSet | None = None
        self.problem = ""
        try:
            self.clip_set = _clips_of(split)
        except (OSError, ValueError) as error:
            self.problem = str(error)
            return
        self._dataset: ClipDataset = dataset_of(self.clip_set)(
            self.clip_set, manifest["num_frames"], train=False, frame_size=manifest["frame_size"],
            sampling=FrameSampling(**manifest["sampling"]), max_failed_fraction=1.0,
        )  # fmt: skip
        self._crop = CenterCrop(manifest["input_size"], fraction=manifest["test_crop"])
        self._numbers = {clip: number for number, clip in enumerate(self.clip_set)}

    def read(self, clip: Clip) -> UInt8[Tensor, "t 3 height width"]:
        """Read a clip of the set.

        Raises:
            ClipUnreadable: the file is missing or damaged.
        """
        number = self._numbers[clip]
        sample, failures = self._dataset.load(0, number)
        if sample is None:
            raise ClipUnreadable(f"{clip.path.name}: {failures[number]}")
        return self._crop(sample["video"][None])[0]


def _clips_of(split: FeatureSplit) -> ClipSet:
    """Return the clips of the features, in their order, without the annotations of the dataset unless it is in shards.

    Raises:
        FileNotFoundError: The directory of the dataset does not exist.
        ValueError: The shards have other clips.
    """
    manifest = split.manifest
    name, root = manifest["dataset"]["name"], Path(manifest["dataset"]["root"])
    if not root.exists():
        raise FileNotFoundError(f"the directory of the dataset, {root}, does not exist")
    if name == "shards":
        found = open_dataset(name, root, split.split)
        if [found.relative_path(number) for number in range(len(found))] != split.paths:
            raise ValueError(f"{root} has other clips than the features")
        return found
    clips = tuple(
        Clip(root / path, label, start, end)
        for path, label, (start, end) in zip(split.paths, split.labels.tolist(), split.spans, strict=True)
    )
    return ClipSet(name, split.split, root, clips, tuple(manifest["class_names"]))


@torch.inference_mode()
def _outputs(
    heads: Mapping[str, Head], split: FeatureSplit, subset: Tensor | None = None, *, return_maps: bool = False
) -> Iterator[tuple[FeatureBatch, dict[str, HeadOutput]]]:
    for batch in split.batches(_BATCH, subset=subset):
        outputs = {}
        for name, head in heads.items():
            device = next(head.parameters()).device
            features = batch.features._replace(
                tokens=batch.features.tokens.to(device), class_token=batch.features.class_token.to(device)
            )
            outputs[name] = head.eval()(features, return_maps=return_maps and head.has_maps)
        yield batch, outputs


def evaluate_heads(heads: Mapping[str, Head], split: FeatureSplit) -> dict[str, Evaluation]:
    """Return the predictions of each head for all clips, with the clips' positions in the list as indices."""
    rows: dict[str, list[Float32[np.ndarray, "b y"]]] = {name: [] for name in heads}
    labels: list[Int64[np.ndarray, " b"]] = []
    clips: list[Int64[np.ndarray, " b"]] = []
    for batch, outputs in _outputs(heads, split):
        labels.append(batch.labels.numpy())
        clips.append(batch.clips.numpy())
        for name, output in outputs.items():
            rows[name].append(output.logits.float().softmax(1).cpu().numpy())
    names, groups = split.manifest["class_names"], split.manifest["groups"]
    expected, numbers = np.concatenate(labels), np.concatenate(clips)
    return {
        name: compute_metrics(np.concatenate(parts), expected, numbers, names, groups=groups)
        for name, parts in rows.items()
    }


@dataclass(frozen=True)
class ProbedClip:
    """A clip with the predictions and maps of all heads.

    Attributes:
        path: relative to the root of the dataset.
        label: the true class.
        frames: ``[T', H, W, 3]``, the middle frame of each time step; None if they cannot be read.
        problem: why there are no frames.
        probabilities: ``[Y]`` by head.
        maps: ``[T', K, h, w]`` by head, for heads that have them; they sum to 1 over T', h and w, and are
            the sum over layers.
    """

    path: str
    label: int
    frames: UInt8[np.ndarray, "t height width 3"] | None
    problem: str
    probabilities: dict[str, Float[np.ndarray, " y"]]
    maps: dict[str, Float[np.ndarray, "t k h w"]] = field(default_factory=dict)


def collect_clips(
    heads: Mapping[str, Head], split: FeatureSplit, numbers: Sequence[int], frames: ClipFrames
) -> list[ProbedClip]:
    """Return clips, by their positions in the list of clips, with frames, predictions and maps."""
    subset = torch.zeros(len(split.paths), dtype=torch.bool)
    subset[list(numbers)] = True
    height = split.manifest["shape"]["grid"][0]
    probabilities: dict[int, dict[str, Float[np.ndarray, " y"]]] = {}
    maps: dict[int, dict[str, Float[np.ndarray, "t k h w"]]] = {}
    for batch, outputs in _outputs(heads, split, subset, return_maps=True):
        for row, number in enumerate(batch.clips.tolist()):
            probabilities[number] = {
                name: out.logits[row].float().softmax(0).cpu().numpy() for name, out in outputs.items()
            }
            maps[number] = {
                # The grids of several layers are below each other.
                name: out.maps[row].float().transpose(0, 1).unflatten(2, (-1, height)).sum(2).cpu().numpy()
                for name, out in outputs.items() if out.maps is not None
            }  # fmt: skip
    clips = []
    for number in numbers:
        pixels, problem = _read(frames, number, split.manifest["shape"]["num_steps"])
        label = int(split.labels[number])
        clips.append(ProbedClip(split.paths[number], label, pixels, problem, probabilities[number], maps[number]))
    return clips


def _read(frames: ClipFrames, number: int, steps: int) -> tuple[UInt8[np.ndarray, "t height width 3"] | None, str]:
    """Return the middle frame of each time step, or why there is none."""
    if frames.clip_set is None:
        return None, frames.problem
    try:
        video = frames.read(frames.clip_set.clips[number])
    except ClipUnreadable as error:
        return None, str(error)
    middle = ((torch.arange(steps) + 0.5) * len(video) / steps).long()
    return video[middle].permute(0, 2, 3, 1).contiguous().numpy(), ""
