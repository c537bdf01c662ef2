"""The Triton kernels: on a GPU, or on the CPU by Triton's interpreter, against the definition in float64."""

import math

import pytest
import torch
from kernel_agreement import assert_as_exact_as_plain

from art_kernels import backends, region_attention
from art_kernels.devices import splits_for
from art_kernels.region_attention import native, reference

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
launch = pytest.importorskip("art_kernels.region_attention.launch")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE.type == "cuda" else [])]  # see launch.refusal
SIZES = [
    pytest.param(16, 1, 19, 40, id="one-row"),
    pytest.param(3, 14, 37, 100, id="37x100"),
    pytest.param(2, 37, 21, 40, id="row-blocks"),
    pytest.param(4, 13, 19, 132, id="chunks"),
    pytest.param(2, 13, 19, 1000, id="1000-channels"),
    pytest.param(4, 13, 130, 33, id="splits"),
]


def tensors(frames, rows, count, channels, position):
    shapes = [(frames, rows, channels), (frames, count, channels), *([(count, channels)] if position else [])]
    queries, *others = (torch.randn(shape, device=DEVICE) for shape in shapes)
    return [2 * queries, *others]


VARIANTS = [(False, False, None), (True, False, None), (False, True, None), (False, False, 1e-5), (True, True, 1e-5)]
VARIANT_NAMES = ["plain", "position", "masked", "normed", "all"]


def cases():
    """Every variant in every size and dtype; interpreted, in float32, every other one of them and "all" in each size,
    because that takes minutes and 16 bits go through the same code."""
    for i, (name, variant) in enumerate(zip(VARIANT_NAMES, VARIANTS, strict=True)):
        for j, size in enumerate(SIZES):
            for dtype in DTYPES:
                if DEVICE.type == "cuda" or dtype != torch.float32 or name == "all" or (i + j) % 2 == 0:
                    yield pytest.param(dtype, *size.values, *variant, id=f"{name}-{size.id}-{dtype}")


def draws(dtype):
    """Fewer in the interpreter, which is slow; fewest in 16 bits, where plain PyTorch errs so much that two tell."""
    if DEVICE.type == "cuda":
        return 12
    return 6 if dtype == torch.float32 else 2


def mask_of(frames, count):
    mask = torch.rand(frames, count, device=DEVICE) > 0.3
    if frames > 1:
        mask[0] = False
    return mask


@pytest.mark.parametrize("dtype, frames, rows, count, channels, position, masked, layer_norm_eps", cases())
def test_agrees_with_float64(dtype, frames, rows, count, channels, position, masked, layer_norm_eps):
    mask = mask_of(frames, count) if masked else None

    def fast(queries, regions, key_position=None):
        return region_attention(
            queries,
            regions,
            key_position=key_position,
            region_mask=mask,
            layer_norm_eps=layer_norm_eps,
            return_map=True,
            backend="triton",
        )

    def plain(queries, regions, key_position=None):
        return reference.region_attention(queries, regions, channels**-0.5, key_position, mask, layer_norm_eps)

    assert_as_exact_as_plain(
        fast,
        plain,
        lambda: tensors(frames, rows, count, channels, position),
        dtype,
        draws=draws(dtype),
    )


