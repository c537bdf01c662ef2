"""The Triton kernels of `tracklet_nce`, on a GPU or in Triton's interpreter; operators of all backends."""

import pytest
import torch
from kernel_agreement import assert_as_exact_as_plain
from operator_checks import DEVICE, KERNEL_DTYPES, assert_captured_in_cuda_graph, other_layouts, requires_gpu
from test_tracklet_nce import EXCLUDING, FORMS, SYMMETRIC, loss_of, operator_inputs, positives_of
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import vmap
from torch.library import opcheck

from art_kernels import tracklet_nce
from art_kernels._core.autograd import OPERATORS
from art_kernels._core.launch import DeviceSpec
from art_kernels.tracklet_nce.reference import Arguments

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
configs = pytest.importorskip("art_kernels.tracklet_nce.configs")
kernels = pytest.importorskip("art_kernels.tracklet_nce.triton")

FUSED = ["torch", "triton"]


@pytest.fixture
def exact_products(monkeypatch):
    """Compute the interpreter's products with a single rounding, so that ⟨a, c⟩ equals ⟨c, a⟩ as on a GPU.

    Its BLAS rounds the two differently. The gradient of the candidates weights logits by the log-sum-exp of the
    anchors' rows, which requires the same rounding errors where a weight is near 1.
    """
    if DEVICE.type == "cuda":
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")

    def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        total = d.data + a.data.astype("float64") @ b.data.astype("float64")
        return interpreter.TensorHandle(total.astype(d.data.dtype), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


triton_test = pytest.mark.usefixtures("exact_products")


def pair_arguments(form, anchors, candidates):
    """Ids of anchors and candidates, and excluded pairs except with the index; some anchors have no positive."""
    if form == "index":
        index = torch.randint(candidates, (anchors,), device=DEVICE)
        return index, torch.arange(candidates, device=DEVICE), None
    anchor_ids, candidate_ids = (torch.randint(2 * candidates, (n,), device=DEVICE) for n in (anchors, candidates))
    anchor_ids[: anchors // 2] = candidate_ids[torch.randint(candidates, (anchors // 2,), device=DEVICE)]
    return anchor_ids, candidate_ids, torch.randint(-1, candidates, (anchors,), device=DEVICE)


def kernel_inputs(anchors, candidates, channels):
    """Inputs with logits of about 4 at a temperature of 0.07."""
    first, second = (torch.randn(size, channels, device=DEVICE) for size in (anchors, candidates))
    return [first, 0.28 * second * channels**-0.5, torch.tensor(0.07, device=DEVICE)]


def plain(anchors, candidates, temperature, pairs, symmetric):
    """The statistics computed from the matrix of logits in the dtype of the inputs."""
    anchor_ids, candidate_ids, excluded = pairs
    logits = anchors @ candidates.mT / temperature
    included = torch.ones_like(logits, dtype=torch.bool)
    if excluded is not None:
        included = excluded[:, None] != torch.arange(len(candidates), device=DEVICE)[None, :]
    positive = (anchor_ids[:, None] == candidate_ids) & included

    def statistics(logits, included, positive):
        count = positive.sum(1).to(logits)
        mean = (logits * positive).sum(1) / count.clamp(min=1)
        return torch.stack([logits.masked_fill(~included, -torch.inf).logsumexp(1), mean, count])

    rows = statistics(logits, included, positive)
    return (rows, statistics(logits.mT, included.mT, positive.mT)) if symmetric else (rows,)


def fast(anchors, candidates, temperature, pairs, symmetric):
    """Same as `plain`, by the kernels."""
    operator = OPERATORS["tracklet_nce_triton"].forward
    rows, columns = operator(anchors, candidates, *pairs, temperature.float(), symmetric)
    assert columns.shape == (3, len(candidates) if symmetric else 0)
    return (rows, columns) if symmetric else (rows,)


def results(inputs, pairs, symmetric=True, needed=(True, True, True)):
    """Statistics of the kernels, and gradients of their squares."""
    leaves = [tensor.detach().requires_grad_(needs) for tensor, needs in zip(inputs, needed, strict=True)]
    outputs = fast(*leaves, pairs, symmetric)
    loss = sum(torch.where(output.isfinite(), output, 0.0).square().sum() for output in outputs)
    gradients = torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])
    return [*outputs, *gradients]


