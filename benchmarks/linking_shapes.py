"""The sizes at which assignment and linking are measured, and what must move and be computed at each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

DTYPES = {"float32": torch.float32, "float64": torch.float64}
KINDS = ("uniform", "normal", "responses")


@dataclass(frozen=True)
class AssignmentShape:
    """A batch of problems.

    Attributes:
        size: rows and columns of each, K.
        problems: how many: with as many each call but SciPy's and, with a few rows, ours takes 20 to 200 ms on a CPU.
        on_host: how many of them a solver on the host gets, and how many are compared with SciPy's optimum: all on a
            CPU, some on a GPU, where a batch is made for the solvers there.
    """

    size: int
    problems: int
    on_host: int

    @property
    def in_a_loop(self) -> int:
        """How many a loop over the problems gets: it takes as long for each, however many there are."""
        return max(1, self.on_host // 4)

    def moved_bytes(self, dtype: torch.dtype, problems: int) -> int:
        """Bytes that must move: costs are read, and a column of 64 bits is written for each row."""
        return problems * (self.size**2 * dtype.itemsize + self.size * torch.int64.itemsize)


#: By size: problems on a CPU and on a GPU.
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


def assignment_shape(name: str, device: torch.device, *, quick: bool = False) -> AssignmentShape:
    """The batch of a size as it is measured on a device, a sixteenth of it with `quick`."""
    on_cpu, on_cuda = (count // 16 if quick else count for count in _PROBLEMS[int(name)])
    if device.type == "cuda":
        return AssignmentShape(int(name), on_cuda, min(on_cuda, max(1, on_cpu // 4)))
    return AssignmentShape(int(name), on_cpu, on_cpu)


@dataclass(frozen=True)
class LinkingShape:
    """Responses of some videos.

    Attributes:
        name: of it.
        sizes: videos, frames, responses a frame, channels: [B,T,K,C].
    """

    name: str
    sizes: tuple[int, int, int, int]

    def on(self, *, quick: bool) -> LinkingShape:
        """The shape as it is measured: with `quick` an eighth of the videos."""
        return replace(self, sizes=(max(2, self.sizes[0] // 8), *self.sizes[1:])) if quick else self

    def moved_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that must move: responses are read; order and tracklet ids of 64 bits and similarities are written."""
        videos, frames, count, channels = self.sizes
        similarities = self.pairs * count
        written = 2 * videos * frames * count * torch.int64.itemsize + similarities * dtype.itemsize
        return videos * frames * count * channels * dtype.itemsize + written

    def operations(self) -> int:
        """Operations of the dot products of adjacent frames."""
        _, _, count, channels = self.sizes
        return 2 * self.pairs * count * count * channels

    @property
    def pairs(self) -> int:
        """Pairs of adjacent frames, each an assignment problem."""
        return self.sizes[0] * (self.sizes[1] - 1)

    def described(self) -> str:
        """The sizes as text."""
        return "{} videos, {} frames, {} responses of {}".format(*self.sizes)


SHAPES = {
    shape.name: shape
    for shape in (
        LinkingShape("paper", (24, 16, 2, 256)),
        LinkingShape("batch", (256, 16, 8, 256)),
        LinkingShape("dense", (64, 64, 32, 256)),
    )
}
