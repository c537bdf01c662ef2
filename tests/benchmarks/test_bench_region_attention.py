"""The benchmark of region attention: it measures and counts what it should, and checks what it is asked."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import attention_providers
from benchmarks.attention_measure import Settings, run
from benchmarks.attention_passes import errors, pass_call, require_exact, truth, values_and_gradients
from benchmarks.attention_providers import BASELINE, OURS, PROVIDERS, build, draw_inputs, refusal
from benchmarks.attention_shapes import PASSES, SHAPES, AttentionShape, floor
from benchmarks.bench_region_attention import main
from benchmarks.findings import OUT_OF_TIME
from benchmarks.machine import ROOT
from benchmarks.memory import peak_extra_bytes

CPU = torch.device("cpu")
QUICK = Settings(shapes=("tiny",), quick=True)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("region_dim", [8, 6], ids=["one in_proj_weight", "separate projections"])
def test_every_provider_computes_the_same(tiny, provider, region_dim):
    shape = replace(tiny, region_dim=region_dim)
    inputs = draw_inputs(shape, CPU, torch.float32)
    values = values_and_gradients(build(provider, shape, inputs), inputs)
    assert values["output"].shape == (4, 2, 8)
    assert max(errors(values, truth(shape, inputs)).values()) < 2e-6


def test_passes_give_what_they_are_named_after(tiny):
    inputs = draw_inputs(tiny, CPU, torch.float32)
    module = build(BASELINE, tiny, inputs)
    values = values_and_gradients(module, inputs)
    output = pass_call("forward", module, inputs)()
    torch.testing.assert_close(output, values.pop("output"))
    assert not output.requires_grad
    for name in ("backward", "both"):
        call = pass_call(name, module, inputs)
        for gradients in (call(), call()):  # again and again
            for gradient, expected in zip(gradients, values.values(), strict=True):
                torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    "shape",
    [SHAPES["art-256"].on(CPU), AttentionShape("long clips", 20, 20, 1, 1576, 256, 256, 8, norm_regions=True)],
    ids=lambda shape: shape.name,
)
def test_forward_and_backward_need_a_quarter_of_the_memory_of_multihead_attention(shape):
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


def test_errors_are_shares_of_the_largest_element_and_keep_nan():
    true_values = {name: torch.tensor([1.0, -4.0], dtype=torch.float64) for name in ("output", "grad_a", "grad_b")}
    values = {"output": torch.tensor([1.0, -3.0]), "grad_a": torch.tensor([1.5, -4.0]), "grad_b": torch.ones(2)}
    assert errors(values, true_values) == {
        "output": 0.25, "grad_queries": 0.0, "grad_regions": 0.0, "grad_weights": 1.25
    }  # fmt: skip
    values["grad_a"] = torch.tensor([torch.nan, -4.0])
    found = errors(values, true_values)
    assert found["grad_weights"] != found["grad_weights"]
    with pytest.raises(ArithmeticError, match=r"grad_weights errs by nan"):
        require_exact(found, found)


def test_floor_counted_by_hand():
    shape = AttentionShape("", 2, 2, 3, 5, 7, 4, 2)  # F=2, K=3, N=5, C=7, E=4, H=2
    regions, queries, weights = 2 * 5 * 7, 2 * 3 * 4, 4 * 4 + 4 * 7 + 4 * 7 + 4 * 4 + 4 * 4
    module = nn.MultiheadAttention(4, 2, kdim=7, vdim=7)
    assert weights == sum(parameter.numel() for parameter in module.parameters()) == 104
    # W_Q, W_K into the queries, scores of H·K rows, pooling, W_V, W_O: of each frame
    operations = 2 * (2 * 3 * 4 * 4 + 2 * 3 * 4 * 7 + 2 * 6 * 5 * 7 + 2 * 6 * 5 * 7 + 2 * 3 * 4 * 7 + 2 * 3 * 4 * 4)
    forward, backward, both = (floor(shape, torch.bfloat16, name) for name in PASSES)
    assert (forward.bytes, forward.operations) == (2 * (regions + queries + weights + queries), operations)
    assert (forward.bytes, forward.operations) == (444, 2736)
    assert (backward.bytes, backward.operations) == (2 * (2 * regions + 3 * queries + 2 * weights), 2 * operations)
    assert (both.bytes, both.operations) == (forward.bytes + backward.bytes, 3 * operations)
    assert floor(shape, torch.float32, "both").bytes == 2 * both.bytes


def test_shapes_are_those_that_were_asked_for():
    assert list(SHAPES) == [
        "art-256", "art-768", "uniformerv2-b", "uniformerv2-l", "detr", "q-former", "attention-pooling"
    ]  # fmt: skip
    art = SHAPES["art-256"].on(CPU)
    assert (art.frames, art.queries, art.model.regions, art.region_dim, art.embed_dim, art.num_heads) == (
        128, 2, 196, 256, 256, 8
    )  # fmt: skip
    assert SHAPES["art-256"].on(torch.device("cuda")).frames == 384
    assert SHAPES["art-256"].on(CPU, quick=True).frames == 16
    assert [name for name, shape in SHAPES.items() if shape.norm_regions] == ["uniformerv2-b", "uniformerv2-l"]
    assert all(shape.embed_dim % shape.num_heads == 0 for shape in SHAPES.values())


def test_result_has_a_record_for_each_measurement(tiny):
    result = run(replace(QUICK, dtypes=("bfloat16",)))
    assert not result["failures"] and not result["left_out"] and result["crossing"] is None
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
    assert 0 < record["p20_ms"] <= record["median_ms"] <= record["p80_ms"] and record["repetitions"] >= 3
    assert record["host_ms"] is None
    same = [r for r in result["records"] if r["pass"] == record["pass"]]
    times = {r["provider"]: r["median_ms"] for r in same}
    own = times.pop(record["provider"])
    assert record["speedup_over_mha"] == pytest.approx({record["provider"]: own, **times}[BASELINE] / own)
    assert record["speedup_over_best_other"] == pytest.approx(min(times.values()) / own)
    size = getattr(torch, record["dtype"]).itemsize
    assert record["peak_extra_bytes"] >= size * (16 if record["pass"] == "forward" else 16 + 7 * 6)  # what it returns
    assert record["achieved_gbs"] == pytest.approx(record["floor_bytes"] / record["median_ms"] / 1e6)
    assert record["share_of_copy"] == pytest.approx(record["achieved_gbs"] / result["copy_bandwidth_gbs"])
    assert record["errors"].keys() == {"output", "grad_queries", "grad_regions", "grad_weights"}
    assert (record["served_by"] is None) == (record["provider"] not in (OURS, "reference"))


class Wrong(attention_providers.ScaledDotProduct):
    """Right to a thousandth: far from right in float32."""

    def forward(self, queries, regions):
        return super().forward(queries, regions) * 1.001


def test_a_provider_that_computes_something_else_is_no_result(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(attention_providers._MODULES, "sdpa", Wrong)
    out = tmp_path / "result.json"
    assert main(["--shapes", "tiny", "--passes", "forward", "--quick", "--out", str(out)]) == 1
    assert "FAILED: tiny, float32, sdpa: ArithmeticError" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert {record["provider"] for record in result["records"]} == set(PROVIDERS) - {"sdpa"}
    (failure,) = result["failures"]
    assert (failure["shape"], failure["dtype"], failure["provider"]) == ("tiny", "float32", "sdpa")
    assert "output errs by" in failure["error"]


def test_without_a_compiler_the_compiled_provider_is_left_out_with_the_reason(tiny, monkeypatch):
    monkeypatch.setattr(attention_providers.shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "some-compiler")
    result = run(replace(QUICK, passes=("forward",)))
    assert {record["provider"] for record in result["records"]} == set(PROVIDERS) - {"sdpa compiled"}
    assert result["left_out"] == [{"provider": "sdpa compiled", "reason": refusal("sdpa compiled", CPU)}]
    assert "no some-compiler" in result["left_out"][0]["reason"]


def test_nothing_is_begun_after_the_deadline(tiny):
    result = run(replace(QUICK, crossing=True), deadline=time.monotonic() - 1)
    assert result["records"] == [] and result["crossing"]["points"] == []
    assert result["crossing"]["queries_left_out"] == [1, 16, 64]
    assert [entry.get("pass", entry["shape"]) for entry in result["left_out"]] == [*PASSES, "crossing"]
    assert {entry["reason"] for entry in result["left_out"]} == {OUT_OF_TIME}


def test_command_writes_result_table_and_pictures(tiny, tmp_path, capsys):
    out, plots = tmp_path / "new" / "result.json", tmp_path / "plots"
    arguments = ["--shapes", "tiny", "--quick", "--crossing", "--out", str(out), "--plots", str(plots)]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "tiny, float32: 1 frames, 2 queries of 8, 7 regions of 6 normalised, 2 heads" in table
    assert all(provider in table for provider in PROVIDERS)
    assert "routes: by the rule projected from 31 queries a frame" in table
    result = json.loads(out.read_text())
    assert len(result["records"]) == len(PASSES) * len(PROVIDERS)
    assert len(result["crossing"]["points"]) == 3 * 2 * 2
    names = {f"region_attention-{name}.png" for name in ("tiny", "copy-bandwidth", "crossing")}
    assert {path.name for path in plots.iterdir()} == names
    again = tmp_path / "again"
    assert main(["--draw", str(out), "--plots", str(again)]) == 0
    assert {path.name for path in again.iterdir()} == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "art-256,nope"], "'nope' is no shape, expected some of art-256, art-768,"),
        (["--shapes", "art-256,none"], "'none' is no shape"),
        (["--dtypes", "float64"], "'float64' is no dtype, expected some of bfloat16, float16, float32"),
        (["--passes", "sideways"], "'sideways' is no pass, expected some of forward, backward, both"),
        (["--threads", "0"], "'0', expected a whole number of at least 1"),
        (["--threads", "two"], "'two', expected a whole number of at least 1"),
        (["--device", "tpu"], "'cpu', 'cuda'"),
        (["--device", "cuda"], "torch sees no CUDA device here; use --device cpu"),
        (["--draw", "result.json"], "--draw: needs --plots DIR"),
        (["--draw", "absent.json", "--plots", "x"], "absent.json is no file, expected the --out of an earlier run"),
    ],
)
def test_bad_arguments_name_what_was_expected(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.replace("cpu, cuda", "'cpu', 'cuda'")


def test_runs_as_a_file_from_anywhere(tmp_path):
    script = ROOT / "benchmarks" / "bench_region_attention.py"
    ran = subprocess.run([sys.executable, script, "--passes", "no"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "'no' is no pass" in ran.stderr


def test_the_floor_is_printed_without_a_device(capsys):
    assert main(["--floor", "--device", "cuda", "--shapes", "art-256", "--dtypes", "bfloat16"]) == 0
    header, rule, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == rule.count("|") == row.count("|") == 9
    assert row.startswith("| art-256 | 384 | bfloat16 |")
