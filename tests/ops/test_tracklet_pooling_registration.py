"""The operators as PyTorch sees them: opcheck, vmap, the compiler, export, CUDA graphs."""

import io

import pytest
import torch
from torch.func import vmap
from torch.library import opcheck

from art_kernels import pool_tracklets

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
registration = pytest.importorskip("art_kernels.tracklet_pooling.registration")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs(videos=2, frames=4, count=1, semantics=3, channels=8):
    shapes = [(videos, frames, count, channels), (videos, semantics, channels)]
    return [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_opcheck(ragged):
    leaves = inputs()
    valid = torch.rand(2, 4, device=DEVICE) > 0.3 if ragged else None
    arguments = (*leaves, 0.5, valid)
    assert set(opcheck(registration.pool_tracklets_forward, arguments).values()) == {"SUCCESS"}
    aggregated, saliency = (tensor.detach() for tensor in registration.pool_tracklets_forward(*arguments))
    detached = (*(leaf.detach() for leaf in leaves), 0.5, valid)
    for grad_saliency, needs in ((None, (True, True)), (saliency, (True, False)), (saliency, (False, True))):
        backward = (aggregated, grad_saliency, *detached, *needs)
        assert set(opcheck(registration.pool_tracklets_backward, backward).values()) == {"SUCCESS"}


@pytest.mark.parametrize("dim", [0, 1])
def test_vmap_joins_the_videos(dim):
    responses, semantics = (tensor.detach() for tensor in inputs())
    many = torch.randn(4, *responses.shape, device=DEVICE)
    valid = torch.rand(4, 2, 4, device=DEVICE) > 0.3

    def call(responses, valid):
        return pool_tracklets(responses, semantics, valid=valid, backend="triton")

    mapped = vmap(call, in_dims=(dim, 0))(many.movedim(0, dim), valid)
    for one, results in enumerate(zip(*mapped, strict=True)):
        torch.testing.assert_close(results, call(many[one], valid[one]), rtol=1e-5, atol=1e-6)


def test_vmap_of_the_gradient():
    responses, semantics = inputs()
    aggregated, saliency = pool_tracklets(responses, semantics, temperature=0.5, backend="triton")
    incoming = (torch.randn(4, *aggregated.shape, device=DEVICE), torch.randn(4, *saliency.shape, device=DEVICE))

    def gradients(*incoming):
        return torch.autograd.grad((aggregated, saliency), (responses, semantics), incoming, retain_graph=True)

    mapped = vmap(gradients)(*incoming)
    for one, results in enumerate(zip(*mapped, strict=True)):
        torch.testing.assert_close(results, gradients(*(tensor[one] for tensor in incoming)), rtol=1e-5, atol=1e-6)


def test_compiled_once_for_every_number_of_videos():
    compiled = torch.compile(pool_tracklets, fullgraph=True, backend="aot_eager", dynamic=True)
    for videos in (2, 3, 9):
        leaves = inputs(videos)
        valid = torch.rand(videos, 4, device=DEVICE) > 0.4
        results = []
        for function in (compiled, pool_tracklets):
            with torch.compiler.set_stance("default" if videos == 2 else "fail_on_recompile"):
                aggregated, saliency = function(*leaves, valid=valid, backend="triton")
            loss = aggregated.square().sum() + saliency.square().sum()
            results.append([aggregated, saliency, *torch.autograd.grad(loss, leaves)])
        torch.testing.assert_close(*results)


class Pooling(torch.nn.Module):
    def forward(self, responses, semantics):
        return pool_tracklets(responses, semantics, backend="triton")


def test_an_exported_program_is_saved_and_loaded():
    example = tuple(tensor.detach() for tensor in inputs())
    videos = torch.export.Dim("videos")
    program = torch.export.export(Pooling(), example, dynamic_shapes=({0: videos},) * 2)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    more = [tensor.detach() for tensor in inputs(videos=5)]
    torch.testing.assert_close(torch.export.load(buffer).module()(*more), Pooling()(*more))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_captured_in_a_cuda_graph():
    leaves = inputs()

    def run():
        aggregated, saliency = pool_tracklets(*leaves, backend="triton")
        loss = aggregated.square().sum() + saliency.square().sum()
        return [aggregated, saliency, *torch.autograd.grad(loss, leaves)]

    run()  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        leaves[0].copy_(torch.randn_like(leaves[0]))
    graph.replay()
    torch.testing.assert_close(captured, run(), rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waiting for a device needs a device")
def test_never_waits_for_the_device():
    leaves = inputs()
    valid = torch.rand(2, 4, device=DEVICE) > 0.4

    def run():
        aggregated, saliency = pool_tracklets(*leaves, valid=valid, backend="triton")
        (aggregated.sum() + saliency.square().sum()).backward()

    run()  # compiled before
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
