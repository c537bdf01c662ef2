"""Accuracy from exact integer counts, its table for the terminal, and similarities in the semantics bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.distributed.tensor import DTensor

from art.data.datasets.annotations import composed
from art.model.files import NonFiniteError
from art.model.semantics import SemanticsBank, cosine
from art.terminal import MAX_COLUMNS, list_names, pad, plural, printable, short_names, shorten, text_columns


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy on the clips of one group of classes. The model chooses among all classes, not only those of the group.

    Attributes:
        name: name of the group.
        classes: number of classes in the group.
        clips: number of clips of these classes.
        correct: clips whose most probable class is the true one.
        mean_class_accuracy: mean accuracy over the classes that have clips, 0 to 1; None if no class has clips.
    """

    name: str
    classes: int
    clips: int
    correct: int
    mean_class_accuracy: float | None

    @property
    def top1(self) -> float | None:
        """Fraction of correct clips, 0 to 1; None without clips."""
        return self.correct / self.clips if self.clips else None


_LEAST_COST = 0.01  # accuracy lost without regions, below which a model does not use them
_LARGEST_CONSTANT = 0.7  # fraction of the maps


@dataclass(frozen=True)
class RegionUse:
    """How much a model depends on its regions, and its maps on the clip.

    Attributes:
        clips: number of clips that were measured.
        top1: accuracy on them.
        top1_zeroed: accuracy with the part of the regions replaced by zeros; None for a model without tracklets.
        top1_shuffled: accuracy with the tracklets of another clip, at random; None for a model without tracklets.
        constant: fraction of the maps' energy Σa² that is in their mean over clips, frames and tracklets.
        within_clip: fraction of the energy that is in the deviation from a clip's mean over its frames.
        query: fraction of the variance of aggregated tracklets that the class of their query explains; None without
            tracklets.
    """

    clips: int
    top1: float
    top1_zeroed: float | None
    top1_shuffled: float | None
    constant: float
    within_clip: float
    query: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, ready for JSON."""
        return asdict(self)

    @property
    def warnings(self) -> list[str]:
        """Why the maps do not show what the prediction is based on; empty if they may."""
        found = []
        if self.top1_zeroed is not None and self.top1 - self.top1_zeroed < _LEAST_COST:
            change = round(100 * (self.top1_zeroed - self.top1), 1) + 0.0  # not -0.0
            found.append(f"without its regions, the accuracy changes by only {change:+.1f} points")
        if self.constant > _LARGEST_CONSTANT:
            found.append(f"{100 * self.constant:.0f} % of the maps is the same for every clip and frame")
        return found

    def to_text(self) -> str:
        """Format everything in a few lines."""
        lines = [f"regions of {self.clips} clips: {100 * self.constant:.0f} % of the maps is constant, "
                 f"{100 * self.within_clip:.0f} % varies within a clip"]  # fmt: skip
        if self.top1_zeroed is not None and self.top1_shuffled is not None and self.query is not None:
            lines.append(
                f"accuracy {100 * self.top1:.1f} %, without regions {100 * self.top1_zeroed:.1f} %, with those of "
                f"another clip {100 * self.top1_shuffled:.1f} %; the class of its query explains "
                f"{100 * self.query:.0f} % of a tracklet"
            )
        lines += [f"warning: the model does not attend to the action: {why}" for why in self.warnings]
        return "\n".join(lines)


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a set of clips, and their accuracy.

    Attributes:
        class_names: Y names, in the order of the columns of ``probabilities``.
        probabilities: [n, Y] float32, softmax over the classes.
        labels: [n] int64, the true classes.
        indices: [n] int64, index of each row's clip in the clip set. Clips that could not be read have no row.
        confusion: [Y, Y] int64; entry (i, j) counts clips of class i that were predicted as class j.
        correct_top5: clips whose true class is among the min(5, Y) most probable ones.
        order: [m, T, K] int64, the query that produced each response of each tracklet, as in :class:`art.ARTOutput`,
            where m is n times the views per clip; None for a model without tracklets.
        groups: the group of each class (``ClipSet.groups``), or empty.
        region_use: how much the model depends on its regions; None if it was not measured.
    """

    class_names: tuple[str, ...]
    probabilities: Float32[np.ndarray, "n y"]
    labels: Int64[np.ndarray, "n"]
    indices: Int64[np.ndarray, "n"]
    confusion: Int64[np.ndarray, "y y"]
    correct_top5: int
    order: Int64[np.ndarray, "m t k"] | None = None
    groups: tuple[str, ...] = ()
    region_use: RegionUse | None = None

    @property
    def total(self) -> int:
        """Number of clips evaluated."""
        return len(self.labels)

    @property
    def correct_top1(self) -> int:
        """Clip whose most probable class is the true one."""
        return int(np.trace(self.confusion))

    @property
    def top1(self) -> float:
        """Top-1 accuracy, 0 to 1."""
        return self.correct_top1 / self.total

    @property
    def top5(self) -> float:
        """Top-5 accuracy, 0 to 1."""
        return self.correct_top5 / self.total

    @property
    def mean_class_accuracy(self) -> float:
        """Mean accuracy over the classes that have clips, 0 to 1."""
        mean = self._class_mean(np.arange(len(self.class_names)))
        assert mean is not None  # an evaluation has at least one clip
        return mean

    @property
    def per_group(self) -> tuple[GroupAccuracy, ...]:
        """Accuracy within each group, in the order of the classes; empty if the classes have no groups."""
        counts, correct = self.confusion.sum(axis=1), np.diag(self.confusion)
        result = []
        for name in dict.fromkeys(self.groups):
            members = np.flatnonzero(np.array(self.groups) == name)
            clips, hits = int(counts[members].sum()), int(correct[members].sum())
            result.append(GroupAccuracy(name, len(members), clips, hits, self._class_mean(members)))
        return tuple(result)

    def _class_mean(self, classes: Int64[np.ndarray, " c"]) -> float | None:
        counts = self.confusion.sum(axis=1)
        present = classes[counts[classes] > 0]
        return float(np.mean(np.diag(self.confusion)[present] / counts[present])) if len(present) else None

    @property
    def relinked(self) -> float | None:
        """Fraction of links between adjacent frames of a tracklet that switch to another query, 0 to 1.

        0 if ``linking`` is "index". None without links: for a model without tracklets, or with one frame.
        """
        if self.order is None or self.order.shape[1] < 2:
            return None
        return float(np.mean(self.order[:, 1:] != self.order[:, :-1]))

    def summary(self) -> dict[str, Any]:
        """Return everything except the per-clip arrays, ready for JSON."""
        counts = self.confusion.sum(axis=1)
        per_class = [
            {"name": name, "clips": int(counts[i]), "correct": int(self.confusion[i, i])}
            for i, name in enumerate(self.class_names)
        ]
        return {
            "clips": self.total,
            "correct_top1": self.correct_top1,
            "correct_top5": self.correct_top5,
            "top1": self.top1,
            "top5": self.top5,
            "mean_class_accuracy": self.mean_class_accuracy,
            "relinked": self.relinked,
            "per_class": per_class,
            "per_group": [{**asdict(group), "top1": group.top1} for group in self.per_group],
            "confusion": self.confusion.tolist(),
            "region_use": None if self.region_use is None else self.region_use.to_dict(),
        }


