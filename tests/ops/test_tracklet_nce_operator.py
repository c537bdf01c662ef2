"""`tracklet_nce`: rules, empties, extremes, layouts, autocast, backends, and every error."""

import importlib
import math
import re

import nce_rules
import pytest
import torch
from torch import Tensor

from art_kernels import Positives, backends, positive_rule, tracklet_nce
from art_kernels.tracklet_nce import rules

BACKENDS = ["triton", "native", "reference"]


def inputs(device="cpu", rows=6, count=9, channels=8, **options) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, channels, device=device, **options), torch.randn(count, channels, device=device, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scalar_in_at_least_float32(device, dtype, backend):
    anchors, candidates = inputs(device, dtype=dtype, requires_grad=True)
    reason = backends.refusal("tracklet_nce", backend, anchors)
    if reason is not None:
        pytest.skip(reason)
    loss = tracklet_nce(anchors, candidates, torch.arange(6, device=device), temperature=1, backend=backend)
    assert loss.shape == () and loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss.backward()
    assert anchors.grad.dtype == candidates.grad.dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, -0.07, math.nan])
def test_a_temperature_not_above_zero_gives_nan(device, backend, value):
    leaves = [tensor.requires_grad_() for tensor in (*inputs(device), torch.tensor(value, device=device))]
    loss = tracklet_nce(
        *leaves[:2], torch.arange(6, device=device), temperature=leaves[2], symmetric=True, backend=backend
    )
    assert loss.isnan() and all(g.isnan().any() for g in torch.autograd.grad(loss, leaves[:2]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_a_temperature_has_its_dtype(device, backend):
    anchors, candidates = inputs(device)
    for dtype in (torch.float64, torch.float32, torch.float16):
        temperature = torch.tensor(0.5, device=device, dtype=dtype, requires_grad=True)
        loss = tracklet_nce(
            anchors, candidates, torch.arange(6, device=device), temperature=temperature, backend=backend
        )
        (gradient,) = torch.autograd.grad(loss, temperature)
        assert loss.dtype == torch.float32 and gradient.dtype == dtype and gradient != 0


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["", "symmetric"])
@pytest.mark.parametrize("rows, count", [(0, 9), (6, 0), (0, 0), (1, 1), (6, 9)])
def test_no_positive_is_zero_with_zero_gradient(device, backend, symmetric, rows, count):
    anchors, candidates = inputs(device, rows, count, requires_grad=True)
    temperature = torch.tensor(0.1, device=device, requires_grad=True)
    nothing = torch.full((rows,), -1, device=device)
    excluded = torch.zeros(rows, dtype=torch.int64, device=device)  # with one candidate: every pair
    for positives, without in ((nothing, None), (nothing, excluded), (nothing + 10**6, None)):
        with torch.autograd.detect_anomaly(check_nan=True):
            loss = tracklet_nce(
                anchors, candidates, positives, temperature=temperature, symmetric=symmetric, excluded=without,
                backend=backend,
            )  # fmt: skip
            gradients = torch.autograd.grad(loss, (anchors, candidates, temperature))
        assert loss == 0
        assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["", "symmetric"])
def test_an_anchor_without_a_positive_takes_no_part(device, backend, symmetric):
    anchors, candidates = inputs(device, requires_grad=True)
    index = torch.tensor([3, -1, 0, 9, 5, 3], device=device)  # 9 is not there
    loss = tracklet_nce(anchors, candidates, index, temperature=0.5, symmetric=symmetric, backend=backend)
    if not symmetric:
        kept = torch.tensor([0, 2, 4, 5], device=device)
        torch.testing.assert_close(
            loss, torch.nn.functional.cross_entropy(anchors[kept] @ candidates.mT / 0.5, index[kept])
        )
    gradient, _ = torch.autograd.grad(loss, (anchors, candidates))
    assert (gradient[[1, 3]] == 0).all() != symmetric, "in the other direction they are among those compared"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["", "symmetric"])
