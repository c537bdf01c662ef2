"""Head ``attentive``: the attentive probe of V-JEPA 2, and loading of its published weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from art.backbones.base import Features, load_by_name
from art.heads.base import FeatureShape, Head, HeadOutput, TimePosition, register_head
from art_kernels import RegionCrossAttention


@register_head("attentive")
class AttentiveHead(Head):
    """``depth`` − 1 blocks of self-attention over all tokens, one of cross-attention with a learned query, and a linear
    classifier.

    The last block has no output projection, and does not normalize the query. Papers call both depth 1 (V-JEPA) and
    depth 4 (V-JEPA 2) an attentive probe; depth 4 costs about as much as the backbone.

    Args:
        shape: of the features.
        class_names: Y names, in label order.
        depth: number of blocks.
        num_heads: attention heads; default: C / 64, at least 1.
        mlp_ratio: hidden width of the feed-forward blocks, in multiples of C.
        time_position: see :class:`Head`.

    Raises:
        ValueError: If ``depth`` is below 1, or ``num_heads`` does not divide C.
    """

    has_maps = True
    map_noun = ("attention head",)

    def __init__(
        self,
        shape: FeatureShape,
        class_names: Sequence[str],
        *,
        depth: int = 1,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        time_position: TimePosition = "none",
    ) -> None:
        super().__init__(shape, class_names, time_position=time_position)
        channels = shape.channels
        num_heads = max(1, channels // 64) if num_heads is None else num_heads
        if depth < 1:
            raise ValueError(f"depth is {depth}, expected at least 1")
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"num_heads is {num_heads}, expected a divisor of {channels} channels")
        self.layers = nn.ModuleList(SelfAttentionBlock(channels, num_heads, mlp_ratio) for _ in range(depth - 1))
        self.query = nn.Parameter(torch.zeros(1, channels))
        self.region_norm = nn.LayerNorm(channels, eps=1e-6)
        self.attention = RegionCrossAttention(channels, num_heads)
        self.attention.out_proj = nn.Identity()  # type: ignore[assignment]
        self.mlp_norm, self.mlp = nn.LayerNorm(channels, eps=1e-6), _mlp(channels, mlp_ratio)
        self.classifier = nn.Linear(channels, self.num_classes)
        self._initialize()

    def forward(self, features: Features, *, return_maps: bool = False) -> HeadOutput:
        """Return the logits, and with ``return_maps`` the attention of each head of the last block."""
        tokens = self.tokens(features)
        for layer in self.layers:
            tokens = layer(tokens)
        query = self.query.expand(tokens.shape[0], -1, -1)
        pooled, maps = self.attention(query, self.region_norm(tokens), return_map=return_maps)
        pooled = (query + pooled)[:, 0]
        pooled = pooled + self.mlp(self.mlp_norm(pooled))
        return HeadOutput(self.classifier(pooled), None if maps is None else self.unflatten_maps(maps[:, :, 0]))

    def load_vjepa2(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load the probe of a V-JEPA 2 checkpoint in the format of transformers (``VJEPA2ForVideoClassification``).

        Args:
            state: the state dict of the checkpoint; the parameters of its encoder and predictor are ignored.
            source: the file, for error messages.

        Raises:
            ValueError: If names are missing or shapes differ. The message lists them, and nothing is loaded.
        """
        probe = {name: tensor for name, tensor in state.items() if name.startswith(("pooler.", "classifier."))}
        expected = f"a V-JEPA 2 checkpoint with a classifier of {self.num_classes} classes and a probe of this depth"
        load_by_name(self, _from_vjepa2(probe), source=source, expected=expected)

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.query, std=0.02)
        for parameter in self.attention.parameters():
            nn.init.trunc_normal_(parameter, std=0.02) if parameter.ndim > 1 else nn.init.zeros_(parameter)
        with torch.no_grad():  # the residual branches shrink with depth, as in V-JEPA
            for name, parameter in self.named_parameters():
                if name.endswith(("out_proj.weight", "mlp.2.weight")):
                    number = int(name.split(".")[1]) + 1 if name.startswith("layers.") else len(self.layers) + 1
                    parameter.div_(math.sqrt(2 * number))


class SelfAttentionBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm, self.qkv = nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, 3 * channels)
        self.out_proj = nn.Linear(channels, channels)
        self.mlp_norm, self.mlp = nn.LayerNorm(channels, eps=1e-6), _mlp(channels, mlp_ratio)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Apply the block."""
        q, k, v = self.qkv(self.norm(tokens)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.out_proj(attended)
        return tokens + self.mlp(self.mlp_norm(tokens))


def _mlp(channels: int, ratio: float) -> nn.Sequential:
    hidden = int(channels * ratio)
    return nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))


def _from_vjepa2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names of transformers; query, key and value projections become one."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".q_proj." in name:
            parts = [state.get(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
            tensor = torch.cat([part for part in parts if part is not None])
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        for old, new in _VJEPA2_NAMES.items():
            name = name.replace(old, new)
        renamed[name] = tensor.flatten(0, 1) if name == "query" else tensor
    return renamed


_VJEPA2_NAMES = {
    "pooler.query_tokens": "query",
    "pooler.cross_attention_layer.layer_norm1": "region_norm",
    "pooler.cross_attention_layer.cross_attn.q_proj.weight": "attention.in_proj_weight",
    "pooler.cross_attention_layer.cross_attn.q_proj.bias": "attention.in_proj_bias",
    "pooler.cross_attention_layer.": "",
    "pooler.self_attention_layers.": "layers.",
    "self_attn.q_proj": "qkv",
    "self_attn.out_proj": "out_proj",
    "layer_norm1": "norm",
    "layer_norm2": "mlp_norm",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
