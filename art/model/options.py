"""Every choice of the model by name. A field marked *our reading* is a choice made where the paper is silent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LINKING = ("index", "greedy", "optimal")
TEMPORAL_FORMS = ("hinge", "absolute")
TRACKLET_FORMS = ("pooled", "flattened")
REGION_POSITIONS = ("none", "sine")


@dataclass
class ARTOptions:
    """Options of :class:`art.ARTModel`; the defaults are the paper's, or our reading of it.

    Attributes:
        backbone: name for :func:`art.build_backbone`.
        backbone_options: passed on to the backbone's constructor.
        pretrained: a path or tag for the backbone's weights; None starts from scratch.
        num_frames: T, frames a clip.
        num_tracklets: K, queries a frame and so tracklets a clip.
        latent_dim: d, the width of regions, queries and projected text.
        num_heads: attention heads (8 is our reading).
        feedforward_dim: hidden width of each feed-forward block (1024 is our reading).
        enhancement_layers: transformer layers of the spatial semantic enhancement; 0 leaves it out.
        activation_layers: layers of the region activation.
        region_position: what says where a region lies: "none" but the backbone itself, or "sine", a fixed code added to
            the projected tokens (none is our reading; a CNN that is pooled knows no positions, a transformer does).
        token_gradient: factor on the gradient that the regions send into the backbone, in 0..1 (1 is our reading; a
            backbone trained from scratch learns sooner from L_v when this is small).
        query_self_attention: let the K queries of a frame attend to each other (off is our reading).
        response_residual: add the query to what its last layer read, as in every other layer (on is our reading); off,
            a response holds nothing but what its regions say.
        layer_dropout: dropout inside the transformer layers (0 is our reading).
        dropout: dropout before each classification head.
        linking: how responses become tracklets: "index", the paper's, or beyond it by likeness to those of the next
            frame, one to one: the best match as a whole ("optimal") or pair by pair ("greedy").
        temperature: of the saliency softmax over time (0.01 is our reading).
        detach_saliency: keep the gradient from flowing through the saliency weights (off is our reading).
        margin: λ, the correlated degree of the temporal contrast.
        temporal_form: "hinge", max(0, λ − cos), or "absolute", |λ − cos| (hinge is our reading).
        tracklet_form: tracklets are compared "pooled" over time, or "flattened" (pooled is our reading).
        clamp_repulsion: clamp the repelling terms at 0 (off is our reading).
        text_encoder: "wordllama" (embedded, needs no download) or "clip" (open_clip).
        text_options: passed on to the text encoder.
        templates: prompts; each must contain "{label}"; None takes the 16 of :mod:`art.model.semantics` (our reading).
        test_crop: side of the centre square that evaluation and prediction show, as a share of the frame's shorter side
            (1 is our reading). A random crop in training makes things larger; a smaller square does so at test.
        logit_scale: of cosines that serve as logits in the bank's losses (1/0.07 is our reading).
        bank_momentum: μ of the bank's moving average (0.999 is our reading).
        detach_video: keep the bank's losses from training the backbone (on is our reading).
        weight_video: weight of L_v.
        weight_contextual: weight of L_con.
        weight_mtc: weight of L_MTC.
        weight_spatial: weight of the spatial term within L_MTC.
        weight_temporal: weight of the temporal term within L_MTC.
        weight_tracklet: weight of the tracklet term within L_MTC.
        weight_sema: weight of L_sema.
        weight_consistency: weight of the video consistency within L_sema.
        weight_prototype: weight of the prototype consistency within L_sema.
        weight_nce: weight of a contrast of the tracklets of a batch, beyond the paper (0 is the paper: left out).
        nce_temperature: of that contrast's cosines.

    Examples:
        >>> from art import ARTModel, ARTOptions
        >>> ARTOptions().margin
        0.6
        >>> ARTModel(["walk", "jump"], num_frames=2, linking="optimal").options.linking
        'optimal'
        >>> ARTOptions(linking="best")
        Traceback (most recent call last):
        ValueError: linking is 'best', expected 'index' or 'greedy' or 'optimal'
    """

    backbone: str = "tiny"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    num_frames: int = 16
    num_tracklets: int = 2
    latent_dim: int = 256
    num_heads: int = 8
    feedforward_dim: int = 1024
    enhancement_layers: int = 4
    activation_layers: int = 4
    region_position: str = "none"
    token_gradient: float = 1.0
    query_self_attention: bool = False
    response_residual: bool = True
    layer_dropout: float = 0.0
    dropout: float = 0.5
    linking: str = "index"
    temperature: float = 0.01
    detach_saliency: bool = False
    margin: float = 0.6
    temporal_form: str = "hinge"
    tracklet_form: str = "pooled"
    clamp_repulsion: bool = False
    text_encoder: str = "wordllama"
    text_options: dict[str, Any] = field(default_factory=dict)
    templates: list[str] | None = None
    test_crop: float = 1.0
    logit_scale: float = 1 / 0.07
    bank_momentum: float = 0.999
    detach_video: bool = True
    weight_video: float = 1.0
    weight_contextual: float = 1.0
    weight_mtc: float = 5.0
    weight_spatial: float = 1.0
    weight_temporal: float = 1.0
    weight_tracklet: float = 1.0
    weight_sema: float = 5.0
    weight_consistency: float = 1.0
    weight_prototype: float = 1.0
    weight_nce: float = 0.0
    nce_temperature: float = 0.07

    def __post_init__(self) -> None:
        """Stop at a value that no model could be built with."""
        for name in ("num_frames", "num_tracklets", "latent_dim", "num_heads", "feedforward_dim", "activation_layers"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.enhancement_layers >= 0, "enhancement_layers", self.enhancement_layers, "0 or more")
        _require(
            self.latent_dim % self.num_heads == 0,
            "latent_dim",
            self.latent_dim,
            f"a multiple of num_heads, {self.num_heads}",
        )
        if self.region_position == "sine":
            _require(self.latent_dim % 4 == 0, "latent_dim", self.latent_dim, 'a multiple of 4 with "sine" positions')
        for name in ("dropout", "layer_dropout"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        for name in ("bank_momentum", "token_gradient"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "in [0, 1]")
        _require(0 < self.test_crop <= 1, "test_crop", self.test_crop, "above 0 and at most 1")
        for name in ("temperature", "nce_temperature"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name, known in (
            ("linking", LINKING),
            ("temporal_form", TEMPORAL_FORMS),
            ("tracklet_form", TRACKLET_FORMS),
            ("region_position", REGION_POSITIONS),
        ):
            _require(getattr(self, name) in known, name, repr(getattr(self, name)), " or ".join(map(repr, known)))


def _require(true: bool, name: str, came: object, expected: str) -> None:
    if not true:
        raise ValueError(f"{name} is {came}, expected {expected}")
