"""The "triton" backend: both passes of the contrast across a batch, and the launches they consist of.

Each pass computes the logits once for the anchors as rows and, if required, once for the candidates as rows, without
atomics, so results are deterministic. Launches can be created on meta tensors, to compile the kernels without a GPU
(:func:`variants`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from torch import Tensor

from art_kernels._core.launch import (
    DTYPES,
    DeviceSpec,
    KernelLaunch,
    LaunchConfig,
    alignment,
    choose_splits,
    contiguous_last_dim,
    device_spec,
    device_unsupported_reason,
    dot_precision,
    float32_like,
    meta_tensor,
)
from art_kernels.tracklet_nce import kernels
from art_kernels.tracklet_nce.configs import find_config
from art_kernels.tracklet_nce.reference import Arguments

if TYPE_CHECKING:
    from jaxtyping import Float, Int

#: Whether the kernels were defined under TRITON_INTERPRET=1.
INTERPRETED = not isinstance(kernels.forward_kernel, triton.runtime.JITFunction)
SAVED_OUTPUTS = ("rows", "columns")
#: Rows per program of the kernel that combines splits.
_COMBINE_ROWS = 128


def unsupported_reason(anchors: Tensor) -> str | None:
    """Return why the kernels do not support `anchors`, or None if they do."""
    return device_unsupported_reason(anchors, INTERPRETED)


def opt_in(anchors: Tensor) -> bool:
    """Return whether `anchors` would be computed in Triton's interpreter, which is for tests."""
    return anchors.device.type != "cuda"


def forward(
    anchors: Float[Tensor, "m c"],
    candidates: Float[Tensor, "n c"],
    anchor_ids: Int[Tensor, " m"],
    candidate_ids: Int[Tensor, " n"],
    excluded: Int[Tensor, " m"] | None,
    temperature: Float[Tensor, ""],
    symmetric: bool,
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, "3 n"]]:
    """Return the statistics described in `Arguments`; the temperature is read on its device."""
    anchors, candidates = contiguous_last_dim(anchors), contiguous_last_dim(candidates)
    arguments = Arguments(anchors, candidates, anchor_ids, candidate_ids, excluded, temperature, symmetric)
    rows, columns = fake(arguments)
    _fill_statistics(Inputs(arguments, transposed=False), rows)
    if symmetric:
        _fill_statistics(Inputs(arguments, transposed=True), columns)
    return rows, columns


