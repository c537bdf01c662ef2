"""The ASGI application: the page, its routes for clips and results, and the guard in front of both."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import re
import shutil
import zipfile
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from art.tools.serve.connections import TokenAttempts
from art.tools.serve.jobs import (
    SIGNATURE_BYTES,
    Job,
    JobQueue,
    Limits,
    QueueFull,
    Refused,
    UploadTooSlow,
    check_signature,
)

PAGE = Path(__file__).parent / "page"
SAMPLES = Path(__file__).parent / "samples.zip"

#: Names under which a browser on this machine may request the page. A request with another name comes from a page whose
#: domain was made to resolve to this machine (DNS rebinding).
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_LOGIN_PAGE = """\
<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>ART: token</title>
  <style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 15vh auto 0; max-width: 22rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; }
label { display: block; }
input, button { box-sizing: border-box; font: inherit; margin-top: .5rem; padding: .6rem; width: 100%; }
p[role] { color: #d55e00; min-height: 1.5em; }
  </style>
</head>
<body>
  <h1>Enter the access token</h1>
  <p>The token is printed when <code>art serve</code> starts, unless it was set there.</p>
  <form method="post" action="/login">
    <label for="token">Token</label>
    <input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
    <button>Continue</button>
  </form>
  <p role="alert">{message}</p>
</body>
</html>
"""
_LOGIN_STYLE = _LOGIN_PAGE.partition("<style>")[2].partition("</style>")[0]
_MAX_LOGIN_BYTES = 4096
_LOGIN_SECONDS = 10.0
_STATUS_CODES = {QueueFull: 503, UploadTooSlow: 408}

_RETRY_AFTER = 60  # seconds

_HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[\w.~!$&'()*+,;=%-]+))(:(?P<port>[0-9]{0,5}))?", re.ASCII)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_POLICY = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
_LOGIN_DIGEST = b64encode(hashlib.sha256(_LOGIN_STYLE.encode()).digest()).decode()
_LOGIN_POLICY = f"{_POLICY}; style-src 'sha256-{_LOGIN_DIGEST}'"
_PAGE_POLICY = (
    f"{_POLICY}; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; connect-src 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _PAGE_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=()",
    "Referrer-Policy": "same-origin",  # with "no-referrer", the Origin header of the login form would be "null"
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def make_application(
    queue: JobQueue,
    limits: Limits,
    about: dict[str, Any],
    samples: Path,
    on_shutdown: Callable[[], None] = lambda: None,
) -> Starlette:
    """Build the application, without :class:`Guard`.

    Args:
        queue: Processes the uploaded clips.
        limits: Limits on each clip.
        about: Description of the model, see :func:`.worker.describe`.
        samples: Directory of the sample clips, see :func:`extract_samples`.
        on_shutdown: Called on shutdown, when a clip may still be in progress.
    """
    routes = _Routes(queue, limits, about, samples)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(queue.run()), asyncio.create_task(queue.clean_up_periodically())]
        try:
            yield
        finally:
            on_shutdown()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return Starlette(
        lifespan=lifespan,
        exception_handlers={HTTPException: _error_response},
        routes=[
            Route("/", lambda _: FileResponse(PAGE / "index.html"), methods=["GET"]),
            Route("/about", routes.about, methods=["GET"]),
            Route("/clips", routes.upload, methods=["POST"]),
            Route("/clips/{id}", routes.status, methods=["GET"]),
            Route("/clips/{id}", routes.remove, methods=["DELETE"]),
            Route("/clips/{id}/{file}", routes.file, methods=["GET"]),
            Mount("/page", StaticFiles(directory=PAGE)),
            Mount("/samples", StaticFiles(directory=samples)),
        ],
    )


def extract_samples(directory: Path) -> Path:
    """Extract the sample clips to a directory, because range requests require files, and return it."""
    with zipfile.ZipFile(SAMPLES) as archive:
        archive.extractall(directory)
    return directory


async def _error_response(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"message": error.detail}, error.status_code, error.headers)


class _Routes:
    def __init__(self, queue: JobQueue, limits: Limits, about: dict[str, Any], samples: Path) -> None:
        self._queue, self._limits = queue, limits
        self._samples = {path.name: path for path in sorted(samples.glob("*.mp4"))}
        self._about = {
            **about,
            "samples": [{"file": file, "title": Path(file).stem.replace("_", " ")} for file in self._samples],
            "limits": {"bytes": limits.bytes, "megabytes": limits.megabytes, "seconds": limits.seconds},
        }

    async def about(self, _: Request) -> Response:
        """Return the model, the samples and the limits."""
        return JSONResponse(self._about)

    async def upload(self, request: Request) -> Response:
        """Create a job from the request body, named by ?name=, or from a sample, ?sample=."""
        sample, name = request.query_params.get("sample"), request.query_params.get("name", "clip")
        if sample is not None and sample not in self._samples:
            raise HTTPException(404, "There is no such sample.")
        try:
            job = self._queue.create(sample or name)
            if sample is None:
                await self._receive(request, job, name)
            else:
                shutil.copyfile(self._samples[sample], job.source)
        except Refused as refused:
            status = next((code for kind, code in _STATUS_CODES.items() if isinstance(refused, kind)), 400)
            return JSONResponse({"message": str(refused)}, status)
        except ClientDisconnect:
            return Response(status_code=400)
        self._queue.submit(job)
        return JSONResponse({"id": job.id}, 201)

    async def _receive(self, request: Request, job: Job, name: str) -> None:
        """Write the body to the job's file, and remove the job on any error."""
        try:
            announced = request.headers.get("content-length", "")
            if announced.isdecimal() and int(announced) > self._limits.bytes:
                raise self._limits.too_large(name, int(announced))
            size, signature = 0, b""
            with job.source.open("wb") as file:
                async for part in _parts_of(request, job):
                    size = job.received = size + len(part)
                    if size > self._limits.bytes:
                        raise self._limits.too_large(name)
                    if len(signature) < SIGNATURE_BYTES <= len(signature) + len(part):
                        check_signature(signature + part[:SIGNATURE_BYTES], name)
                    signature += part[: SIGNATURE_BYTES - len(signature)]
                    await asyncio.to_thread(file.write, part)
            check_signature(signature, name)
        except BaseException:
            self._queue.remove(job)
            raise

    async def status(self, request: Request) -> Response:
        """Return the status of a job, with its result when done."""
        return JSONResponse(self._queue.status(self._find(request)))

    async def remove(self, request: Request) -> Response:
        """Delete a job and its files."""
        self._queue.remove(self._find(request))
        return Response(status_code=204)

    async def file(self, request: Request) -> Response:
        """Return one of the files of a result."""
        job, file = self._find(request), request.path_params["file"]
        if job.state != "done" or file not in {path.name for path in job.out.glob("*")}:
            raise HTTPException(404, "There is no such file.")
        return FileResponse(job.out / file, filename=file, content_disposition_type="inline")

    def _find(self, request: Request) -> Job:
        job = self._queue.find(request.path_params["id"])
        if job is None:
            raise HTTPException(404, "This result is no longer available. Upload the clip again.")
        return job


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    return await anext(stream, None)


async def _parts_of(request: Request, job: Job) -> AsyncIterator[bytes]:
    """The parts of the body. Raises UploadTooSlow as soon as the queue removes the job."""
    stream = request.stream()
    while not job.removed:
        job.pending = asyncio.ensure_future(_next(stream))
        try:
            part = await job.pending
        except asyncio.CancelledError:
            if job.removed:
                break
            raise
        if part is None:
            return
        yield part
    raise UploadTooSlow("The upload is too slow, so it was canceled. Use a faster connection or a shorter clip.")


class Guard:
    """Wraps an application: every request needs the token and an accepted host, and every response security headers.

    Without a token, ``hosts`` restricts the page to names of this machine. Requests of other sites that would change
    anything are rejected. The headers keep the browser from sending or embedding anything elsewhere.

    Args:
        app: The application.
        token: The required token, or None.
        hosts: Accepted names in the Host header; None accepts any.
        attempts: Limits the rate of wrong tokens.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        hosts: frozenset[str] | None,
        attempts: TokenAttempts | None = None,
    ) -> None:
        self._app, self._hosts, self._attempts = app, hosts, attempts or TokenAttempts()
        self._token = None if token is None else token.encode()
        # Pages on other ports of the same host can read the cookie, so it must not contain the token itself.
        self._cookie = "" if token is None else hmac.new(token.encode(), b"cookie", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            rejection = await self._reject(Request(scope, receive))
            await (rejection or self._app)(scope, receive, _with_headers(send))

    async def _reject(self, request: Request) -> Response | None:
        """Return the response to a request that must not reach the application, or None."""
        hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
        for name, values in (("Host", map(_hostname, hosts)), ("Origin", map(_netloc, origins))):
            if list(values).count(None) or len(request.headers.getlist(name)) > 1:
                return JSONResponse({"message": f"The {name} header is malformed."}, 400)
        host = hosts[0] if hosts else ""
        if self._hosts is not None and _hostname(host) not in self._hosts:
            return JSONResponse({"message": "This page is only available as localhost."}, 421)
        cross_site = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
        cross_site |= bool(origins) and _netloc(origins[0]) != host.lower()
        if cross_site and request.method not in ("GET", "HEAD"):
            return JSONResponse({"message": "Requests from other sites are not allowed."}, 403)
        return None if self._token is None else await self._authorize(request)

    async def _authorize(self, request: Request) -> Response | None:
        """Return the response to a request without the token or with a token to store in a cookie, or None."""
        path = request.scope["path"]
        if request.method == "POST" and path == "/login":
            return await self._log_in(request)
        token = request.query_params.get("token")
        if token is not None:
            rest = urlencode([item for item in request.query_params.multi_items() if item[0] != "token"])
            return await self._set_cookie(token, request, quote(path) + (f"?{rest}" if rest else ""))
        cookie = request.cookies.get(self._cookie_name(request), "")
        if hmac.compare_digest(cookie.encode(), self._cookie.encode()):
            return None
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return _require_token(request)
        return await self._check(token, request)

    async def _check(self, token: str, request: Request) -> Response | None:
        """Return the response to a request with a wrong token, or None."""
        client = _client(request)
        admitted = await self._attempts.admit(client)
        if admitted and self._token is not None and hmac.compare_digest(token.strip().encode(), self._token):
            return None
        if admitted and self._attempts.fail(client):
            return _require_token(request, "Invalid token.")
        return _require_token(request, "Too many wrong tokens. Try again later.", 429)

    async def _log_in(self, request: Request) -> Response:
        async def read() -> bytes:
            body = b""
            async for part in request.stream():
                body += part
                if len(body) > _MAX_LOGIN_BYTES:
                    break
            return body

        try:
            body = await asyncio.wait_for(read(), _LOGIN_SECONDS)
        except asyncio.TimeoutError:
            return JSONResponse({"message": "The token did not arrive in time."}, 408)
        if len(body) > _MAX_LOGIN_BYTES:
            return JSONResponse({"message": "The token is too long."}, 413)
        token = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        return await self._set_cookie(token, request, "/")

    async def _set_cookie(self, token: str, request: Request, path: str) -> Response:
        """Redirect to ``path`` with the cookie, or show the login page again if the token is wrong."""
        rejection = await self._check(token, request)
        if rejection is not None:
            return rejection
        response = RedirectResponse(f"/{path.lstrip('/')}", 303)
        response.set_cookie(
            self._cookie_name(request), self._cookie, httponly=True, samesite="strict",
            secure=request.scope["scheme"] == "https",
        )  # fmt: skip
        return response

    @staticmethod
    def _cookie_name(request: Request) -> str:
        """Return a name with the port, because all ports of a host share their cookies."""
        return f"art-serve-{(request.scope.get('server') or ('', 0))[1]}"


def _hostname(host: str) -> str | None:
    """Return the lowercase name or address in a Host header, None if the header is malformed."""
    match = _HOST.fullmatch(host.lower())
    if match is None or int(match["port"] or 0) >= 2**16:
        return None
    try:
        return str(ipaddress.IPv6Address(match["address"])) if match["address"] else match["name"]
    except ValueError:
        return None


def _netloc(origin: str) -> str | None:
    """Return the lowercase host and port in an Origin header, "" for an opaque origin, None for a malformed header."""
    scheme, separator, netloc = origin.lower().partition("://")
    if origin == "null":
        return ""
    return netloc if separator and _SCHEME.fullmatch(scheme) and _hostname(netloc) is not None else None


def _client(request: Request) -> str:
    """Return the address of the client; of IPv6, the network of 64 bits that one client usually has."""
    address = request.client.host if request.client else ""
    try:
        return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address


def _require_token(request: Request, message: str = "", status: int = 401) -> Response:
    """Return 401 or 429, with a login page for browsers and JSON for other clients."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": str(_RETRY_AFTER)}
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"message": message or "This page requires a token."}, status, headers)
    headers["Content-Security-Policy"] = _LOGIN_POLICY
    return HTMLResponse(_LOGIN_PAGE.replace("{message}", message), status, headers)


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers
