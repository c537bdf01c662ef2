"""Parallel map over worker processes, which exit on request and together with their parent."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_sentinel
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_QUEUED = 4  # items queued per worker; queuing all of them could exhaust memory
_stop: Event | None = None
_slot: str | None = None


class Stopped(Exception):
    """The work was abandoned because :func:`stop_requested` returned True."""


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stop_requested() -> bool:
    """Return whether this worker should stop. Functions that run long check it from time to time."""
    return _stop is not None and _stop.is_set()


def worker_slot() -> str:
    """Return the element of ``slots`` that :func:`map_processes` assigned to this worker.

    Raises:
        RuntimeError: the worker has no slot.
    """
    if _slot is None:
        raise RuntimeError("worker_slot: no slot, expected to be called within map_processes(..., slots=...)")
    return _slot


def map_processes(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int, slots: Sequence[str] = ()
) -> Generator[tuple[_Item, _Result], None, None]:
    """Yield ``(item, function(item))`` for each item, in order of completion. Closing the generator stops the workers.

    Args:
        function: a module-level function. With one worker it is called in this process.
        items: its arguments.
        workers: number of processes.
        slots: a resource for each worker, such as a device, see :func:`worker_slot`; empty, or one per worker.

    Raises:
        RuntimeError: a worker terminated unexpectedly.
        Exception: any exception raised by ``function``; the workers are stopped first.
    """
    global _slot
    if slots and len(slots) != workers:
        raise ValueError(f"slots: got {len(slots)} for {workers} workers, expected one per worker")
    if workers == 1:
        _slot = slots[0] if slots else None
        for item in items:
            yield item, function(item)
        return
    # A forked copy of a process with threads, such as those of PyTorch, may hang.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    free_slots = context.SimpleQueue()
    for slot in slots:
        free_slots.put(slot)
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(stop, free_slots if slots else None)
    )
    pending: dict[Future[_Result], _Item] = {}
    remaining = iter(items)
    try:
        while True:
            for item in itertools.islice(remaining, workers * _QUEUED - len(pending)):
                pending[pool.submit(function, item)] = item
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process terminated unexpectedly (out of memory?). Its error message, if any, is above. A script "
            'must call this function below if __name__ == "__main__":, or with workers=1'
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(stop: Event, free_slots: SimpleQueue[str] | None) -> None:
    """Initialize a worker, which is stopped by the event, not by Ctrl-C, and exits with its parent."""
    global _stop, _slot
    _stop = stop
    _slot = None if free_slots is None else free_slots.get()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()


def exit_with_parent() -> None:
    """Exit this process as soon as the process that started it has ended, for any reason."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_sentinel([parent.sentinel])
        os._exit(1)
