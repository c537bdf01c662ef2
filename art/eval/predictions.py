"""Saved predictions (``predictions.npz``), ensembles, and ``art score``, which requires neither model nor clips."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from art.data.datasets.base import ClipSet
from art.data.files import atomic_write
from art.eval.metrics import Evaluation, compute_metrics
from art.eval.report import write_report
from art.train.runtime import provenance

_FORMAT = 1
_FIELDS = (
    "format", "dataset", "split", "listed", "class_names", "groups", "probabilities", "labels", "indices", "paths",
    "starts", "ends",
)  # fmt: skip
_ClipKey = tuple[str, float | None, float | None]


class PredictionsError(ValueError):
    """A file does not contain predictions, or predictions cannot be averaged."""


@dataclass(frozen=True)
class Predictions:
    """Predictions, and the clips they belong to.

    Attributes:
        evaluation: the predictions and their accuracy, for n clips.
        dataset: name of the dataset.
        split: name of the split.
        listed: number of clips in the split; those beyond n could not be read.
        paths: n paths, relative to the root of the dataset for files inside it.
        starts: [n] start of each clip in seconds from the first frame of the file; NaN is the start of the file.
        ends: [n] end of each clip; NaN is the end of the file.
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
        """Return the predictions of an evaluation on ``clip_set``."""
        indices = evaluation.indices.tolist()
        clips = [clip_set.clips[index] for index in indices]
        starts, ends = (
            np.array([np.nan if time is None else time for time in times], dtype=np.float64)
            for times in ([clip.start for clip in clips], [clip.end for clip in clips])
        )
        paths = tuple(clip_set.relative_path(index) for index in indices)
        return cls(evaluation, clip_set.name, clip_set.split, len(clip_set), paths, starts, ends)

    def save(self, path: Path) -> None:
        """Write a NumPy archive atomically. Its arrays are named after the attributes."""
        evaluation = self.evaluation
        arrays: dict[str, Any] = {
            "format": _FORMAT,
            "dataset": self.dataset,
            "split": self.split,
            "listed": self.listed,
            "class_names": np.array(evaluation.class_names),
            "groups": np.array(evaluation.groups, dtype=str),
            "probabilities": evaluation.probabilities,
            "labels": evaluation.labels,
            "indices": evaluation.indices,
            "paths": np.array(self.paths),
            "starts": self.starts,
            "ends": self.ends,
        }
        if evaluation.order is not None:
            arrays["order"] = evaluation.order.astype(np.int16)

        def write(partial: Path) -> None:
            with partial.open("wb") as file:  # given a path, NumPy would append ".npz"
                np.savez_compressed(file, **arrays)

        atomic_write(path, write)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictions:
        """Load a file written by :meth:`save`. Nothing in the file is executed.

        Raises:
            FileNotFoundError: If there is no such file.
            PredictionsError: If it contains something else, or was written by an incompatible version.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; expected a predictions.npz of art evaluate or art train")
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise PredictionsError(f"{file}: not a NumPy archive of predictions ({error})") from error
        missing = [name for name in _FIELDS if name not in arrays]
        if missing or arrays["format"] != _FORMAT:
            found = f"lacks {', '.join(missing)}" if missing else f"has format {arrays['format']}"
            raise PredictionsError(f"{file}: {found}, expected format {_FORMAT}; run the evaluation again")
        try:
            evaluation = compute_metrics(
                arrays["probabilities"],
                arrays["labels"],
                arrays["indices"],
                arrays["class_names"].tolist(),
                arrays["order"].astype(np.int64) if "order" in arrays else None,
                arrays["groups"].tolist(),
            )
        except ValueError as error:
            raise PredictionsError(f"{file}: {error}") from error
        dataset, split, listed = str(arrays["dataset"]), str(arrays["split"]), int(arrays["listed"])
        paths = tuple(arrays["paths"].tolist())
        return cls(evaluation, dataset, split, listed, paths, arrays["starts"], arrays["ends"])


def ensemble(members: Sequence[Predictions], names: Sequence[str]) -> Predictions:
    """Average the probabilities of several models on the same clips.

    Args:
        members: at least one; a single one is returned as it is. Their clips may be in different orders; the result has
            the order of the first.
        names: name of each member, for error messages.

    Raises:
        PredictionsError: If two members differ in their classes, groups, clips, or labels.
    """
    first, evaluation = members[0], members[0].evaluation
    if len(members) == 1:
        return first
    keys = _clip_keys(first)
    total = np.zeros(evaluation.probabilities.shape)
    for member, name in zip(members, names, strict=True):
        pair = f"{names[0]} and {name}"
        rows = _matching_rows(member, keys, pair)
        _check_compatible(evaluation, member.evaluation, rows, pair)
        total += member.evaluation.probabilities[rows]
    mean = (total / len(members)).astype(evaluation.probabilities.dtype)
    labels, indices, class_names = evaluation.labels, evaluation.indices, evaluation.class_names
    averaged = compute_metrics(mean, labels, indices, class_names, groups=evaluation.groups)
    return Predictions(averaged, first.dataset, first.split, first.listed, first.paths, first.starts, first.ends)


def _clip_keys(predictions: Predictions) -> list[_ClipKey]:
    """Return path, start, and end of each clip, which identify it."""
    starts, ends = (
        [None if np.isnan(time) else time for time in times.tolist()]
        for times in (predictions.starts, predictions.ends)
    )
    return list(zip(predictions.paths, starts, ends, strict=True))


def _matching_rows(member: Predictions, keys: Sequence[_ClipKey], pair: str) -> list[int]:
    """Return the row of ``member`` for each clip."""
    rows = {key: row for row, key in enumerate(_clip_keys(member))}
    missing, expected = [key for key in keys if key not in rows], set(keys)
    extra = [key for key in rows if key not in expected]
    if missing or extra:
        raise PredictionsError(
            f"{pair}: clips differ: {len(missing)} of the first are not in the second and {len(extra)} of the second "
            f"are not in the first, such as {(missing or extra)[0][0]}; expected predictions on the same split"
        )
    return [rows[key] for key in keys]


def _check_compatible(first: Evaluation, other: Evaluation, rows: Sequence[int], pair: str) -> None:
    if first.class_names != other.class_names:
        raise PredictionsError(f"{pair}: classes or their order differ; expected the same")
    if first.groups != other.groups:
        raise PredictionsError(f"{pair}: groups of classes differ; expected the same")
    differing = int((first.labels != other.labels[rows]).sum())
    if differing:
        raise PredictionsError(f"{pair}: labels of {differing} clips differ; expected the same")


def _predictions_file(path: Path) -> Path:
    """Return the file of predictions in a directory of a run or a report; any other path is returned as it is."""
    if not path.is_dir():
        return path
    if (path / "predictions.npz").is_file():
        return path / "predictions.npz"
    raise FileNotFoundError(
        f"{path}: directory without predictions.npz, expected a predictions.npz or a directory that art train or "
        "art evaluate --report wrote it to"
    )


def score(files: Sequence[Path], *, report: Path | None = None) -> Predictions:
    """Load saved predictions, and average those of several models.

    Args:
        files: files written by :meth:`Predictions.save`, or directories with a ``predictions.npz``, at least one.
        report: directory to write ``evaluation.json``, ``predictions.npz`` and ``report.html`` to (without curves and
            clips, which require the run and the data); None writes nothing.

    Raises:
        FileNotFoundError: If a file does not exist.
        PredictionsError: If a file does not contain predictions, is repeated, or would be overwritten by the report, or
            if the files cannot be averaged.
    """
    files = [_predictions_file(path) for path in files]
    resolved = [file.resolve() for file in files]
    repeated = [file for file, path in zip(files, resolved, strict=True) if resolved.count(path) > 1]
    if repeated:
        raise PredictionsError(f"{repeated[0]}: passed more than once, expected different files")
    if report is not None and report.resolve() in [path.parent for path in resolved]:
        raise PredictionsError(f"report: {report} contains the predictions themselves, expected another directory")
    sources = [str(file) for file in files]
    scored = ensemble([Predictions.load(file) for file in files], sources)
    if report is not None:
        write_evaluation(report, scored, {"predictions": sources})
        write_report(
            report,
            title=f"{'Ensemble' if len(files) > 1 else 'Predictions'} on {scored.dataset}",
            history=[],
            evaluation=scored.evaluation,
            class_names=scored.evaluation.class_names,
            samples=[],
            summary={"data": f"{scored.dataset}, {scored.split}", "predictions": ", ".join(sources)},
        )
    return scored


def write_evaluation(directory: Path, predictions: Predictions, details: dict[str, Any]) -> None:
    """Write ``predictions.npz``, then ``evaluation.json``: if the JSON file exists, so does the other.

    Args:
        directory: created if it does not exist.
        predictions: predictions and their accuracy.
        details: additional entries of the JSON file.
    """
    predictions.save(directory / "predictions.npz")
    content = {
        "dataset": predictions.dataset,
        "split": predictions.split,
        "unreadable_clips": predictions.listed - predictions.evaluation.total,
        **predictions.evaluation.summary(),
        **details,
        "provenance": provenance(),
    }
    write_json(directory / "evaluation.json", content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically. Bytes of a path that are not UTF-8 (surrogates) are written as JSON escapes."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    atomic_write(path, lambda partial: partial.write_text(text, "utf-8", "backslashreplace"))
