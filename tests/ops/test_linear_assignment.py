"""`linear_assignment`: vs. SciPy, a proof of optimality and the reference; non-finite costs; edge cases; errors."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch
from operator_checks import assert_captured_in_cuda_graph, assert_compiles_once, assert_exports, requires_gpu
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from art_kernels import compile as compiler
from art_kernels import linear_assignment
from art_kernels._core.autograd import OPERATORS
from art_kernels.tracklet_linking import cpp, reference

pytestmark = pytest.mark.usefixtures("native_module")

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33, 64]


def costs(kind: str, count: int, size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random costs [count, size, size] of a kind, on the CPU."""
    return KINDS[kind](torch.rand(count, size, size, dtype=torch.float64), dtype).to(dtype)


def _products(uniform, dtype):
    """The greedy choice is part of the worst matching, and shortest paths are long (Machol and Wien)."""
    grid = torch.arange(1.0, uniform.shape[-1] + 1, dtype=torch.float64)
    return (grid[:, None] * grid).expand_as(uniform).clone()


def _is_wide(dtype):
    return dtype in (torch.float32, torch.bfloat16)


KINDS = {
    "uniform": lambda uniform, dtype: uniform,
    "normal": lambda uniform, dtype: torch.randn_like(uniform),
    "tied": lambda uniform, dtype: (3 * uniform).floor(),
    "equal": lambda uniform, dtype: torch.ones_like(uniform),
    "huge": lambda uniform, dtype: (uniform - 0.5) * (1e30 if _is_wide(dtype) else 6e4),
    "tiny": lambda uniform, dtype: uniform * (1e-30 if _is_wide(dtype) else 1e-6),
    "largest": lambda uniform, dtype: (2 * uniform - 1) * torch.finfo(dtype).max,
    "many magnitudes": lambda uniform, dtype: 10 ** (8 * uniform - 4),
    "nearly identity": lambda uniform, dtype: 1 - torch.eye(uniform.shape[-1]).double() + uniform * 1e-3,
    "products": _products,
}


def assert_optimal(cost: Tensor, columns: Tensor, *, maximize: bool = False) -> None:
    """Check that no cycle of exchanges lowers the sum, which proves that a matching is optimal.

    A step from row i to row k is the change in the cost of i if it gets the column of k. Bellman-Ford converges to the
    lengths of the shortest paths, which are dual variables, if and only if there is no negative cycle.
    """
    cost, columns = cost.double().cpu() * (-1 if maximize else 1), columns.cpu()
    size = cost.shape[-1]
    cost = cost * 2.0**-12  # sums of the largest numbers would overflow
    assert torch.equal(columns.sort(-1).values, torch.arange(size).expand_as(columns)), "not a permutation"
    assigned = cost.gather(-1, columns[..., None, :].expand_as(cost))  # [..., i, k]: row i in the column of k
    steps = assigned - assigned.diagonal(dim1=-2, dim2=-1)[..., None]
    tolerance = 1e-14 * cost.abs().amax((-2, -1), keepdim=True)
    length = torch.zeros(cost.shape[:-1], dtype=torch.float64)
    for _ in range(size + 1):
        shorter = (length[..., :, None] + steps).amin(-2)
        if (shorter >= length - tolerance[..., 0]).all():
            return
        length = torch.minimum(length, shorter)
    raise AssertionError("a cycle of exchanges lowers the sum")


def sums(cost: Tensor, columns: Tensor) -> np.ndarray:
    """Σ_i cost[i, columns[i]] in float64."""
    return cost.double().cpu().gather(-1, columns.cpu()[..., None])[..., 0].sum(-1).numpy()


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maximize", [False, True])
def test_result_is_optimal(device, dtype, kind, maximize):
    for size in SIZES:
        cost = costs(kind, 7 if size <= 17 else 2, size, dtype)
        columns = linear_assignment(cost.to(device), maximize=maximize)
        assert (columns.dtype, columns.shape, columns.device) == (torch.int64, cost.shape[:-1], cost.to(device).device)
        assert_optimal(cost, columns, maximize=maximize)


