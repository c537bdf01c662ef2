"""The report of a run: one self-contained HTML file, with all images embedded, that opens without a network."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from art.data.datasets.base import ClipSet
from art.data.files import atomic_write
from art.data.shards import ShardSet
from art.eval.metrics import Evaluation, RegionUse
from art.eval.report.confusion import PairExamples, class_accuracy, collect_pairs, confusion_figure, pair_explorer
from art.eval.report.curves import training_curves
from art.eval.report.localization import HitRates, Localization, defining_limb
from art.eval.report.samples import SampleClip, clip_reader, collect_samples, sample_card
from art.eval.report.style import (
    bar,
    document,
    name_html,
    number_card,
    number_cell,
    percent,
    percent_cell,
    section,
    table,
    text_cell,
    to_svg,
)
from art.model.pretrained import VideoClassifier
from art.terminal import plural

#: Labels of the entries of the header whose names are those of files and configurations.
_LABELS = {
    "seconds": "training time",
    "step_seconds": "median time per step",
    "sampling": "frame sampling",
}
#: Beginning of the page's title by kind of model.
_TITLES = {"art": "ART", "backbone": "Backbone", "probe": "Frozen backbone"}
_Z = 1.959964  # 95 % of a normal distribution is within this number of standard deviations


def report_run(
    directory: Path,
    *,
    model: VideoClassifier,
    clip_set: ClipSet,
    evaluation: Evaluation,
    localization: Localization | None,
    history: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Collect sample clips and clips of confused pairs, and write ``report.html``.

    With shards, there are no clips of confused pairs: reading a clip requires reading its shard up to the clip.

    Args:
        directory: directory of the run.
        model: the model that was evaluated.
        clip_set: the clips that it was evaluated on.
        evaluation: the result.
        localization: output of :func:`art.eval.report.localization.localize`.
        history: lines of ``metrics.jsonl``; empty without training.
        facts: additional entries for the header of the page, by name; times in seconds if the name ends in "seconds".

    Returns:
        Path of the file.
    """
    summary = {
        "model": model.kind,
        "backbone": model.options.backbone,
        "data": f"{clip_set.name}, {clip_set.split}",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        **(facts or {}),
    }
    return write_report(
        directory,
        title=f"{_TITLES[model.kind]} on {clip_set.name}",
        history=history,
        evaluation=evaluation,
        class_names=evaluation.class_names,
        samples=collect_samples(model, clip_set, evaluation, limb=defining_limb(clip_set, model)),
        pairs=[] if isinstance(clip_set, ShardSet) else collect_pairs(clip_set, evaluation, clip_reader(model)),
        localization=localization,
        summary=summary,
    )


