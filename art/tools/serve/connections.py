"""Limits on each client: deadlines for slow ones, which uvicorn's HTTP protocol does not have, and wrong tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

#: Seconds until the headers of a request must be complete, from the connection or the first byte of the request.
HEADER_SECONDS = 10.0
#: Seconds until a client must have read what it has been sent, once the buffers are full.
READ_SECONDS = 60.0

_FREE_ATTEMPTS = 5  # wrong tokens of a client that are answered at once
_REFUSED_ATTEMPTS = 10  # wrong tokens of a client after which the status is 429
_ATTEMPT_INTERVAL = 1.0  # seconds between further attempts
_MAX_ATTEMPTS_WAITING = 4  # per client
_FORGET_SECONDS = 300.0
_MAX_CLIENTS = 1024


def with_deadlines(base: type[Any]) -> type[Any]:
    """Return a subclass of a uvicorn HTTP protocol that closes connections of slow clients.

    If there are as many connections as ``limit_concurrency`` admits, the one that has been without a complete request
    for the longest time is closed for each new one. So clients that only connect do not keep out the others.
    """
    without_request: dict[Any, None] = {}  # open connections, the one that is waiting for the longest time first

    class Protocol(base):
        _header_timer: asyncio.TimerHandle | None = None
        _read_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._expect_request()
            while len(self.connections) >= (self.limit_concurrency or 1e9) and len(without_request) > 1:
                oldest = next(iter(without_request))
                self.connections.discard(oldest)
                oldest._abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_expecting()
            elif self._header_timer is None and not self.transport.is_closing():
                self._expect_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_expecting()
            self._stop_read_timer()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stop_read_timer()
            self._read_timer = self.loop.call_later(READ_SECONDS, self._abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_read_timer()

        def _expect_request(self) -> None:
            without_request[self] = None
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self._abort)

        def _stop_expecting(self) -> None:
            without_request.pop(self, None)
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _stop_read_timer(self) -> None:
            if self._read_timer is not None:
                self._read_timer.cancel()
                self._read_timer = None

        def _abort(self) -> None:
            self._stop_expecting()
            self.transport.abort()

    return Protocol


class TokenAttempts:
    """Limits how fast one client can try tokens, without delaying other clients.

    The first wrong tokens are answered at once. Then the attempts of the client are checked one by one at a fixed
    interval, after more wrong tokens with status 429, and refused without a check while others are waiting. The right
    token is still accepted, because several users may have one address. Wrong tokens are forgotten after some minutes.

    Args:
        clock: Time in seconds.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._clients: dict[str, _Client] = {}  # the last one that failed is last

    async def admit(self, client: str) -> bool:
        """Wait until the client may try a token. Returns False if it must be refused without a check."""
        state = self._clients.get(client)
        if state is None or state.failures < _FREE_ATTEMPTS or self._clock() - state.last > _FORGET_SECONDS:
            return True
        if state.waiting >= _MAX_ATTEMPTS_WAITING:
            return False
        now = self._clock()
        state.next = max(now, state.next + _ATTEMPT_INTERVAL)
        state.waiting += 1
        try:
            await self._sleep(state.next - now)
        finally:
            state.waiting -= 1
        return True

    def fail(self, client: str) -> bool:
        """Count a wrong token. Returns False if there were too many."""
        now = self._clock()
        state = self._clients.pop(client, None)
        if state is None or now - state.last > _FORGET_SECONDS:
            state = _Client()
        self._clients[client] = state
        if len(self._clients) > _MAX_CLIENTS:
            del self._clients[next(iter(self._clients))]
        state.failures, state.last = state.failures + 1, now
        state.next = max(state.next, now)
        return state.failures <= _REFUSED_ATTEMPTS


@dataclass
class _Client:
    failures: int = 0
    last: float = 0.0  # time of the last wrong token
    next: float = 0.0  # time of the last attempt that was scheduled
    waiting: int = 0
