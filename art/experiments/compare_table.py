"""A comparison as Markdown: accuracy and cost, and where the runs have tracklets, what became of those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from art.experiments.markdown import head, percent, row, seconds

_ACCURACY = {"top1": "top-1", "mean_class_accuracy": "mean class accuracy"}
_TRACKLETS = {
    "relinked": "links to another query",
    "limb_single": "frames near the limb (a tracklet)",
    "limb_best": "frames near the limb (the best of each clip)",
    "limb_any": "frames near the limb (any)",
}
_KINDS = {"backbone": "backbone alone", "art": "ART on it"}


def as_markdown(result: Mapping[str, Any]) -> str:
    """What :func:`.compare.compare` returns, as Markdown: means ± sample standard deviations over seeds (min … max).

    A comparison of "kind" calls its rows by what they are, another one by key and value.
    """
    told, seeds = result["provenance"], ", ".join(map(str, result["seeds"]))
    first_line = (
        f"Last checkpoint of each run on {result['runs'][0]['clips']} test clips; seeds {seeds}; "
        f"torch {told['torch']}, {told['machine']}, {told['date']}."
    )
    lines = [first_line, "", *_accuracy_table(result), ""]
    if any("relinked" in summary for summary in result["summary"].values()):
        lines += [*_tracklet_table(result), ""]
    return "\n".join([*lines, *_by_seed(result)]) + "\n"


def _accuracy_table(result: Mapping[str, Any]) -> list[str]:
    titles = [f"{title}, %" for title in _ACCURACY.values()]
    lines = head(*titles, "seconds a step", "waiting for data, s a step", "parameters")
    for value, summary in result["summary"].items():
        shares = [percent(summary[name]) for name in _ACCURACY]
        times = [seconds(summary[name]["mean"]) for name in ("step_seconds", "data_seconds")]
        lines.append(row(_title(result, value), *shares, *times, f"{summary['parameters']['mean']:,.0f}"))
    for title, paired in _pairs(result).items():
        lines.append(row(title, *(percent(paired[name], signed=True) for name in _ACCURACY), "", "", ""))
    return lines


def _tracklet_table(result: Mapping[str, Any]) -> list[str]:
    with_tracklets = {value: summary for value, summary in result["summary"].items() if "relinked" in summary}
    names = [name for name in _TRACKLETS if any(name in summary for summary in with_tracklets.values())]
    lines = head(*(f"{_TRACKLETS[name]}, %" for name in names))
    for value, summary in with_tracklets.items():
        lines.append(row(_title(result, value), *(percent(summary.get(name)) for name in names)))
    lines += _chances(result, with_tracklets, names)
    for title, paired in _pairs(result).items():
        if "relinked" in paired:
            lines.append(row(title, *(percent(paired.get(name), signed=True) for name in names)))
    return lines


def _chances(
    result: Mapping[str, Any], with_tracklets: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> list[str]:
    """What random regions on the body would reach: one row where all values of the key have the same chances."""
    cells = {
        value: [percent(summary.get(f"{name}_chance")) for name in names] for value, summary in with_tracklets.items()
    }
    known = {_title(result, value): own for value, own in cells.items() if any(own)}
    if len({tuple(own) for own in known.values()}) == 1:
        return [row("random regions on the body", *next(iter(known.values())))]
    return [row(f"random regions on the body, {title}", *own) for title, own in known.items()]


def _by_seed(result: Mapping[str, Any]) -> list[str]:
    titles, several = _ACCURACY | _TRACKLETS, len(result["summary"]) > 2
    return [
        f"{f'{pair}: ' if several else ''}Difference in {titles[name]} by seed, points: "
        + ", ".join(f"{seed}: {100 * v:+.2f}" for seed, v in zip(result["seeds"], values["by_seed"], strict=True))
        + "."
        for pair, paired in _pairs(result).items()
        for name, values in paired.items()
    ]


def _pairs(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The differences to the first value, by the title of their row."""
    first, *others = result["summary"]
    if len(others) == 1:
        return {"difference, paired by seed": result["paired"]}
    return {f"{_title(result, other)} less {first}, paired by seed": result["paired"][other] for other in others}


def _title(result: Mapping[str, Any], value: str) -> str:
    return _KINDS[value] if result["over"] == "kind" else f"{result['over']}={value}"
