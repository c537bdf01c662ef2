"""``art serve`` from start to stop: the settings, the address, the token, the worker process and the server."""

from __future__ import annotations

import errno
import ipaddress
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import quote

from art.extras import import_extra
from art.tools.serve.jobs import INTERNAL_ERROR, Refused, RequestOptions

_log = logging.getLogger(__name__)

TOKEN_VARIABLE = "ART_SERVE_TOKEN"
_MIN_TOKEN = 16  # characters; too many to guess over a network
_MAX_CONNECTIONS = 64
_SHUTDOWN_SECONDS = 2  # for responses in progress
_RESPONSE_SECONDS = 10.0  # until a worker process reports its first step
_SHUTTING_DOWN = "The server is shutting down."


@dataclass(frozen=True)
class ServeSettings:
    """Settings of ``art serve``.

    Attributes:
        checkpoint: A checkpoint or a run directory.
        host: An address or name of this machine.
        port: Port number; 0 selects a free one.
        token: Required in every request. None uses the environment variable ART_SERVE_TOKEN; without it, no token is
            required on a loopback address, and one is generated on any other.
        options: How each clip is processed, and its limits.
        keep_minutes: Minutes for which a result is kept.
        max_waiting: Maximum number of clips that are uploading, waiting or being processed.
        timeout: Maximum seconds to process a clip.
        device: "auto", "cpu", "cuda", "cuda:<number>" or "mps".

    Raises:
        ValueError: A number is out of range, or the token is too short or has characters that a browser cannot send.
    """

    checkpoint: Path
    host: str = "127.0.0.1"
    port: int = 8800
    token: str | None = None
    options: RequestOptions = field(default_factory=RequestOptions)
    keep_minutes: float = 10.0
    max_waiting: int = 8
    timeout: float = 300.0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port: got {self.port}, expected 0 to 65535")
        if self.max_waiting < 1:
            raise ValueError(f"--max-waiting: got {self.max_waiting}, expected at least 1")
        for name in ("keep_minutes", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')}: got {getattr(self, name)}, expected more than 0")
        if self.token is not None:
            check_token(self.token, "--token")


def check_token(token: str, argument: str) -> None:
    """Raise ValueError unless the token is long enough and valid in an HTTP header."""
    if len(token) < _MIN_TOKEN:
        raise ValueError(
            f"{argument}: got {len(token)} characters, expected at least {_MIN_TOKEN}; omit it to have one generated "
            "where one is required"
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(f"{argument}: expected printable ASCII characters without spaces")


def serve(settings: ServeSettings, log: Callable[[str], None] = print) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        log: Called with the address once the page is available.

    Raises:
        ModuleNotFoundError: The extra ``serve`` is not installed.
        ValueError: The address is in use or not an address of this machine, or the checkpoint is invalid.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM stopped the server; its files are deleted.
    """
    for library in ("starlette", "uvicorn"):
        import_extra(library, extra="serve", needed_by="art serve", uses_torch=False)
    token, generated = _token(settings)
    with _raise_on_sigterm(), _listen(settings) as listener:
        worker = WorkerProcess(settings.checkpoint, settings.options, device=settings.device, timeout=settings.timeout)
        try:
            about = worker.start()
            with tempfile.TemporaryDirectory(prefix="art-serve-", ignore_cleanup_errors=True) as directory:
                server = _make_server(settings, worker, about, token, Path(directory))
                log(_startup_message(settings, listener.getsockname()[1], about, token if generated else None))
                server.run([listener])
        except _Terminated:
            print("art: stopped by SIGTERM; uploaded clips and results are deleted", file=sys.stderr)
            raise SystemExit(128 + signal.SIGTERM) from None
        finally:
            worker.close()


class _Terminated(Exception):
    """SIGTERM was received."""


@contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    def handle(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # Python cannot install handlers there
        yield
        return
    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class _WorkerLost(Exception):
    """The worker process exited, or does not respond. The message is the reason."""


class WorkerProcess:
    """Runs the model in a separate process, which is replaced if it exits, crashes or hangs.

    Args:
        checkpoint: A checkpoint or a run directory.
        device: "auto", "cpu", "cuda", "cuda:<number>" or "mps".
        timeout: Maximum seconds to process a clip.
        target: The function that the process runs, by default :func:`.worker.run`.
    """

    def __init__(
        self,
        checkpoint: Path,
        options: RequestOptions,
        *,
        device: str = "auto",
        timeout: float = 300.0,
        target: Callable[[Connection, Path, str, RequestOptions], None] | None = None,
    ) -> None:
        self._target, self._arguments = target or _run_worker, (checkpoint.absolute(), device, options)
        self._timeout = timeout
        self._load_seconds = 0.0
        self._closed, self._lock = False, threading.Lock()  # no process is started after close()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def start(self) -> dict[str, Any]:
        """Load the model and return its description, see :func:`.worker.describe`.

        Raises:
            ValueError, OSError, ImportError: The checkpoint or the device is invalid.
            RuntimeError: The process exited.
        """
        start = time.monotonic()
        try:
            about = self._start(None)
        except _WorkerLost as lost:
            raise RuntimeError(f"the worker process exited while loading the model ({lost}); see its output") from lost
        self._load_seconds = time.monotonic() - start
        return about

    def predict(self, clip: Path, out: Path, report: Callable[[str], None]) -> dict[str, Any]:
        """Process one clip, see :func:`.worker.predict_clip`. Blocks.

        If the process exits or does not respond, the clip is processed once more by a new process.

        Raises:
            Refused: The clip was refused, took too long, or two processes were lost.
        """
        if self._process is not None and not self._process.is_alive():  # not the fault of this clip
            _log.warning("the idle worker process was lost (%s), starting another one", self._stop())
        for attempt in (1, 2):
            try:
                return self._process_clip(clip, out, report)
            except _WorkerLost as lost:
                if self._closed:
                    break
                shutil.rmtree(out, ignore_errors=True)
                action = "starting another one for the same clip" if attempt == 1 else "the clip is refused"
                _log.warning("the worker process was lost (%s), %s", lost, action)
                report("Restarting the model")
        raise Refused(_SHUTTING_DOWN if self._closed else INTERNAL_ERROR)

    def _start(self, limit: float | None) -> dict[str, Any]:
        """Start a process and wait until it has loaded the model, at most ``limit`` seconds."""
        context = multiprocessing.get_context("spawn")
        with self._lock:
            if self._closed:
                raise Refused(_SHUTTING_DOWN)
            self._connection, child = context.Pipe()
            self._process = context.Process(target=self._target, args=(child, *self._arguments), daemon=True)
            self._process.start()
        child.close()
        kind, content = self._receive(limit, _WorkerLost("no response while loading the model"))
        if kind == "error":
            self._stop()
            raise content
        return dict(content)

    def _process_clip(self, clip: Path, out: Path, report: Callable[[str], None]) -> dict[str, Any]:
        if self._process is None:
            self._start(max(self._timeout, 10 * self._load_seconds))
        start = time.monotonic()
        try:
            assert self._connection is not None
            self._connection.send((clip, out))
        except OSError as error:
            raise _WorkerLost(self._stop()) from error
        too_long = Refused(f"Processing your clip took longer than the limit of {self._timeout:g} s.")
        # A process that does not report its first step at once was hung before it received the clip.
        kind, content = self._receive(min(_RESPONSE_SECONDS, self._timeout / 2), _WorkerLost("no response"))
        while kind == "step":
            report(content)
            kind, content = self._receive(self._timeout - (time.monotonic() - start), too_long)
        if kind == "result":
            return dict(content)
        raise Refused(content)

    def _receive(self, limit: float | None, late: Exception) -> tuple[str, Any]:
        """Return the next message. If none arrives within ``limit`` seconds, stop the process and raise ``late``."""
        assert self._connection is not None
        try:
            if self._connection.poll(None if limit is None else max(0.0, limit)):
                return self._connection.recv()
        except (EOFError, OSError) as error:
            raise _WorkerLost(self._stop()) from error
        self._stop(wait=0)
        raise late

    def close(self) -> None:
        """Kill the process. This method may be called from any thread."""
        with self._lock:
            self._closed, process = True, self._process
        if process is not None:
            process.kill()
            process.join()

    def _stop(self, wait: float = 1.0) -> str:
        """Kill the process if it does not exit within ``wait`` seconds, and return how it ended."""
        process, connection = self._process, self._connection
        assert process is not None and connection is not None
        self._process = self._connection = None
        process.join(wait)
        code = process.exitcode
        process.kill()
        process.join()
        connection.close()
        if code is None:
            return "no response"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _run_worker(connection: Connection, checkpoint: Path, device: str, options: RequestOptions) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to every process; the parent decides
    from art.tools.serve.worker import run  # imports torch, which the server process does not need

    run(connection, checkpoint, device, options)


def _make_server(
    settings: ServeSettings, worker: WorkerProcess, about: dict[str, Any], token: str | None, directory: Path
) -> Any:
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    from art.tools.serve.app import LOCAL_NAMES, Guard, extract_samples, make_application
    from art.tools.serve.connections import with_deadlines
    from art.tools.serve.jobs import JobQueue

    queue = JobQueue(directory, worker, keep=60 * settings.keep_minutes, max_waiting=settings.max_waiting)
    application = make_application(
        queue, settings.options.limits, about, extract_samples(directory / "samples"), worker.close
    )
    hosts = LOCAL_NAMES | {settings.host.lower()} if is_loopback(settings.host) else None
    return uvicorn.Server(
        uvicorn.Config(
            Guard(application, token=token, hosts=hosts), log_level=logging.WARNING, access_log=False,
            server_header=False, ws="none", lifespan="on", proxy_headers=False, limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS, http=with_deadlines(AutoHTTPProtocol),
        )
    )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address, or every address of a name.

    Raises:
        ValueError: The name cannot be resolved.
    """
    return all(address.is_loopback for _, _, address in _resolve(host))


def _resolve(host: str) -> list[tuple[socket.AddressFamily, str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--host: cannot resolve {host!r} ({error}); expected an address such as 127.0.0.1") from error
    texts = [(family, str(address[0])) for family, _, _, _, address in found]
    return [(family, text, ipaddress.ip_address(text.partition("%")[0])) for family, text in texts]


def _listen(settings: ServeSettings) -> socket.socket:
    family, address, _ = _resolve(settings.host)[0]
    try:
        return socket.create_server((address, settings.port), family=family, backlog=_MAX_CONNECTIONS)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"--port: {settings.port} is in use on {settings.host}; choose another one, or 0 for a free one"
        elif error.errno in (errno.EACCES, errno.EPERM):
            problem = f"--port: {settings.port} requires more permissions; choose one above 1023"
        else:
            problem = (
                f"--host: cannot listen on {settings.host} ({error.strerror}); expected an address of this machine"
            )
        raise ValueError(problem) from error


def _token(settings: ServeSettings) -> tuple[str | None, bool]:
    """Return the token, and whether it was generated and must be shown."""
    if settings.token is not None:
        return settings.token, False
    from_environment = os.environ.get(TOKEN_VARIABLE)
    if from_environment is not None:
        check_token(from_environment, TOKEN_VARIABLE)
        return from_environment, False
    return (None, False) if is_loopback(settings.host) else (secrets.token_urlsafe(24), True)


def _startup_message(settings: ServeSettings, port: int, about: dict[str, Any], shown_token: str | None) -> str:
    host = settings.host
    if any(address.is_unspecified for _, _, address in _resolve(host)):
        host = socket.gethostname()
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    if shown_token is not None:
        url += f"?token={quote(shown_token)}"
    model = f"{len(about['classes'])} classes, kind {about['kind']}, backbone {about['backbone']}, on {about['device']}"
    return f"loaded {settings.checkpoint}: {model}\nopen {url} (press Ctrl-C to stop)"