def compute_metrics(
    probabilities: Float32[np.ndarray, "n y"],
    labels: Int64[np.ndarray, "n"],
    indices: Int64[np.ndarray, "n"],
    class_names: Sequence[str],
    order: Int64[np.ndarray, "m t k"] | None = None,
    groups: Sequence[str] = (),
) -> Evaluation:
    """Count correct predictions. Classes of equal probability rank by index, the smallest first.

    The arguments are the attributes of :class:`Evaluation`.

    Raises:
        ValueError: If there are no clips, shapes do not match, or a label is out of range.
        NonFiniteError: If a probability is not finite.
    """
    classes = len(class_names)
    if probabilities.ndim != 2 or probabilities.shape[1] != classes:
        raise ValueError(f"probabilities: got shape {probabilities.shape}, expected [n, {classes}]")
    count = len(probabilities)
    if count == 0:
        raise ValueError("probabilities: got no clips, expected at least one that could be read")
    if labels.shape != (count,) or indices.shape != (count,):
        raise ValueError(f"labels and indices: got shapes {labels.shape} and {indices.shape}, expected ({count},) both")
    if order is not None and (order.ndim != 3 or len(order) == 0 or len(order) % count):
        raise ValueError(f"order: got shape {order.shape}, expected ({count}, T, K) or a multiple, for several views")
    if groups and len(groups) != classes:
        raise ValueError(f"groups: got {len(groups)} names, expected one for each of {classes} classes, or none")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels: got {labels.min()}..{labels.max()}, expected 0..{classes - 1}")
    if not np.isfinite(probabilities).all():
        rows = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
        raise NonFiniteError(
            f"probabilities: the model's output is not finite for {plural(len(rows), 'clip')}, the first with index "
            f"{indices[rows[0]]}"
        )
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, ranked[:, 0]), 1)
    correct_top5 = int((ranked == labels[:, None]).any(axis=1).sum())
    return Evaluation(tuple(class_names), probabilities, labels, indices, confusion, correct_top5, order, tuple(groups))


