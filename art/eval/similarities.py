"""How alike classes and videos are in the semantics bank, as training goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from art.model.semantics import SemanticsBank, cosine

_QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}


@torch.no_grad()
def bank_similarities(
    bank: SemanticsBank, video_latent: Float[Tensor, "b d"], labels: Int64[Tensor, " b"]
) -> dict[str, Float32[np.ndarray, " n"]]:
    """Cosines in the latent space, by the names of their histograms. Of a sharded bank all ranks must call this.

    - "similarity_between_classes": of every two classes, each the mean direction of its prompts;
    - "similarity_own_class": of every x_cls and the semantics of its class, of the prompt that is nearest, as the
      selection takes it;
    - "similarity_other_classes": likewise with each of the other classes.

    Args:
        bank: with P prompts of Y classes.
        video_latent: x_cls in the space of the semantics.
        labels: the class of each video; of a mixed one, that which has most of it.
    """
    latent = F.linear(_whole(bank.bank), *(_whole(value) for value in _affine(bank.projection))).float()  # [P, Y, d]
    classes = F.normalize(F.normalize(latent, dim=-1).mean(0), dim=-1)
    above = torch.ones(len(classes), len(classes), dtype=torch.bool, device=latent.device).triu(1)
    likeness = cosine(video_latent.detach().float(), latent).amax(1)  # [B, Y]
    own = F.one_hot(labels, len(classes)).bool()
    found = {
        "similarity_between_classes": (classes @ classes.T)[above],
        "similarity_own_class": likeness[own],
        "similarity_other_classes": likeness[~own],
    }
    return {name: values.cpu().numpy() for name, values in found.items()}


def quantiles(histograms: dict[str, Float32[np.ndarray, " n"]]) -> dict[str, float]:
    """Each histogram in three numbers: "<name>/p05", "<name>/p50" and "<name>/p95"."""
    return {
        f"{name}/{quantile}": float(value)
        for name, values in histograms.items()
        for quantile, value in zip(_QUANTILES, np.quantile(values, list(_QUANTILES.values())), strict=True)
    }


def _affine(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.bias


def _whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