@triton_test
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(
    "form, symmetric, sizes",
    [
        ("index", False, (37, 53, 40)),
        ("labels", False, (37, 53, 40)),
        ("labels", True, (37, 53, 40)),
        ("labels", True, (130, 70, 100)),
        ("index", True, (19, 33, 260)),
        ("labels", True, (7, 300, 33)),
    ],
    ids=str,
)
def test_triton_agrees_with_float64(dtype, form, symmetric, sizes):
    pairs = pair_arguments(form, *sizes[:2])
    temperature = torch.tensor(0.07, device=DEVICE)
    assert_as_exact_as_plain(
        lambda *inputs: fast(*inputs, temperature, pairs, symmetric),
        lambda *inputs: plain(*inputs, temperature.to(inputs[0].dtype), pairs, symmetric),
        lambda: kernel_inputs(*sizes)[:2],
        dtype,
        draws=12 if DEVICE.type == "cuda" else 3,  # the interpreter is slow
    )


@triton_test
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes, symmetric",
    [((19, 37, 33), False), ((5, 140, 33), True), ((5, 20, 132), True)],
    ids=["plain", "splits", "channel-splits"],
)
def test_triton_temperature_gradient_agrees_with_float64(dtype, sizes, symmetric):
    pairs = pair_arguments("labels", *sizes[:2])
    assert_as_exact_as_plain(
        lambda *inputs: fast(*inputs, pairs, symmetric),
        lambda *inputs: plain(*inputs, pairs, symmetric),
        lambda: kernel_inputs(*sizes),
        dtype,
        draws=12,  # one number per draw: with fewer, the result would be a matter of chance
    )


@triton_test
def test_triton_splits_are_combined(monkeypatch):
    inputs, pairs = kernel_inputs(7, 300, 33), pair_arguments("labels", 7, 300)
    counts = []
    split = kernels.Inputs.split

    def counting_split(inputs, config):
        counts.append(split(inputs, config)[1]["splits"])
        return split(inputs, config)

    monkeypatch.setattr(kernels.Inputs, "split", counting_split)
    found = results(inputs, pairs)
    if DEVICE.type == "cpu":
        assert counts[0] > 1 and counts[2] > 1, "there are few anchors, forward and backward"
    monkeypatch.setattr(kernels, "choose_splits", lambda count, programs, block_n, device: (1, count))
    for result, expected in zip(found, results(inputs, pairs), strict=True):
        assert (result - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert counts[-4:] == [1, 1, 1, 1]


@triton_test
@pytest.mark.parametrize("size", [33, 100])
def test_triton_returns_the_same_bits_twice(size):
    inputs, pairs = kernel_inputs(37, 130, size), pair_arguments("labels", 37, 130)
    torch.testing.assert_close(results(inputs, pairs), results(inputs, pairs), rtol=0, atol=0)


@triton_test
@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_triton_gradient_of_some_inputs(needed, symmetric):
    inputs, pairs = kernel_inputs(37, 53, 40), pair_arguments("labels", 37, 53)
    expected = results(inputs, pairs, symmetric)[-3:]
    found = results(inputs, pairs, symmetric, (*needed, True))[2 if symmetric else 1 :]
    expected = [gradient for gradient, needs in zip(expected, (*needed, True), strict=True) if needs]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@triton_test
@pytest.mark.parametrize("channels", [40, 100])
def test_triton_reads_layouts_in_place(channels):
    anchors, candidates, temperature = kernel_inputs(37, 53, channels)
    pairs = pair_arguments("labels", 37, 53)
    strided = [torch.stack([ids, ids], 1)[:, 0] for ids in pairs]
    expected = results([anchors, candidates, temperature], pairs)
    for layout in other_layouts(candidates):
        found = results([anchors.mT.contiguous().mT, layout, temperature], strided)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@triton_test
def test_triton_rows_without_positives_or_pairs():
    anchors, candidates, temperature = kernel_inputs(3, 1, 8)
    ids = torch.tensor([5, 6, 5], device=DEVICE)
    pairs = ids, ids[:1], torch.tensor([-1, -1, 0], device=DEVICE)
    rows, columns, *gradients = results([anchors, candidates, temperature], pairs)
    logits = (anchors @ candidates.mT / temperature)[:, 0]
    assert rows[0, 2] == -torch.inf and rows[1, 1:].tolist() == [0.0, 0.0]
    assert rows[2].tolist() == [1.0, 0.0, 0.0] and columns[2].tolist() == [1.0]
    torch.testing.assert_close(rows[0, :2], logits[:2])
    torch.testing.assert_close(columns[0], logits[:2].logsumexp(0)[None])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][2] == 0).all(), "its only pair is excluded"
    # The gradient of an empty mean, or of a number of positives, has no effect.
    grad = torch.tensor([[0.0] * 3, [1.0, 1e6, 1e6], [1e6] * 3], device=DEVICE)
    leaves = [candidates.requires_grad_(), temperature.requires_grad_()]
    (rows,) = fast(anchors, *leaves, pairs, False)
    grad_candidates, grad_temperature = torch.autograd.grad(rows, leaves, grad)
    torch.testing.assert_close(grad_candidates, anchors[:1] / temperature.detach())
    torch.testing.assert_close(grad_temperature, -logits[0] / temperature.detach())


