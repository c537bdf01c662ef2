"""From visual tokens to region responses: spatial semantic enhancement and region activation (RSSA)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from art_kernels import RegionCrossAttention


def sine_position(grid: tuple[int, int], dim: int, *, device: torch.device | None = None) -> Float[Tensor, "n dim"]:
    """Compute a sine position encoding for the regions of a grid (h, w), in row-major order.

    The sines and cosines of the vertical and horizontal position (in 0..1) take a quarter of the ``dim`` channels each.
    Wavelengths range from twice the frame to a tenth of it, which separates neighbors of a fine grid.
    """
    wavelength = torch.logspace(0, -math.log10(20), dim // 4, device=device)

    def encode(steps: int) -> Float[Tensor, "steps half"]:
        center = (torch.arange(steps, device=device) + 0.5) / steps
        angle = 2 * torch.pi * (center[:, None] - 0.5) / (2 * wavelength)
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    height, width = grid
    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class SpatialSemanticEnhancement(nn.Module):
    """Transformer encoder over the tokens and the selected semantics of each frame: (X̂_t, Ŝ_t) = MSA([X_t, S_topk]).

    Pre-norm, GELU, without position encoding (our reading). Without layers it returns its input.

    Args:
        dim: d.
        num_heads: attention heads.
        feedforward_dim: hidden width of the feed-forward blocks.
        num_layers: number of layers; 4 in the paper.
        dropout: dropout inside the layers.
    """

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, num_heads, feedforward_dim, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )

    def forward(
        self, tokens: Float[Tensor, "b t n d"], semantics: Float[Tensor, "b k d"]
    ) -> tuple[Float[Tensor, "b t n d"], Float[Tensor, "b t k d"]]:
        """Return the enhanced tokens X̂ and the enhanced semantics Ŝ of each frame."""
        b, t, n, _ = tokens.shape
        frame_semantics = semantics[:, None].expand(-1, t, -1, -1)
        if not self.layers:
            return tokens, frame_semantics
        x = torch.cat([tokens, frame_semantics], dim=2).flatten(0, 1)
        for layer in self.layers:
            x = layer(x)
        x = x.unflatten(0, (b, t))
        return x[:, :, :n], x[:, :, n:]


class RegionActivation(nn.Module):
    """Cross-attention of K queries per frame: Q_t = P_t + Ŝ_t, R_t = softmax(Q_t W_Q (X̂_t W_K)ᵀ/√d_h) X̂_t W_V.

    ``num_layers`` layers of cross-attention and feed-forward, pre-norm, with the residual on the queries (our reading),
    over one normalization of X̂. The learnable prompts P are specific to the frame index.

    Args:
        dim: d.
        num_heads: attention heads.
        feedforward_dim: hidden width of the feed-forward blocks.
        num_layers: number of layers; 4 in the paper.
        num_frames: T.
        num_queries: K.
        self_attention: let the K queries of a frame attend to each other first (off is our reading).
        response_residual: keep the residual in the last layer too (on is our reading). If off, a response contains only
            features of the regions.
        dropout: dropout inside the layers.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feedforward_dim: int,
        num_layers: int,
        num_frames: int,
        num_queries: int,
        *,
        self_attention: bool = False,
        response_residual: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.response_residual = response_residual
        self.prompts = nn.Parameter(torch.empty(num_frames, num_queries, dim))
        nn.init.normal_(self.prompts, std=0.02)
        self.region_norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            RegionActivationLayer(dim, num_heads, feedforward_dim, self_attention=self_attention, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, tokens: Float[Tensor, "b t n d"], semantics: Float[Tensor, "b t k d"], *, return_maps: bool = False
    ) -> tuple[Float[Tensor, "b t k d"], Float[Tensor, "b t k n"] | None]:
        """Return the responses R and, with ``return_maps``, the last layer's attention averaged over heads."""
        b, t = tokens.shape[:2]
        queries = (self.prompts + semantics).flatten(0, 1)
        regions = self.region_norm(tokens).flatten(0, 1)
        attention = None
        for index, layer in enumerate(self.layers):
            last = index == len(self.layers) - 1
            queries, attention = layer(
                queries, regions, residual=self.response_residual or not last, return_map=return_maps and last
            )
        maps = None if attention is None else attention.mean(1).unflatten(0, (b, t))
        return self.norm(queries).unflatten(0, (b, t)), maps


class RegionActivationLayer(nn.Module):
    """One layer of :class:`RegionActivation`, applied to F = B·T frames."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int, *, self_attention: bool, dropout: float) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(dim) if self_attention else None
        self.self_attention = (
            nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True) if self_attention else None
        )
        self.query_norm = nn.LayerNorm(dim)
        self.attention = RegionCrossAttention(dim, num_heads, dropout=dropout)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, feedforward_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(feedforward_dim, dim),
            nn.Dropout(dropout),
        )

    def forward(
        self, queries: Float[Tensor, "f k d"], regions: Float[Tensor, "f n d"], *, residual: bool, return_map: bool
    ) -> tuple[Float[Tensor, "f k d"], Float[Tensor, "f heads k n"] | None]:
        """Return the updated queries and, with ``return_map``, the attention of each head."""
        if self.self_attention is not None and self.self_norm is not None:
            x = self.self_norm(queries)
            queries = queries + self.self_attention(x, x, x, need_weights=False)[0]
        activated, attention = self.attention(self.query_norm(queries), regions, return_map=return_map)
        queries = queries + activated if residual else activated
        return queries + self.feedforward(queries), attention
