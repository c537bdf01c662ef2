"""`region_attention`: the reference against hand-computed values, and every backend against the reference."""

import math
import sys
from pathlib import Path

import pytest
import torch
from operator_checks import (
    DEVICE,
    GPU,
    assert_captured_in_cuda_graph,
    assert_compiles_once,
    assert_exports,
    other_layouts,
    outputs_and_gradients,
    requires_gpu,
    skip_unsupported,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.library import opcheck

import art_kernels
from art_kernels import region_attention
from art_kernels._core import backends
from art_kernels._core.autograd import OPERATORS
from art_kernels.region_attention import configs, reference
from art_kernels.region_attention.reference import Arguments

triton_backend = pytest.importorskip("art_kernels.region_attention.triton", reason="Triton is not installed")

BACKENDS = ["torch", "triton", "reference"]
FUSED = ["torch", "triton"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def inputs(device="cpu", frames=3, rows=2, count=7, channels=12, **options) -> tuple[Tensor, Tensor, Tensor]:
    shapes = [(frames, rows, channels), (frames, count, channels), (count, channels)]
    queries, regions, position = (torch.randn(shape, device=device, **options) for shape in shapes)
    return queries, regions, position


def results(values, **options):
    """Return the outputs for queries, regions and optionally positions, and the gradients of all of these."""

    def call(queries, regions, position=None):
        return region_attention(queries, regions, key_position=position, **options)

    return outputs_and_gradients(call, [value.detach().requires_grad_() for value in values])


LOG3 = math.log(3)


@pytest.mark.parametrize(
    "position, mask, scale, weights, output",
    [
        (None, None, 1.0, [0.25, 0.75], 0.75 * LOG3),
        (None, None, 2.0, [0.1, 0.9], 0.9 * LOG3),
        ([[LOG3], [0.0]], None, 1.0, [0.5, 0.5], 0.5 * LOG3),  # added to the keys, not to the values
        (None, [[False, True]], 1.0, [0.0, 1.0], LOG3),
        (None, [[False, False]], 1.0, [0.0, 0.0], 0.0),
    ],
)
def test_reference_by_hand(position, mask, scale, weights, output):
    query = torch.tensor([[[1.0]]], dtype=torch.float64)  # F = M = C = 1
    regions = torch.tensor([[[0.0], [LOG3]]], dtype=torch.float64)  # N = 2
    position = None if position is None else torch.tensor(position, dtype=torch.float64)
    mask = None if mask is None else torch.tensor(mask)
    found = reference.region_attention(query, regions, position, mask, scale)
    torch.testing.assert_close([tensor.flatten().tolist() for tensor in found], [[output], weights])


def test_reference_layer_norm_precedes_position_and_attention():
    queries = torch.tensor([[[LOG3 / 2, 0.0]]], dtype=torch.float64)
    regions = torch.tensor([[[5.0, 3.0], [1.0, 9.0]]], dtype=torch.float64)  # normalized: (1, -1) and (-1, 1)
    output, weights = reference.region_attention(queries, regions, layer_norm_eps=1e-12)
    torch.testing.assert_close(weights, torch.tensor([[[0.75, 0.25]]], dtype=torch.float64))
    torch.testing.assert_close(output, torch.tensor([[[0.5, -0.5]]], dtype=torch.float64))


def test_reference_equals_scaled_dot_product_attention():
    queries, regions, position = inputs(dtype=torch.float64)
    mask = torch.rand(3, 7) > 0.3
    output, _ = reference.region_attention(queries, regions, position, mask, 0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(
        queries, regions + position, regions, attn_mask=mask[:, None, :], scale=0.3
    )
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_map_and_default_scale(device, backend):
    queries, regions, _ = inputs(device)
    output, weights = region_attention(queries, regions, return_map=True, backend=backend)
    expected = torch.softmax(queries @ regions.mT / math.sqrt(12), -1)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(output, expected @ regions)
    torch.testing.assert_close(region_attention(queries, regions, backend=backend), output, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_have_the_dtype_of_the_inputs(device, dtype, backend):
    skip_unsupported("region_attention", backend, torch.empty(1, 1, 8, dtype=dtype, device=device))
    found = results(inputs(device, dtype=dtype), layer_norm_eps=1e-5, return_map=True, backend=backend)
    assert {tensor.dtype for tensor in found} == {dtype}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layer_norm_eps", [None, 1e-5])
def test_masked_regions_affect_neither_output_nor_gradient(device, backend, layer_norm_eps):
    queries, regions, position = inputs(device)
    mask = torch.rand(3, 7, device=device) > 0.4
    mask[:, 0] = True

    def run(regions):
        options = {"region_mask": mask, "layer_norm_eps": layer_norm_eps, "return_map": True, "backend": backend}
        return results([queries, regions, position], **options)

    clean = run(regions)
    for poison in (math.nan, math.inf):
        poisoned = run(regions.masked_fill(~mask[:, :, None], poison))
        torch.testing.assert_close(poisoned, clean, rtol=0, atol=0)
    assert (clean[1].masked_select(~mask[:, None, :].expand(3, 2, 7)) == 0).all()
    assert (clean[3][~mask] == 0).all()
    assert (clean[3][mask] != 0).any(-1).all()


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("backend", BACKENDS)
def test_fully_masked_frame_is_zero(device, backend):
    queries, regions, _ = inputs(device, requires_grad=True)
    mask = torch.ones(3, 7, dtype=torch.bool, device=device)
    mask[1] = False
    poisoned = regions.detach().masked_fill(~mask[:, :, None], math.nan).requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        output, weights = region_attention(queries, poisoned, region_mask=mask, return_map=True, backend=backend)
        (output.exp().sum() + weights.exp().sum()).backward()
    assert (output[1] == 0).all() and (weights[1] == 0).all()
    assert (queries.grad[1] == 0).all() and (poisoned.grad[1] == 0).all()
    unmasked = region_attention(queries[[0, 2]], regions[[0, 2]], backend=backend)
    torch.testing.assert_close(output[[0, 2]], unmasked)
    assert (queries.grad[[0, 2]] != 0).any() and poisoned.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frames, rows, count", [(0, 2, 7), (3, 0, 7), (3, 2, 0), (0, 0, 0)])
def test_empty_sizes(device, backend, frames, rows, count):
    queries, regions, position = inputs(device, frames, rows, count, requires_grad=True)
    output, weights = region_attention(
        queries, regions, key_position=position, layer_norm_eps=1e-5, return_map=True, backend=backend
    )
    assert output.shape == (frames, rows, 12) and weights.shape == (frames, rows, count)
    assert (output == 0).all()
    (output.sum() + weights.sum()).backward()
    assert (queries.grad == 0).all() and (regions.grad == 0).all() and (position.grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_scores_stay_finite(device, backend):
    queries = torch.tensor([[[1e4], [-1e4]]], device=device, requires_grad=True)
    regions = torch.tensor([[[1.0], [-1.0], [0.5]]], device=device, requires_grad=True)
    output, weights = region_attention(queries, regions, scale=1.0, return_map=True, backend=backend)
    assert output.tolist() == [[[1.0], [-1.0]]]
    assert weights.tolist() == [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]
    (output.sum() + weights.sum()).backward()
    assert queries.grad.tolist() == [[[0.0], [0.0]]]
    assert regions.grad.tolist() == [[[1.0], [1.0], [0.0]]]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("backend", FUSED)
def test_layout_does_not_change_the_result(device, backend, rows):
    queries, regions, position = inputs(device, rows=rows, count=21, channels=40)
    options = {"region_mask": (torch.rand(21, 3, device=device) > 0.3).mT, "backend": backend}
    strided = queries.mT.contiguous().mT, position.mT.contiguous().mT
    expected = results([queries, regions, position], **options)
    tolerance = {"rtol": 0, "atol": 0} if backend == "triton" else {}
    for layout in other_layouts(regions):
        found = results([strided[0], layout, strided[1]], **options)
        torch.testing.assert_close(found, expected, **tolerance)
    expanded = region_attention(queries, regions[:1].expand(3, -1, -1), backend=backend)
    torch.testing.assert_close(expanded, region_attention(queries, regions[:1].repeat(3, 1, 1), backend=backend))


@pytest.mark.slow
@pytest.mark.parametrize("backend", FUSED)
def test_two_runs_are_bitwise_identical(device, backend):
    values = inputs(device, 2, 5, 300, 40)
    torch.testing.assert_close(results(values, backend=backend), results(values, backend=backend), rtol=0, atol=0)


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)], ids=["output", "map", "both"])
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2)], ids=["queries", "regions", "position", "two"])
@pytest.mark.parametrize("fused", FUSED)
def test_gradients_of_some_outputs_to_some_inputs(device, fused, used, needed):
    values = inputs(device, 2, 3, 21, 40)
    results = []
    for backend in (fused, "reference"):
        leaves = [value.clone().requires_grad_(index in needed) for index, value in enumerate(values)]
        outputs = region_attention(*leaves[:2], key_position=leaves[2], return_map=True, backend=backend)
        loss = sum(outputs[index].square().sum() for index in used)
        results.append(torch.autograd.grad(loss, [leaves[index] for index in needed]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("layer_norm_eps", [None, 1e-3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("position", [False, True])
def test_gradients_of_first_and_second_order(layer_norm_eps, masked, position):
    leaves = inputs(frames=2, rows=3, count=5, channels=4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True, True, False], [False] * 5]) if masked else None

    def call(queries, regions, key_position):
        return region_attention(
            queries, regions, scale=0.7, key_position=key_position, region_mask=mask, layer_norm_eps=layer_norm_eps,
            return_map=True, backend="torch",
        )  # fmt: skip

    arguments = (*leaves[:2], leaves[2] if position else None)
    assert gradcheck(call, arguments)
    assert gradgradcheck(call, arguments)


def test_second_order_gradients_of_the_kernels_equal_those_of_the_reference(device):
    if GPU and device.type == "cpu":
        pytest.skip("the kernels run on the GPU")
    results = []
    for backend in ("triton", "reference"):
        torch.manual_seed(0)
        leaves = [tensor.requires_grad_() for tensor in inputs(device, 2, 3, 7, 8)[:2]]
        output = region_attention(*leaves, backend=backend)
        (first,) = torch.autograd.grad(output.square().sum(), leaves[1], create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), leaves))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("position", [False, True], ids=["", "position"])
