"""Accuracy from exact integer counts, and how often a tracklet passes from one query to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64


@dataclass(frozen=True)
class GroupAccuracy:
    """What a model answered on the clips of one group of classes. It chose among all classes, not those of the group.

    Attributes:
        name: of the group.
        classes: how many classes it has.
        clips: how many clips of them.
        correct: clips whose most probable class is the true one.
        mean_class_accuracy: mean of each class's share of correct clips, 0..1, over its classes that have clips; None
            where none has.
    """

    name: str
    classes: int
    clips: int
    correct: int
    mean_class_accuracy: float | None

    @property
    def top1(self) -> float | None:
        """Share of clips, 0..1; None without clips."""
        return self.correct / self.clips if self.clips else None


@dataclass(frozen=True)
class Evaluation:
    """What a model answered on a set of clips.

    Attributes:
        class_names: Y names, in the order of the columns of ``probabilities``.
        probabilities: [n, Y] float32, softmax over classes.
        labels: [n] int64, the true classes.
        indices: [n] int64, which clip of the set each row is (a clip that could not be read is not there).
        confusion: [Y, Y] int64; entry (i, j) counts clips of class i that were called j.
        correct_top5: clips whose class is among the min(5, Y) most probable ones.
        order: [m, T, K] int64, the query that each response of each tracklet came from, as in
            :class:`art.ARTOutput`, m being n times the views of a clip; None of a model without tracklets.
        groups: for each class the group that it is counted in (``ClipSet.groups``), or nothing.
    """

    class_names: tuple[str, ...]
    probabilities: Float32[np.ndarray, "n y"]
    labels: Int64[np.ndarray, "n"]
    indices: Int64[np.ndarray, "n"]
    confusion: Int64[np.ndarray, "y y"]
    correct_top5: int
    order: Int64[np.ndarray, "m t k"] | None = None
    groups: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Clips evaluated."""
        return len(self.labels)

    @property
    def correct_top1(self) -> int:
        """Clips whose most probable class is the true one."""
        return int(np.trace(self.confusion))

    @property
    def top1(self) -> float:
        """Share of clips, 0..1."""
        return self.correct_top1 / self.total

    @property
    def top5(self) -> float:
        """Share of clips, 0..1."""
        return self.correct_top5 / self.total

    @property
    def mean_class_accuracy(self) -> float:
        """Mean over the classes that have clips of each class's share of correct clips, 0..1."""
        mean = self._class_mean(np.arange(len(self.class_names)))
        assert mean is not None  # an evaluation has clips
        return mean

    @property
    def per_group(self) -> tuple[GroupAccuracy, ...]:
        """The accuracy within each group, in the order of the classes; nothing where classes have no groups."""
        counts, correct = self.confusion.sum(axis=1), np.diag(self.confusion)
        found = []
        for name in dict.fromkeys(self.groups):
            own = np.flatnonzero(np.array(self.groups) == name)
            clips, right = int(counts[own].sum()), int(correct[own].sum())
            found.append(GroupAccuracy(name, len(own), clips, right, self._class_mean(own)))
        return tuple(found)

    def _class_mean(self, classes: Int64[np.ndarray, " c"]) -> float | None:
        counts = self.confusion.sum(axis=1)
        present = classes[counts[classes] > 0]
        return float(np.mean(np.diag(self.confusion)[present] / counts[present])) if len(present) else None

    @property
    def relinked(self) -> float | None:
        """Share of links, 0..1, that pass from one query to another: a link joins two adjacent frames of a tracklet.

        0 where ``linking`` is "index". None without links: a model without tracklets, or of one frame.
        """
        if self.order is None or self.order.shape[1] < 2:
            return None
        return float(np.mean(self.order[:, 1:] != self.order[:, :-1]))

    def summary(self) -> dict[str, Any]:
        """Everything but the per-clip arrays, ready for JSON."""
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
        }


def measure(
    probabilities: Float32[np.ndarray, "n y"],
    labels: Int64[np.ndarray, "n"],
    indices: Int64[np.ndarray, "n"],
    class_names: Sequence[str],
    order: Int64[np.ndarray, "m t k"] | None = None,
    groups: Sequence[str] = (),
) -> Evaluation:
    """Counts. Between classes of equal probability the one with the smaller index ranks first.

    The arguments are the attributes of :class:`Evaluation`.

    Raises:
        ValueError: for no clips, shapes that disagree, labels outside the classes, probabilities that are not finite.
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
        raise ValueError(f"probabilities: not finite for {len(rows)} clips, the first with index {indices[rows[0]]}")
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, ranked[:, 0]), 1)
    correct_top5 = int((ranked == labels[:, None]).any(axis=1).sum())
    return Evaluation(tuple(class_names), probabilities, labels, indices, confusion, correct_top5, order, tuple(groups))


def averaged_views(
    probabilities: Float32[np.ndarray, "m y"], labels: Int64[np.ndarray, "m"], indices: Int64[np.ndarray, "m"]
) -> tuple[Float32[np.ndarray, "n y"], Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """One row a clip instead of one a view: the mean of its probabilities, as the literature takes it of the softmax
    and not of the logits.

    Args:
        probabilities: of each view.
        labels: the true class of its clip.
        indices: which clip it is of.

    Returns:
        the same three of the clips, in the order in which they first come.

    Raises:
        ValueError: some clips have more views than others.
    """
    _, first, inverse, counts = np.unique(indices, return_index=True, return_inverse=True, return_counts=True)
    if len(counts) and counts.min() != counts.max():
        fewer, more = indices[first[counts.argmin()]], indices[first[counts.argmax()]]
        raise ValueError(
            f"indices: clip {fewer} has {counts.min()} views and clip {more} has {counts.max()}, expected as many each"
        )
    sums = np.zeros((len(first), probabilities.shape[1]))
    np.add.at(sums, inverse, probabilities)
    order = np.argsort(first)
    means = (sums[order] / counts[order, None]).astype(probabilities.dtype)
    return means, labels[first[order]], indices[first[order]]


class ClassMismatch(ValueError):
    """The classes of a checkpoint and of a data set are not the same list."""


def check_same_classes(model_names: Sequence[str], data_names: Sequence[str]) -> None:
    """Compares the two class lists, because column i of the model's logits must mean label i of the data.

    Raises:
        ClassMismatch: naming the classes that are missing, extra, or in another place.
    """
    if list(model_names) == list(data_names):
        return
    complaints = []
    missing = [name for name in model_names if name not in set(data_names)]
    extra = [name for name in data_names if name not in set(model_names)]
    if missing:
        complaints.append(f"missing in the data: {_some(missing)}")
    if extra:
        complaints.append(f"unknown to the checkpoint: {_some(extra)}")
    if not complaints:
        pairs = zip(model_names, data_names, strict=False)
        moved = [f"{i}: {a!r} in the checkpoint, {b!r} in the data" for i, (a, b) in enumerate(pairs) if a != b]
        complaints.append(
            f"the same classes in another order, or repeated ({'; '.join(moved[:3]) or 'repeated names'})"
        )
    raise ClassMismatch(
        f"class_names: the checkpoint has {len(model_names)} classes, the data {len(data_names)}; "
        f"{'; '.join(complaints)}. Evaluate on the data set that the model was trained on, or train on this one"
    )


def _some(names: Sequence[str], shown: int = 5) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(repr(name) for name in names[:shown]) + rest
