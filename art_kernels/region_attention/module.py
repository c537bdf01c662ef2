"""`RegionCrossAttention`: multi-head cross-attention that avoids projecting the regions when that is cheaper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from art_kernels._core.checks import (
    check_choice,
    check_count,
    check_flag,
    check_floating,
    check_number,
    check_same_device,
    check_same_dtype,
    check_sizes,
    shorten,
)
from art_kernels._core.precision import at_least_float32, autocast_dtype, without_autocast
from art_kernels.region_attention.functional import Masks, attend, check_masks, check_position, merge_masks, with_heads
from art_kernels.region_attention.mha import from_multihead_call
from art_kernels.region_attention.reference import Arguments, masked_softmax

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


def _exported_route(*, queries: int, regions: int, region_dim: int, embed_dim: int, num_heads: int) -> str:
    """Return a route without comparing symbolic sizes, which would restrict the program to one result.

    Where the sizes do not decide, this is the cheaper route for many regions; or, for any number of queries,
    "projected".
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    folded = queries * region_dim * (embed_dim + num_heads * regions)
    projected = regions * embed_dim * (region_dim + queries)
    if statically_known_true(folded <= projected):
        return "folded"
    if statically_known_true(folded > projected):
        return "projected"
    for_many = statically_known_true(queries * region_dim * num_heads <= embed_dim * (region_dim + queries))
    return "folded" if for_many else "projected"


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
    #: Read by `nn.TransformerEncoderLayer` and `nn.TransformerDecoderLayer`; the latter is the switch of a fused kernel
    #: that would bypass this module.
    batch_first = True
    _qkv_same_embed_dim = False

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
            bias = getattr(self.out_proj, "bias", None)
            if isinstance(bias, Tensor):  # not if `out_proj` was replaced
                nn.init.zeros_(bias)

    def forward(
        self,
        queries: Float[Tensor, "f k e"] | None = None,
        regions: Float[Tensor, "f n c"] | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool | None = None,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        query: Tensor | None = None,
        key: Tensor | None = None,
        key_position: Float[Tensor, "n c"] | Float[Tensor, "f n c"] | None = None,
        region_mask: Bool[Tensor, "f n"] | Bool[Tensor, "f k n"] | Bool[Tensor, "f h k n"] | None = None,
        attn_bias: Float[Tensor, "f n"] | Float[Tensor, "f k n"] | Float[Tensor, "f h k n"] | None = None,
        return_map: bool = False,
        route: str | None = None,
        backend: str | None = None,
    ) -> tuple[Float[Tensor, "f k e"], Tensor | None]:
        """Attend from each frame's queries to its regions.

        Called with `queries` and `regions` and the options from `key_position` on; or like `nn.MultiheadAttention` with
        batch_first=True, with `query`, `key` and `value`, positionally or by name, and its options. These then have
        their meaning in `nn.MultiheadAttention`: in boolean masks True *excludes*, the second result is the average of
        the maps unless need_weights=False, and tensors without the batch dimension are accepted. If `key` is not the
        same object as `value`, for example because it includes positions, the default is the projected route, because
        folding requires the difference of the two, which has rounding errors.

        Args:
            queries: [F,K,E], in the dtype of the parameters (any floating dtype under autocast).
            regions: [F,N,C], in the same dtype; any strides of F and N.
            value: as in `nn.MultiheadAttention`, like `key_padding_mask`, `need_weights`, `attn_mask`,
                `average_attn_weights` and `is_causal` (a hint that requires `attn_mask`, and is ignored).
            query: `queries` under the name of `nn.MultiheadAttention`.
            key: `regions` under the name of `nn.MultiheadAttention`.
            key_position: [N,C] or [F,N,C], added to the (normalized) regions as keys but not as values.
            region_mask: bool, True where a region may be attended (the opposite of key_padding_mask): [F,N], or
                [F,K,N] for each query, or [F,H,K,N] for each head. The contents of regions that no query may attend,
                even NaN, affect neither output nor gradients. A query with no region to attend has zero attention, so
                its output is out_proj.bias; `nn.MultiheadAttention` may return NaN.
            attn_bias: added to the scaled scores; [F,N], [F,K,N] or [F,H,K,N], of any floating dtype; -inf masks.
            return_map: also return the attention weights; in training with dropout, the weights after dropout.
            route: "folded", "projected", or None for the cheaper one (`cheaper_route`); in `torch.export` with dynamic
                sizes, None selects the one that is cheaper for many regions.
            backend: the backend of `region_attention`; naming one selects the folded route.

        Returns:
            The output [F,K,E], and the map of every head [F,H,K,N] or None.

        Raises:
            TypeError: if an argument has the wrong type or dtype, or belongs to the other form of call.
            ValueError: if an argument has the wrong shape, device or value, or the backend does not support it.
        """
        multihead = (query, key, value, key_padding_mask, need_weights, attn_mask)
        if any(argument is not None for argument in multihead) or is_causal or not average_attn_weights:
            own = {
                "key_position": key_position,
                "region_mask": region_mask,
                "attn_bias": attn_bias,
                "return_map": return_map or None,
            }
            call = from_multihead_call(self, queries, regions, *multihead, average_attn_weights, is_causal, own)
            self._check_backend(("query", "value"), call.queries, call.regions, route, backend)
            output, weights = self._attend(*call[:4], None, call.need_weights, route, backend)
            return call.results(output, weights)
        self._check(queries, regions, key_position, region_mask, attn_bias, return_map)
        assert queries is not None and regions is not None
        self._check_backend(("queries", "regions"), queries, regions, route, backend)
        masks = merge_masks(with_heads(region_mask), with_heads(attn_bias))
        return self._attend(queries, regions, None, masks, key_position, return_map, route, backend)

    def _attend(
        self,
        queries: Tensor,
        regions: Tensor,
        keys: Tensor | None,
        masks: Masks,
        key_position: Tensor | None,
        return_map: bool,
        route: str | None,
        backend: str | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Choose the route and compute it, from validated arguments; `keys` is None for the regions themselves."""
        if route is None and backend is not None:
            route = "folded"
        elif route is None and keys is not None:
            route = "projected"
        elif route is None:
            choose = _exported_route if torch.compiler.is_exporting() else cheaper_route
            route = choose(
                queries=queries.shape[1],
                regions=regions.shape[1],
                region_dim=self.region_dim,
                embed_dim=self.embed_dim,
                num_heads=self.num_heads,
            )
        if route == "folded":
            if keys is not None:
                key_position = keys - regions
            attended, weights = self._folded(queries, regions, key_position, masks, return_map, backend)
        else:
            attended, weights = self._projected(queries, regions, keys, key_position, masks, return_map)
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
        masks: Masks,
        return_map: bool,
        backend: str | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute (softmax((q W_K) xᵀ) x) W_Vᵀ: W_K is applied to the queries, and W_V to the pooled regions."""
        w_q, w_k, w_v, b_q, b_v = self._projections()
        frames, count = queries.shape[:2]
        q = F.linear(queries, w_q, b_q).unflatten(-1, (self.num_heads, -1))  # [F, K, H, D]
        rows = torch.einsum("fkhd,hdc->fhkc", q, w_k.unflatten(0, (self.num_heads, -1))).flatten(1, 2)  # [F, H·K, C]
        scale = q.shape[-1] ** -0.5
        attn_mask = None if masks.pairs is None else masks.pairs.flatten(1, 2)
        # The bias of W_K would add the constant q · b_K to all scores of a row, which does not change the softmax.
        if self.training and self.dropout > 0.0:
            regions = self._prepare(regions, masks.regions)
            arguments = Arguments(rows, regions, key_position, masks.regions, scale, None, True, attn_mask)
            _, weights = attend(arguments, backend)
            assert weights is not None
            weights = F.dropout(weights, self.dropout)
            pooled = torch.bmm(weights, regions.to(weights.dtype))
            total: Tensor | None = weights.sum(-1).view(frames, self.num_heads, count).transpose(1, 2)  # [F, K, H]
        else:
            eps = LAYER_NORM_EPS if self.norm_regions else None
            arguments = Arguments(rows, regions, key_position, masks.regions, scale, eps, return_map, attn_mask)
            pooled, weights = attend(arguments, backend)
            total = None if masks.rows is None else masks.rows[..., 0].transpose(1, 2).to(pooled.dtype)
        pooled = pooled.unflatten(1, (self.num_heads, count))  # [F, H, K, C]
        attended = torch.einsum("fhkc,hdc->fkhd", pooled, w_v.unflatten(0, (self.num_heads, -1)))
        if b_v is not None and regions.shape[1] > 0:
            # Scaled by the sum of the weights: 1, unless dropout changed it or all regions of a query are masked.
            bias = b_v.unflatten(0, (self.num_heads, -1))  # [H, D]
            attended = attended + (bias if total is None else bias * total[..., None])
        if not return_map or weights is None:
            return attended.flatten(2), None
        return attended.flatten(2), weights.unflatten(1, (self.num_heads, count))

    def _projected(
        self,
        queries: Tensor,
        regions: Tensor,
        keys: Tensor | None,
        key_position: Tensor | None,
        masks: Masks,
        return_map: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Project every region to a key and a value, like `nn.MultiheadAttention`."""
        w_q, w_k, w_v, b_q, b_v = self._projections()
        regions = self._prepare(regions, masks.regions)
        keys = F.linear(regions if keys is None else _zero_masked(keys, masks.regions), w_k)
        if key_position is not None:
            if key_position.dim() == 3:
                key_position = _zero_masked(key_position, masks.regions)
            keys = keys + F.linear(key_position, w_k)
        q, k, v = (
            projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [F, H, K or N, D]
            for projected in (F.linear(queries, w_q, b_q), keys, F.linear(regions, w_v, b_v))
        )
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        mask = None if masks.regions is None else masks.regions[:, None, None, :]
        # float16 would round a finite bias, such as -1e9, to -inf.
        wide_bias = q.dtype == torch.float16 and masks.pairs is not None and masks.pairs.dtype.itemsize > 2
        # Fused attention has no forward-mode derivative.
        if return_map or wide_bias or forward_ad._current_level >= 0:
            with without_autocast(q.device):  # in float32, because the products can exceed the range of float16
                scores = torch.matmul(at_least_float32(q), at_least_float32(k).transpose(2, 3)) * q.shape[-1] ** -0.5
            weights = masked_softmax(scores, mask, masks.pairs).to(v.dtype)
            weights = F.dropout(weights, dropout)
            attended = torch.matmul(weights, v)
        else:
            # A query without regions attends to all of them, and its result is set to 0: no 0/0 occurs.
            empty = None
            if masks.rows is not None:
                empty = ~masks.rows
                mask = mask if masks.pairs is None else masks.pairs
                assert mask is not None
                mask = mask | empty if mask.dtype == torch.bool else mask.masked_fill(empty, 0).to(q.dtype)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
            if empty is not None:
                attended = attended.masked_fill(empty, 0)
        return attended.transpose(1, 2).flatten(2), weights if return_map else None

    def _prepare(self, regions: Tensor, region_mask: Tensor | None) -> Tensor:
        """Set masked regions to zero and apply the LayerNorm, as required before a plain matrix product."""
        regions = _zero_masked(regions, region_mask)
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
        queries: Tensor | None,
        regions: Tensor | None,
        key_position: Tensor | None,
        region_mask: Tensor | None,
        attn_bias: Tensor | None,
        return_map: bool,
    ) -> None:
        """Check the arguments of the form of call with queries and regions."""
        check_floating(_NAME, "queries", queries, "[F,K,E]")
        check_floating(_NAME, "regions", regions, "[F,N,C]")
        assert queries is not None and regions is not None
        frames, count = regions.shape[:2]
        check_sizes(_NAME, "regions", regions, "[F,N,C]", (frames, count, self.region_dim))
        check_sizes(_NAME, "queries", queries, "[F,K,E]", (frames, queries.shape[1], self.embed_dim))
        if key_position is not None:
            check_position(_NAME, key_position, regions)
            if autocast_dtype(key_position.device) is None:
                check_same_dtype(_NAME, "key_position", key_position, "regions", regions)
        if region_mask is not None or attn_bias is not None:
            per_query = (frames, queries.shape[1], count)
            per_head = (frames, self.num_heads, *per_query[1:])
            layouts = {"[F,N]": (frames, count), "[F,K,N]": per_query, "[F,H,K,N]": per_head}
            check_masks(_NAME, region_mask, attn_bias, layouts, regions.device)
        check_flag(_NAME, "return_map", return_map)

    def _check_backend(
        self, names: tuple[str, str], queries: Tensor, regions: Tensor, route: str | None, backend: str | None
    ) -> None:
        """Check that the tensors match the parameters, and that route and backend match each other."""
        # Not `out_proj.weight`: `out_proj` may be replaced by a module that has none.
        parameter = self.q_proj_weight if self.in_proj_weight is None else self.in_proj_weight
        assert parameter is not None
        for name, tensor in zip(names, (queries, regions), strict=True):
            check_same_device(_NAME, name, tensor, "the module", parameter)
            if autocast_dtype(tensor.device) is None:
                check_same_dtype(_NAME, name, tensor, "the module", parameter)
        if route is not None:
            check_choice(_NAME, "route", route, ROUTES)
        if route == "projected" and backend is not None:
            raise ValueError(
                f"{_NAME}: backend is {shorten(backend)} with route='projected', which does not use region_attention; "
                "pass only one of them"
            )


def _zero_masked(tokens: Tensor, region_mask: Tensor | None) -> Tensor:
    """Set the tokens [F,N,C] of masked regions to zero, as required before a plain matrix product."""
    return tokens if region_mask is None else tokens.masked_fill(~region_mask[:, :, None], 0)


def _join_separate_projections(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Stack separate projections of a state dict if the module has a single in_proj_weight."""
    names = [f"{prefix}{letter}_proj_weight" for letter in "qkv"]
    if module.in_proj_weight is not None and all(name in state_dict for name in names):
        state_dict[f"{prefix}in_proj_weight"] = torch.cat([state_dict.pop(name) for name in names])
