"""Argument checks shared by the operations; they run before any computation and support `torch.compile`.

Every message names the operation and the argument, what was passed, what was expected, and how to fix it. A message is
one line of bounded length, also for a large argument (:func:`describe`).
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from art_kernels._core.precision import FLOATING

_MAX_FLOAT = sys.float_info.max
#: Maximum characters of a value in a message.
_MAX_SHOWN = 100
#: Formats only the beginning of a container, so that its size does not matter.
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict, _REPR.maxset = 2, 4, 4, 2, 4
_REPR.maxstring = _REPR.maxother = _MAX_SHOWN


def check_floating(operation: str, name: str, value: object, layout: str) -> None:
    """Check that `value` is a floating-point tensor with the rank of `layout`, such as "[B,T,K,C]" or "[...,K,K]".

    Raises:
        TypeError: if it is not a tensor, or not float16, bfloat16, float32 or float64.
        ValueError: if it has the wrong number of dimensions, or no channels and the last dimension is C.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: {name} is {describe(value)}, expected a torch.Tensor of shape {layout}")
    if value.layout != torch.strided or value.is_nested or type(value) not in (Tensor, nn.Parameter):
        check_dense(operation, name, value)
    if value.dim() != layout.count(",") + 1:
        _check_leading_dims(operation, name, value, layout)
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{operation}: {name} has dtype {value.dtype}, expected float16, bfloat16, float32 or float64; "
            f"convert it with {name}.float()"
        )
    if layout.endswith("C]") and value.shape[-1] == 0:
        raise ValueError(
            f"{operation}: {name} has shape {list(value.shape)}, expected {layout} with at least one channel; "
            "check the layer that produced it"
        )


def check_mask(
    operation: str, name: str, value: object, layout: str, sizes: Sequence[int], device: torch.device
) -> None:
    """Check that `value` is a boolean tensor of shape `sizes`, described by `layout`, on `device`.

    Raises:
        TypeError: if it is not a tensor, or not of dtype bool.
        ValueError: if the shape or the device is wrong.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: {name} is {describe(value)}, expected a boolean torch.Tensor of shape {layout}")
    check_dense(operation, name, value)
    if value.dtype != torch.bool:
        raise TypeError(
            f"{operation}: {name} has dtype {value.dtype}, expected torch.bool with True for valid entries; "
            "compare first, for example mask > 0"
        )
    _check_sizes_and_device(operation, name, value, layout, sizes, device)


def check_ids(
    operation: str, name: str, value: object, layout: str, sizes: Sequence[int], device: torch.device
) -> None:
    """Check that `value` is an int64 tensor of shape `sizes`, described by `layout`, on `device`.

    Raises:
        TypeError: if it is not a tensor, or not of dtype int64.
        ValueError: if the shape or the device is wrong.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: {name} is {describe(value)}, expected an int64 torch.Tensor of shape {layout}")
    check_dense(operation, name, value)
    if value.dtype != torch.int64:
        raise TypeError(
            f"{operation}: {name} has dtype {value.dtype}, expected torch.int64; convert it with {name}.long()"
        )
    _check_sizes_and_device(operation, name, value, layout, sizes, device)


def check_dense(operation: str, name: str, value: Tensor) -> None:
    """Raise ValueError for a nested, sparse or distributed tensor, whose elements the kernels cannot address."""
    if value.is_nested:
        raise ValueError(
            f"{operation}: {name} is nested, expected a dense tensor; pad it with "
            f"torch.nested.to_padded_tensor({name}, 0.0) and mask the padding"
        )
    if value.layout != torch.strided:
        raise ValueError(
            f"{operation}: {name} is sparse (layout {value.layout}), expected torch.strided; "
            f"convert it with {name}.to_dense()"
        )
    if any(base.__name__ == "DTensor" for base in type(value).__mro__):  # without importing torch.distributed
        raise ValueError(
            f"{operation}: {name} is a DTensor, expected a plain tensor: DTensor is not supported; pass "
            f"{name}.to_local() of a sharding over the batch, or wrap the call in "
            "torch.distributed.tensor.experimental.local_map"
        )


def choose_layout(operation: str, name: str, value: object, layouts: Iterable[str]) -> str:
    """Return the layout, such as "[N,C]", with the rank of `value`; the first if `value` is not a tensor.

    Raises:
        ValueError: if no layout has this rank.
    """
    candidates = list(layouts)
    if not isinstance(value, Tensor):
        return candidates[0]
    for layout in candidates:
        if value.dim() == layout.count(",") + 1:
            return layout
    raise ValueError(
        f"{operation}: {name} has shape {list(value.shape)}, expected {' or '.join(candidates)}; "
        "reshape it, or add the missing dimensions with unsqueeze"
    )


