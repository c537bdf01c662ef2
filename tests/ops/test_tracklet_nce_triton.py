"""The Triton kernels: on a GPU, or on the CPU by Triton's interpreter, against the definition in float64."""

import pytest
import torch
from kernel_agreement import assert_as_exact_as_plain

from art_kernels import devices
from art_kernels.tracklet_nce import rules
from art_kernels.tracklet_nce.passes import Pairs, Statistics

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
launch = pytest.importorskip("art_kernels.tracklet_nce.launch")
calls = pytest.importorskip("art_kernels.tracklet_nce.calls")
logits_of_tiles = pytest.importorskip("art_kernels.tracklet_nce.kernels.logits")
tiles = pytest.importorskip("art_kernels.tracklet_nce.tiles")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE.type == "cuda" else [])]  # see launch.refusal


@pytest.fixture(autouse=True)
def products_that_commute(monkeypatch):
    """The interpreter's products are rounded once: ⟨anchor, candidate⟩ is ⟨candidate, anchor⟩, as it is on a GPU.

    It takes them from a BLAS, where the two have different roundings. The gradient of the candidates takes weights by
    the log-sum-exp of the anchors' rows: where a weight is near 1, both need the same errors.
    """
    if DEVICE.type == "cuda":
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")

    def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        total = d.data + a.data.astype("float64") @ b.data.astype("float64")
        return interpreter.TensorHandle(total.astype(d.data.dtype), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


@rules.positive_rule
def same_class_later(anchor: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """Of the same class, and later: which of the two is the anchor makes a difference."""
    return (anchor // 100 == candidate // 100) & (anchor < candidate)


def pairs_of(kind, anchors, candidates):
    """Index, labels (some anchors have no positive), or the rule above; but for the index, pairs are excluded."""
    if kind == "index":
        index = torch.randint(candidates, (anchors,), device=DEVICE)
        return Pairs(index, torch.arange(candidates, device=DEVICE), None, rules.EQUAL)
    most = 2 * candidates if kind == "labels" else 600
    anchor_ids, candidate_ids = (torch.randint(most, (size,), device=DEVICE) for size in (anchors, candidates))
    anchor_ids[: anchors // 2] = candidate_ids[torch.randint(candidates, (anchors // 2,), device=DEVICE)]
    excluded = torch.randint(-1, candidates, (anchors,), device=DEVICE)
    return Pairs(anchor_ids, candidate_ids, excluded, rules.EQUAL if kind == "labels" else same_class_later.name)


def inputs_of(anchors, candidates, channels):
    """Logits of about 4, after a temperature of 0.07."""
    first, second = (torch.randn(size, channels, device=DEVICE) for size in (anchors, candidates))
    return [first, 0.28 * second * channels**-0.5, torch.tensor(0.07, device=DEVICE)]


def plain(anchors, candidates, temperature, pairs, symmetric):
    """The statistics by definition, with all logits at once."""
    logits = anchors @ candidates.mT / temperature
    part = torch.ones_like(logits, dtype=torch.bool)
    if pairs.excluded is not None:
        part = pairs.excluded[:, None] != torch.arange(len(candidates), device=DEVICE)[None, :]
    positive = rules.function_of(pairs.rule)(pairs.anchor_ids[:, None], pairs.candidate_ids[None, :]) & part

    def of_rows(logits, part, positive):
        count = positive.sum(1).to(logits)
        mean = (logits * positive).sum(1) / count.clamp(min=1)
        return torch.stack([logits.masked_fill(~part, -torch.inf).logsumexp(1), mean, count])

    rows = of_rows(logits, part, positive)
    return (rows, of_rows(logits.mT, part.mT, positive.mT)) if symmetric else (rows,)


class Kernels(torch.autograd.Function):
    """Both passes of the backend that is tested."""

    @staticmethod
    def forward(ctx, anchors, candidates, temperature, pairs, symmetric):
        statistics = launch.forward(anchors, candidates, pairs, temperature.float(), symmetric)
        ctx.pairs, ctx.dtype, ctx.symmetric = pairs, temperature.dtype, symmetric
        ctx.save_for_backward(anchors, candidates, temperature.float(), *statistics)
        assert statistics.columns.shape == (3, len(candidates) if symmetric else 0)
        return tuple(statistics) if symmetric else (statistics.rows,)

    @staticmethod
    def backward(ctx, grad_rows, grad_columns=None):
        anchors, candidates, temperature, *statistics = ctx.saved_tensors
        grad_columns = torch.empty(3, 0, device=DEVICE) if grad_columns is None else grad_columns
        gradients = launch.backward(
            grad_rows, grad_columns, anchors, candidates, ctx.pairs, temperature, Statistics(*statistics),
            ctx.needs_input_grad[0], ctx.needs_input_grad[1],
        )  # fmt: skip
        return gradients.anchors, gradients.candidates, gradients.temperature.to(ctx.dtype), None, None


def fast(*arguments):
    """As `plain`, by the kernels."""
    return Kernels.apply(*arguments)


def results(inputs, pairs, symmetric=True, function=fast, needed=(True, True, True)):
    """Statistics and gradients of their squares."""
    leaves = [tensor.detach().requires_grad_(needs) for tensor, needs in zip(inputs, needed, strict=True)]
    outputs = function(*leaves, pairs, symmetric)
    loss = sum(torch.where(output.isfinite(), output, 0.0).square().sum() for output in outputs)
    gradients = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])
    return [*outputs, *gradients]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "kind, symmetric, sizes",
    [
        ("index", False, (37, 53, 40)),
        ("labels", False, (37, 53, 40)),
        ("labels", True, (37, 53, 40)),
        ("rule", True, (37, 53, 40)),
        ("labels", True, (130, 70, 100)),
        ("rule", True, (19, 33, 260)),
        ("labels", True, (7, 300, 33)),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_agrees_with_float64(dtype, kind, symmetric, sizes):
    pairs = pairs_of(kind, *sizes[:2])
    temperature = torch.tensor(0.07, device=DEVICE)
    assert_as_exact_as_plain(
        lambda *inputs: fast(*inputs, temperature, pairs, symmetric),
        lambda *inputs: plain(*inputs, temperature.to(inputs[0].dtype), pairs, symmetric),
        lambda: inputs_of(*sizes)[:2],
        dtype,
        draws=12 if DEVICE.type == "cuda" else 3,  # the interpreter is slow
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes, symmetric",
    [((19, 37, 33), False), ((5, 140, 33), True), ((5, 20, 132), True)],
    ids=["plain", "splits", "parts"],
)
def test_gradient_of_the_temperature_agrees_with_float64(dtype, sizes, symmetric):
    pairs = pairs_of("labels", *sizes[:2])
    assert_as_exact_as_plain(
        lambda *inputs: fast(*inputs, pairs, symmetric),
        lambda *inputs: plain(*inputs, pairs, symmetric),
        lambda: inputs_of(*sizes),
        dtype,
        draws=12,  # it is one number a draw: fewer were a matter of luck
    )


def test_splits_are_taken_and_combined(monkeypatch):
    inputs, pairs = inputs_of(7, 300, 33), pairs_of("labels", 7, 300)
    splits = []

    def counted(inputs, chosen):
        splits.append(split(inputs, chosen)[1]["splits"])
        return split(inputs, chosen)

    split = calls.Inputs.split
    monkeypatch.setattr(calls.Inputs, "split", counted)
    shared = results(inputs, pairs)
    if DEVICE.type == "cpu":
        assert splits[0] > 1 and splits[2] > 1, "the anchors are few: forward and backward"
    monkeypatch.setattr(calls, "splits_for", lambda count, programs, block_n, device: (1, count))
    for found, expected in zip(shared, results(inputs, pairs), strict=True):
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert splits[-4:] == [1, 1, 1, 1]


@pytest.mark.parametrize("size", [33, 100])
def test_two_runs_give_the_same_bits(size):
    inputs, pairs = inputs_of(37, 130, size), pairs_of("rule", 37, 130)
    torch.testing.assert_close(results(inputs, pairs), results(inputs, pairs), rtol=0, atol=0)


@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_of_a_part(needed, symmetric):
    inputs, pairs = inputs_of(37, 53, 40), pairs_of("labels", 37, 53)
    whole = results(inputs, pairs, symmetric)[-3:]
    part = results(inputs, pairs, symmetric, needed=(*needed, True))[2 if symmetric else 1 :]
    expected = [gradient for gradient, needs in zip(whole, (*needed, True), strict=True) if needs]
    torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [40, 100])
def test_layouts_are_read_in_place(channels):
    anchors, candidates, temperature = inputs_of(37, 53, channels)
    pairs = pairs_of("rule", 37, 53)
    every_other = torch.stack([candidates, candidates], 1).flatten(0, 1)[::2]
    channels_first = candidates.mT.contiguous().mT
    unaligned = torch.randn(1 + candidates.numel(), device=DEVICE)[1:].view_as(candidates).copy_(candidates)
    strided = Pairs(*(torch.stack([ids, ids], 1)[:, 0] for ids in pairs[:3]), pairs.rule)
    expected = results([anchors, candidates, temperature], pairs)
    for layout in (every_other, channels_first, unaligned):
        found = results([anchors.mT.contiguous().mT, layout, temperature], strided)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_row_without_positives_and_one_without_pairs():
    anchors, candidates, temperature = inputs_of(3, 1, 8)
    ids = torch.tensor([5, 6, 5], device=DEVICE)
    pairs = Pairs(ids, ids[:1], torch.tensor([-1, -1, 0], device=DEVICE), rules.EQUAL)
    found = results([anchors, candidates, temperature], pairs)
    rows, columns, *gradients = found
    logits = (anchors @ candidates.mT / temperature)[:, 0]
    assert rows[0, 2] == -torch.inf and rows[1, 1:].tolist() == [0.0, 0.0]
    assert rows[2].tolist() == [1.0, 0.0, 0.0] and columns[2].tolist() == [1.0]
    torch.testing.assert_close(rows[0, :2], logits[:2])
    torch.testing.assert_close(columns[0], logits[:2].logsumexp(0)[None])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][2] == 0).all(), "its only pair is excluded"
    # The mean of no logit moves nothing, whatever its gradient is.
    grad = torch.tensor([[0.0] * 3, [1.0, 1e6, 1e6], [1e6] * 3], device=DEVICE)
    none = torch.empty(3, 0, device=DEVICE)
    gradient = launch.backward(
        grad, none, anchors, candidates, pairs, temperature, Statistics(rows.detach(), none), True, True
    )
    torch.testing.assert_close(gradient.candidates, anchors[:1] / temperature)
    torch.testing.assert_close(gradient.temperature, -logits[0] / temperature)


