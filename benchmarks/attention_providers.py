"""Cross-attention: the measured shapes, their lower bounds, the providers, and the passes that are timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.nn import functional as F

from art_kernels import RegionCrossAttention
from art_kernels.region_attention.module import cheaper_route
from benchmarks.common.measure import COMPILERS, OURS, chosen_backend, compiler_unsupported_reason, relative_error

PASSES = ("forward", "backward", "both")
BASELINE = "nn.MultiheadAttention"
SDPA, SDPA_COMPILED = "sdpa", "sdpa compiled"
FOLDED, FOLDED_COMPILED = "folded", "folded compiled"
PROVIDERS = (BASELINE, SDPA, SDPA_COMPILED, FOLDED, FOLDED_COMPILED, OURS)
_LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class AttentionShape:
    """Cross-attention from K queries to N regions in each of F frames.

    Attributes:
        name: on the command line.
        frames: F on a GPU.
        cpu_frames: F on a CPU.
        queries: K per frame.
        regions: N per frame.
        region_dim: C, channels of a region.
        embed_dim: E, channels of a query and of the output.
        num_heads: H.
        norm_regions: whether the regions are layer-normalized first, without affine parameters.
    """

    name: str
    frames: int
    cpu_frames: int
    queries: int
    regions: int
    region_dim: int
    embed_dim: int
    num_heads: int
    norm_regions: bool = False

    def sized(self, device: torch.device, *, quick: bool = False) -> AttentionShape:
        """Return the shape with the number of frames for `device`; with `quick` a minimal one, which keeps the channels
        and heads and is small enough for Triton's interpreter."""
        if quick:
            return replace(self, frames=1, queries=min(self.queries, 3), regions=min(self.regions, 19))
        return replace(self, frames=self.cpu_frames if device.type == "cpu" else self.frames)


#: Few queries over many tokens: ART, UniFormerV2's global blocks, DETR, BLIP-2 and attention pooling.
SHAPES = {
    shape.name: shape
    for shape in (
        AttentionShape("art-256", 384, 128, 2, 196, 256, 256, 8),
        AttentionShape("art-768", 384, 128, 2, 196, 768, 768, 8),
        AttentionShape("uniformerv2-b", 8, 8, 1, 1576, 768, 768, 12, norm_regions=True),
        AttentionShape("uniformerv2-l", 8, 8, 1, 4112, 1024, 1024, 16, norm_regions=True),
        AttentionShape("detr", 8, 8, 100, 1064, 256, 256, 8),
        AttentionShape("q-former", 8, 8, 32, 257, 1408, 768, 12),
        AttentionShape("attention-pooling", 256, 32, 1, 257, 1024, 1024, 16),
    )
}


@dataclass(frozen=True)
class Floor:
    """Lower bound of a pass.

    Attributes:
        bytes: every input read once and every result written once; no intermediate is stored.
        operations: multiplications and additions of the folded form, which projects no region.
    """

    bytes: int
    operations: int


def floor(shape: AttentionShape, dtype: torch.dtype, pass_name: str) -> Floor:
    """Return the lower bound of a pass over tensors of `dtype`.

    Forward reads the regions, queries and weights once and writes the output. Backward reads them again together with
    the gradient of the output, and writes the gradients of regions, queries and weights. Operations are those of the
    matrix products; backward has two for each of forward (recomputing the scores is not counted).

    Args:
        shape: the attention.
        dtype: of regions, queries and weights.
        pass_name: "forward", "backward", or "both" for their sum.
    """
    if pass_name == "both":
        forward, backward = floor(shape, dtype, "forward"), floor(shape, dtype, "backward")
        return Floor(forward.bytes + backward.bytes, forward.operations + backward.operations)
    queries = shape.frames * shape.queries * shape.embed_dim
    regions = shape.frames * shape.regions * shape.region_dim
    # W_Q and W_O [E,E], W_K and W_V [E,C], each with a bias [E].
    inputs = regions + queries + 2 * shape.embed_dim * (shape.embed_dim + shape.region_dim) + 4 * shape.embed_dim
    # W_Q, W_K folded into the queries, scores, pooling, W_V applied to the pooled regions, W_O.
    projections = 4 * shape.queries * shape.embed_dim * (shape.embed_dim + shape.region_dim)
    attention = 4 * shape.num_heads * shape.queries * shape.regions * shape.region_dim
    operations = shape.frames * (projections + attention)
    if pass_name == "forward":
        return Floor(dtype.itemsize * (inputs + queries), operations)
    return Floor(dtype.itemsize * (2 * inputs + queries), 2 * operations)


