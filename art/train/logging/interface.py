"""What an observer is: something that is told the numbers of a training while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Float32


class Observer(Protocol):
    """Told by :class:`~art.train.logging.run_log.RunLog`, on the main rank only. It may raise: then it is left out."""

    #: The key of the configuration that asks for it.
    name: str

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a step, or of the epoch that ended with it, by name; a "/" parts a group from its members."""

    def histogram(self, step: int, name: str, values: Float32[np.ndarray, " n"]) -> None:
        """Many values of one kind."""

    def close(self, *, failed: bool) -> None:
        """No more comes: training has ended, or (``failed``) stopped before."""
