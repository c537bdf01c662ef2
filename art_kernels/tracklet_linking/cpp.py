"""The "cpp" backend: tensor wrappers of the C++/CUDA module built from csrc/, and linking with it.

Linking by index needs no matching and uses PyTorch's operators. Linking by similarity computes cosines and matching in
one pass of the module; for more responses per frame than its CUDA kernel supports, PyTorch computes the cosines.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from art_kernels._core.precision import accumulation_dtype, at_least_float32, cosine_norms
from art_kernels.tracklet_linking.reference import tie_of, to_int64, tracklet_ids

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

_csrc: Any
try:
    _csrc = importlib.import_module("art_kernels.tracklet_linking._csrc")
except ImportError as error:
    _csrc = None
    _import_error = (
        f"the native module cannot be imported ({error}); build it with `pip install .`, "
        "or in a checkout with `pip install --no-build-isolation -e .`"
    )
else:
    _import_error = ""
    if getattr(_csrc, "INTERFACE", 1) != 2:
        _csrc = None
        _import_error = (
            "the native module was built from other sources; rebuild it with `pip install .`, "
            "or in a checkout with `pip install --no-build-isolation -e .`"
        )

#: Most rows or columns that the CUDA kernels solve, and most responses per frame that are linked on any device.
MAX_SIZE = 256
#: The values of `Dtype` in csrc/assignment.hpp.
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3, torch.int64: 4}


def unsupported_reason(tensor: Tensor) -> str | None:
    """Return why the module does not support tensors on this device, or None if it does."""
    if _csrc is None:
        return _import_error
    if tensor.device.type == "cpu" or (tensor.device.type == "cuda" and has_cuda() and torch.version.hip is None):
        return None
    if tensor.device.type == "cuda":
        return "the native module was built without CUDA; reinstall with nvcc on the PATH and ART_KERNELS_CUDA=1"
    return f"the native module supports CPU and CUDA, not {tensor.device.type}"


def build_summary() -> str:
    """Return which parts of the module were built, for reports."""
    if _csrc is None:
        return _import_error
    return f"CPU, CUDA ({_csrc.CUDA})" if _csrc.CUDA else "CPU; without CUDA, which requires nvcc at installation"


def has_cuda() -> bool:
    """Return whether the module was built with CUDA."""
    return _csrc is not None and bool(_csrc.CUDA)


def module_file() -> str | None:
    """Return the path of the module, or None if it was not built."""
    return None if _csrc is None else str(_csrc.__file__)


def solve(
    cost: Shaped[Tensor, "p m n"], *, maximize: bool, greedy: bool = False, tie: float = 0.0
) -> tuple[Int[Tensor, "p m"], int | None]:
    """Match rows to columns. On a GPU, problems larger than `MAX_SIZE` are copied to the CPU and solved there.

    Args:
        cost: floating-point or integer costs; greedy matching requires square problems.
        maximize: match for the maximal sum, or the largest cost first.
        greedy: match the smallest cost first instead of for the minimal sum.
        tie: subtracted from the costs of the diagonal (added when maximizing).

    Returns:
        The column of each row, -1 for rows without one and in a problem without a solution; and the index of the first
        such problem, -1 if there is none. The GPU kernels return None as the index: reading it would synchronize.
    """
    count, rows, cols = cost.shape
    if cost.numel() == 0:
        return torch.full((count, rows), -1, dtype=torch.int64, device=cost.device), -1
    if cost.device.type == "cuda" and max(rows, cols) > MAX_SIZE:
        columns, first_bad = solve(cost.cpu(), maximize=maximize, greedy=greedy, tie=tie)
        return columns.to(cost.device), first_bad
    cost = (cost if cost.is_floating_point() else _exact_costs(cost)).contiguous()
    columns = torch.empty(count, rows, dtype=torch.int64, device=cost.device)
    problems = _csrc.Problems(
        cost=cost.data_ptr(), dtype=_DTYPES[cost.dtype], count=count, rows=rows, cols=cols, maximize=maximize,
        greedy=greedy, columns=columns.data_ptr(), tie=tie,
    )  # fmt: skip
    if cost.device.type == "cpu":
        return columns, _csrc.solve_on_cpu(problems, torch.get_num_threads())
    with torch.cuda.device(cost.device):
        _csrc.solve_on_cuda(problems, _stream())
    return columns, None


def _exact_costs(cost: Int[Tensor, "p m n"]) -> Shaped[Tensor, "p m n"]:
    """Return costs with the same optimal matchings in a dtype that the solvers compute with exactly.

    A constant added to all costs of a problem changes no optimum, so integers are shifted to start at 0 and converted
    to float64. If their range is too wide for that, the CPU solves int64 in 128-bit integers, and the GPU gets NaN, for
    which it returns -1.
    """
    if cost.dtype not in (torch.int64, torch.uint64):
        return cost.double()
    cost = to_int64(cost)
    low, high = cost.amin((-2, -1), keepdim=True), cost.amax((-2, -1), keepdim=True)
    # Path lengths and dual variables stay within this many ranges of 0, and sums within fewer.
    wide = (high.double() - low.double()) * (2 * max(cost.shape[-2:]) + 4) >= 2.0**53
    if cost.device.type == "cpu":
        return cost if bool(wide.any()) else (cost - low).double()
    return (cost - low).double().masked_fill(wide, math.nan)


def compose(matches: Int[Tensor, "b t-1 k"]) -> Int[Tensor, "b t k"]:
    """Return order, with order[b,0,k] = k and order[b,t+1,k] = matches[b,t,order[b,t,k]]."""
    matches = matches.contiguous()
    videos, steps, size = matches.shape
    order = torch.empty(videos, steps + 1, size, dtype=torch.int64, device=matches.device)
    if order.numel() == 0:
        return order
    arguments = (matches.data_ptr(), videos, steps + 1, size, order.data_ptr())
    if matches.device.type == "cpu":
        _csrc.compose_on_cpu(*arguments)
    else:
        with torch.cuda.device(matches.device):
            _csrc.compose_on_cuda(*arguments, _stream())
    return order


def link_by_index(
    responses: Float[Tensor, "b t k c"],
) -> tuple[Int[Tensor, "b t k"], Float[Tensor, "b t-1 k"]]:
    """Return the identity order, and the similarity in the accumulation dtype."""
    order = torch.arange(responses.shape[2], device=responses.device).expand(responses.shape[:3]).contiguous()
    return order, _adjacent_cosines(at_least_float32(responses))


def link_by_similarity(
    responses: Float[Tensor, "b t k c"], greedy: bool, min_similarity: float | None
) -> tuple[Float[Tensor, "b t-1 k"], Int[Tensor, "b t k"], Int[Tensor, "b t k"]]:
    """Return the similarity in the accumulation dtype, the order, and the tracklet ids; without gradients."""
    if responses.device.type == "cpu" or responses.shape[2] <= _csrc.MAX_LINKED:
        return _link_fused(responses, greedy, min_similarity)
    return link_with_cosine_matrix(responses, greedy, min_similarity)


def link_with_cosine_matrix(
    responses: Float[Tensor, "b t k c"], greedy: bool, min_similarity: float | None
) -> tuple[Float[Tensor, "b t-1 k"], Int[Tensor, "b t k"], Int[Tensor, "b t k"]]:
    """Same as `link_by_similarity`, with all cosines [B,T-1,K,K] in memory."""
    responses = at_least_float32(responses)
    norms = cosine_norms(responses.square().sum(-1))
    cosines = responses[:, :-1] @ responses[:, 1:].mT / norms[:, :-1, :, None] / norms[:, 1:, None, :]
    comparable = cosines.masked_fill(~cosines.isfinite(), -2)  # NaN ranks below every cosine
    tie = tie_of(responses.dtype)
    matches, _ = solve(comparable.flatten(0, 1), maximize=True, greedy=greedy, tie=tie)
    order = compose(matches.view(cosines.shape[:-1]))
    # Recomputed, not gathered from the cosines: a separate sum is more accurate than one inside a matrix product.
    similarity = _adjacent_cosines(responses.gather(2, order[..., None].expand_as(responses)))
    return similarity, order, tracklet_ids(order, similarity, min_similarity)


def _adjacent_cosines(linked: Float[Tensor, "b t k c"]) -> Float[Tensor, "b t-1 k"]:
    """Return the cosine of the responses of each slot in adjacent frames.

    If one of them has NaN or inf, the cosine is NaN, without a gradient.
    """
    finite = linked.detach().square().sum(-1).isfinite()  # [B, T, K]
    # Replaced before anything is computed: the gradient of 0 times NaN is NaN.
    linked = linked.masked_fill(~finite[..., None], 0)
    norms = cosine_norms(linked.square().sum(-1))
    cosines = (linked[:, :-1] * linked[:, 1:]).sum(-1) / norms[:, :-1] / norms[:, 1:]
    return cosines.masked_fill(~(finite[:, :-1] & finite[:, 1:]), math.nan)


def _link_fused(
    responses: Float[Tensor, "b t k c"], greedy: bool, min_similarity: float | None
) -> tuple[Float[Tensor, "b t-1 k"], Int[Tensor, "b t k"], Int[Tensor, "b t k"]]:
    """Link without storing a matrix of similarities."""
    if responses.device.type == "cpu":
        responses = at_least_float32(responses)
    if responses.stride(-1) != 1:
        responses = responses.contiguous()
    videos, frames, size, channels = responses.shape

    def empty(steps: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(videos, steps, size, dtype=dtype, device=responses.device)

    order, tracklet_id = empty(frames, torch.int64), empty(frames, torch.int64)
    similarity = empty(frames - 1, accumulation_dtype(responses.dtype))
    if order.numel() == 0:
        return similarity, order, tracklet_id
    matches, matched = empty(frames - 1, torch.int64), torch.empty_like(similarity)
    arguments = (
        _csrc.Responses(
            values=responses.data_ptr(), dtype=_DTYPES[responses.dtype], videos=videos, frames=frames, size=size,
            channels=channels, stride_video=responses.stride(0), stride_frame=responses.stride(1),
            stride_response=responses.stride(2), tie=tie_of(responses.dtype),
        ),
        greedy,
        math.nan if min_similarity is None else min_similarity,
        _csrc.Links(
            matches=matches.data_ptr(), matched=matched.data_ptr(), order=order.data_ptr(),
            similarity=similarity.data_ptr(), tracklet_id=tracklet_id.data_ptr(),
        ),
    )  # fmt: skip
    if responses.device.type == "cpu":
        _csrc.link_on_cpu(*arguments, torch.get_num_threads())
    else:
        with torch.cuda.device(responses.device):
            _csrc.link_on_cuda(*arguments, _stream())
    return similarity, order, tracklet_id


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream
