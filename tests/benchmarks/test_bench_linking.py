"""The benchmark of assignment and linking: what it measures is optimal, counted, and named if it is skipped."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import bench_linking, linking_providers
from benchmarks.bench_linking import Settings, assignment_figure, linking_figure, main, run
from benchmarks.common.measure import OURS
from benchmarks.common.results import OUT_OF_TIME, ROOT
from benchmarks.common.timing import QUICK
from benchmarks.linking_providers import (
    KINDS,
    LAPCPP,
    LAPX,
    NO_ORACLE,
    SCIPY,
    SHAPES,
    TORCH_LINEAR_ASSIGNMENT,
    LinkingShape,
    Solver,
    as_columns,
    assignment_shape,
    build_link,
    draw_costs,
    draw_responses,
    excess,
    link_errors,
    optimal_sums,
    oracle,
    unsupported_reason,
)

pytestmark = pytest.mark.slow

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PEERS = [name for name in (SCIPY, LAPX, LAPCPP) if unsupported_reason(name, CPU) is None]


@pytest.fixture
def tiny(monkeypatch, fast_limits):
    """A few problems of 2, 3 and 8 rows, and a few short videos."""
    monkeypatch.setattr(linking_providers, "_PROBLEMS", {2: (64, 128), 3: (48, 128), 8: (32, 64)})
    monkeypatch.setitem(SHAPES, "tiny", LinkingShape("tiny", (3, 5, 4, 16)))
    monkeypatch.setitem(bench_linking.TIMINGS, "cpu", QUICK)


def settings(**changes):
    return Settings(**{"sizes": ("2", "3", "8"), "shapes": ("tiny",), **changes})


def hide(monkeypatch, *packages):
    """Make the modules of peers unimportable."""
    modules = {linking_providers._REQUIRED[package][0] for package in packages}
    load = linking_providers.importlib.import_module

    def without(name):
        if name in modules:
            raise ImportError(f"No module named {name!r}")
        return load(name)

    monkeypatch.setattr(linking_providers, "importlib", SimpleNamespace(import_module=without))


def test_every_provider_is_measured_or_named(tiny):
    result = run(settings())
    assert result["failures"] == [] and result["benchmark"] == "linking"
    assert json.loads(json.dumps(result)) == result
    assert result["optimum_of"] == PEERS[:1] and set(PEERS) <= set(result["peers"])
    skipped = {(entry["operation"], entry["provider"]): entry["reason"] for entry in result["skipped"]}
    assert all(skipped.values()) and not any(provider.startswith(OURS) for _, provider in skipped)
    for operation, providers, cases in (
        (
            "linear_assignment",
            linking_providers.assignment_providers(CPU),
            {(kind, size) for kind in KINDS for size in (2, 3, 8)},
        ),
        ("link_tracklets", linking_providers.linking_providers(CPU), {("tiny",)}),
    ):
        records = [record for record in result["records"] if record["operation"] == operation]
        available = [name for name in providers if (operation, name) not in skipped]
        assert OURS in available
        for case in cases:
            own = [record for record in records if {*case} <= {record.get(name) for name in ("kind", "size", "shape")}]
            assert [record["provider"] for record in own] == available
    for record in result["records"]:
        assert 0 < record["p20_ms"] <= record["median_ms"] <= record["p80_ms"]
        assert record["limit_fraction"] > 0 and max(record["errors"].values()) < 1e-5
        assert (record["served_by"] == "cpp") == (record["provider"] == OURS)


def test_times_are_per_problem(tiny):
    records = run(settings(kinds=("normal",), sizes=("8",), shapes=()))["records"]
    each = {record["provider"]: record["microseconds"] for record in records}
    for record in records:
        assert record["problems"] == (8 if record["provider"] == SCIPY else 32)
        assert record["microseconds"] == pytest.approx(1e3 * record["median_ms"] / record["problems"])
        assert record["problems_a_second"] == pytest.approx(1e6 / record["microseconds"])
        assert record["moved_bytes"] == record["problems"] * (4 * 8 * 8 + 8 * 8)
        assert record["achieved_gbs"] == pytest.approx(record["moved_bytes"] / record["median_ms"] / 1e6)
        assert record["speedup_over_baseline"] == pytest.approx(each[SCIPY] / each[record["provider"]])
        assert record["peak_extra_bytes"] is None
    ours = each.pop(OURS)
    (own,) = (record for record in records if record["provider"] == OURS)
    assert each[own["best_other"]] == min(each.values())
    assert own["speedup_over_best_other"] == pytest.approx(min(each.values()) / ours)


def test_the_fastest_function_of_a_provider_counts(tiny, monkeypatch):
    def named(name, seconds):
        def solve(costs):
            time.sleep(seconds)
            return linking_providers.linear_assignment(costs)

        return Solver(LAPX, name, False, solve)

    monkeypatch.setattr(linking_providers, "solvers", lambda provider: [named("slow", 0.05), named("fast", 0.001)])
    monkeypatch.setattr(linking_providers, "assignment_providers", lambda device: (LAPX,))
    monkeypatch.setattr(linking_providers, "unsupported_reason", lambda provider, device: None)
    monkeypatch.setattr(linking_providers, "oracle", lambda size: named("oracle", 0.0))
    (record,) = run(settings(sizes=("3",), kinds=("uniform",), shapes=()))["records"]
    assert record["function"] == "fast" and record["best_other"] is None


def test_no_case_starts_after_the_deadline(tiny):
    result = run(settings(kinds=("uniform",)), deadline=time.monotonic() - 1)
    assert result["records"] == []
    late = [entry for entry in result["skipped"] if entry["reason"] == OUT_OF_TIME]
    assert [entry.get("shape", entry.get("size")) for entry in late] == ["tiny", "2", "3", "8"]


def test_a_solver_that_misses_the_optimum_fails(tiny, monkeypatch, tmp_path, capsys):
    def identity(costs):
        return torch.arange(costs.shape[-1]).expand(costs.shape[:-1]).contiguous()

    monkeypatch.setattr(linking_providers, "linear_assignment", identity)
    monkeypatch.setattr(
        linking_providers, "link_ours", lambda responses: linking_providers.link_vectorized(responses, identity)
    )
    out = tmp_path / "result.json"
    arguments = ["--sizes", "8", "--kinds", "uniform", "--shapes", "batch", "--quick", "--out", str(out)]
    assert main(arguments) == 1
    assert "FAILED: link_tracklets, batch, float32, art_kernels: ArithmeticError" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert OURS not in {record["provider"] for record in result["records"]}
    assert len(result["failures"]) == 2
    assert all("deviates from the optimal one by" in entry["error"] for entry in result["failures"])


def test_a_missing_compiled_module_is_an_error_and_not_a_skipped_row(monkeypatch):
    def missing():
        raise RuntimeError("no compiled module: run `pip install .`")

    monkeypatch.setattr(bench_linking, "require_compiled_module", missing)
    with pytest.raises(RuntimeError, match="run `pip install"):
        run(settings(quick=True))


def test_sums_and_permutations_are_checked():
    costs = torch.tensor([[[1.0, 2.0], [4.0, 8.0]], [[5.0, 1.0], [1.0, 5.0]]])
    best = optimal_sums(costs)
    assert best.tolist() == [6.0, 2.0]
    assert excess(costs, torch.tensor([[1, 0], [1, 0]]), best) == 0
    with pytest.raises(ArithmeticError, match=r"deviates from the optimal one by 0\.19"):
        excess(costs, torch.tensor([[0, 1], [1, 0]]), best)  # 9 for 6, of 2 · 8
    with pytest.raises(ArithmeticError, match="not a permutation"):
        excess(costs, torch.tensor([[0, 0], [1, 0]]), best)
    with pytest.raises(ArithmeticError, match="by nan"):
        excess(costs, torch.tensor([[1, 0], [1, 0]]), torch.full((2,), torch.nan))


def test_links_are_checked():
    responses = draw_responses(2, 4, 3, 32, torch.Generator().manual_seed(0), CPU)
    order, similarity = build_link(OURS)(responses)
    assert max(link_errors(responses, order, similarity).values()) < 1e-6
    with pytest.raises(ArithmeticError, match="similarity deviates from the cosine"):
        link_errors(responses, order, similarity + 1e-3)
    with pytest.raises(ArithmeticError, match="the optimal one"):
        link_errors(responses, torch.cat([order[:, :1], order[:, 1:].roll(1, -1)], 1), similarity)
    with pytest.raises(ArithmeticError, match="first frame"):
        link_errors(responses, order.roll(1, -1), similarity)


@pytest.mark.parametrize("provider", linking_providers.linking_providers(CPU)[:2])
def test_other_ways_to_link_return_the_same_order(provider):
    if linking_providers.linking_unsupported_reason(provider, CPU) is not None:
        pytest.skip(f"{provider} is not installed")
    responses = draw_responses(3, 6, 5, 32, torch.Generator().manual_seed(1), CPU)
    expected_order, expected_similarity = build_link(OURS)(responses)
    order, similarity = build_link(provider)(responses)
    assert torch.equal(order, expected_order)
    torch.testing.assert_close(similarity, expected_similarity)


def test_responses_change_slowly_in_random_order():
    responses = draw_responses(20, 6, 8, 256, torch.Generator().manual_seed(0), CPU)
    order, similarity = build_link(OURS)(responses)
    assert not torch.equal(order[:, 1], order[:, 0])
    assert 0.85 < similarity.median() < 0.95
    assert 0.05 < (similarity < 0.5).float().mean() < 0.15
    units = torch.nn.functional.normalize(responses, dim=-1)
    others = (units @ units.mT)[..., ~torch.eye(8, dtype=torch.bool)]
    assert 0.1 < others.mean() < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_costs(kind, monkeypatch):
    monkeypatch.setattr(linking_providers, "_CHUNK_ELEMENTS", 1)  # a video at a time
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
    on_gpu = assignment_shape("8", CUDA)
    assert on_gpu.problems == 1 << 20 and on_gpu.on_host == 1 << 14 and on_gpu.in_a_loop == 1 << 12
    assert assignment_shape("128", CPU, quick=True).problems == 32
    assert SHAPES["dense"].sized(quick=True).sizes == (2, 4, 32, 256)


def test_pairs_and_columns_are_converted():
    pairs = [np.array([[0, 1], [1, 0]]), np.array([[0, 0], [1, 1]])]
    assert as_columns(pairs).tolist() == [[1, 0], [0, 1]]
    assert as_columns([np.array([1, 0])]).tolist() == [[1, 0]]


def test_it_runs_without_any_peer_and_reports_how_to_install_them(tiny, monkeypatch):
    hide(monkeypatch, SCIPY, LAPX, LAPCPP, TORCH_LINEAR_ASSIGNMENT)
    result = run(settings(kinds=("normal",)))
    assert result["failures"] == [] and result["optimum_of"] == ["reference"]
    assert {record["provider"] for record in result["records"]} == {OURS}
    reasons = {entry["provider"]: entry["reason"] for entry in result["skipped"] if "provider" in entry}
    assert "pip install lapcpp" in reasons[LAPCPP] and "No module named 'lap'" in reasons[LAPX]
    unchecked = [entry["size"] for entry in result["skipped"] if entry["reason"] == NO_ORACLE]
    assert unchecked == ["8"] and oracle(8) is None


@pytest.mark.skipif(len(PEERS) < 2, reason="needs two peers")
def test_without_scipy_a_peer_is_the_oracle(monkeypatch):
    hide(monkeypatch, SCIPY)
    assert oracle(8).provider == PEERS[1]


def test_our_rows_are_never_skipped():
    for device in (CPU, CUDA):
        own = [name for name in linking_providers.assignment_providers(device) if name.startswith(OURS)]
        assert own and all(unsupported_reason(name, device) is None for name in own)
        own = [name for name in linking_providers.linking_providers(device) if name.startswith(OURS)]
        assert own and all(linking_providers.linking_unsupported_reason(name, device) is None for name in own)
    assert "SciPy" in unsupported_reason(TORCH_LINEAR_ASSIGNMENT, CPU)


def test_the_command_writes_results_and_charts(tiny, tmp_path, capsys):
    out, plots = tmp_path / "deep" / "r.json", tmp_path / "plots"
    arguments = ["--sizes", "2,8", "--shapes", "paper", "--quick"]
    assert main([*arguments, "--out", str(out), "--plots", str(plots)]) == 0
    table = capsys.readouterr().out
    assert "assignment of 8 rows, responses, float32" in table
    assert "linking, paper, float32: 2 videos, 4 frames, 2 responses of 256" in table
    assert "link_tracklets, float32, paper, art_kernels: " in table and "vs the best alternative (" in table
    assert "the times are meaningless" in table
    assert json.loads(out.read_text())["arguments"]["sizes"] == ["2", "8"]
    assert {path.name for path in plots.iterdir()} == {"assignment-float32.png", "linking-float32.png"}


def test_committed_results_can_be_drawn(tmp_path):
    path = ROOT / "benchmarks" / "results" / "linking-cpu.json"
    assert main(["--draw", str(path), "--plots", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"assignment-float32.png", "linking-float32.png"}


def test_charts_show_what_was_measured():
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
