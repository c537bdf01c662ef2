"""``uniformerv2_*``: CLIP's vision transformer on each frame, and global blocks in which one query asks all frames.

After "UniFormerV2: Spatiotemporal Learning by Arming Image ViTs with Video UniFormer" (arXiv 2211.09552). Parameters
have the names and shapes of its checkpoints; :mod:`art.backbones.uniformerv2_weights` loads and writes those.
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

from art.backbones import uniformerv2_weights as published
from art.backbones.interface import Backbone, Features, as_unit_range, layered, register_backbone
from art_kernels import RegionCrossAttention

# The colours that the published models were trained on, also those that began with CLIP's weights.
COLOUR_MEAN, COLOUR_STD = 0.45, 0.225

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
        layers: local blocks.
        heads: attention heads of all blocks.
        patch_size: height and width of a patch in pixels.
        input_size: height and width of a frame in pixels, a multiple of ``patch_size``.
        local_mhra: local MHRA in each local block: 0 (as published for scenes: Kinetics), 1, or 2 (for movement:
            Something-Something).
        local_reduction: a local MHRA has this many times fewer channels inside.
        temporal_downsample: the first convolution sees three frames and leaves every second one.
        global_blocks: the local blocks, counted from 0, whose output feeds a global block; None is the last four.
        drop_path: stochastic depth of the last local block, rising from 0 at the first; clip by clip.
        global_drop_path: the same of the global blocks.
        global_dropout: dropout within the MLP of the global blocks.
        gradient_checkpointing: in training, attention and MLP of the local blocks keep no activation for the backward
            pass and are computed again: True for all blocks, a number for the first so many.
        frozen: the published frozen variant: what came from the image model is not trained, and x_cls is the global
            query alone.
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
        """Stop at a value that no model could be built with."""
        for name in ("width", "layers", "heads", "patch_size", "input_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.width % self.heads == 0, "width", self.width, f"a multiple of heads, {self.heads}")
        below = max(1, self.input_size // self.patch_size) * self.patch_size
        multiples = f"a multiple of patch_size, {self.patch_size}: {below} or {below + self.patch_size}"
        _require(self.input_size % self.patch_size == 0, "input_size", self.input_size, multiples)
        chosen = list(self.fed)
        ordered = len(chosen) > 0 and chosen == sorted(set(chosen)) and set(chosen) <= set(range(self.layers))
        blocks = f"at least one local block, in rising order, of 0 to {self.layers - 1}"
        _require(ordered, "global_blocks", chosen, blocks)
        _require(self.local_mhra in (0, 1, 2), "local_mhra", self.local_mhra, "0, 1 or 2")
        _require(1 <= self.local_reduction <= self.width, "local_reduction", self.local_reduction, "in [1, width]")
        for name in ("drop_path", "global_drop_path", "global_dropout"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        recompute = self.gradient_checkpointing
        _require(recompute >= 0, "gradient_checkpointing", recompute, "True, False, or a number of blocks")

    @property
    def fed(self) -> Sequence[int]:
        """``global_blocks``, with what None stands for."""
        return range(max(0, self.layers - 4), self.layers) if self.global_blocks is None else self.global_blocks

    @property
    def recomputed(self) -> int:
        """``gradient_checkpointing`` as a number of blocks."""
        return self.layers if self.gradient_checkpointing is True else int(self.gradient_checkpointing)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches of a frame, (h, w)."""
        return self.input_size // self.patch_size, self.input_size // self.patch_size


def _require(true: bool, name: str, came: object, expected: str) -> None:
    if not true:
        raise ValueError(f"{name} is {came}, expected {expected}")