@pytest.mark.parametrize("anchors, candidates", [(0, 5), (5, 0), (0, 0)])
def test_empty_sizes(anchors, candidates):
    ids = torch.zeros(5, dtype=torch.int64, device=DEVICE)
    pairs = Pairs(ids[:anchors], ids[:candidates], None, rules.EQUAL)
    rows, columns, *gradients = results(inputs_of(anchors, candidates, 8), pairs)
    for statistics, size in ((rows, anchors), (columns, candidates)):
        assert statistics.shape == (3, size)
        assert (statistics[0] == -torch.inf).all() and (statistics[1:] == 0).all()
    assert [gradient.shape for gradient in gradients] == [(anchors, 8), (candidates, 8), ()]
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_logits_stay_finite(dtype):
    anchors = torch.tensor([[100.0], [-100.0]], device=DEVICE, dtype=dtype)
    candidates = torch.tensor([[1.0], [-1.0], [0.5]], device=DEVICE, dtype=dtype)
    ids = torch.arange(3, device=DEVICE)
    pairs = Pairs(ids[:2], ids, None, rules.EQUAL)
    temperature = torch.tensor(0.01, device=DEVICE)
    leaves = [tensor.requires_grad_() for tensor in (anchors, candidates, temperature)]
    rows, columns = fast(*leaves, pairs, True)
    torch.testing.assert_close(rows[:2], torch.full_like(rows[:2], 1e4))
    torch.testing.assert_close(columns[0], torch.tensor([1e4, 1e4, 5e3], device=DEVICE))
    gradients = torch.autograd.grad(rows[0].sum() + columns[1].sum(), leaves)
    # Each row has all of its weight on its own candidate; so has the mean of the first two columns.
    expected = ([[200.0], [-200.0]], [[2e4], [-2e4], [0.0]], -4e6)
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, torch.tensor(value, device=DEVICE, dtype=gradient.dtype))


