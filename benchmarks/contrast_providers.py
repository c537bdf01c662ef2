"""Contrast and pooling: the measured shapes, their lower bounds, the providers, and the passes that are timed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

from art_kernels import mtc_loss, pool_tracklets, tracklet_nce
from benchmarks.common.measure import COMPILERS, OURS, chosen_backend, compiler_unsupported_reason, relative_error

PASSES = ("forward", "backward", "both")
OURS_REPLAYED = "art_kernels, CUDA graph"
#: By operation; the first is the baseline.
PROVIDERS: dict[str, tuple[str, ...]] = {
    "mtc_loss": ("naive", "vectorized", "vectorized compiled", OURS, OURS_REPLAYED),
    "pool_tracklets": ("naive", "vectorized", "vectorized compiled", OURS, OURS_REPLAYED),
    "tracklet_nce": ("materialized", "materialized compiled", "memeff", OURS),
}
MARGIN, TEMPERATURE, POOLING_TEMPERATURE = 0.6, 0.07, 0.01

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class ContrastShape:
    """One problem.

    Attributes:
        name: on the command line.
        operation: a key of `PROVIDERS`.
        sizes: responses [B,T,K,C] (for pooling with K semantics), or anchors and the same number of candidates [M,C].
        cpu_first: the first size on a CPU; 0 if the shape is not measured there.
    """

    name: str
    operation: str
    sizes: tuple[int, ...]
    cpu_first: int

    def sized(self, device: torch.device, *, quick: bool = False) -> ContrastShape | None:
        """Return the shape for a device, or None if it is not measured there; with `quick` a minimal one, which keeps
        the channels and is small enough for Triton's interpreter."""
        if quick:
            limits = (21,) if self.operation == "tracklet_nce" else (1, 3, 3)
            sizes = tuple(min(size, limit) for size, limit in zip(self.sizes, limits, strict=False))
            return replace(self, sizes=(*sizes, self.sizes[-1]))
        first = self.sizes[0] if device.type == "cuda" else self.cpu_first
        return replace(self, sizes=(first, *self.sizes[1:])) if first else None

    def moved_bytes(self, dtype: torch.dtype, pass_name: str) -> int:
        """Return the minimum number of bytes moved by a pass.

        Forward reads the inputs once; backward reads them and writes a gradient of each. The losses compute gradients
        together with the value, so "both" reads once and writes once; the backward pass of pooling reads again.
        """
        elements = torch.Size(self.sizes).numel()
        if self.operation == "pool_tracklets":
            videos, frames, count, channels = self.sizes
            inputs = elements + videos * count * channels
            outputs = videos * count * (channels + frames)  # aggregated tracklets and saliency
            forward, backward = inputs + outputs, 2 * inputs + outputs
            return dtype.itemsize * {"forward": forward, "backward": backward, "both": forward + backward}[pass_name]
        inputs = elements + elements // self.sizes[1] if self.operation == "mtc_loss" else 2 * elements
        return inputs * dtype.itemsize * {"forward": 1, "backward": 2, "both": 2}[pass_name]

    def operations(self, pass_name: str) -> int:
        """Return the minimum number of operations: dot products of pairs, and for the gradients one more product per
        side; for pooling also norms and weighted sums, which its backward pass computes again."""
        *others, channels = self.sizes
        if self.operation == "pool_tracklets":
            semantics = others[-1]
            forward, backward = semantics + 2, 3 * semantics + 4
            factor = {"forward": forward, "backward": backward, "both": forward + backward}[pass_name]
            return 2 * torch.Size(self.sizes).numel() * factor
        if self.operation == "mtc_loss":
            videos, frames, count = others
            pairs = videos * (frames * count * count + frames * count + count * count)
        else:
            pairs = others[0] ** 2
        return 2 * pairs * channels * {"forward": 1, "backward": 2, "both": 3}[pass_name]

    def describe(self) -> str:
        """Return the sizes as text."""
        if self.operation != "tracklet_nce":
            return "{} videos, {} frames, {} tracklets of {}".format(*self.sizes)
        return "{0} anchors and {0} candidates of {1}".format(*self.sizes)


