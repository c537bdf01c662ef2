"""The operators as PyTorch sees them: opcheck, gradients of any order, vmap, the compiler, export, CUDA graphs."""

import io

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.library import opcheck

from art_kernels import region_attention
from art_kernels.region_attention.registration import region_attention_backward, region_attention_forward

FUSED = ["native", "triton"]


def inputs(device="cpu", frames=3, rows=2, count=7, channels=8, dtype=torch.float32):
    shapes = [(frames, rows, channels), (frames, count, channels), (count, channels)]
    return [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("position", [False, True], ids=["", "position"])
@pytest.mark.parametrize("return_map", [False, True], ids=["", "map"])
def test_opcheck(device, backend, position, return_map):
    queries, regions, key_position = inputs(device)
    key_position = key_position if position else None
    mask = torch.rand(3, 7, device=device) > 0.3 if position else None
    options = (0.3, 1e-5 if return_map else None)
    arguments = (queries, regions, key_position, mask, *options)
    assert set(opcheck(region_attention_forward, (*arguments, return_map, backend)).values()) == {"SUCCESS"}
    saved = [tensor.detach() for tensor in region_attention_forward(*arguments, return_map, backend)]
    grad_map = torch.randn(3, 2, 7, device=device) if return_map else None
    detached = [None if tensor is None else tensor.detach() for tensor in arguments[:4]]
    for needs in ((True, position), (False, False)):
        backward = (torch.randn_like(saved[0]), grad_map, *detached, *saved, *options, *needs, backend)
        assert set(opcheck(region_attention_backward, backward).values()) == {"SUCCESS"}


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_first_and_second_order(masked):
    mask = torch.tensor([[True, False, True, True, False], [False] * 5]) if masked else None

    def call(queries, regions, key_position):
        return region_attention(
            queries, regions, key_position=key_position, region_mask=mask, layer_norm_eps=1e-3, return_map=True
        )

    leaves = inputs(frames=2, rows=3, count=5, channels=4, dtype=torch.float64)
    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dim", [0, 1])
def test_vmap_joins_the_frames(device, backend, dim):
    queries, regions, position = inputs(device)
    many = torch.randn(4, 3, 7, 8, device=device)
    mask = torch.rand(4, 3, 7, device=device) > 0.3

    def call(regions, mask):
        return region_attention(
            queries, regions, key_position=position, region_mask=mask, return_map=True, backend=backend
        )

    mapped = vmap(call, in_dims=(dim, 0))(many.movedim(0, dim), mask)
    for one, (output, weights) in enumerate(zip(*mapped, strict=True)):
        torch.testing.assert_close((output, weights), call(many[one], mask[one]), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="key_position is mapped over by vmap, expected one for all"):
        vmap(lambda p: region_attention(queries, regions, key_position=p, backend=backend))(torch.randn(2, 7, 8))


@pytest.mark.parametrize("backend", FUSED)
def test_compiled_once_for_every_number_of_frames(device, backend):
    compiled = torch.compile(region_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    results = []
    for frames in (3, 5, 64):
        queries, regions, position = inputs(device, frames)
        mask = torch.rand(frames, 7, device=device) > 0.4
        options = {"key_position": position, "region_mask": mask, "return_map": True, "backend": backend}
        for function in (compiled, region_attention):
            with torch.compiler.set_stance("default" if frames == 3 else "fail_on_recompile"):
                output, weights = function(queries, regions, **options)
            loss = output.square().sum() + weights.square().sum()
            results.append([output, weights, *torch.autograd.grad(loss, [queries, regions, position])])
        torch.testing.assert_close(*results[-2:])


class Attention(torch.nn.Module):
    def forward(self, queries, regions):
        return region_attention(queries, regions, layer_norm_eps=1e-5)


def test_an_exported_program_is_saved_and_loaded():
    queries, regions, _ = (tensor.detach() for tensor in inputs())
    frames = torch.export.Dim("frames")
    program = torch.export.export(Attention(), (queries, regions), dynamic_shapes=({0: frames},) * 2)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    more = [tensor.detach() for tensor in inputs(frames=5)[:2]]
    torch.testing.assert_close(torch.export.load(buffer).module()(*more), Attention()(*more))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("backend", FUSED)
def test_captured_in_a_cuda_graph(backend):
    leaves = inputs("cuda")
    queries, regions, position = leaves

    def run():
        output = region_attention(queries, regions, key_position=position, backend=backend)
        return [output, *torch.autograd.grad(output.square().sum(), leaves)]

    run()  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        regions.copy_(torch.randn_like(regions))
    graph.replay()
    torch.testing.assert_close(captured, run(), rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waiting for a device needs a device")
@pytest.mark.parametrize("backend", FUSED)
def test_never_waits_for_the_device(backend):
    leaves = inputs("cuda")
    mask = torch.rand(3, 7, device="cuda") > 0.4
    options = {"key_position": leaves[2], "region_mask": mask, "return_map": True, "backend": backend}
    region_attention(*leaves[:2], **options)[0].sum().backward()  # compiled before
    torch.cuda.set_sync_debug_mode("error")
    try:
        region_attention(*leaves[:2], **options)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
