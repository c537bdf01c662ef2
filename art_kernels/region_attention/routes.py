"""Which of the two ways to compute a cross-attention costs less."""

from __future__ import annotations

ROUTES = ("folded", "projected")


def cheaper_route(*, queries: int, regions: int, region_dim: int, embed_dim: int, num_heads: int) -> str:
    """The route with fewer multiplications and additions a frame: "folded" or "projected".

    Folded, W_K joins the queries and W_V the pooled regions (K·E·C each), and scores and pooling are taken over the
    C channels of the regions for each of the H·K rows. Projected, every region becomes a key and a value (N·C·E
    each), and scores and pooling are taken over E channels in total. What both share, W_Q and the output projection,
    is left out.

    Args:
        queries: K, queries a frame.
        regions: N, regions a frame.
        region_dim: C, channels of a region.
        embed_dim: E, channels of a query.
        num_heads: H.
    """
    folded = 2 * queries * region_dim * (embed_dim + num_heads * regions)
    projected = 2 * regions * embed_dim * (region_dim + queries)
    return "folded" if folded <= projected else "projected"
