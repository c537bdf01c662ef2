"""The launches of the Triton kernels: which variant, how many programs, which buffers.

On meta tensors they can be made, and compiled, not run.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from art_kernels._core.launch import KernelLaunch, alignment, float32_like, dot_precision, contiguous_last_dim
from art_kernels._core.launch import choose_splits
from art_kernels.tracklet_nce import kernels
from art_kernels.tracklet_nce.passes import Pairs
from art_kernels.tracklet_nce.rules import function_of
from art_kernels.tracklet_nce.tiles import Tiles

#: Rows of a program that only combines splits.
_COMBINED = 128


class Inputs(NamedTuple):
    """What both passes read: anchors [M,C], candidates [N,C], the pairs and the temperature, a float32 scalar.

    The rows of a launch are the anchors and its columns the candidates, or `transposed` the other way round.
    """

    anchors: Tensor
    candidates: Tensor
    pairs: Pairs
    temperature: Tensor
    transposed: bool

    @property
    def rows(self) -> Tensor:
        """[M,C]: what a program has some of."""
        return contiguous_last_dim(self.candidates if self.transposed else self.anchors)

    @property
    def columns(self) -> Tensor:
        """[N,C]: what it walks over."""
        return contiguous_last_dim(self.anchors if self.transposed else self.candidates)

    def arguments(self) -> dict[str, Any]:
        """Of both kernels."""
        rows, columns = self.rows, self.columns
        ids, other_ids = self.pairs.anchor_ids.contiguous(), self.pairs.candidate_ids.contiguous()
        align = alignment(rows, columns)
        return {
            "p_rows": rows,
            "p_columns": columns,
            "p_row_ids": other_ids if self.transposed else ids,
            "p_column_ids": ids if self.transposed else other_ids,
            "p_excluded": None if self.pairs.excluded is None else self.pairs.excluded.contiguous(),
            "p_temperature": self.temperature,
            "M": rows.shape[0],
            "N": columns.shape[0],
            "stride_row": rows.stride(0) // align,
            "stride_column": columns.stride(0) // align,
        }

    def constants(self, tiles: Tiles) -> dict[str, Any]:
        """Of both kernels, at compile time."""
        channels = self.anchors.shape[1]
        return {
            "C": channels,
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "BLOCK_C": tiles.block_c,
            "CHUNKS": tiles.chunks(channels),
            "ALIGN": alignment(self.rows, self.columns),
            "RULE": _compiled(function_of(self.pairs.rule)),
            "EXCLUDED": self.pairs.excluded is not None,
            "TRANSPOSED": self.transposed,
            "HOLD": tiles.hold,
            "PRECISION": dot_precision(self.anchors.dtype),
        }

    def split(self, tiles: Tiles) -> tuple[int, dict[str, int]]:
        """How many programs there are, and the arguments that say how they share the columns."""
        (rows, _), (columns, _) = self.rows.shape, self.columns.shape
        programs = -(-rows // tiles.block_m) * tiles.parts
        splits, columns_a_split = choose_splits(columns, programs, tiles.block_n, self.anchors.device)
        return programs * splits, {"columns_a_split": columns_a_split, "splits": splits}


class Sides(NamedTuple):
    """What the gradient of a logit has from its row, and from its column: the log-sum-exp, its gradient, and that of
    each positive logit through their mean, [3,M] and [3,N]; None where only the other side has statistics."""

    anchors: Tensor | None
    candidates: Tensor | None


def side_of(statistics: Tensor, grads: Tensor) -> Tensor | None:
    """One side, from the statistics and their gradients; None where there are none."""
    if statistics.shape[1] == 0:
        return None
    return torch.stack([statistics[0], grads[0], grads[1] / statistics[2].clamp(min=1.0)])


def forward_calls(inputs: Inputs, tiles: Tiles, statistics: Tensor) -> list[KernelLaunch]:
    """The launches that fill `statistics` [3, M] of the rows."""
    programs, shares = inputs.split(tiles)
    rows = statistics.shape[1]
    partial = statistics if shares["splits"] == 1 else float32_like(statistics, shares["splits"], 3, rows)
    arguments = {**inputs.arguments(), **shares, "p_statistics": partial}
    constants = inputs.constants(tiles)
    calls = [KernelLaunch(kernels.forward_kernel, (programs,), arguments, constants, *tiles.of_a_program())]
    if partial is not statistics:
        arguments = {"p_partial": partial, "p_statistics": statistics, "M": rows, "splits": shares["splits"]}
        calls.append(KernelLaunch(kernels.combine_kernel, (-(-rows // _COMBINED),), arguments, {"BLOCK_M": _COMBINED}, 4, 1))
    return calls


def backward_call(
    inputs: Inputs, tiles: Tiles, sides: Sides, grad_rows: Tensor | None, needs_temperature: bool
) -> tuple[KernelLaunch, Tensor | None, Tensor | None]:
    """The launch, and the tensors into which it puts, for each split and to be summed, the gradient of the rows
    [splits, M, C] (`grad_rows` itself [M, C] where there is one split; None where there is none) and, where that is
    needed, Σ_j G_ij l_ij, where G_ij is the gradient of a logit [splits, M].

    Args:
        inputs: of both passes.
        tiles: of the backward kernel; of one part where `grad_rows` is None.
        sides: of the gradients of logits.
        grad_rows: the gradient of the rows, to be filled; None where it is not needed.
        needs_temperature: whether the temperature's gradient is taken from this launch.
    """
    programs, shares = inputs.split(tiles)
    rows, channels = inputs.rows.shape
    partial = grad_rows
    if grad_rows is not None and shares["splits"] > 1:
        partial = float32_like(grad_rows, shares["splits"], rows, channels)
    grad_temperature = float32_like(inputs.anchors, shares["splits"], rows) if needs_temperature else None
    row_side, column_side = (sides.candidates, sides.anchors) if inputs.transposed else sides
    arguments = {
        **inputs.arguments(),
        **shares,
        "p_row_side": row_side,
        "p_column_side": column_side,
        "p_grad_rows": partial,
        "p_grad_temperature": grad_temperature,
    }
    constants = {
        **inputs.constants(tiles),
        "PARTS": tiles.parts,
        "OF_ROWS": row_side is not None,
        "OF_COLUMNS": column_side is not None,
        "GRAD_ROWS": grad_rows is not None,
        "GRAD_TEMPERATURE": needs_temperature,
    }
    call = KernelLaunch(kernels.backward_kernel, (programs,), arguments, constants, *tiles.of_a_program())
    return call, partial, grad_temperature


@functools.cache
def _compiled(rule: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """The rule as a function that a kernel may call; the same one each time, so that kernels are compiled once."""
    if not isinstance(kernels.forward_kernel, triton.runtime.JITFunction):
        return rule  # the interpreter runs Python
    function = triton.jit(rule)
    source = function.parse()
    definition = source.body[0]
    definition.returns = None
    for argument in definition.args.args:
        argument.annotation = None  # the compiler would look its names up, and refuse them
    function._unsafe_update_src(ast.unparse(source))
    return function
