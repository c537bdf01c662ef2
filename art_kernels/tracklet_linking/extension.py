"""The native module that csrc/ builds: where it is, what it was built with, and its functions for tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from art_kernels.precision import accumulation_dtype, at_least_float32

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_csrc: Any
try:
    from art_kernels.tracklet_linking import _csrc  # type: ignore[attr-defined, no-redef]
except ImportError as error:
    _csrc = None
    _missing = f"the native module cannot be imported ({error}); build it with pip install ."
else:
    _missing = ""

MAX_SIZE = 256
#: As csrc/assignment.hpp numbers them.
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def refusal(tensor: Tensor) -> str | None:
    """Why the native module cannot serve a tensor on this device, or None where it can."""
    if _csrc is None:
        return _missing
    if tensor.device.type == "cpu" or (tensor.device.type == "cuda" and has_cuda() and torch.version.hip is None):
        return None
    if tensor.device.type == "cuda":
        return "the native module was built without CUDA; reinstall where nvcc is, with ART_KERNELS_CUDA=1"
    return f"the native module serves the CPU and CUDA, not {tensor.device.type}"


def built_with() -> str:
    """What the native module was built with, for reports."""
    if _csrc is None:
        return _missing
    return f"CPU, CUDA ({_csrc.CUDA})" if _csrc.CUDA else "CPU; without CUDA, which needs nvcc at installation"


def has_cuda() -> bool:
    """Whether the module has a CUDA part."""
    return _csrc is not None and bool(_csrc.CUDA)


def module_file() -> str | None:
    """Where the module lies, None where there is none."""
    return None if _csrc is None else str(_csrc.__file__)


def solve(cost: Float[Tensor, "p k k"], *, maximize: bool, greedy: bool) -> tuple[Int[Tensor, "p k"], int | None]:
    """Match rows to columns.

    Returns:
        the columns, -1 in a problem with NaN or inf, and the first such problem (-1: none); on a GPU None, as it is not
        waited for.
    """
    cost = cost.contiguous()
    count, size, _ = cost.shape
    columns = torch.empty(count, size, dtype=torch.int64, device=cost.device)
    if columns.numel() == 0:
        return columns, -1
    problems = _csrc.Problems(
        cost=cost.data_ptr(), dtype=_DTYPES[cost.dtype], count=count, size=size, maximize=maximize, greedy=greedy,
        columns=columns.data_ptr(),
    )  # fmt: skip
    if cost.device.type == "cpu":
        return columns, _csrc.solve_on_cpu(problems, torch.get_num_threads())
    with torch.cuda.device(cost.device):
        _csrc.solve_on_cuda(problems, _stream())
    return columns, None


def compose(matches: Int[Tensor, "b t-1 k"]) -> Int[Tensor, "b t k"]:
    """order[b, 0, k] = k and order[b, t + 1, k] = matches[b, t, order[b, t, k]]."""
    matches = matches.contiguous()
    videos, steps, size = matches.shape
    order = torch.empty(videos, steps + 1, size, dtype=torch.int64, device=matches.device)
    if order.numel() == 0:
        return order
    what = (matches.data_ptr(), videos, steps + 1, size, order.data_ptr())
    if matches.device.type == "cpu":
        _csrc.compose_on_cpu(*what)
    else:
        with torch.cuda.device(matches.device):
            _csrc.compose_on_cuda(*what, _stream())
    return order


def can_link(responses: Tensor) -> bool:
    """Whether `link` serves these responses [B,T,K,C]."""
    return responses.device.type == "cpu" or responses.shape[2] <= _csrc.MAX_LINKED


def link(
    responses: Float[Tensor, "b t k c"], *, greedy: bool, min_similarity: float | None
) -> tuple[Int[Tensor, "b t k"], Float[Tensor, "b t-1 k"], Int[Tensor, "b t k"]]:
    """Order, similarity of the links and tracklet ids, without a matrix of similarities in memory."""
    if responses.device.type == "cpu":
        responses = at_least_float32(responses)
    if responses.stride(-1) != 1:
        responses = responses.contiguous()
    videos, frames, size, channels = responses.shape

    def empty(count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(videos, count, size, dtype=dtype, device=responses.device)

    order, tracklet_id = empty(frames, torch.int64), empty(frames, torch.int64)
    similarity = empty(frames - 1, accumulation_dtype(responses.dtype))
    if order.numel() == 0:
        return order, similarity, tracklet_id
    matches, matched = empty(frames - 1, torch.int64), torch.empty_like(similarity)
    what = (
        _csrc.Responses(
            values=responses.data_ptr(), dtype=_DTYPES[responses.dtype], videos=videos, frames=frames, size=size,
            channels=channels, stride_video=responses.stride(0), stride_frame=responses.stride(1),
            stride_response=responses.stride(2),
        ),
        greedy,
        math.nan if min_similarity is None else min_similarity,
        _csrc.Links(
            matches=matches.data_ptr(), matched=matched.data_ptr(), order=order.data_ptr(),
            similarity=similarity.data_ptr(), tracklet_id=tracklet_id.data_ptr(),
        ),
    )  # fmt: skip
    if responses.device.type == "cpu":
        _csrc.link_on_cpu(*what, torch.get_num_threads())
    else:
        with torch.cuda.device(responses.device):
            _csrc.link_on_cuda(*what, _stream())
    return order, similarity, tracklet_id


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream
