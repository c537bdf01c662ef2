"""TensorBoard: files in the folder ``tensorboard`` of the run, which ``tensorboard --logdir`` shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32


class TensorBoard:
    """An :class:`~.interface.Observer`.

    Args:
        folder: of the files.
        step: steps behind the state that training starts from; what was written of later ones is hidden.
    """

    name = "log.tensorboard"

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """As scalars."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def histogram(self, step: int, name: str, values: Float32[np.ndarray, " n"]) -> None:
        """As a histogram, in TensorBoard's own bins."""
        self._writer.add_histogram(name, values, step)

    def close(self, *, failed: bool) -> None:
        """Flushes what is left."""
        self._writer.close()
