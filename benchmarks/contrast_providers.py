"""Who computes a contrast, or pools: the paper's text written down, what a user would pick, and art_kernels."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from art_kernels import backends, mtc_loss, pool_tracklets, tracklet_nce
from art_kernels.tracklet_contrast import reference
from art_kernels.tracklet_pooling import reference as pooling
from benchmarks.contrast_shapes import ContrastShape

Loss = Callable[..., Tensor]

OURS = "art_kernels"
#: Ours, forward and backward captured once and replayed: what launching costs is gone.
OURS_REPLAYED = "art_kernels, CUDA graph"
#: By operation, the one that the others are compared with first.
PROVIDERS: dict[str, tuple[str, ...]] = {
    "mtc_loss": ("naive", "vectorised", "vectorised compiled", OURS, OURS_REPLAYED),
    "pool_tracklets": ("naive", "vectorised", "vectorised compiled", OURS, OURS_REPLAYED),
    "tracklet_nce": ("materialised", "materialised compiled", "memeff", "siglip-kernel", OURS),
}
MARGIN, TEMPERATURE, POOLING_TEMPERATURE = 0.6, 0.07, 0.01
COMPILER = "inductor"


def draw_inputs(shape: ContrastShape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Leaves: responses, and aggregated tracklets or as many semantics; or anchors and candidates of unit length."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device)

    if shape.operation != "tracklet_nce":
        responses = draw(*shape.sizes) + draw(shape.sizes[-1])  # cosines on both sides of the margin
        inputs = [responses, responses.mean(1) + 0.1 * draw(shape.sizes[0], *shape.sizes[2:])]
    else:
        anchors = F.normalize(draw(*shape.sizes), dim=-1)
        inputs = [anchors, F.normalize(anchors + F.normalize(draw(*shape.sizes), dim=-1), dim=-1)]
    return [tensor.to(dtype).requires_grad_() for tensor in inputs]


def build(provider: str, shape: ContrastShape) -> Loss:
    """The loss as a function of the inputs; a symmetric contrast of pairs for `tracklet_nce`."""
    if provider.endswith("compiled"):
        config = importlib.import_module("torch._functorch.config")
        config.donated_buffer = False  # backward is run several times on one graph
        return torch.compile(build(provider.removesuffix(" compiled"), shape), backend=COMPILER)
    if shape.operation == "mtc_loss":
        return {"naive": naive, "vectorised": vectorised}.get(provider, _ours_mtc)
    if shape.operation == "pool_tracklets":
        return {"naive": pooled_naive, "vectorised": pooled_vectorised}.get(provider, _ours_pooled)
    if provider == "memeff":
        peer = importlib.import_module("memeff").MemoryEfficientCLIPLoss
        return peer(temperature=TEMPERATURE, normalized_inputs=True, stable=False)
    return {"materialised": materialised}.get(provider, _ours_nce)


def refusal(provider: str, shape: ContrastShape, device: torch.device) -> str | None:
    """Why a provider is left out, or None."""
    if provider.endswith("compiled") and device.type == "cpu" and shutil.which("c++") is None:
        return "torch.compile needs a C++ compiler on the CPU, and there is none"
    if provider == OURS_REPLAYED and device.type != "cuda":
        return "CUDA graphs need a GPU"
    if provider == "siglip-kernel":
        return "its loss is another one: a sigmoid for each pair, no softmax"
    if provider == "memeff":
        if device.type != "cuda":
            return "its kernels need a GPU"
        if importlib.util.find_spec("memeff") is None:
            return "it is not installed: pip install memeff"
    if provider.startswith("materialised") and device.type == "cuda":
        needed = 5 * 4 * shape.sizes[0] ** 2  # logits, their softmax and gradient, some in two dtypes
        free = torch.cuda.mem_get_info(device)[0]
        if needed > free:
            return f"its matrices would take about {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are free"
    return None


def served_by(provider: str, shape: ContrastShape, inputs: Sequence[Tensor]) -> str | None:
    """The backend, of ours."""
    decides = inputs[1] if shape.operation == "pool_tracklets" else inputs[0]  # the number of semantics
    return backends.choose(shape.operation, decides) if provider in (OURS, OURS_REPLAYED) else None


def naive(responses: Tensor, aggregated: Tensor) -> Tensor:
    """The paper's text written down: a loop over frames and one over steps, with all cosines as matrices."""
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


def vectorised(responses: Tensor, aggregated: Tensor) -> Tensor:
    """All frames at once, in float32 as ours computes."""
    return sum(reference.mtc_loss(responses.float(), aggregated.float(), MARGIN))


def _ours_mtc(responses: Tensor, aggregated: Tensor) -> Tensor:
    return mtc_loss(responses, aggregated, margin=MARGIN).total


def pooled_naive(responses: Tensor, semantics: Tensor) -> Tensor:
    """The paper's text written down, loops over tracklets and semantics; of what is pooled the mean square."""
    pooled = []
    for k in range(responses.shape[2]):
        tracklet = responses[:, :, k].float()
        saliency = tracklet.new_zeros(tracklet.shape[:2])
        for j in range(semantics.shape[1]):
            similarity = F.cosine_similarity(tracklet, semantics[:, None, j].float(), dim=-1)
            saliency = saliency + (similarity / POOLING_TEMPERATURE).softmax(1)
        pooled.append((saliency[..., None] * tracklet).sum(1) / semantics.shape[1])
    return torch.stack(pooled, 1).square().mean()


def pooled_vectorised(responses: Tensor, semantics: Tensor) -> Tensor:
    """All tracklets and semantics at once, in float32 as ours computes."""
    return pooling.pool_tracklets(responses.float(), semantics.float(), POOLING_TEMPERATURE)[0].square().mean()


def _ours_pooled(responses: Tensor, semantics: Tensor) -> Tensor:
    return pool_tracklets(responses, semantics, temperature=POOLING_TEMPERATURE)[0].float().square().mean()


def materialised(anchors: Tensor, candidates: Tensor) -> Tensor:
    """The matrix of all logits, and the cross-entropy of its rows and columns."""
    logits = (anchors @ candidates.mT).float() / TEMPERATURE
    index = torch.arange(len(anchors), device=anchors.device)
    return (F.cross_entropy(logits, index) + F.cross_entropy(logits.mT, index)) / 2


def _ours_nce(anchors: Tensor, candidates: Tensor) -> Tensor:
    index = torch.arange(len(anchors), device=anchors.device)
    return tracklet_nce(anchors, candidates, index, temperature=TEMPERATURE, symmetric=True)


def truth(shape: ContrastShape, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The loss and its gradients in float64: the definition, or where its matrices are too large that in blocks."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs]
    if shape.operation == "mtc_loss":
        loss = sum(reference.mtc_loss(*leaves, MARGIN))
    elif shape.operation == "pool_tracklets":
        loss = pooling.pool_tracklets(*leaves, POOLING_TEMPERATURE)[0].square().mean()
    else:
        index = torch.arange(len(leaves[0]), device=leaves[0].device)
        backend = "reference" if len(leaves[0]) <= 8192 else "native"
        loss = tracklet_nce(*leaves, index, temperature=TEMPERATURE, symmetric=True, backend=backend)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]
