"""The model of scaling: its formulas against what they say in words, the command, and the page that quotes it."""

import dataclasses
import json
import math
import re

import pytest

from benchmarks import bench_scaling
from benchmarks.machine import ROOT
from benchmarks.scaling_machines import MACHINES, Assumptions
from benchmarks.scaling_model import Step, Work, bandwidth, collective_seconds, exposed, hidden_behind, predict
from benchmarks.scaling_table import tables

ASSUMED = Assumptions(link_share=1.0, hop_inside=0.0, hop_between=0.0)
H100 = MACHINES["h100"]
WORK = Work(forward_macs=1e11, backward_macs=2e11, parameters=100_000_000, layers=10)
RESULT = ROOT / "benchmarks" / "results" / "scaling.json"


def step(ranks, clips=8, strategy="ddp", assumed=ASSUMED, machine=H100, work=WORK, clips_per_core=1e9) -> Step:
    return predict(work, machine, ranks, clips, strategy=strategy, assumed=assumed, clips_per_core=clips_per_core)


def test_one_rank_only_computes_and_updates():
    alone = step(1, clips=4)
    assert alone.computing == pytest.approx(2 * 4 * 3e11 / (0.4 * 989.4e12))
    assert alone.updating == pytest.approx(28 * 1e8 / (0.7 * 3.35e12))
    assert alone.sending == alone.notes == alone.slowest == alone.decoding == 0


def test_an_all_reduce_moves_twice_what_a_gather_and_a_scatter_move_each():
    for ranks in (2, 8, 24):
        times = {
            kind: collective_seconds(kind, 1e9, ranks, H100, ASSUMED)
            for kind in ("all-reduce", "all-gather", "reduce-scatter")
        }
        assert times["all-reduce"] == pytest.approx(times["all-gather"] + times["reduce-scatter"])
        assert times["all-gather"] == pytest.approx((ranks - 1) / ranks * 1e9 / bandwidth(ranks, H100, ASSUMED))


def test_the_slower_of_link_and_network_decides_beyond_a_machine():
    assert bandwidth(8, H100, ASSUMED) == 450e9
    assert bandwidth(9, H100, ASSUMED) == 400e9
    assert bandwidth(9, dataclasses.replace(H100, network_gbs=900.0), ASSUMED) == 450e9


def test_latency_grows_with_the_logarithm_for_an_all_reduce_and_with_the_ranks_for_a_ring():
    slow = dataclasses.replace(ASSUMED, hop_between=1e-3)
    reduced = [collective_seconds("all-reduce", 0, 8 * machines, H100, slow) for machines in (2, 4, 128)]
    assert reduced == pytest.approx([2e-3, 4e-3, 14e-3])
    gathered = [collective_seconds("all-gather", 0, 8 * machines, H100, slow) for machines in (2, 4, 128)]
    assert gathered == pytest.approx([1e-3, 3e-3, 127e-3])


@pytest.mark.parametrize(
    ("computing", "sending", "pieces", "left"), [(10, 5, 10, 0.5), (10, 9, 10, 0.9), (10, 20, 10, 11), (0, 7, 3, 7)]
)
def test_one_piece_is_never_hidden_nor_what_takes_longer_than_computing(computing, sending, pieces, left):
    assert hidden_behind(computing, sending, pieces) == pytest.approx(left)


def test_more_clips_hide_what_is_sent():
    sent = [step(64, clips).sending for clips in (1, 4, 16)]
    assert sent[0] > sent[1] == pytest.approx(sent[2])
    assert step(64, 16, "fsdp").sending > 0
    assert exposed(WORK, H100, 1, 1.0, 1.0, strategy="ddp", assumed=ASSUMED) == 0


def test_fsdp_updates_a_share_and_sends_more():
    ddp, fsdp = step(64, 1), step(64, 1, "fsdp")
    assert fsdp.updating == pytest.approx(ddp.updating / 64)
    assert fsdp.sending > ddp.sending


def test_decoding_takes_what_is_missing():
    slow = step(8, clips_per_core=10.0)
    assert slow.limit == "decoding"
    assert slow.seconds - slow.failing == pytest.approx(8 / (14 * 10.0))


def test_failures_cost_half_an_interval_and_a_restart_each():
    often = dataclasses.replace(ASSUMED, hours_to_failure=1.0, restart=36.0, checkpoint_every=0)
    found = step(1, assumed=often)
    assert found.failing == pytest.approx(0.01 * (found.seconds - found.failing))
    assert math.isclose(found.efficiency, 1 / 1.01)


def test_the_command_measures_projects_and_draws(tmp_path, capsys):
    out = tmp_path / "scaling.json"
    arguments = ["--quick", "--recipes", "b16", "--out", str(out), "--plots", str(tmp_path), "--ranks", "2"]
    assert bench_scaling.main(arguments) == 0
    result = json.loads(out.read_text())
    assert not result["failures"] and not result["left_out"]
    (record,) = result["records"]
    work = result["works"]["b16"]
    operations = 2 * (work["forward_macs"] + work["backward_macs"])
    assert record["tflops"] == pytest.approx(operations / record["passes"]["median_ms"] / 1e9)
    ranks = result["ranks"]
    assert ranks["computing"] > 0 and ranks["predicted"] > ranks["computing"] and ranks["measured"] > 0
    assert {row["machine"] for row in result["growing"]} == {"h100", "a40", "cpu"}
    sources = {row["machine"]: row["source"] for row in result["shares"]}
    assert sources["h100"] == "assumed" and sources["cpu"].startswith("measured on")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert all(table in capsys.readouterr().out for table in [tables(result)["limits"]])


def test_steps_of_a_gpu_take_the_place_of_what_is_assumed(tmp_path):
    result = json.loads(RESULT.read_text())
    record = {**result["records"][0], "clips": 8, "tflops": 494.7}
    gpu = {**result, "machine": {**result["machine"], "device": "NVIDIA H100 80GB HBM3", "kind": "cuda"}}
    projected = bench_scaling.project({"b16": Work(**result["works"]["b16"])}, [result, {**gpu, "records": [record]}])
    shares = {row["machine"]: (row["share"], row["source"]) for row in projected["shares"]}
    assert shares["h100"] == (pytest.approx(0.5), f"measured on NVIDIA H100 80GB HBM3, {result['date'][:10]}")
    assert shares["a40"] == (0.4, "assumed")


def test_a_file_without_steps_is_refused(tmp_path, capsys):
    other = ROOT / "benchmarks" / "results" / "model-cpu.json"
    with pytest.raises(SystemExit):
        bench_scaling.main(["--quick", "--steps", str(other)])
    assert re.search(r"--steps: .*model-cpu.json: it has no training steps", capsys.readouterr().err)


def test_the_page_quotes_the_results():
    page = (ROOT / "docs" / "scaling.md").read_text()
    for name, table in tables(json.loads(RESULT.read_text())).items():
        assert table in page, f"docs/scaling.md: its table {name!r} is not that of {RESULT.name}"
