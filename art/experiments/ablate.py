"""What ``art ablate`` does: trains every run of a plan that is not there yet, and tells what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from art.data.files import atomic_write
from art.eval.evaluate import write_json
from art.eval.report.style import png_bytes
from art.experiments.ablation_chart import ablation_figure
from art.experiments.ablation_markdown import as_markdown
from art.experiments.ablation_plan import Plan, make_plan
from art.experiments.ablation_tables import Table
from art.experiments.runs import check_trainings, train_all
from art.train.config import Config, to_dict
from art.train.microbatch_metrics import differences, outcome, summary
from art.train.runtime import provenance


def ablate(config: Config, seeds: int, only: Sequence[str] = (), devices: Sequence[str] = ()) -> dict[str, Any]:
    """Trains the runs of the paper's ablations in ``<output>/<name>-seed<seed>``; writes ``ablate.json``, ``.md`` and
    ``.png``.

    Runs that are finished with the same configuration are not repeated, and one that stopped is continued. Rows of
    several tables that are the same configuration are one run.

    Args:
        config: the whole method; see :func:`.plan.make_plan`.
        seeds: how many, counting up from ``config.seed``.
        only: some of :data:`.tables.TABLES`; none is all.
        devices: of processes that train at once; see :func:`art.experiments.runs.train_all`.

    Returns:
        What ``ablate.json`` holds: "runs"; and "tables", each with its "rows": the "title", the "run" that it is, the
        "values" that it sets, its "summary" over seeds, and the "difference", seed by seed, to the row that it is
        compared with (None in the first).

    Raises:
        ValueError: for fewer than one seed, or an unknown table.
        ConfigError: before any training: for a configuration that cannot be trained or lacks what a row leaves out,
            or where one of the folders holds a run with another configuration.
        RunsFailed, Interrupted: see :func:`art.experiments.runs.train_all`.
    """
    plan = make_plan(config, seeds, only)
    check_trainings(plan.members())
    train_all(plan.runs(), devices)
    result = results(config, plan)
    output = Path(config.output)
    text, picture = as_markdown(result), png_bytes(ablation_figure(result["tables"], result["runs"]))
    atomic_write(output / "ablate.md", lambda path: path.write_text(text, encoding="utf-8"))
    atomic_write(output / "ablate.png", lambda path: path.write_bytes(picture))
    write_json(output / "ablate.json", result)
    return result


def results(config: Config, plan: Plan) -> dict[str, Any]:
    """See :func:`ablate`; all runs are finished."""
    of_variant = {name: [outcome(run) for run in members] for name, members in plan.members().items()}
    return {
        "config": to_dict(config),
        "seeds": [*plan.seeds],
        "runs": [{"run": name, **told} for name, members in of_variant.items() for told in members],
        "tables": [_table(table, plan.of_row[table.name], of_variant) for table in plan.tables],
        "provenance": provenance(),
    }


def _table(table: Table, variants: Sequence[str], of_variant: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    rows = []
    for place, (row, name) in enumerate(zip(table.rows, variants, strict=True)):
        other = variants[place - 1 if table.against == "before" else 0]
        rows.append(
            {
                "title": row.title,
                "run": name,
                "values": dict(row.values),
                "summary": summary(of_variant[name]),
                "difference": differences(of_variant[other], of_variant[name]) if place else None,
            }
        )
    return {"name": table.name, "title": table.title, "against": table.against, "rows": rows}
