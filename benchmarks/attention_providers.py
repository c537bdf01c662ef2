"""The ways to compute a cross-attention that are measured against each other, from the same inputs and weights."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.nn import functional as F

from art_kernels import RegionCrossAttention, backends
from art_kernels.region_attention.routes import cheaper_route
from benchmarks.attention_shapes import AttentionShape

BASELINE = "nn.MultiheadAttention"
OURS = "art_kernels"
PROVIDERS = ("reference", BASELINE, "sdpa", "sdpa compiled", OURS)

#: The compiler behind torch.compile.
COMPILER = "inductor"
_LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Inputs:
    """Of one attention, drawn from the normal distribution.

    Attributes:
        queries: [F,K,E], requires a gradient.
        regions: [F,N,C], requires a gradient.
        grad_output: [F,K,E].
        weights: the state dict of `nn.MultiheadAttention`, its biases not zero.
    """

    queries: Tensor
    regions: Tensor
    grad_output: Tensor
    weights: Mapping[str, Tensor]

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same numbers in another dtype."""
        return Inputs(
            self.queries.detach().to(dtype).requires_grad_(),
            self.regions.detach().to(dtype).requires_grad_(),
            self.grad_output.to(dtype),
            {name: weight.to(dtype) for name, weight in self.weights.items()},
        )


def draw_inputs(shape: AttentionShape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """The inputs of `shape`; the same seed gives the same ones on one kind of device."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device)

    weights = {}
    for name, weight in _multihead_attention(shape, torch.device("meta"), torch.float32).state_dict().items():
        spread = 0.1 if weight.dim() == 1 else (2 / sum(weight.shape)) ** 0.5  # Xavier's, of a joint weight's too
        weights[name] = spread * normal(*weight.shape)
    queries, regions = (
        normal(shape.frames, shape.queries, shape.embed_dim),
        normal(shape.frames, shape.regions, shape.region_dim),
    )
    return Inputs(queries, regions, torch.randn_like(queries), weights).to(dtype)


def build(provider: str, shape: AttentionShape, inputs: Inputs) -> nn.Module:
    """The module (queries [F,K,E], regions [F,N,C]) → [F,K,E] of a provider; its `attention` holds the weights."""
    module = _MODULES[provider](shape, inputs.regions.device, inputs.regions.dtype)
    module.attention.load_state_dict(inputs.weights)
    if provider == "sdpa compiled":
        torch._dynamo.reset()  # of earlier shapes: each is compiled for itself
        torch._functorch.config.donated_buffer = False  # backward is run several times on one graph
        module.compile(backend=COMPILER, dynamic=False)
    return module


def refusal(provider: str, device: torch.device) -> str | None:
    """Why a provider cannot be measured on this machine, or None where it can."""
    if provider != "sdpa compiled":
        return None
    if device.type == "cuda":
        try:
            importlib.import_module("triton")
        except ImportError as error:
            return f"torch.compile needs Triton on CUDA, which cannot be imported: {error}"
        return None
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler on a CPU, and there is no {compiler}"
    return None


def served_by(provider: str, shape: AttentionShape, regions: Tensor) -> str | None:
    """Route and backend that this package takes; None of a provider that has none to choose."""
    if provider == "reference":
        return "folded, reference"
    if provider != OURS:
        return None
    route = cheaper_route(
        queries=shape.queries,
        regions=shape.regions,
        region_dim=shape.region_dim,
        embed_dim=shape.embed_dim,
        num_heads=shape.num_heads,
    )
    return route if route == "projected" else f"{route}, {backends.choose('region_attention', regions)}"


def _multihead_attention(shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(
        shape.embed_dim,
        shape.num_heads,
        kdim=shape.region_dim,
        vdim=shape.region_dim,
        batch_first=True,
        device=device,
        dtype=dtype,
    )


class MultiheadAttention(nn.Module):
    """`nn.MultiheadAttention`, after `F.layer_norm` where the regions are to be normalised."""

    def __init__(self, shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention = _multihead_attention(shape, device, dtype)
        self.norm_regions = shape.norm_regions

    def prepared(self, regions: Tensor) -> Tensor:
        return F.layer_norm(regions, regions.shape[-1:], eps=_LAYER_NORM_EPS) if self.norm_regions else regions

    def forward(self, queries: Tensor, regions: Tensor) -> Tensor:
        regions = self.prepared(regions)
        return self.attention(queries, regions, regions, need_weights=False)[0]


class ScaledDotProduct(MultiheadAttention):
    """Projections, `F.scaled_dot_product_attention`, output projection: what one writes by hand."""

    def forward(self, queries: Tensor, regions: Tensor) -> Tensor:
        regions, attention = self.prepared(regions), self.attention
        if attention.in_proj_weight is not None:
            w_q, w_k, w_v = attention.in_proj_weight.chunk(3)
        else:
            w_q, w_k, w_v = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
        b_q, b_k, b_v = attention.in_proj_bias.chunk(3)
        q, k, v = (
            projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # [F, H, K or N, D]
            for projected in (F.linear(queries, w_q, b_q), F.linear(regions, w_k, b_k), F.linear(regions, w_v, b_v))
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return attention.out_proj(attended.transpose(1, 2).flatten(2))


class RegionAttention(nn.Module):
    """This package's module; `options` go to its call."""

    def __init__(self, shape: AttentionShape, device: torch.device, dtype: torch.dtype, **options: Any) -> None:
        super().__init__()
        self.attention = RegionCrossAttention(
            shape.embed_dim,
            shape.num_heads,
            region_dim=shape.region_dim,
            norm_regions=shape.norm_regions,
            device=device,
            dtype=dtype,
        )
        self.options = options

    def forward(self, queries: Tensor, regions: Tensor) -> Tensor:
        return self.attention(queries, regions, **self.options)[0]


def _definition(shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> RegionAttention:
    return RegionAttention(shape, device, dtype, route="folded", backend="reference")


_MODULES: dict[str, Callable[[AttentionShape, torch.device, torch.dtype], Any]] = {
    "reference": _definition,
    BASELINE: MultiheadAttention,
    "sdpa": ScaledDotProduct,
    "sdpa compiled": ScaledDotProduct,
    OURS: RegionAttention,
}
