"""`region_attention` with masks and biases of each query, and positions of each frame."""

import math

import pytest
import torch
from kernel_agreement import assert_as_exact_as_plain, poisoned_memory, pytorch_attention
from operator_checks import DEVICE, assert_compiles_once, assert_exports
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.library import opcheck
from torch.nn.functional import scaled_dot_product_attention

from art_kernels import region_attention
from art_kernels._core.autograd import OPERATORS
from art_kernels.region_attention import torch as torch_backend
from art_kernels.region_attention.reference import Arguments
from art_kernels.region_attention.reference import region_attention as reference

pytest.importorskip("art_kernels.region_attention.triton", reason="Triton is not installed")

BACKENDS = ["torch", "triton", "reference"]
FUSED = ["torch", "triton"]
#: As FUSED; the kernels take more than a second in the interpreter.
FUSED_SLOW = ["torch", pytest.param("triton", marks=pytest.mark.slow)]
DTYPE = {"torch": torch.float64, "triton": torch.float32, "reference": torch.float64}
MASKS = ["mask", "bias", "both", "frame-bias"]


def masks(kind, frames, rows, count, device="cpu"):
    """Return region_mask and attn_bias of a kind; the last row of frame 0 and all of the last frame are masked."""
    region_mask = attn_bias = None
    if kind in ("mask", "both"):
        region_mask = torch.rand(frames, rows, count, device=device) > 0.4
        region_mask[..., 0] = True
        region_mask[0, -1] = region_mask[-1] = False
    if kind in ("bias", "both"):
        attn_bias = torch.randn(frames, rows, count, device=device)
        attn_bias[torch.rand(frames, rows, count, device=device) > 0.7] = -math.inf
        attn_bias[..., 0] = 0.5
        attn_bias[0, -1] = attn_bias[-1] = -math.inf
    if kind == "frame-bias":
        region_mask = torch.rand(frames, count, device=device) > 0.4
        region_mask[:, 0], region_mask[-1] = True, False
        attn_bias = torch.randn(frames, count, device=device)
    return region_mask, attn_bias


def explicit(queries, regions, position, region_mask, attn_bias):
    """Attention by PyTorch, with zeros for rows that may not attend any region."""
    score_mask = torch.zeros(queries.shape[0], queries.shape[1], regions.shape[1], dtype=queries.dtype)
    if attn_bias is not None:
        score_mask = score_mask + (attn_bias if attn_bias.dim() == 3 else attn_bias[:, None])
    if region_mask is not None:
        allowed = region_mask if region_mask.dim() == 3 else region_mask[:, None]
        score_mask = score_mask.masked_fill(~allowed, -math.inf)
    empty = score_mask.isneginf().all(-1, keepdim=True)
    keys = regions if position is None else regions + position
    output = scaled_dot_product_attention(queries, keys, regions, attn_mask=score_mask.masked_fill(empty, 0))
    return output.masked_fill(empty, 0)


def leaves_of(values, dtype):
    return [None if value is None else value.to(dtype).requires_grad_() for value in values]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("sizes", [(3, 5, 37, 20), (2, 19, 21, 40)], ids=str)
def test_output_and_gradients_equal_those_of_pytorch(backend, kind, sizes):
    frames, rows, count, channels = sizes
    region_mask, attn_bias = masks(kind, frames, rows, count)
    shapes = [(frames, rows, channels), (frames, count, channels), (frames, count, channels)]
    values = [*(torch.randn(shape) for shape in shapes), attn_bias]
    results = []
    for dtype, run in (
        (torch.float64, lambda q, x, p, b: explicit(q, x, p, region_mask, b)),
        (
            DTYPE[backend],
            lambda q, x, p, b: region_attention(
                q, x, key_position=p, region_mask=region_mask, attn_bias=b, backend=backend
            ),
        ),
    ):
        leaves = leaves_of(values, dtype)
        output = run(*leaves)
        inputs = [leaf for leaf in leaves if leaf is not None]
        gradients = torch.autograd.grad(output.square().sum(), inputs)
        results.append([tensor.double() for tensor in (output.detach(), *gradients)])
    tolerance = 1e-9 if DTYPE[backend] == torch.float64 else 2e-5
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", [*FUSED_SLOW, "reference"])
@pytest.mark.parametrize("additive", [False, True], ids=["mask", "bias"])
@pytest.mark.parametrize("layer_norm_eps", [None, 1e-5])
def test_content_of_a_region_that_no_query_may_attend_has_no_effect(backend, additive, layer_norm_eps):
    region_mask, _ = masks("mask", 3, 4, 7)
    region_mask[:, :, 3] = False
    bias = torch.zeros(region_mask.shape).masked_fill(~region_mask, -math.inf)
    options = {"attn_bias": bias} if additive else {"region_mask": region_mask}
    queries, regions, position = torch.randn(3, 4, 8), torch.randn(3, 7, 8), torch.randn(3, 7, 8)
    unused = ~region_mask.any(1)[..., None]
    results = []
    for poison in (0.0, math.nan, math.inf):
        leaves = [queries.clone(), regions.masked_fill(unused, poison), position.masked_fill(unused, poison)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        outputs = region_attention(
            *leaves[:2], key_position=leaves[2], layer_norm_eps=layer_norm_eps, return_map=True, backend=backend,
            **options,
        )  # fmt: skip
        gradients = torch.autograd.grad(sum(output.square().sum() for output in outputs), leaves)
        results.append([*outputs, *gradients])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=0)
    output, weights, grad_queries, grad_regions, grad_position = results[0]
    for empty in (output[0, -1], output[-1], weights[0, -1], weights[-1], grad_queries[0, -1], grad_regions[-1]):
        assert not empty.any()
    assert not grad_regions[:, 3].any() and not grad_position[:, 3].any()
    assert weights.masked_select(~region_mask).eq(0).all()


@pytest.mark.parametrize("backend", FUSED_SLOW)
@pytest.mark.parametrize("additive", [False, True], ids=["mask", "bias"])
@pytest.mark.parametrize("mask_rows", [1, 3, 30])
def test_row_m_uses_row_m_modulo_r_of_the_mask(backend, additive, mask_rows, monkeypatch):
    """As with heads that share the mask of a query; 30 rows are several blocks."""
    monkeypatch.setitem(torch_backend.BLOCK_BYTES, "cpu", 1)
    queries, regions = torch.randn(2, 30, 8), torch.randn(2, 11, 8)
    mask = torch.rand(2, mask_rows, 11) > 0.5
    mask[:, 0] = False
    if additive:
        mask = torch.randn(2, mask_rows, 11).masked_fill(~mask, -math.inf)
    results = []
    for rows, operator in ((mask_rows, OPERATORS[f"region_attention_{backend}"].forward), (30, reference)):
        leaves = [queries.clone().requires_grad_(), regions.clone().requires_grad_()]
        shared = mask.clone().requires_grad_(additive)
        arguments = Arguments(
            *leaves, None, None, 0.3, None, True, shared if rows == mask_rows else shared.repeat(1, 30 // mask_rows, 1)
        )
        found = operator(*arguments)
        outputs = found[0], found[-1]
        leaves += [shared] if additive else []
        results.append([*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), leaves)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def accuracy(backend, dtype, sizes, kind, layer_norm_eps, draws):
    frames, rows, count, channels = sizes
    region_mask, attn_bias = masks(kind, frames, rows, count, DEVICE)

    def draw():
        shapes = [(frames, rows, channels), (frames, count, channels), (frames, count, channels)]
        queries, regions, position = (torch.randn(shape, device=DEVICE) for shape in shapes)
        return [2 * queries, regions, position, *([] if attn_bias is None else [attn_bias])]

    options = {"region_mask": region_mask, "layer_norm_eps": layer_norm_eps}

    def fast(queries, regions, position, bias=None):
        return region_attention(
            queries, regions, key_position=position, attn_bias=bias, **options, return_map=True, backend=backend
        )

    def plain(queries, regions, position, bias=None):
        return pytorch_attention(queries, regions, position, bias, **options)

    assert_as_exact_as_plain(fast, plain, draw, dtype, draws=draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["mask", "both"])
@pytest.mark.parametrize("layer_norm_eps", [None, 1e-5], ids=["", "normed"])
def test_accuracy_of_the_torch_backend(dtype, kind, layer_norm_eps):
    accuracy("torch", dtype, (4, 17, 49, 96), kind, layer_norm_eps, draws=6)


KERNEL_CASES = [
    pytest.param(torch.float16, (2, 14, 21, 33), "both", 1e-5, id="one-block"),
    pytest.param(torch.float32, (1, 18, 37, 40), "mask", None, id="row-blocks"),
    pytest.param(torch.float16, (1, 5, 70, 33), "bias", None, id="splits"),
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype, sizes, kind, layer_norm_eps", KERNEL_CASES)
def test_accuracy_of_the_kernels(dtype, sizes, kind, layer_norm_eps):
    accuracy("triton", dtype, sizes, kind, layer_norm_eps, draws=2)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_gradients_of_position_and_bias_together(backend, scale):
    """One stored gradient of the scores serves both; a scale of 0 must not remove that of the bias."""
    region_mask, attn_bias = masks("both", 2, 3, 7)
    values = [torch.randn(2, 3, 8), torch.randn(2, 7, 8), torch.randn(7, 8), attn_bias]
    results = []
    for name in (backend, "reference"):
        leaves = leaves_of(values, torch.float32)
        with poisoned_memory():
            output, weights = region_attention(
                *leaves[:2], key_position=leaves[2], region_mask=region_mask, attn_bias=leaves[3], scale=scale,
                return_map=True, backend=name,
            )  # fmt: skip
            results.append(torch.autograd.grad(output.square().sum() + weights.cos().sum(), leaves))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert results[0][3].any()


@pytest.mark.slow
def test_gradients_of_first_and_second_order():
    region_mask, attn_bias = masks("both", 2, 3, 5)
    hidden = attn_bias.isneginf()
    values = [torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 4), attn_bias.masked_fill(hidden, 0)]

    def call(queries, regions, position, bias):
        return region_attention(
            queries, regions, key_position=position, region_mask=region_mask & ~hidden, attn_bias=bias,
            return_map=True, backend="torch",
        )  # fmt: skip

    leaves = leaves_of(values, torch.float64)
    assert gradcheck(call, leaves) and gradgradcheck(call, leaves)


@pytest.mark.slow
def test_operators_pass_opcheck():
    operator = OPERATORS["region_attention_torch"]
    queries, regions, position = (torch.randn(shape, requires_grad=True) for shape in ((3, 2, 8), (3, 7, 8), (3, 7, 8)))
    bias = torch.randn(3, 1, 7, requires_grad=True)
    arguments = Arguments(queries, regions, position, None, 0.3, None, True, bias)
    assert set(opcheck(operator.forward, arguments).values()) == {"SUCCESS"}
    outputs = [tensor.detach() for tensor in operator.forward(*arguments)]
    detached = [value.detach() if isinstance(value, torch.Tensor) else value for value in arguments]
    backward = (torch.randn_like(outputs[0]), None, *detached, [True] * 4)
    assert set(opcheck(operator.backward, backward).values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", FUSED_SLOW)
def test_vmap_over_masks_and_positions(backend):
    queries, regions = torch.randn(3, 2, 8), torch.randn(3, 7, 8)
    region_mask, bias = torch.rand(2, 3, 2, 7) > 0.4, torch.randn(2, 3, 2, 7)
    for position in (torch.randn(2, 7, 8), torch.randn(2, 3, 7, 8)):

        def call(mask, bias, position):
            return region_attention(
                queries, regions, region_mask=mask, attn_bias=bias, key_position=position, backend=backend
            )

        mapped = vmap(call)(region_mask, bias, position)
        expected = torch.stack([call(*arguments) for arguments in zip(region_mask, bias, position, strict=True)])
        torch.testing.assert_close(mapped, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", FUSED_SLOW)
@pytest.mark.parametrize("frames", [(), (3,)], ids=["shared", "each frame"])
def test_vmap_over_the_backward_pass(backend, frames):
    values = torch.randn(3, 2, 4), torch.randn(3, 5, 4), torch.randn(*frames, 5, 4), torch.randn(3, 2, 5)
    leaves = leaves_of(values, torch.float32)
    output = region_attention(*leaves[:2], key_position=leaves[2], attn_bias=leaves[3], backend=backend)
    directions = torch.randn(2, *output.shape)
    mapped = torch.autograd.grad(output, leaves, directions, is_grads_batched=True, retain_graph=True)
    singles = [torch.autograd.grad(output, leaves, direction, retain_graph=True) for direction in directions]
    torch.testing.assert_close(mapped, tuple(map(torch.stack, zip(*singles, strict=True))), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiles_once_and_exports_for_every_number_of_frames():
    def call(queries, regions, position, mask, bias):
        return region_attention(
            queries, regions, key_position=position, region_mask=mask, attn_bias=bias, backend="torch"
        )

    def make_inputs(frames):
        shapes = [(frames, 2, 8), (frames, 7, 8), (frames, 7, 8)]
        values = [torch.randn(shape, requires_grad=True) for shape in shapes]
        return [*values, torch.rand(frames, 2, 7) > 0.4, torch.randn(frames, 7, requires_grad=True)]

    assert_compiles_once(call, make_inputs)
    assert_exports(call, make_inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frames, rows, count", [(0, 2, 7), (3, 0, 7), (3, 2, 0)])
def test_empty_sizes(backend, frames, rows, count):
    values = [torch.randn(frames, rows, 8), torch.randn(frames, count, 8), torch.randn(frames, count, 8)]
    leaves = leaves_of([*values, torch.randn(frames, rows, count)], torch.float32)
    region_mask = torch.ones(frames, rows, count, dtype=torch.bool)
    output = region_attention(
        *leaves[:2], key_position=leaves[2], attn_bias=leaves[3], region_mask=region_mask, backend=backend
    )
    assert output.shape == (frames, rows, 8) and not output.any()
    output.sum().backward()
    assert not any(leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize("backend", FUSED)
def test_a_bias_keeps_its_precision_in_float16(backend):
    """-1e9 is finite: it must not become -inf, which would mask whole rows."""
    queries, regions = torch.randn(2, 3, 8).half(), torch.randn(2, 7, 8).half()
    bias = torch.full((2, 3, 7), -1e9)
    found = region_attention(queries, regions, attn_bias=bias, backend=backend)
    assert found.isfinite().all() and found.any(-1).all()


def test_rows_of_a_mask_in_blocks():
    mask = torch.arange(5).view(1, 5, 1)
    assert torch_backend._mask_rows(mask, slice(0, 1), slice(3, 9)).flatten().tolist() == [3, 4, 0, 1, 2, 3]
