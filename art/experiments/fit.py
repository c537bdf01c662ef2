"""``art fit``: a classifier of your own clips from a frozen backbone, with an estimate of its accuracy.

If the clips have no test split, accuracy is estimated by cross-validation: each fold is predicted by heads that were
selected and trained on the other folds only. The saved model is trained on all clips, in the same way.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from art.data.dataset import seeded_generator
from art.data.datasets.base import suggest
from art.data.datasets.directories import group_of, lacks_split_directories
from art.data.datasets.splits import SPLITS, units_of_clips
from art.data.features import FeatureSplit, JoinedFeatures
from art.data.files import check_writable, write_text
from art.eval.evaluate import FIT
from art.eval.metrics import Evaluation, compute_metrics
from art.eval.report.report import wilson_interval, write_report
from art.experiments.probe import frozen_model, save_run, train_heads
from art.experiments.probe_training import VARIANTS, ProbeSettings, holdout_mask, predict
from art.heads import head_names
from art.terminal import Progress, plural
from art.tools.extract import ExtractSettings, extract
from art.train.batches import open_split
from art.train.config import Config, load_config, with_values
from art.train.runtime import provenance, resolve_device

#: Heads of which one is selected on held-out clips, and their settings, for few clips.
DEFAULTS = ProbeSettings(heads=("mean", "ep"), lrs=(1e-3, 3e-3, 1e-2), seeds=1, batch_size=32)
_MAX_PAIRS = 5


@dataclass(frozen=True)
class Fitted:
    """Result of :func:`fit_directory`.

    Attributes:
        evaluation: predictions for clips that the predicting head was not trained on.
        interval: Wilson's 95 % interval of the top-1 accuracy; too narrow if clips are similar to each other.
        folds: number of folds of the cross-validation; 0 if the clips have a test split.
        head: name of the head in the saved model.
        lr: its learning rate.
        epochs: its number of epochs.
        seconds: by stage, in the order of the stages.
    """

    evaluation: Evaluation
    interval: tuple[float, float]
    folds: int
    head: str
    lr: float
    epochs: int
    seconds: Mapping[str, float]


def configure(root: Path, backbone: str, pretrained: str | None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration for clips in class directories."""
    config = load_config(None, [f"model.backbone={backbone}", "data.flip=0", *overrides])
    values: dict[str, Any] = {"data.name": "folder", "data.root": str(root)}
    if pretrained is not None:
        values["model.pretrained"] = pretrained
    return with_values(config, values, "art fit")


def fit_directory(config: Config, out: Path, settings: ProbeSettings, *, folds: int | None = None) -> Fitted:
    """Extract features, estimate the accuracy, train on all clips, and save a run directory.

    Writes ``features/``, ``fit.json``, ``report.html``, ``config.yaml`` and ``checkpoints/last``.

    Args:
        config: ``data``, class directories, and ``model``, the backbone, are used.
        out: output directory.
        settings: how heads are trained; one of ``settings.heads`` is selected on held-out clips.
        folds: of the cross-validation, at least 2. Default: 5 if there is no test split and at most 50 clips per class;
            otherwise the test split, or a fifth of the clips, is tested, and not used for training.

    Raises:
        ValueError: a head is unknown, a class has too few clips or groups, or ``folds`` is out of range; raised before
            the extraction.
    """
    check_writable(out, "out")
    for layer in settings.layers:
        if layer != "last" and not layer.removeprefix("-").isdigit():
            raise ValueError(f"layers: got {layer!r}, expected 'last' or numbers of blocks, such as last,-2")
    for name in settings.heads:
        if VARIANTS.get(name, (name,))[0] not in head_names():
            raise ValueError(f"heads: {name!r} is unknown{suggest(name, sorted({*head_names(), *VARIANTS}))}")
    features, device = out / "features", resolve_device(settings.device)
    listed = list_clips(config)
    fold_of, folds = plan_folds(listed, folds, settings)
    seconds: dict[str, float] = {}
    with _timed(seconds, "extraction"):
        layers = tuple(int(layer) for layer in settings.layers if layer != "last")
        extract(ExtractSettings(config, _splits(config), layers), features, devices=[str(device)])
    splits = [FeatureSplit(features, split, layers=settings.layers) for split in _splits(config)]
    clips, manifest = JoinedFeatures(splits), splits[0].manifest
    fold_of[clips.missing] = MISSING
    _check_readable(clips, fold_of)
    model = frozen_model(config, manifest)
    with _timed(seconds, "estimate of the accuracy"):
        evaluation = cross_validate(clips, fold_of, settings, device)
    with _timed(seconds, "training on all clips" if folds else "training"):
        used = fold_of != MISSING if folds else fold_of == TRAIN_ONLY
        trained = train_heads(clips, settings, used, device)
    head = max(trained.final, key=lambda each: trained.selected[each.name].rank)
    # Frames are not resized by the decoder, as in art predict; evaluation of files of several sizes needs it.
    if config.data.frame_size is None:
        config = with_values(config, {"data.frame_size": model.input_size}, "art fit")
    save_run(model, head.head, head.name, settings, manifest, config, out)
    interval = wilson_interval(evaluation.top1, evaluation.total)
    fitted = Fitted(evaluation, interval, folds, head.name, head.lr, head.epochs, seconds)
    _write(fitted, clips, config, settings, out)
    return fitted


