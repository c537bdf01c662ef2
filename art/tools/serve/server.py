"""Opens the address, loads the model, serves the page until it is stopped, and leaves no file behind."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from art.extras import import_extra
from art.tools.serve.analyst import Analyst
from art.tools.serve.limits import Asking
from art.train.interruption import Interrupted, ending_on_sigterm

TOKEN_VARIABLE = "ART_SERVE_TOKEN"
_SHORTEST_TOKEN = 16  # characters: nobody tries out all of those over a network
_AT_ONCE = 64  # connections
_GRACE = 2  # seconds for answers on their way when the page is stopped


@dataclass(frozen=True)
class ServeSettings:
    """How ``art serve`` serves.

    Attributes:
        checkpoint: a checkpoint, or the folder of a run.
        host: an address of this machine, or a name of one.
        port: 0 takes one that is free.
        token: asked for of every request; None: the variable ART_SERVE_TOKEN, else none is asked for on a loopback
            address, and on any other one is made.
        asking: what is asked of the model about each clip, and what a clip may be.
        keep_minutes: for which an answer is kept.
        max_waiting: clips that arrive, wait or are looked at, at once.
        timeout: seconds after which a clip is given up.
        device: "auto", "cpu", "cuda" and so on.

    Raises:
        ValueError: a number out of range, or a token that is short or that a browser cannot send.
    """

    checkpoint: Path
    host: str = "127.0.0.1"
    port: int = 8800
    token: str | None = None
    asking: Asking = field(default_factory=Asking)
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
    """Raise ValueError unless it is long enough, and made of what can stand in a header."""
    if len(token) < _SHORTEST_TOKEN:
        raise ValueError(
            f"{argument}: has {len(token)} characters, expected at least {_SHORTEST_TOKEN}; leave it out, and one is "
            "made where one is needed"
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError(f"{argument}: expected letters, digits and signs of ASCII without spaces; leave the rest out")


def serve(settings: ServeSettings, say: Callable[[str], None] = print) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        say: told the address once the page answers there.

    Raises:
        ModuleNotFoundError: the extra ``serve`` is not installed.
        ValueError: the address is taken or is none of this machine; the checkpoint is none.
        KeyboardInterrupt, Interrupted: it was stopped; its files are removed.
    """
    for library in ("starlette", "uvicorn"):
        import_extra(library, extra="serve", needed_by="art serve", uses_torch=False)
    token, made = _token(settings)
    with ending_on_sigterm(), _listening(settings) as listening:
        analyst = Analyst(settings.checkpoint, settings.asking, device=settings.device, timeout=settings.timeout)
        try:
            about = analyst.start()
            with tempfile.TemporaryDirectory(prefix="art-serve-", ignore_cleanup_errors=True) as folder:
                server = _server(settings, analyst, about, token, Path(folder))
                say(_greeting(settings, listening.getsockname()[1], about, token if made else None))
                server.run([listening])
        except Interrupted as stopped:
            raise Interrupted(stopped.signal_number, "stopped by SIGTERM; what was brought is removed") from None
        finally:
            analyst.close()


def _server(settings: ServeSettings, analyst: Analyst, about: dict[str, Any], token: str | None, folder: Path) -> Any:
    import uvicorn

    from art.tools.serve.application import make_application
    from art.tools.serve.clips import Clips
    from art.tools.serve.guard import LOCAL_NAMES, Guard

    clips = Clips(folder, analyst, keep=60 * settings.keep_minutes, most_waiting=settings.max_waiting)
    page = make_application(clips, settings.asking.limits, about, analyst.close)
    local = is_loopback(settings.host)
    guarded = Guard(page, token=token, hosts=LOCAL_NAMES | {settings.host.lower()} if local else None)
    return uvicorn.Server(
        uvicorn.Config(
            guarded, log_level=logging.WARNING, access_log=False, server_header=False, ws="none", lifespan="on",
            proxy_headers=False, limit_concurrency=_AT_ONCE, timeout_graceful_shutdown=_GRACE,
        )
    )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches that address, or each of those that the name means.

    Raises:
        ValueError: it means none.
    """
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for _, address in _addresses(host))


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--host: {host!r} is no address and no name of one ({error}); expected 127.0.0.1") from error
    return [(family, str(place[0])) for family, _, _, _, place in found]


def _listening(settings: ServeSettings) -> socket.socket:
    family, address = _addresses(settings.host)[0]
    try:
        return socket.create_server((address, settings.port), family=family, backlog=_AT_ONCE)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"--port: {settings.port} is taken on {settings.host}; choose another, or 0 for one that is free"
        elif error.errno in (errno.EACCES, errno.EPERM):
            problem = f"--port: {settings.port} may not be opened by this user; choose one above 1023"
        else:
            problem = f"--host: {settings.host} cannot be listened on ({error.strerror}); expected this machine's"
        raise ValueError(problem) from error


def _token(settings: ServeSettings) -> tuple[str | None, bool]:
    """The token, and whether it was made here, and so is to be shown."""
    if settings.token is not None:
        return settings.token, False
    given = os.environ.get(TOKEN_VARIABLE)
    if given is not None:
        check_token(given, TOKEN_VARIABLE)
        return given, False
    return (None, False) if is_loopback(settings.host) else (secrets.token_urlsafe(24), True)


def _greeting(settings: ServeSettings, port: int, about: dict[str, Any], shown_token: str | None) -> str:
    host = settings.host
    if any(ipaddress.ip_address(address.partition("%")[0]).is_unspecified for _, address in _addresses(host)):
        host = socket.gethostname()
    place = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    if shown_token is not None:
        place += f"?token={quote(shown_token)}"
    model = f"{len(about['classes'])} classes, kind {about['kind']}, backbone {about['backbone']}, on {about['device']}"
    return f"loaded {settings.checkpoint}: {model}\nopen {place} (Ctrl-C stops it)"