def test_nan_shows():
    inputs, pairs = inputs_of(3, 5, 8), pairs_of("index", 3, 5)
    inputs[1][4, 0] = torch.nan
    rows, columns = fast(*inputs, pairs, True)
    assert rows[0].isnan().all(), "each row has the pair"
    assert columns[0].isnan().tolist() == [False, False, False, False, True]


def test_other_sizes_recompile_nothing():
    def constants_and_ints(anchors, candidates):
        meta = [torch.empty(size, 64, dtype=torch.bfloat16, device="meta") for size in (anchors, candidates)]
        ids = [torch.empty(size, dtype=torch.int64, device="meta") for size in (anchors, candidates)]
        pairs = Pairs(*ids, None, rules.EQUAL)
        of_call = []
        for transposed in (False, True):
            inputs = calls.Inputs(*meta, pairs, torch.empty((), device="meta"), transposed)
            chosen = tiles.backward_tiles(torch.bfloat16, 64, devices.Device("nvidia", 227 * 1024))
            sides = calls.Sides(*(torch.empty(3, size, device="meta") for size in (anchors, candidates)))
            made = [
                *calls.forward_calls(inputs, chosen, torch.empty(3, len(inputs.rows), device="meta")),
                calls.backward_call(inputs, chosen, sides, torch.empty_like(inputs.rows), True)[0],
            ]
            for call in made:
                ints = {name for name, value in call.arguments.items() if isinstance(value, int)}
                of_call.append((call.constants, call.options(), ints))
        return of_call

    small, large = constants_and_ints(1000, 1001), constants_and_ints(100_000, 65_536)
    assert small == large
    assert all(ints == set(logits_of_tiles.SIZES) for _, _, ints in small)


