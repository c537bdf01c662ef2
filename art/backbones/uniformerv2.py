"""Backbones ``uniformerv2_*``: CLIP's vision transformer per frame, and global blocks with one query for all frames.

After "UniFormerV2: Spatiotemporal Learning by Arming Image ViTs with Video UniFormer" (arXiv 2211.09552). Parameters
have the names and shapes of its checkpoints; :mod:`art.backbones.uniformerv2_weights` reads and writes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import art.backbones.uniformerv2_weights as weights
from art.backbones.base import (
    Backbone,
    Features,
    check_frame_size,
    check_tiling,
    group_params_by_layer,
    register_backbone,
    to_float01,
)
from art_kernels import RegionCrossAttention

# The normalization of the published models, including those initialized from CLIP.
IMAGE_MEAN, IMAGE_STD = 0.45, 0.225

SIZES: dict[str, dict[str, Any]] = {
    "uniformerv2_b16": {"width": 768, "layers": 12, "heads": 12, "patch_size": 16, "input_size": 224},
    "uniformerv2_l14": {"width": 1024, "layers": 24, "heads": 16, "patch_size": 14, "input_size": 224},
    "uniformerv2_l14_336": {"width": 1024, "layers": 24, "heads": 16, "patch_size": 14, "input_size": 336},
}


@dataclass(frozen=True)
class Architecture:
    """Size and options of :class:`UniFormerV2`.

    Attributes:
        width: C, channels.
        layers: number of local blocks.
        heads: attention heads of every block.
        patch_size: height and width of a patch in pixels.
        input_size: height and width of a frame in pixels, a multiple of ``patch_size``.
        local_mhra: local MHRA modules per local block: 0 (published for Kinetics), 1, or 2 (for Something-Something).
        local_reduction: channel reduction inside a local MHRA.
        temporal_downsample: the first convolution spans three frames with a temporal stride of 2.
        global_blocks: indices of the local blocks that are followed by a global block; None is the last four.
        drop_path: stochastic depth rate of the last local block, rising linearly from 0 at the first.
        global_drop_path: stochastic depth rate of the last global block.
        global_dropout: dropout in the MLP of the global blocks.
        gradient_checkpointing: recompute attention and MLP of the local blocks in the backward pass: True for all
            blocks, or the number of blocks, counted from the first.
        frozen: the published frozen variant: the parameters of the image model are fixed, and x_cls is the global query
            alone.
    """

    width: int
    layers: int
    heads: int
    patch_size: int
    input_size: int
    local_mhra: int = 0
    local_reduction: float = 1.5
    temporal_downsample: bool = False
    global_blocks: Sequence[int] | None = None
    drop_path: float = 0.0
    global_drop_path: float = 0.0
    global_dropout: float = 0.5
    gradient_checkpointing: bool | int = False
    frozen: bool = False

    def __post_init__(self) -> None:
        """Validate the values."""
        for name in ("width", "layers", "heads", "patch_size", "input_size"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("width", self.width % self.heads == 0, f"a multiple of heads, {self.heads}")
        check_tiling(self.input_size, self.patch_size)
        blocks = list(self.resolved_global_blocks)
        valid = len(blocks) > 0 and blocks == sorted(set(blocks)) and set(blocks) <= set(range(self.layers))
        self._require("global_blocks", valid, f"at least one index of 0 to {self.layers - 1}, in ascending order")
        self._require("local_mhra", self.local_mhra in (0, 1, 2), "0, 1 or 2")
        self._require("local_reduction", 1 <= self.local_reduction <= self.width, "in [1, width]")
        for name in ("drop_path", "global_drop_path", "global_dropout"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("gradient_checkpointing", self.gradient_checkpointing >= 0, "True, False, or a number of blocks")

    def _require(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            raise ValueError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    @property
    def resolved_global_blocks(self) -> Sequence[int]:
        """``global_blocks``, with None resolved."""
        return range(max(0, self.layers - 4), self.layers) if self.global_blocks is None else self.global_blocks

    @property
    def num_recomputed(self) -> int:
        """``gradient_checkpointing`` as a number of blocks."""
        return self.layers if self.gradient_checkpointing is True else int(self.gradient_checkpointing)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per frame, (h, w)."""
        return self.input_size // self.patch_size, self.input_size // self.patch_size


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a branch with probability ``rate`` per clip, and rescale it otherwise."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "b *rest"]) -> Float[Tensor, "b *rest"]:
        """Return ``branch``, set to zero for the dropped clips."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(branch.shape[:1] + (1,) * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * (kept / (1 - self.rate)).to(branch.dtype)


def linear_drop_rates(rate: float, count: int) -> list[float]:
    """Return ``count`` stochastic depth rates in equal steps from 0 to ``rate``."""
    return [rate * index / max(1, count - 1) for index in range(count)]


class FeedForward(nn.Module):
    """MLP with a hidden layer of 4 · width channels and QuickGELU, x · sigmoid(1.702 x), as in CLIP."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        """Return the residual branch.

        With s = 1.702, x · sigmoid(s x) = silu(s x) / s. Both factors are folded into the matrix products, which takes
        one pass over the hidden layer, the largest tensor of a block, instead of three, and saves one copy less.
        """
        s = 1.702
        hidden = torch.addmm(self.c_fc.bias, x.flatten(0, -2), self.c_fc.weight.mT, beta=s, alpha=s)
        hidden = self.dropout(F.silu(hidden))
        return torch.addmm(self.c_proj.bias, hidden, self.c_proj.weight.mT, alpha=1 / s).view_as(x)


def apply_on_grid(
    module: nn.Module, patches: Float[Tensor, "b t n c"], grid: tuple[int, int]
) -> Float[Tensor, "b t n c"]:
    """Apply a module for volumes ``[B, C, T, h, w]`` to tokens in row-major order."""
    volume = patches.unflatten(2, grid).permute(0, 4, 1, 2, 3)
    return module(volume).permute(0, 2, 3, 4, 1).flatten(2, 3)


def add_to_patches(x: Float[Tensor, "b t l c"], branch: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t l c"]:
    """Add ``branch`` to the patch tokens of ``x``, which follow the class token; L = 1 + N."""
    return torch.cat([x[:, :, :1], x[:, :, 1:] + branch], dim=2)


class LocalMHRA(nn.Module):
    """Local multi-head relation aggregation: a temporal depthwise convolution with reduced channels."""

    def __init__(self, width: int, reduction: float) -> None:
        super().__init__()
        inner = int(width // reduction)
        expand = nn.Conv3d(inner, width, 1)
        # Zero initialization: a new block computes the same as the image model's block.
        nn.init.zeros_(expand.weight)
        nn.init.zeros_(expand.bias)  # type: ignore[arg-type]
        self.pos_embed = nn.Sequential(
            nn.BatchNorm3d(width),
            nn.Conv3d(width, inner, 1),
            nn.Conv3d(inner, inner, (3, 1, 1), padding=(1, 0, 0), groups=inner),
            expand,
        )

    def forward(self, volume: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Return the residual branch."""
        return self.pos_embed(volume)


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names of ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Float[Tensor, "f l c"]) -> Float[Tensor, "f l c"]:
        """Attend among the L tokens of each of F frames."""
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 × [F, H, L, C/H]
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LocalBlock(nn.Module):
    """CLIP's transformer block on each frame, with up to two local MHRA modules, before and after the attention."""

    def __init__(self, a: Architecture, drop_path: float) -> None:
        super().__init__()
        self.lmhra1 = LocalMHRA(a.width, a.local_reduction) if a.local_mhra >= 1 else None
        self.lmhra2 = LocalMHRA(a.width, a.local_reduction) if a.local_mhra >= 2 else None
        self.attn = SelfAttention(a.width, a.heads)
        self.ln_1 = nn.LayerNorm(a.width)
        self.mlp = FeedForward(a.width)
        self.ln_2 = nn.LayerNorm(a.width)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "b t l c"], grid: tuple[int, int], *, recompute: bool = False
    ) -> Float[Tensor, "b t l c"]:
        """Apply the block; ``recompute`` recomputes attention and MLP in the backward pass."""
        # The local MHRA is not recomputed: its batch normalization would update its statistics twice.
        run: Callable[..., Tensor] = (
            functools.partial(checkpoint, use_reentrant=False) if recompute else lambda f, x: f(x)
        )
        if self.lmhra1 is not None:
            x = add_to_patches(x, self.drop_path(apply_on_grid(self.lmhra1, x[:, :, 1:], grid)))
        x = x + self.drop_path(run(self._attend, x))
        if self.lmhra2 is not None:
            x = add_to_patches(x, self.drop_path(apply_on_grid(self.lmhra2, x[:, :, 1:], grid)))
        return x + self.drop_path(run(lambda x: self.mlp(self.ln_2(x)), x))

    def _attend(self, x: Float[Tensor, "b t l c"]) -> Float[Tensor, "b t l c"]:
        return self.attn(self.ln_1(x).flatten(0, 1)).view_as(x)


