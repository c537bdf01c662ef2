"""The report of ``art probe``: the table with explanations, charts, confusions, and attention maps of all heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from art.data.features import FeatureSplit
from art.data.files import write_text
from art.data.shards import ShardSet
from art.eval.metrics import Evaluation
from art.eval.report.confusion import PairExamples, collect_pairs
from art.eval.report.report import class_section, confusion_sections, page_header
from art.eval.report.samples import choose_clips
from art.eval.report.style import (
    INK,
    document,
    figure_pixels,
    jpeg_uri,
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
from art.eval.report.tracklets import frame_strip, shown_frames, tinted_frames
from art.experiments.probe_clips import ClipFrames, ClipUnreadable, ProbedClip, collect_clips, evaluate_heads
from art.experiments.probe_figures import accuracy_figure, selection_figures
from art.heads import Head
from art.terminal import plural
from art.train.runtime import provenance

_STEPS = 4  # time steps shown of each clip
_PIXELS = 150  # width of a frame
_QUALITY = 80  # of JPEG images, so that the file stays small
_SHOWN = 3  # correct clips, and as many wrong ones
_QUERIES = 16  # maps shown of one head on one clip
_PAIRS = 6  # confused pairs with clips
_BACKGROUND = 44  # gray level behind the maps of a clip without frames
_COLUMNS = {
    "top-1": "accuracy on the test clips, mean over seeds, after training on all training clips.",
    "95 % over seeds": "interval of the mean over seeds (Student's t): how much the result depends on initial weights "
    "and the order of the clips. It does not cover the choice of test clips.",
    "95 % over clips": "bootstrap interval over the test clips: how much the result would change with other clips of "
    "the same kind. Heads whose intervals overlap widely are not distinguished by this test split.",
    "mean class": "mean of the accuracies of the classes.",
    "reversed": "top-1 when the time steps are in the opposite order. A head with equal numbers in both columns does "
    "not use the order.",
    "held out": "accuracy on the held-out training clips with the selected learning rate and number of epochs.",
    "MFLOP": "floating-point operations of the head for one clip, without the backbone; an addition and a "
    "multiplication count as two.",
    "MiB read": "features of one clip on disk.",
    "training, s": "time of the training steps of one seed, without reading the features.",
    "best on test": "the best test accuracy over all learning rates and seeds, after the last epoch of heads that were "
    "trained without the held-out clips. Many papers report it. It is selected on the test split, so it is "
    "optimistic and must not be compared with the first column.",
}
_NOT_COMPARABLE = (
    "Published probes augment the training clips, so that the features differ in each epoch; here the features of the "
    "stored views are used without further augmentation.",
    "They average several segments and crops of each test clip; here each test clip has one view.",
    "They often select learning rate and epoch on the test split; that is the column “best on test”.",
    "Accuracy after training or fine-tuning the backbone is a different quantity: here the backbone is frozen.",
)
_STYLE = """<style>
.terms { display: grid; gap: 3px; margin: 12px 0 0; font-size: 13.5px; max-width: 110ch; }
.terms div { display: grid; grid-template-columns: 128px minmax(0, 1fr); gap: 10px; }
.terms dt { font-weight: 650; } .terms dd { margin: 0; color: var(--muted); overflow-wrap: anywhere; }
.head { display: grid; grid-template-columns: minmax(110px, 150px) minmax(0, 1fr); gap: 12px; align-items: center; }
.head img, .queries img { width: 100%; display: block; border-radius: 4px; }
.others { display: flex; flex-wrap: wrap; gap: 8px 28px; }
.head p, .others p { font-size: 12.5px; line-height: 1.4; overflow-wrap: anywhere; }
.head p b, .others p b { font-size: 14px; } .head small, .others small { color: var(--muted); display: block; }
.odds { color: var(--muted); }
.missing { margin-bottom: 14px; }
.right { color: var(--blue); } .mistake { color: var(--vermilion); }
.queries { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 12px; }
.queries figure { margin: 0; } .queries figcaption { font-size: 12.5px; color: var(--muted); margin-bottom: 2px; }
.queries + h3, .card + h3 { margin: 16px 0 6px; }
.plain { margin: 0; padding-left: 20px; font-size: 14px; max-width: 110ch; }
@media (max-width: 560px) { .head, .terms div { grid-template-columns: minmax(0, 1fr); gap: 4px; } }
</style>"""


def write_report(path: Path, result: Mapping[str, Any], heads: Mapping[str, Head], test: FeatureSplit) -> None:
    """Write the report of a probe: one HTML file with all images embedded.

    Args:
        path: of the file.
        result: output of :func:`art.experiments.probe.probe`.
        heads: the trained heads of the first seed, by name.
        test: the features of the test split. Frames are read again from the dataset that the manifest names; if it
            is not there, the report names the reason and shows the maps alone.
    """
    dataset = test.manifest["dataset"]["name"]
    title = f"Heads on frozen {test.manifest['backbone']['name']}, {dataset}"
    parts = [_STYLE, page_header(title, _facts(result, test)), _numbers(result), _table(result), _charts(result)]
    if heads:
        best = best_head(result)
        frames = ClipFrames(test)
        evaluations = evaluate_heads(heads, test)
        evaluation = evaluations[best]
        chosen = choose_clips(evaluation, right=_SHOWN, wrong=_SHOWN, seed=0)
        numbers = [int(evaluation.indices[row]) for rows in chosen for row in rows]
        clips = collect_clips(heads, test, numbers, frames)
        parts += [_maps(clips, result, best, test), _queries(clips[0], test), *_best(best, evaluation, frames)]
    parts += [_comparability(), _origin(result, test)]
    write_text(path, document(title, "\n".join(filter(None, parts))))


def best_head(result: Mapping[str, Any]) -> str:
    """Return the trained head with the best accuracy on the held-out clips."""
    trained = {name: row["holdout_accuracy"] for name, row in result["heads"].items() if "lr" in row}
    return max(trained, key=trained.__getitem__)


def _facts(result: Mapping[str, Any], test: FeatureSplit) -> dict[str, Any]:
    manifest, clips = test.manifest, result["clips"]
    shape = manifest["shape"]
    return {
        "backbone": manifest["backbone"]["name"],
        "weights": Path(manifest["backbone"]["pretrained"] or "random").name,
        "license": manifest["backbone"]["license"] or "unknown",
        "dataset": manifest["dataset"]["name"],
        "tokens": f"{shape['num_steps']} time steps of {shape['grid'][0]} × {shape['grid'][1]}, "
        f"{shape['channels']} channels",
        "clips": f"{clips['train']} training, {clips['holdout']} of them held out for selection; {clips['test']} test",
        "seeds": result["settings"]["seeds"],
    }


def _numbers(result: Mapping[str, Any]) -> str:
    cards = []
    for name, row in result["heads"].items():
        low, high = row["interval_over_clips"]
        detail = f"{100 * low:.1f} to {100 * high:.1f} over clips"
        cards.append(number_card(percent(mean(row["top1"])), name, detail))
    cards.append(number_card(percent(result["chance"]), "chance", "always the largest class"))
    return f'<div class="numbers">\n{"".join(cards)}\n</div>'


def _table(result: Mapping[str, Any]) -> str:
    rows = []
    for name, row in result["heads"].items():
        setting = f"lr {row['lr']:g}, {plural(row['epochs'], 'epoch')}" if "lr" in row else f"k = {row['neighbors']}"
        rows.append(
            [
                text_cell(name, setting),
                percent_cell(mean(row["top1"]), "correct"),
                _interval_cell(row.get("interval_over_seeds")),
                _interval_cell(row["interval_over_clips"]),
                _mean_cell(row.get("mean_class_accuracy")),
                _mean_cell(row.get("reversed_top1")),
                _mean_cell([row["holdout_accuracy"]]),
                number_cell(f"{row['parameters']:,}"),
                number_cell(f"{row['flops'] / 1e6:,.3g}" if "flops" in row else "–"),
                number_cell(f"{row['mib_per_clip']:.2f}" if "mib_per_clip" in row else "–"),
                number_cell(f"{row['seconds']:.1f}" if "seconds" in row else "–"),
                _mean_cell([row["best_on_test"]] if "best_on_test" in row else None),
            ]
        )
    names = [*_COLUMNS]
    columns = ["head", *names[:6], "parameters", *names[6:]]
    terms = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in _COLUMNS.items())
    note = (
        "For each head, the learning rate and the number of epochs were selected on held-out training clips. The head "
        "was then trained on all training clips and evaluated once on the test split."
    )
    body = f'<div class="card">{table(columns, rows)}</div>'
    return section("heads", "Heads", note, body, f'<dl class="terms">{terms}</dl>')


def _interval_cell(pair: Sequence[float] | None) -> str:
    return number_cell("–" if pair is None else f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f}")


def _mean_cell(values: Sequence[float] | None) -> str:
    return number_cell("–" if values is None else percent(mean(values)))


def _charts(result: Mapping[str, Any]) -> str:
    accuracy = to_svg(accuracy_figure(result), label="accuracy, parameters and operations of each head", prefix="heads")
    note = (
        "Dots: seeds. Thick line: 95 % interval over test clips; thin line with ends: over seeds. Dashed: chance. "
        "The scales of parameters and operations are logarithmic."
    )
    parts = [section("accuracy", "Accuracy and cost", note, f'<div class="card scroll">{accuracy}</div>')]
    figures = selection_figures(result)
    if figures:
        cards = [
            f'<div class="card">{to_svg(figure, label=f"held-out accuracy of {name}", prefix=f"select{i}")}</div>'
            for i, (name, figure) in enumerate(figures.items())
        ]
        note = (
            "Accuracy on the held-out clips after each epoch, by learning rate: mean over seeds, and each seed as a "
            "thin line. Ring: the selected learning rate and number of epochs."
        )
        parts.append(section("selection", "Selection of settings", note, '<div class="charts">', *cards, "</div>"))
    return "\n".join(parts)


def _maps(clips: Sequence[ProbedClip], result: Mapping[str, Any], best: str, test: FeatureSplit) -> str:
    """Return the section with the maps of all heads on each clip."""
    without = [name for name in result["heads"] if name not in clips[0].maps]
    note = (
        f"Test clips that {best}, the head with the best held-out accuracy, classifies correctly and wrongly, chosen "
        "at random with a fixed seed. Tint: where the mean over a head's queries is above the average of the time "
        "step, strongest at the maximum of the clip; nearly uniform maps stay without tint. The number in a frame is "
        f"the time step, from 0 to {test.manifest['shape']['num_steps'] - 1}. All heads are those of the first seed."
    )
    if without:
        note += f" Without maps, because they do not attend: {', '.join(without)}."
    if "knn" in without:
        note += " The votes of knn for single clips are not stored."
    problems = list(dict.fromkeys(clip.problem for clip in clips if clip.problem))
    warning = "".join(
        f'<p class="card missing">Frames are missing, so the maps are drawn alone: {name_html(problem, 400)}.</p>'
        for problem in problems
    )
    names = test.manifest["class_names"]
    columns = []
    for kind in ("correct", "wrong"):
        chosen = [c for c in clips if (int(c.probabilities[best].argmax()) == c.label) == (kind == "correct")]
        cards = [_clip_card(clip, kind, names) for clip in chosen]
        if not cards:
            cards = [f'<p class="card empty">No clip with a {kind} prediction.</p>']
        heading = f'<p class="side {kind}">{kind.capitalize()} <span>· prediction of {escape(best)}</span></p>'
        columns.append(f"<div>\n{heading}\n" + "\n".join(cards) + "\n</div>")
    return section("maps", "Where each head looks", note, warning, '<div class="columns">', *columns, "</div>")


def _clip_card(clip: ProbedClip, kind: str, names: Sequence[str]) -> str:
    """Return the HTML of a clip: its frames, and a row for each head with its map and prediction."""
    rows = [_row("<p><b>frames</b></p>", clip.frames, "frames")] if clip.frames is not None else []
    for name, maps in clip.maps.items():
        whole = maps.mean(1, keepdims=True)
        label = f"<p><b>{escape(name)}</b><br>{_prediction(clip, name, names)}<small>{_describe(maps)}</small></p>"
        rows.append(_row(label, _tinted(clip, whole)[0], f"map of {name}"))
    others = "".join(
        f"<p><b>{escape(name)}</b><br>{_prediction(clip, name, names)}<small>no map</small></p>"
        for name in clip.probabilities if name not in clip.maps
    )  # fmt: skip
    content = "\n".join(rows) + (f'\n<div class="others">{others}</div>' if others else "")
    return (
        f'<article class="card clip {kind}">\n<div><h3>{name_html(names[clip.label])} <em>true class</em></h3>\n'
        f'<p class="file">{name_html(clip.path)}</p></div>\n{content}\n</article>'
    )


def _row(label: str, frames: UInt8[np.ndarray, "t height width 3"], alt: str) -> str:
    return f'<div class="head">{label}<img src="{_strip(frames)}" alt="{escape(alt)}"></div>'


def _strip(frames: UInt8[np.ndarray, "t height width 3"], color: str = INK) -> str:
    strip = frame_strip(frames, shown_frames(len(frames), _STEPS), color=color, pixels=_PIXELS)
    return jpeg_uri(figure_pixels(strip), quality=_QUALITY)


def _tinted(clip: ProbedClip, maps: Float[np.ndarray, "t k h w"]) -> UInt8[np.ndarray, "k t height width 3"]:
    """Draw maps over the frames, or over gray if there are none."""
    frames = clip.frames
    if frames is None:
        height, width = (maps.shape[2] * _PIXELS // maps.shape[3], _PIXELS)
        frames = np.full((len(maps), height, width, 3), _BACKGROUND, dtype=np.uint8)
    return tinted_frames(frames, maps)


def _describe(maps: Float[np.ndarray, "t k h w"]) -> str:
    """Name the number of maps, the maximum of their mean, and a time step with much more weight than the others."""
    count, mean_map = maps.shape[1], maps.mean(1)
    peak = (
        f"{'1 map' if count == 1 else f'mean of {count} maps'}, peak {mean_map.max() / mean_map.mean():.1f} × uniform"
    )
    return peak + _dominant_step(mean_map)


def _dominant_step(weights: Float[np.ndarray, "t h w"]) -> str:
    """Name the time step with the largest weight if it has more than 1.5 times the mean."""
    steps = weights.sum((1, 2))
    if steps.max() <= 1.5 * steps.mean():
        return ""
    return f", {100 * steps.max() / steps.sum():.0f} % of the weight in step {int(steps.argmax())}"


def _prediction(clip: ProbedClip, head: str, names: Sequence[str]) -> str:
    probabilities = clip.probabilities[head]
    predicted = int(probabilities.argmax())
    kind = "right" if predicted == clip.label else "mistake"
    value = float(probabilities[predicted])
    return f'<span class="{kind}">{name_html(names[predicted])}</span> <span class="odds">{percent(value)}</span>'


def _queries(clip: ProbedClip, test: FeatureSplit) -> str:
    """Return the section with every map of each head on one clip."""
    several = {name: maps for name, maps in clip.maps.items() if maps.shape[1] > 1}
    if not several:
        return ""
    parts = []
    for name, maps in several.items():
        tinted = _tinted(clip, maps[:, :_QUERIES])
        figures = []
        for k, frames in enumerate(tinted):
            caption = f"map {k + 1}{_dominant_step(maps[:, k])}"
            figures.append(
                f'<figure><figcaption>{caption}</figcaption><img src="{_strip(frames)}" alt="map {k + 1}"></figure>'
            )
        left = maps.shape[1] - len(tinted)
        heading = f"{escape(name)}<em> {plural(maps.shape[1], 'map')}{f', {left} not shown' if left else ''}</em>"
        parts.append(f'<h3>{heading}</h3><div class="queries">{"".join(figures)}</div>')
    true = test.manifest["class_names"][clip.label]
    note = (
        f"Each map of the heads with several, on the first clip above ({true}): the queries of efficient probing, the "
        "attention heads of attentive, the tracklets of art."
    )
    return section("queries", "Every query on one clip", note, f'<div class="card">{"".join(parts)}</div>')


def _best(best: str, evaluation: Evaluation, frames: ClipFrames) -> list[str]:
    """Return the sections with classes and confusions of the head that was best on the held-out clips."""
    pairs: list[PairExamples] = []
    problem = frames.problem
    if frames.clip_set is not None and not isinstance(frames.clip_set, ShardSet):
        try:
            pairs = collect_pairs(frames.clip_set, evaluation, frames.read, limit=_PAIRS)
        except ClipUnreadable as error:
            problem = str(error)
    note = (
        f"The following sections are about {best}, which has the best accuracy on the held-out clips, with its first "
        "seed."
    )
    if problem:
        note += f" Clips of confused pairs are missing: {problem}."
    names = evaluation.class_names
    return [
        section("best", f"Confusions of {best}", note, _headline(evaluation)),
        confusion_sections(evaluation, names, pairs),
        class_section(evaluation, names),
    ]


def _headline(evaluation: Evaluation) -> str:
    cards = [
        number_card(
            percent(evaluation.top1), "top-1 accuracy", f"{evaluation.correct_top1} of {evaluation.total} clips"
        ),
        number_card(percent(evaluation.top5), "top-5 accuracy"),
        number_card(percent(evaluation.mean_class_accuracy), "mean over classes"),
    ]
    return f'<div class="numbers">{"".join(cards)}</div>'


def _comparability() -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in _NOT_COMPARABLE)
    return section("comparable", "What these numbers are not comparable with", "", f'<ul class="plain">{items}</ul>')


def _origin(result: Mapping[str, Any], test: FeatureSplit) -> str:
    """Return the section with everything that determines the numbers."""
    manifest = test.manifest
    backbone, sampling = manifest["backbone"], manifest["sampling"]
    frame_size = manifest["frame_size"]
    entries = {
        "backbone": " ".join([backbone["name"], *(f"{key}={value}" for key, value in backbone["options"].items())]),
        "weights": str(backbone["pretrained"] or "random"),
        "SHA-256": backbone["sha256"],
        "license": backbone["license"] or "unknown; the library does not publish it",
        "dataset": f"{manifest['dataset']['name']}, {manifest['dataset']['root']}",
        "frames": f"{manifest['num_frames']} per clip, {sampling['kind']}, stride {sampling['stride']}; "
        + (f"shorter side {frame_size}; " if frame_size else "")
        + f"center crop of {manifest['test_crop']:g}, {manifest['input_size']} × {manifest['input_size']} pixels",
        "features": f"{test.directory}, {manifest['dtype']}, {plural(manifest['views'], 'view')}, precision "
        f"{manifest['precision']}, seed {manifest['seed']}",
        "extracted": _versions(manifest["versions"]),
        "probed": _versions(provenance()),
        "settings": " ".join(f"{key}={_setting(value)}" for key, value in result["settings"].items()),
    }
    rows = "".join(f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in entries.items())
    note = "The clips of each split are identified by hashes in the manifest of the features."
    return section("origin", "Origin", note, f'<dl class="terms card">{rows}</dl>')


def _versions(facts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _setting(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
