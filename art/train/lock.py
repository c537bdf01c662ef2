"""The lock of a directory, so that it has one writer at a time, on one machine or on several."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_log = logging.getLogger(__name__)

_NAME = ".lock"
_ACQUIRE_TIMEOUT = 3.0  # seconds in which a process that was killed may still be ending
_HEARTBEAT_SECONDS = 5.0  # seconds between two updates of the file by its holder
_OBSERVE = 3.2 * _HEARTBEAT_SECONDS
_BYTES = 512  # size of the file
_held: set[Path] = set()  # by this process, which a record lock would not exclude


class DirectoryInUse(OSError):
    """Another process writes to the directory."""


class DirectoryLock:
    """A lock on a directory, released when the process ends in any way.

    It is a POSIX record lock on the file ``.lock`` in the directory: unlike ``flock`` locks, child processes do not
    inherit it, and network file systems support it between machines. Some file systems do not, or only within a
    machine; for those the holder updates the file every few seconds, and a file that another machine left behind is
    observed for 16 s, after which the lock is taken over. The file is removed at the end.

    Args:
        directory: to lock.
        work: what writes to it, for the error message.
        option: with which another directory is chosen, for the error message.
    """

    def __init__(self, directory: Path, work: str = "a training run", option: str = "output=...") -> None:
        self._directory, self._work, self._option = directory, work, option
        self._path = directory / _NAME
        self._file: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Lock the directory, which must exist, unless this object has locked it already.

        Raises:
            DirectoryInUse: another process, or another object in this process, has locked it.
            OSError: the file cannot be written.
        """
        if self._file is not None:
            return
        if self._path.resolve() in _held:
            raise self._in_use({"pid": os.getpid(), "host": socket.gethostname()})
        self._file = self._lock()
        _held.add(self._path.resolve())
        self._beat()
        self._thread = threading.Thread(target=self._keep_beating, name="run-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Unlock the directory and remove the file."""
        if self._file is None:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            self._path.unlink()  # before unlocking: afterwards it may be another process's
        _held.discard(self._path.resolve())
        os.close(self._file)
        self._file = None

    def __enter__(self) -> DirectoryLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _lock(self) -> int:
        """Return the locked file."""
        deadline = time.monotonic() + _ACQUIRE_TIMEOUT
        ended: dict[str, Any] = {}
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            free, reliable = _try_lock(file)
            holder = _parse(os.pread(file, _BYTES, 0))
            if free and self._path.exists() and self._path.stat().st_ino == os.fstat(file).st_ino:
                if not holder or holder == ended or (reliable and holder.get("boot") == _boot_id()):
                    return file
                os.close(file)  # also unlocks: the directory is not taken while this process waits
                if self._is_alive(holder):
                    raise self._in_use(holder)
                ended = holder
                continue
            os.close(file)
            if not free and time.monotonic() > deadline:
                raise self._in_use(holder)
            time.sleep(0.1)

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        """Return whether the process that wrote the file, on another machine, still updates it."""
        _log.warning(
            f"{self._directory}: locked by process {holder.get('pid')} on {holder.get('host')}; waiting "
            f"{_OBSERVE:.0f} s to see whether it is still running"
        )
        deadline = time.monotonic() + _OBSERVE
        while time.monotonic() < deadline:
            time.sleep(_HEARTBEAT_SECONDS / 10)
            try:
                content = self._path.read_bytes()  # opened again each time, as network file systems require
            except FileNotFoundError:  # the other process has finished
                return False
            if _parse(content) not in ({}, holder):
                return True
        return False

    def _beat(self, count: int = 0) -> None:
        assert self._file is not None
        content = {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot_id(), "beat": count}
        with contextlib.suppress(OSError):  # a full disk does not stop the work
            os.pwrite(self._file, json.dumps(content).encode().ljust(_BYTES), 0)

    def _keep_beating(self) -> None:
        count = 0
        while not self._stop.wait(_HEARTBEAT_SECONDS):
            self._beat(count := count + 1)

    def _in_use(self, holder: dict[str, Any]) -> DirectoryInUse:
        by = f"process {holder['pid']} on {holder.get('host')}" if "pid" in holder else "another process"
        return DirectoryInUse(
            f"{self._directory} is in use: {self._work} ({by}) is writing to it; wait until it has ended, or choose "
            f"another directory with {self._option}"
        )


def _try_lock(file: int) -> tuple[bool, bool]:
    """Lock a file. Returns whether no other process has locked it, and whether the file system supports locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN), False
    return True, True


def _parse(content: bytes) -> dict[str, Any]:
    """Return what the holder wrote; empty if there is nothing."""
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _boot_id() -> str:
    """Return an identifier of the running system, the same in all of its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return socket.gethostname()
