"""Grad-CAM and attention rollout: which patches of a clip the backbone's global feature depends on.

Grad-CAM follows "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization" (arXiv 1610.02391),
over the tokens of all frames of a clip: the weight of a channel is the gradient of the class logit averaged over frames
and positions, and the map is the ReLU of the weighted sum of the channels.

Attention rollout follows "Quantifying Attention Flow in Transformers" (arXiv 2005.00928): the attention matrix of each
block, averaged over its heads, is averaged with the identity (the residual branch), and the matrices are multiplied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from art.backbones.base import Backbone
from art.backbones.image_vit import ClipViT, TimmViT
from art.backbones.tiny import Tiny
from art.backbones.transformers_video import TransformersVideo
from art.backbones.uniformerv2 import SelfAttention, UniFormerV2
from art.heads.classifier import ProbeClassifier


class MapUnavailable(Exception):
    """The backbone does not support this map. The message is the reason, as a clause for a caption."""


def grad_cam(
    backbone: Backbone, head: nn.Module, video: Shaped[Tensor, "1 t 3 height width"], target: int
) -> Float[Tensor, "t h w"]:
    """Compute the Grad-CAM map of class ``target`` for one clip.

    For a convolutional backbone, whose global feature is the mean of its tokens, the map is computed from those tokens.
    For a transformer it is computed from the patch tokens after the last block that still influence the logit: if the
    global feature is a class token, the patches after the last block do not, and the block before it is used.

    Args:
        backbone: A backbone in eval mode. Its parameters are frozen during the call and restored afterwards.
        head: Maps the backbone's ``class_token`` to logits, such as ``model.video_head``.
        video: One clip.
        target: Class index.

    Returns:
        Nonnegative weights on the scale of the gradients.

    Raises:
        MapUnavailable: The backbone does not compute its global feature from its tokens in a known way.
    """
    frames = video.shape[1]
    with _frozen(backbone, head), torch.enable_grad():
        blocks = _transformer_blocks(backbone, frames)
        if blocks is None:
            return _pooled_grad_cam(backbone, head, video, target)
        outputs: list[Tensor] = []

        def record(_: nn.Module, __: Any, output: Any) -> Any:
            hidden = _hidden_state(output)
            if not outputs:  # the backward pass ends at the first recorded block
                hidden = hidden.detach().requires_grad_()
            outputs.append(hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        with _forward_hooks(blocks.modules[-2:], record):
            features = backbone(video)
        logit = head(features.class_token)[0, target]
        gradients = torch.autograd.grad(logit, outputs, allow_unused=True)
        for output, gradient in reversed(list(zip(outputs, gradients, strict=True))):
            if gradient is not None and (change := blocks.patches(gradient)).any():
                weighted = _weighted_sum(blocks.patches(output), change.mean((1, 2)))
                return _expand_to_frames(weighted, frames, features.grid)
    raise MapUnavailable("no patch of its last two blocks influences the class")


def head_grad_cam(
    model: ProbeClassifier, video: Shaped[Tensor, "1 t 3 height width"], target: int
) -> Float[Tensor, "t h w"]:
    """Compute the Grad-CAM map of class ``target`` from the tokens that the head of a frozen backbone receives.

    Returns:
        As :func:`grad_cam`; the maps of several layers are added.
    """
    features = model.features(video)
    tokens = features.tokens.detach().requires_grad_()
    with _frozen(model), torch.enable_grad():
        logit = model.head(features._replace(tokens=tokens)).logits[0, target]
        (gradient,) = torch.autograd.grad(logit, [tokens])
    weighted = _weighted_sum(tokens, gradient.mean((1, 2)))
    layers = _expand_to_frames(weighted, video.shape[1], features.grid)
    return layers.unflatten(1, (-1, model.backbone.grid[0])).sum(1)


@torch.no_grad()
def attention_rollout(backbone: Backbone, video: Shaped[Tensor, "1 t 3 height width"]) -> Float[Tensor, "t h w"]:
    """Compute the attention rollout of one clip: the fraction of the global feature that comes from each patch.

    The fractions sum to at most 1; the rest comes from class tokens. Only attention is followed: feed-forward layers do
    not mix positions, and temporal convolutions are ignored. In UniFormerV2 the attention of the global query over all
    frames is followed as well, and the mean of its gate weights it against the class tokens. The forward pass is
    unchanged.

    Raises:
        MapUnavailable: The backbone has no attention, or its attention weights are not accessible.
    """
    frames = video.shape[1]
    if isinstance(backbone, UniFormerV2):
        return _uniformer_rollout(backbone, video)
    model: Any = backbone.model if isinstance(backbone, (TimmViT, ClipViT)) else None
    if _is_timm(backbone):
        attention = _timm_attention(backbone, video)
        prefix, reads_class_token = model.num_prefix_tokens, model.global_pool == "token"
    elif isinstance(backbone, ClipViT):
        attention, prefix = _clip_attention(backbone, video), 1
        reads_class_token = getattr(model, "pool_type", "tok") == "tok"
    elif any("attention" in type(module).__name__.lower() for module in backbone.modules()):
        raise MapUnavailable(f"{type(backbone).__name__} does not expose its attention weights")
    else:
        raise MapUnavailable("it has no attention")
    if not attention:
        raise MapUnavailable("it has no blocks")
    rollout: Any = functools.reduce(_roll_out, attention, None)
    read = rollout[:, 0] if reads_class_token else rollout[:, prefix:].mean(1)
    grid: Any = backbone.grid
    return _expand_to_frames(read[:, prefix:] / frames, frames, grid)


class _Blocks(NamedTuple):
    modules: list[nn.Module]
    #: Extracts the patch tokens [B, T', N, C] from a block's output; T' < T if a token spans several frames.
    patches: Callable[[Any], Float[Tensor, "b t n c"]]


def _is_timm(backbone: Backbone) -> bool:
    return isinstance(backbone, TimmViT) or (isinstance(backbone, ClipViT) and backbone.uses_timm)


def _transformer_blocks(backbone: Backbone, num_frames: int) -> _Blocks | None:
    """Return the transformer blocks of a backbone, or None if it has none."""
    if isinstance(backbone, UniFormerV2):
        return _Blocks(list(backbone.transformer.resblocks), lambda x: x[:, :, 1:])
    if isinstance(backbone, TransformersVideo):
        family = backbone.family
        base: Any = backbone.model.base_model
        layers = base.layers if hasattr(base, "layers") else base.encoder.layer
        steps = num_frames // backbone.tubelet
        return _Blocks(list(layers), lambda output: family.split(_hidden_state(output), steps))
    if _is_timm(backbone):
        vit: Any = backbone.model
        if not hasattr(vit, "blocks"):
            return None
        return _Blocks(list(vit.blocks), lambda x: x[:, vit.num_prefix_tokens :].unflatten(0, (-1, num_frames)))
    if isinstance(backbone, ClipViT):
        transformer: Any = backbone.model.transformer

        def patches(x: Tensor) -> Tensor:
            x = x if transformer.batch_first else x.transpose(0, 1)
            return x[:, 1:].unflatten(0, (-1, num_frames))

        return _Blocks(list(transformer.resblocks), patches)
    return None


def _pooled_grad_cam(backbone: Backbone, head: nn.Module, video: Tensor, target: int) -> Tensor:
    """Grad-CAM of a backbone that averages its tokens: each token's gradient is that of the mean divided by T·N."""
    pooled: list[Tensor] = []
    if isinstance(backbone, Tiny):  # normalizes the mean

        def replace_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
            pooled.append(inputs[0].detach().requires_grad_())
            return pooled[0]

        with backbone.norm.register_forward_pre_hook(replace_input):
            features = backbone(video)
        logits = head(features.class_token)
    else:
        features = backbone(video)
        pooled.append(features.class_token.detach().requires_grad_())
        logits = head(pooled[0])
    if not torch.allclose(features.tokens.mean((1, 2)), pooled[0], rtol=1e-2, atol=1e-3):
        raise MapUnavailable(f"{type(backbone).__name__} does not average its tokens")
    (gradient,) = torch.autograd.grad(logits[0, target], pooled)
    weighted = _weighted_sum(features.tokens, gradient / features.tokens[0, :, :, 0].numel())
    return _expand_to_frames(weighted, video.shape[1], features.grid)


