"""Assignment and linking: the measured sizes, the inputs, the providers, and the checks of their outputs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from art_kernels import linear_assignment, link_tracklets
from benchmarks.common.measure import OURS, TO_HOST

KINDS = ("uniform", "normal", "responses")
#: By number of rows: problems on a CPU and on a GPU. On a CPU a call takes 20 to 200 ms, except SciPy's and, for few
#: rows, that of art_kernels.
_PROBLEMS = {
    2: (1 << 18, 1 << 20),
    4: (1 << 17, 1 << 20),
    8: (1 << 16, 1 << 20),
    16: (1 << 15, 1 << 18),
    32: (1 << 13, 1 << 16),
    64: (1 << 11, 1 << 14),
    128: (1 << 9, 1 << 12),
}
SIZES = tuple(str(size) for size in _PROBLEMS)
#: Noise added to a response from one frame to the next relative to its length, and the probability that it is replaced
#: altogether because its query turned to another region.
NOISE, TURN_PROBABILITY = 0.45, 0.1
#: Length of the component that all responses of a video share, relative to that of the individual component. A response
#: and its successor then have a cosine of about 0.9, any other two 0.2.
COMMON = 0.5
CHANNELS = 256
#: Frames of the videos from which costs are made, and the number of elements generated at once.
_FRAMES, _CHUNK_ELEMENTS = 17, 1 << 23


@dataclass(frozen=True)
class AssignmentShape:
    """A batch of assignment problems.

    Attributes:
        size: rows and columns of a problem, K.
        problems: number of problems.
        on_host: number of problems for a solver on the host, and number compared with the oracle: all on a CPU; some on
            a GPU, where the batch is sized for its solvers.
    """

    size: int
    problems: int
    on_host: int

    @property
    def in_a_loop(self) -> int:
        """Number of problems for a Python loop, whose time per problem does not depend on it."""
        return max(1, self.on_host // 4)

    def moved_bytes(self, dtype: torch.dtype, problems: int) -> int:
        """Return the minimum number of bytes moved: costs are read, one 64-bit column index per row is written."""
        return problems * (self.size**2 * dtype.itemsize + self.size * torch.int64.itemsize)


def assignment_shape(name: str, device: torch.device, *, quick: bool = False) -> AssignmentShape:
    """Return the batch for a size in `SIZES` on a device; 32 problems with `quick`."""
    on_cpu, on_cuda = (32, 32) if quick else _PROBLEMS[int(name)]
    if device.type == "cuda":
        return AssignmentShape(int(name), on_cuda, min(on_cuda, max(1, on_cpu // 4)))
    return AssignmentShape(int(name), on_cpu, on_cpu)


@dataclass(frozen=True)
class LinkingShape:
    """Responses of some videos: name, and videos, frames, responses per frame, channels [B,T,K,C]."""

    name: str
    sizes: tuple[int, int, int, int]

    def sized(self, *, quick: bool) -> LinkingShape:
        """Return the shape; with `quick` with two videos of at most four frames."""
        return replace(self, sizes=(2, min(4, self.sizes[1]), *self.sizes[2:])) if quick else self

    @property
    def pairs(self) -> int:
        """Pairs of adjacent frames, each an assignment problem."""
        return self.sizes[0] * (self.sizes[1] - 1)

    def moved_bytes(self, dtype: torch.dtype) -> int:
        """Return the minimum number of bytes moved: responses are read; order and tracklet ids (64-bit) and
        similarities are written."""
        videos, frames, count, channels = self.sizes
        written = 2 * videos * frames * count * torch.int64.itemsize + self.pairs * count * dtype.itemsize
        return videos * frames * count * channels * dtype.itemsize + written

    def operations(self) -> int:
        """Return the operations of the dot products of adjacent frames."""
        _, _, count, channels = self.sizes
        return 2 * self.pairs * count * count * channels

    def describe(self) -> str:
        """Return the sizes as text."""
        return "{} videos, {} frames, {} responses of {}".format(*self.sizes)


SHAPES = {
    shape.name: shape
    for shape in (
        LinkingShape("paper", (24, 16, 2, 256)),
        LinkingShape("batch", (256, 16, 8, 256)),
        LinkingShape("dense", (64, 64, 32, 256)),
    )
}


def draw_responses(
    videos: int, frames: int, count: int, channels: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draw responses [B,T,K,C] in float32 that change slowly from frame to frame.

    All responses of a video share a component, as those of a model do; a tenth of them is replaced in each frame; the
    order within a frame is random.
    """

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, channels, generator=generator, device=device)

    def uniform(*sizes: int) -> Tensor:
        return torch.rand(*sizes, generator=generator, device=device)

    common = COMMON * normal(videos, 1)
    own = normal(videos, count)
    responses = torch.empty(videos, frames, count, channels, device=device)
    for t in range(frames):
        order = uniform(videos, count).argsort(-1)
        responses[:, t] = (own + common).gather(1, order[..., None].expand_as(own))
        noise = torch.where(uniform(videos, count, 1) < TURN_PROBABILITY, 1.0, NOISE)
        own = (1 - noise.square()).sqrt() * own + noise * normal(videos, count)
    return responses


def draw_costs(kind: str, problems: int, size: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Draw costs [N,K,K]: "uniform" in [0, 1), "normal", or "responses", the negative cosines of adjacent frames."""
    generator = torch.Generator(device).manual_seed(seed)
    sizes = (problems, size, size)
    if kind == "uniform":
        return torch.rand(sizes, generator=generator, device=device, dtype=dtype)
    if kind == "normal":
        return torch.randn(sizes, generator=generator, device=device, dtype=dtype)
    costs = torch.empty(sizes, device=device, dtype=dtype)
    at_once = max(1, _CHUNK_ELEMENTS // (_FRAMES * size * CHANNELS))  # videos
    videos = math.ceil(problems / (_FRAMES - 1))
    for chunk in costs.split(at_once * (_FRAMES - 1)):
        responses = draw_responses(min(at_once, videos), _FRAMES, size, CHANNELS, generator, device)
        units = F.normalize(responses.to(dtype), dim=-1)
        chunk.copy_((units[:, :-1] @ units[:, 1:].mT).flatten(0, 1)[: len(chunk)].neg_())
    return costs


SCIPY, LAPX, LAPCPP = "scipy", "lapx", "lapcpp"
TORCH_LINEAR_ASSIGNMENT = "torch-linear-assignment"
_PEERS = (SCIPY, LAPX, LAPCPP, TORCH_LINEAR_ASSIGNMENT)
#: The functions of lapx that solve batches in native threads; the faster one counts. `lapjvx_batch` and `lapjvs_batch`
#: are excluded: they pass each problem to a Python thread, which takes 40 microseconds by itself.
LAPX_FUNCTIONS = ("lapjvr_batch", "lapjvh_batch")
#: Module of each peer, and the function that it must have.
_REQUIRED = {
    SCIPY: ("scipy.optimize", "linear_sum_assignment"),
    LAPX: ("lap", LAPX_FUNCTIONS[0]),
    LAPCPP: ("lapcpp", "lapjv_batch"),
    TORCH_LINEAR_ASSIGNMENT: ("torch_linear_assignment", "batch_linear_assignment"),
}
#: Below this compute capability torch-linear-assignment calls SciPy instead of its kernels.
_MIN_CAPABILITY = (8, 0)

Columns = Tensor | list[np.ndarray]


@dataclass(frozen=True)
class Solver:
    """One function that solves assignment problems.

    Attributes:
        provider: name of the provider.
        function: name of the function; a provider may have several.
        on_host: whether it solves on the host, with costs and columns copied.
        solve: maps costs [N,K,K] on the device to columns in the solver's own format.
    """

    provider: str
    function: str
    on_host: bool
    solve: Callable[[Tensor], Columns]


def assignment_providers(device: torch.device) -> tuple[str, ...]:
    """Return the providers of assignment, the baseline first; on a GPU also those that copy to the host."""
    providers = (*_PEERS, OURS)
    return (*providers, TORCH_LINEAR_ASSIGNMENT + TO_HOST, OURS + TO_HOST) if device.type == "cuda" else providers


def solvers(provider: str) -> list[Solver]:
    """Return the functions of a provider that is available (see `unsupported_reason`)."""
    base = provider.removesuffix(TO_HOST)
    if base == OURS:
        return [Solver(provider, "linear_assignment", False, _to_host(provider, linear_assignment))]
    module, name = _REQUIRED[base]
    package = importlib.import_module(module)
    if base == TORCH_LINEAR_ASSIGNMENT:
        return [Solver(provider, name, False, _to_host(provider, getattr(package, name)))]
    if base == SCIPY:
        return [Solver(provider, name, True, _from_host(_in_loop(getattr(package, name))))]
    functions = LAPX_FUNCTIONS if base == LAPX else (name,)
    return [Solver(provider, name, True, _from_host(_in_threads(getattr(package, name)))) for name in functions]


def unsupported_reason(provider: str, device: torch.device) -> str | None:
    """Return why a peer's solver is skipped on a device, or None; always None for art_kernels."""
    base = provider.removesuffix(TO_HOST)
    if base == OURS:
        return None
    if base == TORCH_LINEAR_ASSIGNMENT and device.type == "cpu":
        return "on a CPU it is a loop over SciPy"
    module, name = _REQUIRED[base]
    try:
        found = hasattr(importlib.import_module(module), name)
    except ImportError as error:
        return f"cannot be imported ({error}): pip install {base}"
    if not found:
        return f"its module {module} has no {name}: pip install --upgrade {base}"
    if base == TORCH_LINEAR_ASSIGNMENT and torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        return "its kernels require compute capability 8.0; below it is a loop over SciPy"
    return None


def peer_versions() -> dict[str, str]:
    """Return the versions of the installed peers."""
    versions = {}
    for package in _PEERS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def as_columns(found: Columns) -> Tensor:
    """Convert a solver's output to columns [N,K] on the device of the costs."""
    return found if isinstance(found, Tensor) else torch.from_numpy(_stack(found))


def _in_loop(solve_one: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], list[np.ndarray]]:
    return lambda costs: [solve_one(cost)[1] for cost in costs]


