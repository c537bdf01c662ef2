"""The native path: as exact as plain PyTorch, in tiles of any size, without a matrix of all logits."""

import nce_rules
import pytest
import torch
import torch.nn.functional as F
from kernel_agreement import LargeResults, assert_as_exact_as_plain
from torch import Tensor

from art_kernels import tracklet_nce
from art_kernels.tracklet_nce import native
from benchmarks.common.measure import peak_extra_bytes

FORMS = ["index", "labels", "rule"]


def positives_of(form: str, rows: int, count: int, device: torch.device):
    if form == "index":
        return torch.randint(-1, count, (rows,), device=device)
    if form == "labels":
        return torch.randint(5, (rows,), device=device), torch.randint(6, (count,), device=device)
    ids = (torch.randint(300, (size,), device=device) * 10 for size in (rows, count))
    return nce_rules.same_class_other_video(*ids)


def drawn(rows: int, count: int, channels: int, device: torch.device, temperature: float = 0.2) -> list[Tensor]:
    anchors, candidates = (F.normalize(torch.randn(size, channels, device=device), dim=-1) for size in (rows, count))
    return [anchors, candidates, torch.tensor(temperature, device=device)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows, count, channels", [(37, 53, 20), (131, 67, 96)])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["", "symmetric"])
@pytest.mark.parametrize("excluding", [False, True], ids=["", "excluding"])
def test_agrees_with_float64(device, monkeypatch, dtype, rows, count, channels, form, symmetric, excluding):
    for kind in native.BLOCK:
        monkeypatch.setitem(native.BLOCK, kind, 29)
    positives = positives_of(form, rows, count, device)
    excluded = torch.randint(-1, count, (rows,), device=device) if excluding else None

    def call(backend):
        def run(anchors, candidates, temperature):
            return [
                tracklet_nce(
                    anchors, candidates, positives, temperature=temperature, symmetric=symmetric, excluded=excluded,
                    backend=backend,
                )
            ]  # fmt: skip

        return run

    assert_as_exact_as_plain(call("torch"), call("reference"), lambda: drawn(rows, count, channels, device), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.07])
def test_agrees_where_the_temperature_is_low_and_positives_are_found(device, dtype, temperature):
    """Anchors near their positive: losses near 0, whose gradients are differences of numbers near 1."""
    index = torch.randint(83, (61,), device=device)

    def draw():
        anchors, candidates, scale = drawn(61, 83, 64, device, temperature)
        return [F.normalize(candidates[index] + 0.5 * anchors, dim=-1), candidates, scale]

    def call(backend):
        return lambda a, c, t: [tracklet_nce(a, c, index, temperature=t, symmetric=True, backend=backend)]

    assert_as_exact_as_plain(call("torch"), call("reference"), draw, dtype)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_gradient_of_a_part(needed):
    tensors = drawn(9, 7, 8, "cpu")
    leaves = [tensors[index].requires_grad_() for index in needed]
    labels = torch.randint(3, (9,)), torch.randint(3, (7,))
    results = []
    for backend in ("torch", "reference"):
        loss = tracklet_nce(*tensors[:2], labels, temperature=tensors[2], symmetric=True, backend=backend)
        results.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_tiles_agree_with_the_whole(device, monkeypatch, size):
    anchors, candidates, temperature = drawn(33, 20, 8, device)
    labels = torch.randint(3, (33,), device=device), torch.randint(3, (20,), device=device)
    excluded = torch.randint(-1, 20, (33,), device=device)

    def run():
        leaves = [tensor.clone().requires_grad_() for tensor in (anchors, candidates, temperature)]
        loss = tracklet_nce(
            *leaves[:2], labels, temperature=leaves[2], symmetric=True, excluded=excluded, backend="torch"
        )
        return [loss, *torch.autograd.grad(loss, leaves)]

    whole = run()
    for kind in native.BLOCK:
        monkeypatch.setitem(native.BLOCK, kind, size)
    torch.testing.assert_close(run(), whole)


@pytest.mark.parametrize("symmetric", [False, True])
def test_nothing_of_the_size_of_the_logits_is_made(device, monkeypatch, symmetric):
    for kind in native.BLOCK:
        monkeypatch.setitem(native.BLOCK, kind, 16)
    anchors, candidates, _ = (tensor.requires_grad_() for tensor in drawn(50, 50, 8, device))
    labels = torch.randint(5, (2, 50), device=device).unbind()
    with LargeResults(torch.empty(50, 50)) as large:
        tracklet_nce(anchors, candidates, labels, temperature=0.1, symmetric=symmetric).backward()
    assert large.names == []
    with LargeResults(torch.empty(50, 50)) as large:
        tracklet_nce(anchors, candidates, labels, temperature=0.1, symmetric=symmetric, backend="reference").backward()
    assert large.names != []


def test_memory_is_that_of_inputs_and_some_tiles(device):
    size, channels = 4096, 32
    anchors, candidates, temperature = (tensor.requires_grad_() for tensor in drawn(size, size, channels, device))
    index = torch.arange(size, device=device)

    def call():
        loss = tracklet_nce(anchors, candidates, index, temperature=temperature, symmetric=True, backend="torch")
        return torch.autograd.grad(loss, (anchors, candidates, temperature))

    call()
    gradients = 2 * 4 * size * channels
    side = min(size, native.BLOCK.get(device.type, native.BLOCK["cuda"]))
    tiles = 8 * 4 * side * side  # logits, their gradient, and what is made of the rule
    assert gradients < peak_extra_bytes(call, device) < gradients + tiles + 2 * 2**20