class DropPath(nn.Module):
    """Stochastic depth: in training a clip goes without a branch with probability ``rate``, scaled up elsewhere."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "b *rest"]) -> Float[Tensor, "b *rest"]:
        """``branch``, or for some of the B clips zeros."""
        if not self.training or self.rate == 0:
            return branch
        stays = torch.rand(branch.shape[:1] + (1,) * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * (stays / (1 - self.rate)).to(branch.dtype)


def rising(rate: float, count: int) -> list[float]:
    """``count`` rates of stochastic depth in equal steps from 0 to ``rate``."""
    return [rate * index / max(1, count - 1) for index in range(count)]


class FeedForward(nn.Module):
    """A hidden layer of four times the width, with CLIP's activation x · sigmoid(1.702 x)."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch c"]:
        """The branch, still to be added.

        With s = 1.702, x · sigmoid(s x) = silu(s x) / s, and the products with the weights take both factors along: one
        pass over the hidden layer, the largest of a block, in place of three, and one copy of it less for the backward
        pass.
        """
        sharpness = 1.702
        hidden = torch.addmm(self.c_fc.bias, x.flatten(0, -2), self.c_fc.weight.mT, beta=sharpness, alpha=sharpness)
        hidden = self.dropout(F.silu(hidden))
        return torch.addmm(self.c_proj.bias, hidden, self.c_proj.weight.mT, alpha=1 / sharpness).view_as(x)


def on_grid(module: nn.Module, patches: Float[Tensor, "b t n c"], grid: tuple[int, int]) -> Float[Tensor, "b t n c"]:
    """What a module over volumes ``[B, C, T, h, w]`` makes of tokens that lie row by row."""
    volume = patches.unflatten(2, grid).permute(0, 4, 1, 2, 3)
    return module(volume).permute(0, 2, 3, 4, 1).flatten(2, 3)


def add_to_patches(x: Float[Tensor, "b t l c"], branch: Float[Tensor, "b t n c"]) -> Float[Tensor, "b t l c"]:
    """``x`` with ``branch`` added to the tokens behind the class token; L = 1 + N."""
    return torch.cat([x[:, :, :1], x[:, :, 1:] + branch], dim=2)


