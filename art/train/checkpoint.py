"""Checkpoints that are whole or absent: a new one is written beside the old one, by all ranks, and takes its place."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from art.train.distributed import Ranks

#: The file of a checkpoint with the numbers of a training, beside ``config.json`` and ``model.safetensors``.
TRAINING_STATE = "training_state.pt"
#: The folder with its tensors, of which every rank wrote some.
TENSORS = "training_state"

_ALONE = Ranks(torch.device("cpu"))


class CheckpointError(ValueError):
    """A folder that does not hold the checkpoint it should."""


class CheckpointWriter:
    """Writes ``folder`` again and again so that a crash at any moment leaves the former checkpoint, or the new one.

    Several ranks write into one folder, which must be on a file system that all of them see.

    Args:
        folder: of the last checkpoint.
        ranks: who writes.
        keep: how many are kept: ``folder`` and, beside it, those before as ``step-<number>``.
        asynchronous: write in a thread, from a copy. What fails there is raised by :meth:`wait`.
    """

    def __init__(self, folder: Path, ranks: Ranks = _ALONE, *, keep: int = 1, asynchronous: bool = False) -> None:
        self.folder, self._ranks, self._keep, self.asynchronous = folder, ranks, keep, asynchronous
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self, write_model: Callable[[Path], None], values: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> None:
        """Writes one checkpoint; all ranks call this.

        Args:
            write_model: puts the model into a folder; called on rank 0, perhaps in a thread.
            values: of ``training_state.pt``: plain containers and tensors, because it is read with
                ``weights_only=True``, and "step", the number of the checkpoint. Rank 0's are written.
            tensors: of ``training_state``, by name: those that several ranks have are written once, of a DTensor each
                rank writes its shard.
        """
        self.wait()
        incoming = _incoming(self.folder)
        self._ranks.on_main(lambda: _begin(self.folder, incoming))

        target = dcp.FileSystemWriter(incoming / TENSORS)
        how: dict[str, Any] = {"storage_writer": target, "no_dist": not self._ranks.several}

        def complete() -> None:
            if self._ranks.is_main:
                write_model(incoming)
                torch.save(dict(values), incoming / TRAINING_STATE)
                _replace(self.folder, incoming, self._keep)

        def complete_later(staged: Future[Any]) -> None:
            with _as_os_error(self.folder):
                staged.result()  # on rank 0 when all ranks have written
            complete()

        with _as_os_error(self.folder), _without_warning():
            if self.asynchronous:
                staged = dcp.async_save(dict(tensors), process_group=self._ranks.background, **how)
                assert isinstance(staged, Future)
                self._pending = self._thread.submit(complete_later, staged)
                return
            dcp.save(dict(tensors), process_group=self._ranks.control, **how)
        with self._ranks.together():
            complete()

    def wait(self) -> None:
        """Waits for what is being written in the background on all ranks.

        Raises:
            OSError: it could not be written; the former checkpoint is as it was.
        """
        if not self.asynchronous:
            return
        with self._ranks.together():
            pending, self._pending = self._pending, None
            if pending is not None:
                pending.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()  # what is being written ends first


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copies a checkpoint, with the same guarantee for ``target``."""
    incoming = _incoming(target)
    recover(target)
    shutil.rmtree(incoming, ignore_errors=True)
    shutil.copytree(source, incoming)
    _replace(target, incoming, keep=None)


def load_training_state(folder: Path) -> dict[str, Any]:
    """Reads what :meth:`CheckpointWriter.save` got as ``values``, onto the CPU.

    Raises:
        CheckpointError: if there is no training state in the folder, or it cannot be read.
    """
    path = folder / TRAINING_STATE
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no {TRAINING_STATE} there, so there is nothing to resume; train without --resume"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read as a training state ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, expected a dict of the training state")
    return state


