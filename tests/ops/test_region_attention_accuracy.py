"""`region_attention`: at most twice the error of PyTorch's attention in the same dtype; memory of the torch backend."""

import pytest
import torch
from kernel_agreement import LargeResults, assert_as_exact_as_plain, pytorch_attention
from operator_checks import DEVICE, GPU, KERNEL_DTYPES, outputs_and_gradients, skip_unsupported

from art_kernels import RegionCrossAttention, region_attention
from art_kernels._core import launch
from art_kernels.region_attention import reference
from art_kernels.region_attention import torch as torch_backend
from art_kernels.region_attention.reference import Arguments

pytest.importorskip("art_kernels.region_attention.triton", reason="Triton is not installed")

TORCH_SIZES = [(8, 1, 49, 96), (4, 3, 197, 100), (2, 16, 49, 1000)]
TRITON_SIZES = [  # with masks, the first frame is empty
    pytest.param(16 if GPU else 8, 1, 19, 40, id="one-row"),
    pytest.param(3 if GPU else 2, 14, 37, 100, id="37x100"),
    pytest.param(2, 37, 21, 40, id="row-blocks"),
    pytest.param(4 if GPU else 2, 13, 19, 132, id="chunks"),
    pytest.param(2, 13, 19, 1000, id="1000-channels"),
    pytest.param(4 if GPU else 2, 13, 130, 33, id="splits"),
]
VARIANTS = {
    "plain": (False, False, None),
    "position": (True, False, None),
    "masked": (False, True, None),
    "normed": (False, False, 1e-5),
    "all": (True, True, 1e-5),
}