class GlobalBlock(nn.Module):
    """Cross-attention from one query to the tokens of all frames, and an MLP; pre-norm, residual on the query."""

    def __init__(self, a: Architecture, drop_path: float) -> None:
        super().__init__()
        self.attn = RegionCrossAttention(a.width, a.heads, norm_regions=True)
        self.ln_1 = nn.LayerNorm(a.width)
        self.mlp = FeedForward(a.width, a.global_dropout)
        self.ln_2 = nn.LayerNorm(a.width)
        self.ln_3 = nn.LayerNorm(a.width)  # for the regions; folded into the projections, never called
        self.drop_path = DropPath(drop_path)
        # Zero initialization: a new block is the identity.
        for layer in (self.attn.out_proj, self.mlp.c_proj):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.mlp.c_fc.weight)

    def forward(self, query: Float[Tensor, "b 1 c"], regions: Float[Tensor, "b m c"]) -> Float[Tensor, "b 1 c"]:
        """Return the updated query. The M = T·L regions are layer-normalized in the kernel and not copied."""
        attended, _ = functional_call(self.attn, self._folded_projections(), (self.ln_1(query), regions))
        query = query + self.drop_path(attended)
        return query + self.drop_path(self.mlp(self.ln_2(query)))

    def _folded_projections(self) -> dict[str, Tensor]:
        """Return the attention's parameters with the affine part of ln_3 folded into the key and value projections.

        W (γ ∘ x + β) + b = (W diag γ) x + (W β + b): 2·C² multiplications instead of an operation on M·C elements.
        Repeated in each forward pass, so that W, b, γ, and β are trained.
        """
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        assert weight is not None and bias is not None
        query_weight, kv_weight = weight.tensor_split([weight.shape[1]])
        shift = F.pad(kv_weight @ self.ln_3.bias, (weight.shape[1], 0))
        return {"in_proj_weight": torch.cat([query_weight, kv_weight * self.ln_3.weight]), "in_proj_bias": bias + shift}


