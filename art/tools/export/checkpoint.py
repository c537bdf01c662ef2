"""From a checkpoint to a file, with clips of its own test split to check it: what ``art export`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from art.data.datasets.registry import open_dataset
from art.data.transforms.shown import ShownViews
from art.eval.evaluate import find_checkpoint
from art.model.pretrained import VideoClassifier, load_model
from art.tools.export.model import CHECKED_BATCHES, Exported, check_export, export_model
from art.tools.predict import find_sources
from art.train.config import load_config
from art.train.run_dir import RunFolder


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    file_format: str,
    *,
    outputs: Sequence[str] = ("logits",),
    clips: Sequence[Path] = (),
) -> Exported:
    """Write a checkpoint as a file that needs nothing of this package; see :func:`art.tools.export.export_model`.

    Args:
        checkpoint: a checkpoint, or the folder of a run, whose last one is meant.
        out: the file.
        file_format: "torch" or "onnx".
        outputs: "logits", and after it some of "class_token" and "maps".
        clips: to check the file with, as ``art predict`` takes them; none: of the test split of the run.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: as in ``export_model``; or there are no clips: the checkpoint lies in no run, or its data is away.
        art.data.decoding.video.VideoError: a clip cannot be read.
    """
    folder = find_checkpoint(checkpoint)
    model = load_model(folder)
    check_export(model, out, file_format, outputs)
    shown = ShownViews(model.num_frames, model.centre_crop, model.sampling)
    places = _given(clips) if clips else _of_run(folder)
    return export_model(model, _read(shown, places, model), out, file_format, outputs=outputs)


def _read(shown: ShownViews, places: Sequence[tuple[Any, ...]], model: VideoClassifier) -> UInt8[Tensor, "n t 3 s s"]:
    return torch.cat([shown(*place) for place in places])


def _given(clips: Sequence[Path]) -> list[tuple[Any, ...]]:
    """Place, start and end of each clip that was named."""
    items = [item for source in find_sources(clips, 512) for item in source.open()]
    for item in items:
        if item.place is None:
            raise ValueError(f"clips: {item.name} {item.problem or 'is missing'}")
    return [(item.place, item.start, item.end) for item in items]


def _of_run(checkpoint: Path) -> list[tuple[Any, ...]]:
    """Place, start and end of some clips, evenly over the test split of the run that a checkpoint lies in."""
    run = RunFolder(checkpoint.parent.parent)
    if checkpoint.parent.name != "checkpoints" or not run.config.is_file():
        raise ValueError(
            f"clips: {checkpoint} lies in no run whose test clips could check the file; name some with --clips"
        )
    data = load_config(run.config, []).data
    try:
        found = open_dataset(data.name, Path(data.root), data.test_split).clips
    except (ValueError, OSError) as error:
        raise ValueError(f"clips: those of the run are not there ({error}); name others with --clips") from error
    count = min(max(CHECKED_BATCHES), len(found))
    chosen = [found[index * len(found) // count] for index in range(count)]
    return [(clip.path, clip.start, clip.end) for clip in chosen]
