"""Grad-CAM: which tokens of the backbone speak for a class, by the head on its global feature (L_v).

After "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization" (arXiv 1610.02391), over the
tokens of all frames of a clip at once: a channel's weight is the mean over frames and positions of the gradient of the
class's logit; the map is the weighted sum of the channels where it is above zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from art.backbones.interface import Backbone
from art.backbones.tiny import Tiny
from art.tools.explain.blocks import NotAvailable, blocks_of, first, over_frames


def grad_cam(
    backbone: Backbone, head: nn.Module, video: Shaped[Tensor, "1 t 3 height width"], target: int
) -> Float[Tensor, "t h w"]:
    """The map of class ``target`` for one clip; no value is below 0, and the scale is the gradients'.

    A convolutional backbone, whose global feature is the mean of its tokens, is asked for the tokens themselves, a
    transformer for the patch tokens behind the last block from which the class can still be reached: where the answer
    is read from a class token, nothing follows from the patches behind the last block, and it is the one before.

    Args:
        backbone: in eval mode.
        head: from its ``class_token`` to logits, as ``video_head``.
        video: one clip.
        target: the class.

    Raises:
        NotAvailable: what lies between the backbone's tokens and its global feature is not known.
    """
    with _frozen(backbone, head), torch.enable_grad():
        if (blocks := blocks_of(backbone, video.shape[1])) is None:
            return _of_pooled(backbone, head, video, target)
        watched: dict[int, Any] = {}
        count = len(blocks.modules)
        with ExitStack() as hooks:
            for index in range(max(0, count - 2), count):
                hooks.enter_context(_watching(blocks.modules[index], index, watched))
            features = backbone(video)
        logit = head(features.class_token)[0, target]
        outputs = [watched[index] for index in sorted(watched, reverse=True)]
        gradients = torch.autograd.grad(logit, outputs, allow_unused=True)
        for output, gradient in zip(outputs, gradients, strict=True):
            if gradient is not None and (change := blocks.patches(gradient)).any():
                return over_frames(
                    _weighted(blocks.patches(output), change.mean((1, 2)))[0], video.shape[1], features.grid
                )
    raise NotAvailable("no patch of its last two blocks reaches the class")


def _weighted(tokens: Float[Tensor, "b t n c"], weights: Float[Tensor, "b c"]) -> Float[Tensor, "b t n"]:
    return torch.einsum("btnc,bc->btn", tokens, weights).relu().detach()


def _of_pooled(backbone: Backbone, head: nn.Module, video: Tensor, target: int) -> Tensor:
    """Where the tokens are averaged, the mean gradient of a token is that of the average, but for their number."""
    pooled: list[Tensor] = []
    if isinstance(backbone, Tiny):  # it normalises the average

        def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
            pooled.append(inputs[0].detach().requires_grad_())
            return pooled[0]

        handle = backbone.norm.register_forward_pre_hook(take)
        try:
            features = backbone(video)
        finally:
            handle.remove()
        logits = head(features.class_token)
    else:
        features = backbone(video)
        pooled.append(features.class_token.detach().requires_grad_())
        logits = head(pooled[0])
    if not torch.allclose(features.tokens.mean((1, 2)), pooled[0], rtol=1e-2, atol=1e-3):
        raise NotAvailable(f"{type(backbone).__name__} does not average its tokens")
    (gradient,) = torch.autograd.grad(logits[0, target], pooled)
    return over_frames(
        _weighted(features.tokens, gradient / features.tokens[0, :, :, 0].numel())[0], video.shape[1], features.grid
    )


@contextmanager
def _watching(block: nn.Module, index: int, watched: dict[int, Any]) -> Iterator[None]:
    """Keeps the block's output; the first one that is kept is where gradients end, so that nothing before it is."""

    def keep(_: nn.Module, __: Any, output: Any) -> Any:
        hidden = first(output)
        if not watched:
            hidden = hidden.detach().requires_grad_()
        watched[index] = hidden
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = block.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """No parameter has a gradient; put back afterwards."""
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