@pytest.mark.parametrize("return_map", [False, True], ids=["", "map"])
def test_operators_pass_opcheck(device, backend, position, return_map):
    operator = OPERATORS[f"region_attention_{backend}"]
    queries, regions, key_position = inputs(device, requires_grad=True)
    mask = torch.rand(3, 7, device=device) > 0.3 if position else None
    arguments = Arguments(
        queries, regions, key_position if position else None, mask, 0.3, 1e-5 if return_map else None, return_map
    )
    assert set(opcheck(operator.forward, arguments).values()) == {"SUCCESS"}
    outputs = [tensor.detach() for tensor in operator.forward(*arguments)]
    saved = outputs if backend == "triton" else []
    detached = [value.detach() if isinstance(value, Tensor) else value for value in arguments]
    grad_map = torch.randn(3, 2, 7, device=device) if return_map else None
    for needs in ([True, True, position, False], [False] * 4):
        backward = (torch.randn_like(outputs[0]), grad_map, *detached, *saved, needs)
        assert set(opcheck(operator.backward, backward).values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dim", [0, 1])
def test_vmap_merges_the_mapped_dimension_into_the_frames(device, backend, dim):
    queries, _, position = inputs(device)
    many = torch.randn(4, 3, 7, 12, device=device)
    mask = torch.rand(4, 3, 7, device=device) > 0.3

    def call(regions, mask):
        return region_attention(
            queries, regions, key_position=position, region_mask=mask, return_map=True, backend=backend
        )

    mapped = vmap(call, in_dims=(dim, 0))(many.movedim(0, dim), mask)
    for one, (output, weights) in enumerate(zip(*mapped, strict=True)):
        torch.testing.assert_close((output, weights), call(many[one], mask[one]), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("layer_norm_eps", [None, 1e-5])
def test_compiles_once_and_exports_for_every_number_of_frames(device, backend, layer_norm_eps):
    def call(queries, regions, positions, mask):
        return region_attention(
            queries, regions, key_position=positions[0], region_mask=mask, layer_norm_eps=layer_norm_eps,
            return_map=True, backend=backend,
        )  # fmt: skip

    def make_inputs(frames):
        queries, regions, position = inputs(device, frames, requires_grad=True)
        positions = position.detach().expand(frames, -1, -1).clone().requires_grad_()
        return [queries, regions, positions, torch.rand(frames, 7, device=device) > 0.4]

    assert_compiles_once(call, make_inputs)
    assert_exports(call, make_inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_like_a_matrix_product(device, dtype):
    queries, regions, position = inputs(device)
    with torch.autocast(device.type, dtype):
        outputs = region_attention(queries, regions.bfloat16(), key_position=position, return_map=True)
    expected = region_attention(
        queries.to(dtype), regions.bfloat16().to(dtype), key_position=position.to(dtype), return_map=True
    )
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)
    assert outputs[0].dtype == dtype
    with torch.autocast(device.type, dtype):
        assert region_attention(queries.double(), regions.double()).dtype == torch.float64
        assert region_attention(queries, regions, layer_norm_eps=1e-5).dtype == dtype
        with pytest.raises(TypeError, match=r"queries has dtype torch\.float64"):
            region_attention(queries.double(), regions)


# Launches of the kernels.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [3, 20])
def test_other_block_sizes_compute_the_same(rows, dtype, monkeypatch):
    values = [tensor.to(dtype) for tensor in inputs(DEVICE, 2, rows, 37, 40)[:2]]

    def last_candidate(*arguments, **options):
        return configs.candidates(configs.forward_config(*arguments, **options))[-1]

    def last_backward_candidate(*arguments, **options):
        config, one_block = configs.backward_config(*arguments, **options)
        return configs.candidates(config)[-1], one_block

    expected = results(values, backend="triton")
    monkeypatch.setattr(triton_backend, "_forward_config", last_candidate)
    monkeypatch.setattr(triton_backend, "_backward_config", last_backward_candidate)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2}[dtype]
    torch.testing.assert_close(results(values, backend="triton"), expected, rtol=tolerance, atol=tolerance)


@requires_gpu
def test_autotuned_block_sizes_compute_the_same():
    values = [tensor.bfloat16() for tensor in inputs("cuda", 4, 3, 37, 64)[:2]]
    expected = region_attention(*values, backend="triton")
    with art_kernels.autotune():
        result = region_attention(*values, backend="triton")
    torch.testing.assert_close(result, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("backend", ["triton", None])
def test_few_python_calls_precede_the_kernel(backend, monkeypatch):
    """At most 25 calls of functions of this package, in at most 5 files, once the caches are filled."""
    queries, regions, _ = inputs(DEVICE, dtype=torch.float16)
    implementation = backends._implementations["region_attention"]["triton"]
    monkeypatch.setitem(
        backends._implementations["region_attention"],
        "triton",
        backends.Implementation(implementation.run, implementation.unsupported_reason, lambda tensor: False),
    )
    calls: list[tuple[str, str]] = []

    class RecordedKernel:
        def __getitem__(self, grid):
            sys.setprofile(None)
            return lambda **arguments: None

    def record(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and "art_kernels" in path.parts and "tests" not in path.parts:
            calls.append((path.name, frame.f_code.co_name))

    monkeypatch.setattr(triton_backend.forward_kernels, "forward_kernel", RecordedKernel())
    region_attention(queries, regions, backend=backend)
    sys.setprofile(record)
    try:
        region_attention(queries, regions, backend=backend)
    finally:
        sys.setprofile(None)
    assert calls[0][1] == "region_attention" and calls[-1] == ("launch.py", "run"), "the kernel was launched"
    assert len(calls) <= 25, calls
    assert len({name for name, _ in calls}) <= 5, calls


@requires_gpu
@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("masked", [False, True])
def test_cuda_graph_and_synchronization(backend, masked):
    mask = torch.rand(3, 7, device="cuda") > 0.4 if masked else None

    def call(queries, regions, position):
        options = {"region_mask": mask, "return_map": masked, "backend": backend}
        return region_attention(queries, regions, key_position=position, **options)

    assert_captured_in_cuda_graph(call, inputs("cuda", requires_grad=True))


QUERIES, REGIONS, POSITION = torch.randn(3, 2, 12), torch.randn(3, 7, 12), torch.randn(7, 12)
MASK = torch.ones(3, 7, dtype=torch.bool)
ERRORS = [
    ({"queries": [1.0]}, TypeError, r"queries is \[1.0\] of type list, expected a torch.Tensor"),
    ({"regions": None}, TypeError, r"regions is None, expected a torch.Tensor of shape \[F,N,C\]"),
    ({"queries": QUERIES[0]}, ValueError, r"queries has shape \[2, 12\], .* 3 dimensions \[F,M,C\]"),
    ({"regions": REGIONS[0]}, ValueError, r"regions has shape \[7, 12\], .* 3 dimensions \[F,N,C\]"),
    ({"queries": QUERIES.int()}, TypeError, r"queries has dtype torch.int32, expected float16"),
    ({"regions": REGIONS.long()}, TypeError, r"regions has dtype torch.int64, expected float16"),
    ({"queries": QUERIES.half()}, TypeError, r"queries has dtype torch.float16, expected torch.float32"),
    ({"queries": QUERIES[:2]}, ValueError, r"queries has shape \[2, 2, 12\], expected .* = \[3, 2, 12\]"),
    ({"queries": QUERIES[..., :5]}, ValueError, r"queries has shape \[3, 2, 5\], expected .* \[3, 2, 12\]"),
    ({"queries": QUERIES[..., :0], "regions": REGIONS[..., :0]}, ValueError, r"queries .* at least one channel"),
    ({"queries": QUERIES.to("meta")}, ValueError, r"queries is on meta, expected cpu, the device of regions"),
    ({"key_position": POSITION[1:]}, ValueError, r"key_position .* \[7, 12\]"),
    ({"key_position": REGIONS[0, 0]}, ValueError, r"key_position has shape \[12\], expected \[N,C\] or \[F,N,C\]"),
    ({"key_position": REGIONS[:2]}, ValueError, r"key_position has shape \[2, 7, 12\].*\[F,N,C\] = \[3, 7, 12\]"),
    ({"key_position": POSITION.double()}, TypeError, r"key_position has dtype"),
    ({"key_position": POSITION.to("meta")}, ValueError, r"key_position is on"),
    ({"key_position": 1}, TypeError, r"key_position is 1 of type int"),
    ({"region_mask": [True]}, TypeError, r"region_mask is .* expected a boolean"),
    ({"region_mask": MASK.float()}, TypeError, r"region_mask has dtype torch.float32.* additive mask as attn_bias="),
    ({"region_mask": MASK.mT}, ValueError, r"region_mask has shape \[7, 3\].*\[3, 7\]"),
    ({"region_mask": MASK.to("meta")}, ValueError, r"region_mask is on meta"),
    ({"region_mask": MASK[0]}, ValueError, r"region_mask has shape \[7\], expected \[F,N\] or \[F,M,N\]"),
    ({"region_mask": MASK[:, None]}, ValueError, r"region_mask has shape \[3, 1, 7\].*\[F,M,N\] = \[3, 2, 7\]"),
    ({"attn_bias": MASK}, TypeError, r"attn_bias has dtype torch.bool, expected float16"),
    ({"attn_bias": QUERIES}, ValueError, r"attn_bias has shape \[3, 2, 12\].*\[F,M,N\] = \[3, 2, 7\]"),
    ({"attn_bias": torch.zeros(3, 7, device="meta")}, ValueError, r"attn_bias is on meta, expected cpu"),
    ({"scale": "big"}, TypeError, r"scale is 'big' of type str, expected a number"),
    ({"scale": math.nan}, ValueError, r"scale is nan, expected a finite number"),
    ({"layer_norm_eps": True}, TypeError, r"layer_norm_eps is True of type bool"),
    ({"layer_norm_eps": 0.0}, ValueError, r"layer_norm_eps is 0.0, .* \(0.0, inf\)"),
    ({"return_map": 1}, TypeError, r"return_map is 1 of type int, expected True or"),
    ({"backend": "cuda"}, ValueError, r"backend='cuda' is not a backend, expected"),
    ({"backend": "triton"}, ValueError, r"'triton' does not support .* TRITON_INTERPRET=1.* 'torch', 'reference'"),
]


@pytest.mark.parametrize("arguments, error, message", ERRORS, ids=[message for *_, message in ERRORS])
def test_errors_name_the_argument(arguments, error, message, monkeypatch):
    monkeypatch.setattr(triton_backend, "INTERPRETED", False)  # as without TRITON_INTERPRET=1
    arguments = {"queries": QUERIES, "regions": REGIONS, **arguments}
    with pytest.raises(error, match="region_attention: .*" + message):
        region_attention(arguments.pop("queries"), arguments.pop("regions"), **arguments)
