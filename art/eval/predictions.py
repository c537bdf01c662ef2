"""The answers of a model on a set of clips as one file, from which they can be scored without model or clips."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from art.data.datasets.clips import ClipSet
from art.eval.metrics import Evaluation, measure

_FORMAT = 1
_FIELDS = (
    "format", "dataset", "split", "listed", "class_names", "groups", "probabilities", "labels", "indices", "paths",
    "starts", "ends",
)  # fmt: skip


class PredictionsError(ValueError):
    """A file that holds no predictions, or files whose predictions cannot be averaged."""


@dataclass(frozen=True)
class Predictions:
    """Answers, and of which clips they are.

    Attributes:
        evaluation: the answers, counted; n clips.
        dataset: the data set's name.
        split: its split.
        listed: how many clips the split has; those beyond n could not be read.
        paths: n paths, below the root of the data set where they lie there.
        starts: [n] where the clips start, seconds since the first frame of the file; NaN is its beginning.
        ends: [n] where they end; NaN is the end of the file.
    """

    evaluation: Evaluation
    dataset: str
    split: str
    listed: int
    paths: tuple[str, ...]
    starts: Float64[np.ndarray, " n"]
    ends: Float64[np.ndarray, " n"]

    @classmethod
    def of(cls, evaluation: Evaluation, clip_set: ClipSet) -> Predictions:
        """Those of an evaluation of clips of ``clip_set``."""
        indices = evaluation.indices.tolist()
        clips = [clip_set.clips[index] for index in indices]
        starts, ends = (
            np.array([np.nan if time is None else time for time in times], dtype=np.float64)
            for times in ([clip.start for clip in clips], [clip.end for clip in clips])
        )
        paths = tuple(clip_set.relative_path(index) for index in indices)
        return cls(evaluation, clip_set.name, clip_set.split, len(clip_set), paths, starts, ends)

    def save(self, path: Path) -> None:
        """Writes a NumPy archive that is either whole or absent; its arrays have the names of the attributes."""
        evaluation = self.evaluation
        order: dict[str, Any] = {} if evaluation.order is None else {"order": evaluation.order.astype(np.int16)}
        incoming = path.with_name(f".{path.stem}.incoming.npz")
        np.savez_compressed(
            incoming,
            format=_FORMAT,
            dataset=self.dataset,
            split=self.split,
            listed=self.listed,
            class_names=np.array(evaluation.class_names),
            groups=np.array(evaluation.groups, dtype=str),
            probabilities=evaluation.probabilities,
            labels=evaluation.labels,
            indices=evaluation.indices,
            paths=np.array(self.paths),
            starts=self.starts,
            ends=self.ends,
            **order,
        )
        incoming.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictions:
        """What :meth:`save` wrote; nothing in the file is executed.

        Raises:
            FileNotFoundError: there is no such file.
            PredictionsError: it holds something else, or was written by another version.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; expected a predictions.npz of art evaluate or art train")
        try:
            with np.load(file, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise PredictionsError(f"{file}: is no NumPy archive of predictions ({error})") from error
        missing = [name for name in _FIELDS if name not in found]
        if missing or found["format"] != _FORMAT:
            told = f"lacks {', '.join(missing)}" if missing else f"is of format {found['format']}"
            raise PredictionsError(f"{file}: {told}, expected format {_FORMAT}; evaluate again to write it")
        try:
            evaluation = measure(
                found["probabilities"],
                found["labels"],
                found["indices"],
                found["class_names"].tolist(),
                found["order"].astype(np.int64) if "order" in found else None,
                found["groups"].tolist(),
            )
        except ValueError as error:
            raise PredictionsError(f"{file}: {error}") from error
        return cls(
            evaluation,
            str(found["dataset"]),
            str(found["split"]),
            int(found["listed"]),
            tuple(found["paths"].tolist()),
            found["starts"],
            found["ends"],
        )


def ensemble(members: Sequence[Predictions], names: Sequence[str]) -> Predictions:
    """The mean of the probabilities of several models on the same clips; of one, itself.

    Args:
        members: at least one; the clips may come in any order, that of the first is kept.
        names: what to call each of them in an error.

    Raises:
        PredictionsError: they are of other classes, clips or labels; it names two that differ.
    """
    first, evaluation = members[0], members[0].evaluation
    if len(members) == 1:
        return first
    keys = _keys(first)
    total = np.zeros(evaluation.probabilities.shape)
    for member, name in zip(members, names, strict=True):
        rows = _rows(member, keys, f"{names[0]} and {name}")
        _check_alike(evaluation, member.evaluation, rows, f"{names[0]} and {name}")
        total += member.evaluation.probabilities[rows]
    mean = (total / len(members)).astype(evaluation.probabilities.dtype)
    averaged = measure(mean, evaluation.labels, evaluation.indices, evaluation.class_names, groups=evaluation.groups)
    return Predictions(averaged, first.dataset, first.split, first.listed, first.paths, first.starts, first.ends)


_Key = tuple[str, float | None, float | None]


def _keys(predictions: Predictions) -> list[_Key]:
    """What tells a clip from others."""
    times = (
        [None if np.isnan(time) else time for time in own.tolist()] for own in (predictions.starts, predictions.ends)
    )
    return list(zip(predictions.paths, *times, strict=True))


def _rows(member: Predictions, keys: Sequence[_Key], pair: str) -> list[int]:
    """Which row of ``member`` each clip is."""
    place = {key: row for row, key in enumerate(_keys(member))}
    missing, wanted = [key for key in keys if key not in place], set(keys)
    extra = [key for key in place if key not in wanted]
    if missing or extra:
        shown = (missing or extra)[0][0]
        raise PredictionsError(
            f"{pair}: are not of the same clips: {len(missing)} of the first are not in the second and {len(extra)} of "
            f"the second not in the first, such as {shown}; expected predictions on the same split"
        )
    return [place[key] for key in keys]


def _check_alike(first: Evaluation, other: Evaluation, rows: Sequence[int], pair: str) -> None:
    if first.class_names != other.class_names:
        raise PredictionsError(f"{pair}: have other classes, or in another order; expected the same")
    if first.groups != other.groups:
        raise PredictionsError(f"{pair}: count their classes in other groups; expected the same")
    differing = int((first.labels != other.labels[rows]).sum())
    if differing:
        raise PredictionsError(f"{pair}: give {differing} clips other labels; expected the same")
