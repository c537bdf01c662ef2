"""The objective of the paper: L = L_v + L_con + 5·L_MTC + 5·L_sema, each term by name; and one term beyond it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from art.model.options import ARTOptions
from art.model.semantics import SemanticsBank
from art_kernels import mtc_loss, tracklet_nce

#: The class of each video, int64 [B]; or of videos mixed from several the share of each class, floating point [B, Y].
Labels = Int[Tensor, " b"] | Float[Tensor, "b y"]


@dataclass(frozen=True)
class LossTerms:
    """The terms of one batch, unweighted, and their weighted sum; None where a term does not apply.

    Attributes:
        total: L, what is minimised.
        video: L_v, cross-entropy of the head on x_cls.
        contextual: L_con, cross-entropy of the head on [x_cls, Tr_1 … Tr_K].
        spatial: repels the regions of one frame.
        temporal: attracts the same tracklet in adjacent frames.
        tracklet: repels whole tracklets.
        mtc: L_MTC, the weighted sum of the three above.
        video_consistency: the video finds its class in the agent bank.
        prototype_consistency: each class prototype finds its class in the agent bank.
        sema: L_sema, the weighted sum of the two above.
        nce: beyond the paper: tracklets find those of their class in the batch.

    Examples:
        >>> import torch
        >>> from art import ARTModel
        >>> model = ARTModel(["walk", "jump"], num_frames=2)
        >>> terms = model.loss(model(torch.rand(1, 2, 3, 112, 112)), torch.tensor([0]))
        >>> sorted(terms.named())[:4]
        ['contextual', 'mtc', 'prototype_consistency', 'sema']
    """

    total: Float[Tensor, ""]
    video: Float[Tensor, ""]
    contextual: Float[Tensor, ""] | None = None
    spatial: Float[Tensor, ""] | None = None
    temporal: Float[Tensor, ""] | None = None
    tracklet: Float[Tensor, ""] | None = None
    mtc: Float[Tensor, ""] | None = None
    video_consistency: Float[Tensor, ""] | None = None
    prototype_consistency: Float[Tensor, ""] | None = None
    sema: Float[Tensor, ""] | None = None
    nce: Float[Tensor, ""] | None = None

    def named(self) -> dict[str, Tensor]:
        """Every term that applies, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


def multilevel_contrast(
    responses: Float[Tensor, "b t k d"], aggregated: Float[Tensor, "b k d"], options: ARTOptions
) -> dict[str, Tensor]:
    """L_MTC and its three levels, by their names in :class:`LossTerms`."""
    levels = mtc_loss(
        responses,
        aggregated if options.tracklet_form == "pooled" else None,
        margin=options.margin,
        temporal_form=options.temporal_form,
        tracklet_form=options.tracklet_form,
        clamp_repulsion=options.clamp_repulsion,
    )
    mtc = (
        options.weight_spatial * levels.spatial
        + options.weight_temporal * levels.temporal
        + options.weight_tracklet * levels.tracklet
    )
    return {"spatial": levels.spatial, "temporal": levels.temporal, "tracklet": levels.tracklet, "mtc": mtc}


def semantic_consistency(
    bank: SemanticsBank,
    video: Float[Tensor, "b d"],
    prototypes: Float[Tensor, "y d"],
    labels: Labels,
    options: ARTOptions,
) -> dict[str, Tensor]:
    """L_sema and its two terms, which train the agent bank.

    Args:
        bank: the semantics bank.
        video: the latent x_cls.
        prototypes: the latent weights of the L_v head, one a class.
        labels: the class of each video; or the share of each class in a mixed one, which the first term then weighs
            its classes by, as L_v does (our reading). The second has no videos in it.
        options: the logit scale and the weights of the two terms.
    """
    video_term = F.cross_entropy(options.logit_scale * bank.class_logits(video), labels)
    identity = torch.arange(len(prototypes), device=labels.device)
    prototype_term = F.cross_entropy(options.logit_scale * bank.class_logits(prototypes), identity)
    sema = options.weight_consistency * video_term + options.weight_prototype * prototype_term
    return {"video_consistency": video_term, "prototype_consistency": prototype_term, "sema": sema}


def tracklet_contrast(
    aggregated: Float[Tensor, "b k d"], labels: Labels, options: ARTOptions, group: dist.ProcessGroup | None = None
) -> Float[Tensor, ""]:
    """Beyond the paper: the supervised contrast of all tracklets of a batch, by cosine.

    Tracklets of the same index in videos of the same class attract each other; all others in the batch, those of the
    same video among them, repel. A tracklet alone of its kind takes no part but to be repelled from. The batch is that
    of all processes of ``group``, over which the mean of the results is to be taken; None: that of this one.

    Raises:
        ValueError: ``labels`` are shares of classes: a tracklet of a mixed video is of no kind.
    """
    if labels.ndim != 1:
        raise ValueError(
            f"labels has shape {list(labels.shape)}, the shares of mixed videos; the contrast of tracklets "
            "(weight_nce) needs one class a video: leave out mixup and cutmix, or set weight_nce to 0"
        )
    tracklets = F.normalize(aggregated, dim=-1).flatten(0, 1)
    index = torch.arange(aggregated.shape[1], device=labels.device)
    kinds = (labels[:, None] * aggregated.shape[1] + index).flatten()
    itself = torch.arange(tracklets.shape[0], device=labels.device) + _rows_before(tracklets, group)
    return tracklet_nce(
        tracklets, tracklets, (kinds, kinds), temperature=options.nce_temperature, excluded=itself, group=group
    )


def _rows_before(rows: Tensor, group: dist.ProcessGroup | None) -> Int[Tensor, ""] | int:
    """How many rows the processes before this one have."""
    if group is None:
        return 0
    counts = torch.empty(dist.get_world_size(group), 1, dtype=torch.int64, device=rows.device)
    dist.all_gather(list(counts), counts.new_tensor([len(rows)]), group=group)
    return counts[: dist.get_rank(group)].sum()
