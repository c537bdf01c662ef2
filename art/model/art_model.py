"""ARTModel: the five stages of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from art.backbones import Backbone, Features, build_backbone, register_backbone
from art.model.evidence import Evidence, RegionEvidence, maps_of
from art.model.evidence import focus as measure_focus
from art.model.losses import Labels, LossTerms, multilevel_contrast, semantic_consistency, tracklet_contrast
from art.model.options import ARTOptions
from art.model.pretrained import Query, VideoClassifier
from art.model.regions import RegionActivation, SpatialSemanticEnhancement, sine_position
from art.model.semantics import TEMPLATES, SemanticsBank, cosine, encode_prompts
from art.text import build_text_encoder
from art_kernels import gather_tracklets, link_tracklets, pool_tracklets

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class ARTOutput:
    """Output of :class:`ARTModel` for B clips.

    Attributes:
        logits: ``[B, Y]``, of the final head; used for inference.
        video_logits: ``[B, Y]``, of the head on the global feature alone.
        class_token: ``[B, C]``, x_cls.
        video_latent: ``[B, d]``, x_cls projected into the latent space of the semantics.
        selected: ``[B, K]``, the classes whose text embeddings are the queries.
        responses: ``[B, T, K, d]``, R in tracklet order.
        tracklets: ``[B, K, T, d]``, ``responses`` with time and tracklet axes swapped.
        aggregated: ``[B, K, d]``, tracklets pooled over time.
        saliency: ``[B, T, K]``, the weights of the pooling.
        order: ``[B, T, K]``, the query index of each response; k for tracklet k if ``linking`` is "index".
        maps: ``[B, T, K, h, w]`` or None, attention of the last layer, averaged over heads.
        region_evidence: output of :class:`.evidence.RegionEvidence`, with the readout "evidence".

    Examples:
        >>> import torch
        >>> from art import ARTModel
        >>> model = ARTModel(["walk", "jump"], num_frames=2).eval()
        >>> out = model(torch.rand(1, 2, 3, 112, 112), return_maps=True)
        >>> out.logits.shape, out.tracklets.shape, out.maps.shape
        (torch.Size([1, 2]), torch.Size([1, 2, 2, 256]), torch.Size([1, 2, 2, 14, 14]))
    """

    logits: Float[Tensor, "b y"]
    video_logits: Float[Tensor, "b y"]
    class_token: Float[Tensor, "b c"]
    video_latent: Float[Tensor, "b d"]
    selected: Int[Tensor, "b k"]
    responses: Float[Tensor, "b t k d"]
    tracklets: Float[Tensor, "b k t d"]
    aggregated: Float[Tensor, "b k d"]
    saliency: Float[Tensor, "b t k"]
    order: Int[Tensor, "b t k"]
    maps: Float[Tensor, "b t k h w"] | None
    region_evidence: Evidence | None = None


class ARTModel(VideoClassifier):
    """Action-Region Tracking (arXiv 2511.21202).

    Args:
        class_names: Y names, in label order.
        backbone: name of a registered backbone, see :func:`art.build_backbone`.
        num_frames: T.
        num_tracklets: K, at most Y.
        prompts: Y texts to fill the prompt templates with; None uses the class names.
        semantics: S_0 ``[P, Y, C_t]``; None computes it from the prompts with the text encoder.
        options: further fields of :class:`art.ARTOptions`.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option is out of range, or class names are empty or repeated.

    Examples:
        >>> import torch
        >>> from art import ARTModel
        >>> model = ARTModel(["walk", "walk and hold out the right arm", "jump"], num_frames=2)
        >>> video, labels = torch.rand(2, 2, 3, 112, 112), torch.tensor([1, 2])
        >>> out = model(video)
        >>> out.logits.shape
        torch.Size([2, 3])
        >>> terms = model.loss(out, labels)
        >>> terms.total.backward()
        >>> model.update_bank()  # after each optimizer step
    """

    kind = "art"

    def __init__(
        self,
        class_names: Sequence[str],
        backbone: str = "tiny",
        num_frames: int = 16,
        num_tracklets: int = 2,
        *,
        prompts: Sequence[str] | None = None,
        semantics: Float[Tensor, "p y c"] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(class_names, backbone=backbone, num_frames=num_frames, num_tracklets=num_tracklets, **options)
        o, d, num_classes = self.options, self.options.latent_dim, len(self.class_names)
        if num_tracklets > num_classes:
            raise ValueError(
                f"num_tracklets is {num_tracklets}, expected at most the number of classes, {num_classes}: "
                "each tracklet is queried by a different class"
            )
        if prompts is not None and len(prompts) != num_classes:
            raise ValueError(f"prompts has {len(prompts)} texts, expected one for each of the {num_classes} classes")
        if semantics is None:
            encoder = build_text_encoder(o.text_encoder, **o.text_options)
            self.prompts = list(prompts or self.class_names)
            semantics = encode_prompts(encoder, self.prompts, o.templates or TEMPLATES)
        self.backbone = build_backbone(
            o.backbone, num_frames=o.num_frames, pretrained=o.pretrained, **o.backbone_options
        )
        self.input_size = self.backbone.input_size
        channels = self.backbone.channels
        concatenates = o.readout == "concatenation"
        if concatenates:
            self.token_projection = nn.Linear(channels, d)
        self.video_projection = nn.Linear(channels, d)
        self.semantics = SemanticsBank(semantics, d, o.bank_momentum)
        if concatenates:
            self.enhancement = SpatialSemanticEnhancement(
                d, o.num_heads, o.feedforward_dim, o.enhancement_layers, o.layer_dropout
            )
            self.activation = RegionActivation(
                d,
                o.num_heads,
                o.feedforward_dim,
                o.activation_layers,
                o.num_frames,
                o.num_tracklets,
                self_attention=o.query_self_attention,
                response_residual=o.response_residual,
                dropout=o.layer_dropout,
            )
        else:
            text_dim = semantics.shape[-1] if o.text_queries else None
            self.evidence = RegionEvidence(channels, num_classes, text_dim, o.region_position)
        self.video_head = self.backbone.video_head(num_classes)
        if concatenates:
            self.final_head = nn.Linear(channels + o.num_tracklets * d, num_classes)

    def forward(self, video: Shaped[Tensor, "b t 3 height width"], *, return_maps: bool = False) -> ARTOutput:
        """Classify videos.

        Args:
            video: uint8, or floating point with values in 0..1.
            return_maps: also return the response maps.

        Raises:
            ValueError: If ``video`` is not ``[B, T, 3, H, W]`` with this model's T.
        """
        self.check_video(video)
        return self.forward_features(self.backbone(video), return_maps=return_maps)

    def forward_features(
        self, features: Features, *, return_maps: bool = False, found: Evidence | None = None
    ) -> ARTOutput:
        """Classify the features of a backbone: :meth:`forward` without the backbone.

        Args:
            features: of B clips.
            return_maps: also return the response maps.
            found: with the readout "evidence", the output of :attr:`evidence` if it is known; None computes it.
        """
        o = self.options
        tokens, class_token, _ = features
        if o.token_gradient < 1 and tokens.requires_grad:
            tokens = torch.lerp(tokens.detach(), tokens, o.token_gradient)  # equal values, scaled gradient
            features = features._replace(tokens=tokens)
        latent = self.video_projection(class_token.detach() if o.detach_video else class_token)
        if o.readout == "concatenation":
            return self._read_concatenation(features, latent, return_maps)
        if found is None:
            texts = self.semantics.bank.mean(0) if o.text_queries else None
            found = self.evidence(features.tokens, features.grid, texts, return_maps=return_maps or self.training)
        return self._read_evidence(features, latent, found, return_maps)

    def _read_evidence(self, features: Features, latent: Tensor, found: Evidence, return_maps: bool) -> ARTOutput:
        """Add the evidence of the regions to the logits; tracklets belong to the K most probable classes."""
        o, grid = self.options, features.grid
        video_logits = self.video_head(F.dropout(features.class_token, o.dropout, self.training))
        logits = video_logits + found.logits
        selected = logits.detach().topk(o.num_tracklets, dim=1).indices
        index = selected[:, None].expand(-1, found.evidence.shape[1], -1)
        evidence = found.evidence.gather(2, index)
        responses = found.responses.gather(2, index[..., None].expand(-1, -1, -1, found.responses.shape[3]))
        order = link_tracklets(responses.detach(), method=o.linking).order
        responses, saliency = gather_tracklets(responses, order), gather_tracklets(evidence, order).softmax(1)
        maps = None
        if return_maps:
            maps = gather_tracklets(maps_of(found, selected), order).unflatten(-1, grid)
        return ARTOutput(
            logits=logits,
            video_logits=video_logits,
            class_token=features.class_token,
            video_latent=latent,
            selected=selected,
            responses=responses,
            tracklets=responses.transpose(1, 2),
            aggregated=torch.einsum("btk,btkc->bkc", saliency, responses),
            saliency=saliency,
            order=order,
            maps=maps,
            region_evidence=found,
        )

    def _read_concatenation(self, features: Features, latent: Tensor, return_maps: bool) -> ARTOutput:
        """Classify x_cls and the tracklets of the K classes whose texts are the most similar to the video."""
        o = self.options
        tokens, class_token, grid = features
        selected, semantics = self.semantics.select(latent, o.num_tracklets)
        tokens = self.token_projection(tokens)
        if o.region_position == "sine":
            tokens = tokens + sine_position(grid, o.latent_dim, device=tokens.device).to(tokens.dtype)
        tokens, frame_semantics = self.enhancement(tokens, semantics)
        responses, maps = self.activation(tokens, frame_semantics, return_maps=return_maps)
        order = link_tracklets(responses.detach(), method=o.linking).order
        responses = gather_tracklets(responses, order)
        maps = None if maps is None else gather_tracklets(maps, order).unflatten(-1, grid)
        aggregated, saliency = aggregate(
            responses, semantics, temperature=o.temperature, detach_saliency=o.detach_saliency
        )
        context = torch.cat([class_token, aggregated.flatten(1)], dim=1)
        return ARTOutput(
            logits=self.final_head(F.dropout(context, o.dropout, self.training)),
            video_logits=self.video_head(F.dropout(class_token, o.dropout, self.training)),
            class_token=class_token,
            video_latent=latent,
            selected=selected,
            responses=responses,
            tracklets=responses.transpose(1, 2),
            aggregated=aggregated,
            saliency=saliency,
            order=order,
            maps=maps,
        )

    def loss(self, output: ARTOutput, labels: Labels, group: ProcessGroup | None = None) -> LossTerms:
        """Compute L = L_v + L_con + 5·L_MTC + 5·L_sema, weighted by the options, plus L_nce if it has a weight, and
        the two terms of the regions with the readout "evidence".

        Arguments are those of :meth:`art.VideoClassifier.loss`.

        Raises:
            ValueError: If L_nce has a weight and ``labels`` are class probabilities.
        """
        o = self.options
        video = F.cross_entropy(output.video_logits, labels)
        contextual = F.cross_entropy(output.logits, labels)
        contrast = multilevel_contrast(output.responses, output.aggregated, o)
        prototypes = self.video_projection(self.video_head.weight.detach())
        sema = semantic_consistency(self.semantics, output.video_latent, prototypes, labels, o)
        total = (
            o.weight_video * video
            + o.weight_contextual * contextual
            + o.weight_mtc * contrast["mtc"]
            + o.weight_sema * sema["sema"]
        )
        region = focus = nce = None
        if (found := output.region_evidence) is not None:
            region = F.cross_entropy(found.logits, labels)
            total = total + o.weight_region * region
            if found.maps is not None:
                focus = measure_focus(found, labels)
                total = total + o.weight_focus * focus
        if o.weight_nce != 0:
            nce = tracklet_contrast(output.aggregated, labels, o, group)
            total = total + o.weight_nce * nce
        return LossTerms(
            total=total, video=video, contextual=contextual, region=region, focus=focus, **contrast, **sema, nce=nce
        )

    def update_bank(self) -> None:
        """Update the semantics bank, S ← μS + (1−μ)S_a. Call after every optimizer step."""
        self.semantics.ema_update()

    @property
    def num_maps(self) -> int:
        """K, the number of tracklets."""
        return self.options.num_tracklets

    @torch.no_grad()
    def map_queries(self, output: ARTOutput, clip: int = 0) -> tuple[Query, ...]:
        """Return the prompts that :meth:`art.model.semantics.SemanticsBank.select` chose for a clip."""
        if self.options.readout == "evidence" and not self.options.text_queries:
            return tuple(Query(self.class_names[label], label) for label in output.selected[clip].tolist())
        bank = self.semantics
        similarities = cosine(output.video_latent[clip : clip + 1], bank.projection(bank.bank))[0]  # [P, Y]
        templates, texts = self.options.templates or TEMPLATES, self.prompts or self.class_names
        queries = []
        for label in output.selected[clip].tolist():
            similarity, prompt = similarities[:, label].max(0)
            text = templates[int(prompt)].replace("{label}", texts[label])
            queries.append(Query(self.class_names[label], label, text, float(similarity)))
        return tuple(queries)

    def evidence_maps(self, output: ARTOutput, classes: Int[Tensor, "b k"]) -> Float[Tensor, "b t k h w"] | None:
        """Return what each region adds to the logit of a class, with the readout "evidence".

        The contribution to the evidence of a frame times the weight of the frame, softmax_t(e): the logit is the
        log-mean-exp of the evidence over frames.
        """
        found = output.region_evidence
        if found is None:
            return None
        index = classes[:, None].expand(-1, found.evidence.shape[1], -1)
        saliency = found.evidence.gather(2, index).softmax(1)
        maps = self.evidence.contributions(found, classes)
        return (maps * saliency[..., None]).unflatten(-1, found.grid)

    def region_parts(self, output: ARTOutput) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what the logits are computed from, see :meth:`art.VideoClassifier.region_parts`."""
        if output.region_evidence is not None:
            return output.video_logits, output.region_evidence.logits, output.aggregated, output.selected
        return output.class_token, output.aggregated, output.aggregated, output.selected

    def combine_parts(self, context: Tensor, regions: Tensor) -> Float[Tensor, "b y"]:
        """Return the logits of the parts of :meth:`region_parts`."""
        if self.options.readout == "evidence":
            return context + regions
        logits: Tensor = self.final_head(torch.cat([context, regions.flatten(1)], dim=1))
        return logits

    @classmethod
    def from_features(
        cls, class_names: Sequence[str], channels: int, num_frames: int, num_tracklets: int = 2, **options: Any
    ) -> ARTModel:
        """Build a model without a backbone, which classifies stored features with :meth:`forward_features`.

        Args:
            class_names: Y names, in label order.
            channels: C of the features.
            num_frames: T of the features: frames, or tubelets of several frames.
            num_tracklets: K, at most Y.
            options: further arguments of :class:`ARTModel`.

        Examples:
            >>> import torch
            >>> from art import ARTModel, Features
            >>> model = ARTModel.from_features(["walk", "jump"], channels=32, num_frames=4).eval()
            >>> model.forward_features(Features(torch.randn(1, 4, 49, 32), torch.randn(1, 32), (7, 7))).logits.shape
            torch.Size([1, 2])
        """
        return cls(
            class_names, "features", num_frames, num_tracklets, backbone_options={"channels": channels}, **options
        )

    @classmethod
    def _from_shapes(cls, class_names: Sequence[str], options: ARTOptions, shapes: dict[str, list[int]]) -> ARTModel:
        return cls(class_names, **vars(options), semantics=torch.zeros(shapes["semantics.bank"]))


