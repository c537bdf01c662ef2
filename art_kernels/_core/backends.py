"""Backend registry: which implementation computes an operation for a given tensor, or the reason it cannot.

- ``"triton"``: GPU kernels.
- ``"cpp"``: the native C++/CUDA module (assignment and linking).
- ``"torch"``: PyTorch operators on any device, in the formulation with the least memory traffic.
- ``"reference"``: a direct transcription of the equation on any device, used as the oracle in tests.

Each operation registers its backends. A backend can reject a tensor by returning a reason. With ``backend=None`` the
first backend in the order above that supports the tensor is used. A backend named by the caller, or by the environment
variable ART_KERNELS_BACKEND, computes the result or raises; there is no silent fallback. A compiled graph keeps the
backend chosen while tracing. An export to ONNX, which has no operators for the kernels, uses ``"reference"``.
``"native"``, the former name of both ``"torch"`` and ``"cpp"``, is deprecated.
"""

from __future__ import annotations

import importlib
import inspect
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from art_kernels._core.checks import describe, shorten

#: Backend names in order of preference.
BACKENDS = ("triton", "cpp", "torch", "reference")
ENVIRONMENT_VARIABLE = "ART_KERNELS_BACKEND"


def _supports_all(tensor: Tensor) -> str | None:
    return None


def _never_opt_in(tensor: Tensor) -> bool:
    return False


@dataclass(frozen=True)
class Implementation:
    """One backend of one operation.

    Attributes:
        run: computes the operation from validated arguments.
        unsupported_reason: returns why a tensor is not supported, or None if it is.
        opt_in: returns True if a supported tensor is only computed when the backend is named explicitly, for example
            for Triton's interpreter, which exists for tests.
        transformable: replaces `run` where `torch.func` transforms or forward-mode differentiation are active; None if
            `run` supports them.
    """

    run: Callable[..., Any]
    unsupported_reason: Callable[[Tensor], str | None]
    opt_in: Callable[[Tensor], bool]
    transformable: Callable[..., Any] | None = None


_implementations: dict[str, dict[str, Implementation]] = {}


def register(
    operation: str,
    backend: str,
    run: Callable[..., Any],
    unsupported_reason: Callable[[Tensor], str | None] = _supports_all,
    opt_in: Callable[[Tensor], bool] = _never_opt_in,
    transformable: Callable[..., Any] | None = None,
) -> None:
    """Add a backend to an operation, or replace it."""
    implementation = Implementation(run, unsupported_reason, opt_in, transformable)
    _implementations.setdefault(operation, {})[backend] = implementation


def register_missing(operation: str, backend: str, reason: str) -> None:
    """Add a backend that rejects every tensor with an actionable reason, such as a failed import."""

    def run(*arguments: object) -> None:
        raise AssertionError(reason)

    register(operation, backend, run, lambda tensor: reason)


def import_backend(operation: str, backend: str, module: str) -> ModuleType | None:
    """Import the module of a backend; if the import fails, register the reason and return None."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        register_missing(operation, backend, f"{error.name or module} cannot be imported: {error}")
        return None


def operations() -> list[str]:
    """Names of all operations, in order of registration."""
    return list(_implementations)


def unsupported_reason(operation: str, backend: str, tensor: Tensor) -> str | None:
    """Return why `backend` cannot compute `operation` on `tensor`, or None if it can."""
    implementation = _implementations[operation].get(backend)
    if implementation is None:
        return f"{operation} has no {backend} implementation"
    return implementation.unsupported_reason(tensor)


def choose(operation: str, tensor: Tensor, backend: str | None = None) -> str:
    """Return the name of the backend that computes `operation` on `tensor`.

    Args:
        operation: a registered name, such as "region_attention".
        tensor: the main input; the choice depends on its device, dtype and sizes.
        backend: a name from :data:`BACKENDS`; None uses ART_KERNELS_BACKEND, or the first supported backend.

    Raises:
        ValueError: if the name is unknown or the backend does not support this tensor; the message lists the backends
            that do.
    """
    from_environment = backend is None
    if from_environment:
        backend = os.environ.get(ENVIRONMENT_VARIABLE) or None
    if backend is not None and (not isinstance(backend, str) or backend not in (*BACKENDS, "native")):
        shown = shorten(backend) if isinstance(backend, str) else describe(backend)
        source = f"{ENVIRONMENT_VARIABLE}={shown[1:-1]}" if from_environment else f"backend={shown}"
        raise ValueError(f"{operation}: {source} is not a backend, expected one of {', '.join(map(repr, BACKENDS))}")
    source = f"{ENVIRONMENT_VARIABLE}={backend}" if from_environment else f"backend={backend!r}"
    registered = _implementations[operation]
    if (torch.compiler.is_exporting() or torch.jit.is_tracing()) and _in_onnx_export():
        if backend not in (None, "reference"):
            raise ValueError(
                f"{operation}: {source} cannot be exported to ONNX, expected backend='reference', which consists of "
                "PyTorch operators; name it or no backend"
            )
        backend = "reference"
    if backend is None:
        for name in BACKENDS:
            candidate = registered.get(name)
            if candidate and candidate.unsupported_reason(tensor) is None and not candidate.opt_in(tensor):
                return name
        reasons = [f"{name}: {unsupported_reason(operation, name, tensor) or 'by name only'}" for name in BACKENDS]
        raise ValueError(
            f"{operation}: no backend supports {_describe(tensor)} ({'; '.join(reasons)}); convert or move the tensor"
        )
    if backend == "native":
        backend = resolve_native(operation, source)
    reason = unsupported_reason(operation, backend, tensor)
    if reason is not None:
        available = [repr(name) for name in BACKENDS if unsupported_reason(operation, name, tensor) is None]
        raise ValueError(
            f"{operation}: {source} does not support {_describe(tensor)}: {reason}; "
            f"available backends: {', '.join(available)}"
        )
    return backend


def _in_onnx_export() -> bool:
    """Return `torch.onnx.is_in_onnx_export()`, which imports the exporter: call this only during an export."""
    return torch.onnx.is_in_onnx_export()


# As `torch.compiler.assume_constant_result`, which imports the compiler: it would trace the function as False.
_in_onnx_export._dynamo_marked_constant = True  # type: ignore[attr-defined]


def implementation(operation: str, tensor: Tensor, backend: str | None = None) -> Callable[..., Any]:
    """Return the function of the backend selected by :func:`choose`."""
    chosen = _implementations[operation][choose(operation, tensor, backend)]
    # Written out instead of calling `transforms_active`: this runs before every kernel.
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return chosen.transformable if transformed and chosen.transformable is not None else chosen.run


def transforms_active() -> bool:
    """Return whether a `torch.func` transform or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def resolve_native(operation: str, source: str) -> str:
    """Map the deprecated name "native" to "cpp" where the operation has that backend, else to "torch"."""
    backend = "cpp" if "cpp" in _implementations[operation] else "torch"
    if not torch.compiler.is_compiling():
        message = f"{operation}: {source} is deprecated, use {backend!r}"
        warnings.warn(message, DeprecationWarning, stacklevel=_caller_stacklevel())
    return backend


def _caller_stacklevel() -> int:
    """Return the ``stacklevel`` of the first frame outside this package and PyTorch, relative to the calling function.

    Python shows a DeprecationWarning by default only if it is attributed to the user's script.
    """
    level, frame = 0, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("art_kernels", "torch"):
        level, frame = level + 1, frame.f_back
    return level


def _describe(tensor: Tensor) -> str:
    return f"a {str(tensor.dtype).removeprefix('torch.')} tensor on {tensor.device}"
