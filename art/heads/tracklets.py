"""Head ``art``: the stages of ART after the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from art.backbones.base import Features
from art.heads.base import FeatureShape, Head, HeadOutput, TimePosition, register_head
from art.model.art_model import ARTModel
from art.model.evidence import attend, normalize_regions
from art.model.losses import Labels
from art.model.pretrained import Query

#: Options of :class:`ARTModel` for a head on frozen features, where they differ from the model's own.
DEFAULTS: dict[str, Any] = {
    "readout": "evidence",
    "latent_dim": 64,
    "dropout": 0.0,
    "bank_momentum": 0.99,
    "weight_mtc": 0.0,
    "weight_sema": 0.0,
}


@register_head("art")
class ARTHead(Head):
    """ART after the backbone: by default the readout "evidence", without L_MTC and L_sema.

    Args:
        shape: of the features.
        class_names: Y names, in label order.
        queries: "learned"; "text" adds the projected embeddings of the class names, and "shuffled" those of other
            classes, to measure how much the text contributes.
        semantics: text embeddings; None computes them.
        num_tracklets: K.
        time_position: see :class:`Head`.
        options: options of :class:`ARTModel`; the defaults are :data:`DEFAULTS`.

    Raises:
        ValueError: If an option is out of range.
        TypeError: If an option is unknown.
    """

    has_maps = True

    def __init__(
        self,
        shape: FeatureShape,
        class_names: Sequence[str],
        *,
        queries: Literal["text", "shuffled", "learned"] = "learned",
        semantics: Float[Tensor, "p y c"] | None = None,
        num_tracklets: int = 2,
        time_position: TimePosition = "none",
        **options: Any,
    ) -> None:
        super().__init__(shape, class_names, time_position=time_position)
        if queries not in ("text", "shuffled", "learned"):
            raise ValueError(f"queries is {queries!r}, expected 'text', 'shuffled' or 'learned'")
        names = list(class_names)
        prompts = names[1:] + names[:1] if queries == "shuffled" else None
        options = {**DEFAULTS, "text_queries": queries != "learned", **options}
        if semantics is None and queries == "learned":
            semantics = torch.randn(1, len(names), options["latent_dim"])
        self.class_norm = nn.BatchNorm1d(shape.channels, affine=False, eps=1e-6)
        self.model = ARTModel.from_features(
            names, shape.channels, shape.num_steps, num_tracklets, prompts=prompts, semantics=semantics,
            **options,
        )  # fmt: skip
        self.model.prompts = prompts or names

    def forward(self, features: Features, *, return_maps: bool = False) -> HeadOutput:
        """Return the logits, and with ``return_maps`` a map per tracklet."""
        tokens = self.tokens(features).unflatten(1, (self.shape.num_steps, -1))
        features = features._replace(tokens=tokens, class_token=self.class_norm(features.class_token))
        output = self.model.forward_features(features, return_maps=return_maps)
        maps = None if output.maps is None else output.maps.transpose(1, 2) / self.shape.num_steps
        return HeadOutput(output.logits, maps, output)

    @staticmethod
    def forward_together(heads: Sequence[ARTHead], features: Features) -> list[HeadOutput]:
        """Return the output of each head, from one pass over the tokens if nothing else differs between the heads."""
        first = heads[0]
        options = first.model.options
        has_same_keys = options.region_position == "none" and first.time_position is None
        if options.readout != "evidence" or options.dropout > 0 or not has_same_keys:
            return [head(features) for head in heads]
        regions = normalize_regions(first.checked(features).tokens)
        models = [head.model for head in heads]
        queries = [
            model.evidence.class_queries(model.semantics.bank.mean(0) if options.text_queries else None)
            for model in models
        ]
        responses, maps = attend(torch.cat(queries), regions, return_maps=first.training)
        parts = [None] * len(heads) if maps is None else maps.split(first.num_classes, 2)
        outputs = []
        for head, own, own_maps in zip(heads, responses.split(first.num_classes, 2), parts, strict=True):
            found = head.model.evidence.read(own, own_maps, regions, features.grid)
            normed = features._replace(class_token=head.class_norm(features.class_token))
            output = head.model.forward_features(normed, found=found)
            outputs.append(HeadOutput(output.logits, None, output))
        return outputs

    @property
    def num_maps(self) -> int:
        """K."""
        return self.model.num_maps

    def frame_maps(self, output: HeadOutput) -> tuple[Float[Tensor, "b t k h w"], Float[Tensor, "b t k"]]:
        """Return the maps and the saliency of the tracklets."""
        return output.details.maps, output.details.saliency

    def map_queries(self, output: HeadOutput, clip: int = 0) -> tuple[Query, ...]:
        """Return the classes, or class texts, that query the tracklets."""
        return self.model.map_queries(output.details, clip)

    def loss(self, output: HeadOutput, labels: Labels) -> Float[Tensor, ""]:
        """Return the total loss of the model."""
        return self.model.loss(output.details, labels).total

    def after_step(self) -> None:
        """Update the semantics bank."""
        self.model.update_bank()
