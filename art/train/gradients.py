"""The gradients of a step: their norms by parameter group, and clipping to a norm of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Gradients:
    """The gradients of all parameters, measured and clipped with one pass over them.

    Args:
        groups: "backbone", "head" and "bank", as ``model.parameter_groups()`` gives them; any may be empty.
        max_norm: the largest norm of all of them together; None: no clipping.
    """

    def __init__(self, groups: Mapping[str, Sequence[nn.Parameter]], max_norm: float | None = None) -> None:
        self._groups = {name: list(parameters) for name, parameters in groups.items()}
        self._max_norm = max_norm

    def clip(self, *, measure: bool) -> dict[str, float]:
        """Clips where there is a largest norm. Of several ranks all must call this.

        Args:
            measure: also return "gradient_norm/total" and "gradient_norm/<group>", as they were before. Without it, and
                without clipping, nothing is computed.
        """
        if self._max_norm is None and not measure:
            return {}
        norms = {name: norm for name, parameters in self._groups.items() if (norm := _norm(parameters)) is not None}
        if not norms:
            return {}
        total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        if self._max_norm is not None:
            everything = [parameter for parameters in self._groups.values() for parameter in parameters]
            torch.nn.utils.clip_grads_with_norm_(everything, self._max_norm, total)
        if not measure:
            return {}
        values = torch.stack([total, *norms.values()]).tolist()  # fetched from the device at once
        return dict(zip((f"gradient_norm/{name}" for name in ("total", *norms)), values, strict=True))


def _norm(parameters: Sequence[nn.Parameter]) -> Float[Tensor, ""] | None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return None
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm  # of shards, over all ranks
