"""The semantics bank: text embeddings of the classes, stored with the model and fine-tuned through an agent copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from art._deprecated import renamed_attribute
from art.text import TextEncoder

#: 16 prompt templates per class (our reading; the paper quotes the first two).
TEMPLATES = (
    "This is a video about {label}",
    "The person is doing {label}",
    "a video of a person doing {label}",
    "a video of {label}",
    "the action is {label}",
    "someone performs {label}",
    "a clip that shows {label}",
    "human action of {label}",
    "an athlete performs {label}",
    "look, the person is performing {label}",
    "{label}, an action",
    "{label}, a movement of the body",
    "playing action of {label}",
    "can you recognise the action {label}?",
    "a person who is performing {label}",
    "{label}",
)


class Selection(NamedTuple):
    """The K classes whose semantics query a video.

    Attributes:
        classes: ``[B, K]`` int64, class indices in descending order of similarity. The rank is the query index for all
            frames of the video.
        semantics: ``[B, K, d]``, the best-matching prompt of each class.
    """

    classes: Int[Tensor, "b k"]
    semantics: Float[Tensor, "b k d"]


def encode_prompts(
    encoder: TextEncoder, class_names: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "p y c"]:
    """Compute S_0 of the paper: the embeddings of every template filled with every class name.

    Raises:
        ValueError: If ``templates`` is empty, or one does not contain ``{label}``.
    """
    if not templates:
        raise ValueError("templates is empty; expected at least one prompt that contains '{label}'")
    for template in templates:
        if "{label}" not in template:
            raise ValueError(f"template {template!r} does not contain '{{label}}', the placeholder of the class name")
    texts = [template.replace("{label}", name) for template in templates for name in class_names]
    return encoder(texts).reshape(len(templates), len(class_names), -1)


class SemanticsBank(nn.Module):
    """The bank S ``[P, Y, C_t]``, its trained agent copy S_a, and the projection of text to the latent width.

    The bank has no gradient; :meth:`ema_update` moves it toward the agent after every optimizer step.

    Args:
        semantics: S_0 ``[P, Y, C_t]``.
        latent_dim: d.
        momentum: μ in 0..1.
    """

    bank: Tensor

    def __init__(self, semantics: Float[Tensor, "p y c"], latent_dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("bank", semantics.clone())
        self.agent = nn.Parameter(semantics.clone())
        self.projection = nn.Linear(semantics.shape[-1], latent_dim)

    def select(self, video: Float[Tensor, "b d"], count: int) -> Selection:
        """Select the ``count`` classes with the highest cosine similarity to each video, maximized over prompts.

        Does not depend on labels, is the same in training and evaluation, and has no gradient to ``video``.
        """
        latent = self.projection(self.bank)
        with torch.no_grad():
            best, prompt = cosine(video, latent).max(dim=1)  # over prompts: [B, Y]
            classes = best.topk(count, dim=1).indices
            prompt = prompt.gather(1, classes)
        return Selection(classes, latent[prompt, classes])

    def class_logits(self, vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n y"]:
        """Compute max_p cos(vector, S_a[p, c]), the best match over the agent's prompts."""
        return cosine(vectors, self.projection(self.agent)).amax(dim=1)

    @torch.no_grad()
    def ema_update(self) -> None:
        """Update S ← μS + (1−μ)S_a."""
        agent = self.agent.detach()
        if hasattr(agent, "full_tensor"):  # a DTensor, sharded by FSDP
            agent = agent.full_tensor()
        self.bank.lerp_(agent, 1 - self.momentum)

    follow_agent = renamed_attribute("follow_agent", "ema_update")


def cosine(vectors: Float[Tensor, "n d"], semantics: Float[Tensor, "p y d"]) -> Float[Tensor, "n p y"]:
    """Compute the cosine similarity of every vector and every semantic."""
    return torch.einsum("nd,pyd->npy", F.normalize(vectors, dim=-1), F.normalize(semantics, dim=-1))
