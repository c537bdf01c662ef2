"""The operators as PyTorch sees them: opcheck, gradients of any order, vmap, the compiler, export, CUDA graphs."""

import io

import nce_rules
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch.library import opcheck

from art_kernels import tracklet_nce
from art_kernels.tracklet_nce.registration import tracklet_nce_backward, tracklet_nce_forward

FUSED = ["native", "triton"]


def inputs(device="cpu", rows=6, count=9, channels=8, dtype=torch.float32):
    anchors, candidates = (
        torch.randn(size, channels, device=device, dtype=dtype, requires_grad=True) for size in (rows, count)
    )
    return anchors, candidates, torch.tensor(0.7, device=device, dtype=dtype, requires_grad=True)


def positives_of(form, rows=6, count=9, device="cpu"):
    if form == "index":
        return torch.randint(-1, count, (rows,), device=device)
    labels = torch.randint(3, (rows,), device=device), torch.randint(3, (count,), device=device)
    return labels if form == "labels" else nce_rules.next_in_time(*labels)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("symmetric", [False, True], ids=["", "symmetric"])
@pytest.mark.parametrize("excluding", [False, True], ids=["", "excluding"])
def test_opcheck(device, backend, symmetric, excluding):
    anchors, candidates, temperature = inputs(device)
    labels = positives_of("labels", device=device)
    excluded = torch.randint(-1, 9, (6,), device=device) if excluding else None
    ids = (*labels, excluded, "equal")
    arguments = (anchors, candidates, *ids, temperature, symmetric, backend)
    assert set(opcheck(tracklet_nce_forward, arguments).values()) == {"SUCCESS"}
    rows, columns = (tensor.detach() for tensor in tracklet_nce_forward(*arguments))
    tensors = [tensor.detach() for tensor in (anchors, candidates)]
    for needs in ((True, True), (True, False), (False, True), (False, False)):
        backward = (
            torch.randn_like(rows), torch.randn_like(columns), *tensors, *ids, temperature.detach(), rows, columns,
            *needs, backend,
        )  # fmt: skip
        assert set(opcheck(tracklet_nce_backward, backward).values()) == {"SUCCESS"}


@pytest.mark.parametrize("form", ["index", "labels", "rule"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["", "symmetric"])
@pytest.mark.parametrize("excluding", [False, True], ids=["", "excluding"])
def test_gradients_of_first_and_second_order(form, symmetric, excluding):
    positives = positives_of(form, 5, 4)
    excluded = torch.tensor([0, -1, 3, 2, 1]) if excluding else None

    def call(anchors, candidates, temperature):
        return tracklet_nce(
            anchors, candidates, positives, temperature=temperature, symmetric=symmetric, excluded=excluded
        )

    leaves = inputs(rows=5, count=4, channels=3, dtype=torch.float64)
    assert call(*leaves) != 0
    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves)


@pytest.mark.parametrize("symmetric", [False, True], ids=["", "symmetric"])
def test_any_gradient_of_the_statistics(symmetric):
    """That of the number of positives is none, and that of the others need not be that of a loss."""
    anchors, candidates, temperature = inputs(dtype=torch.float64)
    labels = positives_of("labels")

    def call(*leaves):
        rows, columns = tracklet_nce_forward(*leaves[:2], *labels, None, "equal", leaves[2], symmetric, "native")
        return rows, columns

    assert gradcheck(call, (anchors, candidates, temperature))


def test_vmap_says_what_to_do():
    anchors, candidates, _ = inputs()
    index = positives_of("index")
    with pytest.raises(ValueError, match=r"vmap is not supported, since each .*; call it for each batch in a loop"):
        vmap(lambda a: tracklet_nce(a, candidates.detach(), index, temperature=1.0))(anchors.detach().expand(2, 6, 8))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("form", ["index", "labels", "rule"])
def test_compiled_once_for_every_batch(device, backend, form):
    def loss(anchors, candidates, temperature, ids, other_ids):
        positives = {"index": ids, "labels": (ids, other_ids)}.get(form)
        if form == "rule":
            positives = nce_rules.next_in_time(ids, other_ids)
        return tracklet_nce(
            anchors, candidates, positives, temperature=temperature, symmetric=True, excluded=ids, backend=backend
        )

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows, count in ((6, 9), (5, 8), (40, 41)):
        leaves = inputs(device, rows, count)
        ids = positives_of("labels", rows, count, device)
        results = []
        for function in (compiled, loss):
            with torch.compiler.set_stance("default" if rows == 6 else "fail_on_recompile"):
                value = function(*leaves, *ids)
            results.append([value, *torch.autograd.grad(value, leaves)])
        torch.testing.assert_close(*results)


class Contrast(torch.nn.Module):
    def forward(self, anchors, candidates, index):
        return tracklet_nce(anchors, candidates, index, temperature=0.1, symmetric=True)


def test_an_exported_program_is_saved_and_loaded():
    anchors, candidates, _ = (tensor.detach() for tensor in inputs())
    rows, count = torch.export.Dim("rows"), torch.export.Dim("count")
    program = torch.export.export(
        Contrast(), (anchors, candidates, positives_of("index")), dynamic_shapes=({0: rows}, {0: count}, {0: rows})
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    more = *(tensor.detach() for tensor in inputs(rows=7, count=12)[:2]), positives_of("index", 7, 12)
    torch.testing.assert_close(torch.export.load(buffer).module()(*more), Contrast()(*more))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("form", ["index", "labels", "rule"])
def test_captured_in_a_cuda_graph(backend, form):
    leaves = inputs("cuda")
    positives = positives_of(form, device="cuda")

    def run():
        loss = tracklet_nce(*leaves[:2], positives, temperature=leaves[2], symmetric=True, backend=backend)
        return [loss, *torch.autograd.grad(loss, leaves)]

    run()  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        leaves[0].copy_(torch.randn_like(leaves[0]))
    graph.replay()
    torch.testing.assert_close(captured, run(), rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waiting for a device needs a device")
@pytest.mark.parametrize("backend", FUSED)
def test_never_waits_for_the_device(backend):
    leaves = inputs("cuda")
    labels = positives_of("labels", device="cuda")
    options = {"temperature": leaves[2], "symmetric": True, "excluded": torch.arange(6, device="cuda")}
    tracklet_nce(*leaves[:2], labels, **options, backend=backend).backward()  # compiled before
    torch.cuda.set_sync_debug_mode("error")
    try:
        tracklet_nce(*leaves[:2], labels, **options, backend=backend).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
