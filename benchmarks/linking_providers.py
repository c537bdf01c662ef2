"""Who links responses to tracklets: a user's loop, what a user would build of fast parts, and art_kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from art_kernels import backends, link_tracklets
from benchmarks.assignment_solvers import LAPCPP, SCIPY, TORCH_LINEAR_ASSIGNMENT, as_columns, solvers
from benchmarks.assignment_solvers import refusal as solver_refusal

#: Responses [B,T,K,C] to order [B,T,K] and similarity [B,T-1,K].
Link = Callable[[Tensor], tuple[Tensor, Tensor]]

LOOP, VECTORISED = "loop", "vectorised"
OURS = "art_kernels"
#: Ours captured once and replayed: what launching costs is gone.
OURS_REPLAYED = "art_kernels, CUDA graph"
#: By provider, who solves its assignment problems.
_SOLVED_BY = {
    f"{LOOP} + {SCIPY}": SCIPY,
    f"{VECTORISED} + {LAPCPP}": LAPCPP,
    f"{VECTORISED} + {TORCH_LINEAR_ASSIGNMENT}": TORCH_LINEAR_ASSIGNMENT,
}
#: The one that the others are compared with first.
PROVIDERS = (*_SOLVED_BY, OURS, OURS_REPLAYED)


def build(provider: str) -> Link:
    """The function of a provider that can be had here (see `refusal`); `OURS_REPLAYED` is captured by who times it."""
    if provider in (OURS, OURS_REPLAYED):
        return _ours
    if provider.startswith(LOOP):
        return loop
    (solver,) = solvers(_SOLVED_BY[provider])

    def link(responses: Tensor) -> tuple[Tensor, Tensor]:
        return vectorised(responses, lambda costs: as_columns(solver.solve(costs)))

    return link


def refusal(provider: str, device: torch.device) -> str | None:
    """Why a provider is left out on a device, or None."""
    if provider == OURS_REPLAYED and device.type != "cuda":
        return "CUDA graphs need a GPU"
    if provider in (OURS, OURS_REPLAYED):
        return backends.refusal("linear_assignment", "native", torch.empty(0, device=device))
    return solver_refusal(_SOLVED_BY[provider], device)


def loop(responses: Tensor) -> tuple[Tensor, Tensor]:
    """As it is written down first: pair by pair, the matrix of cosines, SciPy, and where the tracklets are then."""
    from scipy.optimize import linear_sum_assignment

    videos, frames, count, _ = responses.shape
    order = torch.empty(videos, frames, count, dtype=torch.int64)
    similarity = torch.empty(videos, frames - 1, count, dtype=responses.dtype)
    units = F.normalize(responses, dim=-1)
    for b in range(videos):
        order[b, 0] = torch.arange(count)
        for t in range(frames - 1):
            cosines = (units[b, t] @ units[b, t + 1].T).cpu()
            columns = torch.from_numpy(linear_sum_assignment(cosines.numpy(), maximize=True)[1])
            order[b, t + 1] = columns[order[b, t]]
            similarity[b, t] = cosines[order[b, t], order[b, t + 1]]
    return order.to(responses.device), similarity.to(responses.device)


def vectorised(responses: Tensor, solve: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """All cosines at once, all problems in one call, and the composition frame by frame for all videos."""
    units = F.normalize(responses, dim=-1)
    cosines = units[:, :-1] @ units[:, 1:].mT  # [B, T-1, K, K]
    columns = solve(-cosines.flatten(0, 1)).view(cosines.shape[:-1])
    order = [torch.arange(responses.shape[2], device=responses.device).expand(len(responses), -1)]
    for t in range(responses.shape[1] - 1):
        order.append(columns[:, t].gather(-1, order[t]))
    stacked = torch.stack(order, 1)
    linked = cosines.gather(-1, columns[..., None])[..., 0]
    return stacked, linked.gather(-1, stacked[:, :-1])


def _ours(responses: Tensor) -> tuple[Tensor, Tensor]:
    links = link_tracklets(responses)
    return links.order, links.similarity
