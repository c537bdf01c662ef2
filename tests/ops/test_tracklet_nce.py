"""`tracklet_nce` with every backend: values by hand, accuracy, edge cases, autocast, compilation, and errors."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from kernel_agreement import LargeResults, assert_as_exact_as_plain
from operator_checks import assert_same_bits_twice, outputs_and_gradients, skip_unsupported
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from art_kernels import positive_rule, tracklet_nce
from art_kernels.tracklet_nce import reference
from art_kernels.tracklet_nce import torch as torch_backend
from benchmarks.common.measure import peak_extra_bytes

BACKENDS = ["triton", "torch", "reference"]
SYMMETRIC = pytest.mark.parametrize("symmetric", [False, True], ids=["", "symmetric"])
EXCLUDING = pytest.mark.parametrize("excluding", [False, True], ids=["", "excluding"])
FORMS = ["index", "labels"]


def inputs(device="cpu", rows=6, count=9, channels=8, **options) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, channels, device=device, **options), torch.randn(count, channels, device=device, **options)


def naive_loss(anchors, candidates, positive, temperature, excluded=None):
    """The loss of the docstring, in a loop over anchors."""
    losses = []
    for i, anchor in enumerate(anchors):
        included = [j for j in range(len(candidates)) if excluded is None or excluded[i] != j]
        logits = {j: anchor @ candidates[j] / temperature for j in included}
        positives = [logits[j] for j in included if positive(i, j)]
        if positives:
            losses.append(torch.stack(list(logits.values())).logsumexp(0) - sum(positives) / len(positives))
    return sum(losses) / len(losses) if losses else torch.zeros(())


def test_reference_loss_by_hand():
    anchors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    candidates = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    # Logits at temperature 0.5: (2, 6), (0, 4); the third anchor has no positive.
    first, second = math.log(math.exp(2) + math.exp(6)) - 2, math.log(1 + math.exp(4)) - 4
    loss = tracklet_nce(anchors, candidates, torch.tensor([0, 1, -1]), temperature=0.5, backend="reference")
    torch.testing.assert_close(loss, torch.tensor((first + second) / 2))


def test_reference_statistics_by_hand():
    ids = torch.tensor([7, 8]), torch.tensor([7, 7, 9]), torch.tensor([1, -1])
    logits = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    rows, columns = reference.tracklet_nce(torch.eye(2), logits.mT, *ids, torch.tensor(1.0), True)
    lse = [torch.tensor(values).logsumexp(0).item() for values in ([1.0, 3], [4.0, 5, 6], [1.0, 4], [3.0, 6])]
    torch.testing.assert_close(rows, torch.tensor([lse[:2], [1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(columns, torch.tensor([[lse[2], 5.0, lse[3]], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_one_positive_is_cross_entropy_and_symmetric_is_clip(backend):
    anchors, candidates = inputs(rows=9, channels=4, dtype=torch.float64)
    index = torch.randperm(9)
    logits = anchors @ candidates.mT / 0.2
    options = {"temperature": 0.2, "backend": backend}
    expected = F.cross_entropy(logits, index)
    torch.testing.assert_close(tracklet_nce(anchors, candidates, index, **options), expected)
    expected = (expected + F.cross_entropy(logits.mT, index.argsort())) / 2
    torch.testing.assert_close(tracklet_nce(anchors, candidates, index, symmetric=True, **options), expected)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@EXCLUDING
def test_indices_and_labels_agree_with_a_loop(backend, excluding):
    anchors, candidates = inputs(rows=8, count=11, channels=4, dtype=torch.float64)
    index, excluded = torch.randint(-1, 11, (8,)), torch.randint(-1, 11, (8,)) if excluding else None
    labels = torch.randint(3, (8,)), torch.randint(4, (11,))
    forms = [(index, lambda i, j: index[i] == j), (labels, lambda i, j: labels[0][i] == labels[1][j])]
    for positives, positive in forms:
        loss = tracklet_nce(anchors, candidates, positives, temperature=0.5, excluded=excluded, backend=backend)
        expected = naive_loss(anchors, candidates, positive, 0.5, excluded)
        assert expected > 0
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_is_a_scalar_in_at_least_float32(device, dtype, backend):
    anchors, candidates = inputs(device, dtype=dtype, requires_grad=True)
    skip_unsupported("tracklet_nce", backend, anchors)
    loss = tracklet_nce(anchors, candidates, torch.arange(6, device=device), temperature=1, backend=backend)
    assert loss.shape == () and loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss.backward()
    assert anchors.grad.dtype == candidates.grad.dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, -0.07, math.nan])
def test_temperature_not_above_zero_returns_nan(device, backend, value):
    leaves = [tensor.requires_grad_() for tensor in (*inputs(device), torch.tensor(value, device=device))]
    index = torch.arange(6, device=device)
    loss = tracklet_nce(*leaves[:2], index, temperature=leaves[2], symmetric=True, backend=backend)
    assert loss.isnan() and all(g.isnan().any() for g in torch.autograd.grad(loss, leaves[:2]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_temperature_has_its_dtype(device, backend):
    anchors, candidates = inputs(device)
    index = torch.arange(6, device=device)
    for dtype in (torch.float64, torch.float32, torch.float16):
        temperature = torch.tensor(0.5, device=device, dtype=dtype, requires_grad=True)
        loss = tracklet_nce(anchors, candidates, index, temperature=temperature, backend=backend)
        (gradient,) = torch.autograd.grad(loss, temperature)
        assert loss.dtype == torch.float32 and gradient.dtype == dtype and gradient != 0


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("backend", BACKENDS)
@SYMMETRIC
@pytest.mark.parametrize("rows, count", [(0, 9), (6, 0), (0, 0), (1, 1), (6, 9)])
def test_no_positive_is_zero_with_zero_gradient(device, backend, symmetric, rows, count):
    anchors, candidates = inputs(device, rows, count, requires_grad=True)
    temperature = torch.tensor(0.1, device=device, requires_grad=True)
    none = torch.full((rows,), -1, device=device)
    excluded = torch.zeros(rows, dtype=torch.int64, device=device)  # with one candidate: every pair
    options = {"temperature": temperature, "symmetric": symmetric, "backend": backend}
    for positives, without in ((none, None), (none, excluded), (none + 10**6, None)):
        with torch.autograd.detect_anomaly(check_nan=True):
            loss = tracklet_nce(anchors, candidates, positives, excluded=without, **options)
            gradients = torch.autograd.grad(loss, (anchors, candidates, temperature))
        assert loss == 0
        assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
@SYMMETRIC
def test_anchor_without_a_positive_is_ignored(device, backend, symmetric):
    anchors, candidates = inputs(device, requires_grad=True)
    index = torch.tensor([3, -1, 0, 9, 5, 3], device=device)  # there is no candidate 9
    loss = tracklet_nce(anchors, candidates, index, temperature=0.5, symmetric=symmetric, backend=backend)
    if not symmetric:
        kept = torch.tensor([0, 2, 4, 5], device=device)
        torch.testing.assert_close(loss, F.cross_entropy(anchors[kept] @ candidates.mT / 0.5, index[kept]))
    gradient, _ = torch.autograd.grad(loss, (anchors, candidates))
    assert (gradient[[1, 3]] == 0).all() != symmetric, "they are negatives of the other direction"


@pytest.mark.parametrize("backend", BACKENDS)
@SYMMETRIC
def test_excluded_pair_affects_neither_loss_nor_gradient(device, backend, symmetric):
    itself = torch.arange(4, device=device)
    labels = itself % 2
    options = {"temperature": 1.0, "symmetric": symmetric, "excluded": itself, "backend": backend}

    def run(scale):
        # Only the first channel of the excluded pair (0, 0) depends on `scale`.
        anchors, candidates = values[0].clone(), values[1].clone()
        anchors[0], candidates[0] = 1.0, 0.0
        anchors[:, 0], candidates[:, 0] = 0.0, 0.0
        anchors[0, 0], candidates[0, 0] = scale, 1.0
        leaves = [anchors.requires_grad_()]
        return outputs_and_gradients(lambda a: tracklet_nce(a, candidates, (labels, labels), **options), leaves)

    values = inputs(device, 4, 4)
    torch.testing.assert_close(run(3.0), run(1e4), rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@SYMMETRIC
def test_extreme_logits_stay_finite(device, backend, symmetric):
    anchors = torch.tensor([[1.0], [-1.0]], device=device, requires_grad=True)
    candidates = torch.tensor([[1.0], [-1.0]], device=device, requires_grad=True)
    temperature = torch.tensor(1e-4, device=device, requires_grad=True)
    options = {"temperature": temperature, "symmetric": symmetric, "backend": backend}
    right = tracklet_nce(anchors, candidates, torch.tensor([0, 1], device=device), **options)
    assert right == 0
    assert all((g == 0).all() for g in torch.autograd.grad(right, (anchors, candidates, temperature)))
    wrong = tracklet_nce(anchors, candidates, torch.tensor([1, 0], device=device), **options)
    torch.testing.assert_close(wrong, torch.tensor(2e4, device=device))
    gradients = torch.autograd.grad(wrong, (anchors, candidates, temperature))
    for gradient, expected in zip(gradients, ([[1e4], [-1e4]], [[1e4], [-1e4]], -2e8), strict=True):
        torch.testing.assert_close(gradient, torch.tensor(expected, device=device))


def operator_inputs(device="cpu", rows=6, count=9, channels=8, dtype=torch.float32):
    temperature = torch.tensor(0.7, device=device, dtype=dtype, requires_grad=True)
    return [*inputs(device, rows, count, channels, dtype=dtype, requires_grad=True), temperature]


def positives_of(form: str, rows: int, count: int, device: torch.device | str = "cpu", labels: int = 5):
    if form == "index":
        return torch.randint(-1, count, (rows,), device=device)
    return torch.randint(labels, (rows,), device=device), torch.randint(labels + 1, (count,), device=device)


def normalized(rows: int, count: int, channels: int, device: torch.device, temperature: float = 0.2) -> list[Tensor]:
    anchors, candidates = (F.normalize(torch.randn(size, channels, device=device), dim=-1) for size in (rows, count))
    return [anchors, candidates, torch.tensor(temperature, device=device)]


def loss_of(backend, positives, **options):
    return lambda a, c, t: [tracklet_nce(a, c, positives, temperature=t, backend=backend, **options)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows, count, channels", [(37, 53, 20), (131, 67, 96)])
@pytest.mark.parametrize("form", FORMS)
@SYMMETRIC
@EXCLUDING
def test_torch_agrees_with_float64(device, monkeypatch, dtype, rows, count, channels, form, symmetric, excluding):
    monkeypatch.setattr(torch_backend, "BLOCK", dict.fromkeys(torch_backend.BLOCK, 29))
    positives = positives_of(form, rows, count, device)
    excluded = torch.randint(-1, count, (rows,), device=device) if excluding else None
    fast, plain = (loss_of(name, positives, symmetric=symmetric, excluded=excluded) for name in ("torch", "reference"))
    assert_as_exact_as_plain(fast, plain, lambda: normalized(rows, count, channels, device), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.07])
def test_torch_agrees_at_low_temperature_with_similar_positives(device, dtype, temperature):
    """The losses are near 0, and their gradients are differences of numbers near 1."""
    index = torch.randint(83, (61,), device=device)

    def draw():
        anchors, candidates, scale = normalized(61, 83, 64, device, temperature)
        return [F.normalize(candidates[index] + 0.5 * anchors, dim=-1), candidates, scale]

    fast, plain = (loss_of(name, index, symmetric=True) for name in ("torch", "reference"))
    assert_as_exact_as_plain(fast, plain, draw, dtype)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_torch_gradient_of_some_inputs(needed):
    tensors = normalized(9, 7, 8, "cpu")
    leaves = [tensors[index].requires_grad_() for index in needed]
    labels = positives_of("labels", 9, 7, labels=2)
    results = [
        torch.autograd.grad(loss_of(backend, labels, symmetric=True)(*tensors), leaves)
        for backend in ("torch", "reference")
    ]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_torch_result_does_not_depend_on_tiles(device, monkeypatch, size):
    leaves = [tensor.requires_grad_() for tensor in normalized(33, 20, 8, device)]
    labels, excluded = positives_of("labels", 33, 20, device, 2), torch.randint(-1, 20, (33,), device=device)
    loss = loss_of("torch", labels, symmetric=True, excluded=excluded)
    expected = outputs_and_gradients(loss, leaves)
    monkeypatch.setattr(torch_backend, "BLOCK", dict.fromkeys(torch_backend.BLOCK, size))
    torch.testing.assert_close(outputs_and_gradients(loss, leaves), expected)


@pytest.mark.parametrize("symmetric", [False, True])
def test_torch_allocates_nothing_of_the_size_of_the_logits(device, monkeypatch, symmetric):
    monkeypatch.setattr(torch_backend, "BLOCK", dict.fromkeys(torch_backend.BLOCK, 16))
    anchors, candidates, _ = (tensor.requires_grad_() for tensor in normalized(50, 50, 8, device))
    labels = torch.randint(5, (2, 50), device=device).unbind()
    for backend in ("torch", "reference"):
        with LargeResults(torch.empty(50, 50)) as large:
            loss = tracklet_nce(anchors, candidates, labels, temperature=0.1, symmetric=symmetric, backend=backend)
            loss.backward()
        assert (large.names == []) == (backend == "torch")


def test_torch_memory_is_that_of_inputs_and_some_tiles(device):
    size, channels = 4096, 32
    leaves = [tensor.requires_grad_() for tensor in normalized(size, size, channels, device)]
    index = torch.arange(size, device=device)

    def call():
        (loss,) = loss_of("torch", index, symmetric=True)(*leaves)
        return torch.autograd.grad(loss, leaves)

    call()
    gradients = 2 * 4 * size * channels
    side = min(size, torch_backend.BLOCK.get(device.type, torch_backend.BLOCK["cuda"]))
    tiles = 8 * 4 * side * side  # logits, their gradient, and masks
    assert gradients < peak_extra_bytes(call, device) < gradients + tiles + 2 * 2**20


@pytest.mark.parametrize("form", FORMS)
@SYMMETRIC
@EXCLUDING
def test_first_and_second_order_gradients(form, symmetric, excluding):
    positives = positives_of(form, 5, 4, labels=2)
    excluded = torch.tensor([0, -1, 3, 2, 1]) if excluding else None
    loss = loss_of("torch", positives, symmetric=symmetric, excluded=excluded)
    leaves = operator_inputs(rows=5, count=4, channels=3, dtype=torch.float64)
    assert loss(*leaves)[0] != 0
    assert gradcheck(loss, leaves)
    assert gradgradcheck(loss, leaves)


def test_layout_does_not_change_the_result(device):
    anchors, candidates = inputs(device)
    labels = torch.arange(6, device=device) % 3, torch.arange(9, device=device) % 3
    expected = tracklet_nce(anchors, candidates, labels, temperature=0.3, symmetric=True)
    every_other = torch.stack([labels[1], labels[0].new_zeros(9)], 1).flatten()[::2]
    strided = anchors.mT.contiguous().mT.requires_grad_(), torch.stack([candidates, candidates], 1).flatten(0, 1)[::2]
    loss = tracklet_nce(*strided, [labels[0], every_other], temperature=0.3, symmetric=True)
    torch.testing.assert_close(loss, expected)
    expanded = tracklet_nce(anchors, candidates[:1].expand(9, -1), labels, temperature=0.3)
    torch.testing.assert_close(expanded, tracklet_nce(anchors, candidates[:1].repeat(9, 1), labels, temperature=0.3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_like_a_matrix_product(device, dtype):
    anchors, candidates = inputs(device)
    index = torch.arange(6, device=device)
    with torch.autocast(device.type, dtype):
        loss = tracklet_nce(anchors, candidates.bfloat16(), index, temperature=0.5)
    expected = tracklet_nce(anchors.to(dtype), candidates.bfloat16().to(dtype), index, temperature=0.5)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    assert loss.dtype == torch.float32
    with torch.autocast(device.type, dtype):
        assert tracklet_nce(anchors.double(), candidates.double(), index, temperature=0.5).dtype == torch.float64


def test_two_runs_return_the_same_bits(device):
    leaves = inputs(device, 600, 600, 40, requires_grad=True)
    index = torch.arange(600, device=device)
    assert_same_bits_twice(lambda a, c: tracklet_nce(a, c, index, temperature=1.0, symmetric=True), leaves)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("form", ["index", "labels"])
def test_compiles_once_for_all_batch_sizes(device, backend, form):
    def loss(anchors, candidates, temperature, ids, other_ids):
        positives = ids if form == "index" else (ids, other_ids)
        return tracklet_nce(
            anchors, candidates, positives, temperature=temperature, symmetric=True, excluded=ids, backend=backend
        )

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    temperature = torch.tensor(0.7, device=device, requires_grad=True)
    for rows, count in ((6, 9), (5, 8), (40, 41)):
        ids = [torch.randint(3, (size,), device=device) for size in (rows, count)]
        tensors = [*inputs(device, rows, count, requires_grad=True), temperature, *ids]
        with torch.compiler.set_stance("default" if rows == 6 else "fail_on_recompile"):
            found = outputs_and_gradients(compiled, tensors)
        torch.testing.assert_close(found, outputs_and_gradients(loss, tensors))


def test_exports_with_dynamic_sizes():
    class Contrast(torch.nn.Module):
        def forward(self, anchors, candidates, index):
            return tracklet_nce(anchors, candidates, index, temperature=0.1, symmetric=True)

    rows, count = torch.export.Dim("rows"), torch.export.Dim("count")
    shapes = ({0: rows}, {0: count}, {0: rows})
    program = torch.export.export(Contrast(), (*inputs(), torch.arange(6)), dynamic_shapes=shapes)
    others = (*inputs(rows=7, count=12), torch.randint(-1, 12, (7,)))
    torch.testing.assert_close(program.module()(*others), Contrast()(*others))


def test_positive_rule_was_removed():
    with pytest.raises(NotImplementedError, match=r"positive_rule was removed: pass .* labels \[M\] and \[N\]"):
        positive_rule(lambda anchor, candidate: anchor == candidate)


INDEX, OTHER = torch.arange(6), torch.arange(9)
ANCHORS, CANDIDATES = inputs()
F64 = {"backend": "triton", "anchors": ANCHORS.double(), "candidates": CANDIDATES.double()}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"anchors": None}, TypeError, "anchors is None, expected a torch.Tensor of shape [M,C]"),
        ({"anchors": ANCHORS.long()}, TypeError, "anchors has dtype torch.int64"),
        ({"anchors": ANCHORS[0]}, ValueError, "anchors has shape [8], expected the 2 dimensions [M,C]"),
        ({"candidates": CANDIDATES[:, :7]}, ValueError, "candidates has shape [9, 7], expected [N,C] = [9, 8]"),
        ({"candidates": CANDIDATES.double()}, TypeError, "candidates has dtype torch.float64, expected torch.float32"),
        ({"candidates": CANDIDATES.to("meta")}, ValueError, "candidates is on meta, expected cpu"),
        ({"positives": None}, TypeError, "positives is of type NoneType, expected an int64 torch.Tensor of shape [M]"),
        ({"positives": (INDEX,)}, TypeError, "positives is of type tuple"),
        ({"positives": INDEX.int()}, TypeError, "positives has dtype torch.int32, expected torch.int64"),
        ({"positives": INDEX[:5]}, ValueError, "positives has shape [5], expected [M] = [6]"),
        ({"positives": INDEX.to("meta")}, ValueError, "positives is on meta, expected cpu"),
        ({"positives": (INDEX, INDEX)}, ValueError, "positives[1] has shape [6], expected [N] = [9]"),
        ({"positives": (INDEX, 3)}, TypeError, "positives[1] is 3 of type int, expected an int64 torch.Tensor"),
        ({"temperature": 0}, ValueError, "temperature is 0, expected a finite number in (0.0, inf)"),
        ({"temperature": math.nan}, ValueError, "temperature is nan"),
        ({"temperature": "low"}, TypeError, "temperature is 'low' of type str, expected a number"),
        ({"temperature": torch.ones(1)}, ValueError, "temperature has shape [1], expected a number or a tensor"),
        ({"temperature": torch.tensor(1)}, TypeError, "temperature has dtype torch.int64, expected float16"),
        ({"temperature": torch.tensor(1.0, device="meta")}, ValueError, "temperature is on meta, expected cpu"),
        ({"symmetric": 1}, TypeError, "symmetric is 1 of type int, expected True or False"),
        ({"excluded": OTHER}, ValueError, "excluded has shape [9], expected [M] = [6]"),
        ({"excluded": INDEX > 2}, TypeError, "excluded has dtype torch.bool, expected torch.int64"),
        ({"group": "all"}, TypeError, "group is 'all' of type str, expected a torch.distributed.ProcessGroup"),
        ({"backend": "fast"}, ValueError, "backend='fast' is not a backend"),
        (
            F64,
            ValueError,
            "backend='triton' does not support a float64 tensor on cpu: the kernels compute in float32",
        ),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"anchors": ANCHORS, "candidates": CANDIDATES, "positives": INDEX, "temperature": 0.1} | change
    with pytest.raises(error, match=re.escape(f"tracklet_nce: {message}")):
        tracklet_nce(**arguments)