def test_an_excluded_pair_reaches_neither_loss_nor_gradient(device, backend, symmetric):
    anchors, candidates = inputs(device, 4, 4, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 1], device=device)
    itself = torch.arange(4, device=device)

    def run(scale):
        scaled = anchors.detach().clone()
        others = candidates.detach().clone()
        scaled[0], others[0] = scaled[0] * 0 + scale, others[0] * 0  # the excluded pair (0, 0) alone depends on it
        others[0, 0] = 1.0
        others[1:, 0] = scaled[1:, 0] = 0.0
        scaled[0, 1:] = 1.0
        scaled.requires_grad_()
        loss = tracklet_nce(
            scaled, others, (labels, labels), temperature=1.0, symmetric=symmetric, excluded=itself, backend=backend
        )
        return [loss, *torch.autograd.grad(loss, scaled)]

    torch.testing.assert_close(run(3.0), run(1e4), rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True], ids=["", "symmetric"])
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
    of_anchors, of_candidates, of_temperature = torch.autograd.grad(wrong, (anchors, candidates, temperature))
    torch.testing.assert_close(of_anchors, torch.tensor([[1e4], [-1e4]], device=device))
    torch.testing.assert_close(of_candidates, torch.tensor([[1e4], [-1e4]], device=device))
    torch.testing.assert_close(of_temperature, torch.tensor(-2e8, device=device))


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
def test_autocast_casts_as_a_matrix_product_does(device, dtype):
    anchors, candidates = inputs(device)
    index = torch.arange(6, device=device)
    with torch.autocast(device.type, dtype):
        loss = tracklet_nce(anchors, candidates.bfloat16(), index, temperature=0.5)
    expected = tracklet_nce(anchors.to(dtype), candidates.bfloat16().to(dtype), index, temperature=0.5)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    assert loss.dtype == torch.float32
    with torch.autocast(device.type, dtype):
        assert tracklet_nce(anchors.double(), candidates.double(), index, temperature=0.5).dtype == torch.float64


def test_two_runs_give_the_same_bits(device):
    def run():
        generator = torch.Generator().manual_seed(3)
        leaves = [torch.randn(600, 40, generator=generator).to(device).requires_grad_() for _ in range(2)]
        loss = tracklet_nce(*leaves, torch.arange(600, device=device), temperature=1.0, symmetric=True)
        return [loss, *torch.autograd.grad(loss, leaves)]

    torch.testing.assert_close(run(), run(), rtol=0, atol=0)


def test_a_rule_is_found_by_its_name():
    rule = nce_rules.next_in_time
    assert rule.name == "nce_rules.next_in_time"
    assert rules.function_of(rule.name)(4, 5) and not rules.function_of(rule.name)(4, 6)
    ids = torch.arange(3), torch.arange(4)
    positives = rule(*ids)
    assert isinstance(positives, Positives) and positives == (*ids, rule)
    importlib.reload(nce_rules)  # the same functions again are the same rules
    assert nce_rules.next_in_time == rule


def module_function(source: str, name: str = "f"):
    """A function as of a module of its own."""
    scope = {"__name__": "a_module"}
    exec(source, scope)
    return scope[name]


def test_two_functions_of_one_name_are_an_error():
    rule = positive_rule(module_function("def twice(a, c): return a == c", "twice"))
    assert positive_rule(module_function("def twice(a, c): return a == c", "twice")) == rule
    with pytest.raises(ValueError, match=r"there is another function named a_module\.twice, .*; rename one"):
        positive_rule(module_function("def twice(a, c): return a != c", "twice"))


@pytest.mark.parametrize(
    "source, error, message",
    [
        ("f = 3", TypeError, "function is 3, expected a function of a module"),
        ("def f(a): return a == 1", TypeError, r"f takes \(a\), expected two ids, \(anchor, candidate\)"),
        ("def f(a, c, d=2): return a == c", TypeError, "expected two ids"),
        ("def f(*ids): return ids[0] == ids[1]", TypeError, "expected two ids"),
        ("f = lambda a, c: a == c", ValueError, "a lambda or is made in another function"),
        ("def f(a, c): return abs(a - c) < 2", ValueError, "uses abs, expected operators on anchor, candidate and num"),
        ("k = 2\ndef f(a, c): return a // k == c // k", ValueError, "uses k, .*write numbers out"),
        ("def f(a, c): return a == c or a == 1", ValueError, "cannot be called with tensors: .*in place of and, or,"),
        ("def f(a, c): return a < c < 3", ValueError, "cannot be called with tensors"),
        ("def f(a, c): return not a", ValueError, "cannot be called with tensors"),
        ("def f(a, c): return a - c", ValueError, r"gives torch.int64 for tensors of ids, expected bool"),
        ("def f(a, c): return True", ValueError, "gives True for tensors of ids, expected bool"),
    ],
)
def test_a_function_that_cannot_be_a_rule(source, error, message):
    with pytest.raises(error, match=f"positive_rule: .*{message}"):
        positive_rule(module_function(source))