#: Folds of clips that are never tested: without features, and only trained on.
MISSING, TRAIN_ONLY = -2, -1
_FEW = 50  # clips per class


def _check_readable(clips: JoinedFeatures, fold_of: Int64[Tensor, " n"]) -> None:
    """Raise ValueError if a class has fewer than two clips with features."""
    for label, name in enumerate(clips.manifest["class_names"]):
        own = (clips.labels == label) & (fold_of != MISSING)
        if int(own.sum()) < 2:
            total = int((clips.labels == label).sum())
            raise ValueError(
                f"{clips.manifest['dataset']['root']}: only {int(own.sum())} of {plural(total, 'clip')} of {name!r} "
                "can be read; repair or replace them (art prepare lists the reasons)"
            )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - begun


def _splits(config: Config) -> tuple[str, str]:
    return config.data.train_split, config.data.test_split


class ClipList(NamedTuple):
    """The clips of all splits in one list.

    Attributes:
        paths: relative to ``root``.
        labels: of the clips.
        groups: of the clips; a clip without a group is its own.
        class_names: in label order.
        root: of the dataset.
        num_test: number of clips of the test split, which are the last ones.
        generated: whether the split was generated.
    """

    paths: list[str]
    labels: list[int]
    groups: list[str]
    class_names: Sequence[str]
    root: Path
    num_test: int = 0
    generated: bool = True


def list_clips(config: Config) -> ClipList:
    """List the clips of class directories."""
    root = Path(config.data.root)
    sets = [open_split(config.data, split) for split in _splits(config)]
    paths = [each.relative_path(i) for each in sets for i in range(len(each))]
    labels = [clip.label for each in sets for clip in each.clips]
    generated = lacks_split_directories(root) and not (root / SPLITS).is_file()
    groups = [group_of(path) or path for path in paths]
    return ClipList(paths, labels, groups, sets[0].class_names, root, len(sets[1]), generated)


def plan_folds(clips: ClipList, folds: int | None, settings: ProbeSettings) -> tuple[Int64[Tensor, " n"], int]:
    """Return the fold in which each clip is tested, and the number of folds, 0 for a test split.

    Args:
        clips: of all splits.
        folds: see :func:`fit_directory`.
        settings: of the training.

    Raises:
        ValueError: ``folds`` is out of range, or the training clips of a fold are too few to hold some out.
    """
    units = len(units_of_clips(clips.paths, clips.labels, clips.groups))
    if folds is not None and not 2 <= folds <= units:
        raise ValueError(f"folds: got {folds}, expected 2 to {units}, the number of clips, or of groups of clips")
    if folds is None and clips.generated and len(clips.paths) <= _FEW * len(clips.class_names):
        folds = min(5, units)
    labels = torch.tensor(clips.labels)
    if folds is not None:
        fold_of = assign_folds(clips, folds, settings.seed)
    else:
        fold_of = torch.full((len(labels),), TRAIN_ONLY)
        fold_of[len(labels) - clips.num_test :] = 0
    for fold in range(int(fold_of.max()) + 1):
        numbers = (fold_of != fold).nonzero()[:, 0]
        groups = [clips.groups[number] for number in numbers.tolist()]
        holdout_mask(labels[numbers], groups, settings.holdout, settings.seed)
    return fold_of, folds or 0


def assign_folds(clips: ClipList, folds: int, seed: int) -> Int64[Tensor, " n"]:
    """Assign clips to folds of about equal size in each class; clips of a group are in the same fold.

    Raises:
        ValueError: A class has a single clip or group, so that its test fold would leave no training clips.
    """
    labels = torch.tensor(clips.labels)
    units = list(units_of_clips(clips.paths, clips.labels, clips.groups).values())
    classes: list[set[int]] = [set() for _ in clips.class_names]
    for number, unit in enumerate(units):
        for clip in unit:
            classes[clips.labels[clip]].add(number)
    for name, own in zip(clips.class_names, classes, strict=True):
        if len(own) < 2:
            raise ValueError(
                f"{clips.root}: class {name!r} has {plural(len(own), 'clip')}, or only clips of one group "
                "(subdirectory); cross-validation needs at least 2 per class, and 5 or more to be useful: add clips, "
                "or remove the class"
            )
    sizes = torch.zeros(folds, len(classes))
    fold_of = torch.full((len(labels),), TRAIN_ONLY)
    order = torch.randperm(len(units), generator=seeded_generator(seed)).tolist()
    for number in sorted(order, key=lambda each: -len(units[each])):  # the largest groups first
        members = torch.tensor(units[number])
        counts = torch.bincount(labels[members], minlength=len(classes)).float()
        fold = int((sizes @ counts + 1e-3 * sizes.sum(1)).argmin())
        fold_of[members] = fold
        sizes[fold] += counts
    return fold_of


