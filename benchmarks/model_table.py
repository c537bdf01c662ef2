"""What `bench_model` measured, as text."""

from __future__ import annotations

from typing import Any

from benchmarks.model_measure import COUNTED, macs
from benchmarks.model_peers import ART_OURS, MODELS, PUBLISHED, Model
from benchmarks.table import Column, place, print_missing, print_table

_COLUMNS: tuple[Column, ...] = (
    ("pass", -8, lambda record: record["pass"]),
    ("model", -25, lambda record: record["provider"]),
    ("ms", 9, lambda record: f"{record['median_ms']:.4g}"),
    ("20-80 %", 15, lambda record: f"{record['p20_ms']:.4g}-{record['p80_ms']:.4g}"),
    ("of published", 12, lambda record: f"{record['ratio']:.3f}x"),
    ("20-80 %", 13, lambda record: f"{record['ratio_p20']:.3f}-{record['ratio_p80']:.3f}"),
    ("MiB", 9, lambda record: f"{record['peak_extra_bytes'] / 2**20:.1f}"),
    ("of published", 12, lambda record: f"{record['peak_ratio']:.3f}x"),
    ("GMAC", 9, lambda record: f"{record['macs'] / 1e9:.2f}"),
    ("difference", 10, lambda record: f"{record['difference']:.1e}"),
)

_STAGES: tuple[Column, ...] = (
    ("stage", -12, lambda stage: stage["stage"]),
    ("Mparameters", 11, lambda stage: f"{stage['parameters'] / 1e6:.2f}"),
    ("GMAC", 9, lambda stage: f"{stage['forward_macs'] / 1e9:.2f}"),
    ("and backward", 12, lambda stage: f"{(stage['forward_macs'] + stage['backward_macs']) / 1e9:.2f}"),
    ("MiB kept", 9, lambda stage: f"{stage['activation_bytes'] / 2**20:.1f}"),
)


def print_records(model: Model, dtype: str, records: list[dict[str, Any]]) -> None:
    """The table of one model in one dtype: "of published" is the median over rounds of the share of the published
    backbone's time in the same round, and that of its peak; GMAC are 10⁹ multiply-adds."""
    print(f"\n{model.name}, {dtype}: {model.described()}")
    print_table(_COLUMNS, records)


def print_summary(result: dict[str, Any]) -> None:
    """Operations by stage, what is to be reached, where it was measured, and whatever is not in the tables."""
    for name, providers in result["counts"].items():
        for provider in (PUBLISHED, ART_OURS):
            total = macs(providers[provider]) / 1e9
            print(f"\n{provider}, {MODELS[name].backbone}, {MODELS[name].frames} frames, 1 clip: {total:,.1f} GMAC")
            print_table(_STAGES, [stage for stage in providers[provider] if stage["forward_macs"]])
    print()
    for what, found, bound in goals(result):
        print(f"{'reached' if found <= bound else 'MISSED'}: {what}: {found:,.3f}, at most {bound:,.2f}")
    print(f"\n{place(result)}")
    print_missing(result)


def goals(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What ART is to cost at most, beside the published backbone alone: in words, what was found, the bound.

    Nothing where it was to be quick: that says nothing of costs.
    """
    found: list[tuple[str, float, float]] = []
    if result["arguments"]["quick"]:
        return found
    for record in result["records"]:
        if record["provider"] == ART_OURS:
            where = f"{record['model']}, {record['dtype']}"
            if record["pass"] == "forward":
                found.append((f"ART's time forward, of the published backbone's ({where})", record["ratio"], 1.0))
            else:
                step = "ART's time of a training step, of the published backbone's"
                if result["machine"]["kind"] == "cuda":
                    found.append((f"{step} ({where})", record["ratio"], 1.03))
                peak = "ART's peak memory of a training step, of the published backbone's"
                found.append((f"{peak} ({where})", record["peak_ratio"], 1.05))
    if COUNTED in result["counts"]:
        providers = result["counts"][COUNTED]
        found.append(("ART's GMAC on L/14 at 16×224", macs(providers[ART_OURS]) / 1e9, 1332.0))
    return found
