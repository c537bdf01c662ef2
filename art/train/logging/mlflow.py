"""MLflow (extra ``[mlflow]``): a run with its parameters, metrics and ``config.yaml`` in a tracking server or store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from art.extras import import_extra

#: What one request may hold, and the longest value of a parameter, as MLflow has them.
_PARAMS_AT_ONCE, _LONGEST_PARAM = 100, 500


def library() -> Any:
    """The module.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    return import_extra("mlflow", extra="mlflow", needed_by="log.mlflow", instead="leave log.mlflow null")


class MLflow:
    """An :class:`~.interface.Observer`.

    Args:
        uri: of the tracking server or store.
        experiment: the run's; made where there is none of that name.
        folder: of the run, which gives its name and ``config.yaml``.
        config: of the run; values of up to 500 characters become parameters, named by their dotted keys.
        identity: of the run there that goes on; None begins a new one.

    Attributes:
        identity: by which the run goes on when training does.
    """

    name = "log.mlflow"

    def __init__(
        self, uri: str, experiment: str, folder: Path, config: Mapping[str, Any], identity: str | None
    ) -> None:
        self._mlflow = library()
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        if identity is None:
            known = self._client.get_experiment_by_name(experiment)
            number = self._client.create_experiment(experiment) if known is None else known.experiment_id
            identity = self._client.create_run(number, run_name=folder.name).info.run_id
            self.identity: str = str(identity)
            self._log_parameters(config)
        else:
            self.identity = identity
            self._client.update_run(identity, status="RUNNING")
        if (folder / "config.yaml").is_file():
            self._client.log_artifact(self.identity, str(folder / "config.yaml"))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """As metrics."""
        now = int(1000 * time.time())
        metrics = [self._mlflow.entities.Metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self.identity, metrics=metrics)

    def histogram(self, step: int, name: str, values: Float32[np.ndarray, " n"]) -> None:
        """MLflow has none; the quantiles are among the numbers."""

    def close(self, *, failed: bool) -> None:
        """Marks the run as finished, or failed."""
        self._client.set_terminated(self.identity, "FAILED" if failed else "FINISHED")

    def _log_parameters(self, config: Mapping[str, Any]) -> None:
        entries = [(key, str(value)) for key, value in _dotted(config) if len(str(value)) <= _LONGEST_PARAM]
        params = [self._mlflow.entities.Param(key, value) for key, value in entries]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self.identity, params=params[start : start + _PARAMS_AT_ONCE])


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