def test_the_table_serves_any_number_of_channels():
    for vendor, kib in (("nvidia", 99), ("nvidia", 163), ("nvidia", 227), ("amd", 64), ("interpreter", 99)):
        device = devices.Device(vendor, kib * 1024)
        for dtype in (torch.float32, torch.bfloat16):
            for channels in (1, 33, 100, 256, 260, 1536, 4000):
                for chosen in (
                    tiles.forward_tiles(dtype, channels, device),
                    tiles.backward_tiles(dtype, channels, device),
                ):
                    chunks = chosen.chunks(channels)
                    assert chunks % chosen.parts == 0
                    assert channels <= chunks * chosen.block_c < channels + chosen.parts * chosen.block_c


def test_refusals(monkeypatch):
    tensor = torch.empty(1, 8, device=DEVICE)
    assert launch.refusal(tensor) is None
    assert launch.by_name_only(tensor) == (DEVICE.type == "cpu"), "never the interpreter unasked"
    assert launch.refusal(tensor.double()) == "the kernels compute in float32"
    if DEVICE.type == "cpu":
        assert "bfloat16" in launch.refusal(tensor.bfloat16())
        monkeypatch.setattr(launch, "INTERPRETED", False)
        assert "TRITON_INTERPRET=1" in launch.refusal(tensor)
