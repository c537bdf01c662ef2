"""Region attention in PyTorch's own operators: batched matrix products that read the regions where they lie.

- The position is folded, q (x + p)ᵀ = q xᵀ + q pᵀ: regions + key_position is never formed.
- The gradient of the regions has two parts, dSᵀ q + Pᵀ dO: one product with both stacked writes it once.

The layer normalisation is not folded here. As r (q xᵀ - mean Σq) and Σ P r x - Σ P r mean, with r = 1 / std, it needs
no normalised copy, but where a region's mean exceeds its deviation the two terms cancel, and more so with the variance
as E[x²] - mean², the only form that PyTorch computes at the speed of memory on a CPU. Which regions a batch holds
cannot be asked without waiting for the device, so they are normalised outright, with float32 statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from art_kernels.precision import at_least_float32

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def region_attention(
    queries: Float[Tensor, "f m c"],
    regions: Float[Tensor, "f n c"],
    scale: float,
    key_position: Float[Tensor, "n c"] | None = None,
    region_mask: Bool[Tensor, "f n"] | None = None,
    layer_norm_eps: float | None = None,
) -> tuple[Float[Tensor, "f m c"], Float[Tensor, "f m n"]]:
    """The output, and the map in the accumulation dtype."""
    if region_mask is not None:
        # A weight of zero does not silence NaN or inf: masked regions are overwritten, the one copy that a mask costs.
        regions = regions.masked_fill(~region_mask[:, :, None], 0)
    if layer_norm_eps is not None:
        regions = torch.nn.functional.layer_norm(regions, regions.shape[-1:], eps=layer_norm_eps)
    return _RegionAttention.apply(queries, regions, key_position, region_mask, scale)


class _RegionAttention(torch.autograd.Function):
    """The backward pass reads only inputs and outputs of the forward pass, so it can itself be differentiated."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        regions: Tensor,
        key_position: Tensor | None,
        region_mask: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        # The scale goes into the product, where the accumulator is wide: a float16 product could overflow before it.
        if key_position is None:
            scores = torch.baddbmm(queries.new_empty(1, 1, 1), queries, regions.mT, beta=0, alpha=scale)  # [F, M, N]
        else:
            at_position = torch.matmul(queries * scale, key_position.mT)
            scores = torch.baddbmm(at_position, queries, regions.mT, alpha=scale)
        scores = at_least_float32(scores)
        if region_mask is None:
            weights = scores.softmax(-1)
        else:
            # The lowest finite number in place of -inf, then zero: a frame with no region is 0 and not 0/0.
            masked = ~region_mask[:, None, :]
            weights = scores.masked_fill(masked, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(masked, 0)
        output = torch.bmm(weights.to(regions.dtype), regions)
        ctx.save_for_backward(queries, regions, key_position, weights)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return output, weights

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        grad_output, grad_weights = gradients  # either is None where nothing depends on it
        queries, regions, key_position, weights = ctx.saved_tensors
        needs_queries, needs_regions, needs_position = ctx.needs_input_grad[:3]
        if grad_output is not None:
            through_output = at_least_float32(torch.bmm(grad_output, regions.mT))  # [F, M, N]
            grad_weights = through_output if grad_weights is None else grad_weights + through_output
        if grad_weights is None:
            return None, None, None, None, None
        inner = (grad_weights * weights).sum(-1, keepdim=True)
        grad_scores = ((grad_weights - inner) * weights * ctx.scale).to(
            regions.dtype
        )  # of the product before the scale

        grad_queries = grad_regions = grad_position = None
        if needs_queries:
            grad_queries = torch.bmm(grad_scores, regions)
            if key_position is not None:
                grad_queries = grad_queries + torch.matmul(grad_scores, key_position)
        if needs_regions:
            left, right = grad_scores, queries
            if grad_output is not None:
                left = torch.cat([grad_scores, weights.to(regions.dtype)], 1)  # [F, 2M, N]
                right = torch.cat([queries, grad_output], 1)  # [F, 2M, C]
            grad_regions = torch.bmm(left.mT, right)
        if needs_position:
            grad_position = grad_scores.flatten(0, 1).mT @ queries.flatten(0, 1)
        return grad_queries, grad_regions, grad_position, None, None