def _in_threads(batch: Callable[..., Any]) -> Callable[[np.ndarray], list[np.ndarray]]:
    # Pairs are the faster of the two output formats: one array per problem instead of one of rows and one of columns.
    return lambda costs: batch(costs, return_cost=False, n_threads=torch.get_num_threads(), output="pairs")


def _from_host(solve: Callable[[np.ndarray], list[np.ndarray]]) -> Callable[[Tensor], Columns]:
    """Copy costs from and columns to the device; on a CPU the solver's list of small arrays is not converted."""

    def run(costs: Tensor) -> Columns:
        found = solve(costs.cpu().numpy())
        return found if costs.device.type == "cpu" else torch.from_numpy(_stack(found)).to(costs.device)

    return run


def _to_host(provider: str, solve: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Columns]:
    return (lambda costs: solve(costs).cpu()) if provider.endswith(TO_HOST) else solve


def _stack(found: Iterable[np.ndarray]) -> np.ndarray:
    """Stack arrays of columns [K] or of (row, column) pairs [K,2] to columns [N,K]."""
    stacked = np.stack(list(found))
    return np.ascontiguousarray(stacked[..., 1]) if stacked.ndim == 3 else stacked


#: Maps responses [B,T,K,C] to order [B,T,K] and similarity [B,T-1,K].
Link = Callable[[Tensor], tuple[Tensor, Tensor]]

OURS_REPLAYED = "art_kernels, CUDA graph"
#: The solver of each peer that links.
_LINKING_SOLVERS = {
    f"loop + {SCIPY}": SCIPY,
    f"vectorized + {LAPCPP}": LAPCPP,
    f"vectorized + {TORCH_LINEAR_ASSIGNMENT}": TORCH_LINEAR_ASSIGNMENT,
}


def linking_providers(device: torch.device) -> tuple[str, ...]:
    """Return the providers of linking, the baseline first."""
    return (*_LINKING_SOLVERS, OURS, OURS_REPLAYED) if device.type == "cuda" else (*_LINKING_SOLVERS, OURS)


def linking_unsupported_reason(provider: str, device: torch.device) -> str | None:
    """Return why a provider of linking is skipped on a device, or None; always None for art_kernels."""
    return unsupported_reason(_LINKING_SOLVERS[provider], device) if provider in _LINKING_SOLVERS else None


def build_link(provider: str) -> Link:
    """Return the function of a provider; `OURS_REPLAYED` still has to be captured in a graph."""
    if provider.startswith(OURS):
        return link_ours
    if provider.startswith("loop"):
        return link_in_loop
    (solver,) = solvers(_LINKING_SOLVERS[provider])
    return lambda responses: link_vectorized(responses, lambda costs: as_columns(solver.solve(costs)))


def link_in_loop(responses: Tensor) -> tuple[Tensor, Tensor]:
    """Link frame by frame: the cosine matrix of a pair of frames, SciPy's assignment, the composed order."""
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