class LocalMHRA(nn.Module):
    """Local multi-head relation aggregation: each position looks at its neighbours in time, in fewer channels."""

    def __init__(self, width: int, reduction: float) -> None:
        super().__init__()
        inner = int(width // reduction)
        back = nn.Conv3d(inner, width, 1)
        # Zero at first: a block begins as the block of the image model that its weights come from.
        nn.init.zeros_(back.weight)
        nn.init.zeros_(back.bias)  # type: ignore[arg-type]
        self.pos_embed = nn.Sequential(
            nn.BatchNorm3d(width),
            nn.Conv3d(width, inner, 1),
            nn.Conv3d(inner, inner, (3, 1, 1), padding=(1, 0, 0), groups=inner),
            back,
        )

    def forward(self, volume: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The branch, still to be added."""
        return self.pos_embed(volume)


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameters of ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Float[Tensor, "f l c"]) -> Float[Tensor, "f l c"]:
        """Attention among the L tokens of each of F frames."""
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 × [F, H, L, C/H]
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LocalBlock(nn.Module):
    """CLIP's transformer block on each frame, with up to two local MHRA: before the attention and after it."""

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
        """``x`` after this block. ``recompute``: attention and MLP keep no activation for the backward pass."""
        # The local MHRA is not recomputed: its batch normalisation would count every batch twice.
        run: Callable[..., Tensor] = functools.partial(checkpoint, use_reentrant=False) if recompute else _call
        if self.lmhra1 is not None:
            x = add_to_patches(x, self.drop_path(on_grid(self.lmhra1, x[:, :, 1:], grid)))
        x = x + self.drop_path(run(self._attend, x))
        if self.lmhra2 is not None:
            x = add_to_patches(x, self.drop_path(on_grid(self.lmhra2, x[:, :, 1:], grid)))
        return x + self.drop_path(run(self._transform, x))

    def _attend(self, x: Float[Tensor, "b t l c"]) -> Float[Tensor, "b t l c"]:
        return self.attn(self.ln_1(x).flatten(0, 1)).view_as(x)

    def _transform(self, x: Float[Tensor, "b t l c"]) -> Float[Tensor, "b t l c"]:
        return self.mlp(self.ln_2(x))


def _call(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x)


class GlobalBlock(nn.Module):
    """One query asks the tokens of all frames: cross-attention and MLP, pre-norm, residual on the query."""

    def __init__(self, a: Architecture, drop_path: float) -> None:
        super().__init__()
        self.attn = RegionCrossAttention(a.width, a.heads, norm_regions=True)
        self.ln_1 = nn.LayerNorm(a.width)
        self.mlp = FeedForward(a.width, a.global_dropout)
        self.ln_2 = nn.LayerNorm(a.width)
        self.ln_3 = nn.LayerNorm(a.width)  # of the regions: it is never called, see _folded
        self.drop_path = DropPath(drop_path)
        # Zero at first: the block begins as the identity.
        for layer in (self.attn.out_proj, self.mlp.c_proj):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.mlp.c_fc.weight)

    def forward(self, query: Float[Tensor, "b 1 c"], regions: Float[Tensor, "b m c"]) -> Float[Tensor, "b 1 c"]:
        """The query after it read the M = T·L regions, each layer-normalised; they are read where they lie."""
        answer, _ = functional_call(self.attn, self._folded(), (self.ln_1(query), regions))
        query = query + self.drop_path(answer)
        return query + self.drop_path(self.mlp(self.ln_2(query)))

    def _folded(self) -> dict[str, Tensor]:
        """The projections of keys and values with the affine part of ln_3 in them.

        W (γ ∘ x + β) + b = (W diag γ) x + (W β + b), exactly; 2·C² products a pass, in place of an operation on all M·C
        numbers. It is done in each pass, so that training reaches W, b, γ and β as they are published.
        """
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        assert weight is not None and bias is not None
        queries, others = weight.tensor_split([weight.shape[1]])
        shift = F.pad(others @ self.ln_3.bias, (weight.shape[1], 0))
        return {"in_proj_weight": torch.cat([queries, others * self.ln_3.weight]), "in_proj_bias": bias + shift}


class VideoTransformer(nn.Module):
    """The local blocks one after another, and a global block beside each of them that feeds one."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.global_blocks = tuple(a.fed)
        self.recomputed = a.recomputed
        count = len(self.global_blocks)
        self.resblocks = nn.ModuleList(LocalBlock(a, rate) for rate in rising(a.drop_path, a.layers))
        self.temporal_cls_token = nn.Parameter(torch.zeros(1, 1, a.width))
        self.dpe = nn.ModuleList(nn.Conv3d(a.width, a.width, 3, padding=1, groups=a.width) for _ in range(count))
        for convolution in self.dpe.children():
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        self.dec = nn.ModuleList(GlobalBlock(a, rate) for rate in rising(a.global_drop_path, count))
        self.balance = None if a.frozen else nn.Parameter(torch.zeros(a.width))

    def forward(
        self, x: Float[Tensor, "b t l c"], grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "b t l c"], Float[Tensor, "b c"]]:
        """The tokens of each frame, its class token first, and x_cls."""
        query = self.temporal_cls_token.expand(x.shape[0], -1, -1)
        for index, block in enumerate(self.resblocks):
            x = block(x, grid, recompute=self.training and index < self.recomputed)
            if index in self.global_blocks:
                query = self._ask_all_frames(self.global_blocks.index(index), query, x, grid)
        if self.balance is None:
            return x, query[:, 0]
        return x, torch.lerp(query[:, 0], x[:, :, 0].mean(1), self.balance.sigmoid())

    def _ask_all_frames(
        self, number: int, query: Float[Tensor, "b 1 c"], x: Float[Tensor, "b t l c"], grid: tuple[int, int]
    ) -> Float[Tensor, "b 1 c"]:
        """Global block ``number``, over the tokens with a dynamic position encoding added to them."""
        position = on_grid(self.dpe[number], x[:, :, 1:], grid)
        return self.dec[number](query, add_to_patches(x, position).flatten(1, 2))


class UniFormerV2(Backbone):
    """UniFormerV2. ``class_token`` is the gated mix of the global query and the mean class token of the frames, as it
    enters the published head (its LayerNorm); ``tokens`` are the output of the last local block, without class tokens.

    Args:
        num_frames: T; any number, an even one with ``temporal_downsample``, where two frames get the same tokens.
        pretrained: path of a checkpoint, or None. A published UniFormerV2 (names with or without "backbone."), or CLIP
            with the names of OpenAI or open_clip, trained with QuickGELU: its image tower, alone or in the whole model.
            Its first convolution is inflated, and what only videos need starts from scratch. Positions are interpolated
            to ``input_size``. Every other difference is an error.
        keep_head: the L_v head is the checkpoint's classification head, its LayerNorm included, instead of a new one.
        head_labels: which of its labels, in the order of the classes: indices, or the path of a JSON list of them; None
            is all.
        architecture: fields of :class:`Architecture`. The name of the backbone gives the size, any part of which may be
            given too.

    Raises:
        ValueError: a value out of range; a checkpoint that does not fit: all names and shapes, and what would fit.
        TypeError: an option that there is not.
        FileNotFoundError: ``pretrained`` or ``head_labels`` names no file.
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
            raise ValueError("head_labels is given, but keep_head is False: there is no head to choose labels from")
        self.architecture = a = Architecture(**architecture)
        self._check_frames(num_frames)
        self.channels = a.width
        self.input_size = a.input_size
        depth, stride = (3, 2) if a.temporal_downsample else (1, 1)
        patch, padding = (a.patch_size, a.patch_size), (depth // 2, 0, 0)
        self.conv1 = nn.Conv3d(3, a.width, (depth, *patch), (stride, *patch), padding, bias=False)
        self.class_embedding = nn.Parameter(a.width**-0.5 * torch.randn(a.width))
        self.positional_embedding = nn.Parameter(a.width**-0.5 * torch.randn(1 + a.grid[0] * a.grid[1], a.width))
        self.ln_pre = nn.LayerNorm(a.width)
        self.transformer = VideoTransformer(a)
        if a.frozen:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(not name.startswith(published.OF_IMAGES))
        self.keep_head = keep_head
        self._kept: dict[str, Tensor] | None = None
        if pretrained is not None:
            head = published.load(self, pretrained, SIZES)
            self._kept = published.labels_of(head, head_labels, pretrained) if keep_head else None

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """See :class:`~art.backbones.interface.Backbone`.

        Raises:
            ValueError: frames of another size than ``input_size``, or an odd number of them that is to be halved.
            TypeError: another dtype.
        """
        video = as_unit_range(video)
        self._check_frames(video.shape[1])
        self._check_resolution(video.shape[3], video.shape[4])
        grid = self.architecture.grid
        patches = self.conv1(((video - COLOUR_MEAN) / COLOUR_STD).transpose(1, 2))  # [B, C, T', h, w]
        patches = patches.permute(0, 2, 3, 4, 1).flatten(2, 3)
        class_token = self.class_embedding.to(patches.dtype).expand(*patches.shape[:2], 1, -1)
        x = self.ln_pre(torch.cat([class_token, patches], dim=2) + self.positional_embedding)
        x, class_token = self.transformer(x, grid)
        tokens = x[:, :, 1:]
        if self.architecture.temporal_downsample:
            tokens = tokens.repeat_interleave(2, dim=1)
        return Features(tokens, class_token, grid)

    def video_head(self, num_classes: int) -> nn.Linear:
        """The L_v head; with ``keep_head`` of the published form, and with the checkpoint's weights if there is one.

        Raises:
            ValueError: the checkpoint's head, or what ``head_labels`` chose of it, has another number of labels.
        """
        if not self.keep_head:
            return super().video_head(num_classes)
        head = published.NormalisedLinear(self.channels, num_classes)
        if self._kept is not None:
            labels = len(self._kept["weight"])
            if labels != num_classes:
                raise ValueError(
                    f"the kept head has {labels} labels, but there are {num_classes} classes; give head_labels with "
                    "the label of each class, or keep_head=False for a new head"
                )
            head.load_state_dict(self._kept)
        return head

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """The embedding, and each local block; with the last, what makes x_cls: the global blocks."""
        embedding = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.")
        return layered(self, embedding, [f"transformer.resblocks.{i}." for i in range(self.architecture.layers)])

    def _check_frames(self, num_frames: int) -> None:
        if self.architecture.temporal_downsample and num_frames % 2:
            raise ValueError(
                f"there are {num_frames} frames, which temporal_downsample cannot halve; expected an even number "
                f"such as {num_frames + 1}, or temporal_downsample=False, which takes any"
            )

    def _check_resolution(self, height: int, width: int) -> None:
        a = self.architecture
        if (height, width) != (a.input_size, a.input_size):
            raise ValueError(
                f"video has frames of {height}×{width} pixels, but there are positions for {a.grid[0]}×{a.grid[1]} "
                f"patches of {a.patch_size}: expected {a.input_size}×{a.input_size}; for another square give another "
                f"input_size, a multiple of {a.patch_size}, to which the positions of a checkpoint are interpolated"
            )


for _name, _size in SIZES.items():
    register_backbone(_name)(functools.partial(UniFormerV2, **_size))