def average_views(
    probabilities: Float32[np.ndarray, "m y"], labels: Int64[np.ndarray, "m"], indices: Int64[np.ndarray, "m"]
) -> tuple[Float32[np.ndarray, "n y"], Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """Average the probabilities of each clip's views (probabilities and not logits, as in the literature).

    Args:
        probabilities: [m, Y], one row per view.
        labels: [m], the true class of each view's clip.
        indices: [m], the index of each view's clip.

    Returns:
        The same three arrays with one row per clip, in the order of first occurrence.

    Raises:
        ValueError: If clips have different numbers of views.
    """
    _, first, inverse, counts = np.unique(indices, return_index=True, return_inverse=True, return_counts=True)
    if len(counts) and counts.min() != counts.max():
        fewer, more = indices[first[counts.argmin()]], indices[first[counts.argmax()]]
        raise ValueError(
            f"indices: clip {fewer} has {counts.min()} views and clip {more} has {counts.max()}, "
            "expected the same number for each clip"
        )
    sums = np.zeros((len(first), probabilities.shape[1]))
    np.add.at(sums, inverse, probabilities)
    order = np.argsort(first)
    means = (sums[order] / counts[order, None]).astype(probabilities.dtype)
    return means, labels[first[order]], indices[first[order]]


class ClassMismatch(ValueError):
    """A checkpoint and a dataset have different lists of classes."""


def check_same_classes(model_names: Sequence[str], data_names: Sequence[str]) -> None:
    """Check that column i of the model's logits is label i of the data. Unicode forms of a name are the same.

    Raises:
        ClassMismatch: If the lists differ. The message names the missing, extra, or moved classes.
    """
    if list(map(composed, model_names)) == list(map(composed, data_names)):
        return
    differences = []
    in_model, in_data = set(model_names), set(data_names)
    missing = [name for name in model_names if name not in in_data]
    extra = [name for name in data_names if name not in in_model]
    if missing:
        differences.append(f"missing in the data: {_format_names(missing)}")
    if extra:
        differences.append(f"unknown to the checkpoint: {_format_names(extra)}")
    if not differences:
        pairs = zip(model_names, data_names, strict=False)
        moved = [f"{i}: {a!r} in the checkpoint, {b!r} in the data" for i, (a, b) in enumerate(pairs) if a != b]
        differences.append(
            f"same classes, but in another order or repeated ({'; '.join(moved[:3]) or 'repeated names'})"
        )
    raise ClassMismatch(
        f"class_names: the checkpoint has {len(model_names)} classes, the data {len(data_names)}; "
        f"{'; '.join(differences)}. Use the dataset that the model was trained on, or train on this one"
    )


def _format_names(names: Sequence[str], limit: int = 5) -> str:
    return list_names([f"'{shorten(printable(name), 60)}'" for name in names], limit)


_COUNT_COLUMNS = 28  # of the counts and the accuracy in a row
_GROUP_COLUMNS = 22  # of the mean over the classes of a group


def accuracy_table(evaluation: Evaluation) -> str:
    """Format the accuracy of each class, of each group (if the classes have groups), and the totals.

    Lines have at most 120 columns: long names are shortened in the middle. Invisible characters are escaped.
    """
    titles = [f"{group.name} ({group.classes} class{'es' * (group.classes != 1)})" for group in evaluation.per_group]
    totals = ["all clips, top-1", "all clips, top-5", "mean over classes"]
    limit = MAX_COLUMNS - _COUNT_COLUMNS - (_GROUP_COLUMNS if titles else 0)
    classes = short_names(evaluation.class_names, limit)
    titles = short_names(titles, limit)
    width = max(map(text_columns, [*classes, *titles, *totals]))

    def line(name: str, correct: int, clips: int) -> str:
        accuracy = f"{100 * correct / clips:6.2f} %" if clips else "     - "
        return f"{pad(name, width)}  {correct:>6} of {clips:<6} {accuracy}"

    counts = evaluation.confusion.sum(axis=1)
    rule = "-" * (width + _COUNT_COLUMNS)
    lines = [line(name, int(evaluation.confusion[i, i]), int(counts[i])) for i, name in enumerate(classes)]
    if titles:
        lines += [rule, f"{'group of classes':<{width}}  {'top-1':>16} {'':8}  mean over its classes"]
    for title, group in zip(titles, evaluation.per_group, strict=True):
        mean = "-" if group.mean_class_accuracy is None else f"{100 * group.mean_class_accuracy:.2f} %"
        lines.append(f"{pad(line(title, group.correct, group.clips), width + _COUNT_COLUMNS - 1)}  {mean:>21}")
    lines += [
        rule,
        line(totals[0], evaluation.correct_top1, evaluation.total),
        line(totals[1], evaluation.correct_top5, evaluation.total),
        f"{pad(totals[2], width)}  {'':>16} {100 * evaluation.mean_class_accuracy:6.2f} %",
    ]
    if evaluation.region_use is not None:
        lines += [rule, evaluation.region_use.to_text()]
    return "\n".join(lines)


@torch.no_grad()
def bank_similarities(
    bank: SemanticsBank, video_latent: Float[Tensor, "b d"], labels: Int64[Tensor, " b"]
) -> dict[str, Float32[np.ndarray, " n"]]:
    """Compute cosine similarities in the latent space, one array per histogram.

    - "similarity_between_classes": of each pair of classes, where a class is the mean direction of its prompts;
    - "similarity_own_class": of each x_cls and its class, using the nearest prompt, as the selection does;
    - "similarity_other_classes": of each x_cls and every other class, also using the nearest prompt.

    With a sharded bank, all ranks must call this function.

    Args:
        bank: semantics bank with P prompts for each of Y classes.
        video_latent: [B, d], x_cls in the latent space.
        labels: [B], class of each video; for mixed videos, the class with the larger weight.
    """
    projection = bank.projection
    latent = F.linear(*(_full_tensor(t) for t in (bank.bank, projection.weight, projection.bias))).float()  # [P, Y, d]
    classes = F.normalize(F.normalize(latent, dim=-1).mean(0), dim=-1)
    upper = torch.ones(len(classes), len(classes), dtype=torch.bool, device=latent.device).triu(1)
    similarity = cosine(video_latent.detach().float(), latent).amax(1)  # [B, Y]
    own = F.one_hot(labels, len(classes)).bool()
    result = {
        "similarity_between_classes": (classes @ classes.T)[upper],
        "similarity_own_class": similarity[own],
        "similarity_other_classes": similarity[~own],
    }
    return {name: values.cpu().numpy() for name, values in result.items()}


def quantiles(histograms: dict[str, Float32[np.ndarray, " n"]]) -> dict[str, float]:
    """Return three quantiles of each array: "<name>/p05", "<name>/p50" and "<name>/p95"."""
    return {
        f"{name}/p{100 * q:02.0f}": float(value)
        for name, values in histograms.items()
        for q, value in zip((0.05, 0.5, 0.95), np.quantile(values, [0.05, 0.5, 0.95]), strict=True)
    }


def _full_tensor(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