def link_vectorized(responses: Tensor, solve: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Link with all cosines at once, all problems in one call, and the order composed frame by frame for all videos."""
    units = F.normalize(responses, dim=-1)
    cosines = units[:, :-1] @ units[:, 1:].mT  # [B, T-1, K, K]
    columns = solve(-cosines.flatten(0, 1)).view(cosines.shape[:-1])
    order = [torch.arange(responses.shape[2], device=responses.device).expand(len(responses), -1)]
    for t in range(responses.shape[1] - 1):
        order.append(columns[:, t].gather(-1, order[t]))
    stacked = torch.stack(order, 1)
    linked = cosines.gather(-1, columns[..., None])[..., 0]
    return stacked, linked.gather(-1, stacked[:, :-1])


def link_ours(responses: Tensor) -> tuple[Tensor, Tensor]:
    """Link with `link_tracklets`, which also numbers the tracklets."""
    links = link_tracklets(responses)
    return links.order, links.similarity


#: A sum of costs may deviate by this many rounding errors of a row's largest cost in the dtype of the costs, and a
#: cosine by this many rounding errors of 1.
ROUNDING = 64
#: The reference enumerates all matchings of a problem: 24 of four rows.
_REFERENCE_ROWS = 4
NO_ORACLE = "no solver to compare with: pip install scipy"


def oracle(size: int) -> Solver | None:
    """Return the solver whose optimum all providers must reach in problems of `size` rows: SciPy, else another peer on
    the host, else for few rows the reference; None if nothing can be compared."""
    for provider in (SCIPY, LAPX, LAPCPP):
        if unsupported_reason(provider, torch.device("cpu")) is None:
            return solvers(provider)[0]
    reference = partial(linear_assignment, backend="reference")
    return Solver("reference", "linear_assignment", True, reference) if size <= _REFERENCE_ROWS else None


def optimal_sums(costs: Tensor) -> Tensor:
    """Return the optimal sum of each problem [N,K,K] in float64; requires an oracle."""
    solver = oracle(costs.shape[-1])
    assert solver is not None
    return sums(costs.cpu(), as_columns(solver.solve(costs.cpu())))


def require_permutations(columns: Tensor) -> None:
    """Raise ArithmeticError if two rows of a problem have the same column."""
    rows = torch.arange(columns.shape[-1], device=columns.device)
    if not torch.equal(columns.sort(-1).values, rows.expand_as(columns)):
        raise ArithmeticError("the columns of a problem are not a permutation")


def sums(costs: Tensor, columns: Tensor) -> Tensor:
    """Return the sum of the costs at the columns of each problem, in float64 on the CPU."""
    require_permutations(columns)
    return costs.cpu().double().gather(-1, columns.cpu()[..., None])[..., 0].sum(-1)


def excess(costs: Tensor, columns: Tensor, optimal: Tensor) -> float:
    """Return the largest deviation of a problem's sum from the optimal one, relative to K times its largest cost.

    Raises:
        ArithmeticError: it is larger than rounding explains.
    """
    scale = costs.shape[-1] * costs.cpu().double().abs().amax((-2, -1))
    found = ((sums(costs, columns) - optimal).abs() / scale).max().item()
    _require_rounding(found, costs.dtype, "the sum of a problem deviates from the optimal one")
    return found


def link_errors(responses: Tensor, order: Tensor, similarity: Tensor) -> dict[str, float]:
    """Return the largest deviation of the sum of a frame's links from the optimal one, and of a similarity from the
    cosine.

    Raises:
        ArithmeticError: one is larger than rounding explains, or the order is not a permutation.
    """
    units = F.normalize(responses.cpu().double(), dim=-1)
    order, similarity = order.cpu(), similarity.cpu()
    if not torch.equal(order[:, 0], torch.arange(order.shape[-1]).expand_as(order[:, 0])):
        raise ArithmeticError("the first frame is not in order")
    costs = -(units[:, :-1] @ units[:, 1:].mT).flatten(0, 1)
    # Row order[t, k] is assigned to column order[t + 1, k].
    columns = torch.zeros_like(order[:, 1:]).scatter(-1, order[:, :-1], order[:, 1:]).flatten(0, 1)
    short = (sums(costs, columns) - optimal_sums(costs)).abs().max().item() / costs.shape[-1]
    _require_rounding(short, responses.dtype, "the sum of a frame's links deviates from the optimal one")
    linked = units.gather(2, order[..., None].expand_as(units))
    off = ((linked[:, :-1] * linked[:, 1:]).sum(-1) - similarity.double()).abs().max().item()
    _require_rounding(off, responses.dtype, "a similarity deviates from the cosine")
    return {"links": short, "similarity": off}


def _require_rounding(found: float, dtype: torch.dtype, what: str) -> None:
    limit = ROUNDING * torch.finfo(dtype).eps
    if not found <= limit:  # True for NaN
        raise ArithmeticError(f"{what} by {found:.2g}; rounding explains at most {limit:.2g}")
