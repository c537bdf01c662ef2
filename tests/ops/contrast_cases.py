"""What the tests of every backend of `mtc_loss` have in common."""

import torch
from kernel_agreement import assert_as_exact_as_plain

from art_kernels import mtc_loss
from art_kernels.tracklet_contrast import reference

OPTIONS = [
    {},
    {"margin": -0.3, "temporal_form": "absolute"},
    {"clamp_repulsion": True},
    {"tracklet_form": "flattened"},
    {"tracklet_form": "flattened", "clamp_repulsion": True, "temporal_form": "absolute"},
]


def agreement(backend, device, dtype, sizes, options, *, aggregated, ragged, draws=12):
    """Check terms and gradients of a backend by the tolerance rule."""
    videos, frames, count, channels = sizes
    if aggregated and "tracklet_form" in options:
        options = {**options, "tracklet_form": "pooled"}
    options = {"margin": 0.6, **options}
    valid = torch.rand(videos, frames, device=device) > 0.3 if ragged else None

    def draw():
        # One direction shared by all responses brings the cosines to both sides of the margin.
        responses = torch.randn(videos, frames, count, channels, device=device) + torch.randn(channels, device=device)
        return [responses, *([torch.randn(videos, count, channels, device=device) + 0.5] if aggregated else [])]

    def fast(responses, aggregated=None):
        return tuple(mtc_loss(responses, aggregated, valid=valid, backend=backend, **options))

    def plain(responses, aggregated=None):
        return reference.mtc_loss(responses, aggregated, valid=valid, **options)

    assert_as_exact_as_plain(fast, plain, draw, dtype, summand=1.0, draws=draws)
