"""Training metrics: ``metrics.jsonl``, the console, TensorBoard, Weights & Biases, MLflow, and throughput."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float32

from art._deprecated import renamed_names
from art.data.files import atomic_write, naming_file, read_json_mapping, write_text
from art.extras import import_extra
from art.train.checkpoint import RunDir
from art.train.config import LogConfig
from art.train.runtime import peak_device_memory_bytes, peak_memory_bytes

_MLFLOW_BATCH, _MLFLOW_MAX_VALUE = 100, 500  # MLflow's limits: parameters per request, characters per value
_GIB = 2**30

__getattr__ = renamed_names(__name__, {"Observer": "MetricLogger", "require_observers": "check_loggers"})


class MetricLogger(Protocol):
    """Receives the metrics of a training run on rank 0. It may raise: then it is disabled."""

    #: The key of the configuration that enables it.
    name: str

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step, or of the epoch that ended with it; "/" in names separates groups."""

    def histogram(self, step: int, name: str, values: Float32[np.ndarray, " n"]) -> None:
        """Log the distribution of values."""

    def close(self, *, failed: bool) -> None:
        """End the run; ``failed`` if training stopped early."""


class NullLogger:
    """The log of ranks other than 0."""

    def __enter__(self) -> NullLogger:
        return self

    def __exit__(self, *_: object) -> None:
        """Close nothing: there is no file."""

    def write(self, event: str, epoch: int, step: int, metrics: dict[str, Any]) -> None:
        """Discard the metrics, which rank 0 logs."""

    def histograms(self, step: int, histograms: Mapping[str, Float32[np.ndarray, " n"]]) -> None:
        """Discard the histograms, which rank 0 logs."""


