"""The paper's objective, L = L_v + L_con + 5·L_MTC + 5·L_sema, term by term, and one optional term beyond it."""

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

#: Class indices, int64 [B]; or class probabilities of mixed videos (mixup, CutMix), floating point [B, Y].
Labels = Int[Tensor, " b"] | Float[Tensor, "b y"]


@dataclass(frozen=True)
class LossTerms:
    """Loss terms of one batch, unweighted, and their weighted sum. A term that does not apply is None.

    Attributes:
        total: L, the loss to minimize.
        video: L_v, cross-entropy of the head on x_cls.
        contextual: L_con, cross-entropy of the final logits.
        region: cross-entropy of the evidence of the regions alone.
        focus: entropy of the true class's maps, relative to that of a uniform map; only of an output with maps, as in
            training.
        spatial: repulsion between the regions of one frame.
        temporal: attraction within a tracklet between adjacent frames.
        tracklet: repulsion between tracklets.
        mtc: L_MTC, the weighted sum of ``spatial``, ``temporal``, and ``tracklet``.
        video_consistency: cross-entropy of classifying the video by the agent bank.
        prototype_consistency: cross-entropy of classifying each class prototype by the agent bank.
        sema: L_sema, the weighted sum of ``video_consistency`` and ``prototype_consistency``.
        nce: beyond the paper: supervised contrastive loss between the tracklets of the batch.

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
    region: Float[Tensor, ""] | None = None
    focus: Float[Tensor, ""] | None = None
    spatial: Float[Tensor, ""] | None = None
    temporal: Float[Tensor, ""] | None = None
    tracklet: Float[Tensor, ""] | None = None
    mtc: Float[Tensor, ""] | None = None
    video_consistency: Float[Tensor, ""] | None = None
    prototype_consistency: Float[Tensor, ""] | None = None
    sema: Float[Tensor, ""] | None = None
    nce: Float[Tensor, ""] | None = None

    def named(self) -> dict[str, Tensor]:
        """Return the terms that apply, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


def multilevel_contrast(
    responses: Float[Tensor, "b t k d"], aggregated: Float[Tensor, "b k d"], options: ARTOptions
) -> dict[str, Tensor]:
    """Compute L_MTC and its three levels, named as in :class:`LossTerms`."""
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
    """Compute L_sema and its two terms, which train the agent bank, named as in :class:`LossTerms`.

    Args:
        bank: the semantics bank.
        video: x_cls, projected into the latent space.
        prototypes: weights of the L_v head, one row per class, projected into the latent space.
        labels: class indices or class probabilities. Probabilities are the targets of the video term, as in L_v (our
            reading); the prototype term does not depend on them.
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
    """Compute the supervised contrastive loss between all tracklets of a batch, by cosine. Beyond the paper.

    Positives are tracklets with the same index in other videos of the same class; all other tracklets of the batch,
    including those of the same video, are negatives. A tracklet without a positive is only a negative.

    Args:
        aggregated: tracklets pooled over time.
        labels: class indices.
        options: the temperature.
        group: processes that the batch is distributed over; the loss is the mean of their results. None: this process
            has the whole batch.

    Raises:
        ValueError: If ``labels`` are class probabilities.
    """
    if labels.ndim != 1:
        raise ValueError(
            f"labels has shape {list(labels.shape)}, the class probabilities of mixed videos; the contrast between "
            "tracklets (weight_nce) requires one class per video: disable mixup and cutmix, or set weight_nce to 0"
        )
    tracklets = F.normalize(aggregated, dim=-1).flatten(0, 1)
    index = torch.arange(aggregated.shape[1], device=labels.device)
    keys = (labels[:, None] * aggregated.shape[1] + index).flatten()
    own_columns = torch.arange(tracklets.shape[0], device=labels.device) + _row_offset(tracklets, group)
    return tracklet_nce(
        tracklets, tracklets, (keys, keys), temperature=options.nce_temperature, excluded=own_columns, group=group
    )


def _row_offset(rows: Tensor, group: dist.ProcessGroup | None) -> Int[Tensor, ""] | int:
    """Return the number of rows on the lower ranks of ``group``."""
    if group is None:
        return 0
    counts = torch.empty(dist.get_world_size(group), 1, dtype=torch.int64, device=rows.device)
    dist.all_gather(list(counts), counts.new_tensor([len(rows)]), group=group)
    return counts[: dist.get_rank(group)].sum()
