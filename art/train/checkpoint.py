"""Run directories and crash-safe checkpoints: a new checkpoint is written completely before it replaces the old one."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor

from art.data.files import atomic_write, naming_file, write_text
from art.model import previous_directory, recover
from art.terminal import list_names, printable
from art.train.checkpoint_io import (
    SINGLE,
    TENSORS,
    TRAINING_STATE,
    CheckpointError,
    DamagedCheckpoint,
    convert_errors,
    load_tensors,
    load_training_state,
    saved_tensors,
    verify_checkpoint,
    write_checksums,
)
from art.train.config import Config, ConfigError, load_saved_config, save_config, to_dict
from art.train.data_record import check_unchanged, format_record, read_record
from art.train.distributed import DistContext

__all__ = [
    "RESUMABLE_KEYS", "TENSORS", "TRAINING_STATE", "CheckpointError", "CheckpointWriter", "DamagedCheckpoint",
    "Resume", "RunDir", "RunExists", "copy_checkpoint", "differing_keys", "load_tensors", "load_training_state",
    "read_history", "saved_tensors",
]  # fmt: skip

_log = logging.getLogger(__name__)

#: Keys that may differ between a run and its continuation: they do not change what a step computes, except for rounding
#: (and, for ``optim.accumulate``, the batches that batch norm sees, as with a different number of devices).
RESUMABLE_KEYS = (
    "output", "device", "eval_every", "log_every", "report", "data.root", "data.workers", "data.cache", "compile",
    "optim.accumulate",
    "log.tensorboard", "log.wandb", "log.mlflow", "log.mlflow_experiment", "log.gradient_norms",
    "log.histograms_every", "log.profile",
    "parallel.strategy", "parallel.fsdp_block", "parallel.unused_parameters", "parallel.timeout",
    "checkpoints.every_steps", "checkpoints.keep", "checkpoints.asynchronous",
)  # fmt: skip

#: Whether to continue a run; "auto": if there is one.
Resume = bool | Literal["auto"]

_VISIBILITY_TIMEOUT = 10.0  # seconds
#: Errors that safetensors and torch raise if a file cannot be written.
_WRITE_ERRORS = (SafetensorError, RuntimeError)


class RunExists(FileExistsError):
    """The run directory already contains a run, and neither resume nor overwrite was requested."""


class RunDir:
    """Paths of a run: ``config.yaml``, ``classes.txt``, ``data.json``, ``metrics.jsonl``, ``tensorboard/``,
    ``checkpoints/last`` and ``best``, ``evaluation.json``, ``predictions.npz``, ``report.html``, and if enabled
    ``loggers.json``, ``wandb/``, ``trace/``, and ``splits.csv`` if a split was generated."""

    _CONTENTS = (
        "config.yaml", "classes.txt", "splits.csv", "data.json", "metrics.jsonl", "tensorboard", "checkpoints",
        "evaluation.json",
        "predictions.npz", "report.html", "loggers.json", "observers.json", "wandb", "trace",
    )  # fmt: skip

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.classes = self.path / "classes.txt"
        self.data = self.path / "data.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        former = self.path / "observers.json"  # the name in runs of earlier versions
        self.loggers = former if former.is_file() else self.path / "loggers.json"
        self.trace = self.path / "trace"
        self.last = self.path / "checkpoints" / "last"
        self.best = self.path / "checkpoints" / "best"
        self.evaluation = self.path / "evaluation.json"

    def exists(self) -> bool:
        """Return whether a run was started here."""
        return any((self.path / name).exists() for name in self._CONTENTS)

    def has_checkpoint(self) -> bool:
        """Return whether ``checkpoints/last`` has a training state."""
        return (self.last / TRAINING_STATE).is_file()

    def find_checkpoint(self) -> tuple[Path | None, dict[Path, DamagedCheckpoint]]:
        """Return the newest intact checkpoint to resume from, None if none was saved, and newer ones that are damaged.

        Changes nothing: :meth:`adopt` makes it ``checkpoints/last``.

        Raises:
            CheckpointError: all of them are damaged, the last one has no training state, or they have been removed.
        """
        numbered = sorted(self.last.parent.glob("step-*"), reverse=True)
        damaged: dict[Path, DamagedCheckpoint] = {}
        for directory in (self.last, previous_directory(self.last), *numbered):
            if directory.is_dir():
                try:
                    verify_checkpoint(directory)
                    return directory, damaged
                except DamagedCheckpoint as error:
                    damaged[directory] = error
        if damaged:
            best = f"; to continue from {self.best}, copy it to {self.last}" if self.best.is_dir() else ""
            raise CheckpointError(
                f"{next(iter(damaged.values()))}. There is no older checkpoint to resume from (checkpoints.keep saves "
                f"several){best}, or start over with --overwrite"
            )
        history = self.history()
        if self.best.is_dir() or self.evaluation.is_file() or any(line.get("event") == "epoch" for line in history):
            raise CheckpointError(
                f"{self.last}: there is no checkpoint to resume from, although the run has saved some (see "
                f"{self.metrics.name}); restore {self.last.parent}, or start over with --overwrite"
            )
        if history:
            _log.warning(f"{self.path}: the run was stopped before it saved a checkpoint; starting from step 1")
        return None, {}

    def adopt(self, checkpoint: Path, damaged: Mapping[Path, DamagedCheckpoint]) -> None:
        """Make the result of :meth:`find_checkpoint` the last checkpoint, and keep damaged ones as ``damaged-<name>``.

        A crash in between is harmless: the checkpoint is found again.
        """
        for directory, error in damaged.items():
            kept = directory.with_name(f"damaged-{directory.name.lstrip('.')}")
            _remove(kept)
            directory.rename(kept)
            _log.warning(f"{error}. Resuming from {checkpoint} instead; the damaged checkpoint is kept as {kept}")
        if checkpoint != self.last:
            checkpoint.rename(self.last)

    def check(self, config: Config, *, resume: Resume, overwrite: bool) -> bool:
        """Check whether this run may start here. Changes nothing.

        Returns:
            Whether it resumes; "auto" resumes if a run was started.

        Raises:
            RunExists: a run exists, and neither ``resume`` nor ``overwrite`` is set.
            FileNotFoundError: ``resume``, but there is no run.
            ConfigError: both are set, or ``resume`` with a different configuration; the message names the keys.
        """
        if resume and overwrite:
            raise ConfigError("resume and overwrite: got both, expected at most one")
        if resume == "auto":
            resume = self.config.is_file()
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output: {self.path} is a file, expected a directory or a path that does not exist")
        if resume:
            if not self.config.is_file():
                raise FileNotFoundError(f"{self.path}: no run to resume (no config.yaml); omit --resume")
            self._check_same(config)
        elif self.exists() and not overwrite:
            raise RunExists(
                f"{self.path}: already contains a run; continue it with --resume, replace it with --overwrite, "
                "or choose another directory with output=..."
            )
        return bool(resume)

    def check_visible(self) -> None:
        """Check that this rank sees what :meth:`begin` wrote on rank 0; a network file system may need a moment.

        Raises:
            ConfigError: it does not.
        """
        deadline = time.monotonic() + _VISIBILITY_TIMEOUT
        while not self.config.is_file():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"output: rank 0 wrote {self.config}, but another rank does not see it; expected a directory on a "
                    "file system shared by all machines, because every rank writes to the checkpoints"
                )
            time.sleep(0.1)

    def _check_same(self, config: Config) -> None:
        saved = load_saved_config(self.config)
        changed = differing_keys(to_dict(saved), to_dict(config))
        if config.optim.schedule == "step":  # learning rates so far do not depend on the number of epochs
            changed.pop("optim.epochs", None)
        if changed:
            listed = list_names([f"{key} (was {was!r}, is {now!r})" for key, (was, now) in changed.items()], most=5)
            raise ConfigError(
                f"{self.path}: cannot resume with a different configuration: {listed}. Use the former values, "
                "or start another run with output=..."
            )

    def check_data(self, record: Mapping[str, Any], *, allow_changes: bool) -> None:
        """Compare the data of a run to resume with the result of :func:`art.train.data_record.record_data`.

        Raises:
            DataChanged: they differ, unless ``allow_changes``, which logs the difference.
            ValueError: ``data.json`` cannot be read, unless ``allow_changes``.
        """
        if self.data.is_file():  # runs of earlier versions do not have it
            try:
                check_unchanged(read_record(self.data), record, str(self.data))
            except ValueError as error:
                if not allow_changes:
                    raise
                problem = getattr(error, "difference", error)
                _log.warning(f"{problem} Continuing with the data as it is now (--allow-changed-data)")

    def begin(
        self, config: Config, class_names: tuple[str, ...], *, resume: bool, record: Mapping[str, Any] | None = None
    ) -> None:
        """Remove an earlier run (unless ``resume``) and write the configuration, the classes and the data record."""
        if not resume:
            for name in self._CONTENTS:
                path = self.path / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        atomic_write(self.config, lambda path: save_config(config, path))  # first: its presence marks a started run
        write_text(self.classes, "".join(f"{printable(name)}\n" for name in class_names))
        if record is not None:
            write_text(self.data, format_record(record))

    def history(self) -> list[dict[str, Any]]:
        """Return the records of ``metrics.jsonl``, without a last line that a crash truncated."""
        return read_history(self.metrics)


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl`` file, without a last line that a crash truncated.

    Raises:
        ValueError: the file is not UTF-8 text, or a line other than the last is not valid JSON.
    """
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error}); the file is damaged") from error
    history = []
    for number, line in enumerate(lines, start=1):
        try:
            history.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}: line {number} is not valid JSON ({error})") from error
    return history