class VideoTransformer(nn.Module):
    """The local blocks in sequence, and the global blocks after some of them."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.global_blocks = tuple(a.resolved_global_blocks)
        self.num_recomputed = a.num_recomputed
        count = len(self.global_blocks)
        self.resblocks = nn.ModuleList(LocalBlock(a, rate) for rate in linear_drop_rates(a.drop_path, a.layers))
        self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, a.width))
        self.dpe = nn.ModuleList(nn.Conv3d(a.width, a.width, 3, padding=1, groups=a.width) for _ in range(count))
        for convolution in self.dpe.children():
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        self.dec = nn.ModuleList(GlobalBlock(a, rate) for rate in linear_drop_rates(a.global_drop_path, count))
        self.balance = None if a.frozen else nn.Parameter(torch.zeros(a.width))

    def forward(
        self, x: Float[Tensor, "b t l c"], grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "b t l c"], Float[Tensor, "b c"]]:
        """Return the tokens of each frame, the class token first, and x_cls."""
        query = self.temporal_cls_token.expand(x.shape[0], -1, -1)
        for index, block in enumerate(self.resblocks):
            x = block(x, grid, recompute=self.training and index < self.num_recomputed)
            if index in self.global_blocks:
                number = self.global_blocks.index(index)
                position = apply_on_grid(self.dpe[number], x[:, :, 1:], grid)  # dynamic position encoding
                query = self.dec[number](query, add_to_patches(x, position).flatten(1, 2))
        if self.balance is None:
            return x, query[:, 0]
        return x, torch.lerp(query[:, 0], x[:, :, 0].mean(1), self.balance.sigmoid())


class UniFormerV2(Backbone):
    """UniFormerV2.

    ``class_token`` is the gated sum of the global query and the mean class token of the frames, the input of the
    published head; ``tokens`` are the output of the last local block, without class tokens.

    Args:
        num_frames: T; any number. With ``temporal_downsample`` it must be even, and two frames share the same tokens.
        pretrained: path of a checkpoint: a published UniFormerV2 (names with or without "backbone."), or CLIP trained
            with QuickGELU, with OpenAI's or open_clip's names: the whole model or its image tower. CLIP's
            first convolution is inflated, and the video modules keep their initial values. Position embeddings are
            interpolated to ``input_size``. Any other difference is an error.
        keep_head: use the checkpoint's classification head, including its LayerNorm, as the L_v head.
        head_labels: rows of that head to keep, in the order of the classes: indices, or the path of a JSON list of
            them; None keeps all.
        architecture: fields of :class:`Architecture`; they override those of the named size.

    Raises:
        ValueError: If a value is out of range, or the checkpoint does not match: the message lists all names and shapes
            that differ and the options that match.
        TypeError: If an option is unknown.
        FileNotFoundError: If ``pretrained`` or ``head_labels`` does not exist.
    """

    def __init__(
        self,
        *,
        num_frames: int,
        pretrained: str | None = None,
        keep_head: bool = False,
        head_labels: Sequence[int] | str | None = None,
        **architecture: Any,
    ) -> None:
        super().__init__()
        if head_labels is not None and not keep_head:
            raise ValueError("head_labels is given, but keep_head is False")
        self.architecture = a = Architecture(**architecture)
        self._check_frames(num_frames)
        self.channels = a.width
        self.input_size, self.grid = a.input_size, a.grid
        depth, stride = (3, 2) if a.temporal_downsample else (1, 1)
        patch, padding = (a.patch_size, a.patch_size), (depth // 2, 0, 0)
        self.conv1 = nn.Conv3d(3, a.width, (depth, *patch), (stride, *patch), padding, bias=False)
        self.class_embedding = nn.Parameter(a.width**-0.5 * torch.randn(a.width))
        self.positional_embedding = nn.Parameter(a.width**-0.5 * torch.randn(1 + a.grid[0] * a.grid[1], a.width))
        self.ln_pre = nn.LayerNorm(a.width)
        self.transformer = VideoTransformer(a)
        if a.frozen:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(not name.startswith(weights.IMAGE_PARAMETERS))
        self.keep_head = keep_head
        self._pretrained_head: dict[str, Tensor] | None = None
        if pretrained is not None:
            head = weights.load(self, pretrained, SIZES)
            self._pretrained_head = weights.select_labels(head, head_labels, pretrained) if keep_head else None

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """Return the features of frames, ``input_size`` pixels square, of even number with ``temporal_downsample``."""
        video = to_float01(video)
        self._check_frames(video.shape[1])
        grid = self.architecture.grid
        check_frame_size(video, self.input_size, grid)
        patches = self.conv1(((video - IMAGE_MEAN) / IMAGE_STD).transpose(1, 2))  # [B, C, T', h, w]
        patches = patches.permute(0, 2, 3, 4, 1).flatten(2, 3)
        class_token = self.class_embedding.to(patches.dtype).expand(*patches.shape[:2], 1, -1)
        x = self.ln_pre(torch.cat([class_token, patches], dim=2) + self.positional_embedding)
        x, class_token = self.transformer(x, grid)
        tokens = x[:, :, 1:]
        if self.architecture.temporal_downsample:
            tokens = tokens.repeat_interleave(2, dim=1)
        return Features(tokens, class_token, grid)

    def video_head(self, num_classes: int) -> nn.Linear:
        """Return the L_v head. With ``keep_head`` it has the published form, and the weights of the checkpoint, if any.

        Raises:
            ValueError: If the checkpoint's head, after selecting ``head_labels``, has another number of labels.
        """
        if not self.keep_head:
            return super().video_head(num_classes)
        head = weights.NormalizedLinear(self.channels, num_classes)
        if self._pretrained_head is not None:
            labels = len(self._pretrained_head["weight"])
            if labels != num_classes:
                raise ValueError(
                    f"the checkpoint's head has {labels} labels, but there are {num_classes} classes; pass head_labels "
                    "with the label of each class, or keep_head=False for a new head"
                )
            head.load_state_dict(self._pretrained_head)
        return head

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """Return one group for the embedding and one per local block; the last includes the global blocks."""
        embedding = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.")
        return group_params_by_layer(
            self, embedding, [f"transformer.resblocks.{i}." for i in range(self.architecture.layers)]
        )

    def _check_frames(self, num_frames: int) -> None:
        if self.architecture.temporal_downsample and num_frames % 2:
            raise ValueError(
                f"got {num_frames} frames, which temporal_downsample cannot halve; expected an even number such as "
                f"{num_frames + 1}, or temporal_downsample=False, which supports any number"
            )


for _name, _size in SIZES.items():
    register_backbone(_name)(functools.partial(UniFormerV2, **_size))
