"""Saved predictions scored again, of one model or of several together: what ``art score`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from art.eval.evaluate import write_evaluation
from art.eval.predictions import Predictions, PredictionsError, ensemble
from art.eval.report import write_report


def score(files: Sequence[Path], *, report: Path | None = None) -> Predictions:
    """Reads predictions, and averages those of several models.

    Args:
        files: what :meth:`.predictions.Predictions.save` wrote, at least one.
        report: where to write ``evaluation.json``, ``predictions.npz`` and ``report.html`` (without curves and clips,
            which need the run and the data); None writes nothing.

    Raises:
        FileNotFoundError: there is no such file.
        PredictionsError: a file holds something else, is named twice, or would be overwritten by the report; several do
            not fit together.
    """
    resolved = [file.resolve() for file in files]
    twice = [file for file, place in zip(files, resolved, strict=True) if resolved.count(place) > 1]
    if twice:
        raise PredictionsError(f"{twice[0]}: is given more than once, expected files that differ")
    if report is not None and report.resolve() in [place.parent for place in resolved]:
        raise PredictionsError(f"report: {report} holds the predictions themselves, expected another folder")
    scored = ensemble([Predictions.load(file) for file in files], [str(file) for file in files])
    if report is not None:
        sources = [str(file) for file in files]
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