def test_assert_optimal_rejects_suboptimal_matchings():
    cost = costs("uniform", 1, 6)
    columns = linear_assignment(cost)
    assert_optimal(cost, columns)
    with pytest.raises(AssertionError, match="lowers the sum"):
        assert_optimal(cost, columns[:, [1, 0, 2, 3, 4, 5]])
    with pytest.raises(AssertionError, match="not a permutation"):
        assert_optimal(cost, columns.clamp_min(1))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "largest"])  # sums overflow in SciPy
@pytest.mark.parametrize("maximize", [False, True])
def test_sum_equals_scipy(device, kind, maximize):
    for size in [*SIZES, 100, 256]:
        cost = costs(kind, 3 if size <= 64 else 1, size)
        found = sums(cost, linear_assignment(cost.to(device), maximize=maximize))
        solved = [linear_sum_assignment(problem, maximize=maximize)[1] for problem in cost.numpy()]
        expected = sums(cost, torch.tensor(np.array(solved)))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14 * size * cost.abs().max().item())


@pytest.mark.parametrize("maximize", [False, True])
def test_agrees_with_the_reference(device, maximize):
    for shape in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7), (2, 5), (5, 2), (1, 8), (8, 1), (6, 8)]:
        cost = torch.randn(5, 3, *shape, device=device)
        cost[:, 1:][torch.rand_like(cost[:, 1:]) < 0.1] = -torch.inf if maximize else torch.inf
        cost[..., : min(shape), : min(shape)].diagonal(dim1=-2, dim2=-1).clamp_(-9, 9)  # feasible
        expected = linear_assignment(cost, maximize=maximize, backend="reference")
        assert torch.equal(linear_assignment(cost, maximize=maximize), expected)


#: Every dtype that `linear_assignment` accepts.
EVERY_DTYPE = [
    *DTYPES, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


def assert_as_scipy(cost: Tensor, columns: Tensor, *, maximize: bool = False) -> None:
    """Check that each row has another column or none, and that number and sum are those of SciPy."""
    problem = cost.double().numpy() if cost.is_floating_point() else cost.numpy().astype(object).astype(np.int64)
    rows, best = linear_sum_assignment(problem, maximize=maximize)
    taken = np.flatnonzero(columns.numpy() >= 0)
    pairs = columns.numpy()[taken]
    assert len(taken) == len(set(pairs.tolist())) == len(rows)
    found, expected = problem[taken, pairs].sum(), problem[rows, best].sum()
    if cost.is_floating_point():
        np.testing.assert_allclose(
            found, expected, rtol=1e-12, atol=1e-12 * np.abs(problem[np.isfinite(problem)]).max()
        )
    else:
        assert found == expected


@pytest.mark.parametrize("dtype", EVERY_DTYPE, ids=str)
def test_random_problems_as_scipy(device, dtype):
    """Any shape, ties, negative costs and forbidden pairs, of which some leave no matching."""
    generator = np.random.default_rng(0)
    infeasible = 0
    for trial in range(60):
        rows, cols = generator.integers(1, 12, 2) if trial % 5 else generator.integers(20, 70, 2)
        maximize = bool(trial % 2)
        if dtype.is_floating_point:
            cost = torch.from_numpy(generator.normal(size=(rows, cols)).round(trial % 4)).to(dtype)
            forbidden = torch.from_numpy(generator.random((rows, cols)) < (0.0, 0.2, 0.5, 0.8)[trial // 2 % 4])
            cost[forbidden] = -torch.inf if maximize else torch.inf
        else:
            low = 0 if dtype in (torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64) else -100
            cost = torch.from_numpy(generator.integers(low, 2 if dtype == torch.bool else 101, (rows, cols))).to(dtype)
        try:
            linear_sum_assignment(cost.double().numpy(), maximize=maximize)
        except ValueError:
            infeasible += 1
            with pytest.raises(ValueError, match="linear_assignment: cost is infeasible"):
                linear_assignment(cost.to(device), maximize=maximize, check=True)
        else:
            found = linear_assignment(cost.to(device), maximize=maximize)
            assert_as_scipy(cost, found.cpu(), maximize=maximize)
    assert infeasible >= (5 if dtype.is_floating_point else 0)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    "shape", [(40, 3, 5), (40, 6, 2), (3, 4, 90, 7), (2, 1, 300), (2, 300, 20), (1, 270, 270)], ids=str
)
def test_batches_of_rectangles_as_scipy(device, shape, maximize):
    cost = torch.randn(shape)
    columns = linear_assignment(cost.to(device), maximize=maximize)
    assert columns.device.type == device.type
    for problem, found in zip(cost.flatten(0, -3), columns.cpu().flatten(0, -2), strict=True):
        assert_as_scipy(problem, found, maximize=maximize)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64], ids=str)
