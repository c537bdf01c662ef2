"""The semantics bank before and after fine-tuning, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor

from art.model.art_model import ARTModel
from art.model.pretrained import VideoClassifier
from art.model.semantics import TEMPLATES, cosine, encode_prompts
from art.text import build_text_encoder


@dataclass(frozen=True)
class BankView:
    """What the texts of Y classes, by P templates, said before and say after fine-tuning.

    Attributes:
        class_names: Y names.
        templates: P templates.
        prompts: what the templates say of each class, Y texts.
        assumed: whether that is not saved with the model, and taken to be the class names.
        before: ``[P, Y, C_t]``, S_0, encoded again.
        after: ``[P, Y, C_t]``, S.
        similarity_before: ``[Y, Y]``, the cosine of every two classes, each the mean direction of its prompts in S_0.
        similarity_after: the same in S.
        likeness_before: ``[P, Y]``, the cosine of each class's prototype (its weights in the L_v head, in the space of
            the projected semantics) with each of its semantics in S_0, projected as S is.
        likeness_after: the same with S. The prompt of the highest wins: it alone counts in L_sema.

    Examples:
        >>> from art import load_model
        >>> from art.tools.bank import look_at_bank
        >>> view = look_at_bank(load_model("runs/motion/checkpoints/last"))
        >>> view.similarity_before.shape, view.likeness_after.shape  # 2 classes, 16 templates
        ((2, 2), (16, 2))
        >>> sorted(view.as_json()["classes"][0])[:2]
        ['likeness_after', 'likeness_before']
    """

    class_names: list[str]
    templates: list[str]
    prompts: list[str]
    assumed: bool
    before: Float32[np.ndarray, "p y c"]
    after: Float32[np.ndarray, "p y c"]
    similarity_before: Float32[np.ndarray, "y y"]
    similarity_after: Float32[np.ndarray, "y y"]
    likeness_before: Float32[np.ndarray, "p y"]
    likeness_after: Float32[np.ndarray, "p y"]

    @property
    def winners_before(self) -> Int64[np.ndarray, " y"]:
        """The template that wins for each class, of S_0."""
        return self.likeness_before.argmax(0)

    @property
    def winners_after(self) -> Int64[np.ndarray, " y"]:
        """The template that wins for each class, of S."""
        return self.likeness_after.argmax(0)

    def as_json(self) -> dict[str, Any]:
        """Similarities, winners, and how far each class moved."""
        moved = 1 - _cosines(self.before, self.after).mean(0)
        return {
            "class_names": self.class_names,
            "templates": self.templates,
            "prompts": self.prompts,
            "prompts_assumed": self.assumed,
            "similarity_before": _rounded(self.similarity_before),
            "similarity_after": _rounded(self.similarity_after),
            "classes": [
                {
                    "name": name,
                    "moved": round(float(moved[c]), 6),
                    "prompt_before": self.templates[self.winners_before[c]].replace("{label}", self.prompts[c]),
                    "prompt_after": self.templates[self.winners_after[c]].replace("{label}", self.prompts[c]),
                    "likeness_before": _rounded(self.likeness_before[:, c]),
                    "likeness_after": _rounded(self.likeness_after[:, c]),
                }
                for c, name in enumerate(self.class_names)
            ],
        }


@torch.no_grad()
def look_at_bank(model: VideoClassifier) -> BankView:
    """The bank of a model, and what it was before: S_0 is not saved, and its texts are encoded again.

    Raises:
        ValueError: a model without a bank; or S_0 is of another shape, so that templates or text encoder are not those
            that the model was made with.
        ImportError, OSError: the text encoder of the model cannot be had here.

    Examples:
        >>> from art import load_model
        >>> from art.tools.bank import look_at_bank
        >>> look_at_bank(load_model("runs/motion/checkpoints/last")).class_names
        ['run', 'walk']
    """
    if not isinstance(model, ARTModel):
        raise ValueError(f"the model is of kind {model.kind!r}, which has no semantics; expected one of kind 'art'")
    o, bank = model.options, model.semantics
    templates, prompts = list(o.templates or TEMPLATES), model.prompts or model.class_names
    before = encode_prompts(build_text_encoder(o.text_encoder, **o.text_options), prompts, templates)
    after = bank.bank.float().cpu()
    if before.shape != after.shape:
        raise ValueError(
            f"the texts encoded again have the shape {list(before.shape)}, the bank {list(after.shape)}: templates or "
            f"text encoder ({o.text_encoder!r}) are not those that the model was made with"
        )
    before = before.float().cpu()
    prototypes = model.video_projection(model.video_head.weight)
    device = bank.bank.device

    def likeness(semantics: Tensor) -> Float32[np.ndarray, "p y"]:
        own = cosine(prototypes, bank.projection(semantics.to(device)))  # [Y, P, Y]
        return own.diagonal(dim1=0, dim2=2).float().cpu().numpy()

    return BankView(
        class_names=list(model.class_names),
        templates=templates,
        prompts=list(prompts),
        assumed=model.prompts is None,
        before=before.numpy(),
        after=after.numpy(),
        similarity_before=_between_classes(before),
        similarity_after=_between_classes(after),
        likeness_before=likeness(before),
        likeness_after=likeness(after),
    )


def _between_classes(semantics: Tensor) -> Float32[np.ndarray, "y y"]:
    classes = F.normalize(F.normalize(semantics, dim=-1).mean(0), dim=-1)
    return (classes @ classes.T).numpy()


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def _rounded(array: np.ndarray) -> Any:
    return np.round(array.astype(np.float64), 5).tolist()
