"""A server's life: a socket, an address that is told, and an end at which nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.server import HANDLED_SIGNALS

from .problems import ServingError
from .protocol import PatientProtocol, State

_BACKLOG = 2048


class _Server(uvicorn.Server):
    """uvicorn's server, which tells when it listens, and its connections when it leaves."""

    def __init__(self, config: uvicorn.Config, tell: Callable[[], None]) -> None:
        super().__init__(config)
        self.server_state = State()
        self._tell = tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            self._tell()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let every answer from now on be the last of its connection."""
        assert isinstance(self.server_state, State)
        self.server_state.is_leaving = True
        await asyncio.sleep(0)
        await super().shutdown(sockets)


def run_server(
    app: FastAPI,
    host: str,
    port: int,
    *,
    timeout_seconds: float,
    tell: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT; then answer what was accepted, and return.

    Parameters
    ----------
    app : FastAPI
    host : str
    port : int
        0: a free one.
    timeout_seconds : float
        How long a client may take; and at the end, twice as long all of them.
    tell : callable
        Told the address once connections are taken.

    Raises
    ------
    ServingError
        If the address can't be had.
    """
    listener = listen(host, port)
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=max(1, round(timeout_seconds)),
        timeout_graceful_shutdown=max(2, round(2 * timeout_seconds)),
    )
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listener.getsockname()[1]}"
    with listener, _last_signals():
        _Server(config, lambda: tell(address)).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises
    ------
    ServingError
        If there is no such address here, or another program has it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServingError(f"--host {host} isn't an address: {error}. Try 127.0.0.1.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ServingError(
            f"{host}:{port} can't be had: {error}. Choose another --port, or 0 for a free one."
        ) from error
    return listener


@contextmanager
def _last_signals() -> Iterator[None]:
    """Let the signals that ended a server count as heard: uvicorn raises them again."""

    def heard(number: int, frame: FrameType | None) -> None:
        """Do nothing."""

    before = {number: signal.signal(number, heard) for number in HANDLED_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
