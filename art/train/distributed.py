"""Process groups: the context of a rank, collective operations, and errors that end all ranks together."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from art.train.config import ConfigError
from art.train.runtime import resolve_device

T = TypeVar("T")

#: Store key of the first failure, for ranks that only notice that a connection was closed.
_FAILURE_KEY = "art/failure"
_FAILURE_TIMEOUT = 2.0  # seconds


class OtherRankError(RuntimeError):
    """Another rank failed; the message contains its rank and its error."""


class StepSync(NamedTuple):
    """State of all ranks after each has fetched its next item.

    Attributes:
        signal: a signal received by one of the ranks, 0 if none.
        has_item: whether any rank has an item.
    """

    signal: int
    has_item: bool


@dataclass(frozen=True)
class DistContext:
    """The rank of this process, and collective operations, which every rank must call in the same order.

    Attributes:
        device: device of this rank.
        rank: global rank.
        world_size: number of ranks.
        local_world_size: number of ranks on this machine.
        control: Gloo group for CPU tensors and objects; None for a single process.
        background: Gloo group for use in another thread; None for a single process.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    control: dist.ProcessGroup | None = None
    background: dist.ProcessGroup | None = None

    @property
    def is_distributed(self) -> bool:
        """Whether there is more than one rank."""
        return self.world_size > 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes logs, results and the model."""
        return self.rank == 0

    def all_reduce(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the sum over all ranks."""
        if not self.is_distributed:
            return values
        sums = values.clone()
        dist.all_reduce(sums)
        return sums

    def gather_objects(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def run_on_rank0(self, function: Callable[[], T]) -> T:
        """Call ``function`` on rank 0 and return its result on all ranks.

        Raises:
            OtherRankError: on the other ranks, if it raised on rank 0 (which raises the original error).
        """
        results: list[Any] = [None]
        with self.sync_errors():
            if self.is_main:
                results[0] = function()
        if self.is_distributed:
            dist.broadcast_object_list(results, src=0, group=self.control)
        value: T = results[0]
        return value

    @contextmanager
    def sync_errors(self) -> Iterator[None]:
        """End all ranks if the block raises on one of them. The block must not contain collective operations.

        Raises:
            OtherRankError: the block raised on another rank. (A rank with an error raises its own.)
        """
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        self._reduce_max(error)

    def next_item(self, items: Iterator[T], stop: Callable[[], int] = lambda: 0) -> tuple[T | None, StepSync]:
        """Fetch the next item on each rank and synchronize their states. An error on one rank ends all.

        Args:
            items: items of this rank.
            stop: returns the received signal, 0 if none. After a signal no item is fetched and errors are ignored.
        """
        item, error = None, None
        try:
            item = None if stop() else next(items, None)
        except Exception as raised:  # a decoding process that received the same signal exits in the middle of a batch
            error = None if stop() else raised
        signal, has_item = self._reduce_max(error, stop(), item is not None)
        return item, StepSync(signal, bool(has_item))

    def _reduce_max(self, error: Exception | None, *values: int) -> list[int]:
        """Return the maximum of each value over all ranks, or raise on each rank if any has an error.

        Uses gather and broadcast over rank 0, 2 (n - 1) messages: Gloo's all-reduce and all-gather send n (n - 1).
        """
        if not self.is_distributed:
            if error is not None:
                raise error
            return list(values)
        maxima = torch.tensor([error is not None, *values], dtype=torch.int64)
        rows = maxima.new_empty(self.world_size, len(maxima))
        dist.gather(maxima, list(rows) if self.is_main else None, dst=0, group=self.control)
        if self.is_main:
            maxima = rows.amax(0)
        dist.broadcast(maxima, src=0, group=self.control)
        if maxima[0]:
            messages = self.gather_objects(None if error is None else _format_failure(self.rank, error))
            if error is not None:
                raise error
            raise OtherRankError(next(message for message in messages if message is not None))
        return [int(value) for value in maxima[1:].tolist()]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of rank 0 to all ranks, in place."""
        if self.is_distributed:
            for tensor in tensors:
                target = tensor.detach()
                values = target.contiguous()
                dist.broadcast(values, src=0)
                target.copy_(values)

    def num_workers(self, requested: int) -> int:
        """Return the number of decoding processes: ``requested``, at most this rank's fraction of the CPU cores."""
        if not self.is_distributed:
            return requested
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(requested, max(1, cores // self.local_world_size))


def is_main_process() -> bool:
    """Return whether this process is rank 0 according to its launcher, or was started without one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def init_distributed(device: str, timeout: float) -> Iterator[DistContext]:
    """Join the process group of torchrun, or of any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    The group is destroyed at the end of the block. An existing process group is used and left as it is; without a
    launcher, the context is that of a single process.

    Args:
        device: device name of the configuration.
        timeout: seconds that a rank waits for the others.

    Raises:
        ConfigError: several ranks cannot share ``device``.
        OtherRankError: replaces the connection error of a rank when another rank has failed or does not respond.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    limit = timedelta(seconds=timeout)
    if dist.is_available() and dist.is_initialized():
        yield _context(device, limit)
    elif world_size == 1:
        yield DistContext(resolve_device(device))
    else:
        try:
            store = _init_process_group(device, limit)
        except (dist.DistError, TimeoutError) as error:
            details = " ".join(str(error).split())[:300]
            raise OtherRankError(
                f"the {world_size} ranks did not connect within parallel.timeout ({timeout:g} s): expected all of them "
                f"at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} ({details})"
            ) from error
        try:
            yield _context(device, limit)
        except Exception as error:  # the others fail when this rank exits, and read the cause from the store
            raise _explain_failure(store, error, timeout) from None
        dist.destroy_process_group()


def _init_process_group(device_name: str, timeout: timedelta) -> dist.Store:
    device = _rank_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _open_store(rank, world_size, timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # A prefix separates the group's keys, as in init_process_group when it creates the store itself.
    prefixed = dist.PrefixStore("default_pg", store)
    dist.init_process_group(backend, store=prefixed, rank=rank, world_size=world_size, timeout=timeout)
    return store


def _open_store(rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """Return the store of the torchrun agent, or the one that rank 0 opens at MASTER_ADDR."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        store, _, _ = next(iter(dist.rendezvous("env://", rank=rank, world_size=world_size, timeout=timeout)))
        return store
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent_store = dist.TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
    return dist.PrefixStore(f"art/{_unique_prefix(agent_store, rank, world_size, timeout)}", agent_store)


def _unique_prefix(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """Return a prefix shared by all ranks of this start and by no other start: the agent store survives restarts.

    The restart count of torchrun cannot be used: it differs between the node that lost a rank and the nodes whose ranks
    are restarted with it. Instead, each rank writes a random id and waits for a reply to that id; rank 0 replies with
    its own id until all ranks have confirmed.
    """
    own = uuid.uuid4().hex
    store.set(f"art/hello/{rank}", own)
    if rank != 0:
        store.wait([f"art/reply/{own}"], timeout)
        prefix = store.get(f"art/reply/{own}").decode()
        store.set(f"art/confirmed/{prefix}/{rank}", "")
        return prefix
    missing, replied = set(range(1, world_size)), set()
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise TimeoutError(f"ranks {sorted(missing)[:10]} of {world_size} did not connect within {timeout}")
        for other in sorted(missing):
            if store.check([f"art/confirmed/{own}/{other}"]):
                missing.remove(other)
            elif store.check([f"art/hello/{other}"]):
                other_id = store.get(f"art/hello/{other}").decode()  # may be stale, of a rank that exited
                if other_id not in replied:
                    store.set(f"art/reply/{other_id}", own)
                    replied.add(other_id)
        time.sleep(0.01)
    return own


def _context(device_name: str, timeout: timedelta) -> DistContext:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size == 1:
        return DistContext(resolve_device(device_name))
    control, background = (dist.new_group(backend="gloo", timeout=timeout) for _ in range(2))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = _rank_device(device_name)
    return DistContext(device, rank, world_size, local_world_size, control, background)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _rank_device(name: str) -> torch.device:
    """Return the device of this rank in distributed training."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"device: got {name!r} for several ranks, expected auto, cuda or cpu: with cuda each rank uses the GPU of "
            "its LOCAL_RANK"
        )
    device = resolve_device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if _local_rank() >= count:
        raise ConfigError(
            f"device: a rank has LOCAL_RANK {_local_rank()}, but torch sees {count} CUDA devices here; start at most "
            f"{count} ranks on this machine (torchrun --nproc-per-node {count})"
        )
    return torch.device("cuda", _local_rank())


def _explain_failure(store: dist.Store, error: Exception, timeout: float) -> Exception:
    """Publish ``error`` to the other ranks and return it. A connection error, which is a consequence, is replaced by
    the published cause, or by an error that names the ranks that do not respond."""
    rank = dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))
    world_size = int(os.environ["WORLD_SIZE"])
    answers: list[tuple[str | None, list[int]]] = []
    # In a thread: the store does not answer if the process or the machine that hosts it has stopped.
    thread = threading.Thread(target=lambda: answers.append(_exchange(store, rank, world_size, error)), daemon=True)
    thread.start()
    thread.join(_FAILURE_TIMEOUT + 1)
    if not is_connection_error(error):
        return error
    cause, silent = answers[0] if answers else (None, [0])  # rank 0 hosts the store, or is not known to respond
    if cause is not None:
        return OtherRankError(cause)
    details = " ".join(str(error).split())
    if "timed out" not in details.lower() and "timeout" not in details.lower():
        return OtherRankError(f"another rank ended without an error message (killed, or out of memory?): {details}")
    names = f"rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent[:10]))}" if silent else "another rank"
    return OtherRankError(
        f"{names} did not respond within parallel.timeout ({timeout:g} s): a process hangs or was stopped, or its "
        "machine cannot be reached; increase parallel.timeout if a step may take that long"
    )


def _exchange(store: dist.Store, rank: int, world_size: int, error: Exception) -> tuple[str | None, list[int]]:
    """Publish that this rank has failed. Returns the cause, if a rank has published one, and the silent ranks."""
    others = {other for other in range(world_size) if other != rank}
    with contextlib.suppress(Exception):  # the machine with the store may have failed too
        if not is_connection_error(error) and not store.check([_FAILURE_KEY]):
            store.set(_FAILURE_KEY, _format_failure(rank, error))
        store.set(f"{_FAILURE_KEY}/{rank}", "")
        deadline = time.monotonic() + _FAILURE_TIMEOUT
        # Also on the rank that hosts the store, so that the others can read it before the process ends.
        while others and time.monotonic() < deadline:
            others = {other for other in others if not store.check([f"{_FAILURE_KEY}/{other}"])}
            time.sleep(0.05)
        cause = store.get(_FAILURE_KEY).decode() if store.check([_FAILURE_KEY]) else None
        return cause, sorted(others)
    return None, []


def is_connection_error(error: BaseException) -> bool:
    """Return whether another process cannot be reached. Gloo has no exception type for it."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _format_failure(rank: int, error: Exception) -> str:
    return f"rank {rank} failed with {type(error).__name__}: {error}"
