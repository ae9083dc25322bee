"""One HTTP exchange with an address that was judged, over before a deadline whatever comes."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote, urlsplit

from ..errors import PictureError

# What a URL may hold as it is: RFC 3986, sections 2.2 and 2.3, and escapes that stand already.
_AS_THEY_ARE = "%/?#[]@!$&'()*+,;=:-._~"


@dataclass(frozen=True)
class Target:
    """Where an http or https URL leads.

    Parameters
    ----------
    is_encrypted : bool
    host : str
        In ASCII: a name outside it is in its IDNA form.
    port : int
    path : str
        With the query, escaped.
    """

    is_encrypted: bool
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Target:
        """Read a URL.

        Raises
        ------
        PictureError
            If it isn't one of http or https with a host.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            ascii_host = host.encode("idna").decode("ascii") if host else ""
        except (ValueError, UnicodeError) as error:
            raise PictureError("bad URL", f"{url!r} is no URL: {error}") from error
        if parts.scheme not in ("http", "https") or not ascii_host:
            raise PictureError("bad URL", f"{url!r} is no URL of http or https with a host.")
        path = parts.path or "/"
        query = f"?{parts.query}" if parts.query else ""
        is_encrypted = parts.scheme == "https"
        default = http.client.HTTPS_PORT if is_encrypted else http.client.HTTP_PORT
        escaped = quote(path + query, safe=_AS_THEY_ARE)
        return cls(is_encrypted, ascii_host, default if port is None else port, escaped)

    @property
    def host_header(self) -> str:
        """Host and port as the Host header has them; RFC 9110, section 7.2."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = http.client.HTTPS_PORT if self.is_encrypted else http.client.HTTP_PORT
        return host if self.port == default else f"{host}:{self.port}"


@contextmanager
def get(
    target: Target, addresses: Sequence[str], *, deadline: float, headers: dict[str, str]
) -> Iterator[http.client.HTTPResponse]:
    """Ask for a target at the first of its addresses that answers, and yield the response.

    Parameters
    ----------
    target : Target
        Its host is what the server is told, and what its certificate must name.
    addresses : sequence of str
        IP addresses; nothing else is connected to.
    deadline : float
        In seconds of `time.monotonic`; every wait ends there.
    headers : dict

    Raises
    ------
    OSError
        If there is no connection; TimeoutError after the deadline.
    http.client.HTTPException
        If the answer isn't HTTP.
    """
    with _connect(addresses, target.port, deadline) as plain:
        plain.settimeout(_left(deadline))
        used: socket.socket = plain
        if target.is_encrypted:
            used = _tls().wrap_socket(plain, server_hostname=target.host)
        with used:
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.sock = _TimedSocket(used, deadline)
            connection.request("GET", target.path, headers={"Host": target.host_header, **headers})
            with connection.getresponse() as response:
                yield response


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _connect(addresses: Sequence[str], port: int, deadline: float) -> socket.socket:
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, port), timeout=_left(deadline))
        except OSError:
            continue
    return socket.create_connection((addresses[-1], port), timeout=_left(deadline))


def _left(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("out of time")
    return seconds


class _TimedSocket:
    """What `http.client` needs of a socket; no read or write lasts beyond a deadline.

    A socket's own time limit starts anew with each byte that drips in. Closing is left to whoever
    opened the socket, for a response is read after its connection was closed.
    """

    def __init__(self, used: socket.socket, deadline: float) -> None:
        self._used, self._deadline = used, deadline

    def sendall(self, data: Any) -> None:
        self._used.settimeout(_left(self._deadline))
        self._used.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._used, self._deadline))

    def close(self) -> None:
        pass


class _TimedReader(io.RawIOBase):
    def __init__(self, used: socket.socket, deadline: float) -> None:
        self._used, self._deadline = used, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._used.settimeout(_left(self._deadline))
        return self._used.recv_into(buffer)