def test_a_function_in_a_function_cannot_be_a_rule():
    def inner(anchor, candidate):
        return anchor == candidate

    with pytest.raises(ValueError, match="is made in another function, expected a function of a module"):
        positive_rule(inner)


def test_a_rule_that_was_never_made_here_is_named():
    rule = rules.PositiveRule("elsewhere.rule")
    with pytest.raises(ValueError, match=r"no positive_rule is named 'elsewhere.rule' .*; import the module"):
        tracklet_nce(*inputs(), rule(torch.arange(6), torch.arange(9)), temperature=1.0)


INDEX, OTHER = torch.arange(6), torch.arange(9)
ANCHORS, CANDIDATES = inputs()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"anchors": None}, TypeError, "anchors is None, expected a torch.Tensor of shape [M,C]"),
        ({"anchors": ANCHORS.long()}, TypeError, "anchors has dtype torch.int64"),
        ({"anchors": ANCHORS[0]}, ValueError, "anchors has shape [8], expected the 2 dimensions [M,C]"),
        ({"candidates": CANDIDATES[:, :7]}, ValueError, "candidates has shape [9, 7], expected [N,C] = [9, 8]"),
        ({"candidates": CANDIDATES.double()}, TypeError, "candidates has dtype torch.float64, expected torch.float32"),
        ({"candidates": CANDIDATES.to("meta")}, ValueError, "candidates is on meta, expected cpu, where anchors is"),
        ({"positives": None}, TypeError, "positives is of type NoneType, expected an int64 torch.Tensor of shape [M]"),
        ({"positives": (INDEX,)}, TypeError, "positives is of type tuple"),
        ({"positives": INDEX.int()}, TypeError, "positives has dtype torch.int32, expected torch.int64"),
        ({"positives": INDEX[:5]}, ValueError, "positives has shape [5], expected [M] = [6]"),
        ({"positives": INDEX.to("meta")}, ValueError, "positives is on meta, expected cpu"),
        ({"positives": (INDEX, INDEX)}, ValueError, "positives[1] has shape [6], expected [N] = [9]"),
        ({"positives": (INDEX, 3)}, TypeError, "positives[1] is 3 of type int, expected an int64 torch.Tensor"),
        (
            {"positives": nce_rules.next_in_time(OTHER, OTHER)},
            ValueError,
            "positives.anchor_ids has shape [9], expected [M] = [6]",
        ),
        ({"positives": Positives(INDEX, OTHER, "equal")}, TypeError, "positives.rule is 'equal', expected what"),
        ({"temperature": 0}, ValueError, "temperature is 0, expected a finite number in (0.0, inf)"),
        ({"temperature": math.nan}, ValueError, "temperature is nan"),
        ({"temperature": "low"}, TypeError, "temperature is 'low' of type str, expected a number"),
        (
            {"temperature": torch.ones(1)},
            ValueError,
            "temperature has shape [1], expected a number or a tensor without",
        ),
        ({"temperature": torch.tensor(1)}, TypeError, "temperature has dtype torch.int64, expected float16"),
        ({"temperature": torch.tensor(1.0, device="meta")}, ValueError, "temperature is on meta, expected cpu"),
        ({"symmetric": 1}, TypeError, "symmetric is 1 of type int, expected True or False"),
        ({"excluded": OTHER}, ValueError, "excluded has shape [9], expected [M] = [6]"),
        ({"excluded": INDEX > 2}, TypeError, "excluded has dtype torch.bool, expected torch.int64"),
        ({"group": "all"}, TypeError, "group is 'all' of type str, expected a torch.distributed.ProcessGroup"),
        ({"backend": "fast"}, ValueError, "backend='fast' is not a backend"),
        (
            {"backend": "triton", "anchors": ANCHORS.double(), "candidates": CANDIDATES.double()},
            ValueError,
            "backend='triton' cannot serve a float64 tensor on cpu: the kernels compute in float32",
        ),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"anchors": ANCHORS, "candidates": CANDIDATES, "positives": INDEX, "temperature": 0.1} | change
    with pytest.raises(error, match=re.escape(f"tracklet_nce: {message}")):
        tracklet_nce(**arguments)
