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
    FLOATING,
    accumulation_dtype,
    at_least_float32,
    autocast_as_softmax,
    cosine_norms,
    without_autocast,
)
from art_kernels.tracklet_linking import cpp, reference

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

#: Integer dtypes of costs; False is 0 and True is 1.
_INTEGERS = (
    torch.bool, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def linear_assignment(
    cost: Shaped[Tensor, "... m n"], *, maximize: bool = False, check: bool = False, backend: str | None = None
) -> Int[Tensor, "... m"]:
    """Solve many assignment problems exactly, as `scipy.optimize.linear_sum_assignment` solves one.

    Assigns each row of a problem to at most one column and each column to at most one row, as many as possible, so that
    the sum of the costs is minimal. Square problems up to 4 rows compare all matchings, others use shortest augmenting
    paths (Jonker and Volgenant, Computing 38, 1987), with sums and dual variables in float64. If several matchings are
    optimal, every run returns the same one. The result has no gradient.

    Args:
        cost: [...,M,N], floating-point, integer or boolean. A cost of inf (-inf with `maximize`) forbids a pair.
            Integers are never rounded: int64 and uint64 costs whose range is too wide for float64 are solved in
            128-bit integers on the CPU. On a GPU such a problem has no result; see `check`.
        maximize: maximize the sum instead.
        check: on a GPU, synchronize and raise if a problem has no solution. Without it, such a problem returns -1 for
            every row. The CPU always checks.
        backend: "cpp", "reference", or None to choose automatically. The reference enumerates all matchings of at most
            8 rows and columns and is never chosen automatically.

    Returns:
        [...,M] int64 on the device of `cost`: the column of each row, or -1 if M > N and the row is unmatched, or if N
        is 0. The GPU solves problems of at most 256 rows and columns; larger ones on a GPU are copied to the CPU, which
        synchronizes and always checks.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape; a problem with NaN or the infinity of the wrong sign, or whose forbidden pairs leave
            no matching, with the index of the first one; a backend that does not support this tensor, or whose native
            module was not built.

    Examples:
        >>> import torch
        >>> from art_kernels import linear_assignment
        >>> cost = torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
        >>> columns = linear_assignment(cost)
        >>> columns.tolist(), cost.gather(1, columns[:, None]).sum().item()
        ([1, 0, 2], 5.0)
        >>> linear_assignment(torch.tensor([[7, 2], [1, 9], [3, 3]])).tolist()  # two columns for three rows
        [1, 0, -1]
        >>> linear_assignment(torch.rand(1000, 8, 8)).shape
        torch.Size([1000, 8])
    """
    name = "linear_assignment"
    _check_cost(name, cost)
    check_flag(name, "maximize", maximize)
    check_flag(name, "check", check)
    return backends.implementation(name, cost, backend)(cost.detach(), maximize, check)


def _check_cost(name: str, cost: Tensor) -> None:
    if isinstance(cost, Tensor) and cost.dtype in _INTEGERS and cost.dim() >= 2:
        return
    if isinstance(cost, Tensor) and cost.dtype not in (*FLOATING, *_INTEGERS):
        raise TypeError(
            f"{name}: cost has dtype {cost.dtype}, expected float16, bfloat16, float32, float64 or integers; "
            f"convert it with cost.{'abs' if cost.is_complex() else 'double'}()"
        )
    if isinstance(cost, Tensor) and cost.dim() < 2:
        raise ValueError(
            f"{name}: cost has shape {list(cost.shape)}, expected at least the last 2 dimensions of [...,M,N]; "
            "reshape it"
        )
    check_floating(name, "cost", cost, "[...,M,N]")


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
            by query. A NaN cosine ranks below all others. Ties keep the index: a response moves to another one only
            for cosines that are larger by more than 2**-18 (2**-44 for float64), which exceeds their rounding error.
        min_similarity: a cosine in -1..1: a link with a lower (or NaN) similarity ends its tracklet and starts a new
            one in the same slot. It is compared before the similarity is rounded to the dtype of the responses. None
            never ends a tracklet. Ours, not the paper's.
        backend: "cpp", "reference", or None to choose automatically. The reference enumerates all
            matchings and supports up to 8 responses per frame.

    Returns:
        `TrackletLinks`. The similarity is computed in float32 (float64 for float64) and has the dtype of `responses`;
        under autocast it is float32. A zero vector has similarity 0 with gradient 0. A response with NaN or inf, such
        as padding, has similarity NaN with gradient 0. The order has no gradient.

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
        ValueError: fewer than three dimensions, sizes or devices that differ, or, on a CPU, an index out of range.

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
    if torch.compiler.is_compiling():
        return torch.gather(values, 2, index)
    try:
        return torch.gather(values, 2, index)
    except (IndexError, RuntimeError) as error:
        if "out of bounds" not in str(error):
            raise
        raise ValueError(
            f"{name}: order has an index outside 0..{values.shape[2] - 1}, the values of a frame; "
            "replace the -1 of unmatched rows first"
        ) from None


def assign(cost: Tensor, maximize: bool, check: bool) -> Tensor:
    """Return the columns [...,K] assigned to the rows of cost [...,K,K]."""
    problems = cost.flatten(0, -3) if cost.dim() > 2 else cost[None]
    columns, first_bad = cpp.solve(problems, maximize=maximize, greedy=False)
    if first_bad is None and check:
        first_bad = _first_unmatched(columns)
    if first_bad is not None and first_bad >= 0:
        raise ValueError(_why_unsolvable(problems[first_bad], _batch_index(first_bad, cost.shape[:-2]), maximize))
    return columns.view(cost.shape[:-1])


def _first_unmatched(columns: Tensor) -> int:
    """Return the index of the first problem in columns [P,M] that has no solution, or -1."""
    bad = (columns < 0).all(-1)
    return int(bad.int().argmax()) if bad.any() else -1


def _why_unsolvable(cost: Tensor, index: str, maximize: bool) -> str:
    """Return the error message for problem cost [M,N]."""
    name, forbidden = f"linear_assignment: cost{index}", "-inf" if maximize else "inf"
    if not cost.is_floating_point():
        return f"{name} has integers with too wide a range for a GPU; solve it exactly on the CPU, with cost.cpu()"
    expected = f"expected finite numbers, or {forbidden} to forbid a pair"
    if cost.isnan().any():
        return f"{name} holds NaN, {expected}; check the computation of the costs"
    if (cost == (torch.inf if maximize else -torch.inf)).any():
        return f"{name} holds {'inf' if maximize else '-inf'}, {expected} with maximize={maximize}"
    count, side = min(cost.shape), "rows" if cost.shape[0] <= cost.shape[1] else "columns"
    return (
        f"{name} is infeasible: its forbidden pairs ({forbidden}) leave no matching of all {count} {side}; "
        "forbid fewer pairs, or use a large finite number instead"
    )


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
    # A response with NaN or inf, such as padding, has no gradient and adds none to its neighbors: 0 times NaN is NaN.
    finite = linked.detach().square().sum(-1, keepdim=True).isfinite()
    undefined = ~(finite[:, :-1] & finite[:, 1:])
    linked = linked.masked_fill(~finite, 0)
    cosines, grad = (tensor[..., None].masked_fill(undefined, 0) for tensor in (similarity, grads[0]))
    norms = cosine_norms(linked.square().sum(-1, keepdim=True))
    units = linked / norms
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
    columns = reference.optimal_assignment(cost, maximize=maximize)
    first_bad = _first_unmatched(columns.view(-1, cost.shape[-2])) if cost.numel() > 0 else -1
    if first_bad >= 0:
        problem = cost.reshape(-1, *cost.shape[-2:])[first_bad]
        raise ValueError(_why_unsolvable(problem, _batch_index(first_bad, cost.shape[:-2]), maximize))
    return columns


def _reference_unsupported_reason(cost: Tensor) -> str | None:
    limit = reference.MAX_SIZE
    if all(size <= limit for size in cost.shape[-2:]):
        return None
    return f"the reference enumerates all matchings, of at most {limit} rows and columns"


def _link_cpp(responses: Tensor, method: str, min_similarity: float | None) -> tuple[Tensor, Tensor, Tensor]:
    if method != "index":
        similarity, order, tracklet_id = _LINKING.forward(responses, method == "greedy", min_similarity)
        return order, similarity, tracklet_id
    order, similarity = cpp.link_by_index(responses)
    return order, similarity, reference.tracklet_ids(order, similarity, min_similarity)


def _link_transformable(responses: Tensor, method: str, min_similarity: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Same as `_link_cpp`, but PyTorch operators compute the similarity of the links, differentiable in any mode."""
    if method == "index":
        return _link_cpp(responses, method, min_similarity)
    _, order, tracklet_id = _LINKING.forward(responses.detach(), method == "greedy", min_similarity)
    _, similarity = cpp.link_by_index(gather_tracklets(responses, order))
    return order, similarity, tracklet_id


def _link_reference(responses: Tensor, method: str, min_similarity: float | None) -> tuple[Tensor, Tensor, Tensor]:
    order, similarity = reference.link_tracklets(responses, method)
    return order, similarity, reference.tracklet_ids(order, similarity, min_similarity)


backends.register("linear_assignment", "cpp", _ASSIGNMENT.forward, cpp.unsupported_reason)
backends.register(
    "linear_assignment", "reference", _assign_reference, _reference_unsupported_reason, opt_in=lambda cost: True
)
backends.register("link_tracklets", "cpp", _link_cpp, transformable=_link_transformable)
backends.register("link_tracklets", "reference", _link_reference)
