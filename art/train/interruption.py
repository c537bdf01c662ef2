"""Ctrl-C and SIGTERM as a request: finish the step, save, stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """Training was asked to stop and has saved its state, or other work and leaves what it has finished.

    Attributes:
        signal_number: the signal; a process that ends because of it exits with 128 + this number (130 or 143).
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Interruption:
    """In its ``with`` block, SIGINT and SIGTERM only set :attr:`signal_number`; a second one acts at once.

    Outside the main thread Python installs no handlers, and there this does nothing. Once a signal has come, SIGCHLD is
    no longer listened to, not even after the block: the process is about to end.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._owner = os.getpid()
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in self._SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number is not None

    def arrived(self) -> int:
        """The number of the signal that has come, 0 for none."""
        return self.signal_number or 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked data worker: the parent decides when it ends
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        elif self.requested():
            raise KeyboardInterrupt
        else:
            self.signal_number = number
            # Data workers may have got the signal too. Torch would have their end raise an error wherever this process
            # is, in the middle of a step or of a save; from here on it shows only where data is waited for.
            if hasattr(signal, "SIGCHLD"):
                signal.signal(signal.SIGCHLD, lambda *_: None)


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """In its ``with`` block SIGTERM raises :class:`Interrupted`, as Ctrl-C raises KeyboardInterrupt, so that work is
    cleaned up. Outside the main thread Python installs no handlers, and there this does nothing."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "stopped by SIGTERM; what is finished stays")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
