"""`linear_assignment`: against SciPy and against a certificate of optimality; numbers that are not finite; corners."""

import threading
import time

import numpy as np
import pytest
import torch
from linking_cases import KINDS, SIZES, assert_optimal, costs, sums
from scipy.optimize import linear_sum_assignment

from art_kernels import linear_assignment
from art_kernels.tracklet_linking import extension, registration

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _served(device):
    reason = extension.refusal(torch.empty(0, device=device))
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maximize", [False, True])
def test_is_the_optimum(device, dtype, kind, maximize):
    for size in SIZES:
        cost = costs(kind, 7 if size <= 17 else 2, size, dtype)
        columns = linear_assignment(cost.to(device), maximize=maximize)
        assert (columns.dtype, columns.shape, columns.device) == (torch.int64, cost.shape[:-1], cost.to(device).device)
        assert_optimal(cost, columns, maximize=maximize)


def test_the_certificate_refuses_what_is_not_optimal():
    cost = costs("uniform", 1, 6)
    columns = linear_assignment(cost)
    assert_optimal(cost, columns)
    with pytest.raises(AssertionError, match="lowers the sum"):
        assert_optimal(cost, columns[:, [1, 0, 2, 3, 4, 5]])
    with pytest.raises(AssertionError, match="no permutation"):
        assert_optimal(cost, columns.clamp_min(1))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "largest"])  # whose sums overflow in SciPy
@pytest.mark.parametrize("maximize", [False, True])
def test_has_the_sum_that_scipy_has(device, kind, maximize):
    for size in [*SIZES, 100, 256]:
        cost = costs(kind, 3 if size <= 64 else 1, size)
        found = sums(cost, linear_assignment(cost.to(device), maximize=maximize))
        solved = [linear_sum_assignment(problem, maximize=maximize)[1] for problem in cost.numpy()]
        expected = sums(cost, torch.tensor(np.array(solved)))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14 * size * cost.abs().max().item())


@pytest.mark.parametrize("maximize", [False, True])
def test_agrees_with_the_definition(device, maximize):
    for size in range(1, 8):
        cost = torch.randn(5, 3, size, size, device=device)
        defined = linear_assignment(cost, maximize=maximize, backend="reference")
        assert torch.equal(linear_assignment(cost, maximize=maximize), defined), "random sums are not equal"


@pytest.mark.parametrize("size", [1, 2, 4, 5, 40])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_number_that_is_not_finite_is_found(device, dtype, size, value):
    cost = torch.rand(4, 5, size, size, device=device).to(dtype)
    good = linear_assignment(cost)
    cost[2, 1, size - 1, 0] = value
    cost[3, 4, 0, 0] = value
    with pytest.raises(ValueError, match=r"linear_assignment: cost\[2, 1\] holds NaN or inf, expected finite numbers"):
        linear_assignment(cost, check=True)
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"cost\[2, 1\]"):
            linear_assignment(cost)
        with pytest.raises(ValueError, match=r"linear_assignment: cost holds NaN"):
            linear_assignment(cost[2, 1])
    else:  # nobody waits for it; the problems beside it are solved
        columns = linear_assignment(cost)
        bad = torch.zeros(4, 5, dtype=torch.bool, device=device)
        bad[2, 1] = bad[3, 4] = True
        assert (columns[bad] == -1).all() and torch.equal(columns[~bad], good[~bad])


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 5, 5), (4, 0, 0), (0, 0)], ids=str)
def test_nothing_to_match(device, shape):
    columns = linear_assignment(torch.empty(shape, device=device))
    assert columns.shape == shape[:-1] and columns.dtype == torch.int64


def test_layout_and_number_of_dimensions_do_not_matter(device):
    cost = torch.randn(3, 4, 6, 6, device=device)
    columns = linear_assignment(cost)
    assert torch.equal(linear_assignment(cost.mT.contiguous().mT), columns)
    assert torch.equal(linear_assignment(cost.transpose(0, 1)), columns.transpose(0, 1))
    assert torch.equal(linear_assignment(cost[1, 2]), columns[1, 2])
    assert torch.equal(linear_assignment(cost[:1].expand(5, -1, -1, -1)), columns[:1].expand(5, -1, -1))
    assert torch.equal(linear_assignment(cost.requires_grad_()), columns)


def test_two_runs_and_any_number_of_threads_give_the_same_matching():
    cost = costs("tied", 3000, 9, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = linear_assignment(cost)
        torch.set_num_threads(4)
        assert all(torch.equal(linear_assignment(cost), one) for _ in range(3))
    finally:
        torch.set_num_threads(threads)


def test_other_threads_run_meanwhile():
    cost = torch.rand(4000, 32, 32)
    thread = threading.Thread(target=linear_assignment, args=(cost,))
    steps = 0
    thread.start()
    while thread.is_alive():
        steps += 1
        time.sleep(0)
    assert steps > 10, "the interpreter's lock was held"


def test_more_than_two_to_the_31_numbers(device):
    size, count = 256, 2**31 // 256**2 + 1
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 6 << 30:
        pytest.skip("needs 6 GiB of GPU memory")
    cost = torch.zeros(
        count, size, size, dtype=torch.bfloat16, device=device
    )  # pages that are only read take no memory
    cost[-1] = costs("uniform", 1, size, torch.bfloat16)[0].to(device)
    assert cost.numel() > 2**31
    columns = linear_assignment(cost)
    assert_optimal(cost[-1], columns[-1])
    for some in columns.split(4096):
        assert torch.equal(some.sort(-1).values, torch.arange(size, device=device).expand_as(some))


def test_registration(device):
    cost = torch.rand(2, 3, 5, 5, device=device)
    torch.library.opcheck(registration.assign, (cost, True, False))
    assert torch.equal(torch.func.vmap(linear_assignment, in_dims=1)(cost), linear_assignment(cost).transpose(0, 1))


def test_compiles_into_one_graph_for_all_batch_sizes(device):
    compiled = torch.compile(lambda cost: linear_assignment(cost, maximize=True), fullgraph=True, backend="aot_eager")
    for count in (2, 5):
        cost = torch.rand(count, 6, 6, device=device)
        torch._dynamo.mark_dynamic(cost, 0)
        with torch.compiler.set_stance("default" if count == 2 else "fail_on_recompile"):
            assert torch.equal(compiled(cost), linear_assignment(cost, maximize=True))


class Assigning(torch.nn.Module):
    def forward(self, cost):
        return linear_assignment(cost)


def test_exports_with_a_free_batch_size():
    program = torch.export.export(
        Assigning(), (torch.rand(2, 6, 6),), dynamic_shapes=({0: torch.export.Dim("problems")},)
    )
    cost = torch.rand(5, 6, 6)
    assert torch.equal(program.module()(cost), linear_assignment(cost))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("size", [2, 8, 32, 64, 256])
def test_is_captured_in_a_cuda_graph(size):
    cost = torch.rand(20, size, size, device="cuda")
    linear_assignment(cost)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        columns = linear_assignment(cost)
    cost.copy_(torch.rand_like(cost))
    graph.replay()
    assert_optimal(cost, columns)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waiting for a device needs a device")
def test_nothing_is_waited_for():
    cost = torch.rand(20, 8, 8, device="cuda")
    linear_assignment(cost)
    torch.cuda.set_sync_debug_mode("error")
    try:
        linear_assignment(cost)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def error_cases():
    cost = torch.rand(2, 4, 4)
    return {
        "type": ([[1.0]], {}, TypeError, r"cost is \[\[1.0\]\] of type list, expected a torch.Tensor of shape"),
        "rank": (torch.rand(3), {}, ValueError, r"cost has shape \[3\], expected at least the last 2 dimensions of"),
        "dtype": (cost.long(), {}, TypeError, r"cost has dtype torch.int64"),
        "square": (cost[:, :3], {}, ValueError, r"cost has shape \[2, 3, 4\], expected \[...,K,K\]; pad a matrix"),
        "large": (torch.rand(257, 257), {}, ValueError, r"expected \[...,K,K\] with K at most 256; solve .* scipy"),
        "maximize": (cost, {"maximize": 1}, TypeError, r"maximize is 1 of type int, expected True or False"),
        "check": (cost, {"check": None}, TypeError, r"check is None, expected True or False"),
        "triton": (
            cost,
            {"backend": "triton"},
            ValueError,
            r"backend='triton' cannot serve .* available here: 'native'",
        ),
        "definition": (
            torch.rand(9, 9),
            {"backend": "reference"},
            ValueError,
            r"lists all matchings, of at most 8 rows",
        ),
    }


@pytest.mark.parametrize("case", error_cases())
def test_errors_name_the_argument(case):
    cost, options, error, message = error_cases()[case]
    with pytest.raises(error, match="linear_assignment: .*" + message):
        linear_assignment(cost, **options)


def test_a_missing_native_module_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(extension, "_csrc", None)
    monkeypatch.setattr(extension, "_missing", "the native module cannot be imported; build it")
    with pytest.raises(
        ValueError, match=r"no backend serves a float32 tensor on cpu .*native: the native module cannot"
    ):
        linear_assignment(torch.rand(3, 3))
    assert torch.equal(linear_assignment(torch.eye(3), maximize=True, backend="reference"), torch.arange(3))