def differing_keys(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys that differ and change the results of a run, with both values."""
    one, other = _flatten(saved), _flatten(current)
    keys = sorted({*one, *other} - set(RESUMABLE_KEYS))
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


class CheckpointWriter:
    """Writes ``directory`` repeatedly, so that after a crash it is the previous or the new checkpoint.

    All ranks write to one directory, which must be on a shared file system.

    Args:
        directory: directory of the last checkpoint.
        dist_ctx: the ranks that write.
        keep: number of checkpoints to keep: ``directory``, and earlier ones next to it as ``step-<number>``.
        asynchronous: write a copy in a thread; errors are raised by :meth:`wait`.
    """

    def __init__(
        self, directory: Path, dist_ctx: DistContext = SINGLE, *, keep: int = 1, asynchronous: bool = False
    ) -> None:
        self._directory, self._dist_ctx, self._keep, self.asynchronous = directory, dist_ctx, keep, asynchronous
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self, write_model: Callable[[Path], None], values: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> None:
        """Write a checkpoint. A collective operation.

        Args:
            write_model: writes the model to a directory; called on rank 0, possibly in a thread.
            values: contents of ``training_state.pt`` (rank 0's): containers and tensors, because it is loaded with
                ``weights_only=True``, with "step", the number of the checkpoint.
            tensors: contents of ``training_state`` by name. Replicated tensors are written once, shards of a DTensor by
                their ranks.
        """
        self.wait()
        incoming = _incoming(self._directory)
        self._dist_ctx.run_on_rank0(lambda: _prepare(self._directory, incoming))
        storage = dcp.FileSystemWriter(incoming / TENSORS)
        options: dict[str, Any] = {"storage_writer": storage, "no_dist": not self._dist_ctx.is_distributed}

        def complete() -> None:
            if self._dist_ctx.is_main:
                with naming_file(incoming), convert_errors(OSError, f"{incoming}: cannot be written", _WRITE_ERRORS):
                    write_model(incoming)
                    torch.save(dict(values), incoming / TRAINING_STATE)
                    write_checksums(incoming)
                _replace(self._directory, incoming, self._keep)

        def complete_later(staged: Future[Any]) -> None:
            with convert_errors(OSError, f"{self._directory}: the checkpoint could not be written"):
                staged.result()  # on rank 0, when all ranks have written
            complete()

        with convert_errors(OSError, f"{self._directory}: the checkpoint could not be written"):
            if self.asynchronous:
                staged = dcp.async_save(dict(tensors), process_group=self._dist_ctx.background, **options)
                assert isinstance(staged, Future)
                self._pending = self._thread.submit(complete_later, staged)
                return
            dcp.save(dict(tensors), process_group=self._dist_ctx.control, **options)
        with self._dist_ctx.sync_errors():
            complete()

    def wait(self) -> None:
        """Wait until all ranks have finished writing in the background.

        Raises:
            OSError: the checkpoint could not be written; the previous one is unchanged.
        """
        if not self.asynchronous:
            return
        with self._dist_ctx.sync_errors():
            pending, self._pending = self._pending, None
            if pending is not None:
                pending.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()  # finishes a write in progress


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint with the same guarantee for ``target``."""
    incoming = _incoming(target)
    _prepare(target, incoming)
    shutil.copytree(source, incoming, dirs_exist_ok=True)
    _replace(target, incoming, keep=None)


def _prepare(directory: Path, incoming: Path) -> None:
    recover(directory)
    shutil.rmtree(incoming, ignore_errors=True)
    (incoming / TENSORS).mkdir(parents=True)


def _incoming(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.incoming")


def _replace(directory: Path, incoming: Path, keep: int | None) -> None:
    for path in [*incoming.rglob("*"), incoming]:
        _fsync(path)
    previous = previous_directory(directory)
    _retire(previous, keep)  # left by a crash just before this call
    if directory.exists():  # rename cannot replace a non-empty directory; recover() handles a crash in between
        directory.rename(previous)
    incoming.rename(directory)
    _fsync(directory.parent)
    _retire(previous, keep)


def _retire(previous: Path, keep: int | None) -> None:
    """Remove a previous checkpoint, or rename it to its step and remove the oldest ones.

    ``keep=None`` does not touch numbered checkpoints, which belong to another writer.
    """
    if previous.exists() and keep is not None and keep > 1:
        with contextlib.suppress(CheckpointError):  # incomplete after a crash during removal
            kept = previous.with_name(f"step-{load_training_state(previous)['step']:08d}")
            _remove(kept)
            previous.rename(kept)
    shutil.rmtree(previous, ignore_errors=True)
    if keep is None:
        return
    numbered = sorted(previous.parent.glob("step-*"))
    for path in numbered[: max(0, len(numbered) - (keep - 1))]:
        _remove(path)


def _remove(directory: Path) -> None:
    """Remove a directory that would look like a checkpoint if removed partially."""
    if directory.exists():
        removed = directory.with_name(".removed")
        shutil.rmtree(removed, ignore_errors=True)
        directory.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _fsync(path: Path) -> None:
    """Flush a file, or a directory if the system supports it, to disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
