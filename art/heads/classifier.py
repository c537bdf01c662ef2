"""The model of kind "probe": a frozen backbone and a trained head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from art.backbones import Features, build_backbone
from art.heads.base import FeatureShape, HeadOutput, build_head
from art.heads.pooling import ClassTokenHead
from art.heads.tracklets import ARTHead
from art.model.losses import Labels, LossTerms
from art.model.options import ARTOptions
from art.model.pretrained import Query, VideoClassifier

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class ProbeOutput:
    """Output of :class:`ProbeClassifier` for B clips.

    Attributes:
        logits: ``[B, Y]``.
        class_token: ``[B, C]``, x_cls of the backbone.
        maps: ``[B, T, K, h, w]`` or None, where the head looks in each frame; each sums to 1. K is 1, the mean over the
            head's queries, unless the head is "art", which has K tracklets.
        saliency: ``[B, T, K]`` or None, the weight of each frame; sums to 1 over T.
        head: the output of the head.
    """

    logits: Float[Tensor, "b y"]
    class_token: Float[Tensor, "b c"]
    maps: Float[Tensor, "b t k h w"] | None
    saliency: Float[Tensor, "b t k"] | None
    head: HeadOutput


class ProbeClassifier(VideoClassifier):
    """A frozen backbone and one of the heads of :mod:`art.heads`, as trained by ``art probe``.

    The backbone stays in eval mode and has no gradients.

    Args:
        class_names: Y names, in label order.
        backbone: name of a registered backbone.
        num_frames: T.
        prompts: not used.
        options: further fields of :class:`art.ARTOptions`; ``head``, ``head_options`` and ``head_layers`` select the
            head. Those of ART's stages are ignored.

    Raises:
        ValueError: If the head is unknown, or an option is out of range.
        TypeError: If the head has no such option.

    Examples:
        >>> import torch
        >>> from art.heads import ProbeClassifier
        >>> model = ProbeClassifier(["walk", "jump"], num_frames=2, head="ep", head_options={"num_queries": 4}).eval()
        >>> model(torch.rand(1, 2, 3, 112, 112), return_maps=True).maps.shape
        torch.Size([1, 2, 1, 14, 14])
    """

    kind = "probe"

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
        self.backbone.requires_grad_(False).eval()
        self.input_size = self.backbone.input_size
        height, width = self.backbone.grid
        shape = FeatureShape(
            o.num_frames // self.backbone.tubelet, (height * len(o.head_layers), width), self.backbone.channels
        )
        self.head = build_head(o.head, shape, self.class_names, **o.head_options)

    @property
    def video_head(self) -> nn.Module | None:
        """The classifier of ``class_token``, None if the head receives other tokens."""
        return self.head.classifier if isinstance(self.head, ClassTokenHead) else None

    @property
    def num_maps(self) -> int:
        """K of :class:`ProbeOutput`, 0 if the head has no maps."""
        return self.head.num_maps

    def train(self, mode: bool = True) -> ProbeClassifier:
        """Set the mode of the head; the backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, video: Shaped[Tensor, "b t 3 height width"], *, return_maps: bool = False) -> ProbeOutput:
        """Classify videos, uint8 or floating point with values in 0..1.

        Args:
            video: clips.
            return_maps: also return maps and saliency.

        Raises:
            ValueError: If ``video`` is not ``[B, T, 3, H, W]`` with this model's T, or ``return_maps`` is True and the
                head has no maps.
        """
        self.check_video(video)
        if return_maps and not self.num_maps:
            raise ValueError(f"return_maps is True, but the head {self.options.head!r} does not attend to tokens")
        features = self.features(video)
        output = self.head(features, return_maps=return_maps)
        maps, saliency = self._frame_maps(output) if return_maps else (None, None)
        return ProbeOutput(output.logits, features.class_token, maps, saliency, output)

    @torch.no_grad()
    def features(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """Return what the head receives: the features of the backbone with T' time steps."""
        layers = self.options.head_layers
        named = self.backbone.named_features(video, [int(layer) for layer in layers if layer != "last"])
        return Features.from_named(named, self.backbone.grid, layers)

    def _frame_maps(self, output: HeadOutput) -> tuple[Tensor, Tensor]:
        """Return maps and weights of frames; the frames of a tubelet share its map and its weight."""
        maps, saliency = self.head.frame_maps(output)
        tubelet = self.backbone.tubelet
        return self._expand(maps), saliency.repeat_interleave(tubelet, 1) / tubelet

    def _expand(self, maps: Float[Tensor, "b steps k h w"]) -> Float[Tensor, "b t k h w"]:
        """Add the maps of several layers, and repeat those of a tubelet for its frames."""
        return maps.unflatten(-2, (-1, self.backbone.grid[0])).sum(-3).repeat_interleave(self.backbone.tubelet, 1)

    def loss(self, output: ProbeOutput, labels: Labels, group: ProcessGroup | None = None) -> LossTerms:
        """Compute the loss of the head. Arguments are those of :meth:`art.VideoClassifier.loss`."""
        loss = self.head.loss(output.head, labels)
        return LossTerms(total=loss, video=loss)

    def update_bank(self) -> None:
        """Call :meth:`art.heads.Head.after_step`, which updates the semantics bank of the head "art"."""
        self.head.after_step()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained parameters: those of the head."""
        return {"backbone": [], "head": list(self.head.parameters()), "bank": []}

    def map_queries(self, output: ProbeOutput, clip: int = 0) -> tuple[Query, ...]:
        """Return what each map belongs to, see :meth:`art.VideoClassifier.map_queries`."""
        return self.head.map_queries(output.head, clip)

    def evidence_maps(self, output: ProbeOutput, classes: Int[Tensor, "b k"]) -> Float[Tensor, "b t k h w"] | None:
        """Return what each region adds to the logit of a class, see :meth:`art.VideoClassifier.evidence_maps`."""
        if not isinstance(self.head, ARTHead):
            return None
        maps = self.head.model.evidence_maps(output.head.details, classes)
        return None if maps is None else self._expand(maps) / self.backbone.tubelet

    def region_parts(self, output: ProbeOutput) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Return what the logits of the head "art" are computed from, see :meth:`art.VideoClassifier.region_parts`."""
        return self.head.model.region_parts(output.head.details) if isinstance(self.head, ARTHead) else None

    def combine_parts(self, context: Tensor, regions: Tensor) -> Float[Tensor, "b y"]:
        """Return the logits of the parts of :meth:`region_parts`."""
        if not isinstance(self.head, ARTHead):
            return super().combine_parts(context, regions)
        return self.head.model.combine_parts(context, regions)

    @classmethod
    def _from_shapes(
        cls, class_names: Sequence[str], options: ARTOptions, shapes: dict[str, list[int]]
    ) -> ProbeClassifier:
        model_options = vars(options)
        if bank := shapes.get("head.model.semantics.bank"):  # does not need the text encoder
            model_options = {**model_options, "head_options": {**options.head_options, "semantics": torch.zeros(bank)}}
        return cls(class_names, **model_options)
