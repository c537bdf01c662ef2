"""From counts and measured steps to many devices: what `bench_scaling` says of 1 to 1,024 of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.scaling_machines import MACHINES, Assumptions, Machine
from benchmarks.scaling_model import (
    FLOAT,
    STRATEGIES,
    Step,
    Work,
    bandwidth,
    collective_seconds,
    passes,
    predict,
)

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
#: Clips of a rank, where the batch grows with the ranks.
CLIPS = 8
#: The paper's batch, divided among the ranks: as many as divide it.
BATCH = 24
#: FineGym99's training list, version 1.1.
EPOCH_CLIPS = 26320
#: Decoding, as `bench_data` measured it: 16 frames of a clip whose short side is 320, with a keyframe every 12.
DECODED = ("data-cpu.json", "320p-12", "art")
#: What a CPU like the one that was measured would be connected with: 10 Gb/s Ethernet.
CPU_NETWORK_GBS = 1.25


def project(works: Mapping[str, Work], measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All tables.

    Args:
        works: by recipe.
        measured: results of `bench_scaling`; the first is of this device.

    Returns:
        "works", "assumed", "machines", "decoding", "shares" (of the peak, and where each comes from), "growing" (clips
        of a rank fixed), "divided" (batch fixed), "limits".
    """
    assumed, decoding = Assumptions(), _decoding()
    result: dict[str, Any] = {
        "works": {name: dataclasses.asdict(work) for name, work in works.items()},
        "assumed": dataclasses.asdict(assumed),
        "machines": {name: dataclasses.asdict(machine) for name, machine in MACHINES.items()},
        "decoding": decoding,
        "shares": [], "growing": [], "divided": [], "limits": [],
    }  # fmt: skip
    machines = [*MACHINES.values(), *_measured_cpu(measured[0])]
    for recipe, work in works.items():
        for machine in machines:
            share, source = _share(recipe, machine, measured, assumed)
            here = dataclasses.replace(assumed, device_share=share)
            where = {"recipe": recipe, "machine": machine.name}
            result["shares"].append({**where, "share": share, "source": source})
            clips = CLIPS if machine.name in MACHINES else 1

            def step(ranks: int, clips: float, strategy: str = "ddp", *, machine=machine, work=work, here=here) -> Step:
                rate = decoding["clips_per_second"]
                return predict(work, machine, ranks, clips, strategy=strategy, assumed=here, clips_per_core=rate)

            for strategy in STRATEGIES:
                result["growing"] += [
                    {
                        **where,
                        "strategy": strategy,
                        "ranks": ranks,
                        "clips": clips,
                        **_told(step(ranks, clips, strategy)),
                    }
                    for ranks in RANKS
                ]
            alone = step(1, BATCH).seconds
            result["divided"] += [
                {**where, "ranks": ranks, "clips": BATCH // ranks, **_told(step(ranks, BATCH / ranks)),
                 "speedup": alone / step(ranks, BATCH / ranks).seconds}
                for ranks in range(1, BATCH + 1) if BATCH % ranks == 0
            ]  # fmt: skip
            if machine.name in MACHINES:
                result["limits"].append({**where, **_limits(work, machine, here, decoding["clips_per_second"])})
    return result


def _told(step: Step) -> dict[str, Any]:
    return {**vars(step), "seconds": step.seconds, "efficiency": step.efficiency, "limit": step.limit}


def _limits(work: Work, machine: Machine, assumed: Assumptions, clips_per_core: float) -> dict[str, float]:
    """Where each part becomes the limit, at `RANKS`' largest number with DDP."""
    ranks, peak = RANKS[-1], machine.tflops * 1e12
    forward, backward = passes(work, 1, assumed.device_share * peak)
    sending = collective_seconds(
        "all-reduce", FLOAT * work.parameters, ranks, machine, assumed,
        calls=math.ceil(FLOAT * work.parameters / assumed.bucket_bytes),
    )  # fmt: skip
    decoded = machine.cores / machine.devices * clips_per_core
    return {
        "clips_per_second": 1 / (forward + backward),
        "decoded_per_second": decoded,
        "cores_wanted": 1 / (forward + backward) / clips_per_core,
        "share_where_decoding_limits": 2 * (work.forward_macs + work.backward_macs) * decoded / peak,
        "all_reduce_seconds": sending,
        "all_reduce_gbs": bandwidth(ranks, machine, assumed) / 1e9,
        "clips_that_hide_sending": sending / backward,
        "network_gbs_that_hides": _network_that_hides(work, assumed, ranks, CLIPS * backward),
        "storage_gbs": ranks * min(decoded, 1 / (forward + backward)) * _decoding()["file_bytes"] / 1e9,
        "steps_an_epoch": EPOCH_CLIPS / (ranks * CLIPS),
        "hours_between_failures": assumed.hours_to_failure / ranks,
        "checkpoint_bytes": 3 * FLOAT * work.parameters,
    }


def _network_that_hides(work: Work, assumed: Assumptions, ranks: int, backward: float) -> float:
    """10⁹ bytes a second, as published, of a machine's network at which the all-reduce takes the backward pass."""
    return 2 * (ranks - 1) / ranks * FLOAT * work.parameters / backward / assumed.link_share / 1e9


def _share(
    recipe: str, machine: Machine, measured: Sequence[Mapping[str, Any]], assumed: Assumptions
) -> tuple[float, str]:
    """The share of the peak rate that passes reach: of the largest number of clips that was measured there."""
    for result in measured:
        records = [record for record in result["records"] if record["recipe"] == recipe]
        if records and machine.device in result["machine"]["device"]:
            best = max(records, key=lambda record: record["clips"])
            return best["tflops"] / machine.tflops, f"measured on {result['machine']['device']}, {result['date'][:10]}"
    return assumed.device_share, "assumed"


def _measured_cpu(result: Mapping[str, Any]) -> list[Machine]:
    """The machine that was measured, if it computes on its CPU, as one of many in a network."""
    machine = result["machine"]
    if machine["kind"] != "cpu" or not result["records"]:
        return []
    ceilings = result["ceilings"]
    return [
        Machine(
            "cpu", machine["device"], 1, ceilings["matrix_tflops"], ceilings["copy_gbs"], math.inf, CPU_NETWORK_GBS,
            machine["cores"], "measured; 10 Gb/s Ethernet is our choice",
        )
    ]  # fmt: skip


def _decoding() -> dict[str, Any]:
    file, case, provider = DECODED
    result = json.loads((ROOT / "benchmarks" / "results" / file).read_text())
    record = next(
        record for record in result["records"]
        if (record["measured"], record["case"], record["provider"]) == ("decode", case, provider)
    )  # fmt: skip
    return {
        "clips_per_second": record["clips_per_second"],
        "file_bytes": record["file_bytes"],
        "source": f"{file}, {case}: {result['machine']['device']}, {result['date'][:10]}",
    }
