"""The cross-attentions that are measured, and the least that any way to compute them must move and do."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class AttentionShape:
    """`queries` (K) attending to `regions` (N) in each of `frames` (F).

    Attributes:
        name: on the command line.
        frames: F; `cpu_frames` on a CPU, where as many as on a GPU would take too long.
        cpu_frames: F on a CPU.
        queries: K a frame.
        regions: N a frame.
        region_dim: C, channels of a region.
        embed_dim: E, channels of a query and of the output.
        num_heads: H.
        norm_regions: the regions are layer-normalised first, without affine part.
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

    def on(self, device: torch.device, *, quick: bool = False) -> AttentionShape:
        """The shape with the number of frames for `device`; an eighth of them for a quick look."""
        frames = self.cpu_frames if device.type == "cpu" else self.frames
        return replace(self, frames=max(1, frames // 8) if quick else frames)

    def tiny(self) -> AttentionShape:
        """As many channels and heads over as little else as still is a case of its own: for Triton's interpreter."""
        regions, queries = min(self.regions, 19), min(self.queries, 3)
        return replace(self, frames=1, cpu_frames=1, queries=queries, regions=regions)


#: By name: few queries over many tokens, as ART, UniFormerV2's global blocks, DETR, BLIP-2 and pooling heads ask.
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

PASSES = ("forward", "backward", "both")


@dataclass(frozen=True)
class Floor:
    """What a pass cannot do without.

    Attributes:
        bytes: every input read once and every result written once; nothing in between is stored.
        operations: multiplications and additions of the folded form, which projects no region.
    """

    bytes: int
    operations: int


def floor(shape: AttentionShape, dtype: torch.dtype, pass_name: str) -> Floor:
    """The floor of a pass over tensors of `dtype`.

    Forward reads the regions, the queries and the weights once and writes the output. Backward reads them again with
    the gradient of the output, and writes the gradients of regions, queries and weights. The operations are those of
    the matrix products; backward has two for each of forward (computing the scores again is not counted).

    Args:
        shape: the attention.
        dtype: of regions, queries and weights.
        pass_name: "forward", "backward" or "both", which is their sum.
    """
    if pass_name == "both":
        forward, backward = floor(shape, dtype, "forward"), floor(shape, dtype, "backward")
        return Floor(forward.bytes + backward.bytes, forward.operations + backward.operations)
    inputs = _region_elements(shape) + _query_elements(shape) + _weight_elements(shape)
    operations = _operations(shape)
    if pass_name == "forward":
        return Floor(dtype.itemsize * (inputs + _query_elements(shape)), operations)
    return Floor(dtype.itemsize * (2 * inputs + _query_elements(shape)), 2 * operations)


def projected_operations(shape: AttentionShape) -> int:
    """Of forward where every region becomes a key and a value, as `nn.MultiheadAttention` does it."""
    keys_and_values = 4 * shape.regions * shape.region_dim * shape.embed_dim
    queries_and_output = 4 * shape.queries * shape.embed_dim * shape.embed_dim
    attention = 4 * shape.queries * shape.regions * shape.embed_dim
    return shape.frames * (keys_and_values + queries_and_output + attention)


def _region_elements(shape: AttentionShape) -> int:
    return shape.frames * shape.regions * shape.region_dim


def _query_elements(shape: AttentionShape) -> int:
    return shape.frames * shape.queries * shape.embed_dim


def _weight_elements(shape: AttentionShape) -> int:
    """W_Q and W_O [E,E], W_K and W_V [E,C], a bias [E] with each."""
    return 2 * shape.embed_dim * (shape.embed_dim + shape.region_dim) + 4 * shape.embed_dim


def _operations(shape: AttentionShape) -> int:
    """Of forward: W_Q, W_K into the queries, scores, pooling, W_V on what was pooled, W_O."""
    projections = 4 * shape.queries * shape.embed_dim * (shape.embed_dim + shape.region_dim)
    attention = 4 * shape.num_heads * shape.queries * shape.regions * shape.region_dim
    return shape.frames * (projections + attention)
