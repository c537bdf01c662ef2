"""The same function for many items, in several processes that end when they are told to, and with their parent."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_AHEAD = 4  # items that wait for each process: a list of all of them would fill the memory
_stop: Event | None = None
_slot: str | None = None


class Stopped(Exception):
    """The work was given up because :func:`stopping` said so."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stopping() -> bool:
    """Whether the work of this process is no longer wanted. A function that takes long looks from time to time."""
    return _stop is not None and _stop.is_set()


def slot() -> str:
    """Which of the ``slots`` of :func:`in_processes` this process has.

    Raises:
        RuntimeError: it was given none.
    """
    if _slot is None:
        raise RuntimeError("slot: this process has none, expected to be called within in_processes(..., slots=...)")
    return _slot


def in_processes(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int, slots: Sequence[str] = ()
) -> Generator[tuple[_Item, _Result], None, None]:
    """``(item, function(item))`` for each item, as they are done. Close it to stop the processes.

    Args:
        function: a function of a module; it is called in other processes, with one worker in this one.
        items: what it is called with.
        workers: how many processes.
        slots: something for each process to have for itself, such as a device: see :func:`slot`. None, or as many as
            processes; the same may be there several times.

    Raises:
        RuntimeError: a process ended unexpectedly.
        Exception: whatever the function raises; the others are stopped before.
    """
    global _slot
    if slots and len(slots) != workers:
        raise ValueError(f"slots: got {len(slots)} for {workers} workers, expected one for each")
    if workers == 1:
        _slot = slots[0] if slots else None
        for item in items:
            yield item, function(item)
        return
    # Processes of their own from the start: a copy of one that has begun threads (PyTorch's, say) may hang.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    free = context.SimpleQueue()
    for one in slots:
        free.put(one)
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(stop, free if slots else None)
    )
    pending: dict[Future[_Result], _Item] = {}
    rest = iter(items)
    try:
        while True:
            for item in itertools.islice(rest, workers * _AHEAD - len(pending)):
                pending[pool.submit(function, item)] = item
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a working process ended unexpectedly (killed for want of memory?). Its message, if it left one, is above; "
            'in a script, the call must stand below if __name__ == "__main__":, or have workers=1'
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _start(stop: Event, free: SimpleQueue[str] | None) -> None:
    """Set up a process: it is stopped by the event, not by Ctrl-C in the terminal, and does not outlive its parent."""
    global _stop, _slot
    _stop = stop
    _slot = None if free is None else free.get()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """From here on this process ends, at once, when the one that started it has ended, however that came."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)