def cross_validate(
    clips: JoinedFeatures, fold_of: Int64[Tensor, " n"], settings: ProbeSettings, device: torch.device
) -> Evaluation:
    """Predict the clips of each fold with heads that were selected and trained on the other clips."""
    probabilities: list[Tensor] = []
    numbers: list[Tensor] = []
    folds = range(int(fold_of.max()) + 1)
    with Progress("cross-validate", len(folds), "fold") as bar:
        for fold in folds:
            tested = fold_of == fold
            if not bool(tested.any()):  # none of its clips has features
                bar.update()
                continue
            trained = train_heads(clips, settings, (fold_of != MISSING) & ~tested, device)
            best = max(trained.selected, key=lambda name: trained.selected[name].rank)
            chosen = [each for each in trained.final if each.name == best]
            outputs = predict(chosen, clips, settings, device, tested)
            probabilities.append(torch.stack([logits.softmax(1) for logits, _ in outputs]).mean(0))
            numbers.append(torch.cat([batch.clips for batch in clips.batches(settings.batch_size, subset=tested)]))
            bar.update()
    indices = torch.cat(numbers)
    order = indices.argsort()
    return compute_metrics(
        torch.cat(probabilities)[order].numpy(), clips.labels[indices[order]].numpy(), indices[order].numpy(),
        clips.manifest["class_names"], groups=clips.manifest["groups"],
    )  # fmt: skip


def _write(fitted: Fitted, clips: JoinedFeatures, config: Config, settings: ProbeSettings, out: Path) -> None:
    evaluation = fitted.evaluation
    content = {
        "top1": evaluation.top1,
        "interval": fitted.interval,
        "mean_class_accuracy": evaluation.mean_class_accuracy,
        "largest_class": float(evaluation.confusion.sum(1).max() / evaluation.total),
        "clips": evaluation.total,
        "folds": fitted.folds,
        "head": {"name": fitted.head, "lr": fitted.lr, "epochs": fitted.epochs},
        "class_names": list(evaluation.class_names),
        "confusion": evaluation.confusion.tolist(),
        "seconds": fitted.seconds,
        "predictions": [
            {"path": clips.paths[index], "label": int(label), "probabilities": row.tolist()}
            for index, label, row in zip(
                evaluation.indices.tolist(), evaluation.labels, evaluation.probabilities, strict=True
            )
        ],
        "settings": asdict(settings),
        "provenance": provenance(),
    }
    write_text(out / FIT, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_report(
        out,
        title=f"Clips of {Path(config.data.root).name}, {config.model.backbone} frozen",
        history=(),
        evaluation=evaluation,
        class_names=evaluation.class_names,
        samples=(),
        summary={
            "estimate": f"{fitted.folds}-fold cross-validation" if fitted.folds else "test split",
            "95 % interval": " to ".join(f"{100 * bound:.1f}" for bound in fitted.interval) + " %",
            "saved head": fitted.head,
            "data": config.data.root,
            **{name: value for name, value in provenance().items() if name in ("torch", "date")},
        },
    )


def to_text(fitted: Fitted) -> str:
    """Format the estimate and the most frequent confusions for a terminal."""
    e = fitted.evaluation
    low, high = (100 * bound for bound in fitted.interval)
    how = f"{fitted.folds}-fold cross-validation" if fitted.folds else "the test split"
    lines = [
        f"accuracy {100 * e.top1:.1f} % ({low:.0f} to {high:.0f} %, 95 % interval), {e.correct_top1} of "
        f"{plural(e.total, 'clip')}, by {how}",
        f"mean over classes {100 * e.mean_class_accuracy:.1f} %; always the largest class: "
        f"{100 * e.confusion.sum(1).max() / e.total:.1f} %",
        f"saved head: {fitted.head}, learning rate {fitted.lr:g}, {plural(fitted.epochs, 'epoch')}",
        ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in fitted.seconds.items()),
    ]
    wrong = e.confusion - np.diag(np.diag(e.confusion))
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:_MAX_PAIRS]:
        true, predicted = np.unravel_index(flat, wrong.shape)
        if count := int(wrong[true, predicted]):
            names = (repr(e.class_names[label]) for label in (true, predicted))
            lines.append(f"  {plural(count, 'clip')} of " + " predicted as ".join(names))
    return "\n".join(lines)