def check_sizes(operation: str, name: str, value: Tensor, layout: str, sizes: Sequence[int]) -> None:
    """Raise ValueError unless `value` has exactly shape `sizes`, described by `layout`."""
    if value.dim() != layout.count(",") + 1:
        _check_leading_dims(operation, name, value, layout)
    for axis, size in enumerate(sizes):
        if value.shape[axis] != size:
            raise ValueError(
                f"{operation}: {name} has shape {list(value.shape)}, expected {layout} = {list(sizes)}; "
                f"dimension {axis} must match the other arguments"
            )


def check_same_device(operation: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both tensors are on the same device."""
    if value.device != other.device:
        raise ValueError(
            f"{operation}: {name} is on {value.device}, expected {other.device}, the device of {other_name}; "
            f"move it with {name}.to({str(other.device)!r})"
        )


def check_same_dtype(operation: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise TypeError unless both tensors have the same dtype."""
    if value.dtype != other.dtype:
        raise TypeError(
            f"{operation}: {name} has dtype {value.dtype}, expected {other.dtype}, the dtype of {other_name}; "
            f"convert one of them, or run under torch.autocast"
        )


def check_number(
    operation: str,
    name: str,
    value: object,
    *,
    low: float = -_MAX_FLOAT,
    high: float = _MAX_FLOAT,
    low_is_open: bool = False,
) -> None:
    """Check that `value` is a finite int or float with low <= value <= high (low < value with `low_is_open`).

    Raises:
        TypeError: if it is not an int or float.
        ValueError: if it is not finite, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{operation}: {name} is {describe(value)}, expected a number (int or float)")
    too_low = value <= low if low_is_open else value < low
    # Also false for NaN, and for an int beyond the range of float; torch.compile does not support math.isfinite.
    finite = -_MAX_FLOAT <= value <= _MAX_FLOAT
    if not finite or too_low or value > high:
        lower = "(-inf" if low == -_MAX_FLOAT else f"({low}" if low_is_open else f"[{low}"
        upper = "inf)" if high == _MAX_FLOAT else f"{high}]"
        raise ValueError(
            f"{operation}: {name} is {shorten(value)}, expected a finite number in {lower}, {upper}; "
            "choose a value in this range"
        )


def check_count(operation: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is an int, and ValueError unless it is at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{operation}: {name} is {describe(value)}, expected an int")
    if value < 1:
        raise ValueError(f"{operation}: {name} is {shorten(value)}, expected at least 1")


def check_flag(operation: str, name: str, value: object) -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{operation}: {name} is {describe(value)}, expected True or False")


def check_choice(operation: str, name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    # The type first: comparing an array with a string returns an array.
    if not isinstance(value, str) or value not in choices:
        shown = shorten(value) if isinstance(value, str) else describe(value)
        raise ValueError(f"{operation}: {name} is {shown}, expected one of {', '.join(map(repr, choices))}")


def describe(value: object) -> str:
    """Return a value as shown in messages: the beginning of its repr and its type, or the shape of an array."""
    if value is None:
        return "None"
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    if isinstance(shape, tuple) and len(shape) > 0:
        return f"of type {kind} with shape {list(shape)}"
    return f"{shorten(value)} of type {kind}"


def shorten(value: object) -> str:
    """Return the repr of a value, on one line and cut off after 100 characters."""
    try:
        text = " ".join(_REPR.repr(value).split())
    except ValueError:  # Python refuses to format integers of thousands of digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else "a value that cannot be printed"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _check_sizes_and_device(
    operation: str, name: str, value: Tensor, layout: str, sizes: Sequence[int], device: torch.device
) -> None:
    check_sizes(operation, name, value, layout, sizes)
    if value.device != device:
        raise ValueError(
            f"{operation}: {name} is on {value.device}, expected {device}; move it with {name}.to({str(device)!r})"
        )


def _check_leading_dims(operation: str, name: str, value: Tensor, layout: str) -> None:
    """Raise ValueError for a rank other than that of `layout`, unless "..." covers the other dimensions."""
    rank = layout.count(",") + 1
    if not layout.startswith("[...,"):
        raise ValueError(
            f"{operation}: {name} has shape {list(value.shape)}, expected the {rank} dimensions {layout}; "
            "reshape it, or add the missing dimensions with unsqueeze"
        )
    if value.dim() < rank - 1:
        raise ValueError(
            f"{operation}: {name} has shape {list(value.shape)}, expected at least the last {rank - 1} dimensions "
            f"of {layout}; reshape it"
        )
