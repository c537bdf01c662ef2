"""The benchmark of region attention: providers, lower bounds, records, the crossing of the routes, charts."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import attention_providers, bench_region_attention
from benchmarks.attention_providers import (
    BASELINE,
    FOLDED,
    PASSES,
    PROVIDERS,
    SDPA_COMPILED,
    SHAPES,
    AttentionShape,
    build,
    draw_inputs,
    errors,
    floor,
    oracle,
    pass_call,
    unsupported_reason,
    values_and_gradients,
)
from benchmarks.bench_region_attention import (
    Settings,
    copy_figure,
    crossing_figure,
    evaluate_rule,
    main,
    rule,
    run,
    times_figure,
)
from benchmarks.common import measure
from benchmarks.common.measure import OURS, peak_extra_bytes, require_accurate
from benchmarks.common.results import OUT_OF_TIME, ROOT

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
QUICK = Settings(shapes=("tiny",), quick=True)
COMPILED = {name for name in PROVIDERS if name.endswith("compiled")}


@pytest.fixture(autouse=True)
def with_compiler(monkeypatch):
    """Let torch.compile find a compiler; quick runs do not use it."""
    monkeypatch.setattr(measure.shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("region_dim", [8, 6], ids=["joint in_proj_weight", "separate projections"])
def test_every_provider_computes_the_same(tiny, provider, region_dim):
    shape = replace(tiny, frames=4, region_dim=region_dim)
    inputs = draw_inputs(shape, CPU, torch.float32)
    values = values_and_gradients(build(provider, shape, inputs, quick=True), inputs)
    assert values["output"].shape == (4, 2, 8)
    assert max(errors(values, oracle(shape, inputs)).values()) < 2e-6


def test_passes_compute_what_their_names_state(tiny):
    inputs = draw_inputs(tiny, CPU, torch.float32)
    module = build(BASELINE, tiny, inputs)
    values = values_and_gradients(module, inputs)
    output = pass_call("forward", module, inputs)()
    torch.testing.assert_close(output, values.pop("output"))
    assert not output.requires_grad
    for name in ("backward", "both"):
        call = pass_call(name, module, inputs)
        for gradients in (call(), call()):  # repeatedly
            for gradient, expected in zip(gradients, values.values(), strict=True):
                torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    "shape",
    [SHAPES["art-256"].sized(CPU), AttentionShape("long clips", 20, 20, 1, 1576, 256, 256, 8, norm_regions=True)],
    ids=lambda shape: shape.name,
)
def test_training_needs_a_quarter_of_the_memory_of_multihead_attention(shape):
    inputs = draw_inputs(shape, CPU, torch.float32)
    peaks = {}
    for provider in (OURS, BASELINE):
        call = pass_call("both", build(provider, shape, inputs), inputs)
        call()
        peaks[provider] = peak_extra_bytes(call, CPU)
    assert inputs.regions.nbytes < peaks[OURS] <= peaks[BASELINE] / 4


def test_the_same_seed_draws_the_same_inputs_and_no_bias_is_zero(tiny):
    first, second = (draw_inputs(tiny, CPU, torch.float16) for _ in range(2))
    assert torch.equal(first.regions, second.regions)
    assert torch.equal(first.weights["in_proj_bias"], second.weights["in_proj_bias"])
    assert first.weights["in_proj_bias"].all() and first.weights["out_proj.bias"].all()
    assert {weight.dtype for weight in first.weights.values()} == {torch.float16}


def test_errors_are_relative_to_the_largest_element_and_keep_nan():
    true_values = {name: torch.tensor([1.0, -4.0], dtype=torch.float64) for name in ("output", "grad_a", "grad_b")}
    values = {"output": torch.tensor([1.0, -3.0]), "grad_a": torch.tensor([1.5, -4.0]), "grad_b": torch.ones(2)}
    assert errors(values, true_values) == {
        "output": 0.25, "grad_queries": 0.0, "grad_regions": 0.0, "grad_weights": 1.25
    }  # fmt: skip
    values["grad_a"] = torch.tensor([torch.nan, -4.0])
    with pytest.raises(ArithmeticError, match="grad_weights is nan"):
        found = errors(values, true_values)
        require_accurate(found, found)


def test_the_lower_bound_matches_one_counted_by_hand():
    shape = AttentionShape("", 2, 2, 3, 5, 7, 4, 2)  # F=2, K=3, N=5, C=7, E=4, H=2
    regions, queries, weights = 2 * 5 * 7, 2 * 3 * 4, 4 * 4 + 4 * 7 + 4 * 7 + 4 * 4 + 4 * 4
    module = nn.MultiheadAttention(4, 2, kdim=7, vdim=7)
    assert weights == sum(parameter.numel() for parameter in module.parameters()) == 104
    # W_Q, W_K into the queries, scores of H·K rows, pooling, W_V, W_O, per frame
    operations = 2 * (2 * 3 * 4 * 4 + 2 * 3 * 4 * 7 + 2 * 6 * 5 * 7 + 2 * 6 * 5 * 7 + 2 * 3 * 4 * 7 + 2 * 3 * 4 * 4)
    forward, backward, both = (floor(shape, torch.bfloat16, name) for name in PASSES)
    assert (forward.bytes, forward.operations) == (2 * (regions + queries + weights + queries), operations)
    assert (forward.bytes, forward.operations) == (444, 2736)
    assert (backward.bytes, backward.operations) == (2 * (2 * regions + 3 * queries + 2 * weights), 2 * operations)
    assert (both.bytes, both.operations) == (forward.bytes + backward.bytes, 3 * operations)
    assert floor(shape, torch.float32, "both").bytes == 2 * both.bytes


def test_sizes_of_a_shape_on_each_device():
    art = SHAPES["art-256"]
    assert (art.sized(CPU).frames, art.sized(torch.device("cuda")).frames) == (128, 384)
    for shape in SHAPES.values():
        quick = shape.sized(CPU, quick=True)
        assert quick.frames == 1 and quick.regions < 20 and quick.queries < 4
        kept = ("region_dim", "embed_dim", "num_heads", "norm_regions")
        assert all(getattr(quick, name) == getattr(shape, name) for name in kept)


def test_the_result_has_a_record_for_each_measurement(tiny):
    result = run(replace(QUICK, dtypes=("bfloat16",)))
    assert not result["failures"] and not result["skipped"] and result["crossing"] is None
    text = json.dumps(result)
    assert json.loads(text) == result
    assert str(ROOT) not in text
    assert result["arguments"]["shapes"] == ["tiny"] and result["arguments"]["quick"]
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["torch"] == torch.__version__ and {"triton", "python", "commit", "date"} <= result.keys()
    keys = [(record["dtype"], record["pass"], record["provider"]) for record in result["records"]]
    assert keys == [("bfloat16", name, provider) for name in PASSES for provider in PROVIDERS]
    for record in result["records"]:
        check_record(record, result)


def check_record(record, result):
    assert (record["frames"], record["queries"], record["regions"], record["region_dim"]) == (1, 2, 7, 6)
    assert (record["embed_dim"], record["num_heads"], record["norm_regions"]) == (8, 2, True)
    assert 0 < record["p20_ms"] <= record["median_ms"] <= record["p80_ms"] and record["repetitions"] >= 2
    assert record["host_ms"] is None
    times = {r["provider"]: r["median_ms"] for r in result["records"] if r["pass"] == record["pass"]}
    own = times[record["provider"]]
    assert record["speedup_over_baseline"] == pytest.approx(times[BASELINE] / own)
    assert record["speedup_over_folded"] == pytest.approx(times[FOLDED] / own)
    if record["provider"] == OURS:
        assert record["speedup_over_best_other"] == pytest.approx(min(t for n, t in times.items() if n != OURS) / own)
    assert (record["best_other"] is None) == (record["provider"] != OURS)
    size = getattr(torch, record["dtype"]).itemsize
    assert record["peak_extra_bytes"] >= size * (16 if record["pass"] == "forward" else 16 + 7 * 6)  # the results
    assert record["achieved_gbs"] == pytest.approx(record["moved_bytes"] / record["median_ms"] / 1e6)
    assert record["copy_fraction"] == pytest.approx(record["achieved_gbs"] / result["copy_gbs"])
    assert record["errors"].keys() == {"output", "grad_queries", "grad_regions", "grad_weights"}
    assert (record["served_by"] is None) == (record["provider"] != OURS)


class Wrong(attention_providers.ScaledDotProduct):
    """Accurate to a thousandth, which is far off in float32."""

    def forward(self, queries, regions):
        return super().forward(queries, regions) * 1.001


def test_a_provider_that_computes_something_else_fails(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(attention_providers.MODULES, "sdpa", Wrong)
    out = tmp_path / "result.json"
    assert main(["--shapes", "tiny", "--passes", "forward", "--quick", "--out", str(out)]) == 1
    assert "FAILED: tiny, float32, sdpa: ArithmeticError" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert {record["provider"] for record in result["records"]} == set(PROVIDERS) - {"sdpa"}
    (failure,) = result["failures"]
    assert (failure["shape"], failure["dtype"], failure["provider"]) == ("tiny", "float32", "sdpa")
    assert "the error of output is" in failure["error"]


def test_without_a_compiler_the_compiled_providers_are_skipped_with_the_reason(tiny, monkeypatch):
    monkeypatch.setattr(measure.shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "some-compiler")
    result = run(replace(QUICK, passes=("forward",)))
    assert {record["provider"] for record in result["records"]} == set(PROVIDERS) - COMPILED
    reason = unsupported_reason(SDPA_COMPILED, CPU)
    assert [(entry["provider"], entry["reason"]) for entry in result["skipped"]] == [
        (provider, reason) for provider in PROVIDERS if provider in COMPILED
    ]
    assert "some-compiler is not found" in reason


def test_some_providers_can_be_selected_but_the_baseline_and_ours_are_always_measured(tiny):
    result = run(replace(QUICK, passes=("forward",), providers=("sdpa",)))
    assert [record["provider"] for record in result["records"]] == [BASELINE, "sdpa", OURS]
    assert {record["speedup_over_folded"] for record in result["records"]} == {None}


def test_no_case_starts_after_the_deadline(tiny):
    result = run(replace(QUICK, crossing=True), deadline=time.monotonic() - 1)
    assert result["records"] == [] and result["crossing"]["points"] == []
    assert result["crossing"]["queries_skipped"] == [1, 3]
    assert [entry["shape"] for entry in result["skipped"]] == ["tiny", "crossing"]
    assert {entry["reason"] for entry in result["skipped"]} == {OUT_OF_TIME}


def test_the_command_writes_result_table_and_charts(tiny, tmp_path, capsys):
    out, plots = tmp_path / "new" / "result.json", tmp_path / "plots"
    arguments = ["--shapes", "tiny", "--passes", "both", "--quick", "--crossing"]
    assert main([*arguments, "--out", str(out), "--plots", str(plots)]) == 0
    table = capsys.readouterr().out
    assert "tiny, float32: 1 frames, 2 queries of 8, 7 layer-normalized regions of 6, 2 heads" in table
    assert all(provider in table for provider in PROVIDERS)
    assert "tiny, float32, both: " in table and " vs the best alternative (" in table and f" vs {FOLDED}" in table
    assert "routes: the rule projects from 31 queries per frame" in table
    result = json.loads(out.read_text())
    assert len(result["records"]) == len(PROVIDERS)
    assert len(result["crossing"]["points"]) == 2 * 2 * 2
    names = {f"region_attention-{name}.png" for name in ("tiny", "copy-bandwidth", "crossing")}
    assert {path.name for path in plots.iterdir()} == names
    again = tmp_path / "again"
    assert main(["--draw", str(out), "--plots", str(again)]) == 0
    assert {path.name for path in again.iterdir()} == names


def test_committed_results_can_be_drawn(tmp_path):
    path = ROOT / "benchmarks" / "results" / "region-attention-cpu.json"
    assert main(["--draw", str(path), "--plots", str(tmp_path)]) == 0


def test_it_runs_as_a_file_from_any_directory(tmp_path):
    script = ROOT / "benchmarks" / "bench_region_attention.py"
    ran = subprocess.run([sys.executable, script, "--passes", "no"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "'no' is not a pass" in ran.stderr


def test_the_lower_bounds_are_printed_without_a_device(capsys):
    assert main(["--floor", "--device", "cuda", "--shapes", "art-256", "--dtypes", "bfloat16"]) == 0
    header, rule, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == rule.count("|") == row.count("|") == 9
    assert row.startswith("| art-256 | 384 | bfloat16 |")


def points(**ms_by_queries):
    return [
        {"queries": int(queries[1:]), "route": route, "ms": ms}
        for queries, pair in ms_by_queries.items()
        for route, ms in zip(("folded", "projected"), pair, strict=True)
    ]


def test_the_rule_is_compared_with_the_measured_times(monkeypatch):
    monkeypatch.setattr(bench_region_attention, "rule", lambda queries: "folded" if queries < 8 else "projected")
    found = evaluate_rule(points(k1=(1, 4), k2=(5, 4), k4=(3, 4), k8=(6, 4), k16=(12, 4)))
    assert found == {"turns_at": 8, "largest_loss": pytest.approx(5 / 4), "at_queries": 2}
    late = evaluate_rule(points(k1=(1, 4), k16=(3, 4)))
    assert late == {"turns_at": None, "largest_loss": pytest.approx(4 / 3), "at_queries": 16}
    assert evaluate_rule(points(k1=(4, 1)))["turns_at"] == 1
    assert evaluate_rule([]) == {"turns_at": None, "largest_loss": None, "at_queries": None}


def test_the_rule_is_that_of_the_module():
    assert [rule(queries) for queries in (30, 31)] == ["folded", "projected"]


def drawn(provider, ms, shape="detr", pass_name="both", dtype="float32"):
    return {
        "shape": shape, "pass": pass_name, "dtype": dtype, "provider": provider, "frames": 8, "queries": 100,
        "regions": 1064, "region_dim": 256, "norm_regions": False, "num_heads": 8, "median_ms": ms,
        "p20_ms": 0.9 * ms, "p80_ms": 1.2 * ms, "speedup_over_baseline": 12 / ms, "copy_fraction": 1 / ms,
    }  # fmt: skip


def test_bars_show_times_and_speedups_slowest_on_top():
    figure = times_figure([drawn(OURS, 4.0), drawn(BASELINE, 12.0), drawn("sdpa", 124.0)], "a device")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["124 ms   0.10×", "12.0 ms", "4.00 ms   3.00×"]
    bars = {label.get_text(): bar.get_width() for label, bar in zip(axes.get_yticklabels(), axes.patches, strict=True)}
    assert bars == {"sdpa": 124.0, BASELINE: 12.0, OURS: 4.0}
    heights = [bar.get_y() for bar in axes.patches]
    assert heights == sorted(heights, reverse=True)


def test_copy_fractions_have_a_panel_for_each_dtype_and_pass_and_one_legend():
    records = [drawn(BASELINE, 4.0), drawn(OURS, 2.0, dtype="bfloat16"), drawn(OURS, 2.0, pass_name="forward")]
    figure = copy_figure([*records, drawn(OURS, 5.0, shape="q-former")], "a device")
    assert len(figure.axes) == 4
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [OURS, BASELINE]
    own = next(line for line in figure.axes[0].get_lines() if line.get_label() == OURS)
    assert own.get_xydata().tolist() == [[pytest.approx(20.0), 1.0]]  # q-former, the second row


def test_the_crossing_marks_where_the_rule_turns():
    measured = [
        {"queries": queries, "pass": "forward", "route": route, "ms": ms * queries}
        for route, ms in (("folded", 1.0), ("projected", 2.0))
        for queries in (1, 4)
    ]
    sizes = {"frames": 2, "regions": 196, "region_dim": 256, "num_heads": 8, "dtype": "float32"}
    figure = crossing_figure({**sizes, "points": measured, "rule_turns_at": 31}, "a device")
    (axes,) = figure.axes
    folded, projected, turn = axes.get_lines()
    assert list(folded.get_ydata()) == [1.0, 4.0] and list(projected.get_ydata()) == [2.0, 8.0]
    assert set(turn.get_xdata()) == {31}
