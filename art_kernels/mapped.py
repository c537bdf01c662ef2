"""vmap over operators whose tensors have a batch first: the mapped dimension joins it."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def fold(info: Any, tensor: Tensor | None, dim: int | None) -> Tensor | None:
    """The mapped dimension joined to the first; `info` and `dim` as `torch.library.register_vmap` gives them."""
    if tensor is None:
        return None
    tensor = tensor.unsqueeze(0).expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)
