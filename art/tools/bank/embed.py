"""Texts as points of a plane: t-SNE (scikit-learn) and UMAP (umap-learn), of the extra ``[embed]``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from art.extras import import_extra
from art.tools.bank.measure import BankView

METHODS = ("t-SNE", "UMAP")
MOST_POINTS = 2_000  # of each bank: beyond it classes are points, not their prompts


@dataclass(frozen=True)
class Embedding:
    """Both banks on one plane, laid out together, so that their positions can be compared.

    Attributes:
        method: one of :data:`METHODS`.
        before: ``[n, 2]``, the points of S_0.
        after: ``[n, 2]``, of S, in the same order.
        labels: ``[n]``, the class of each.

    Examples:
        >>> import numpy as np
        >>> from art.tools.bank import Embedding
        >>> plane = Embedding("t-SNE", np.zeros((2, 2)), np.ones((2, 2)), np.array([0, 1]))
        >>> plane.after - plane.before  # how far each text moved
        array([[1., 1.],
               [1., 1.]])
    """

    method: str
    before: Float[np.ndarray, "n 2"]
    after: Float[np.ndarray, "n 2"]
    labels: Int64[np.ndarray, " n"]


def embed(view: BankView, method: str, *, seed: int = 0) -> Embedding:
    """Lay the semantics of both banks out in a plane, by the cosine of their directions.

    Args:
        method: one of :data:`METHODS`.
        seed: the same gives the same plane on one machine.

    Raises:
        ValueError: an unknown method.
        ModuleNotFoundError: its library is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(METHODS)}")
    points, labels = _points(view)
    n = len(labels)
    # What did not move is one point: two would be driven apart.
    points, place = np.unique(points.round(6), axis=0, return_inverse=True)
    neighbours = min(30, max(2, (len(points) - 1) // 3))
    if method == "t-SNE":
        manifold = import_extra("sklearn.manifold", extra="embed", needed_by="t-SNE")
        plane = manifold.TSNE(init="pca", perplexity=neighbours, random_state=seed).fit_transform(points)
    else:
        umap = import_extra("umap", extra="embed", needed_by="UMAP")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="n_jobs value")  # a seed means one thread, which is meant
            reducer = umap.UMAP(n_neighbors=min(15, neighbours), random_state=seed, init="pca")
            plane = reducer.fit_transform(points)
    plane = np.asarray(plane)[place.reshape(-1)]
    return Embedding(method, plane[:n], plane[n:], labels)


def _points(view: BankView) -> tuple[Float32[np.ndarray, "n2 c"], Int64[np.ndarray, " n"]]:
    """Directions of S_0 and then of S, and the classes of either."""
    p, y, _ = view.before.shape
    banks = [semantics / np.linalg.norm(semantics, axis=-1, keepdims=True) for semantics in (view.before, view.after)]
    if p * y > MOST_POINTS:
        banks = [bank.mean(0, keepdims=True) for bank in banks]
        p = 1
    return np.concatenate([bank.reshape(p * y, -1) for bank in banks]), np.tile(np.arange(y), p)
