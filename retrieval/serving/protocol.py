"""The HTTP protocol of a server: uvicorn's, with an eye on clients that take their time.

uvicorn ends a connection that is idle between requests. It waits for ever for the head of a request
that comes a byte a minute, and for a client that doesn't take its answer; and when it ends, it
closes connections on which a request may be under way. Here each of these has its time.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from .problems import Problem

LINGER_SECONDS = 2.0


class State(ServerState):
    """What connections share.

    Attributes
    ----------
    is_leaving : bool
        Whether the server is about to end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_leaving = False


class PatientProtocol(HttpToolsProtocol):
    """One connection.

    The time that a client has for the head of a request, and for taking what was sent, is uvicorn's
    ``timeout_keep_alive``: so long it may be idle, so long it may take.
    """

    server_state: State

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_timer: asyncio.TimerHandle | None = None
        self._taking_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of a request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all waiting."""
        self._stop(self._head_timer)
        self._stop(self._taking_timer)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of the head."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """Let the application have the request."""
        self._stop(self._head_timer)
        super().on_headers_complete()
        if self.server_state.is_leaving:
            self.cycle.keep_alive = False

    def pause_writing(self) -> None:
        """Begin to wait for the client to take what was sent."""
        super().pause_writing()
        self._stop(self._taking_timer)
        self._taking_timer = self.loop.call_later(self.timeout_keep_alive, self._drop)

    def resume_writing(self) -> None:
        """Note that the client takes what was sent."""
        self._stop(self._taking_timer)
        super().resume_writing()

    def shutdown(self) -> None:
        """Answer what is under way, and what arrives within a moment; then close."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LINGER_SECONDS, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """Refuse what isn't HTTP."""
        self._refuse(Problem(400, "bad_http", "this isn't an HTTP request."))

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _await_head(self) -> None:
        self._stop(self._head_timer)
        self._head_timer = self.loop.call_later(self.timeout_keep_alive, self._give_up)

    def _drop(self) -> None:
        """Reset the connection: the system, too, forgets what the client doesn't take."""
        self.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.transport.abort()

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self._refuse(Problem(408, "slow_request", "the request didn't arrive in time."))

    def _refuse(self, problem: Problem) -> None:
        content = orjson.dumps(problem.to_dict())
        head = (
            f"HTTP/1.1 {problem.status} {problem.code}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + content)
        self.transport.close()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