@pytest.mark.parametrize("used", ["output", "map", "both"])
@pytest.mark.parametrize("needed", ["queries", "regions", "position"])
def test_gradient_of_a_part(used, needed):
    names = ("queries", "regions", "position")
    values = tensors(2, 3, 21, 40, position=True)
    results = []
    for backend in ("triton", "reference"):
        leaves = [value.clone().requires_grad_(name == needed) for name, value in zip(names, values, strict=True)]
        output, weights = region_attention(*leaves[:2], key_position=leaves[2], return_map=True, backend=backend)
        if used == "both":
            loss = output.square().sum() + weights.square().sum()
        else:
            loss = (output if used == "output" else weights).square().sum()
        results.append(torch.autograd.grad(loss, leaves[names.index(needed)]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [2, 20])
def test_layouts_are_read_in_place(rows):
    queries, regions, position = tensors(3, rows, 21, 40, position=True)
    mask = mask_of(3, 21)
    tokens_first = regions.transpose(0, 1).contiguous().transpose(0, 1)  # [N, F, C] in memory
    channels_first = regions.mT.contiguous().mT
    every_other = torch.stack([regions, regions], 1).flatten(0, 1)[::2]
    unaligned = torch.randn(1 + regions.numel(), device=DEVICE)[1:].view_as(regions).copy_(regions)
    results = []
    for layout in (regions, tokens_first, channels_first, every_other, unaligned):
        leaves = [queries.mT.contiguous().mT.requires_grad_(), layout.requires_grad_(), position.requires_grad_()]
        output = region_attention(
            leaves[0], leaves[1], key_position=leaves[2], region_mask=mask.mT.contiguous().mT, backend="triton"
        )
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


def test_two_runs_give_the_same_bits():
    values = tensors(2, 5, 300, 40, position=True)

    def run():
        leaves = [value.clone().requires_grad_() for value in values]
        output = region_attention(leaves[0], leaves[1], key_position=leaves[2], backend="triton")
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    torch.testing.assert_close(run(), run(), rtol=0, atol=0)


def test_splits_are_taken_where_frames_are_few():
    assert splits_for(300, 1, 32, DEVICE)[0] > 1, "or the test of it tests nothing"
    for programs in (1, 3, 1000):
        splits, regions = splits_for(300, programs, 32, DEVICE)
        assert (splits - 1) * regions < 300 <= splits * regions and regions % 32 == 0


def test_extreme_scores_stay_finite():
    queries = torch.tensor([[[1e4], [-1e4]]], device=DEVICE, requires_grad=True)
    regions = torch.tensor([[[1.0], [-1.0], [0.5]]], device=DEVICE, requires_grad=True)
    output, weights = region_attention(queries, regions, scale=1.0, return_map=True, backend="triton")
    assert output.tolist() == [[[1.0], [-1.0]]]
    assert weights.tolist() == [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]
    (output.sum() + weights.sum()).backward()
    assert queries.grad.tolist() == [[[0.0], [0.0]]]
    assert regions.grad.tolist() == [[[1.0], [1.0], [0.0]]]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_masked_regions_are_not_read(poison):
    queries, regions, position = tensors(2, 3, 21, 40, position=True)
    mask = mask_of(2, 21)
    results = []
    for value in (0.0, poison):
        leaves = [queries.requires_grad_(), regions.masked_fill(~mask[:, :, None], value).detach().requires_grad_()]
        output = region_attention(
            *leaves, key_position=position, region_mask=mask, layer_norm_eps=1e-5, backend="triton"
        )
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert (results[0][0][0] == 0).all(), "the first frame has nothing to attend"
    assert (results[0][2][~mask] == 0).all()


@pytest.mark.parametrize("frames, rows, count", [(0, 2, 7), (3, 0, 7), (3, 2, 0)])
def test_empty_sizes(frames, rows, count):
    leaves = [tensor.requires_grad_() for tensor in tensors(frames, rows, count, 40, position=True)]
    output, weights = region_attention(*leaves[:2], key_position=leaves[2], return_map=True, backend="triton")
    assert output.shape == (frames, rows, 40) and weights.shape == (frames, rows, count)
    (output.sum() + weights.sum()).backward()
    assert (output == 0).all() and all((leaf.grad == 0).all() for leaf in leaves)


def test_gradient_of_the_gradient_is_that_of_the_definition():
    results = []
    for backend in ("triton", "reference"):
        torch.manual_seed(0)
        leaves = [tensor.requires_grad_() for tensor in tensors(2, 3, 7, 8, position=False)]
        (first,) = torch.autograd.grad(
            region_attention(*leaves, backend=backend).square().sum(), leaves[1], create_graph=True
        )
        results.append(torch.autograd.grad(first.square().sum(), leaves))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_refusals():
    def why(dtype, channels=8):
        return backends.refusal("region_attention", "triton", torch.empty(1, 1, channels, dtype=dtype, device=DEVICE))

    assert why(torch.float32) is None
    assert why(torch.float64) == "the kernels compute in float32"
    assert "at most 1536 channels, and these have 1537" in why(torch.float32, 1537)
    if DEVICE.type == "cpu":
        assert "bfloat16" in why(torch.bfloat16)
        assert backends.choose("region_attention", torch.empty(1, 1, 8)) == "native", "never the interpreter unasked"
    else:
        assert backends.choose("region_attention", torch.empty(1, 1, 8, device=DEVICE)) == "native"
        half = torch.empty(1, 1, 8, device=DEVICE, dtype=torch.bfloat16)
        assert backends.choose("region_attention", half) == "triton"


def test_without_a_gpu_the_kernels_ask_for_the_interpreter(monkeypatch):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    queries, regions, _ = (torch.randn(1, 2, 8) for _ in range(3))
    with pytest.raises(ValueError, match=r"region_attention: backend='triton' cannot serve .* TRITON_INTERPRET=1"):
        region_attention(queries, regions, backend="triton")


def test_both_backends_say_the_same():
    queries, regions, position = tensors(2, 3, 21, 40, position=True)
    mask = mask_of(2, 21)
    assert backends.operations()[0] == "region_attention"
    fast = launch.forward(queries, regions, position, mask, 0.3, None, True)
    slow = native.forward(queries, regions, position, mask, 0.3, None, True)
    torch.testing.assert_close(fast.output, slow.output)
    torch.testing.assert_close(fast.map, slow.map)
    assert fast.softmax.shape == (2, 3, 2) and slow.softmax.numel() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [3, 20])
def test_tuned_sizes_give_the_same_results(rows, dtype, monkeypatch):
    values = [tensor.to(dtype) for tensor in tensors(2, rows, 37, 40, position=False)]

    def results():
        leaves = [value.clone().requires_grad_() for value in values]
        output = region_attention(*leaves, backend="triton")
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    asked = []

    def last_candidate(kernel, device, shape, default, candidates, run, *, fingerprint):
        asked.append(kernel)
        assert (shape["frames"], shape["rows"], shape["channels"]) == (2, rows, 40)
        assert fingerprint and candidates[-1] != default
        run(default)  # as timing does: what it leaves behind must not show
        run(candidates[-1])
        return candidates[-1]

    expected = results()
    monkeypatch.setattr(launch.tuning, "best", last_candidate)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2}[dtype]
    torch.testing.assert_close(results(), expected, rtol=tolerance, atol=tolerance)
    assert asked == ["region_attention.forward", "region_attention.backward"]