def saved_tensors(folder: Path) -> dict[str, torch.Size]:
    """Name and shape of every tensor that :meth:`CheckpointWriter.save` got as ``tensors``.

    Raises:
        CheckpointError: they cannot be read.
    """
    entries = _Reader(folder / TENSORS).read_metadata().state_dict_metadata
    return {name: entry.size for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def load_tensors(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks = _ALONE) -> None:
    """Reads saved tensors into ``tensors``, in place; all ranks call this. Shards may be others than they were.

    Raises:
        CheckpointError: one is not there, has another shape, or cannot be read.
    """
    with _as_checkpoint_error(folder / TENSORS), _without_warning():
        dcp.load(
            dict(tensors),
            storage_reader=_Reader(folder / TENSORS),
            process_group=ranks.control,
            no_dist=not ranks.several,
        )


def recover(folder: Path) -> None:
    """Puts the former checkpoint back if a crash came between the two renames of a save."""
    previous = _previous(folder)
    if previous.exists() and not folder.exists():
        previous.rename(folder)


class _Reader(dcp.FileSystemReader):
    """Reads a checkpoint of tensors and executes nothing that is in it: PyTorch unpickles its table of contents."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            metadata = _TableOfContents(io.BytesIO(path.read_bytes())).load()
        except Exception as error:
            raise CheckpointError(f"{path}: cannot be read as tensors of a training state ({error})") from error
        if not isinstance(metadata, Metadata):
            raise CheckpointError(
                f"{path}: holds a {type(metadata).__name__}, expected the tensors of a training state"
            )
        if metadata.storage_meta is None:
            metadata.storage_meta = dcp_metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _TableOfContents(pickle.Unpickler):
    """Makes only what such a table is made of."""

    _PLAIN: ClassVar[dict[tuple[str, str], Any]] = {
        ("torch", "Size"): torch.Size,
        ("collections", "OrderedDict"): OrderedDict,
        ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
        **{(f"pathlib{part}", f"{kind}Path"): PurePath for part in ("", "._local") for kind in ("Posix", "Windows")},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._PLAIN:
            return self._PLAIN[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == dcp_metadata.__name__ and isinstance(found := getattr(dcp_metadata, name, None), type):
            return found
        if (module, name) == ("torch.distributed.checkpoint.filesystem", "_StorageInfo"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which tensors do not need")


@contextmanager
def _as_checkpoint_error(folder: Path) -> Iterator[None]:
    """What PyTorch raises in reading, which is no Exception, as one error of ours."""
    try:
        yield
    except CheckpointException as error:
        raise CheckpointError(f"{folder}: cannot be read ({_first_failure(error)})") from error
    except (RuntimeError, KeyError, OSError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({error})") from error


@contextmanager
def _as_os_error(folder: Path) -> Iterator[None]:
    """What PyTorch raises in writing likewise."""
    try:
        yield
    except CheckpointException as error:
        raise OSError(f"{folder}: the checkpoint could not be written ({_first_failure(error)})") from error


def _first_failure(error: CheckpointException) -> str:
    rank, (cause, _) = next(iter(error.failures.items()))
    return f"rank {rank}: {cause}"


@contextmanager
def _without_warning() -> Iterator[None]:
    """PyTorch warns that one process is no group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _begin(folder: Path, incoming: Path) -> None:
    recover(folder)
    shutil.rmtree(incoming, ignore_errors=True)
    (incoming / TENSORS).mkdir(parents=True)


def _incoming(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.incoming")


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _replace(folder: Path, incoming: Path, keep: int | None) -> None:
    for path in [*incoming.rglob("*"), incoming]:
        _flush(path)
    previous = _previous(folder)
    _retire(previous, keep)  # where a crash came just before that
    if folder.exists():  # a folder that is not empty cannot be renamed over; recover() covers the moment in between
        folder.rename(previous)
    incoming.rename(folder)
    _flush(folder.parent)
    _retire(previous, keep)


def _retire(previous: Path, keep: int | None) -> None:
    """Removes a former checkpoint, or gives it its number and removes the ones that are then too many. None: those with
    numbers are another's."""
    if previous.exists() and keep is not None and keep > 1:
        with contextlib.suppress(CheckpointError):  # of a removal that a crash cut short
            kept = previous.with_name(f"step-{load_training_state(previous)['step']:08d}")
            _remove(kept)
            previous.rename(kept)
    shutil.rmtree(previous, ignore_errors=True)
    if keep is None:
        return
    numbered = sorted(previous.parent.glob("step-*"))
    for folder in numbered[: max(0, len(numbered) - (keep - 1))]:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Removes a folder that, half removed, would look like a checkpoint."""
    if folder.exists():
        removed = folder.with_name(".removed")
        shutil.rmtree(removed, ignore_errors=True)
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _flush(path: Path) -> None:
    """Waits until a file's (or, where the system allows it, a folder's) content is on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
