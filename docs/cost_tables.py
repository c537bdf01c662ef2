"""Bytes and operations at the sizes of the benchmarks, as tables in the pages of the operations.

    python -m docs.cost_tables

Each table is between ``<!-- costs: begin -->`` and ``<!-- costs: end -->``; a test fails if it differs from the
counters of ``benchmarks``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import attention_providers, contrast_providers, linking_providers
from benchmarks.bench_region_attention import print_floor

DOCS = Path(__file__).parent
BEGIN, END = "<!-- costs: begin -->", "<!-- costs: end -->"
_BFLOAT16, _FLOAT32 = torch.bfloat16, torch.float32


def main() -> None:
    """Write the tables into the pages."""
    for page, table in TABLES.items():
        path = DOCS / page
        path.write_text(with_table(path.read_text(encoding="utf-8"), table()), encoding="utf-8")
        print(f"wrote docs/{page}")


def with_table(text: str, table: str) -> str:
    """Return the page with its table replaced."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page has no {BEGIN} … {END}; add both where the table belongs")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def region_attention() -> str:
    """Bounds printed by `bench_region_attention --floor`."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_floor(tuple(attention_providers.SHAPES), "cuda", ("bfloat16",))
    return text.getvalue().strip()


def tracklet_contrast() -> str:
    """Costs of `mtc_loss`."""
    rows = []
    for shape in contrast_providers.SHAPES.values():
        if shape.operation == "mtc_loss":
            b, t, k, c = shape.sizes
            megabytes = [_mega(shape.moved_bytes(_BFLOAT16, name)) for name in ("forward", "both")]
            operations = [_giga(shape.operations(name)) for name in ("forward", "both")]
            rows.append([shape.name, f"{b} × {t} × {k} × {c}", *megabytes, *operations])
    return _table(
        ["shape", "B × T × K × C", "MB forward", "MB with gradients", "GFLOP forward", "GFLOP with gradients"], rows
    )


def tracklet_nce() -> str:
    """Costs of `tracklet_nce`, and the size of a matrix of logits."""
    rows = []
    for shape in contrast_providers.SHAPES.values():
        if shape.operation == "tracklet_nce":
            m, c = shape.sizes
            kept = _mega(3 * m * _FLOAT32.itemsize)
            matrix = f"{m * m * _FLOAT32.itemsize / 1e9:.3g}"
            rows.append(
                [shape.name, f"{m:,} × {c}", _mega(shape.moved_bytes(_BFLOAT16, "both")),
                 _giga(shape.operations("both")), kept, matrix]
            )  # fmt: skip
    head = ["shape", "M = N, C", "MB both passes", "GFLOP both passes", "MB kept between", "GB of a float32 matrix"]
    return _table(head, rows)


def tracklet_linking() -> str:
    """Costs of `link_tracklets`."""
    rows = []
    for shape in linking_providers.SHAPES.values():
        b, t, k, c = shape.sizes
        moved, operations = _mega(shape.moved_bytes(_FLOAT32)), _giga(shape.operations())
        rows.append([shape.name, f"{b} × {t} × {k} × {c}", f"{shape.pairs:,}", moved, operations])
    return _table(["shape", "B × T × K × C", "problems", "MB, float32", "GFLOP of cosines"], rows)


def linear_assignment() -> str:
    """Costs of `linear_assignment`."""
    rows = []
    for name in linking_providers.SIZES:
        shape = linking_providers.assignment_shape(name, torch.device("cuda"))
        each = shape.moved_bytes(_FLOAT32, 1)
        rows.append([name, f"{each:,}", f"{shape.problems:,}", _mega(shape.moved_bytes(_FLOAT32, shape.problems))])
    return _table(["rows K", "bytes per problem, float32", "problems on a GPU", "MB"], rows)


def tracklet_pooling() -> str:
    """Costs of `pool_tracklets` with one semantic per tracklet."""
    rows = []
    for shape in contrast_providers.SHAPES.values():
        if shape.operation == "pool_tracklets":
            b, t, k, c = shape.sizes
            megabytes = [_mega(shape.moved_bytes(_BFLOAT16, name)) for name in ("forward", "backward")]
            operations = [_giga(shape.operations(name)) for name in ("forward", "backward")]
            rows.append([shape.name, f"{b} × {t} × {k} × {c}", str(k), *megabytes, *operations])
    head = ["shape", "B × T × K × C", "J", "MB forward", "MB backward", "GFLOP forward", "GFLOP backward"]
    return _table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "region_attention.md": region_attention,
    "tracklet_contrast.md": tracklet_contrast,
    "tracklet_nce.md": tracklet_nce,
    "tracklet_linking.md": tracklet_linking,
    "linear_assignment.md": linear_assignment,
    "tracklet_pooling.md": tracklet_pooling,
}


def _mega(count: int) -> str:
    return f"{count / 1e6:.3g}"


def _giga(count: int) -> str:
    value = count / 1e9
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
