"""What the report of a run needs, collected: sample clips, whether tracklets follow the defining limb, the facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from art.data.clips import ClipSet
from art.pretrained import VideoClassifier

from .metrics import Evaluation


def report_run(
    folder: Path,
    *,
    model: VideoClassifier,
    clip_set: ClipSet,
    evaluation: Evaluation,
    history: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes ``report.html`` into ``folder``.

    Args:
        folder: of the run.
        model: what was evaluated.
        clip_set: what it was evaluated on.
        evaluation: of ``model`` on ``clip_set``.
        history: the lines of ``metrics.jsonl``; none where there was no training.
        facts: further entries for the head of the page, by name.

    Returns:
        The file.
    """
    from art.visualize import collect_samples, write_report

    summary = {
        "model": model.kind,
        "backbone": model.options.backbone,
        "data": f"{clip_set.name}, {clip_set.split}",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        **(facts or {}),
    }
    return write_report(
        folder,
        title=f"{model.kind} on {clip_set.name}",
        history=history,
        evaluation=evaluation,
        class_names=evaluation.class_names,
        samples=collect_samples(model, clip_set, evaluation),
        summary=summary,
    )
