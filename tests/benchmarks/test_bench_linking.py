"""The benchmark of assignment and linking: what it measures is optimal, counted, and named where it is left out."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import (
    assignment_solvers,
    bandwidth,
    linking_measure,
    linking_providers,
    linking_shapes,
    matrix_rate,
    measure_assignment,
)
from benchmarks.assignment_solvers import LAPCPP, LAPX, OURS, SCIPY, TO_HOST, TORCH_LINEAR_ASSIGNMENT, Solver
from benchmarks.bench_linking import main
from benchmarks.findings import OUT_OF_TIME
from benchmarks.linking_case import compared
from benchmarks.linking_charts import assignment_figure, linking_figure
from benchmarks.linking_inputs import draw_costs, draw_responses
from benchmarks.linking_measure import Settings, run
from benchmarks.linking_shapes import KINDS, SHAPES, LinkingShape, assignment_shape
from benchmarks.linking_truth import NO_JUDGE, best_sums, excess, judge, link_errors
from benchmarks.timing import Effort

CPU = torch.device("cpu")
PEERS = [name for name in (SCIPY, LAPX, LAPCPP) if assignment_solvers.refusal(name, CPU) is None]


@pytest.fixture
def tiny(monkeypatch):
    """A few problems of 2, 3 and 8 rows, and a few short videos."""
    monkeypatch.setattr(linking_shapes, "_PROBLEMS", {2: (64, 128), 3: (48, 128), 8: (32, 64)})
    monkeypatch.setitem(SHAPES, "tiny", LinkingShape("tiny", (3, 5, 4, 16)))
    monkeypatch.setitem(bandwidth.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setitem(matrix_rate.SIZES, "cpu", 32)
    once = Effort(min_rounds=2, min_seconds=0.0, max_seconds=0.0, warmups=1)
    monkeypatch.setitem(linking_measure.EFFORTS, "cpu", once)
    monkeypatch.setattr(linking_measure, "effort_for", lambda device, quick: once)


def settings(**changes):
    return Settings(**{"sizes": ("2", "3", "8"), "shapes": ("tiny",), **changes})


def hide(monkeypatch, *packages):
    """Let modules of peers be missing."""
    modules = {assignment_solvers._NEEDS[package][0] for package in packages}
    load = assignment_solvers.importlib.import_module

    def without(name):
        if name in modules:
            raise ImportError(f"No module named {name!r}")
        return load(name)

    monkeypatch.setattr(assignment_solvers, "importlib", SimpleNamespace(import_module=without))


def test_every_provider_is_measured_or_named(tiny):
    result = run(settings())
    assert result["failures"] == [] and result["benchmark"] == "linking"
    assert json.loads(json.dumps(result)) == result
    assert result["optimum_of"] == PEERS[:1] and set(PEERS) <= set(result["peers"])
    left_out = {(entry["operation"], entry["provider"]): entry["reason"] for entry in result["left_out"]}
    assert all(left_out.values())
    for operation, module, cases in (
        ("linear_assignment", assignment_solvers, {(kind, size) for kind in KINDS for size in (2, 3, 8)}),
        ("link_tracklets", linking_providers, {("tiny",)}),
    ):
        records = [record for record in result["records"] if record["operation"] == operation]
        there = [name for name in module.PROVIDERS if (operation, name) not in left_out]
        assert OURS in there
        for case in cases:
            own = [record for record in records if {*case} <= {record.get(name) for name in ("kind", "size", "shape")}]
            assert [record["provider"] for record in own] == there
    for record in result["records"]:
        assert 0 < record["p20_ms"] <= record["median_ms"] <= record["p80_ms"]
        assert record["share_of_limit"] > 0 and max(record["errors"].values()) < 1e-5
        assert (record["served_by"] == "native") == (record["provider"] == OURS)


def test_times_are_those_of_a_problem_and_compared_with_the_best_other(tiny):
    records = [r for r in run(settings(kinds=("normal",)))["records"] if r.get("size") == 8]
    each = {record["provider"]: record["microseconds"] for record in records}
    for record in records:
        assert record["problems"] == (8 if record["provider"] == SCIPY else 32)
        assert record["microseconds"] == pytest.approx(1e3 * record["median_ms"] / record["problems"])
        assert record["problems_a_second"] == pytest.approx(1e6 / record["microseconds"])
        assert record["moved_bytes"] == record["problems"] * (4 * 8 * 8 + 8 * 8)
        gbs = record["moved_bytes"] / record["median_ms"] / 1e6
        assert record["achieved_gbs"] == pytest.approx(gbs)
        assert record["speedup_over_first"] == pytest.approx(next(iter(each.values())) / each[record["provider"]])
        assert record["peak_extra_bytes"] is None
    ours = each.pop(OURS)
    (own,) = (record for record in records if record["provider"] == OURS)
    assert each[own["best_other"]] == min(each.values())
    assert own["speedup_over_best_other"] == pytest.approx(min(each.values()) / ours)
    assert all(record["best_other"] is None for record in records if record is not own)


def test_of_a_provider_the_fastest_function_counts(tiny, monkeypatch):
    def named(name, seconds):
        def solve(costs):
            time.sleep(seconds)
            return assignment_solvers.linear_assignment(costs)

        return Solver(LAPX, name, False, solve)

    monkeypatch.setattr(measure_assignment, "solvers", lambda provider: [named("slow", 0.02), named("fast", 0.001)])
    monkeypatch.setattr(assignment_solvers, "PROVIDERS", (LAPX,))
    monkeypatch.setattr(assignment_solvers, "refusal", lambda provider, device: None)
    (record,) = run(settings(sizes=("3",), kinds=("uniform",), shapes=()))["records"]
    assert record["function"] == "fast" and record["median_ms"] < 20
    assert record["best_other"] is None


def test_what_ends_on_the_host_is_compared_with_what_ends_there():
    peer = TORCH_LINEAR_ASSIGNMENT
    times = {SCIPY: 90.0, peer: 10.0, OURS: 2.0, peer + TO_HOST: 12.0, OURS + TO_HOST: 3.0}
    assert compared(OURS, times) == {"speedup_over_first": 45.0, "best_other": peer, "speedup_over_best_other": 5.0}
    assert compared(OURS + TO_HOST, times)["best_other"] == peer + TO_HOST
    assert compared(OURS + TO_HOST, times)["speedup_over_best_other"] == 4.0
    assert compared(peer, times) == {"speedup_over_first": 9.0, "best_other": None, "speedup_over_best_other": None}
    replayed = linking_providers.OURS_REPLAYED
    assert compared(replayed, {"loop": 8.0, OURS: 2.0, replayed: 1.0})["best_other"] == "loop"


def test_nothing_is_begun_after_the_deadline(tiny):
    result = run(settings(kinds=("uniform",)), deadline=time.monotonic() - 1)
    assert result["records"] == []
    late = [entry for entry in result["left_out"] if entry["reason"] == OUT_OF_TIME]
    assert [entry.get("shape", entry.get("size")) for entry in late] == ["tiny", "2", "3", "8"]


def test_one_that_finds_no_optimum_is_no_result(tiny, monkeypatch, tmp_path, capsys):
    def identity(costs):
        return torch.arange(costs.shape[-1]).expand(costs.shape[:-1]).contiguous()

    monkeypatch.setattr(assignment_solvers, "linear_assignment", identity)
    monkeypatch.setattr(linking_providers, "_ours", lambda responses: linking_providers.vectorised(responses, identity))
    out = tmp_path / "result.json"
    arguments = ["--sizes", "8", "--kinds", "uniform", "--shapes", "paper", "--quick", "--out", str(out)]
    assert main(arguments) == 1
    assert "FAILED: link_tracklets, paper, float32, art_kernels: ArithmeticError" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert OURS not in {record["provider"] for record in result["records"]}
    assert len(result["failures"]) == 2
    assert all(" off the best one by" in entry["error"] for entry in result["failures"])


def test_sums_and_permutations_are_checked():
    costs = torch.tensor([[[1.0, 2.0], [4.0, 8.0]], [[5.0, 1.0], [1.0, 5.0]]])
    best = best_sums(costs)
    assert best.tolist() == [6.0, 2.0]
    assert excess(costs, torch.tensor([[1, 0], [1, 0]]), best) == 0
    with pytest.raises(ArithmeticError, match=r"off the best one by 0\.19"):
        excess(costs, torch.tensor([[0, 1], [1, 0]]), best)  # 9 for 6, of 2 · 8
    with pytest.raises(ArithmeticError, match="no permutation"):
        excess(costs, torch.tensor([[0, 0], [1, 0]]), best)
    with pytest.raises(ArithmeticError, match="by nan"):
        excess(costs, torch.tensor([[1, 0], [1, 0]]), torch.full((2,), torch.nan))


def test_links_are_checked():
    responses = draw_responses(2, 4, 3, 32, torch.Generator().manual_seed(0), CPU)
    order, similarity = linking_providers.build(OURS)(responses)
    assert max(link_errors(responses, order, similarity).values()) < 1e-6
    with pytest.raises(ArithmeticError, match="similarity is off the cosine"):
        link_errors(responses, order, similarity + 1e-3)
    with pytest.raises(ArithmeticError, match="the best one"):
        link_errors(responses, torch.cat([order[:, :1], order[:, 1:].roll(1, -1)], 1), similarity)
    with pytest.raises(ArithmeticError, match="first frame"):
        link_errors(responses, order.roll(1, -1), similarity)


@pytest.mark.parametrize("provider", linking_providers.PROVIDERS[:2])
def test_other_ways_to_link_give_the_same_order(provider):
    if linking_providers.refusal(provider, CPU) is not None:
        pytest.skip(f"{provider} is not installed")
    responses = draw_responses(3, 6, 5, 32, torch.Generator().manual_seed(1), CPU)
    expected_order, expected_similarity = linking_providers.build(OURS)(responses)
    order, similarity = linking_providers.build(provider)(responses)
    assert torch.equal(order, expected_order)
    torch.testing.assert_close(similarity, expected_similarity)


def test_responses_move_slowly_in_any_order():
    responses = draw_responses(20, 6, 8, 256, torch.Generator().manual_seed(0), CPU)
    order, similarity = linking_providers.build(OURS)(responses)
    assert not torch.equal(order[:, 1], order[:, 0])
    assert 0.85 < similarity.median() < 0.95
    assert 0.05 < (similarity < 0.5).float().mean() < 0.15
    units = torch.nn.functional.normalize(responses, dim=-1)
    others = (units @ units.mT)[..., ~torch.eye(8, dtype=torch.bool)]
    assert 0.1 < others.mean() < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_the_same_from_the_same_seed(kind, monkeypatch):
    monkeypatch.setattr("benchmarks.linking_inputs._HELD", 1)  # a video at a time
    costs = draw_costs(kind, 35, 3, CPU, torch.float64)
    assert costs.shape == (35, 3, 3) and costs.dtype == torch.float64
    assert torch.equal(costs, draw_costs(kind, 35, 3, CPU, torch.float64))
    assert len(torch.unique(costs)) == costs.numel()
    assert {"uniform": costs.min() >= 0, "normal": costs.abs().max() > 2, "responses": costs.min() < -0.8}[kind]


def test_counts():
    shape = LinkingShape("", (2, 3, 4, 5))
    assert shape.moved_bytes(torch.float32) == 4 * 2 * 3 * 4 * 5 + 2 * 8 * 2 * 3 * 4 + 4 * 2 * 2 * 4
    assert shape.operations() == 2 * 2 * 2 * 4 * 4 * 5
    assert assignment_shape("8", CPU).problems == assignment_shape("8", CPU).on_host == 1 << 16
    on_gpu = assignment_shape("8", torch.device("cuda"))
    assert on_gpu.problems == 1 << 20 and on_gpu.on_host == 1 << 14 and on_gpu.in_a_loop == 1 << 12
    assert assignment_shape("128", CPU, quick=True).problems == 32
    assert SHAPES["dense"].on(quick=True).sizes == (8, 64, 32, 256)
    assert linking_shapes.SIZES == ("2", "4", "8", "16", "32", "64", "128")


def test_forms_of_columns():
    pairs = [np.array([[0, 1], [1, 0]]), np.array([[0, 0], [1, 1]])]
    assert assignment_solvers.as_columns(pairs).tolist() == [[1, 0], [0, 1]]
    assert assignment_solvers.as_columns([np.array([1, 0])]).tolist() == [[1, 0]]


def test_it_runs_without_any_peer_and_says_so(tiny, monkeypatch):
    hide(monkeypatch, SCIPY, LAPX, LAPCPP, TORCH_LINEAR_ASSIGNMENT)
    result = run(settings(kinds=("normal",)))
    assert result["failures"] == [] and result["optimum_of"] == ["definition"]
    assert {record["provider"] for record in result["records"]} == {OURS}
    reasons = {entry["provider"]: entry["reason"] for entry in result["left_out"] if "provider" in entry}
    assert "pip install lapcpp" in reasons[LAPCPP] and "No module named 'lap'" in reasons[LAPX]
    unchecked = [entry["size"] for entry in result["left_out"] if entry["reason"] == NO_JUDGE]
    assert unchecked == ["8"] and judge(8) is None


@pytest.mark.skipif(len(PEERS) < 2, reason="needs two peers")
def test_without_scipy_a_peer_judges(monkeypatch):
    hide(monkeypatch, SCIPY)
    assert judge(8).provider == PEERS[1]


def test_refusals():
    assert "host" in assignment_solvers.refusal(OURS + TO_HOST, CPU)
    assert "SciPy" in assignment_solvers.refusal(TORCH_LINEAR_ASSIGNMENT, CPU)
    assert "GPU" in linking_providers.refusal(linking_providers.OURS_REPLAYED, CPU)


def test_the_command_writes_results_and_pictures(tiny, tmp_path, capsys):
    out, plots, again = tmp_path / "deep" / "r.json", tmp_path / "plots", tmp_path / "again"
    arguments = ["--sizes", "2,8", "--shapes", "paper", "--quick", "--threads", "1"]
    assert main([*arguments, "--out", str(out), "--plots", str(plots)]) == 0
    table = capsys.readouterr().out
    assert "assignment of 8 rows, responses, float32" in table
    assert "linking, paper, float32: 3 videos, 16 frames, 2 responses of 256" in table
    assert "left out: link_tracklets, art_kernels, CUDA graph: CUDA graphs need a GPU" in table
    assert "cut to a sixteenth of the problems: --quick" in table
    assert json.loads(out.read_text())["arguments"]["sizes"] == ["2", "8"]
    names = {"assignment-float32.png", "linking-float32.png"}
    assert {path.name for path in plots.iterdir()} == names
    assert main(["--draw", str(out), "--plots", str(again)]) == 0
    assert {path.name for path in again.iterdir()} == names


def test_lines_and_bars_show_what_was_measured():
    def record(provider, size, microseconds, ratio=None):
        return {"kind": "uniform", "provider": provider, "size": size, "microseconds": microseconds,
                "speedup_over_best_other": ratio}  # fmt: skip

    records = [record(SCIPY, 4, 2.0), record(SCIPY, 2, 1.0), record(OURS, 2, 0.1, 10.0), record(OURS, 4, 0.5, 4.0)]
    (axes,) = assignment_figure(records, "a device").axes
    assert [list(line.get_xdata()) for line in axes.get_lines()] == [[2, 4], [2, 4]]
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[1.0, 2.0], [0.1, 0.5]]
    assert [text.get_text() for text in axes.texts] == ["10.0×", "4.00×"]
    times = [{"shape": "paper", "sizes": [2, 3, 4, 5], "provider": name, "median_ms": 3.0} for name in ("loop", OURS)]
    (axes,) = linking_figure(times, "a device").axes
    assert [bar.get_width() for bar in axes.patches] == [3.0, 3.0]
    assert axes.get_title(loc="left") == "paper, 2 videos, 3 frames, 4 responses of 5: ms"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sizes", "3"], "'3' is no size, expected some of 2, 4, 8"),
        (["--kinds", "odd"], "'odd' is no kind of costs, expected some of uniform, normal, responses"),
        (["--shapes", "papre"], "'papre' is no shape, expected some of paper"),
        (["--dtypes", "bfloat16"], "'bfloat16' is no dtype, expected some of float32, float64"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