def fake(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Return uninitialized outputs of `forward`."""
    anchors, candidates = arguments.anchors, arguments.candidates
    columns = candidates.shape[0] if arguments.symmetric else 0
    return float32_like(anchors, 3, anchors.shape[0]), float32_like(anchors, 3, columns)


def _fill_statistics(inputs: Inputs, statistics: Tensor) -> None:
    if inputs.columns.shape[0] == 0:
        statistics[0] = float("-inf")
        statistics[1:] = 0.0
    elif inputs.rows.shape[0] > 0:
        for launch in forward_launches(inputs, device_spec(statistics.device), statistics):
            launch.run()


def backward(
    grads: Sequence[Tensor | None], arguments: Arguments, saved: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of anchors, candidates and temperature."""
    anchors, candidates = contiguous_last_dim(arguments.anchors), contiguous_last_dim(arguments.candidates)
    arguments, temperature = arguments._replace(anchors=anchors, candidates=candidates), arguments.temperature
    needs_anchors, needs_candidates, needs_temperature = needs
    grad_anchors = torch.empty(anchors.shape, dtype=anchors.dtype, device=anchors.device) if needs_anchors else None
    grad_candidates = None
    if needs_candidates:
        grad_candidates = torch.empty(candidates.shape, dtype=candidates.dtype, device=candidates.device)
    if anchors.shape[0] * candidates.shape[0] == 0:
        for gradient in (grad_anchors, grad_candidates):
            if gradient is not None:
                gradient.zero_()
        return grad_anchors, grad_candidates, torch.zeros_like(temperature) if needs_temperature else None
    sides = Sides(*(_side(*pair) for pair in zip(saved, grads, strict=True)))
    # The gradient of the temperature comes with that of the anchors, or with that of the candidates if it is the only
    # other one required.
    inner = None
    if needs_anchors or not needs_candidates:
        inputs = Inputs(arguments, transposed=False)
        grad_anchors, inner = _gradient(inputs, sides, grad_anchors, needs_inner=True)
    if needs_candidates:
        inputs = Inputs(arguments, transposed=True)
        grad_candidates, inner_of_candidates = _gradient(inputs, sides, grad_candidates, needs_inner=not needs_anchors)
        inner = inner_of_candidates if inner is None else inner
    assert inner is not None
    return grad_anchors, grad_candidates, -inner / temperature if needs_temperature else None


def _gradient(
    inputs: Inputs, sides: Sides, grad_rows: Tensor | None, *, needs_inner: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradient of the rows, and Σ_ij G_ij l_ij, where G_ij is the gradient of a logit."""
    launch, partial, inner = backward_launch(
        inputs, device_spec(inputs.rows.device), sides, grad_rows, needs_inner=needs_inner
    )
    launch.run()
    if grad_rows is not None and partial is not None and partial is not grad_rows:
        grad_rows = partial.sum(0).to(grad_rows.dtype)
    return grad_rows, None if inner is None else inner.sum()


class Sides(NamedTuple):
    """Factors of the gradient of a logit that depend on its anchor [3,M] and on its candidate [3,N].

    Each is the log-sum-exp, its gradient, and the gradient of each positive logit; None if the statistics of that side
    are not used.
    """

    anchors: Tensor | None
    candidates: Tensor | None


def _side(statistics: Tensor, grad: Tensor | None) -> Tensor | None:
    if grad is None or statistics.shape[1] == 0:
        return None
    return torch.stack([statistics[0], grad[0], grad[1] / statistics[2].clamp(min=1.0)])


class Inputs(NamedTuple):
    """Input of a launch: the anchors are its rows and the candidates its columns, or `transposed` vice versa.

    The last dimensions of anchors and candidates are contiguous.
    """

    tensors: Arguments
    transposed: bool

    @property
    def rows(self) -> Tensor:
        """[M,C], divided among programs."""
        return self.tensors.candidates if self.transposed else self.tensors.anchors

    @property
    def columns(self) -> Tensor:
        """[N,C], which each program loops over."""
        return self.tensors.anchors if self.transposed else self.tensors.candidates

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of both kernels."""
        rows, columns = self.rows, self.columns
        ids, other_ids = self.tensors.anchor_ids.contiguous(), self.tensors.candidate_ids.contiguous()
        excluded = self.tensors.excluded
        align = alignment(rows, columns)
        return {
            "p_rows": rows,
            "p_columns": columns,
            "p_row_ids": other_ids if self.transposed else ids,
            "p_column_ids": ids if self.transposed else other_ids,
            "p_excluded": None if excluded is None else excluded.contiguous(),
            "p_temperature": self.tensors.temperature,
            "M": rows.shape[0],
            "N": columns.shape[0],
            "stride_row": rows.stride(0) // align,
            "stride_column": columns.stride(0) // align,
        }

    def constants(self, config: LaunchConfig) -> dict[str, Any]:
        """Return the compile-time constants of both kernels."""
        rows = self.rows
        channels = rows.shape[1]
        return {
            "C": channels,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_C": config.block_c,
            "CHUNKS": config.chunks(channels),
            "ALIGN": alignment(rows, self.columns),
            "EXCLUDED": self.tensors.excluded is not None,
            "TRANSPOSED": self.transposed,
            "KEEP_IN_REGS": config.keep_in_regs,
            "PRECISION": dot_precision(rows.dtype),
        }

    def split(self, config: LaunchConfig) -> tuple[int, dict[str, int]]:
        """Return the number of programs, and the arguments that divide the columns among them."""
        programs = -(-self.rows.shape[0] // config.block_m) * config.channel_splits
        splits, columns = choose_splits(self.columns.shape[0], programs, config.block_n, self.rows.device)
        return programs * splits, {"columns_per_split": columns, "splits": splits}


def forward_launches(inputs: Inputs, device: DeviceSpec, statistics: Tensor) -> list[KernelLaunch]:
    """Return the launches that fill `statistics` [3,M] of the rows."""
    rows, channels = inputs.rows.shape
    config = find_config("forward", inputs.rows.dtype, channels, device)
    programs, split = inputs.split(config)
    partial = statistics if split["splits"] == 1 else float32_like(statistics, split["splits"], 3, rows)
    arguments = {**inputs.arguments(), **split, "p_statistics": partial}
    constants = inputs.constants(config)
    launches = [KernelLaunch(kernels.forward_kernel, (programs,), arguments, constants, *config.options())]
    if partial is not statistics:
        arguments = {"p_partial": partial, "p_statistics": statistics, "M": rows, "splits": split["splits"]}
        grid = (-(-rows // _COMBINE_ROWS),)
        launches.append(KernelLaunch(kernels.combine_kernel, grid, arguments, {"BLOCK_M": _COMBINE_ROWS}))
    return launches


def backward_launch(
    inputs: Inputs, device: DeviceSpec, sides: Sides, grad_rows: Tensor | None, *, needs_inner: bool
) -> tuple[KernelLaunch, Tensor | None, Tensor | None]:
    """Return the launch of the backward kernel and the tensors it fills, both to be summed over splits.

    Returns:
        The launch; the gradient of the rows [splits,M,C] (`grad_rows` itself [M,C] if there is one split, None if it is
        None); and Σ_j G_ij l_ij [splits,M], where G_ij is the gradient of a logit, or None.
    """
    rows, channels = inputs.rows.shape
    config = find_config("backward", inputs.rows.dtype, channels, device)
    if grad_rows is None:
        config = config._replace(channel_splits=1)
    programs, split = inputs.split(config)
    partial = grad_rows
    if grad_rows is not None and split["splits"] > 1:
        partial = float32_like(grad_rows, split["splits"], rows, channels)
    inner = float32_like(inputs.rows, split["splits"], rows) if needs_inner else None
    row_side, column_side = (sides.candidates, sides.anchors) if inputs.transposed else sides
    arguments = {
        **inputs.arguments(),
        **split,
        "p_row_side": row_side,
        "p_column_side": column_side,
        "p_grad_rows": partial,
        "p_grad_temperature": inner,
    }
    constants = {
        **inputs.constants(config),
        "CHANNEL_SPLITS": config.channel_splits,
        "OF_ROWS": row_side is not None,
        "OF_COLUMNS": column_side is not None,
        "GRAD_ROWS": grad_rows is not None,
        "GRAD_TEMPERATURE": needs_inner,
    }
    launch = KernelLaunch(kernels.backward_kernel, (programs,), arguments, constants, *config.options())
    return launch, partial, inner


#: Backward variants by name: whether the rows are the candidates, whether their gradient is required, and whether the
#: gradient of the temperature is.
_BACKWARD_VARIANTS = {
    "anchors": (False, True, True),
    "candidates": (True, True, False),
    "candidates_alone": (True, True, True),
    "temperature_alone": (False, False, True),
}


def variants(device: DeviceSpec) -> Iterator[tuple[str, KernelLaunch]]:
    """Yield the kernel variants of a device, such as "backward.anchors.bf16.c256.plain", as launches on meta tensors.

    The numbers of channels cover every row of the table, with and without partly filled chunks.
    """
    yield "combine", _forward_variant(torch.float32, 1, 32, False, False, device)[-1]
    for dtype_name, dtype in DTYPES.items():
        for channels in (32, 64, 100, 128, 192, 256, 512, 1000, 1536):
            for option in ("plain", "all"):
                name, all_options = f"{dtype_name}.c{channels}.{option}", option == "all"
                for rows in ("anchors", "candidates") if all_options else ("anchors",):
                    launches = _forward_variant(dtype, 8192, channels, all_options, rows == "candidates", device)
                    yield f"forward.{rows}.{name}", launches[0]
                for kernel, (transposed, needs_rows, needs_inner) in _BACKWARD_VARIANTS.items():
                    inputs = _meta_inputs(dtype, 8192, channels, all_options, transposed)
                    side = meta_tensor(torch.float32, 3, 8192)
                    sides = Sides(side, side if all_options else None)
                    grad_rows = torch.empty_like(inputs.rows) if needs_rows else None
                    launch, _, _ = backward_launch(inputs, device, sides, grad_rows, needs_inner=needs_inner)
                    yield f"backward.{kernel}.{name}", launch


def _forward_variant(
    dtype: torch.dtype, rows: int, channels: int, all_options: bool, transposed: bool, device: DeviceSpec
) -> list[KernelLaunch]:
    inputs = _meta_inputs(dtype, rows, channels, all_options, transposed)
    return forward_launches(inputs, device, meta_tensor(torch.float32, 3, inputs.rows.shape[0]))


def _meta_inputs(dtype: torch.dtype, rows: int, channels: int, excluding: bool, transposed: bool) -> Inputs:
    ids, other_ids = meta_tensor(torch.int64, rows), meta_tensor(torch.int64, 8192)
    tensors = (
        meta_tensor(dtype, rows, channels),
        meta_tensor(dtype, 8192, channels),
        ids,
        other_ids,
        ids if excluding else None,
    )
    return Inputs(Arguments(*tensors, meta_tensor(torch.float32), excluding), transposed)
