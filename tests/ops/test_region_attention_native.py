"""The native path: as exact as plain PyTorch, right gradients of every order, no copies of the regions."""

import pytest
import torch
from kernel_agreement import LargeResults, assert_as_exact_as_plain
from torch.autograd import gradcheck, gradgradcheck

from art_kernels import region_attention
from art_kernels.region_attention import native, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("frames, rows, count, channels", [(8, 1, 49, 96), (4, 3, 197, 100), (2, 16, 49, 1000)])
@pytest.mark.parametrize("position", [False, True], ids=["", "position"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("layer_norm_eps", [None, 1e-5], ids=["", "normed"])
def test_agrees_with_float64(device, dtype, frames, rows, count, channels, position, masked, layer_norm_eps):
    mask = torch.rand(frames, count, device=device) > 0.3 if masked else None
    if mask is not None:
        mask[0] = False

    def draw():
        shapes = [(frames, rows, channels), (frames, count, channels), *([(count, channels)] if position else [])]
        queries, *others = (torch.randn(shape, device=device) for shape in shapes)
        return [2 * queries, *others]

    def call(backend):
        def run(queries, regions, key_position=None):
            return region_attention(
                queries, regions, key_position=key_position, region_mask=mask, layer_norm_eps=layer_norm_eps,
                return_map=True, backend=backend,
            )  # fmt: skip

        return run

    assert_as_exact_as_plain(call("native"), call("reference"), draw, dtype)


@pytest.mark.parametrize("mean", [1.0, 10.0, 100.0])
def test_layer_norm_stays_exact_far_from_zero(device, mean):
    def draw():
        return [3 * torch.randn(4, 16, 256, device=device), torch.randn(4, 50, 256, device=device) + mean]

    def call(backend):
        return lambda queries, regions: [region_attention(queries, regions, layer_norm_eps=1e-5, backend=backend)]

    assert_as_exact_as_plain(call("native"), call("reference"), draw, torch.float32)


@pytest.mark.parametrize("layer_norm_eps", [None, 1e-5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("position", [False, True])
def test_gradients_of_first_and_second_order(layer_norm_eps, masked, position):
    queries, regions = (torch.randn(2, size, 4, dtype=torch.float64, requires_grad=True) for size in (3, 5))
    key_position = torch.randn(5, 4, dtype=torch.float64, requires_grad=True) if position else None
    mask = None
    if masked:
        mask = torch.tensor([[True, False, True, True, False], [False] * 5])

    def call(queries, regions, key_position):
        return region_attention(
            queries, regions, scale=0.7, key_position=key_position, region_mask=mask, layer_norm_eps=layer_norm_eps,
            return_map=True, backend="native",
        )  # fmt: skip

    assert gradcheck(call, (queries, regions, key_position))
    assert gradgradcheck(call, (queries, regions, key_position))


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)], ids=["output", "map", "both"])
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2)], ids=["queries", "regions", "position", "two"])
def test_gradient_of_a_part(used, needed):
    shapes = [(2, 3, 8), (2, 5, 8), (5, 8)]
    tensors = [torch.randn(shape, requires_grad=index in needed) for index, shape in enumerate(shapes)]
    leaves = [tensors[index] for index in needed]
    results = []
    for backend in ("native", "reference"):
        outputs = region_attention(tensors[0], tensors[1], key_position=tensors[2], return_map=True, backend=backend)
        results.append(torch.autograd.grad(sum(outputs[index].square().sum() for index in used), leaves))
    torch.testing.assert_close(*results)


def test_blocks_agree_with_the_whole(device, monkeypatch):
    queries, regions, position = (torch.randn(shape, device=device) for shape in ((5, 40, 8), (5, 50, 8), (50, 8)))
    mask = torch.rand(5, 50, device=device) > 0.3

    def run():
        leaves = [tensor.clone().requires_grad_() for tensor in (queries, regions, position)]
        outputs = region_attention(
            *leaves[:2],
            key_position=leaves[2],
            region_mask=mask,
            layer_norm_eps=1e-5,
            return_map=True,
            backend="native",
        )
        return [*outputs, *torch.autograd.grad(sum(output.square().sum() for output in outputs), leaves)]

    whole = run()
    blocks = []
    for kind in native.BLOCK_BYTES:
        monkeypatch.setitem(native.BLOCK_BYTES, kind, 1)
    original = native._blocks

    def counted(*arguments):
        for of_frames, row_blocks in original(*arguments):
            blocks.append((of_frames, len(row_blocks)))
            yield of_frames, row_blocks

    monkeypatch.setattr(native, "_blocks", counted)
    torch.testing.assert_close(run(), whole)
    assert len(blocks) == 10 and blocks[0] == (slice(0, 1), 3), "frame by frame, forward and backward"


@pytest.mark.parametrize("options", [{}, {"layer_norm_eps": 1e-5}, {"key_position": True}], ids=str)
def test_nothing_of_the_size_of_the_regions_is_made(device, monkeypatch, options):
    for kind in native.BLOCK_BYTES:
        monkeypatch.setitem(native.BLOCK_BYTES, kind, 1 << 12)
    options = dict(options)
    if options.pop("key_position", False):
        options["key_position"] = torch.randn(50, 32, device=device)
    queries = torch.randn(4, 2, 32, device=device)
    for regions in (torch.randn(4, 50, 32, device=device), torch.randn(50, 4, 32, device=device).transpose(0, 1)):
        with LargeResults(regions) as large:
            forward = native.forward(
                queries, regions, options.get("key_position"), None, 1.0, options.get("layer_norm_eps"), False
            )
        assert large.names == [] and forward.map.numel() == 0
        with LargeResults(regions) as large:
            native.backward(
                torch.ones_like(forward.output), None, queries, regions, options.get("key_position"), None, forward,
                1.0, options.get("layer_norm_eps"), True, False,
            )  # fmt: skip
        assert large.names == ["aten.empty.memory_format"], "the gradient of the regions and nothing else"
        with LargeResults(regions) as large:
            reference.region_attention(queries, regions, 1.0, torch.ones(50, 32, device=device))
        assert large.names == ["aten.add.Tensor"], "the definition does form regions + position; the record shows it"


def test_no_result_is_kept_for_the_backward_pass(device):
    queries, regions = (torch.randn(4, size, 32, device=device, requires_grad=True) for size in (2, 50))
    output, _ = region_attention(queries, regions, return_map=True, backend="native")
    kept = [tensor for tensor in output.grad_fn.saved_tensors if tensor is not None and tensor.numel() > 0]
    assert [tensor.data_ptr() for tensor in kept] == [queries.data_ptr(), regions.data_ptr()]


def test_float16_scores_may_exceed_its_range_before_the_scale(device):
    queries, regions = torch.full((1, 1, 512), 16.0), torch.full((1, 3, 512), 16.0)  # q · x = 131072
    output = region_attention(queries.half().to(device), regions.half().to(device), scale=512**-1.0, backend="native")
    assert (output == 16).all()
