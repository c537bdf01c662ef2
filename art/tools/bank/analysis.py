"""The semantics bank before and after fine-tuning: similarities, best prompts and embeddings."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from art.extras import import_extra
from art.model.art_model import ARTModel
from art.model.pretrained import VideoClassifier
from art.model.semantics import TEMPLATES, cosine, encode_prompts
from art.text import build_text_encoder

METHODS = ("t-SNE", "UMAP")
#: Above this number of texts per bank, the points of an embedding are classes instead of prompts.
MAX_POINTS = 2_000


@dataclass(frozen=True)
class BankAnalysis:
    """The texts of Y classes in P templates, before and after fine-tuning.

    Attributes:
        class_names: Y names.
        templates: P templates.
        prompts: Y texts inserted into the templates.
        assumed: whether the prompts were not saved with the model and are assumed to be the class names.
        before: ``[P, Y, C_t]``, S_0, encoded again.
        after: ``[P, Y, C_t]``, S.
        similarity_before: ``[Y, Y]``, cosines of all pairs of classes (mean direction of their prompts) in S_0.
        similarity_after: the same in S.
        likeness_before: ``[P, Y]``, cosines of each class's prototype (its weights in the L_v head, in the space of the
            projected semantics) with each of its semantics in S_0, projected like S.
        likeness_after: the same with S. Only the prompt with the highest value counts in L_sema.

    Examples:
        >>> from art import load_model
        >>> from art.tools.bank import analyze_bank
        >>> analysis = analyze_bank(load_model("runs/motion/checkpoints/last"))
        >>> analysis.similarity_before.shape, analysis.likeness_after.shape  # 2 classes, 16 templates
        ((2, 2), (16, 2))
        >>> sorted(analysis.as_json()["classes"][0])[:2]
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
        """Index of the best template of each class in S_0."""
        return self.likeness_before.argmax(0)

    @property
    def winners_after(self) -> Int64[np.ndarray, " y"]:
        """Index of the best template of each class in S."""
        return self.likeness_after.argmax(0)

    def as_json(self) -> dict[str, Any]:
        """Return similarities, best prompts, and 1 − cosine between before and after for each class."""
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
def analyze_bank(model: VideoClassifier) -> BankAnalysis:
    """Compare the bank of a model with its state before fine-tuning, S_0, which is encoded again from its texts.

    Raises:
        ValueError: the model has no bank, or S_0 has another shape because templates or text encoder differ from those
            the model was created with.
        ImportError, OSError: the text encoder of the model is not available.

    Examples:
        >>> from art import load_model
        >>> from art.tools.bank import analyze_bank
        >>> analyze_bank(load_model("runs/motion/checkpoints/last")).class_names
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
            f"the texts encode to shape {list(before.shape)}, but the bank has shape {list(after.shape)}: templates or "
            f"text encoder ({o.text_encoder!r}) differ from those the model was created with"
        )
    before = before.float().cpu()
    prototypes = model.video_projection(model.video_head.weight)
    device = bank.bank.device

    def likeness(semantics: Tensor) -> Float32[np.ndarray, "p y"]:
        all_pairs = cosine(prototypes, bank.projection(semantics.to(device)))  # [Y, P, Y]
        return all_pairs.diagonal(dim1=0, dim2=2).float().cpu().numpy()

    return BankAnalysis(
        class_names=list(model.class_names),
        templates=templates,
        prompts=list(prompts),
        assumed=model.prompts is None,
        before=before.numpy(),
        after=after.numpy(),
        similarity_before=_class_similarity(before),
        similarity_after=_class_similarity(after),
        likeness_before=likeness(before),
        likeness_after=likeness(after),
    )


@dataclass(frozen=True)
class Embedding:
    """Both banks embedded together in one plane, so that their positions are comparable.

    Attributes:
        method: one of :data:`METHODS`.
        before: ``[n, 2]``, points of S_0.
        after: ``[n, 2]``, points of S in the same order.
        labels: ``[n]``, the class of each.

    Examples:
        >>> import numpy as np
        >>> from art.tools.bank import Embedding
        >>> plane = Embedding("t-SNE", np.zeros((2, 2)), np.ones((2, 2)), np.array([0, 1]))
        >>> plane.after - plane.before  # displacement of each text
        array([[1., 1.],
               [1., 1.]])
    """

    method: str
    before: Float[np.ndarray, "n 2"]
    after: Float[np.ndarray, "n 2"]
    labels: Int64[np.ndarray, " n"]


def embed(analysis: BankAnalysis, method: str, *, seed: int = 0) -> Embedding:
    """Embed the directions of both banks in a plane.

    Args:
        analysis: the banks.
        method: one of :data:`METHODS`.
        seed: makes the result reproducible on one machine.

    Raises:
        ValueError: an unknown method.
        ModuleNotFoundError: the library of the method is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    points, labels = _directions(analysis)
    n = len(labels)
    # An unchanged text must be one point: the methods would separate two identical ones.
    points, index = np.unique(points.round(6), axis=0, return_inverse=True)
    neighbors = min(30, max(2, (len(points) - 1) // 3))
    if method == "t-SNE":
        manifold = import_extra("sklearn.manifold", extra="embed", needed_by="t-SNE")
        plane = manifold.TSNE(init="pca", perplexity=neighbors, random_state=seed).fit_transform(points)
    else:
        umap = import_extra("umap", extra="embed", needed_by="UMAP")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="n_jobs value")  # a seed implies one thread, as intended
            reducer = umap.UMAP(n_neighbors=min(15, neighbors), random_state=seed, init="pca")
            plane = reducer.fit_transform(points)
    plane = np.asarray(plane)[index.reshape(-1)]
    return Embedding(method, plane[:n], plane[n:], labels)


def _directions(analysis: BankAnalysis) -> tuple[Float32[np.ndarray, "n2 c"], Int64[np.ndarray, " n"]]:
    """Return the directions of S_0 followed by those of S, and the classes of either."""
    p, y, _ = analysis.before.shape
    banks = [bank / np.linalg.norm(bank, axis=-1, keepdims=True) for bank in (analysis.before, analysis.after)]
    if p * y > MAX_POINTS:
        banks = [bank.mean(0, keepdims=True) for bank in banks]
        p = 1
    return np.concatenate([bank.reshape(p * y, -1) for bank in banks]), np.tile(np.arange(y), p)


def _class_similarity(semantics: Tensor) -> Float32[np.ndarray, "y y"]:
    classes = F.normalize(F.normalize(semantics, dim=-1).mean(0), dim=-1)
    return (classes @ classes.T).numpy()


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def _rounded(array: np.ndarray) -> Any:
    return np.round(array.astype(np.float64), 5).tolist()
