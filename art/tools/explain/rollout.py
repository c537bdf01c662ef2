"""Attention roll-out: how much of each patch of the pixels arrives in a transformer's global feature.

After "Quantifying Attention Flow in Transformers" (arXiv 2005.00928): the attention of each block, the mean of its
heads, is averaged with the identity, which stands for the residual branch, and the blocks are multiplied. The weights
are read beside the model: what it answers stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from art.backbones.clip import ClipViT
from art.backbones.interface import Backbone
from art.backbones.timm_vit import TimmViT
from art.backbones.uniformerv2 import SelfAttention, UniFormerV2
from art.tools.explain.blocks import NotAvailable, over_frames


@torch.no_grad()
def attention_rollout(backbone: Backbone, video: Shaped[Tensor, "1 t 3 height width"]) -> Float[Tensor, "t h w"]:
    """What arrives from each patch of each frame of one clip, as shares of all that arrives (class tokens included).

    What mixes positions beside the attention is left out: convolutions over time, and feed-forward layers mix none. In
    UniFormerV2 the global query's attention over all frames is followed as that of the frames is, and the mean of
    its gate weighs it against the class tokens.

    Raises:
        NotAvailable: the backbone has no attention, or such as does not show its weights.
    """
    frames = video.shape[1]
    if isinstance(backbone, UniFormerV2):
        return _of_uniformer(backbone, video)
    if isinstance(backbone, TimmViT) or (isinstance(backbone, ClipViT) and backbone.of_timm):
        attention = _timm_attention(backbone, video)
        vit: Any = backbone.model
        prefix, by_token = vit.num_prefix_tokens, vit.global_pool == "token"
    elif isinstance(backbone, ClipViT):
        attention, prefix = _clip_attention(backbone, video), 1
        by_token = getattr(backbone.model, "pool_type", "tok") == "tok"
    else:
        raise NotAvailable(
            f"{type(backbone).__name__} shows no attention weights" if _attends(backbone) else "it has no attention"
        )
    arrived = None
    for weights in attention:
        arrived = _through(weights, arrived)
    if arrived is None:
        raise NotAvailable("it has no blocks")
    read = arrived[:, 0] if by_token else arrived[:, prefix:].mean(1)
    return over_frames(read[:, prefix:] / frames, frames, backbone.grid)


def _attends(backbone: nn.Module) -> bool:
    return any("attention" in type(module).__name__.lower() for module in backbone.modules())


def _through(weights: Float[Tensor, "f l l"], before: Float[Tensor, "f l l"] | None) -> Float[Tensor, "f l l"]:
    """One block more: half of a token is itself, half what it attends to."""
    mixed = (weights + torch.eye(weights.shape[-1], device=weights.device)) / 2
    return mixed if before is None else mixed @ before


def _timm_attention(backbone: Any, video: Tensor) -> list[Tensor]:
    """Of each block, in a pass without fused attention, where the weights come by the attention's dropout."""
    modules = [getattr(block, "attn", None) for block in getattr(backbone.model, "blocks", ())]
    if not modules or not all(
        hasattr(m, "fused_attn") and isinstance(getattr(m, "attn_drop", None), nn.Dropout) for m in modules
    ):
        raise NotAvailable("its blocks do not show attention weights")
    found: list[Tensor] = []
    fused = [module.fused_attn for module in modules]  # type: ignore[union-attr]
    try:
        for module in modules:
            module.fused_attn = False  # type: ignore[union-attr]
        drops = [module.attn_drop for module in modules]  # type: ignore[union-attr]
        with _watched(drops, lambda _, inputs, __: found.append(inputs[0].mean(1))):
            backbone(video)
    finally:
        for module, before in zip(modules, fused, strict=True):
            module.fused_attn = before  # type: ignore[union-attr]
    return found


def _clip_attention(backbone: ClipViT, video: Tensor) -> list[Tensor]:
    tower: Any = backbone.model
    modules = [getattr(block, "attn", None) for block in tower.transformer.resblocks]
    if not all(isinstance(module, nn.MultiheadAttention) for module in modules):
        raise NotAvailable("its blocks do not show attention weights")
    found: list[Tensor] = []

    def ask_again(module: Any, inputs: tuple[Tensor, ...], _: Any) -> None:
        found.append(module.forward(*inputs[:3], need_weights=True)[1])

    with _watched(modules, ask_again):
        backbone(video)
    return found


def _of_uniformer(backbone: UniFormerV2, video: Tensor) -> Tensor:
    transformer = backbone.transformer
    arrived: Tensor | None = None  # [T', L, L], in the tokens of the frames
    asked: Tensor | None = None  # [T', L], in the global query

    def local(module: Any, inputs: tuple[Tensor, ...], _: Any) -> None:
        nonlocal arrived
        arrived = _through(_self_attention(module, inputs[0]), arrived)

    def of_query(module: Any, inputs: tuple[Tensor, ...], _: Any) -> None:
        nonlocal asked
        assert arrived is not None
        weights = module.forward(*inputs, return_map=True)[1].mean(1)[0, 0]  # [T'·L]
        read = torch.einsum("ti,til->tl", weights.view(arrived.shape[:2]), arrived)
        asked = read / 2 if asked is None else (asked + read) / 2

    with (
        _watched([block.attn for block in transformer.resblocks], local),
        _watched([block.attn for block in transformer.dec], of_query),
    ):
        backbone(video)
    assert arrived is not None and asked is not None
    classes = arrived[:, 0] / len(arrived)
    gate = 0.0 if transformer.balance is None else float(transformer.balance.sigmoid().mean())
    return over_frames(torch.lerp(asked, classes, gate)[:, 1:], video.shape[1], backbone.architecture.grid)


def _self_attention(module: SelfAttention, x: Float[Tensor, "f l c"]) -> Float[Tensor, "f l l"]:
    projected = nn.functional.linear(x, module.in_proj_weight, module.in_proj_bias)
    q, k, _ = projected.unflatten(-1, (3, module.heads, -1)).permute(2, 0, 3, 1, 4)
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean(1)


@contextmanager
def _watched(modules: Sequence[Any], hook: Callable[..., None]) -> Iterator[None]:
    with ExitStack() as handles:
        for module in modules:
            handles.callback(module.register_forward_hook(hook).remove)
        yield