@pytest.mark.parametrize("shape", [(2, 2), (4, 4), (5, 5), (3, 5), (5, 3)], ids=str)
@pytest.mark.parametrize(
    "low, high", [(2**40, 2**40 + 4), (2**53, 2**53 + 9), (2**62, 2**62 + 2**48), (0, 2**63 - 1), (None, None)]
)
def test_integers_are_never_rounded(dtype, shape, low, high):
    """The sums are compared as Python's integers; differences of 1 decide, up to the whole range of the dtype."""
    limits = torch.iinfo(dtype)
    low, high = (limits.min, limits.max) if low is None else (low, high)
    generator = np.random.default_rng(0)
    values = generator.integers(
        low, high, (6, *shape), dtype=np.uint64 if dtype == torch.uint64 else np.int64, endpoint=True
    )
    values[:, 0, 0], values[:, -1, -1] = low, high
    values[3:] = np.clip(values[3:], high - 3, high)  # the range is wide because of one cost
    values[3:, 0, 0] = low
    cost = torch.from_numpy(values)
    for maximize, backend in itertools.product((False, True), (None, "reference")):
        for problem, columns in zip(
            values.tolist(), linear_assignment(cost, maximize=maximize, backend=backend), strict=True
        ):
            sums = [
                sum(row[column] for row, column in zip(problem, matching, strict=True) if column >= 0)
                for matching in reference._matchings(*shape)
            ]
            assert columns.tolist() in reference._matchings(*shape)
            found = sum(row[column] for row, column in zip(problem, columns.tolist(), strict=True) if column >= 0)
            assert found == (max(sums) if maximize else min(sums))


@requires_gpu
def test_too_wide_integers_are_refused_on_a_gpu_with_advice():
    cost = torch.tensor([[[0, 2**62 + 1], [1, 2**62]], [[1, 2], [3, 5]]], device="cuda")
    assert linear_assignment(cost).tolist() == [[-1, -1], [1, 0]]
    with pytest.raises(ValueError, match=r"cost\[0\] has integers with too wide a range for a GPU; .* cost\.cpu\(\)"):
        linear_assignment(cost, check=True)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 40])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_costs_without_a_matching_are_reported(device, dtype, size, value, maximize):
    cost = torch.rand(4, 5, size, size, device=device).to(dtype)
    good = linear_assignment(cost, maximize=maximize)
    forbids = value == (-torch.inf if maximize else torch.inf)
    for place in ((2, 1), (3, 4)):
        cost[place][size - 1, slice(None) if forbids else 0] = value
    expected = (
        "holds NaN" if value != value else "is infeasible" if forbids else f"holds {value}, expected finite numbers"
    )
    with pytest.raises(ValueError, match=rf"linear_assignment: cost\[2, 1\] {expected}"):
        linear_assignment(cost, check=True, maximize=maximize)
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"cost\[2, 1\]"):
            linear_assignment(cost, maximize=maximize)
        with pytest.raises(ValueError, match=rf"linear_assignment: cost {expected}"):
            linear_assignment(cost[2, 1], maximize=maximize, backend="reference" if size < 8 else None)
    else:  # reported without synchronization; the other problems are solved
        columns = linear_assignment(cost, maximize=maximize)
        bad = torch.zeros(4, 5, dtype=torch.bool, device=device)
        bad[2, 1] = bad[3, 4] = True
        assert (columns[bad] == -1).all() and torch.equal(columns[~bad], good[~bad])