def projected_operations(shape: AttentionShape) -> int:
    """Return the forward operations if every region is projected to a key and a value (`nn.MultiheadAttention`)."""
    keys_and_values = 4 * shape.regions * shape.region_dim * shape.embed_dim
    queries_and_output = 4 * shape.queries * shape.embed_dim * shape.embed_dim
    attention = 4 * shape.queries * shape.regions * shape.embed_dim
    return shape.frames * (keys_and_values + queries_and_output + attention)


@dataclass(frozen=True)
class Inputs:
    """Inputs of one attention, drawn from the normal distribution.

    Attributes:
        queries: [F,K,E], requires a gradient.
        regions: [F,N,C], requires a gradient.
        grad_output: [F,K,E].
        weights: state dict of `nn.MultiheadAttention` with nonzero biases.
    """

    queries: Tensor
    regions: Tensor
    grad_output: Tensor
    weights: Mapping[str, Tensor]

    def to(self, dtype: torch.dtype) -> Inputs:
        """Return the same numbers in another dtype."""
        return Inputs(
            self.queries.detach().to(dtype).requires_grad_(),
            self.regions.detach().to(dtype).requires_grad_(),
            self.grad_output.to(dtype),
            {name: weight.to(dtype) for name, weight in self.weights.items()},
        )


def draw_inputs(shape: AttentionShape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """Draw the inputs of `shape`, deterministically for a seed and kind of device."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device)

    weights = {}
    for name, weight in MultiheadAttention(shape, torch.device("meta"), torch.float32).attention.state_dict().items():
        std = 0.1 if weight.dim() == 1 else (2 / sum(weight.shape)) ** 0.5  # Xavier initialization
        weights[name] = std * normal(*weight.shape)
    queries = normal(shape.frames, shape.queries, shape.embed_dim)
    regions = normal(shape.frames, shape.regions, shape.region_dim)
    return Inputs(queries, regions, torch.randn_like(queries), weights).to(dtype)


class MultiheadAttention(nn.Module):
    """`nn.MultiheadAttention`, after `F.layer_norm` if the regions are to be normalized."""

    def __init__(self, shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            shape.embed_dim, shape.num_heads, kdim=shape.region_dim, vdim=shape.region_dim, batch_first=True,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.norm_regions = shape.norm_regions

    def normalized(self, regions: Tensor) -> Tensor:
        return F.layer_norm(regions, regions.shape[-1:], eps=_LAYER_NORM_EPS) if self.norm_regions else regions

    def forward(self, queries: Tensor, regions: Tensor) -> Tensor:
        regions = self.normalized(regions)
        return self.attention(queries, regions, regions, need_weights=False)[0]

    def projections(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the weights and the biases of the query, key and value projections."""
        attention = self.attention
        if attention.in_proj_weight is not None:
            weights = attention.in_proj_weight.chunk(3)
        else:
            weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        return weights, attention.in_proj_bias.chunk(3)


class ScaledDotProduct(MultiheadAttention):
    """Projections, `F.scaled_dot_product_attention`, output projection."""

    def forward(self, queries: Tensor, regions: Tensor) -> Tensor:
        regions = self.normalized(regions)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.attention.num_heads, -1)).transpose(1, 2)  # [F, H, K|N, D]
            for x, weight, bias in zip((queries, regions, regions), *self.projections(), strict=True)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.attention.out_proj(attended.transpose(1, 2).flatten(2))


class Folded(MultiheadAttention):
    """The folded form in plain PyTorch, without anything of this package.

    W_K is folded into the queries and W_V is applied to the pooled regions, so no region is projected. b_K adds the
    same number to all scores of a query and cancels in the softmax; b_V is added as it is because the weights sum to 1.
    """

    def forward(self, queries: Tensor, regions: Tensor) -> Tensor:
        heads = self.attention.num_heads
        (w_q, w_k, w_v), (b_q, _, b_v) = self.projections()
        w_k, w_v = (weight.unflatten(0, (heads, -1)) for weight in (w_k, w_v))  # [H, D, C]
        regions = self.normalized(regions)
        q = F.linear(queries, w_q, b_q).unflatten(-1, (heads, -1)) * w_k.shape[1] ** -0.5  # [F, K, H, D]
        folded = torch.einsum("fkhd,hdc->fhkc", q, w_k).flatten(1, 2)  # [F, H·K, C]
        pooled = torch.bmm(torch.bmm(folded, regions.mT).softmax(-1), regions).unflatten(1, (heads, -1))
        values = torch.einsum("fhkc,hdc->fkhd", pooled, w_v).flatten(2)
        return self.attention.out_proj(values + b_v)