SHAPES = {
    shape.name: shape
    for shape in (
        ContrastShape("paper", "mtc_loss", (24, 16, 2, 256), 24),
        ContrastShape("batch", "mtc_loss", (256, 16, 8, 256), 64),
        ContrastShape("dense", "mtc_loss", (64, 64, 32, 256), 8),
        ContrastShape("pool-paper", "pool_tracklets", (24, 16, 2, 256), 24),
        ContrastShape("pool-batch", "pool_tracklets", (256, 16, 8, 256), 64),
        ContrastShape("pool-dense", "pool_tracklets", (64, 64, 32, 256), 8),
        ContrastShape("nce-4k", "tracklet_nce", (4096, 256), 4096),
        ContrastShape("nce-32k", "tracklet_nce", (32768, 256), 0),
        ContrastShape("nce-128k", "tracklet_nce", (131072, 256), 0),
    )
}


def errors(values: Sequence[Tensor], true_values: Sequence[Tensor]) -> dict[str, float]:
    """Return the relative error of the loss and of each gradient."""
    names = ("loss", *(f"grad_{index}" for index in range(len(values) - 1)))
    return {name: relative_error(*pair) for name, *pair in zip(names, values, true_values, strict=True)}


def pass_call(pass_name: str, loss: Loss, inputs: Sequence[Tensor]) -> Callable[[], object]:
    """Return a callable that runs "forward" without a graph, "backward" of a retained graph, or "both"."""
    if pass_name == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return loss(*inputs)

        return forward
    if pass_name == "backward":
        value = loss(*inputs)
        return lambda: torch.autograd.grad(value, inputs, retain_graph=True)
    return lambda: torch.autograd.grad(loss(*inputs), inputs)


