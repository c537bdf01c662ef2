"""Evidence for the classes in the regions of each frame: the readout "evidence" of :class:`art.ARTModel`.

For the normalized tokens x̂_tn of frame t, class c has one query q_c, one response per frame, and its own weights:

    a_tcn = softmax_n(s · q_c · (x̂_tn + p_n) / √C)       where the class looks in frame t
    r_tc  = Σ_n a_tcn x̂_tn                               what is there: region features and nothing else
    e_tc  = w_c · r_tc + v_c · (r_t+1,c − r_tc)           evidence in frame t and in the change to the next one
    z_c   = b_c + log mean_t exp e_tc                     added to the logit of class c

A response is scored for the class that it was queried for, so a query gains nothing from being recognizable. The
position p is a key only: it cannot be classified.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from art.model.losses import Labels
from art.model.regions import sine_position
from art_kernels import region_attention

#: s: scores start near 0, and this factor lets them grow within a short schedule.
QUERY_SCALE = 8.0


class Evidence(NamedTuple):
    """Output of :class:`RegionEvidence` for B clips.

    Attributes:
        logits: ``[B, Y]``, z.
        responses: ``[B, T, Y, C]``, r.
        evidence: ``[B, T, Y]``, e.
        regions: ``[B, T, N, C]``, x̂.
        maps: ``[B, T, Y, N]``, a; None unless they were requested.
        grid: (h, w) with h·w = N.
    """

    logits: Float[Tensor, "b y"]
    responses: Float[Tensor, "b t y c"]
    evidence: Float[Tensor, "b t y"]
    regions: Float[Tensor, "b t n c"]
    maps: Float[Tensor, "b t y n"] | None
    grid: tuple[int, int]


class RegionEvidence(nn.Module):
    """Queries, weights and positions of the module's equations.

    Tokens are normalized without affine parameters, which would be redundant: those of the queries and weights suffice.

    Args:
        channels: C of the tokens.
        num_classes: Y.
        text_dim: C_t, width of the text embeddings of the classes, which are then projected and added to the queries;
            None for queries without text.
        position: "none", or "sine" for a linear function of the encoding of :func:`.regions.sine_position`.
    """

    def __init__(self, channels: int, num_classes: int, text_dim: int | None, position: str) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_classes, channels).normal_(std=0.02))
        self.text_projection = None if text_dim is None else nn.Linear(text_dim, channels, bias=False)
        if self.text_projection is not None:
            nn.init.normal_(self.text_projection.weight, std=0.02)
        self.position_dim = 4 * math.ceil(channels / 4)
        self.position_projection = nn.Linear(self.position_dim, channels, bias=False) if position == "sine" else None
        self.weight = nn.Parameter(torch.zeros(num_classes, channels))
        self.change_weight = nn.Parameter(torch.zeros(num_classes, channels))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(
        self,
        tokens: Float[Tensor, "b t n c"],
        grid: tuple[int, int],
        texts: Float[Tensor, "y d"] | None = None,
        *,
        return_maps: bool = False,
    ) -> Evidence:
        """Compute the evidence of all classes; ``texts`` are their embeddings, if the queries use them."""
        regions = normalize_regions(tokens)
        positions = None
        if self.position_projection is not None:
            encoding = sine_position(grid, self.position_dim, device=tokens.device).to(tokens.dtype)
            positions = self.position_projection(encoding)
        responses, maps = attend(self.class_queries(texts), regions, positions, return_maps=return_maps)
        return self.read(responses, maps, regions, grid)

    def class_queries(self, texts: Float[Tensor, "y d"] | None = None) -> Float[Tensor, "y c"]:
        """Return q of all classes."""
        if self.text_projection is None:
            return self.queries
        assert texts is not None
        queries: Tensor = self.queries + self.text_projection(F.normalize(texts, dim=-1))
        return queries

    def read(
        self,
        responses: Float[Tensor, "b t y c"],
        maps: Float[Tensor, "b t y n"] | None,
        regions: Float[Tensor, "b t n c"],
        grid: tuple[int, int],
    ) -> Evidence:
        """Compute e and z from the responses."""
        evidence = torch.einsum("btyc,yc->bty", responses, self.weight)
        change = torch.einsum("btyc,yc->bty", responses.diff(dim=1), self.change_weight)
        evidence = evidence + F.pad(change, (0, 0, 0, 1))
        logits = self.bias + evidence.logsumexp(1) - math.log(evidence.shape[1])
        return Evidence(logits, responses, evidence, regions, maps, grid)

    def contributions(self, evidence: Evidence, classes: Int[Tensor, "b k"]) -> Float[Tensor, "b t k n"]:
        """Return the part of each region in the evidence of K classes, a_tcn w_c · x̂_tn, without that of changes."""
        weights = self.weight[classes].to(evidence.regions.dtype)
        return maps_of(evidence, classes) * torch.einsum("bkc,btnc->btkn", weights, evidence.regions)


def normalize_regions(tokens: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t n c"]:
    """Return x̂: tokens normalized over their channels."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def attend(
    queries: Float[Tensor, "m c"],
    regions: Float[Tensor, "b t n c"],
    positions: Float[Tensor, "n c"] | None = None,
    *,
    return_maps: bool,
) -> tuple[Float[Tensor, "b t m c"], Float[Tensor, "b t m n"] | None]:
    """Return r of M queries and, with ``return_maps``, a."""
    frames = regions.flatten(0, 1)
    rows = queries.to(regions.dtype).expand(frames.shape[0], -1, -1)  # len() would be a constant in an exported graph
    scale = QUERY_SCALE / math.sqrt(queries.shape[1])
    if not return_maps:
        output = region_attention(rows, frames, scale=scale, key_position=positions)
        return output.unflatten(0, regions.shape[:2]), None
    output, maps = region_attention(rows, frames, scale=scale, key_position=positions, return_map=True)
    return output.unflatten(0, regions.shape[:2]), maps.unflatten(0, regions.shape[:2])


def maps_of(evidence: Evidence, classes: Int[Tensor, "b k"]) -> Float[Tensor, "b t k n"]:
    """Return a of K classes of each clip; the evidence must have been computed with maps."""
    assert evidence.maps is not None
    index = classes[:, None, :, None].expand(-1, evidence.maps.shape[1], -1, evidence.maps.shape[3])
    return evidence.maps.gather(2, index)


def focus(evidence: Evidence, labels: Labels) -> Float[Tensor, ""]:
    """Return the entropy of the maps of the true classes, relative to that of a uniform map: 0 to 1.

    ``labels`` that are class probabilities count with their most probable class.
    """
    classes = labels if labels.ndim == 1 else labels.argmax(1)
    maps = maps_of(evidence, classes[:, None])
    return torch.special.entr(maps).sum(-1).mean() / math.log(max(2, maps.shape[-1]))