def check_accuracy(device, backend, dtype, sizes, position, masked, layer_norm_eps, draws):
    frames, rows, count, channels = sizes
    mask = torch.rand(frames, count, device=device) > 0.3 if masked else None
    if mask is not None and frames > 1:
        mask[0] = False

    def draw():
        shapes = [(frames, rows, channels), (frames, count, channels), (count, channels)]
        queries, regions, key_position = (torch.randn(shape, device=device) for shape in shapes)
        return [2 * queries, regions, *([key_position] if position else [])]

    def fast(queries, regions, key_position=None):
        return region_attention(
            queries, regions, key_position=key_position, region_mask=mask, layer_norm_eps=layer_norm_eps,
            return_map=True, backend=backend,
        )  # fmt: skip

    def plain(queries, regions, key_position=None):
        return pytorch_attention(queries, regions, key_position, region_mask=mask, layer_norm_eps=layer_norm_eps)

    assert_as_exact_as_plain(fast, plain, draw, dtype, draws=draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", TORCH_SIZES, ids=str)
@pytest.mark.parametrize("position", [False, True], ids=["", "position"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("layer_norm_eps", [None, 1e-5], ids=["", "normed"])
def test_accuracy_of_the_torch_backend(device, dtype, sizes, position, masked, layer_norm_eps):
    check_accuracy(device, "torch", dtype, sizes, position, masked, layer_norm_eps, 12 if device.type == "cuda" else 6)


def triton_cases():
    """Every variant, size and dtype; in the slow interpreter, every variant and size in one dtype, "all" in both.

    float16 runs through the same code, and fewer draws suffice, because plain PyTorch has a large error itself.
    """
    for i, (name, variant) in enumerate(VARIANTS.items()):
        for j, size in enumerate(TRITON_SIZES):
            for dtype in KERNEL_DTYPES:
                if GPU or name == "all" or (dtype == torch.float32) == ((i + j) % 4 == 0):
                    yield pytest.param(dtype, size.values, *variant, id=f"{name}-{size.id}-{dtype}")


@pytest.mark.slow
@pytest.mark.parametrize("dtype, sizes, position, masked, layer_norm_eps", list(triton_cases()))
def test_accuracy_of_the_kernels(dtype, sizes, position, masked, layer_norm_eps):
    draws = 12 if GPU else 3 if dtype == torch.float32 else 2
    check_accuracy(DEVICE, "triton", dtype, sizes, position, masked, layer_norm_eps, draws)


@pytest.mark.parametrize("mean", [1.0, 10.0, 100.0])
def test_layer_norm_is_accurate_far_from_zero(device, mean):
    def draw():
        return [3 * torch.randn(4, 16, 256, device=device), torch.randn(4, 50, 256, device=device) + mean]

    def call(backend):
        return lambda queries, regions: [region_attention(queries, regions, layer_norm_eps=1e-5, backend=backend)]

    assert_as_exact_as_plain(call("torch"), call("reference"), draw, torch.float32)


HALVES = [torch.float16, torch.bfloat16]


def attention(backend):
    return lambda queries, regions: [region_attention(queries, regions, backend=backend)]


def skip_unless_supported(backend, device, dtype):
    skip_unsupported("region_attention", backend, torch.empty(1, 1, 16, device=device, dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("size", [0.25, 4.0, 16.0])
@pytest.mark.parametrize("backend", ["torch", "reference", "triton"])
def test_accuracy_with_small_and_large_scores(device, backend, size, dtype):
    """Scores of up to hundreds, whose differences are lost if they are rounded to 16 bits."""
    skip_unless_supported(backend, device, dtype)

    def draw():
        return [size * torch.randn(4, rows, 64, device=device) for rows in (6, 50)]

    def plain(queries, regions):
        return pytorch_attention(queries, regions)[:1]

    assert_as_exact_as_plain(attention(backend), plain, draw, dtype, draws=4)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("backend, rows", [("torch", 2048), ("reference", 2048), ("triton", 256)])
def test_accuracy_of_gradients_summed_over_many_rows(device, backend, rows, dtype):
    skip_unless_supported(backend, device, dtype)

    def draw():
        return [torch.randn(1, count, 16, device=device) for count in (rows, 17)]

    def plain(queries, regions):
        return pytorch_attention(queries, regions)[:1]

    assert_as_exact_as_plain(attention(backend), plain, draw, dtype, draws=1)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("return_map", [False, True])
@pytest.mark.parametrize("backend", ["torch", "reference", "triton"])
def test_float16_scores_may_exceed_their_range(device, backend, return_map, create_graph):
    skip_unless_supported(backend, device, torch.float16)
    queries, regions = (200 * torch.randn(2, count, 64, device=device) for count in (3, 20))
    scores = queries @ regions.mT * 64**-0.5
    assert scores.abs().max() > torch.finfo(torch.float16).max
    leaves = [tensor.half().requires_grad_() for tensor in (queries, regions)]
    results = region_attention(*leaves, return_map=return_map, backend=backend)
    output = results[0] if return_map else results
    gradients = torch.autograd.grad(output.sum(), leaves, create_graph=create_graph)
    assert all(tensor.isfinite().all() for tensor in (output, *gradients))
    expected = pytorch_attention(*(leaf.double() for leaf in leaves))
    torch.testing.assert_close(output.double(), expected[0], rtol=2e-3, atol=0.1)
    if return_map:
        torch.testing.assert_close(results[1].double(), expected[1], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("route", ["folded", "projected"])
def test_float16_map_of_the_module_with_large_scores(device, route, autocast):
    module = RegionCrossAttention(64, 1).to(device)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.eye(64).repeat(3, 1))
    tokens = 300 * torch.randn(2, 20, 64, device=device)
    tokens = tokens.half().float()  # the scores of a token with itself are 720,000
    expected = module(tokens[:, :3], tokens, return_map=True, route=route)
    with torch.autocast(device.type, torch.float16, enabled=autocast):
        module, tokens = (module, tokens) if autocast else (module.half(), tokens.half())
        found = module(tokens[:, :3], tokens, return_map=True, route=route)
    torch.testing.assert_close([tensor.float() for tensor in found], list(expected), rtol=2e-3, atol=0.5)


def test_float16_scores_may_exceed_their_range_before_scaling(device):
    queries, regions = torch.full((1, 1, 512), 16.0), torch.full((1, 3, 512), 16.0)  # q · x = 131072
    output = region_attention(queries.half().to(device), regions.half().to(device), scale=512**-1.0, backend="torch")
    assert (output == 16).all()


# Memory of the torch backend.


def test_blocks_agree_with_a_single_block(device, monkeypatch):
    values = [torch.randn(shape, device=device, requires_grad=True) for shape in ((5, 40, 8), (5, 50, 8), (50, 8))]
    mask = torch.rand(5, 50, device=device) > 0.3

    def call(queries, regions, position):
        options = {"layer_norm_eps": 1e-5, "return_map": True, "backend": "torch"}
        return region_attention(queries, regions, key_position=position, region_mask=mask, **options)

    expected = outputs_and_gradients(call, values)
    blocks = []
    for kind in torch_backend.BLOCK_BYTES:
        monkeypatch.setitem(torch_backend.BLOCK_BYTES, kind, 1)
    original = torch_backend._blocks

    def counted(*arguments):
        for frames, row_blocks in original(*arguments):
            blocks.append((frames, len(row_blocks)))
            yield frames, row_blocks

    monkeypatch.setattr(torch_backend, "_blocks", counted)
    torch.testing.assert_close(outputs_and_gradients(call, values), expected)
    assert len(blocks) == 10 and blocks[0] == (slice(0, 1), 3), "frame by frame, forward and backward"


@pytest.mark.parametrize("options", [{}, {"layer_norm_eps": 1e-5}, {"key_position": True}], ids=str)
def test_no_intermediate_tensor_has_the_size_of_the_regions(device, monkeypatch, options):
    for kind in torch_backend.BLOCK_BYTES:
        monkeypatch.setitem(torch_backend.BLOCK_BYTES, kind, 1 << 12)
    position = torch.randn(50, 32, device=device) if "key_position" in options else None
    queries = torch.randn(4, 2, 32, device=device)
    for regions in (torch.randn(4, 50, 32, device=device), torch.randn(50, 4, 32, device=device).transpose(0, 1)):
        arguments = Arguments(queries, regions, position, None, 1.0, options.get("layer_norm_eps"), False)
        with LargeResults(regions) as large:
            output, _, weights = torch_backend.forward(*arguments)
        assert large.names == [] and weights.numel() == 0
        with LargeResults(regions) as large:
            torch_backend.backward((torch.ones_like(output), None), arguments, (), (True, True, False, False))
        assert large.names == ["aten.empty.memory_format"], "only the gradient of the regions"
        with LargeResults(regions) as large:
            reference.region_attention(queries, regions, torch.ones(50, 32, device=device))
        assert large.names == ["aten.add.Tensor"], "the reference allocates regions + position"


def test_the_torch_backend_saves_only_its_inputs(device):
    queries, regions = (torch.randn(3, n, 12, device=device, requires_grad=True) for n in (2, 7))
    output, _ = region_attention(queries, regions, return_map=True, backend="torch")
    kept = [tensor for tensor in output.grad_fn.saved_tensors if tensor is not None and tensor.numel() > 0]
    assert [tensor.data_ptr() for tensor in kept] == [queries.data_ptr(), regions.data_ptr()]


def test_splits_cover_all_regions():
    assert launch.choose_splits(300, 1, 32, DEVICE)[0] > 1, "otherwise no test covers splits"
    for programs in (1, 3, 1000):
        splits, regions = launch.choose_splits(300, programs, 32, DEVICE)
        assert (splits - 1) * regions < 300 <= splits * regions and regions % 32 == 0
