"""UniFormerV2 with attention and MLP as published and as ours, alone and under ART: one set of weights for all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from art import ARTModel, BackboneClassifier
from art.backbones.uniformerv2 import FeedForward, GlobalBlock
from art.model.pretrained import VideoClassifier

PUBLISHED, OURS = "UniFormerV2 as published", "UniFormerV2, art_kernels"
ART_PUBLISHED, ART_OURS = "ART on it as published", "ART, art_kernels"
PROVIDERS = (PUBLISHED, OURS, ART_PUBLISHED, ART_OURS)

#: Prompts, classes and channels of the text: those of FineGym99 through CLIP.
BANK = (16, 99, 512)


@dataclass(frozen=True)
class Model:
    """What is built.

    Attributes:
        name: of this size.
        backbone: its registered name.
        frames: T.
        clips: B.
        backbone_options: over the size that the name gives.
        options: of ART.
    """

    name: str
    backbone: str
    frames: int
    clips: int
    backbone_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def described(self) -> str:
        """In words."""
        return f"{self.backbone}, {self.frames} frames, {self.clips} clip{'s' if self.clips > 1 else ''}"


TINY = {"width": 48, "layers": 3, "heads": 3, "patch_size": 8, "input_size": 32, "global_blocks": [1, 2]}
SMALL = {"latent_dim": 32, "feedforward_dim": 64}
MODELS = {
    model.name: model
    for model in (
        Model("b16-4", "uniformerv2_b16", 4, 1),
        Model("b16-8", "uniformerv2_b16", 8, 1),
        Model("l14-16", "uniformerv2_l14", 16, 4),
        Model("tiny", "uniformerv2_b16", 4, 2, TINY, SMALL),
    )
}


class PublishedFeedForward(nn.Module):
    """The MLP of all blocks as the published code computes it: x · sigmoid(1.702 x), operation by operation."""

    def __init__(self, mlp: FeedForward) -> None:
        super().__init__()
        self.c_fc, self.dropout, self.c_proj = mlp.c_fc, mlp.dropout, mlp.c_proj

    def forward(self, x: Tensor) -> Tensor:
        """The branch, still to be added."""
        hidden = self.c_fc(x)
        return self.c_proj(self.dropout(hidden * torch.sigmoid(1.702 * hidden)))


class PublishedGlobalBlock(nn.Module):
    """A global block as the published code computes it, with the parameters of ours.

    Every token of every frame is normalised with an affine part and projected to a key and a value, by
    `nn.MultiheadAttention`'s parameters and plain matrix products. That code also copies the tokens into another order
    and back, which is left out: the tokens are read as our backbone has them.
    """

    def __init__(self, block: GlobalBlock) -> None:
        super().__init__()
        width, heads = block.attn.embed_dim, block.attn.num_heads
        with torch.device("meta"):
            self.attn = nn.MultiheadAttention(width, heads)
        self.attn.load_state_dict(block.attn.state_dict(keep_vars=True), assign=True)
        self.ln_1, self.ln_2, self.ln_3 = block.ln_1, block.ln_2, block.ln_3
        self.mlp, self.drop_path = PublishedFeedForward(block.mlp), block.drop_path

    def forward(self, query: Tensor, regions: Tensor) -> Tensor:
        """`query` [B,1,C] after it read `regions` [B,M,C]."""
        query = query + self.drop_path(self._attend(self.ln_1(query), self.ln_3(regions)))
        return query + self.drop_path(self.mlp(self.ln_2(query)))

    def _attend(self, query: Tensor, regions: Tensor) -> Tensor:
        weights, biases = self.attn.in_proj_weight.chunk(3), self.attn.in_proj_bias.chunk(3)
        q, k, v = (
            (x @ weight.T + bias).unflatten(-1, (self.attn.num_heads, -1)).transpose(1, 2)  # [B, H, 1 or M, C/H]
            for x, weight, bias in zip((query, regions, regions), weights, biases, strict=True)
        )
        scores = q @ k.mT / self.attn.head_dim**0.5
        return self.attn.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def build(provider: str, model: Model, source: VideoClassifier | None = None) -> VideoClassifier:
    """A provider's model.

    Args:
        provider: of `PROVIDERS`.
        model: its size.
        source: `ART_OURS`, whose parameters it takes for its own; None makes new ones (on the device in force).
    """
    names = [f"class {index}" for index in range(BANK[1])]
    options = {"num_frames": model.frames, "backbone_options": model.backbone_options, **model.options}
    with torch.device("meta") if source is not None else torch.device(torch.get_default_device()):
        if provider in (ART_PUBLISHED, ART_OURS):
            bank = torch.randn(BANK)
            found: VideoClassifier = ARTModel(names, model.backbone, semantics=bank, **options)
        else:
            found = BackboneClassifier(names, model.backbone, **options)
    if source is not None:
        own = found.state_dict()
        shared = {name: value for name, value in source.state_dict(keep_vars=True).items() if name in own}
        found.load_state_dict(shared, assign=True)
    if provider in (PUBLISHED, ART_PUBLISHED):
        transformer = found.backbone.transformer
        for block in transformer.resblocks:
            block.mlp = PublishedFeedForward(block.mlp)
        for index, block in enumerate(transformer.dec):
            transformer.dec[index] = PublishedGlobalBlock(block)
    return found


def build_all(model: Model, device: torch.device) -> dict[str, VideoClassifier]:
    """All providers on a device, sharing one set of parameters, none of which is zero as at the start of a training:
    else the global blocks would be the identity, and there would be nothing to compare."""
    torch.manual_seed(0)
    source = build(ART_OURS, model).to(device)
    for parameter in source.backbone.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return {name: source if name == ART_OURS else build(name, model, source) for name in PROVIDERS}
