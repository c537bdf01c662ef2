"""Which backend serves which tensor, and why not.

A backend is one way to compute an operation:

- "triton": a kernel for GPUs;
- "native": PyTorch's own operators, on any device, in the formulation that reads least memory;
- "reference": the definition, a few lines that read like the equation, on any device.

Each operation registers the backends it has, and each backend may refuse a tensor by giving the reason. With
`backend=None` the first that serves is taken, in the order above; a backend asked for by name, in the call or by the
environment variable ART_KERNELS_BACKEND, serves the tensor or raises. Nothing is replaced silently. A compiled graph
keeps the backend chosen when it was traced.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

PREFERENCE = ("triton", "native", "reference")
ENVIRONMENT_VARIABLE = "ART_KERNELS_BACKEND"


@dataclass(frozen=True)
class Implementation:
    """One backend of one operation.

    Attributes:
        run: computes the operation; its arguments are checked already.
        refusal: says why a tensor cannot be served, or None where it can.
        by_name_only: whether a tensor that can be served is served only when the backend is asked for: an interpreter
            that is there for tests.
    """

    run: Callable[..., Any]
    refusal: Callable[[Tensor], str | None]
    by_name_only: Callable[[Tensor], bool]


_implementations: dict[str, dict[str, Implementation]] = {}


def _never(tensor: Tensor) -> str | None:
    return None


def register(
    operation: str,
    backend: str,
    run: Callable[..., Any],
    refusal: Callable[[Tensor], str | None] = _never,
    by_name_only: Callable[[Tensor], bool] = lambda tensor: False,
) -> None:
    """Make `backend` serve `operation`, save for the tensors for which `refusal` gives a reason."""
    _implementations.setdefault(operation, {})[backend] = Implementation(run, refusal, by_name_only)


def _by_name_only(operation: str, backend: str, tensor: Tensor) -> bool:
    return _implementations[operation][backend].by_name_only(tensor)


def register_missing(operation: str, backend: str, reason: str) -> None:
    """Let `backend` refuse every tensor in `operation`, for a reason that the user can act on."""

    def run(*arguments: object) -> None:
        raise AssertionError("a backend that refuses every tensor is never run")

    register(operation, backend, run, lambda tensor: reason)


def operations() -> list[str]:
    """The names of all operations, in the order in which they were registered."""
    return list(_implementations)


def refusal(operation: str, backend: str, tensor: Tensor) -> str | None:
    """Why `backend` cannot serve `tensor` in `operation`, or None where it can."""
    implementation = _implementations[operation].get(backend)
    if implementation is None:
        return f"this release has no {backend} implementation"
    return implementation.refusal(tensor)


def choose(operation: str, tensor: Tensor, backend: str | None = None) -> str:
    """The backend that computes `operation` on `tensor`.

    Args:
        operation: a registered name, such as "region_attention".
        tensor: the operation's main input; its device, dtype and sizes decide.
        backend: "triton", "native" or "reference"; None takes ART_KERNELS_BACKEND, or the first that serves.

    Raises:
        ValueError: an unknown name, or a backend that cannot serve this tensor; the message says which can.
    """
    source = f"backend={backend!r}"
    if backend is None:
        backend = _environment_default()
        source = f"{ENVIRONMENT_VARIABLE}={backend}"
    if backend is None:
        for candidate in PREFERENCE:
            if refusal(operation, candidate, tensor) is None and not _by_name_only(operation, candidate, tensor):
                return candidate
        reasons = "; ".join(f"{name}: {refusal(operation, name, tensor) or 'by name only'}" for name in PREFERENCE)
        raise ValueError(f"{operation}: no backend serves {_describe(tensor)} ({reasons}); convert or move the tensor")
    if backend not in PREFERENCE:
        raise ValueError(f"{operation}: {source} is not a backend, expected one of {', '.join(map(repr, PREFERENCE))}")
    reason = refusal(operation, backend, tensor)
    if reason is not None:
        available = [name for name in PREFERENCE if refusal(operation, name, tensor) is None]
        raise ValueError(
            f"{operation}: {source} cannot serve {_describe(tensor)}: {reason}; "
            f"available here: {', '.join(map(repr, available))}"
        )
    return backend


def implementation(operation: str, tensor: Tensor, backend: str | None = None) -> Callable[..., Any]:
    """The function of the backend that `choose` names."""
    return _implementations[operation][choose(operation, tensor, backend)].run


def _environment_default() -> str | None:
    return os.environ.get(ENVIRONMENT_VARIABLE) or None


def _describe(tensor: Tensor) -> str:
    return f"a {str(tensor.dtype).removeprefix('torch.')} tensor on {tensor.device}"
