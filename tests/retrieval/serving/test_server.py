"""`voxseek serve` as a process of its own: signals, slow and greedy clients, files that vanish."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest

from .conftest import ROOT, World, draw, write_embeddings, write_index

JSON = {"Content-Type": "application/json"}


def body_of(query: np.ndarray, **asked: Any) -> str:
    return json.dumps({"queries": [{"vector": query.astype(float).tolist()}], **asked})


def rows_of(content: bytes) -> list[int]:
    return [hit["row"] for hit in json.loads(content)["results"][0]["hits"]]


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    return received


def test_sixty_four_clients_get_what_the_engine_finds(
    serve: Callable[..., Any], world: World, engine: SearchEngine
) -> None:
    expected = engine.search(world.queries, SearchRequest(9))
    with serve(f"main={world.main}") as server:

        def ask(client: int) -> None:
            connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
            for step in range(12):
                number = (client * 7 + step) % len(world.queries)
                connection.request("POST", "/api/search", body_of(world.queries[number], k=9), JSON)
                answer = connection.getresponse()
                content = answer.read()
                assert answer.status == 200, content
                assert rows_of(content) == expected.rows[number].tolist()
                hits = json.loads(content)["results"][0]["hits"]
                scores = np.array([hit["score"] for hit in hits], np.float32)
                assert np.array_equal(scores, expected.scores[number])
            connection.close()

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(ask, range(64)))
        assert server.child.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_nothing(
    serve: Callable[..., Any], world: World, engine: SearchEngine, number: signal.Signals
) -> None:
    """Each client asks until it is told that the connection ends; all answers are right."""
    expected = engine.search(world.queries, SearchRequest(5)).rows.tolist()
    n_clients = 12
    under_way = threading.Barrier(n_clients + 1)
    with serve(f"main={world.main}") as server:

        def ask(client: int) -> int:
            connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
            n_answers = 0
            while True:
                place = (client + n_answers) % len(expected)
                connection.request("POST", "/api/search", body_of(world.queries[place], k=5), JSON)
                answer = connection.getresponse()
                content = answer.read()
                assert answer.status == 200
                assert rows_of(content) == expected[place]
                n_answers += 1
                if n_answers == 3:
                    under_way.wait(120)
                if answer.getheader("connection") == "close":
                    connection.close()
                    return n_answers

        with ThreadPoolExecutor(n_clients) as pool:
            clients = [pool.submit(ask, client) for client in range(n_clients)]
            under_way.wait(120)
            server.child.send_signal(number)
            assert all(client.result() >= 4 for client in clients)
        assert server.child.wait(60) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_large_bodies_end_in_413_whether_or_not_they_say_so(
    serve: Callable[..., Any], world: World
) -> None:
    with serve(f"main={world.main}", "--most-body", "64KiB") as server:
        told = HTTPConnection("127.0.0.1", server.port, timeout=60)
        told.request("POST", "/api/search", b"x" * 200_000, JSON)
        answer = told.getresponse()
        assert answer.status == 413 and b"too_large" in answer.read()
        told.close()
        chunked = HTTPConnection("127.0.0.1", server.port, timeout=60)
        chunked.request(
            "POST", "/api/search", iter([b"x" * 10_000] * 20), JSON, encode_chunked=True
        )
        answer = chunked.getresponse()
        assert answer.status == 413 and b"too_large" in answer.read()
        chunked.close()
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as polite:
            polite.sendall(
                b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
                b"Content-Length: 200000\r\n\r\n"
            )
            assert read_all(polite).startswith(b"HTTP/1.1 413")
        assert server.post("/api/search", json.loads(body_of(world.queries[0])))[0] == 200


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000\r\n\r\n{",
    ],
    ids=["nothing", "head", "body"],
)
def test_slow_clients_are_dropped(serve: Callable[..., Any], world: World, start: bytes) -> None:
    """A byte now and then keeps no connection open beyond its time."""
    with (
        serve(f"main={world.main}", "--timeout", "1") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=0.2) as slow,
    ):
        slow.sendall(start)
        received = b""
        for _ in range(300):  # a byte each fifth of a second, for a minute at most
            try:
                slow.sendall(b"a" if start else b"")
                piece = slow.recv(1 << 16)
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
            if not piece:
                break
            received += piece
        else:
            pytest.fail("the connection is still open")
        assert received.startswith(b"HTTP/1.1 408") or not received
        assert server.get("/healthz")[0] == 200


def test_a_client_that_does_not_take_its_answer_is_dropped(
    serve: Callable[..., Any], world: World
) -> None:
    body = json.dumps({"vectors_npy": _npy(world.queries), "k": 600, "unsafe_from": None})
    request = (
        f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    with (
        serve(f"main={world.main}", "--timeout", "2") as server,
        socket.socket() as greedy,
    ):
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.settimeout(60)
        greedy.connect(("127.0.0.1", server.port))
        greedy.sendall(request)
        # Nothing is taken; the reset of the connection arrives nevertheless.
        watched = select.poll()
        watched.register(greedy, 0)
        assert watched.poll(60_000), "the connection is still open"
        assert server.get("/healthz")[0] == 200


def _npy(rows: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, rows)
    return base64.b64encode(buffer.getvalue()).decode()


def test_files_removed_under_it_do_no_harm(
    serve: Callable[..., Any], tmp_path: Path, world: World
) -> None:
    columns = {"caption": [f"caption {i}" for i in range(400)]}
    embeddings = write_embeddings(tmp_path / "embeddings", draw(400, 9), columns)
    index = write_index(tmp_path / "index", embeddings, n_shards=2)
    expected = SearchEngine.open(index).search(world.queries, SearchRequest(5)).rows.tolist()
    with serve(index) as server:
        for folder in (index, tmp_path / "embeddings"):
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    path.unlink()
        for number, query in enumerate(world.queries[:16]):
            status, answer = server.post("/api/search", json.loads(body_of(query, k=5)))
            assert status in (200, 500, 503), answer
            if status == 200:
                rows = [hit["row"] for hit in answer["results"][0]["hits"]]
                assert rows == expected[number]
            else:
                assert str(tmp_path) not in json.dumps(answer)
        assert server.get("/healthz")[0] == 200
        assert server.child.poll() is None


def test_what_is_not_http_is_refused(serve: Callable[..., Any], world: World) -> None:
    with (
        serve(f"main={world.main}") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection,
    ):
        connection.sendall(b"\x16\x03\x01 this is no request\r\n\r\n")
        received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 400") and b'"code":"bad_http"' in received


def test_a_second_server_on_a_port_says_so(serve: Callable[..., Any], world: World) -> None:
    with serve(f"main={world.main}") as server:
        command = [sys.executable, "cli.py", "serve", str(world.main), "--port", str(server.port)]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert second.returncode == 1
    assert "Choose another --port" in second.stderr and not second.stdout


def test_others_may_connect_with_a_token_alone(world: World, tmp_path: Path) -> None:
    command = [sys.executable, "cli.py", "serve", str(world.main), "--host", "0.0.0.0"]
    environment = {name: os.environ[name] for name in os.environ if name != "VOXSEEK_TOKEN"}
    refused = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment
    )
    assert refused.returncode == 1
    assert "there is no token" in refused.stderr and "--token-file" in refused.stderr


def test_a_token_of_a_file_is_asked_for(
    serve: Callable[..., Any], world: World, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    arguments = (f"main={world.main}", "--host", "0.0.0.0", "--token-file", tmp_path / "token")
    with serve(*arguments) as server:
        assert server.get("/healthz")[0] == 401
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("GET", "/healthz", headers={"Authorization": "Bearer s3cret"})
        assert connection.getresponse().status == 200
        connection.close()
