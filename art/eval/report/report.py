"""The report of a run: one HTML file that holds everything, pictures included, and opens anywhere without a network."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from art.eval.report.confusion import check_confusion, class_accuracy, confusion_figure
from art.eval.report.curves import training_curves
from art.eval.report.limb_score import LimbScore, Shares
from art.eval.report.localization import Localization
from art.eval.report.page import bar, cell, document, number_card, percent, section, share_cell, table
from art.eval.report.pair_explorer import pair_explorer
from art.eval.report.pairs import PairExamples
from art.eval.report.sample_card import sample_card
from art.eval.report.samples import SampleClip
from art.eval.report.style import to_svg

if TYPE_CHECKING:
    from art.eval.metrics import Evaluation

_Z = 1.959964  # 95 % of a normal distribution lie within this many standard deviations


def write_report(
    folder: str | os.PathLike[str],
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
    """Write ``report.html`` into ``folder`` (made where it is missing), all of it or nothing.

    Args:
        title: heading of the page.
        history: the training history, see :mod:`art.eval.report.curves`; may be empty.
        evaluation: its accuracies, confusion matrix and groups of classes.
        class_names: Y names, in the order of the labels.
        samples: clips to show, right and wrong ones in any order; may be empty.
        pairs: clips of confused pairs of classes; pairs without are shown without.
        localization: whether tracklets follow the defining limb, where that was measured.
        summary: what else a reader should know of the run (model, data, seed, time), by name.

    Returns:
        the file. The same arguments give the same bytes.

    Raises:
        ValueError: names, confusion matrix and samples are not of the same number of classes.
    """
    class_names = list(class_names)
    check_confusion(evaluation.confusion, class_names)
    for sample in samples:
        if len(sample.probabilities) != len(class_names):
            raise ValueError(
                f"samples holds {sample.path} with {len(sample.probabilities)} probabilities, "
                f"expected one for each of {len(class_names)} class names"
            )
    parts = [
        _header(title, summary or {}),
        _numbers(evaluation, localization),
        _clips(samples, class_names),
        _limb(localization) if localization is not None else "",
        _curves(history),
        _groups(evaluation),
        _confusion(evaluation, class_names, pairs),
        _classes(evaluation, class_names),
    ]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return _write(folder / "report.html", document(title, "\n".join(part for part in parts if part)))


def _write(path: Path, text: str) -> Path:
    handle, name = tempfile.mkstemp(prefix=".report-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)  # mkstemp makes files that only their owner may read
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def _header(title: str, summary: Mapping[str, Any]) -> str:
    facts = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd></div>" for name, value in summary.items()
    )
    return f'<header>\n<h1>{escape(title)}</h1>\n<dl class="facts">{facts}</dl>\n</header>'


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _numbers(evaluation: Evaluation, localization: Localization | None) -> str:
    total = int(evaluation.confusion.sum())
    low, high = wilson_interval(evaluation.top1, total)
    cards = [
        number_card(percent(evaluation.top1), "top-1", f"95 % interval {100 * low:.1f} to {100 * high:.1f}"),
        number_card(percent(evaluation.top5), "top-5"),
        number_card(percent(evaluation.mean_class_accuracy), "mean over classes"),
        number_card(f"{total}", "clips", f"{len(evaluation.confusion)} classes"),
    ]
    if localization is not None:
        score = localization.overall
        chance = f"{100 * score.random_region.single:.1f} % for random regions on the body"
        cards.append(number_card(percent(score.tracklets.single), "of frames on the defining limb", chance))
    return f'<div class="numbers">\n{"".join(cards)}\n</div>'


def wilson_interval(share: float, total: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share observed in ``total`` independent trials."""
    if total < 1:
        raise ValueError(f"total is {total}, expected at least one clip")
    middle = (share + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z / (1 + _Z**2 / total) * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _clips(samples: Sequence[SampleClip], class_names: Sequence[str]) -> str:
    if not samples:
        return ""
    mapped = any(sample.maps is not None for sample in samples)
    note = "A few clips of the evaluation, spread over the classes."
    if mapped:
        note += (
            " Tint: where a tracklet's response is above average, full at its strongest in the clip. Line and ring: "
            "the path of the strongest response up to that frame. Bars: how much each frame of the clip weighed in the "
            "tracklet."
        )
    if any(sample.joints is not None for sample in samples):
        note += " White diamond: the joint that tells the class from its neighbours, which the model is not told of."
    columns = []
    for kind in ("right", "wrong"):
        chosen = [s for s in samples if (s.predicted == s.label) == (kind == "right")]
        cards = [sample_card(s, class_names) for s in chosen]
        if not cards:
            cards = [f'<p class="card empty">No clip with a {kind} prediction to show.</p>']
        heading = f'<p class="side {kind}">{kind.capitalize()} <span>· {_count(len(chosen), "clip")} shown</span></p>'
        columns.append(f"<div>\n{heading}\n" + "\n".join(cards) + "\n</div>")
    heading = "Where it looked" if mapped else "Sample clips"
    return section("clips", heading, note, '<div class="columns">', *columns, "</div>")


def _limb(localization: Localization) -> str:
    score = localization.overall
    height, width = localization.grid
    note = (
        "Share of frames in which the peak of a response map lies on the joint that tells the class from its "
        f"neighbours: within {100 * localization.radius:g} % of the image's size, on a grid of {height} × {width} "
        "regions. Nothing in training names that joint. Mean: over the tracklets. Best: for each clip the tracklet "
        "that turned out nearest. Any: one of them, anew in each frame. The last two are optimistic; compare them with "
        "chance under the same choice."
    )
    none = '<td class="share">–</td>'
    model = f"this model, {_count(len(score.per_tracklet), 'tracklet')}"
    rows = [
        [cell(model, _by_tracklet(score)), *_share_cells(score.tracklets)],
        [cell("random regions on the body", "drawn anew in each frame"), *_share_cells(score.random_region)],
        [cell("random joints", "each followed through the clip"), *_share_cells(score.random_joint)],
        [cell("centre of the body", "one region"), share_cell(score.centre), none, none],
        [cell("the joint's own region", "what the grid allows"), share_cell(score.reachable), none, none],
    ]
    joints = [
        [
            cell(name.replace("_", " "), _count(own.clips, "clip")),
            share_cell(own.tracklets.single, "right"),
            share_cell(own.random_region.single),
            share_cell(own.tracklets.best, "right"),
            share_cell(own.random_region.best),
        ]
        for name, own in localization.per_joint.items()
    ]
    main = table(("", "mean", "best", "any"), rows, own=0)
    apart = table(("joint", "mean", "random region", "best", "random region"), joints)
    error = "" if score.above_chance_error is None else f" (standard error {100 * score.above_chance_error:.1f})"
    counted = (
        f"{_count(score.frames, 'frame')} of {_count(score.clips, 'clip')}. Mean over clips of a tracklet's share less "
        f"that of random regions: {100 * score.above_chance:+.1f} points{error}. Left out: "
        f"{_count(score.out_of_view, 'frame')} with the joint out of view, "
        f"{_count(localization.skipped_clips, 'clip')} of classes that no single joint defines."
    )
    return section(
        "limb",
        "Does a tracklet follow the limb?",
        note,
        f'<div class="split"><div class="card">{main}</div><div class="card">{apart}</div></div>',
        f'<p class="note" style="margin-top:12px">{escape(counted)}</p>',
    )


def _by_tracklet(score: LimbScore) -> str:
    return ", ".join(f"{k + 1}: {percent(share)}" for k, share in enumerate(score.per_tracklet))


def _share_cells(shares: Shares) -> list[str]:
    return [share_cell(shares.single), share_cell(shares.best), share_cell(shares.any)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    figures = training_curves(history)
    if not figures:
        return ""
    cards = [
        f'<div class="card">{to_svg(figure, label=f"{name} over training", prefix=f"curve{i}")}</div>'
        for i, (name, figure) in enumerate(figures.items())
    ]
    note = "As recorded while training; the last value stands at the top right or in the legend."
    return section("training", "Training", note, '<div class="charts">', *cards, "</div>")


def _groups(evaluation: Evaluation) -> str:
    if not evaluation.groups:
        return ""
    none = '<td class="share">–</td>'
    rows = [
        [
            cell(group.name),
            f'<td class="share">{group.classes}</td>',
            f'<td class="share">{group.clips}</td>',
            none if group.top1 is None else share_cell(group.top1, "right"),
            none if group.mean_class_accuracy is None else share_cell(group.mean_class_accuracy, "right"),
        ]
        for group in evaluation.per_group
    ]
    note = "The clips of each group of classes apart. The model chose among all classes, not only those of the group."
    body = f'<div class="card">{table(("group", "classes", "clips", "top-1", "mean over its classes"), rows)}</div>'
    return section("groups", "Accuracy within each group", note, body)


def _confusion(evaluation: Evaluation, class_names: Sequence[str], pairs: Sequence[PairExamples]) -> str:
    picture = confusion_figure(evaluation.confusion, class_names)
    figure = to_svg(picture, label="confusion matrix, rows normalised", prefix="confusion")
    note = (
        "Each row is a true class and sums to 100 %. Blue: right; orange: mistakes. Colour grows with the square root "
        "of the share, so that rare mistakes show."
    )
    matrix = f'<div class="card scroll matrix{" wide" * (len(class_names) > 40)}">{figure}</div>'
    explorer = pair_explorer(evaluation.confusion, class_names, evaluation.groups, pairs)
    told = (
        "Clips of one class that were called another: the surest mistakes, and below them the clip of either class "
        "that was most surely right. Per cent after a clip: the probability of what it was called."
        if pairs
        else "Clips of one class that were called another."
    )
    return (
        section("confusion", "What is taken for what", note, matrix)
        + "\n"
        + section("pairs", "The most confused pairs", told, explorer)
    )


def _classes(evaluation: Evaluation, class_names: Sequence[str]) -> str:
    accuracy, clips = class_accuracy(evaluation.confusion), evaluation.confusion.sum(axis=1)
    order = sorted(range(len(class_names)), key=lambda i: (np.isnan(accuracy[i]), accuracy[i], i))
    lines = []
    for i in order:
        name = f'<span class="name" title="{escape(class_names[i])}">{escape(class_names[i])}</span>'
        if clips[i]:
            value = f"{evaluation.confusion[i, i]} of {clips[i]}"
            row = f'{name}{bar(float(accuracy[i]), "right")}<span class="value">{value}</span>'
        else:
            row = f'{name}<span></span><span class="value">no clips</span>'
        mistakes = _mistakes(evaluation.confusion, i, class_names)
        if mistakes:
            lines.append(f'<li><details><summary class="row">{row}</summary>{mistakes}</details></li>')
        else:
            lines.append(f'<li><div class="row">{row}</div></li>')
    body = f'<div class="card"><ol class="bars classes">{"".join(lines)}</ol></div>'
    note = "The worst first: clips predicted right. Open a class to see what it is taken for, and what is taken for it."
    return section("classes", "Accuracy of each class", note, body)


def _mistakes(confusion: Int[np.ndarray, "y y"], index: int, class_names: Sequence[str]) -> str:
    """What a class is taken for and what is taken for it, the most frequent first; nothing without mistakes."""
    told = []
    for title, counts in (("taken for", confusion[index]), ("taken for it", confusion[:, index])):
        others = [i for i in np.argsort(-counts, kind="stable").tolist() if counts[i] and i != index]
        if others:
            named = "; ".join(f"{escape(class_names[i])} <b>{counts[i]}</b>" for i in others)
            told.append(f"<p><em>{title}:</em> {named}</p>")
    return "".join(told)
