"""Run directories and crash-safe checkpoints: a new checkpoint is written completely before it replaces the old one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, ClassVar, Literal

import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch import Tensor
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from art.data.files import atomic_write
from art.model import previous_directory, recover
from art.train.config import Config, ConfigError, config_from_dict, save_config, to_dict
from art.train.distributed import DistContext

#: File of a checkpoint with the training state other than tensors, next to ``config.json`` and ``model.safetensors``.
TRAINING_STATE = "training_state.pt"
#: Directory of a checkpoint with the tensors of the training state, written by all ranks.
TENSORS = "training_state"
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

_SINGLE = DistContext(torch.device("cpu"))
_VISIBILITY_TIMEOUT = 10.0  # seconds


class CheckpointError(ValueError):
    """A directory without a valid checkpoint."""


class RunExists(FileExistsError):
    """The run directory already contains a run, and neither resume nor overwrite was requested."""


class RunDir:
    """Paths of a run: ``config.yaml``, ``classes.txt``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/last`` and
    ``best``, ``evaluation.json``, ``predictions.npz``, ``report.html``, and if enabled ``loggers.json``, ``wandb/``,
    ``trace/``, and ``splits.csv`` if a split was made."""

    _CONTENTS = (
        "config.yaml", "classes.txt", "splits.csv", "metrics.jsonl", "tensorboard", "checkpoints", "evaluation.json",
        "predictions.npz", "report.html", "loggers.json", "observers.json", "wandb", "trace",
    )  # fmt: skip

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.classes = self.path / "classes.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        former = self.path / "observers.json"  # the name in runs of earlier versions
        self.loggers = former if former.is_file() else self.path / "loggers.json"
        self.trace = self.path / "trace"
        self.last = self.path / "checkpoints" / "last"
        self.best = self.path / "checkpoints" / "best"
        self.evaluation = self.path / "evaluation.json"
        self.predictions = self.path / "predictions.npz"

    def exists(self) -> bool:
        """Return whether a run was started here."""
        return any((self.path / name).exists() for name in self._CONTENTS)

    def has_checkpoint(self) -> bool:
        """Return whether there is a training state to resume from."""
        recover(self.last)
        return (self.last / TRAINING_STATE).is_file()

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
        saved = config_from_dict(dict(yaml.safe_load(self.config.read_text(encoding="utf-8"))), str(self.config))
        changed = differing_keys(to_dict(saved), to_dict(config))
        if config.optim.schedule == "step":  # learning rates so far do not depend on the number of epochs
            changed.pop("optim.epochs", None)
        if changed:
            listed = ", ".join(f"{key} (was {was!r}, is {now!r})" for key, (was, now) in list(changed.items())[:5])
            raise ConfigError(
                f"{self.path}: cannot resume with a different configuration: {listed}. Use the former values, "
                "or start another run with output=..."
            )

    def begin(self, config: Config, class_names: tuple[str, ...], *, resume: bool) -> None:
        """Remove an earlier run (unless ``resume``) and write the configuration and the classes."""
        if not resume:
            for name in self._CONTENTS:
                path = self.path / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        atomic_write(self.config, lambda path: save_config(config, path))  # first: its presence marks a started run
        atomic_write(self.classes, lambda path: path.write_text("".join(f"{name}\n" for name in class_names), "utf-8"))

    def history(self) -> list[dict[str, Any]]:
        """Return the records of ``metrics.jsonl``, without a last line that a crash truncated."""
        return read_history(self.metrics)


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl`` file, without a last line that a crash truncated.

    Raises:
        ValueError: a line other than the last is not valid JSON.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
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
        self, directory: Path, dist_ctx: DistContext = _SINGLE, *, keep: int = 1, asynchronous: bool = False
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
                write_model(incoming)
                torch.save(dict(values), incoming / TRAINING_STATE)
                _replace(self._directory, incoming, self._keep)

        def complete_later(staged: Future[Any]) -> None:
            with _convert_errors(OSError, f"{self._directory}: the checkpoint could not be written"):
                staged.result()  # on rank 0, when all ranks have written
            complete()

        with _convert_errors(OSError, f"{self._directory}: the checkpoint could not be written"):
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


def load_training_state(directory: Path) -> dict[str, Any]:
    """Load the ``values`` of :meth:`CheckpointWriter.save` to the CPU.

    Raises:
        CheckpointError: the directory has no training state, or it cannot be read.
    """
    path = directory / TRAINING_STATE
    if not path.is_file():
        raise CheckpointError(f"{directory}: no {TRAINING_STATE}, so there is nothing to resume; omit --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read as a training state ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: contains a {type(state).__name__}, expected a dict of the training state")
    return state


def saved_tensors(directory: Path) -> dict[str, torch.Size]:
    """Return the names and shapes of the tensors of a checkpoint's training state.

    Raises:
        CheckpointError: they cannot be read.
    """
    entries = _Reader(directory / TENSORS).read_metadata().state_dict_metadata
    return {name: entry.size for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def load_tensors(directory: Path, tensors: Mapping[str, Tensor], dist_ctx: DistContext = _SINGLE) -> None:
    """Load saved tensors into ``tensors``, in place, with any sharding. A collective operation.

    Raises:
        CheckpointError: a tensor is missing, has a different shape, or cannot be read.
    """
    with _convert_errors(CheckpointError, f"{directory / TENSORS}: cannot be read", (RuntimeError, KeyError, OSError)):
        dcp.load(
            dict(tensors),
            storage_reader=_Reader(directory / TENSORS),
            process_group=dist_ctx.control,
            no_dist=not dist_ctx.is_distributed,
        )


class _Reader(dcp.FileSystemReader):
    """Reads saved tensors without executing code in the file: PyTorch unpickles the metadata without restrictions."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            metadata = _MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
        except Exception as error:
            raise CheckpointError(f"{path}: cannot be read as tensors of a training state ({error})") from error
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{path}: contains a {type(metadata).__name__}, expected checkpoint metadata")
        if metadata.storage_meta is None:
            metadata.storage_meta = dcp_metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Creates only the types that checkpoint metadata consists of."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("torch", "Size"): torch.Size,
        ("collections", "OrderedDict"): OrderedDict,
        ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
        **{(f"pathlib{part}", f"{kind}Path"): PurePath for part in ("", "._local") for kind in ("Posix", "Windows")},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED:
            return self._ALLOWED[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == dcp_metadata.__name__ and isinstance(found := getattr(dcp_metadata, name, None), type):
            return found
        if (module, name) == ("torch.distributed.checkpoint.filesystem", "_StorageInfo"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in checkpoint metadata")


@contextmanager
def _convert_errors(to: type[Exception], message: str, others: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Convert PyTorch's CheckpointException (a BaseException) and ``others``, and hide a warning without a group."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise to(f"{message} (rank {rank}: {cause})") from error
    except others as error:
        raise to(f"{message} ({error})") from error


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
