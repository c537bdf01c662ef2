"""Responses that move slowly through a video, and costs of three kinds, one of them from such responses."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: What a response has of fresh noise from frame to frame, as a share of its own length; and how often it is another one
#: altogether, because its query has turned to another region.
NOISE, TURNS = 0.45, 0.1
#: Length of what all responses of a video share, as a share of their own. The cosine of a response and its successor is
#: about 0.9 then, and that of any others 0.2.
COMMON = 0.5
CHANNELS = 256
#: Videos from which costs come, and how many numbers of theirs are held at once.
_FRAMES, _HELD = 17, 1 << 23


def draw_responses(
    videos: int, frames: int, count: int, channels: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """[B,T,K,C] in float32: every response walks on a little from frame to frame, and stands somewhere else in each.

    All responses of a video have a direction in common, as those of a model have; a tenth of them begins anew in each
    frame; the order within a frame is random.
    """

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, channels, generator=generator, device=device)

    def chances(*sizes: int) -> Tensor:
        return torch.rand(*sizes, generator=generator, device=device)

    common = COMMON * draw(videos, 1)
    own = draw(videos, count)
    responses = torch.empty(videos, frames, count, channels, device=device)
    for t in range(frames):
        order = chances(videos, count).argsort(-1)
        responses[:, t] = (own + common).gather(1, order[..., None].expand_as(own))
        noise = torch.where(chances(videos, count, 1) < TURNS, 1.0, NOISE)
        own = (1 - noise.square()).sqrt() * own + noise * draw(videos, count)
    return responses


def draw_costs(kind: str, problems: int, size: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Costs [N,K,K]: "uniform" in 0..1, "normal", or "responses", negative cosines of adjacent frames."""
    generator = torch.Generator(device).manual_seed(seed)
    sizes = (problems, size, size)
    if kind == "uniform":
        return torch.rand(sizes, generator=generator, device=device, dtype=dtype)
    if kind == "normal":
        return torch.randn(sizes, generator=generator, device=device, dtype=dtype)
    costs = torch.empty(sizes, device=device, dtype=dtype)
    at_once = max(1, _HELD // (_FRAMES * size * CHANNELS))  # videos
    videos = math.ceil(problems / (_FRAMES - 1))
    for chunk in costs.split(at_once * (_FRAMES - 1)):
        responses = draw_responses(min(at_once, videos), _FRAMES, size, CHANNELS, generator, device)
        units = F.normalize(responses.to(dtype), dim=-1)
        chunk.copy_((units[:, :-1] @ units[:, 1:].mT).flatten(0, 1)[: len(chunk)].neg_())
    return costs