@pytest.mark.parametrize("anchors, candidates", [(0, 5), (5, 0), (0, 0)])
def test_triton_empty_sizes(anchors, candidates):
    ids = torch.zeros(5, dtype=torch.int64, device=DEVICE)
    pairs = ids[:anchors], ids[:candidates], None
    rows, columns, *gradients = results(kernel_inputs(anchors, candidates, 8), pairs)
    for statistics, size in ((rows, anchors), (columns, candidates)):
        assert statistics.shape == (3, size)
        assert (statistics[0] == -torch.inf).all() and (statistics[1:] == 0).all()
    assert [gradient.shape for gradient in gradients] == [(anchors, 8), (candidates, 8), ()]
    assert all((gradient == 0).all() for gradient in gradients)


@triton_test
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_triton_large_logits_stay_finite(dtype):
    anchors = torch.tensor([[100.0], [-100.0]], device=DEVICE, dtype=dtype)
    candidates = torch.tensor([[1.0], [-1.0], [0.5]], device=DEVICE, dtype=dtype)
    ids = torch.arange(3, device=DEVICE)
    temperature = torch.tensor(0.01, device=DEVICE)
    leaves = [tensor.requires_grad_() for tensor in (anchors, candidates, temperature)]
    rows, columns = fast(*leaves, (ids[:2], ids, None), True)
    torch.testing.assert_close(rows[:2], torch.full_like(rows[:2], 1e4))
    torch.testing.assert_close(columns[0], torch.tensor([1e4, 1e4, 5e3], device=DEVICE))
    gradients = torch.autograd.grad(rows[0].sum() + columns[1].sum(), leaves)
    # Each row has all of its weight on its own candidate, and so does the mean of the first two columns.
    expected = ([[200.0], [-200.0]], [[2e4], [-2e4], [0.0]], -4e6)
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, torch.tensor(value, device=DEVICE, dtype=gradient.dtype))


def test_triton_propagates_nan():
    inputs, pairs = kernel_inputs(3, 5, 8), pair_arguments("index", 3, 5)
    inputs[1][4, 0] = torch.nan
    rows, columns = fast(*inputs, pairs, True)
    assert rows[0].isnan().all(), "every row contains the pair"
    assert columns[0].isnan().tolist() == [False, False, False, False, True]


