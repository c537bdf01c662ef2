"""Every choice of the model by name. A field marked *our reading* is a choice made where the paper is silent."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

LINKING = ("index", "greedy", "optimal")
TEMPORAL_FORMS = ("hinge", "absolute")
TRACKLET_FORMS = ("pooled", "flattened")
REGION_POSITIONS = ("none", "sine")
READOUTS = ("concatenation", "evidence")


@dataclass
class ARTOptions:
    """Options of :class:`art.ARTModel`. The defaults are the paper's, or our reading of it.

    Attributes:
        backbone: name of the backbone, see :func:`art.build_backbone`.
        backbone_options: keyword arguments of the backbone's constructor.
        pretrained: path or tag of the backbone's initial weights; None initializes them randomly.
        num_frames: T, frames per clip.
        num_tracklets: K, queries per frame, and so tracklets per clip.
        readout: how regions are classified: "concatenation", the paper's, a linear head on [x_cls, Tr_1 … Tr_K]; or
            "evidence", a query and a score for each class, see :mod:`art.model.evidence`, which has no enhancement and
            activation layers, and whose responses have the width C.
        text_queries: with the readout "evidence": add the projected class texts to the learned queries.
        latent_dim: d, the width of regions, queries, and projected text.
        num_heads: attention heads (8 is our reading).
        feedforward_dim: hidden width of each feed-forward block (1024 is our reading).
        enhancement_layers: transformer layers of the spatial semantic enhancement; 0 disables it.
        activation_layers: layers of the region activation.
        region_position: position encoding of the regions: "none", which leaves it to the backbone, or "sine", a fixed
            encoding added to the projected tokens, or with the readout "evidence" to the keys only (none is our
            reading; a transformer backbone encodes positions, the pooled features of a CNN do not).
        token_gradient: factor in 0..1 on the gradient from the regions into the backbone (1 is our reading; with a
            backbone trained from scratch, L_v converges sooner if this is small).
        query_self_attention: let the K queries of a frame attend to each other (off is our reading).
        response_residual: add the query to the output of the last layer, as in every other layer (on is our reading).
            If off, a response contains only features of the regions.
        layer_dropout: dropout inside the transformer layers (0 is our reading).
        dropout: dropout before each classification head.
        linking: how responses are linked into tracklets: "index", the paper's; or, beyond the paper, by similarity to
            the responses of the next frame, one to one, either the best total ("optimal") or pair by pair ("greedy").
        temperature: temperature of the saliency softmax over time (0.01 is our reading).
        detach_saliency: block the gradient through the saliency weights (off is our reading).
        margin: λ, the degree of correlation in the temporal contrast.
        temporal_form: "hinge", max(0, λ − cos), or "absolute", |λ − cos| (hinge is our reading).
        tracklet_form: compare tracklets "pooled" over time, or "flattened" (pooled is our reading).
        clamp_repulsion: clamp the repulsion terms at 0 (off is our reading).
        text_encoder: "wordllama" (bundled, needs no download) or "clip" (open_clip).
        text_options: keyword arguments of the text encoder's constructor.
        templates: prompts, each containing "{label}"; None uses the 16 of :mod:`art.model.semantics` (our reading).
        test_crop: side of the center square used for evaluation and prediction, as a fraction of the frame's shorter
            side (1 is our reading). Random crops in training enlarge objects; a smaller square does so at test time.
        logit_scale: factor on the cosines that are logits in the bank's losses (1/0.07 is our reading).
        bank_momentum: μ of the bank's moving average (0.999 is our reading).
        detach_video: block the gradient of the bank's losses into the backbone (on is our reading).
        head: name of the head of a model of kind "probe", see :mod:`art.heads`.
        head_options: keyword arguments of that head.
        head_layers: "last", or numbers of blocks, whose tokens that head receives.
        weight_video: weight of L_v.
        weight_contextual: weight of L_con.
        weight_mtc: weight of L_MTC.
        weight_region: weight of the cross-entropy of the regions alone, with the readout "evidence".
        weight_focus: weight of the relative entropy of the true class's maps, with the readout "evidence".
        weight_spatial: weight of the spatial term within L_MTC.
        weight_temporal: weight of the temporal term within L_MTC.
        weight_tracklet: weight of the tracklet term within L_MTC.
        weight_sema: weight of L_sema.
        weight_consistency: weight of the video consistency within L_sema.
        weight_prototype: weight of the prototype consistency within L_sema.
        weight_nce: weight of the contrast between the tracklets of a batch, beyond the paper (0, the paper, disables
            it).
        nce_temperature: temperature of that contrast.

    Raises:
        ValueError: If a value is out of range.

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
    readout: str = "concatenation"
    text_queries: bool = False
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
    head: str = "ep"
    head_options: dict[str, Any] = field(default_factory=dict)
    head_layers: list[str] = field(default_factory=lambda: ["last"])
    weight_video: float = 1.0
    weight_contextual: float = 1.0
    weight_mtc: float = 5.0
    weight_region: float = 1.0
    weight_focus: float = 0.2
    weight_spatial: float = 1.0
    weight_temporal: float = 1.0
    weight_tracklet: float = 1.0
    weight_sema: float = 5.0
    weight_consistency: float = 1.0
    weight_prototype: float = 1.0
    weight_nce: float = 0.0
    nce_temperature: float = 0.07

    def __post_init__(self) -> None:
        """Validate the values."""
        for name in ("num_frames", "num_tracklets", "latent_dim", "num_heads", "feedforward_dim", "activation_layers"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("enhancement_layers", self.enhancement_layers >= 0, "0 or more")
        self._require("latent_dim", self.latent_dim % self.num_heads == 0, f"a multiple of num_heads, {self.num_heads}")
        if self.region_position == "sine":
            self._require("latent_dim", self.latent_dim % 4 == 0, 'a multiple of 4 with "sine" positions')
        for name in ("dropout", "layer_dropout"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("bank_momentum", "token_gradient"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self._require("test_crop", 0 < self.test_crop <= 1, "above 0 and at most 1")
        for name in ("temperature", "nce_temperature"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name, choices in (
            ("linking", LINKING),
            ("temporal_form", TEMPORAL_FORMS),
            ("tracklet_form", TRACKLET_FORMS),
            ("region_position", REGION_POSITIONS),
            ("readout", READOUTS),
        ):
            self._require(name, getattr(self, name) in choices, " or ".join(map(repr, choices)))

    def _require(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            raise ValueError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    @classmethod
    def from_kwargs(cls, options: Mapping[str, Any]) -> ARTOptions:
        """Return the options for keyword arguments.

        Raises:
            TypeError: If an argument is not an option; the message suggests the closest name.
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; the options are {', '.join(known)}"
                raise TypeError(f"unknown option {name!r}{hint}")
        return cls(**options)