def draw_inputs(shape: ContrastShape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Draw leaf tensors: responses, and aggregated tracklets or semantics; or unit-length anchors and candidates."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device)

    if shape.operation != "tracklet_nce":
        responses = normal(*shape.sizes) + normal(shape.sizes[-1])  # cosines on both sides of the margin
        inputs = [responses, responses.mean(1) + 0.1 * normal(shape.sizes[0], *shape.sizes[2:])]
    else:
        anchors = F.normalize(normal(*shape.sizes), dim=-1)
        inputs = [anchors, F.normalize(anchors + F.normalize(normal(*shape.sizes), dim=-1), dim=-1)]
    return [tensor.to(dtype).requires_grad_() for tensor in inputs]


def build(provider: str, shape: ContrastShape, *, quick: bool = False) -> Loss:
    """Return the loss of a provider as a function of the inputs; with `quick` nothing is compiled to machine code."""
    if provider.endswith("compiled"):
        torch._functorch.config.donated_buffer = False  # backward runs several times on one graph
        return torch.compile(build(provider.removesuffix(" compiled"), shape), backend=COMPILERS[quick])
    if provider == "memeff":
        peer = importlib.import_module("memeff").MemoryEfficientCLIPLoss
        return peer(temperature=TEMPERATURE, normalized_inputs=True, stable=False)
    return LOSSES[shape.operation, OURS if provider == OURS_REPLAYED else provider]


def unsupported_reason(provider: str, shape: ContrastShape, device: torch.device) -> str | None:
    """Return why a provider is skipped, or None."""
    if provider.endswith("compiled") and (reason := compiler_unsupported_reason(device)):
        return reason
    if provider == "memeff":
        if device.type != "cuda":
            return "its kernels require a GPU"
        if importlib.util.find_spec("memeff") is None:
            return "not installed: pip install memeff"
    if provider.startswith("materialized") and device.type == "cuda":
        needed = 5 * 4 * shape.sizes[0] ** 2  # logits, softmax and gradient, some of them in two dtypes
        free = torch.cuda.mem_get_info(device)[0]
        if needed > free:
            return f"its matrices would take about {needed / 2**30:.0f} GiB, but only {free / 2**30:.0f} GiB are free"
    return None


def served_by(provider: str, shape: ContrastShape, inputs: Sequence[Tensor]) -> str | None:
    """Return the backend of this package's providers; None for others."""
    selects = inputs[1] if shape.operation == "pool_tracklets" else inputs[0]  # the number of semantics
    return chosen_backend(shape.operation, selects) if provider.startswith(OURS) else None


def mtc_naive(responses: Tensor, aggregated: Tensor) -> Tensor:
    """Loop over frames and steps as in the equations of the paper, with all cosines as matrices."""
    frames, count = responses.shape[1:3]
    different = ~torch.eye(count, dtype=torch.bool, device=responses.device)
    spatial = responses.new_zeros((), dtype=torch.float32)
    for t in range(frames):
        units = F.normalize(responses[:, t].float(), dim=-1)
        similarity = units @ units.mT
        spatial = spatial + similarity[:, different].mean()
    temporal = responses.new_zeros((), dtype=torch.float32)
    for t in range(frames - 1):
        similarity = F.cosine_similarity(responses[:, t].float(), responses[:, t + 1].float(), dim=-1)
        temporal = temporal + (MARGIN - similarity).relu().mean()
    units = F.normalize(aggregated.float(), dim=-1)
    tracklet = (units @ units.mT)[:, different].mean()
    return spatial / frames + temporal / (frames - 1) + tracklet


def mtc_vectorized(responses: Tensor, aggregated: Tensor) -> Tensor:
    """Compute all frames at once."""
    units, tracklets = F.normalize(responses.float(), dim=-1), F.normalize(aggregated.float(), dim=-1)
    temporal = (MARGIN - (units[:, :-1] * units[:, 1:]).sum(-1)).relu().mean()
    return _mean_off_diagonal(units) + temporal + _mean_off_diagonal(tracklets)


def _mean_off_diagonal(units: Tensor) -> Tensor:
    similarity = units @ units.mT
    count = units.shape[-2]
    off_diagonal = similarity.sum((-2, -1)) - similarity.diagonal(dim1=-2, dim2=-1).sum(-1)
    return off_diagonal.mean() / (count * (count - 1))


def pool_naive(responses: Tensor, semantics: Tensor) -> Tensor:
    """Loop over tracklets and semantics as in the equations of the paper; return the mean square."""
    pooled = []
    for k in range(responses.shape[2]):
        tracklet = responses[:, :, k].float()
        saliency = tracklet.new_zeros(tracklet.shape[:2])
        for j in range(semantics.shape[1]):
            similarity = F.cosine_similarity(tracklet, semantics[:, None, j].float(), dim=-1)
            saliency = saliency + (similarity / POOLING_TEMPERATURE).softmax(1)
        pooled.append((saliency[..., None] * tracklet).sum(1) / semantics.shape[1])
    return torch.stack(pooled, 1).square().mean()


def pool_vectorized(responses: Tensor, semantics: Tensor) -> Tensor:
    """Pool all tracklets with all semantics at once; return the mean square."""
    responses, semantics = responses.float(), semantics.float()
    similarity = F.normalize(responses, dim=-1) @ F.normalize(semantics, dim=-1).mT[:, None]  # [B, T, K, J]
    saliency = (similarity / POOLING_TEMPERATURE).softmax(1).mean(-1)
    return (saliency[..., None] * responses).sum(1).square().mean()


def nce_materialized(anchors: Tensor, candidates: Tensor) -> Tensor:
    """Compute the matrix of all logits, and the cross-entropy of its rows and columns."""
    logits = (anchors @ candidates.mT).float() / TEMPERATURE
    index = torch.arange(len(anchors), device=anchors.device)
    return (F.cross_entropy(logits, index) + F.cross_entropy(logits.mT, index)) / 2


def _mtc_ours(responses: Tensor, aggregated: Tensor, backend: str | None = None) -> Tensor:
    return mtc_loss(responses, aggregated, margin=MARGIN, backend=backend).total


def _pool_ours(responses: Tensor, semantics: Tensor, backend: str | None = None) -> Tensor:
    pooled = pool_tracklets(responses, semantics, temperature=POOLING_TEMPERATURE, backend=backend)[0]
    return (pooled if pooled.dtype == torch.float64 else pooled.float()).square().mean()


def _nce_ours(anchors: Tensor, candidates: Tensor, backend: str | None = None) -> Tensor:
    index = torch.arange(len(anchors), device=anchors.device)
    return tracklet_nce(anchors, candidates, index, temperature=TEMPERATURE, symmetric=True, backend=backend)


LOSSES: dict[tuple[str, str], Loss] = {
    ("mtc_loss", "naive"): mtc_naive,
    ("mtc_loss", "vectorized"): mtc_vectorized,
    ("mtc_loss", OURS): _mtc_ours,
    ("pool_tracklets", "naive"): pool_naive,
    ("pool_tracklets", "vectorized"): pool_vectorized,
    ("pool_tracklets", OURS): _pool_ours,
    ("tracklet_nce", "materialized"): nce_materialized,
    ("tracklet_nce", OURS): _nce_ours,
}


def oracle(shape: ContrastShape, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the loss and its gradients in float64, by the reference, or in blocks if its matrices are too large."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs]
    in_blocks = shape.operation == "tracklet_nce" and len(leaves[0]) > 8192
    loss = LOSSES[shape.operation, OURS](*leaves, backend="torch" if in_blocks else "reference")
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]
