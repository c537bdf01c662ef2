"""Response maps on their frames: which regions each query listened to.

A map holds one weight for each region (grid cell) of a frame. Cell (i, j) of an h × w grid covers the share
j/w … (j+1)/w of the image's width and i/h … (i+1)/h of its height; positions are (x, y) shares, (0, 0) at the top left.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from matplotlib.colors import to_rgb
from torch import Tensor
from torch.nn import functional

from art.eval.report.style import tracklet_colour

SCALES = ("clip", "frame")


def map_peak(maps: Float[Tensor, "*lead h w"], *, refine: bool = False) -> Float[Tensor, "*lead 2"]:
    """Where each map is largest, as (x, y) shares of the image.

    The peak is the centre of the cell with the largest weight (the first in reading order among equals): this is the
    definition that :mod:`art.eval.report.localization` measures with. With ``refine`` it is moved to the centroid of the
    weights of that cell and its neighbours (up to eight), which draws smoother paths but is no position that the model
    ever chose.

    Raises:
        ValueError: the maps have no cells, a value is not finite, or (with ``refine``) a weight is negative.

    Examples:
        >>> import torch
        >>> from art.eval.report import map_peak
        >>> maps = torch.zeros(4, 4)
        >>> maps[1, 2] = 1.0
        >>> map_peak(maps).tolist()  # x, y
        [0.625, 0.375]
    """
    if maps.dim() < 2 or maps.shape[-1] == 0 or maps.shape[-2] == 0:
        raise ValueError(f"maps has shape {tuple(maps.shape)}, expected [..., h, w] with at least one cell")
    if not torch.isfinite(maps).all():
        raise ValueError("maps holds values that are not finite; a response map is a softmax over regions")
    height, width = maps.shape[-2:]
    best = maps.flatten(-2).argmax(-1)
    row, column = best // width, best % width
    if not refine:
        return torch.stack([(column + 0.5) / width, (row + 0.5) / height], dim=-1).to(maps.dtype)
    if (maps < 0).any():
        raise ValueError("maps holds negative weights, which have no centroid; leave refine off")
    rows = torch.arange(height, device=maps.device)
    columns = torch.arange(width, device=maps.device)
    near_row = (rows - row[..., None]).abs() <= 1
    near_column = (columns - column[..., None]).abs() <= 1
    weight = maps * (near_row[..., :, None] & near_column[..., None, :])
    total = weight.sum((-2, -1))
    # An all-zero map has its peak in the first cell, and stays there.
    safe = torch.where(total > 0, total, torch.ones_like(total))
    x = (weight.sum(-2) * (columns + 0.5)).sum(-1) / safe / width
    y = (weight.sum(-1) * (rows + 0.5)).sum(-1) / safe / height
    refined = torch.stack([x, y], dim=-1)
    return torch.where((total > 0)[..., None], refined, map_peak(maps))


def upsample(maps: Float[Tensor, "*lead h w"], size: tuple[int, int]) -> Float[Tensor, "*lead height width"]:
    """The maps at ``size`` = (height, width) pixels, bilinear between the cells' centres."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return functional.interpolate(flat, size=size, mode="bilinear", align_corners=False).reshape(
        *maps.shape[:-2], *size
    )


def prominence(maps: Float[Tensor, "b t k h w"], scale: str = "clip") -> Float[Tensor, "b t k h w"]:
    """How far each weight lies above the frame's average weight, as a share of the largest such excess.

    0 is the average and everything below it; 1 is the strongest response of the same tracklet in the whole ``"clip"``
    or in each ``"frame"``, but no less than twice the average. So a query that listens everywhere alike is close to 0
    everywhere, where stretching every map to 0..1 would show its noise as attention.
    """
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}, expected one of {', '.join(map(repr, SCALES))}")
    over = (1, 3, 4) if scale == "clip" else (3, 4)
    average = maps.mean((3, 4), keepdim=True)
    excess = (maps - average).clamp_min(0)
    full = torch.maximum(excess.amax(over, keepdim=True), average.amax(over, keepdim=True))
    return excess / full.clamp_min(torch.finfo(maps.dtype).tiny)


def overlay(
    frames: UInt8[Tensor, "b t 3 height width"],
    maps: Float[Tensor, "b t k h w"],
    *,
    scale: str = "clip",
    strength: float = 0.75,
    dim: float = 0.35,
) -> UInt8[Tensor, "b t k 3 height width"]:
    """Each frame once for each tracklet, tinted with the tracklet's colour where its response is above average.

    Args:
        scale: what a full tint stands for, see :func:`prominence`.
        strength: opacity of the tint at the strongest response, 0..1.
        dim: how much a region without response loses of its brightness and colour, 0..1, so that the tint stands out.

    Raises:
        ValueError: frames and maps differ in B or T, the frames are not uint8 RGB, or a share is outside 0..1.

    Examples:
        >>> import torch
        >>> from art.eval.report import overlay
        >>> frames = torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)
        >>> maps = torch.rand(1, 2, 3, 14, 14).flatten(-2).softmax(-1).unflatten(-1, (14, 14))
        >>> overlay(frames, maps).shape  # each frame once for each of three tracklets
        torch.Size([1, 2, 3, 3, 64, 64])
    """
    if frames.dim() != 5 or frames.shape[2] != 3 or frames.dtype != torch.uint8:
        raise ValueError(f"frames is {frames.dtype} {tuple(frames.shape)}, expected uint8 [B, T, 3, H, W]")
    if maps.dim() != 5 or maps.shape[:2] != frames.shape[:2]:
        raise ValueError(f"maps has shape {tuple(maps.shape)}, expected [B, T, K, h, w] with B, T = {frames.shape[:2]}")
    for name, share in (("strength", strength), ("dim", dim)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is {share}, expected a share from 0 to 1")
    height, width = frames.shape[-2:]
    weight = upsample(prominence(maps.float(), scale), (height, width)).clamp(0, 1)[:, :, :, None]  # [B,T,K,1,H,W]
    tint = torch.tensor([to_rgb(tracklet_colour(k)) for k in range(maps.shape[2])], device=frames.device)
    picture = frames[:, :, None].float() / 255
    grey = picture.mean(3, keepdim=True)
    faded = picture * (1 - dim) + dim * 0.5 * grey
    base = faded * (1 - weight) + picture * weight
    opacity = strength * weight
    mixed = base * (1 - opacity) + tint[:, :, None, None] * opacity
    return (mixed * 255).round().to(torch.uint8)
