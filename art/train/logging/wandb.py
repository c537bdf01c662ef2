"""Weights & Biases (extra ``[wandb]``); with ``WANDB_MODE=offline`` into the run folder, for ``wandb sync`` later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from art.extras import import_extra


def library() -> Any:
    """The module.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    return import_extra("wandb", extra="wandb", needed_by="log.wandb", instead="leave log.wandb null")


class WeightsAndBiases:
    """An :class:`~.interface.Observer`. Login and mode are the library's own: ``wandb login``, ``WANDB_MODE``.

    Args:
        project: where the run belongs.
        folder: of the run; the library keeps its files there, in ``wandb``.
        config: of the run.
        identity: of the run there that goes on; None begins a new one.

    Attributes:
        identity: by which the run goes on when training does.
    """

    name = "log.wandb"

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any], identity: str | None) -> None:
        self._wandb = library()
        run = self._wandb.init(
            project=project,
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            id=identity,
            resume="allow" if identity else None,
        )
        self._run = run
        self.identity: str = run.id
        # The library's own step may not go back; that of a training that resumes from its last checkpoint does.
        run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """As metrics over "step"."""
        self._run.log({"step": step, **numbers})

    def histogram(self, step: int, name: str, values: Float32[np.ndarray, " n"]) -> None:
        """As a histogram of 64 bins."""
        self._run.log({"step": step, name: self._wandb.Histogram(values)})

    def close(self, *, failed: bool) -> None:
        """Waits until everything is sent."""
        self._run.finish(exit_code=int(failed))