@register_backbone("features")
class FeatureInput(Backbone):
    """Takes the place of the backbone in a model that classifies stored features.

    Args:
        num_frames: T of the features; not used.
        channels: C of the features.
    """

    input_size = 1
    grid = (1, 1)

    def __init__(self, *, num_frames: int, channels: int, pretrained: str | None = None) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """Raise TypeError: there is no backbone."""
        raise TypeError("this model has no backbone; call forward_features with the features of one")


def aggregate(
    responses: Float[Tensor, "b t k d"],
    semantics: Float[Tensor, "b k d"],
    *,
    temperature: float,
    detach_saliency: bool = False,
) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b t k"]]:
    """Pool tracklets over time, weighted by their similarity to the text (see :func:`art_kernels.pool_tracklets`).

    Args:
        responses: in tracklet order.
        semantics: the K selected ones, in the latent space.
        temperature: τ of the softmax over time.
        detach_saliency: block the gradient through the weights.

    Returns:
        Tr_k = Σ_t w_tk r_tk, and the weights w, which sum to 1 over T.
    """
    aggregated, saliency = pool_tracklets(responses, semantics, temperature=temperature)
    if detach_saliency:
        saliency = saliency.detach()
        aggregated = (saliency[..., None] * responses).sum(1)
    return aggregated, saliency