def write_report(
    directory: str | os.PathLike[str],
    *,
    title: str,
    history: Sequence[Mapping[str, Any]],
    evaluation: Evaluation,
    class_names: Sequence[str],
    samples: Sequence[SampleClip],
    pairs: Sequence[PairExamples] = (),
    localization: Localization | None = None,
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``report.html`` atomically. Equal arguments produce equal bytes.

    Args:
        directory: created if it does not exist.
        title: heading of the page.
        history: the training history, see :mod:`art.eval.report.curves`; may be empty.
        evaluation: accuracies, confusion matrix, and groups of classes.
        class_names: Y names, in the order of the labels.
        samples: clips with correct and wrong predictions, in any order; may be empty.
        pairs: clips of confused pairs of classes; other pairs are listed without clips.
        localization: whether tracklets follow the defining limb, if it was measured.
        summary: facts about the run (model, data, seed, time), by name.

    Returns:
        Path of the file.

    Raises:
        ValueError: If names, confusion matrix, and samples differ in their number of classes.
    """
    class_names = list(class_names)
    for sample in samples:
        if len(sample.probabilities) != len(class_names):
            raise ValueError(
                f"samples contains {sample.path} with {len(sample.probabilities)} probabilities, "
                f"expected one for each of {len(class_names)} class names"
            )
    sections = [
        page_header(title, summary or {}),
        _headline_numbers(evaluation, localization),
        _samples(samples, class_names),
        _region_use(evaluation.region_use) if evaluation.region_use is not None else "",
        _localization(localization) if localization is not None else "",
        _curves(history),
        _groups(evaluation),
        confusion_sections(evaluation, class_names, pairs),
        class_section(evaluation, class_names),
    ]
    text = document(title, "\n".join(filter(None, sections)))
    path = Path(directory) / "report.html"
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return path


def page_header(title: str, summary: Mapping[str, Any]) -> str:
    """Return the heading of a page, with facts by name."""
    facts = "".join(
        f"<div><dt>{escape(_LABELS.get(name, name))}</dt><dd>{_format_fact(name, value)}</dd></div>"
        for name, value in summary.items()
        if value is not None
    )
    return f'<header>\n<h1>{escape(title)}</h1>\n<dl class="facts">{facts}</dl>\n</header>'


def _format_fact(name: str, value: Any) -> str:
    """Return the HTML of a value in the header."""
    if name.endswith("seconds"):
        return _format_duration(value)
    if isinstance(value, (int, float)):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return name_html(str(value))


def _format_duration(seconds: float) -> str:
    """Format a time in the units that a reader compares: ``285 ms``, ``12.3 s``, ``4 min 5 s``, ``2 h 10 min``."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _headline_numbers(evaluation: Evaluation, localization: Localization | None) -> str:
    total = int(evaluation.confusion.sum())
    low, high = wilson_interval(evaluation.top1, total)
    cards = [
        number_card(percent(evaluation.top1), "top-1 accuracy", f"95 % interval {100 * low:.1f} to {100 * high:.1f}"),
        number_card(percent(evaluation.top5), "top-5 accuracy"),
        number_card(percent(evaluation.mean_class_accuracy), "mean over classes"),
        number_card(f"{total}", "clips", f"{len(evaluation.confusion)} classes"),
    ]
    if localization is not None:
        score = localization.overall
        chance = f"{100 * score.random_region.single:.1f} % for random regions on the body"
        cards.append(number_card(percent(score.tracklets.single), "of frames on the defining limb", chance))
    return f'<div class="numbers">\n{"".join(cards)}\n</div>'


def wilson_interval(fraction: float, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a fraction observed in ``total`` independent trials."""
    if total < 1:
        raise ValueError(f"total is {total}, expected at least one clip")
    middle = (fraction + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z / (1 + _Z**2 / total) * math.sqrt(fraction * (1 - fraction) / total + _Z**2 / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _samples(samples: Sequence[SampleClip], class_names: Sequence[str]) -> str:
    if not samples:
        return ""
    has_maps = any(sample.maps is not None for sample in samples)
    note = "A few clips of the evaluation, from different classes."
    if has_maps:
        note += (
            " Tint: regions where the response of a tracklet is above average, strongest at its maximum in the clip. "
            "Line and ring: path of the maximum up to that frame. Bars: weight of each frame in the tracklet."
        )
    if any(sample.joints is not None for sample in samples):
        note += (
            " White diamond: the joint that distinguishes the class from similar ones; the model does not receive it."
        )
    columns = []
    for kind in ("correct", "wrong"):
        chosen = [s for s in samples if (s.predicted == s.label) == (kind == "correct")]
        cards = [sample_card(s, class_names) for s in chosen]
        if not cards:
            cards = [f'<p class="card empty">No clip with a {kind} prediction.</p>']
        heading = f'<p class="side {kind}">{kind.capitalize()} <span>· {plural(len(chosen), "clip")} shown</span></p>'
        columns.append(f"<div>\n{heading}\n" + "\n".join(cards) + "\n</div>")
    heading = "Responses of the tracklets" if has_maps else "Sample clips"
    return section("clips", heading, note, '<div class="columns">', *columns, "</div>")


def _region_use(use: RegionUse) -> str:
    note = (
        "Measured without annotations. Constant: the fraction of the maps' energy that is the same map for every clip "
        "and frame. Without regions, and with those of another clip: the classifier receives zeros, or the tracklets "
        "of a clip chosen at random."
    )
    varies = f"{percent(use.within_clip)} varies within a clip"
    cards = [number_card(percent(use.constant), "of the maps is constant", varies)]
    if use.top1_zeroed is not None and use.top1_shuffled is not None and use.query is not None:
        lost = f"{100 * (use.top1 - use.top1_zeroed):.1f} points"
        cards += [
            number_card(lost, "lost without regions", f"{percent(use.top1_zeroed)} correct"),
            number_card(
                percent(use.top1_shuffled), "correct with those of another clip", f"{percent(use.top1)} with its own"
            ),
            number_card(percent(use.query), "of a tracklet is explained by the class of its query"),
        ]
    warning = "; ".join(use.warnings)
    if warning:
        warning = f'<p class="warning"><b>The model does not attend to the action:</b> {escape(warning)}.</p>'
    title = "Does the model use its regions?"
    return section("regions", title, note, warning, f'<div class="numbers">{"".join(cards)}</div>')


def _localization(localization: Localization) -> str:
    score = localization.overall
    height, width = localization.grid
    note = (
        "Fraction of frames in which the peak of a response map is on the joint that distinguishes the class from "
        f"similar ones: within {100 * localization.radius:g} % of the image size, on a grid of {height} × {width} "
        "regions. Nothing in training names that joint. Mean: over the tracklets. Best: the tracklet of each clip that "
        "is near the joint most often. Any: at least one tracklet, in each frame. The last two are biased upward; "
        "compare them with chance under the same rule."
    )

    def row(name: str, detail: str, rates: HitRates) -> list[str]:
        return [text_cell(name, detail), *(percent_cell(rate) for rate in (rates.single, rates.best, rates.any))]

    def single_row(name: str, detail: str, rate: float) -> list[str]:
        return [text_cell(name, detail), percent_cell(rate), percent_cell(None), percent_cell(None)]

    per_tracklet = ", ".join(f"{k + 1}: {percent(rate)}" for k, rate in enumerate(score.per_tracklet))
    rows = [
        row(f"this model, {plural(len(score.per_tracklet), 'tracklet')}", per_tracklet, score.tracklets),
        row("random regions on the body", "drawn independently in each frame", score.random_region),
        row("random joints", "each followed through the clip", score.random_joint),
        single_row("center of the body", "one region", score.center),
        single_row("the joint's own region", "upper bound of the grid", score.reachable),
    ]
    joints = [
        [
            text_cell(name.replace("_", " "), plural(own.clips, "clip")),
            percent_cell(own.tracklets.single, "correct"),
            percent_cell(own.random_region.single),
            percent_cell(own.tracklets.best, "correct"),
            percent_cell(own.random_region.best),
        ]
        for name, own in localization.per_joint.items()
    ]
    main = table(("", "mean", "best", "any"), rows, highlight=0)
    per_joint = table(("joint", "mean", "random region", "best", "random region"), joints)
    error = "" if score.above_chance_error is None else f" (standard error {100 * score.above_chance_error:.1f})"
    counts = (
        f"{plural(score.frames, 'frame')} of {plural(score.clips, 'clip')}. Difference between the tracklets and "
        f"random regions, mean over clips: {100 * score.above_chance:+.1f} percentage points{error}. Not counted: "
        f"{plural(score.out_of_view, 'frame')} with the joint out of view, and "
        f"{plural(localization.skipped_clips, 'clip')} of classes that no single joint defines."
    )
    return section(
        "limb",
        "Do tracklets follow the limb?",
        note,
        f'<div class="split"><div class="card">{main}</div><div class="card">{per_joint}</div></div>',
        f'<p class="note" style="margin-top:12px">{escape(counts)}</p>',
    )


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    figures = training_curves(history)
    if not figures:
        return ""
    cards = [
        f'<div class="card">{to_svg(figure, label=f"{name} over training", prefix=f"curve{i}")}</div>'
        for i, (name, figure) in enumerate(figures.items())
    ]
    note = "As logged during training. The last value is at the top right or in the legend."
    return section("training", "Training", note, '<div class="charts">', *cards, "</div>")


def _groups(evaluation: Evaluation) -> str:
    if not evaluation.groups:
        return ""
    rows = [
        [
            text_cell(group.name),
            number_cell(group.classes),
            number_cell(group.clips),
            percent_cell(group.top1, "correct"),
            percent_cell(group.mean_class_accuracy, "correct"),
        ]
        for group in evaluation.per_group
    ]
    note = "Accuracy on the clips of each group. The model chooses among all classes, not only those of the group."
    body = f'<div class="card">{table(("group", "classes", "clips", "top-1", "mean over its classes"), rows)}</div>'
    return section("groups", "Accuracy within each group", note, body)


def confusion_sections(evaluation: Evaluation, class_names: Sequence[str], pairs: Sequence[PairExamples]) -> str:
    """Return the confusion matrix and the most confused pairs."""
    figure = confusion_figure(evaluation.confusion, class_names)
    svg = to_svg(figure, label="confusion matrix with normalized rows", prefix="confusion")
    matrix_note = (
        "Each row is a true class and sums to 100 %. Blue: correct predictions; orange: mistakes. The color intensity "
        "is proportional to the square root of the fraction, so that rare mistakes are visible."
    )
    matrix = f'<div class="card scroll matrix{" wide" * (len(class_names) > 40)}">{svg}</div>'
    pairs_note = "Clips of one class that were predicted as another."
    if pairs:
        pairs_note += (
            " Orange: the mistakes with the highest probability. Blue: the correctly predicted clip of either class "
            "with the highest probability. The percentage is the probability of the predicted class."
        )
    explorer = pair_explorer(evaluation.confusion, class_names, evaluation.groups, pairs)
    return "\n".join(
        [
            section("confusion", "Confusion matrix", matrix_note, matrix),
            section("pairs", "Most confused pairs", pairs_note, explorer),
        ]
    )


def class_section(evaluation: Evaluation, class_names: Sequence[str]) -> str:
    """Return the accuracy and the confusions of each class."""
    accuracy, clips = class_accuracy(evaluation.confusion), evaluation.confusion.sum(axis=1)
    order = sorted(range(len(class_names)), key=lambda i: (np.isnan(accuracy[i]), accuracy[i], i))
    items = []
    for i in order:
        name = f'<span class="name">{name_html(class_names[i])}</span>'
        if clips[i]:
            value = f"{evaluation.confusion[i, i]} of {clips[i]}"
            row = f'{name}{bar(float(accuracy[i]), "correct")}<span class="value">{value}</span>'
        else:
            row = f'{name}<span></span><span class="value">no clips</span>'
        mistakes = _mistakes(evaluation.confusion, i, class_names)
        if mistakes:
            items.append(f'<li><details><summary class="row">{row}</summary>{mistakes}</details></li>')
        else:
            items.append(f'<li><div class="row">{row}</div></li>')
    body = f'<div class="card"><ol class="bars classes">{"".join(items)}</ol></div>'
    note = "Correctly predicted clips, lowest accuracy first. Expand a class to list its confusions."
    return section("classes", "Accuracy of each class", note, body)


def _mistakes(confusion: Int[np.ndarray, "y y"], index: int, class_names: Sequence[str]) -> str:
    """List the predictions for clips of a class, and the classes predicted as it, most frequent first."""
    lines = []
    for title, counts in (("predicted as", confusion[index]), ("mistaken for this class", confusion[:, index])):
        others = [i for i in np.argsort(-counts, kind="stable").tolist() if counts[i] and i != index]
        if others:
            named = "; ".join(f"{name_html(class_names[i])} <b>{counts[i]}</b>" for i in others)
            lines.append(f"<p><em>{title}:</em> {named}</p>")
    return "".join(lines)
