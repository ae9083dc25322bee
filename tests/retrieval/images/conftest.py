from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from retrieval.images.addresses import Network


def picture_bytes(rng: np.random.Generator, form: str = "PNG", side: int = 24) -> bytes:
    buffer = BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def png(rng: np.random.Generator) -> bytes:
    return picture_bytes(rng)


Route = Callable[["Asked"], None]


class Asked(BaseHTTPRequestHandler):
    """A request, handed to the function of its path."""

    server: Stranger

    def do_GET(self) -> None:
        self.server.asked.append(self)
        try:
            self.server.routes[self.path.partition("?")[0]](self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # The client had enough.

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def redirect(self, location: str) -> None:
        self.answer(b"", 302, Location=location)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Stranger(ThreadingHTTPServer):
    """A server on this machine whose routes a test writes; joined when it is closed."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.routes: dict[str, Route] = {}
        self.asked: list[Asked] = []
        self.is_over = threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str, host: str = "pictures.test") -> str:
        return f"http://{host}:{self.port}{path}"


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    with Stranger() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.is_over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def here() -> Network:
    """Every name under .test is this machine, which may be connected to; nothing else may."""

    def resolve(host: str, port: int) -> list[str]:
        if host.endswith(".test"):
            return ["127.0.0.1"]
        return [host]

    return Network(resolve=resolve, permits=lambda address: address == "127.0.0.1")
