"""An evaluation as a small table for the terminal."""

from __future__ import annotations

from art.eval.metrics import Evaluation, GroupAccuracy


def table(evaluation: Evaluation) -> str:
    """The share of each class, of each group of classes where there are groups, and the totals."""
    groups = evaluation.per_group
    totals = ("all clips, top-1", "all clips, top-5", "mean over classes")
    width = max(map(len, [*evaluation.class_names, *(_titled(group) for group in groups), *totals]))
    counts = evaluation.confusion.sum(axis=1)
    rule = "-" * (width + 28)
    lines = [
        _line(name, width, int(evaluation.confusion[i, i]), int(counts[i]))
        for i, name in enumerate(evaluation.class_names)
    ]
    if groups:
        lines += [rule, f"{'group of classes':<{width}}  {'top-1':>16} {'':8}  mean over its classes"]
        for group in groups:
            mean = "-" if group.mean_class_accuracy is None else f"{100 * group.mean_class_accuracy:.2f} %"
            lines.append(f"{_line(_titled(group), width, group.correct, group.clips):<{width + 27}}  {mean:>21}")
    lines += [
        rule,
        _line(totals[0], width, evaluation.correct_top1, evaluation.total),
        _line(totals[1], width, evaluation.correct_top5, evaluation.total),
        f"{totals[2]:<{width}}  {'':>16} {100 * evaluation.mean_class_accuracy:6.2f} %",
    ]
    return "\n".join(lines)


def _titled(group: GroupAccuracy) -> str:
    return f"{group.name} ({group.classes} class{'es' * (group.classes != 1)})"


def _line(name: str, width: int, correct: int, clips: int) -> str:
    share = f"{100 * correct / clips:6.2f} %" if clips else "     - "
    return f"{name:<{width}}  {correct:>6} of {clips:<6} {share}"
