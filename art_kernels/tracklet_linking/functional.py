"""`linear_assignment`, `link_tracklets` and `gather_tracklets`, and the PyTorch operators behind them.

A matching has no gradient. The similarity of its links has the gradient of a cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from art_kernels._core import backends
from art_kernels._core.autograd import OperatorSpec, define_operator, merge_batch
from art_kernels._core.checks import check_choice, check_flag, check_floating, check_ids, check_number
from art_kernels._core.precision import (
    accumulation_dtype,
    at_least_float32,
    autocast_as_softmax,
    cosine_norms,
    without_autocast,
)
from art_kernels.tracklet_linking import cpp, reference

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped


def linear_assignment(
    cost: Float[Tensor, "... k k"], *, maximize: bool = False, check: bool = False, backend: str | None = None
) -> Int[Tensor, "... k"]:
    """Solve many small square assignment problems exactly.

    Assigns each row of a problem to one column, and each column to one row, so that the sum of the costs is minimal.
    Problems up to K = 4 compare all matchings, larger ones use shortest augmenting paths (Jonker and Volgenant,
    Computing 38, 1987), with sums and dual variables in float64. If several matchings are optimal, every run returns
    the same one. The result has no gradient.

    Args:
        cost: [...,K,K] with K up to 256; float16, bfloat16, float32 or float64, all finite.
        maximize: maximize the sum instead.
        check: on a GPU, synchronize and raise if a cost is not finite. Without it, a problem with such a cost returns
            -1 for every row. The CPU always checks.
        backend: "cpp", "reference", or None to choose automatically. The reference enumerates all
            matchings and is never chosen automatically.

    Returns:
        [...,K] int64 on the device of `cost`: the column of each row.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape; K above 256; NaN or inf, with the index of the first such problem; a backend that
            does not support this tensor, or whose native module was not built.

    Examples:
        >>> import torch
        >>> from art_kernels import linear_assignment
        >>> cost = torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
        >>> columns = linear_assignment(cost)
        >>> columns.tolist(), cost.gather(1, columns[:, None]).sum().item()
        ([1, 0, 2], 5.0)
        >>> linear_assignment(torch.rand(1000, 8, 8)).shape
        torch.Size([1000, 8])
    """
    name = "linear_assignment"
    check_floating(name, "cost", cost, "[...,K,K]")
    if cost.shape[-1] != cost.shape[-2]:
        raise ValueError(
            f"{name}: cost has shape {list(cost.shape)}, expected [...,K,K]; "
            "pad a matrix that is not square with a large number"
        )
    if cost.shape[-1] > cpp.MAX_SIZE:
        raise ValueError(
            f"{name}: cost has shape {list(cost.shape)}, expected [...,K,K] with K at most {cpp.MAX_SIZE}; "
            "solve larger problems with scipy.optimize.linear_sum_assignment"
        )
    check_flag(name, "maximize", maximize)
    check_flag(name, "check", check)
    return backends.implementation(name, cost, backend)(cost.detach(), maximize, check)


class TrackletLinks(NamedTuple):
    """The response of each frame that continues each tracklet. Slot k is the k-th chain of links through the video.

    Attributes:
        order: [B,T,K] int64; order[b,t,k] is the index of the response of frame t in slot k.
        similarity: [B,T-1,K], the cosine of the responses of slot k in frames t and t+1; differentiable.
        tracklet_id: [B,T,K] int64, the tracklet in slot k in frame t. The first frame has 0 to K-1; each new tracklet
            gets the next number of its video, in order of frames, then slots.

    Examples:
        >>> import torch
        >>> from art_kernels import link_tracklets
        >>> links = link_tracklets(torch.eye(2)[None, [0, 1], None].expand(1, 2, 1, 2), min_similarity=0.5)
        >>> links.similarity.tolist()  # orthogonal vectors: the tracklet ends and a new one starts
        [[[0.0]]]
        >>> links.tracklet_id.flatten().tolist()
        [0, 1]
    """

    order: Tensor
    similarity: Tensor
    tracklet_id: Tensor


def link_tracklets(
    responses: Float[Tensor, "b t k c"],
    *,
    method: str = "optimal",
    min_similarity: float | None = None,
    backend: str | None = None,
) -> TrackletLinks:
    """Link the responses of adjacent frames into tracklets.

    In the paper, tracklet k is the response of query k in each frame, so a query that moves to another region moves its
    tracklet with it. Linking by similarity keeps each tracklet on its region (ours, not the paper's).

    Args:
        responses: [B,T,K,C], response k in frame t, K up to 256; float16, bfloat16, float32 or float64.
        method: how the responses of a frame are matched one to one to those of the next. "optimal": the maximal sum of
            cosines; "greedy": the largest cosine first, then the largest of the remaining ones; "index", the paper's:
            by query. A NaN cosine ranks below all others.
        min_similarity: a cosine in -1..1: a link with a lower (or NaN) similarity ends its tracklet and starts a new
            one in the same slot. It is compared before the similarity is rounded to the dtype of the responses. None
            never ends a tracklet. Ours, not the paper's.
        backend: "cpp", "reference", or None to choose automatically. The reference enumerates all
            matchings and supports up to 8 responses per frame.

    Returns:
        `TrackletLinks`. The similarity is computed in float32 (float64 for float64) and has the dtype of `responses`;
        under autocast it is float32. A zero vector has similarity 0 with gradient 0. The order has no gradient.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or value, or a backend that does not support this tensor, or whose
            native module was not built.

    Examples:
        >>> import torch
        >>> from art_kernels import link_tracklets
        >>> one, other = torch.eye(2)
        >>> responses = torch.stack([torch.stack([one, other]), torch.stack([other, one])])[None]
        >>> responses.shape  # the two queries swap regions in the second frame
        torch.Size([1, 2, 2, 2])
        >>> link_tracklets(responses).order.tolist()
        [[[0, 1], [1, 0]]]
        >>> link_tracklets(responses, method="index").order.tolist()
        [[[0, 1], [0, 1]]]
    """
    name = "link_tracklets"
    check_floating(name, "responses", responses, "[B,T,K,C]")
    if responses.shape[1] == 0:
        raise ValueError(
            f"{name}: responses has shape {list(responses.shape)}, expected [B,T,K,C] with at least one frame"
        )
    check_choice(name, "method", method, reference.METHODS)
    if min_similarity is not None:
        check_number(name, "min_similarity", min_similarity, low=-1.0, high=1.0)
    backend = backends.choose(name, responses, backend)
    if method != "index":
        _check_matching(responses, method, backend)

    responses = autocast_as_softmax(responses)
    run = backends.implementation(name, responses, backend)
    with without_autocast(responses.device):
        order, similarity, tracklet_id = run(responses, method, min_similarity)
    return TrackletLinks(order, similarity.to(responses.dtype), tracklet_id)


def _check_matching(responses: Tensor, method: str, backend: str) -> None:
    """Raise ValueError unless `backend` supports matching this number of responses on this device."""
    count = responses.shape[2]
    limit = reference.MAX_SIZE if backend == "reference" else cpp.MAX_SIZE
    if count > limit:
        raise ValueError(
            f"link_tracklets: responses has {count} responses per frame, expected at most {limit} with "
            f"method={method!r} and backend={backend!r}; method='index' supports any number"
        )
    reason = cpp.unsupported_reason(responses) if backend != "reference" else None
    if reason is not None:
        raise ValueError(f"link_tracklets: method={method!r} is not available on {responses.device}: {reason}")


def gather_tracklets(values: Shaped[Tensor, "b t k *rest"], order: Int[Tensor, "b t k"]) -> Shaped[Tensor, "..."]:
    """Gather per-response values in tracklet order: result[b,t,k] = values[b,t,order[b,t,k]].

    Args:
        values: [B,T,K,...] of any dtype, such as responses, response maps or boxes; differentiable.
        order: [B,T,K] int64, the order of `TrackletLinks`.

    Returns:
        A tensor like `values` whose `[:, :, k]` holds the values of slot k in every frame.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: fewer than three dimensions, or sizes or devices that differ.

    Examples:
        >>> import torch
        >>> from art_kernels import gather_tracklets
        >>> values = torch.tensor([[[10, 20], [30, 40]]])
        >>> order = torch.tensor([[[0, 1], [1, 0]]])
        >>> gather_tracklets(values, order).tolist()
        [[[10, 20], [40, 30]]]
    """
    name = "gather_tracklets"
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: values is of type {type(values).__name__}, expected a torch.Tensor [B,T,K,...]")
    if values.dim() < 3:
        raise ValueError(f"{name}: values has shape {list(values.shape)}, expected [B,T,K,...]; add the missing ones")
    check_ids(name, "order", order, "[B,T,K]", values.shape[:3], values.device)
    index = order.view(*order.shape, *(1,) * (values.dim() - 3)).expand_as(values)
    return torch.gather(values, 2, index)


def assign(cost: Tensor, maximize: bool, check: bool) -> Tensor:
    """Return the columns [...,K] assigned to the rows of cost [...,K,K]."""
    problems = cost.flatten(0, -3) if cost.dim() > 2 else cost[None]
    columns, first_bad = cpp.solve(problems, maximize=maximize, greedy=False)
    if first_bad is None and check and (bad := columns[:, 0] < 0).any():
        first_bad = int(bad.int().argmax())
    if first_bad is not None and first_bad >= 0:
        index = _batch_index(first_bad, cost.shape[:-2])
        raise ValueError(
            f"linear_assignment: cost{index} holds NaN or inf, expected finite numbers; "
            "use a large number to forbid an assignment"
        )
    return columns.view(cost.shape[:-1])


def _batch_index(index: int, sizes: Sequence[int]) -> str:
    """Format the position of problem `index` in a batch of `sizes`, such as "[3, 1]"."""
    position: list[int] = []
    for size in reversed(sizes):
        position.insert(0, index % size)
        index //= size
    return str(position) if position else ""


class AssignmentArguments(NamedTuple):
    """Arguments of `linear_assignment`."""

    cost: Tensor
    maximize: bool
    check: bool


def _add_batch_dim(spec: OperatorSpec, operator: Any, names: Sequence[str]) -> Callable[..., Any]:
    """A vmap rule that makes the mapped dimension a batch dimension."""

    def rule(info: Any, in_dims: Sequence[int], cost: Tensor, maximize: bool, check: bool) -> tuple[Tensor, int]:
        return operator(cost.movedim(in_dims[0], 0), maximize, check), 0

    return rule


_ASSIGNMENT = define_operator(
    OperatorSpec("linear_assignment", AssignmentArguments, ("columns",), _add_batch_dim),
    "cpp",
    assign,
    lambda arguments: arguments.cost.new_empty(arguments.cost.shape[:-1], dtype=torch.int64),
)


class LinkingArguments(NamedTuple):
    """Arguments of `link_tracklets`, except by index."""

    responses: Tensor
    greedy: bool
    min_similarity: float | None


def _link_fake(arguments: LinkingArguments) -> tuple[Tensor, Tensor, Tensor]:
    responses = arguments.responses
    videos, frames, size, _ = responses.shape
    return (
        responses.new_empty((videos, frames - 1, size), dtype=accumulation_dtype(responses.dtype)),
        responses.new_empty((videos, frames, size), dtype=torch.int64),
        responses.new_empty((videos, frames, size), dtype=torch.int64),
    )


def _link_backward(
    grads: Sequence[Tensor], arguments: LinkingArguments, saved: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor]:
    """Return the gradient of the responses: for unit vectors a and b, d(a · b) = (b - (a · b) a) / its norm."""
    responses, (similarity, order) = arguments.responses, saved
    index = order[..., None].expand_as(responses)
    linked = at_least_float32(responses).gather(2, index)
    norms = cosine_norms(linked.square().sum(-1, keepdim=True))
    units, cosines, grad = linked / norms, similarity[..., None], grads[0][..., None]
    first, second = units[:, :-1], units[:, 1:]
    zero = torch.zeros_like(units[:, :1])
    grad_first = torch.cat([grad * (second - cosines * first), zero], 1)
    grad_second = torch.cat([zero, grad * (first - cosines * second)], 1)
    grad_linked = (grad_first + grad_second) / norms
    # Each response of a frame is in exactly one slot, so scatter adds nothing up.
    return (torch.zeros_like(grad_linked).scatter(2, index, grad_linked).to(responses.dtype),)


_LINKING = define_operator(
    OperatorSpec(
        name="link_tracklets",
        arguments=LinkingArguments,
        outputs=("similarity", "order", "tracklet_id"),
        vmap=merge_batch,
        differentiable=("responses",),
        grad_outputs=("similarity",),
    ),
    "cpp",
    cpp.link_by_similarity,
    _link_fake,
    _link_backward,
    saved=("similarity", "order"),
)


def _assign_reference(cost: Tensor, maximize: bool, check: bool) -> Tensor:
    if not bool(cost.isfinite().all()):
        raise ValueError("linear_assignment: cost holds NaN or inf, expected finite numbers")
    return reference.optimal_assignment(cost, maximize=maximize)


def _reference_unsupported_reason(cost: Tensor) -> str | None:
    supported = cost.shape[-1] <= reference.MAX_SIZE
    return None if supported else f"the reference enumerates all matchings, of at most {reference.MAX_SIZE} rows"


def _link_cpp(responses: Tensor, method: str, min_similarity: float | None) -> tuple[Tensor, Tensor, Tensor]:
    if method != "index":
        similarity, order, tracklet_id = _LINKING.forward(responses, method == "greedy", min_similarity)
        return order, similarity, tracklet_id
    order, similarity = cpp.link_by_index(responses)
    return order, similarity, reference.tracklet_ids(order, similarity, min_similarity)


def _link_reference(responses: Tensor, method: str, min_similarity: float | None) -> tuple[Tensor, Tensor, Tensor]:
    order, similarity = reference.link_tracklets(responses, method)
    return order, similarity, reference.tracklet_ids(order, similarity, min_similarity)


backends.register("linear_assignment", "cpp", _ASSIGNMENT.forward, cpp.unsupported_reason)
backends.register(
    "linear_assignment", "reference", _assign_reference, _reference_unsupported_reason, opt_in=lambda cost: True
)
backends.register("link_tracklets", "cpp", _link_cpp)
backends.register("link_tracklets", "reference", _link_reference)
