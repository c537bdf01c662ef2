"""Who may use the page: whoever knows the token, and, without one, this machine only. Every request passes here."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: By what a browser on this machine may call it. A page elsewhere whose name is made to mean this machine has another.
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_LOGIN = (Path(__file__).parent / "page" / "login.html").read_text(encoding="utf-8")
_LOGIN_STYLE = _LOGIN.partition("<style>")[2].partition("</style>")[0]
_MOST_LOGIN_BYTES = 4096
_POLICY = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
_PAGE_POLICY = (
    f"{_POLICY}; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; connect-src 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _PAGE_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=()",
    "Referrer-Policy": "same-origin",  # with "no-referrer" a form of this page would say that it comes from nowhere
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Guard:
    """An application behind a token, with headers that keep a browser from sending or embedding anything elsewhere.

    Args:
        app: what is guarded.
        token: None: none is asked for.
        hosts: names by which the page may be called; None: any.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, hosts: frozenset[str] | None) -> None:
        self._app, self._hosts = app, hosts
        self._token = None if token is None else token.encode()
        # A page on another port of the same host may read the cookie: it is not the token itself.
        self._cookie = "" if token is None else hmac.new(token.encode(), b"cookie", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = await self._refusal(Request(scope, receive))
        await (refusal or self._app)(scope, receive, _with_headers(send))

    async def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that does not reach the application."""
        host = _host_of(f"//{request.headers.get('host', '')}")
        if self._hosts is not None and host not in self._hosts:
            return JSONResponse({"message": "This page answers to the name localhost only."}, 421)
        if request.method not in ("GET", "HEAD") and _comes_from_elsewhere(request):
            return JSONResponse({"message": "Another page asked for this, which it may not."}, 403)
        if self._token is None:
            return None
        if request.method == "POST" and request.url.path == "/login":
            return await self._login(request)
        given = request.query_params.get("token")
        if given is not None:
            rest = urlencode([item for item in request.query_params.multi_items() if item[0] != "token"])
            return self._checked(given, request, request.url.path + (f"?{rest}" if rest else ""))
        if self._knows(request):
            return None
        return _asks_for_token(request, "")

    def _knows(self, request: Request) -> bool:
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(bearer.strip()):
            return True
        return hmac.compare_digest(request.cookies.get(self._cookie_name(request), "").encode(), self._cookie.encode())

    def _is_token(self, given: str) -> bool:
        return self._token is not None and hmac.compare_digest(given.encode(), self._token)

    async def _login(self, request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MOST_LOGIN_BYTES:
                return JSONResponse({"message": "That is too long for a token."}, 413)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        return self._checked(given, request, "/")

    def _checked(self, given: str, request: Request, then: str) -> Response:
        """On to the page with the cookie, or the question again."""
        if not self._is_token(given.strip()):
            return _asks_for_token(request, "That is not the token.")
        answer = RedirectResponse(f"/{then.lstrip('/')}", 303)
        answer.set_cookie(
            self._cookie_name(request), self._cookie, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer

    @staticmethod
    def _cookie_name(request: Request) -> str:
        """Cookies do not tell ports apart, and two pages may run on one host."""
        return f"art-serve-{(request.scope.get('server') or ('', 0))[1]}"


def _comes_from_elsewhere(request: Request) -> bool:
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
        return True
    return request.headers.get("sec-fetch-site") in ("cross-site", "same-site")


def _host_of(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _asks_for_token(request: Request, wrong: str) -> Response:
    """401: a page to type it in for a browser, JSON for anything else."""
    headers = {"WWW-Authenticate": "Bearer"}
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"message": wrong or "This page needs its token."}, 401, headers)
    digest = b64encode(hashlib.sha256(_LOGIN_STYLE.encode()).digest()).decode()
    headers["Content-Security-Policy"] = f"{_POLICY}; style-src 'sha256-{digest}'"
    return HTMLResponse(_LOGIN.replace("{wrong}", wrong), 401, headers)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
