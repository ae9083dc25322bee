"""Limits: what stands before every request. Who may ask, how much, how long.

One piece of ASGI around the whole application, so that nothing behind it needs to think of these:
whatever is refused, fails or takes too long leaves as a `Problem`.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import orjson

from .metrics import Metrics
from .problems import Problem, Secrets, problem_of
from .settings import ServerSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Any], Callable[[Message], Any]], Any]

_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_SENT_WITH_ALL = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
# A client that is sending hears an answer once it has sent; so much is read and thrown away.
_MOST_DISCARDED = 16  # bodies of the largest size


class Gate:
    """ASGI: the application behind token, host, number in hand, body size and deadline.

    Parameters
    ----------
    app : ASGI application
    settings : ServerSettings
    metrics : Metrics
    hidden : Secrets
        What no answer may hold.
    open_paths : set of str
        Paths that need no token: the page, which holds nothing but itself.
    """

    def __init__(
        self,
        app: App,
        settings: ServerSettings,
        metrics: Metrics,
        hidden: Secrets,
        open_paths: frozenset[str],
    ) -> None:
        self._app, self._settings, self._limits = app, settings, settings.limits
        self._metrics, self._hidden, self._open_paths = metrics, hidden, open_paths
        self._n_in_hand = 0

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        answer = _Answer(send)
        body = _Body(receive, self._limits.most_body_bytes)
        self._n_in_hand += 1
        try:
            await self._serve(scope, body, answer)
        finally:
            self._n_in_hand -= 1
            self._metrics.count(scope, answer.status, time.perf_counter() - started)

    async def _serve(self, scope: Scope, body: _Body, answer: _Answer) -> None:
        seconds = self._limits.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                try:
                    self._admit(scope, body)
                    await self._app(scope, body.receive, answer.send)
                except Exception as error:
                    problem = problem_of(error, self._hidden)
                    await body.discard()
                    await answer.refuse(problem)
        except TimeoutError:
            await answer.refuse(_late(body, seconds))

    def _admit(self, scope: Scope, body: _Body) -> None:
        headers = dict(scope["headers"])
        if self._n_in_hand > self._limits.most_in_hand:
            raise Problem(
                503,
                "busy",
                "too many requests are in hand; ask again in a moment.",
                {"Retry-After": "1"},
            )
        self._check_sender(scope["path"], headers)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limits.most_body_bytes:
            body.expects_go_ahead = b"expect" in headers
            raise body.too_large()

    def _check_sender(self, path: str, headers: dict[bytes, bytes]) -> None:
        token = self._settings.token
        if token is None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            if self._settings.is_loopback and host.partition("]")[0] != "[::1":
                host = host.rpartition(":")[0] or host
                if host not in _LOOPBACK_NAMES:
                    raise Problem(
                        400,
                        "bad_host",
                        f"this server answers to {', '.join(_LOOPBACK_NAMES)}; give it a token to "
                        f"serve it under other names.",
                    )
            return
        if path in self._open_paths:
            return
        given = headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + token.encode()):
            raise Problem(
                401,
                "no_token",
                "this server wants a token: Authorization: Bearer TOKEN.",
                {"WWW-Authenticate": "Bearer"},
            )


class _Body:
    """What a client sends, counted as it comes, whatever it said of its length."""

    def __init__(self, receive: Any, most_bytes: int) -> None:
        self._receive, self._most_bytes = receive, most_bytes
        self._n_bytes = 0
        self.is_complete = False
        self.expects_go_ahead = False

    async def receive(self) -> Message:
        message: Message = await self._receive()
        if message["type"] == "http.request":
            self._n_bytes += len(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)
            if self._n_bytes > self._most_bytes:
                raise self.too_large()
        return message

    def too_large(self) -> Problem:
        return Problem(
            413,
            "too_large",
            f"the body is larger than {self._most_bytes} bytes; ask in several requests.",
            {"Connection": "close"},
        )

    async def discard(self) -> None:
        """Read on until the client has sent all, or too much."""
        most_bytes = _MOST_DISCARDED * self._most_bytes
        while not self.is_complete and not self.expects_go_ahead and self._n_bytes < most_bytes:
            message = await self._receive()
            if message["type"] != "http.request":
                return
            self._n_bytes += len(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)


class _Answer:
    """What is sent, and how far it has come."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *_SENT_WITH_ALL]
        await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        """Send a problem; where an answer is under way, break it off instead."""
        if self.status is not None:
            raise problem  # the server's protocol closes the connection
        content = orjson.dumps(problem.to_dict())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
        ]
        start = {"type": "http.response.start", "status": problem.status, "headers": headers}
        await self.send(start)
        await self._send({"type": "http.response.body", "body": content})


def _late(body: _Body, seconds: float) -> Problem:
    if body.is_complete:
        return Problem(504, "timeout", f"there was no answer within {seconds:g} seconds.")
    return Problem(
        408,
        "slow_request",
        f"the request didn't arrive within {seconds:g} seconds.",
        {"Connection": "close"},
    )