def test_triton_other_sizes_do_not_recompile():
    device = DeviceSpec("nvidia", 227 * 1024)

    def compile_keys(anchors, candidates):
        def meta(dtype, *shape):
            return torch.empty(shape, dtype=dtype, device="meta")

        vectors = [meta(torch.bfloat16, size, 64) for size in (anchors, candidates)]
        ids = [meta(torch.int64, size) for size in (anchors, candidates)]
        arguments = Arguments(*vectors, *ids, None, meta(torch.float32), True)
        sides = kernels.Sides(*(meta(torch.float32, 3, size) for size in (anchors, candidates)))
        for transposed in (False, True):
            inputs = kernels.Inputs(arguments, transposed)
            grad_rows = torch.empty_like(inputs.rows)
            for launch in (
                *kernels.forward_launches(inputs, device, meta(torch.float32, 3, len(inputs.rows))),
                kernels.backward_launch(inputs, device, sides, grad_rows, needs_inner=True)[0],
            ):
                ints = {name for name, value in launch.arguments.items() if isinstance(value, int)}
                yield launch.constants, launch.options(), ints

    small, large = list(compile_keys(1000, 1001)), list(compile_keys(100_000, 65_536))
    assert small == large
    assert all(ints == set(kernels.kernels.SIZES) for _, _, ints in small)


def test_configs_support_any_number_of_channels():
    for vendor, kib in (("nvidia", 99), ("nvidia", 163), ("nvidia", 227), ("amd", 64), ("interpreter", 99)):
        for dtype in (torch.float32, torch.bfloat16):
            for channels in (1, 33, 100, 256, 260, 1536, 4000):
                for kernel in ("forward", "backward"):
                    config = configs.find_config(kernel, dtype, channels, DeviceSpec(vendor, kib * 1024))
                    chunks = config.chunks(channels)
                    assert chunks % config.channel_splits == 0
                    assert channels <= chunks * config.block_c < channels + config.channel_splits * config.block_c


@pytest.mark.parametrize("backend", FUSED)
@SYMMETRIC
@EXCLUDING
def test_opcheck(device, backend, symmetric, excluding):
    operator = OPERATORS[f"tracklet_nce_{backend}"]
    anchors, candidates, temperature = operator_inputs(device)
    excluded = torch.randint(-1, 9, (6,), device=device) if excluding else None
    arguments = Arguments(
        anchors, candidates, *positives_of("labels", 6, 9, device, 2), excluded, temperature, symmetric
    )
    assert set(opcheck(operator.forward, arguments).values()) == {"SUCCESS"}
    saved = [tensor.detach() for tensor in operator.forward(*arguments)]
    arguments = [value.detach() if isinstance(value, Tensor) else value for value in arguments]
    for needs in ([True, True, True], [True, False, False], [False, True, True], [False, False, True]):
        grads = [torch.randn_like(saved[0]), torch.randn_like(saved[1]) if symmetric else None]
        assert set(opcheck(operator.backward, (*grads, *arguments, *saved, needs)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("output", [0, 1, None])
def test_any_gradient_of_the_statistics(output):
    """The gradient of the number of positives is zero, and the others need not be those of a loss."""
    labels = positives_of("labels", 6, 9)

    def call(anchors, candidates, temperature):
        operator = OPERATORS["tracklet_nce_torch"].forward
        statistics = operator(anchors, candidates, *labels, None, temperature, True)
        return statistics if output is None else statistics[output]

    assert gradcheck(call, operator_inputs(dtype=torch.float64))


def test_vmap_computes_the_loss_of_each_batch():
    _, candidates, _ = (tensor.detach() for tensor in operator_inputs())
    index, batches = positives_of("index", 6, 9), torch.randn(2, 6, 8)

    def loss(anchors):
        return tracklet_nce(anchors, candidates, index, temperature=1.0)

    torch.testing.assert_close(vmap(loss)(batches), torch.stack([loss(anchors) for anchors in batches]))


@requires_gpu
@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("form", FORMS)
def test_cuda_graph_and_synchronization(backend, form):
    excluded = torch.arange(6, device="cuda") if form == "labels" else None
    call = loss_of(backend, positives_of(form, 6, 9, "cuda"), symmetric=True, excluded=excluded)
    assert_captured_in_cuda_graph(call, operator_inputs("cuda"))
