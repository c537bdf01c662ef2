"""Heads ``mean``, ``cls`` and ``ep``: one pooled vector, normalized, and a linear classifier."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from art.backbones.base import Features
from art.heads.base import FeatureShape, Head, HeadOutput, TimePosition, register_head
from art_kernels import region_attention


class LinearClassifier(nn.Sequential):
    """Batch normalization without affine parameters, and a linear layer, as in MAE's linear probing.

    The normalization makes one learning rate fit features of any scale.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        linear = nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        super().__init__(nn.BatchNorm1d(channels, affine=False, eps=1e-6), linear)


class LinearProbe(Head):
    """Base class of the linear probes. They have no time position, which would only add a constant."""

    def __init__(self, shape: FeatureShape, class_names: Sequence[str]) -> None:
        super().__init__(shape, class_names)
        self.classifier = LinearClassifier(shape.channels, self.num_classes)

    @abstractmethod
    def pool(self, features: Features) -> Float[Tensor, "b c"]:
        """Return the vector to classify."""

    def forward(self, features: Features, *, return_maps: bool = False) -> HeadOutput:
        """Return the logits."""
        return HeadOutput(self.classifier(self.pool(features)))

    @staticmethod
    def forward_together(heads: Sequence[LinearProbe], features: Features) -> list[HeadOutput]:
        """Pool once, and return the output of each head."""
        pooled = heads[0].pool(features)
        return [HeadOutput(head.classifier(pooled)) for head in heads]


@register_head("mean")
class MeanHead(LinearProbe):
    """A linear probe on the mean of all tokens."""

    def pool(self, features: Features) -> Float[Tensor, "b c"]:
        """Return the mean."""
        return self.tokens(features).mean(1)


@register_head("cls")
class ClassTokenHead(LinearProbe):
    """A linear probe on ``class_token``, the global feature that the backbone's own classifier would receive."""

    def pool(self, features: Features) -> Float[Tensor, "b c"]:
        """Return the class token."""
        return features.class_token


@register_head("ep")
class EfficientProbing(Head):
    """Efficient probing: Q learned queries on raw tokens, each pooling its own part of the projected channels.

    y_j = Σ_i softmax_i(u_j · x_i / √C) W_j x_i, concatenated over j, normalized, and classified. W_j is applied after
    pooling, which is equal and does not project the tokens: Q · N · C instead of N · C² multiplications for N tokens.

    Args:
        shape: of the features.
        class_names: Y names, in label order.
        num_queries: Q, a divisor of the projected channels.
        channel_reduction: the projected channels are C / ``channel_reduction``.
        time_position: see :class:`Head`.

    Raises:
        ValueError: If ``num_queries`` does not divide the projected channels, or ``channel_reduction`` C.

    Source: Psomas et al., "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency", 2025.
    """

    has_maps = True

    def __init__(
        self,
        shape: FeatureShape,
        class_names: Sequence[str],
        *,
        num_queries: int = 8,
        channel_reduction: int = 1,
        time_position: TimePosition = "none",
    ) -> None:
        super().__init__(shape, class_names, time_position=time_position)
        projected = shape.channels // channel_reduction
        if channel_reduction < 1 or shape.channels % channel_reduction:
            raise ValueError(
                f"channel_reduction is {channel_reduction}, expected a divisor of {shape.channels} channels"
            )
        if num_queries < 1 or projected % num_queries:
            raise ValueError(f"num_queries is {num_queries}, expected a divisor of {projected} projected channels")
        self.queries = nn.Parameter(torch.empty(num_queries, shape.channels).normal_(std=0.02))
        self.value = nn.Linear(shape.channels, projected, bias=False)
        self.classifier = LinearClassifier(projected, self.num_classes)

    def forward(self, features: Features, *, return_maps: bool = False) -> HeadOutput:
        """Return the logits, and with ``return_maps`` the attention of each query."""
        tokens = self.tokens(features)
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        if return_maps:
            pooled, maps = region_attention(queries, tokens, return_map=True)
            return HeadOutput(self.classifier(self.project(pooled)), self.unflatten_maps(maps))
        return HeadOutput(self.classifier(self.project(region_attention(queries, tokens))))

    @staticmethod
    def forward_together(heads: Sequence[EfficientProbing], features: Features) -> list[HeadOutput]:
        """Return the output of each head from one call of ``region_attention`` with the queries of all heads.

        The time positions p_t differ between heads, but not the tokens: with e_t, the unit vector of step t, as further
        channels of the tokens, u · (x + p_t) = (u, u Pᵀ) · (x, e_t). Pooling e_t computes the weight of each step.
        """
        first, channels = heads[0], heads[0].shape.channels
        tokens = first.checked(features).tokens
        queries: list[Tensor] = [head.queries for head in heads]
        positions = [head.time_position[:, 0] for head in heads if head.time_position is not None]  # of all, or none
        if positions:
            steps = torch.eye(first.shape.num_steps, dtype=tokens.dtype, device=tokens.device)
            tokens = torch.cat([tokens, steps[:, None].expand(*tokens.shape[:-1], -1)], -1)
            queries = [torch.cat([u, u @ p.mT], 1) for u, p in zip(queries, positions, strict=True)]
        joined = torch.cat(queries).expand(tokens.shape[0], -1, -1)
        pooled = region_attention(joined, tokens.flatten(1, 2), scale=channels**-0.5).split(len(first.queries), 1)
        if positions:
            pooled = [x[..., :channels] + x[..., channels:] @ p for x, p in zip(pooled, positions, strict=True)]
        return [HeadOutput(head.classifier(head.project(x))) for head, x in zip(heads, pooled, strict=True)]

    def project(self, pooled: Float[Tensor, "b q c"]) -> Float[Tensor, "b d"]:
        """Apply W_j to the tokens that query j pooled, and concatenate."""
        weight = self.value.weight.unflatten(0, (len(self.queries), -1))
        return torch.einsum("bqc,qdc->bqd", pooled, weight).flatten(1)