class RunLogger:
    """Appends flat JSON objects to ``metrics.jsonl`` and passes the same metrics to other loggers.

    Each line has "event", "epoch" and "step" (counted from 1); times are in seconds:

    - "step": "loss/<term>"; "lr/<parameter group>" (the highest of the backbone's layers); "seconds/step" and
      "seconds/data", the mean compute and data-wait times per step since the previous line; "clips_per_second";
      "memory_gib/process" and, on CUDA, "memory_gib/device", peak memory so far; if enabled, "gradient_norm/total" and
      "gradient_norm/<group>" before clipping, and the 5th, 50th and 95th percentiles of
      :func:`art.eval.metrics.bank_similarities`, as "similarity_own_class/p05";
    - "epoch": "mean_loss/total"; "top1/train" (accuracy on the augmented training clips); "epoch_seconds/train"; and
      after an evaluation "top1/<split>", "top5/<split>", "mean_class_accuracy/<split>" and "epoch_seconds/evaluation".

    A logger that raises is disabled with a warning; training continues and the file has all metrics.

    Args:
        run: the run directory.
        epochs: completed epochs, evaluation included, of the state that training starts from; later lines are removed.
        step: optimizer steps of that state; later lines are removed.
        loggers: other loggers, closed at the end.
    """

    def __init__(self, run: RunDir, *, epochs: int, step: int, loggers: Sequence[MetricLogger] = ()) -> None:
        reached = {"epoch": epochs, "step": step}
        try:
            kept = [line for line in run.history() if line[line["event"]] <= reached[line["event"]]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{run.metrics}: a line has no valid event, epoch or step; the file is damaged") from error
        text = "".join(json.dumps(line) + "\n" for line in kept)
        atomic_write(run.metrics, lambda path: path.write_text(text, encoding="utf-8"))
        self._file = run.metrics.open("a", encoding="utf-8")
        self._loggers = list(loggers)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._for_each(lambda logger: logger.close(failed=kind is not None))

    def write(self, event: str, epoch: int, step: int, metrics: dict[str, Any]) -> None:
        """Write one line and flush it."""
        with naming_file(Path(self._file.name)):
            self._file.write(json.dumps({"event": event, "epoch": epoch, "step": step, **metrics}) + "\n")
            self._file.flush()
        self._for_each(lambda logger: logger.write(step, metrics))

    def histograms(self, step: int, histograms: Mapping[str, Float32[np.ndarray, " n"]]) -> None:
        """Pass histograms to the other loggers."""

        def log(logger: MetricLogger) -> None:
            for name, values in histograms.items():
                logger.histogram(step, name, values)

        self._for_each(log)

    def _for_each(self, call: Callable[[MetricLogger], None]) -> None:
        for logger in list(self._loggers):
            try:
                call(logger)
            except Exception as error:
                self._loggers.remove(logger)
                warnings.warn(
                    f"{logger.name}: disabled for the rest of the run after {type(error).__name__}: {error}. "
                    "metrics.jsonl has all metrics",
                    stacklevel=3,
                )


class TensorBoardLogger:
    """Writes TensorBoard files for ``tensorboard --logdir``.

    Args:
        directory: directory of the files.
        step: steps of the state that training starts from; data of later steps is hidden.
    """

    name = "log.tensorboard"

    def __init__(self, directory: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(directory), purge_step=step + 1 if step else None)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log scalars."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def histogram(self, step: int, name: str, values: Float32[np.ndarray, " n"]) -> None:
        """Log a histogram with TensorBoard's bins."""
        self._writer.add_histogram(name, values, step)

    def close(self, *, failed: bool) -> None:
        """Flush the files."""
        self._writer.close()


class WandbLogger:
    """Logs to Weights & Biases. Login and mode are set with ``wandb login`` and ``WANDB_MODE``.

    Args:
        project: project name.
        directory: run directory; wandb writes to its subdirectory ``wandb``.
        config: configuration of the run.
        run_id: id of the run to continue; None starts a new one.

    Attributes:
        run_id: id with which the run can be continued.
    """

    name = "log.wandb"

    def __init__(self, project: str, directory: Path, config: Mapping[str, Any], run_id: str | None) -> None:
        self._wandb = _import_library("wandb")
        self._run = self._wandb.init(
            project=project,
            name=directory.name,
            dir=str(directory),
            config=dict(config),
            id=run_id,
            resume="allow" if run_id else None,
        )
        self.run_id: str = self._run.id
        # wandb's own step cannot decrease, but the step of a run that resumes from its last checkpoint does.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics over "step"."""
        self._run.log({"step": step, **metrics})

    def histogram(self, step: int, name: str, values: Float32[np.ndarray, " n"]) -> None:
        """Log a histogram with 64 bins."""
        self._run.log({"step": step, name: self._wandb.Histogram(values)})

    def close(self, *, failed: bool) -> None:
        """Wait for the upload."""
        self._run.finish(exit_code=int(failed))


class MLflowLogger:
    """Logs parameters, metrics and ``config.yaml`` to MLflow.

    Args:
        uri: tracking server or store.
        experiment: experiment name; created if it does not exist.
        directory: run directory; its name is the name of the run.
        config: configuration of the run; values of up to 500 characters become parameters, named by dotted keys.
        run_id: id of the run to continue; None starts a new one.

    Attributes:
        run_id: id with which the run can be continued.
    """

    name = "log.mlflow"

    def __init__(
        self, uri: str, experiment: str, directory: Path, config: Mapping[str, Any], run_id: str | None
    ) -> None:
        self._mlflow = _import_library("mlflow")
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        if run_id is None:
            found = self._client.get_experiment_by_name(experiment)
            experiment_id = self._client.create_experiment(experiment) if found is None else found.experiment_id
            run_id = str(self._client.create_run(experiment_id, run_name=directory.name).info.run_id)
            self.run_id: str = run_id
            self._log_parameters(config)
        else:
            self.run_id = run_id
            self._client.update_run(run_id, status="RUNNING")
        if (directory / "config.yaml").is_file():
            self._client.log_artifact(run_id, str(directory / "config.yaml"))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics."""
        now = int(1000 * time.time())
        entities = [self._mlflow.entities.Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=entities)

    def histogram(self, step: int, name: str, values: Float32[np.ndarray, " n"]) -> None:
        """Discard the values: MLflow has no histograms, and the metrics include percentiles."""

    def close(self, *, failed: bool) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")

    def _log_parameters(self, config: Mapping[str, Any]) -> None:
        entries = [(key, str(value)) for key, value in _dotted_items(config) if len(str(value)) <= _MLFLOW_MAX_VALUE]
        params = [self._mlflow.entities.Param(key, value) for key, value in entries]
        for start in range(0, len(params), _MLFLOW_BATCH):
            self._client.log_batch(self.run_id, params=params[start : start + _MLFLOW_BATCH])


def _dotted_items(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted_items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _import_library(name: str) -> Any:
    return import_extra(name, extra=name, needed_by=f"log.{name}", instead=f"leave log.{name} null")


def check_loggers(log: LogConfig) -> None:
    """Check that the libraries of the enabled loggers are installed.

    Raises:
        ModuleNotFoundError: one is missing; the message has the install command.
    """
    for name in ("wandb", "mlflow"):
        if getattr(log, name) is not None:
            _import_library(name)


def open_loggers(log: LogConfig, run: RunDir, config: Mapping[str, Any], *, step: int) -> list[MetricLogger]:
    """Open the enabled loggers; wandb and MLflow continue the runs recorded in ``loggers.json``.

    Args:
        log: enabled loggers.
        run: the run directory, which must exist.
        config: the whole configuration, to be logged.
        step: steps of the state that training starts from.
    """
    loggers: list[MetricLogger] = []
    if log.tensorboard:
        loggers.append(TensorBoardLogger(run.tensorboard, step=step))
    run_ids: dict[str, str] = read_json_mapping(run.loggers) if run.loggers.is_file() else {}
    if log.wandb is not None:
        wandb = WandbLogger(log.wandb, run.path, config, run_ids.get("wandb"))
        run_ids["wandb"] = wandb.run_id
        loggers.append(wandb)
    if log.mlflow is not None:
        mlflow = MLflowLogger(log.mlflow, log.mlflow_experiment, run.path, config, run_ids.get("mlflow"))
        run_ids["mlflow"] = mlflow.run_id
        loggers.append(mlflow)
    if run_ids:
        write_text(run.loggers, json.dumps(run_ids, indent=2) + "\n")
    return loggers


def format_epoch(metrics: Mapping[str, float]) -> str:
    """Return the metrics of an epoch in one line for the console."""
    seconds = sum(value for name, value in metrics.items() if name.startswith("epoch_seconds/"))
    accuracy = (f"{name.replace('/', ' ')} {100 * value:.1f} %" for name, value in metrics.items() if "top1/" in name)
    return "  ".join([f"loss {metrics['mean_loss/total']:.4g}", *accuracy, f"{seconds:.1f} s"])


class ThroughputMeter:
    """Measures time per step, throughput and peak memory between two lines of the log."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset()

    def _reset(self) -> None:
        self._steps = self._clips = 0
        self._data_seconds = self._compute_seconds = 0.0

    def update(self, clips: int, *, data_seconds: float, compute_seconds: float) -> None:
        """Add a step with the number of clips over all ranks, the time waiting for data, and the compute time."""
        self._steps += 1
        self._clips += clips
        self._data_seconds += data_seconds
        self._compute_seconds += compute_seconds

    def compute(self) -> dict[str, float]:
        """Return the metrics since the previous call, after at least one step, and reset the meter."""
        metrics = {
            "seconds/step": self._compute_seconds / self._steps,
            "seconds/data": self._data_seconds / self._steps,
            "clips_per_second": self._clips / (self._compute_seconds + self._data_seconds),
            "memory_gib/process": peak_memory_bytes() / _GIB,
        }
        device_bytes = peak_device_memory_bytes(self._device)
        if device_bytes is not None:
            metrics["memory_gib/device"] = device_bytes / _GIB
        self._reset()
        return metrics