class RegionAttention(nn.Module):
    """`RegionCrossAttention`; `options` are passed to its call."""

    def __init__(self, shape: AttentionShape, device: torch.device, dtype: torch.dtype, **options: Any) -> None:
        super().__init__()
        self.attention = RegionCrossAttention(
            shape.embed_dim, shape.num_heads, region_dim=shape.region_dim, norm_regions=shape.norm_regions,
            device=device, dtype=dtype,
        )  # fmt: skip
        self.options = options

    def forward(self, queries: Tensor, regions: Tensor) -> Tensor:
        return self.attention(queries, regions, **self.options)[0]


MODULES: dict[str, Callable[[AttentionShape, torch.device, torch.dtype], Any]] = {
    BASELINE: MultiheadAttention,
    SDPA: ScaledDotProduct,
    SDPA_COMPILED: ScaledDotProduct,
    FOLDED: Folded,
    FOLDED_COMPILED: Folded,
    OURS: RegionAttention,
}


def build(provider: str, shape: AttentionShape, inputs: Inputs, *, quick: bool = False) -> nn.Module:
    """Return a provider's module, which maps queries [F,K,E] and regions [F,N,C] to [F,K,E]; with `quick` nothing is
    compiled to machine code."""
    module = MODULES[provider](shape, inputs.regions.device, inputs.regions.dtype)
    module.attention.load_state_dict(inputs.weights)
    if provider.endswith("compiled"):
        torch._dynamo.reset()  # each shape is compiled by itself
        torch._functorch.config.donated_buffer = False  # backward runs several times on one graph
        module.compile(backend=COMPILERS[quick], dynamic=False)
    return module


def unsupported_reason(provider: str, device: torch.device) -> str | None:
    """Return why a provider cannot run on this machine, or None if it can."""
    if not provider.endswith("compiled"):
        return None
    return compiler_unsupported_reason(device)


def route_of(shape: AttentionShape, queries: int | None = None) -> str:
    """Return the route that `RegionCrossAttention` selects, "folded" or "projected", by default for `shape.queries`."""
    return cheaper_route(
        queries=queries or shape.queries, regions=shape.regions, region_dim=shape.region_dim,
        embed_dim=shape.embed_dim, num_heads=shape.num_heads,
    )  # fmt: skip


def served_by(provider: str, shape: AttentionShape, regions: Tensor) -> str | None:
    """Return the route and backend of this package's provider; None for others."""
    if provider != OURS:
        return None
    route = route_of(shape)
    return route if route == "projected" else f"{route}, {chosen_backend('region_attention', regions)}"


def pass_call(pass_name: str, module: nn.Module, inputs: Inputs) -> Callable[[], object]:
    """Return a callable that runs one pass.

    "forward" runs without a graph; "backward" computes the gradients of queries, regions and all weights of a graph
    that is built once and retained; "both" builds the graph and computes its gradients each time.
    """
    queries, regions, grad_output = inputs.queries, inputs.regions, inputs.grad_output
    leaves = [queries, regions, *module.parameters()]
    if pass_name == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return module(queries, regions)

        return forward
    if pass_name == "backward":
        output = module(queries, regions)
        return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)
    return lambda: torch.autograd.grad(module(queries, regions), leaves, grad_output)


def values_and_gradients(module: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Return the output and the gradients of queries, regions and each weight, for `inputs.grad_output`."""
    output = module(inputs.queries, inputs.regions)
    leaves = {"queries": inputs.queries, "regions": inputs.regions, **dict(module.named_parameters())}
    gradients = torch.autograd.grad(output, list(leaves.values()), inputs.grad_output)
    named = {f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"output": output.detach(), **named}


def oracle(shape: AttentionShape, inputs: Inputs) -> dict[str, Tensor]:
    """Return the values of `nn.MultiheadAttention` in float64 for the same numbers."""
    inputs = inputs.to(torch.float64)
    return values_and_gradients(build(BASELINE, shape, inputs), inputs)


def errors(values: Mapping[str, Tensor], true_values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the largest relative error of "output", "grad_queries", "grad_regions" and "grad_weights" (the worst
    weight); NaN if a value is NaN."""
    found = {"output": 0.0, "grad_queries": 0.0, "grad_regions": 0.0, "grad_weights": 0.0}
    for name, true_value in true_values.items():
        kind = name if name in found else "grad_weights"
        error = relative_error(values[name], true_value)
        if math.isnan(error) or error > found[kind]:  # False if found[kind] is NaN
            found[kind] = error
    return found
