"""`RegionCrossAttention`: multi-head cross-attention that avoids projecting the regions when that is cheaper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from art_kernels._core.checks import (
    check_choice,
    check_count,
    check_flag,
    check_floating,
    check_mask,
    check_number,
    check_same_device,
    check_same_dtype,
    check_sizes,
)
from art_kernels._core.precision import accumulation_dtype, autocast_dtype
from art_kernels.region_attention.functional import attend
from art_kernels.region_attention.reference import Arguments

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_NAME = "RegionCrossAttention"
LAYER_NORM_EPS = 1e-5
ROUTES = ("folded", "projected")


def cheaper_route(*, queries: int, regions: int, region_dim: int, embed_dim: int, num_heads: int) -> str:
    """Return the route with fewer multiply-adds per frame: "folded" or "projected".

    Folded, W_K is applied to the queries and W_V to the pooled regions (K·E·C each), and scores and pooling use the C
    channels of the regions for each of the H·K rows. Projected, every region is projected to a key and a value (N·C·E
    each), and scores and pooling use E channels in total. W_Q and the output projection are common to both and not
    counted.

    Args:
        queries: K, queries per frame.
        regions: N, regions per frame.
        region_dim: C, channels of a region.
        embed_dim: E, channels of a query.
        num_heads: H.
    """
    folded = 2 * queries * region_dim * (embed_dim + num_heads * regions)
    projected = 2 * regions * embed_dim * (region_dim + queries)
    return "folded" if folded <= projected else "projected"


class RegionCrossAttention(nn.Module):
    """Multi-head cross-attention equivalent to `torch.nn.MultiheadAttention`, for few queries over many regions.

    Equivalent to `nn.MultiheadAttention(embed_dim, num_heads, dropout, bias, kdim=C, vdim=C, batch_first=True)` with
    the regions as keys and values. The parameters have the same names, shapes and initialization: the same seed creates
    the same parameters, and each module can load the other's state dict. A state dict with the separate projections
    q_proj_weight, k_proj_weight and v_proj_weight can also be loaded if this module has a single in_proj_weight.

    Args:
        embed_dim: E, channels of the queries and the output.
        num_heads: H; must divide `embed_dim`.
        region_dim: C, channels of the regions; None for `embed_dim`.
        bias: add biases in the input and output projections.
        dropout: dropout probability of the attention weights in training.
        norm_regions: layer-normalize the regions first, without affine parameters, with epsilon 1e-5.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, or `num_heads` does not divide `embed_dim`.

    Examples:
        >>> import torch
        >>> from art_kernels import RegionCrossAttention
        >>> theirs = torch.nn.MultiheadAttention(32, 4, kdim=48, vdim=48, batch_first=True)
        >>> ours = RegionCrossAttention(32, 4, region_dim=48)
        >>> ours.load_state_dict(theirs.state_dict())
        <All keys matched successfully>
        >>> queries, regions = torch.randn(4, 2, 32), torch.randn(4, 49, 48)
        >>> output, _ = ours(queries, regions)
        >>> torch.allclose(output, theirs(queries, regions, regions)[0], atol=1e-5)
        True
    """

    in_proj_weight: Tensor | None
    q_proj_weight: Tensor | None
    k_proj_weight: Tensor | None
    v_proj_weight: Tensor | None
    in_proj_bias: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        region_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        norm_regions: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_count(_NAME, "embed_dim", embed_dim)
        check_count(_NAME, "num_heads", num_heads)
        if embed_dim % num_heads != 0:
            raise ValueError(
                f"{_NAME}: embed_dim is {embed_dim} and num_heads is {num_heads}, expected a multiple; "
                f"choose a divisor of {embed_dim} as num_heads"
            )
        if region_dim is not None:
            check_count(_NAME, "region_dim", region_dim)
        check_flag(_NAME, "bias", bias)
        check_number(_NAME, "dropout", dropout, low=0.0, high=1.0)
        check_flag(_NAME, "norm_regions", norm_regions)
        super().__init__()
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.region_dim = embed_dim if region_dim is None else region_dim
        self.dropout = dropout
        self.norm_regions = norm_regions

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        joint = self.region_dim == embed_dim
        self.register_parameter("in_proj_weight", parameter(3 * embed_dim, embed_dim) if joint else None)
        self.register_parameter("q_proj_weight", None if joint else parameter(embed_dim, embed_dim))
        self.register_parameter("k_proj_weight", None if joint else parameter(embed_dim, self.region_dim))
        self.register_parameter("v_proj_weight", None if joint else parameter(embed_dim, self.region_dim))
        self.register_parameter("in_proj_bias", parameter(3 * embed_dim) if bias else None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.register_load_state_dict_pre_hook(_join_separate_projections)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize projections (Xavier uniform) and biases (zero), in the order of `nn.MultiheadAttention`."""
        for weight in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if weight is not None:
                nn.init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        queries: Float[Tensor, "f k e"],
        regions: Float[Tensor, "f n c"],
        *,
        key_position: Float[Tensor, "n c"] | None = None,
        region_mask: Bool[Tensor, "f n"] | None = None,
        return_map: bool = False,
        route: str | None = None,
        backend: str | None = None,
    ) -> tuple[Float[Tensor, "f k e"], Float[Tensor, "f h k n"] | None]:
        """Attend from each frame's queries to its regions.

        Args:
            queries: [F,K,E], in the dtype of the parameters (any floating dtype under autocast).
            regions: [F,N,C], in the same dtype; any strides of F and N.
            key_position: [N,C], added to the (normalized) regions as keys but not as values.
            region_mask: [F,N] bool, True where a region may be attended (the opposite of key_padding_mask). The
                contents of masked regions, even NaN, affect neither output nor gradients. A frame with no region to
                attend has zero attention, so its output is out_proj.bias; `nn.MultiheadAttention` returns NaN.
            return_map: also return the attention weights; in training with dropout, the weights after dropout.
            route: "folded", "projected", or None for the cheaper one (`cheaper_route`).
            backend: the backend of `region_attention`; naming one selects the folded route.

        Returns:
            The output [F,K,E], and the map of every head [F,H,K,N] or None.

        Raises:
            TypeError: if an argument has the wrong type or dtype.
            ValueError: if an argument has the wrong shape, device or value, or the backend does not support it.
        """
        self._check(queries, regions, key_position, region_mask, return_map, route, backend)
        if route is None and backend is not None:
            route = "folded"
        if route is None:
            route = cheaper_route(
                queries=queries.shape[1],
                regions=regions.shape[1],
                region_dim=self.region_dim,
                embed_dim=self.embed_dim,
                num_heads=self.num_heads,
            )
        if route == "folded":
            attended, weights = self._folded(queries, regions, key_position, region_mask, return_map, backend)
        else:
            attended, weights = self._projected(queries, regions, key_position, region_mask, return_map)
        return self.out_proj(attended), weights

    def extra_repr(self) -> str:
        """Return the constructor arguments."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, region_dim={self.region_dim}, "
            f"bias={self.in_proj_bias is not None}, dropout={self.dropout}, norm_regions={self.norm_regions}"
        )

    def _folded(
        self,
        queries: Tensor,
        regions: Tensor,
        key_position: Tensor | None,
        region_mask: Tensor | None,
        return_map: bool,
        backend: str | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute (softmax((q W_K) xᵀ) x) W_Vᵀ: W_K is applied to the queries, and W_V to the pooled regions."""
        w_q, w_k, w_v, b_q, b_v = self._projections()
        frames, count = queries.shape[:2]
        q = F.linear(queries, w_q, b_q).unflatten(-1, (self.num_heads, -1))  # [F, K, H, D]
        rows = torch.einsum("fkhd,hdc->fhkc", q, w_k.unflatten(0, (self.num_heads, -1))).flatten(1, 2)  # [F, H·K, C]
        scale = q.shape[-1] ** -0.5
        # The bias of W_K would add the constant q · b_K to all scores of a row, which does not change the softmax.
        if self.training and self.dropout > 0.0:
            regions = self._prepare(regions, region_mask)
            arguments = Arguments(rows, regions, key_position, region_mask, scale, None, return_map=True)
            _, weights = attend(arguments, backend)
            assert weights is not None
            weights = F.dropout(weights, self.dropout)
            pooled = torch.bmm(weights, regions.to(weights.dtype))
            total: Tensor | None = weights.sum(-1).view(frames, self.num_heads, count).transpose(1, 2)  # [F, K, H]
        else:
            eps = LAYER_NORM_EPS if self.norm_regions else None
            arguments = Arguments(rows, regions, key_position, region_mask, scale, eps, return_map)
            pooled, weights = attend(arguments, backend)
            total = None if region_mask is None else region_mask.any(1)[:, None, None].to(pooled.dtype)
        pooled = pooled.unflatten(1, (self.num_heads, count))  # [F, H, K, C]
        attended = torch.einsum("fhkc,hdc->fkhd", pooled, w_v.unflatten(0, (self.num_heads, -1)))
        if b_v is not None and regions.shape[1] > 0:
            # Scaled by the sum of the weights: 1, unless dropout changed it or all regions are masked.
            bias = b_v.unflatten(0, (self.num_heads, -1))  # [H, D]
            attended = attended + (bias if total is None else bias * total[..., None])
        if not return_map or weights is None:
            return attended.flatten(2), None
        return attended.flatten(2), weights.unflatten(1, (self.num_heads, count))

    def _projected(
        self,
        queries: Tensor,
        regions: Tensor,
        key_position: Tensor | None,
        region_mask: Tensor | None,
        return_map: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Project every region to a key and a value, like `nn.MultiheadAttention`."""
        w_q, w_k, w_v, b_q, b_v = self._projections()
        regions = self._prepare(regions, region_mask)
        keys = F.linear(regions, w_k)
        if key_position is not None:
            keys = keys + F.linear(key_position, w_k)
        q, k, v = (
            projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [F, H, K or N, D]
            for projected in (F.linear(queries, w_q, b_q), keys, F.linear(regions, w_v, b_v))
        )
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if return_map:
            scores = torch.matmul(q, k.mT) * q.shape[-1] ** -0.5
            if region_mask is not None:
                scores = scores.masked_fill(~region_mask[:, None, None, :], torch.finfo(scores.dtype).min)
            weights = scores.softmax(-1, dtype=accumulation_dtype(scores.dtype)).to(v.dtype)
            if region_mask is not None:
                weights = weights.masked_fill(~region_mask[:, None, None, :], 0)
            weights = F.dropout(weights, dropout)
            attended = torch.matmul(weights, v)
        else:
            # A fully masked frame attends to all of its zeroed regions, and its result is set to 0: no 0/0 occurs.
            attended_mask = empty = None
            if region_mask is not None:
                empty = ~region_mask.any(1)[:, None, None, None]
                attended_mask = region_mask[:, None, None, :] | empty
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attended_mask, dropout_p=dropout)
            if empty is not None:
                attended = attended.masked_fill(empty, 0)
        return attended.transpose(1, 2).flatten(2), weights

    def _prepare(self, regions: Tensor, region_mask: Tensor | None) -> Tensor:
        """Set masked regions to zero and apply the LayerNorm, as required before a plain matrix product."""
        if region_mask is not None:
            regions = regions.masked_fill(~region_mask[:, :, None], 0)
        return F.layer_norm(regions, regions.shape[-1:], eps=LAYER_NORM_EPS) if self.norm_regions else regions

    def _projections(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return W_Q [E,E], W_K [E,C], W_V [E,C], b_Q [E] and b_V [E]."""
        if self.in_proj_weight is not None:
            w_q, w_k, w_v = self.in_proj_weight.chunk(3)
        else:
            assert self.q_proj_weight is not None and self.k_proj_weight is not None and self.v_proj_weight is not None
            w_q, w_k, w_v = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        if self.in_proj_bias is None:
            return w_q, w_k, w_v, None, None
        b_q, _, b_v = self.in_proj_bias.chunk(3)
        return w_q, w_k, w_v, b_q, b_v

    def _check(
        self,
        queries: Tensor,
        regions: Tensor,
        key_position: Tensor | None,
        region_mask: Tensor | None,
        return_map: bool,
        route: str | None,
        backend: str | None,
    ) -> None:
        check_floating(_NAME, "queries", queries, "[F,K,E]")
        check_floating(_NAME, "regions", regions, "[F,N,C]")
        frames, count = regions.shape[:2]
        check_sizes(_NAME, "regions", regions, "[F,N,C]", (frames, count, self.region_dim))
        check_sizes(_NAME, "queries", queries, "[F,K,E]", (frames, queries.shape[1], self.embed_dim))
        tensors = {"queries": queries, "regions": regions}
        if key_position is not None:
            check_floating(_NAME, "key_position", key_position, "[N,C]")
            check_sizes(_NAME, "key_position", key_position, "[N,C]", (count, self.region_dim))
            tensors["key_position"] = key_position
        parameter = self.out_proj.weight
        for name, tensor in tensors.items():
            check_same_device(_NAME, name, tensor, "the module", parameter)
            if autocast_dtype(tensor.device) is None:
                check_same_dtype(_NAME, name, tensor, "the module", parameter)
        if region_mask is not None:
            check_mask(_NAME, "region_mask", region_mask, "[F,N]", (frames, count), regions.device)
        check_flag(_NAME, "return_map", return_map)
        if route is not None:
            check_choice(_NAME, "route", route, ROUTES)
        if route == "projected" and backend is not None:
            raise ValueError(
                f"{_NAME}: backend is {backend!r} with route='projected', which does not use region_attention; "
                "pass only one of them"
            )


def _join_separate_projections(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Stack separate projections of a state dict if the module has a single in_proj_weight."""
    names = [f"{prefix}{letter}_proj_weight" for letter in "qkv"]
    if module.in_proj_weight is not None and all(name in state_dict for name in names):
        state_dict[f"{prefix}in_proj_weight"] = torch.cat([state_dict.pop(name) for name in names])
