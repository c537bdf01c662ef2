"""The baseline: the backbone with a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from art.backbones import build_backbone
from art.model.losses import Labels, LossTerms
from art.model.options import ARTOptions
from art.model.pretrained import VideoClassifier

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class BackboneOutput:
    """Output of :class:`BackboneClassifier` for B clips.

    Attributes:
        logits: ``[B, Y]``.
        class_token: ``[B, C]``, x_cls.
    """

    logits: Float[Tensor, "b y"]
    class_token: Float[Tensor, "b c"]


class BackboneClassifier(VideoClassifier):
    """The backbone's global feature, dropout, and a linear head, trained with cross-entropy.

    Accepts the arguments of :class:`art.ARTModel` and ignores those of ART's stages, so that both models can share one
    configuration.

    Examples:
        >>> import torch
        >>> from art import BackboneClassifier
        >>> model = BackboneClassifier(["walk", "jump"], num_frames=2)
        >>> model(torch.rand(1, 2, 3, 112, 112)).logits.shape
        torch.Size([1, 2])
    """

    kind = "backbone"

    def __init__(
        self,
        class_names: Sequence[str],
        backbone: str = "tiny",
        num_frames: int = 16,
        *,
        prompts: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(class_names, backbone=backbone, num_frames=num_frames, **options)
        o = self.options
        self.backbone = build_backbone(
            o.backbone, num_frames=o.num_frames, pretrained=o.pretrained, **o.backbone_options
        )
        self.input_size = self.backbone.input_size
        self.video_head = self.backbone.video_head(len(self.class_names))

    def forward(self, video: Shaped[Tensor, "b t 3 height width"], *, return_maps: bool = False) -> BackboneOutput:
        """Classify videos, uint8 or floating point with values in 0..1.

        Raises:
            ValueError: If ``video`` is not ``[B, T, 3, H, W]`` with this model's T, or ``return_maps`` is True: this
                model has no response maps.
        """
        self.check_video(video)
        if return_maps:
            raise ValueError("return_maps is True, but BackboneClassifier has no response maps; use ARTModel")
        class_token = self.backbone(video).class_token
        logits = self.video_head(F.dropout(class_token, self.options.dropout, self.training))
        return BackboneOutput(logits, class_token)

    def loss(self, output: BackboneOutput, labels: Labels, group: ProcessGroup | None = None) -> LossTerms:
        """Compute L_v, the only term. Arguments are those of :meth:`art.VideoClassifier.loss`."""
        video = F.cross_entropy(output.logits, labels)
        return LossTerms(total=video, video=video)

    @classmethod
    def _from_shapes(
        cls, class_names: Sequence[str], options: ARTOptions, shapes: dict[str, list[int]]
    ) -> BackboneClassifier:
        return cls(class_names, **vars(options))
