"""Argument checks shared by the operations; they run before any computation and support `torch.compile`.

Every message names the operation and the argument, what was passed, what was expected, and how to fix it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from art_kernels._core.precision import FLOATING


def check_floating(operation: str, name: str, value: object, layout: str) -> None:
    """Raise unless `value` is a floating tensor with the rank of `layout`, such as "[B,T,K,C]" or "[...,K,K]".

    Raises:
        TypeError: not a tensor, or a dtype other than float16, bfloat16, float32, float64.
        ValueError: the wrong number of dimensions, or no channel where the last dimension is C.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: {name} is {_kind(value)}, expected a torch.Tensor of shape {layout}")
    _check_rank(operation, name, value, layout)
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{operation}: {name} has dtype {value.dtype}, expected float16, bfloat16, float32 or float64; "
            f"convert it with {name}.float()"
        )
    if layout.endswith("C]") and value.shape[-1] == 0:
        raise ValueError(
            f"{operation}: {name} has shape {list(value.shape)}, expected {layout} with at least one channel; "
            "check the layer that made it"
        )


def check_mask(
    operation: str, name: str, value: object, layout: str, sizes: Sequence[int], device: torch.device
) -> None:
    """Raise unless `value` is a boolean tensor of `sizes`, written `layout`, on `device`.

    Raises:
        TypeError: not a tensor, or not of dtype bool.
        ValueError: wrong shape or device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: {name} is {_kind(value)}, expected a boolean torch.Tensor of shape {layout}")
    if value.dtype != torch.bool:
        raise TypeError(
            f"{operation}: {name} has dtype {value.dtype}, expected torch.bool with True for what takes part; "
            "compare first, for example mask > 0"
        )
    check_sizes(operation, name, value, layout, sizes)
    if value.device != device:
        raise ValueError(
            f"{operation}: {name} is on {value.device}, expected {device}; move it with {name}.to({str(device)!r})"
        )


def check_ids(
    operation: str, name: str, value: object, layout: str, sizes: Sequence[int], device: torch.device
) -> None:
    """Raise unless `value` is an int64 tensor of `sizes`, written `layout`, on `device`.

    Raises:
        TypeError: not a tensor, or not of dtype int64.
        ValueError: wrong shape or device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: {name} is {_kind(value)}, expected an int64 torch.Tensor of shape {layout}")
    if value.dtype != torch.int64:
        raise TypeError(
            f"{operation}: {name} has dtype {value.dtype}, expected torch.int64; convert it with {name}.long()"
        )
    check_sizes(operation, name, value, layout, sizes)
    if value.device != device:
        raise ValueError(
            f"{operation}: {name} is on {value.device}, expected {device}; move it with {name}.to({str(device)!r})"
        )


def check_sizes(operation: str, name: str, value: Tensor, layout: str, sizes: Sequence[int]) -> None:
    """Raise ValueError unless `value` has exactly `sizes`, written `layout`."""
    _check_rank(operation, name, value, layout)
    for axis, size in enumerate(sizes):
        if value.shape[axis] != size:
            raise ValueError(
                f"{operation}: {name} has shape {list(value.shape)}, expected {layout} = {list(sizes)}; "
                f"its dimension {axis} must agree with the other arguments"
            )


def check_same_device(operation: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless the two tensors are on one device."""
    if value.device != other.device:
        raise ValueError(
            f"{operation}: {name} is on {value.device}, expected {other.device}, where {other_name} is; "
            f"move it with {name}.to({str(other.device)!r})"
        )


def check_same_dtype(operation: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise TypeError unless the two tensors have one dtype."""
    if value.dtype != other.dtype:
        raise TypeError(
            f"{operation}: {name} has dtype {value.dtype}, expected {other.dtype}, that of {other_name}; "
            f"convert one of them, or run under torch.autocast"
        )


def check_number(
    operation: str,
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_is_open: bool = False,
) -> None:
    """Raise unless `value` is a finite int or float with low <= value <= high (low < value with `low_is_open`).

    Raises:
        TypeError: not an int or float.
        ValueError: not finite, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{operation}: {name} is {_kind(value)}, expected a number (int or float)")
    too_low = value <= low if low_is_open else value < low
    finite = -math.inf < value < math.inf  # a comparison, which NaN fails too: math.isfinite cannot be compiled
    if not finite or too_low or value > high:
        opening, closing = "(" if low_is_open or low == -math.inf else "[", ")" if high == math.inf else "]"
        raise ValueError(
            f"{operation}: {name} is {value}, expected a finite number in {opening}{low}, {high}{closing}; "
            "pass one from this range"
        )


def check_count(operation: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is an int, ValueError unless it is at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{operation}: {name} is {_kind(value)}, expected an int")
    if value < 1:
        raise ValueError(f"{operation}: {name} is {value}, expected at least 1")


def check_flag(operation: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{operation}: {name} is {_kind(value)}, expected True or False")


def check_choice(operation: str, name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{operation}: {name} is {value!r}, expected one of {', '.join(map(repr, choices))}")


def _check_rank(operation: str, name: str, value: Tensor, layout: str) -> None:
    rank = layout.count(",") + 1
    if layout.startswith("[...,"):
        if value.dim() < rank - 1:
            raise ValueError(
                f"{operation}: {name} has shape {list(value.shape)}, expected at least the last {rank - 1} dimensions "
                f"of {layout}; reshape it"
            )
    elif value.dim() != rank:
        raise ValueError(
            f"{operation}: {name} has shape {list(value.shape)}, expected the {rank} dimensions {layout}; "
            "reshape it, or add the missing dimensions with unsqueeze"
        )


def _kind(value: object) -> str:
    return "None" if value is None else f"{value!r} of type {type(value).__name__}"