@pytest.mark.parametrize(
    "shape", [(0, 3, 3), (2, 0, 5, 5), (4, 0, 0), (0, 0), (0, 4), (4, 0), (2, 3, 0), (2, 0, 3)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_empty_sizes(device, shape, dtype, backend):
    columns = linear_assignment(torch.empty(shape, device=device, dtype=dtype), check=True, backend=backend)
    assert columns.shape == shape[:-1] and columns.dtype == torch.int64 and (columns == -1).all()


@pytest.mark.parametrize("shape", [(6, 6), (4, 7), (7, 4)], ids=str)
def test_layout_and_batch_dimensions(device, shape):
    cost = torch.randn(3, 4, *shape, device=device)
    columns = linear_assignment(cost)
    assert torch.equal(linear_assignment(cost.mT.contiguous().mT), columns)
    assert torch.equal(linear_assignment(cost.transpose(0, 1)), columns.transpose(0, 1))
    assert torch.equal(linear_assignment(cost[1, 2]), columns[1, 2])
    assert torch.equal(linear_assignment(cost[:1].expand(5, -1, -1, -1)), columns[:1].expand(5, -1, -1))
    assert torch.equal(linear_assignment(cost.requires_grad_()), columns)


def test_result_does_not_depend_on_threads():
    cost = costs("tied", 3000, 9, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = linear_assignment(cost)
        torch.set_num_threads(4)
        assert all(torch.equal(linear_assignment(cost), one) for _ in range(3))
    finally:
        torch.set_num_threads(threads)


def test_releases_the_gil():
    cost = torch.rand(4000, 32, 32)
    thread = threading.Thread(target=linear_assignment, args=(cost,))
    steps = 0
    thread.start()
    while thread.is_alive():
        steps += 1
        time.sleep(0)
    assert steps > 10, "the interpreter's lock was held"


@pytest.mark.slow
def test_more_than_2_31_elements(device):
    size, count = 256, 2**31 // 256**2 + 1
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 6 << 30:
        pytest.skip("needs 6 GiB of GPU memory")
    # Pages that are only read use no memory.
    cost = torch.zeros(count, size, size, dtype=torch.bfloat16, device=device)
    cost[-1] = costs("uniform", 1, size, torch.bfloat16)[0].to(device)
    assert cost.numel() > 2**31
    columns = linear_assignment(cost)
    assert_optimal(cost[-1], columns[-1])
    for block in columns.split(4096):
        assert torch.equal(block.sort(-1).values, torch.arange(size, device=device).expand_as(block))


@pytest.mark.parametrize("shape", [(5, 5), (3, 6), (6, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32], ids=str)
def test_opcheck_and_vmap(device, shape, dtype):
    cost = (100 * torch.rand(2, 3, *shape, device=device)).to(dtype)
    torch.library.opcheck(OPERATORS["linear_assignment_cpp"].forward, (cost, True, False))
    assert torch.equal(torch.func.vmap(linear_assignment, in_dims=1)(cost), linear_assignment(cost).transpose(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 6), (7, 4)], ids=str)
def test_compiles_once_and_exports_for_all_batch_sizes(device, shape):
    def make_inputs(count):
        return [torch.rand(count, *shape, device=device)]

    assert_compiles_once(lambda cost: linear_assignment(cost, maximize=True), make_inputs)
    assert_exports(linear_assignment, make_inputs)


@requires_gpu
@pytest.mark.parametrize("size", [2, 8, 32, 64, 256])
def test_cuda_graph_and_synchronization(size):
    cost = torch.rand(20, size, size, device="cuda")
    assert_captured_in_cuda_graph(linear_assignment, [cost])


COST = torch.rand(2, 4, 4)


@pytest.mark.parametrize(
    "cost, options, error, message",
    [
        ([[1.0]], {}, TypeError, r"cost is \[\[1.0\]\] of type list, expected a torch.Tensor of shape"),
        (torch.rand(3), {}, ValueError, r"cost has shape \[3\], expected at least the last 2 dimensions of"),
        (COST.cfloat(), {}, TypeError, r"cost has dtype torch.complex64, expected .* or integers; convert it"),
        (torch.arange(3), {}, ValueError, r"cost has shape \[3\], expected at least the last 2 dimensions of"),
        (COST, {"maximize": 1}, TypeError, r"maximize is 1 of type int, expected True or False"),
        (COST, {"check": None}, TypeError, r"check is None, expected True or False"),
        (COST, {"backend": "triton"}, ValueError, r"backend='triton' does not support .* available backends: 'cpp'"),
        (torch.rand(9, 9), {"backend": "reference"}, ValueError, r"enumerates all matchings, of at most 8 rows and"),
        (torch.rand(3, 9), {"backend": "reference"}, ValueError, r"enumerates all matchings, of at most 8 rows and"),
    ],
)
def test_errors_name_the_argument(cost, options, error, message):
    with pytest.raises(error, match="linear_assignment: .*" + message):
        linear_assignment(cost, **options)


def test_missing_native_module_raises(monkeypatch):
    monkeypatch.setattr(cpp, "_csrc", None)
    monkeypatch.setattr(cpp, "_import_error", "the native module cannot be imported; build it with `pip install .`")
    message = r"no backend supports a float32 tensor on cpu .*cpp: the native module cannot .* `pip install \.`"
    with pytest.raises(ValueError, match=message):
        linear_assignment(torch.rand(3, 3))
    assert torch.equal(linear_assignment(torch.eye(3), maximize=True, backend="reference"), torch.arange(3))


def test_reference_assignments():
    cost = torch.tensor([[[1.0, 2.0, 9.0], [0.0, 4.0, 9.0], [7.0, 8.0, 3.0]], [[1.0, 1.0, 1.0]] * 3])
    assert reference.optimal_assignment(cost).tolist() == [[1, 0, 2], [0, 1, 2]]
    assert reference.optimal_assignment(cost, maximize=True).tolist() == [[2, 1, 0], [0, 1, 2]]
    assert reference.greedy_assignment(cost[:, None]).tolist() == [[[1, 0, 2]], [[0, 1, 2]]]
    assert reference.greedy_assignment(cost[:, None], maximize=True).tolist() == [[[2, 0, 1]], [[0, 1, 2]]]
    assert reference.optimal_assignment(cost[0]).tolist() == [1, 0, 2]


USAGE = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN3art9link_manyIfLi64ELi4EEEvNS_10FramePairsENS_6MethodENS_5LinksE:
  REG:80 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:472 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN3art7composeENS_10CompositionE:
  REG:40 STACK:8 SHARED:16 LOCAL:4 CONSTANT[0]:424 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90
 Function other:
  REG:9 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:424 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_local_memory_is_reported_as_an_error(monkeypatch):
    assert list(compiler.parse_usage(USAGE)) == [
        compiler.NativeKernel("link_many.f32.64.4", "sm_80", 80, 0, 0),
        compiler.NativeKernel("compose", "sm_80", 40, 12, 16),
        compiler.NativeKernel("other", "sm_90", 9, 0, 1024),
    ]
    monkeypatch.setattr(compiler, "native_kernels", lambda: compiler.parse_usage(USAGE))
    reports = compiler.native_reports(["sm_80"])
    assert [(report.name, report.error) for report in reports] == [
        ("tracklet_linking.link_many.f32.64.4", ""),
        ("tracklet_linking.compose", "12 bytes of local memory"),
    ]
    assert reports[1].line(30) == (
        "tracklet_linking.compose        sm_80           40     12      16      0            0       0  "
        "12 bytes of local memory"
    )


def test_no_cuda_kernel_uses_local_memory():
    pytest.importorskip("triton", reason="cuobjdump is in Triton's wheel")
    if not cpp.has_cuda():
        assert list(compiler.native_kernels()) == []
        pytest.skip("the native module was built without CUDA")
    found = list(compiler.native_kernels())
    assert {"sm_80", "sm_86", "sm_89", "sm_90"} <= {kernel.target for kernel in found}
    assert [kernel for kernel in found if kernel.local] == []
    assert all("_Z" not in kernel.name for kernel in found)