def _weighted_sum(tokens: Float[Tensor, "1 t n c"], weights: Float[Tensor, "1 c"]) -> Float[Tensor, "t n"]:
    return torch.einsum("btnc,bc->btn", tokens, weights).relu().detach()[0]


def _hidden_state(output: Any) -> Tensor:
    """Return the hidden state from a block's output."""
    return output[0] if isinstance(output, tuple) else output


def _expand_to_frames(maps: Float[Tensor, "steps n"], num_frames: int, grid: tuple[int, int]) -> Float[Tensor, "t h w"]:
    """Repeat the maps of T' temporal steps for the T frames they cover."""
    return maps.repeat_interleave(num_frames // len(maps), dim=0).unflatten(1, grid)


def _roll_out(previous: Float[Tensor, "f l l"] | None, weights: Float[Tensor, "f l l"]) -> Float[Tensor, "f l l"]:
    """Multiply by the attention of the next block, averaged with the identity."""
    mixed = (weights + torch.eye(weights.shape[-1], device=weights.device)) / 2
    return mixed if previous is None else mixed @ previous


def _timm_attention(backbone: Any, video: Tensor) -> list[Tensor]:
    """Record the attention of each block, without fused attention, at the input of its dropout layer."""
    modules: list[Any] = [getattr(block, "attn", None) for block in getattr(backbone.model, "blocks", ())]
    if not modules or not all(
        hasattr(m, "fused_attn") and isinstance(getattr(m, "attn_drop", None), nn.Dropout) for m in modules
    ):
        raise MapUnavailable("its blocks do not expose attention weights")
    attention: list[Tensor] = []
    fused = [module.fused_attn for module in modules]
    try:
        for module in modules:
            module.fused_attn = False
        drops = [module.attn_drop for module in modules]
        with _forward_hooks(drops, lambda _, inputs, __: attention.append(inputs[0].mean(1))):
            backbone(video)
    finally:
        for module, before in zip(modules, fused, strict=True):
            module.fused_attn = before
    return attention


def _clip_attention(backbone: ClipViT, video: Tensor) -> list[Tensor]:
    tower: Any = backbone.model
    modules = [getattr(block, "attn", None) for block in tower.transformer.resblocks]
    if not all(isinstance(module, nn.MultiheadAttention) for module in modules):
        raise MapUnavailable("its blocks do not expose attention weights")
    attention: list[Tensor] = []

    def recompute(module: Any, inputs: tuple[Tensor, ...], _: Any) -> None:
        attention.append(module.forward(*inputs[:3], need_weights=True)[1])

    with _forward_hooks(modules, recompute):
        backbone(video)
    return attention


def _uniformer_rollout(backbone: UniFormerV2, video: Tensor) -> Tensor:
    transformer = backbone.transformer
    rollout: Tensor | None = None  # [T', L, L], of the frame tokens
    query: Tensor | None = None  # [T', L], of the global query

    def local_block(module: Any, inputs: tuple[Tensor, ...], _: Any) -> None:
        nonlocal rollout
        rollout = _roll_out(rollout, _self_attention(module, inputs[0]))

    def global_block(module: Any, inputs: tuple[Tensor, ...], _: Any) -> None:
        nonlocal query
        assert rollout is not None
        weights = module.forward(*inputs, return_map=True)[1].mean(1)[0, 0]  # [T'·L]
        read = torch.einsum("ti,til->tl", weights.view(rollout.shape[:2]), rollout)
        query = read / 2 if query is None else (query + read) / 2

    with (
        _forward_hooks([block.attn for block in transformer.resblocks], local_block),
        _forward_hooks([block.attn for block in transformer.dec], global_block),
    ):
        backbone(video)
    assert rollout is not None and query is not None
    class_tokens = rollout[:, 0] / len(rollout)
    gate = 0.0 if transformer.balance is None else float(transformer.balance.sigmoid().mean())
    return _expand_to_frames(torch.lerp(query, class_tokens, gate)[:, 1:], video.shape[1], backbone.architecture.grid)


def _self_attention(module: SelfAttention, x: Float[Tensor, "f l c"]) -> Float[Tensor, "f l l"]:
    projected = nn.functional.linear(x, module.in_proj_weight, module.in_proj_bias)
    q, k, _ = projected.unflatten(-1, (3, module.heads, -1)).permute(2, 0, 3, 1, 4)
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)


@contextmanager
def _forward_hooks(modules: Sequence[Any], hook: Callable[..., Any]) -> Iterator[None]:
    with ExitStack() as handles:
        for module in modules:
            handles.enter_context(module.register_forward_hook(hook))
        yield


@contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """Disable the gradients of all parameters, and restore them on exit."""
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
