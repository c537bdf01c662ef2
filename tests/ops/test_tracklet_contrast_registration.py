"""The operators of `mtc_loss` as PyTorch sees them: opcheck, vmap, gradients of gradients, CUDA graphs."""

import pytest
import torch
from torch.func import vmap
from torch.library import opcheck

from art_kernels import mtc_loss
from art_kernels.tracklet_contrast.registration import mtc_loss_backward, mtc_loss_forward

FUSED = ["native", "triton"]


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("aggregated, flattened", [(False, False), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["", "valid"])
def test_opcheck(device, backend, aggregated, flattened, ragged):
    responses = torch.randn(2, 4, 3, 8, device=device, requires_grad=True)
    pooled = torch.randn(2, 3, 8, device=device, requires_grad=True) if aggregated else None
    valid = torch.rand(2, 4, device=device) > 0.3 if ragged else None
    options = (0.6, False, True, flattened)
    arguments = (responses, pooled, valid, *options)
    for gradients in (False, True):
        tests = ("test_schema", "test_faketensor") if not gradients else None
        checks = {} if tests is None else {"test_utils": tests}
        found = opcheck(mtc_loss_forward, (*arguments, gradients, backend), **checks)
        assert set(found.values()) == {"SUCCESS"}
    saved = [tensor.detach() for tensor in mtc_loss_forward(*arguments, True, backend)]
    detached = [None if tensor is None else tensor.detach() for tensor in arguments[:3]]
    for needs in ((True, aggregated), (False, False)):
        backward = (torch.randn(3, device=device), *detached, *saved, *options, *needs, backend)
        assert set(opcheck(mtc_loss_backward, backward).values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", FUSED)
def test_vmap_takes_the_loss_of_each_sample(device, backend):
    responses = torch.randn(5, 2, 4, 3, 8, device=device)
    valid = torch.rand(2, 4, device=device) > 0.3

    def call(responses):
        return tuple(mtc_loss(responses, valid=valid, backend=backend))

    mapped = vmap(call)(responses)
    for one, terms in enumerate(zip(*mapped, strict=True)):
        torch.testing.assert_close(terms, call(responses[one]))


@pytest.mark.parametrize("backend", FUSED)
def test_gradient_of_the_gradient_is_that_of_the_definition(device, backend):
    data = torch.randn(2, 4, 3, 8, device=device)
    results = []
    for name in (backend, "reference"):
        responses = data.clone().requires_grad_()
        (first,) = torch.autograd.grad(mtc_loss(responses, backend=name).total, responses, create_graph=True)
        results.append([first.detach(), *torch.autograd.grad(first.square().sum(), responses)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", FUSED)
def test_nothing_is_kept_where_no_gradient_is_asked_for(device, backend):
    responses = torch.randn(2, 4, 3, 8, device=device)
    _, scale, *saved = mtc_loss_forward(responses, None, None, 0.6, False, False, False, False, backend)
    assert scale.shape == (3,) and all(tensor.numel() == 0 for tensor in saved)


@pytest.mark.parametrize("backend", FUSED)
def test_compiled_once_for_every_number_of_videos(device, backend):
    def call(responses, aggregated, valid):
        return tuple(mtc_loss(responses, aggregated, valid=valid, backend=backend))

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for videos in (6, 5, 64):
        leaves = [torch.randn(videos, *sizes, device=device, requires_grad=True) for sizes in ((4, 3, 8), (3, 8))]
        valid = torch.rand(videos, 4, device=device) > 0.3
        results = []
        for function in (compiled, call):
            with torch.compiler.set_stance("default" if videos == 6 else "fail_on_recompile"):
                terms = function(*leaves, valid)
            results.append([*terms, *torch.autograd.grad(sum(terms), leaves)])
        torch.testing.assert_close(*results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("backend", FUSED)
def test_captured_in_a_cuda_graph(backend):
    responses = torch.randn(2, 4, 3, 8, device="cuda", requires_grad=True)
    mtc_loss(responses, backend=backend).total.backward()  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = mtc_loss(responses, backend=backend).total
        (gradient,) = torch.autograd.grad(loss, responses)
    with torch.no_grad():
        responses.copy_(torch.randn_like(responses))
    graph.replay()
    expected = mtc_loss(responses, backend=backend).total
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, responses)[0], rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waiting for a device needs a device")
@pytest.mark.parametrize("backend", FUSED)
def test_never_waits_for_the_device(backend):
    responses = torch.randn(2, 4, 3, 8, device="cuda", requires_grad=True)
    valid = torch.rand(2, 4, device="cuda") > 0.3
    mtc_loss(responses, valid=valid, backend=backend).total.backward()  # compiled before
    torch.cuda.set_sync_debug_mode("error")
    try:
        mtc_loss(responses, valid=valid, backend=backend).total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
