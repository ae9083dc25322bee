from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from index_builder.embeddings.errors import ArtefactError
from retrieval.searching.engine import SearchEngine
from retrieval.serving.app import create_app
from retrieval.serving.served import ServedIndex
from retrieval.serving.settings import Limits, ServerSettings

from .conftest import World

JSON = {"Content-Type": "application/json"}


def code_of(answer: Any) -> str:
    code: str = answer.json()["error"]["code"]
    return code


def query(world: World) -> dict[str, Any]:
    return {"index": "main", "queries": [{"vector": world.queries[0].tolist()}], "k": 3}


def pieces(n_pieces: int, piece: bytes) -> Iterator[bytes]:
    for _ in range(n_pieces):
        yield piece


@pytest.mark.parametrize("path", ["/api/search", "/api/search.arrow", "/knn-service", "/metadata"])
def test_large_bodies_are_refused_by_length_and_by_content(
    make_client: Callable[..., TestClient], path: str
) -> None:
    client = make_client(limits={"most_body_bytes": 1000})
    address = f"{path}?index=main" if path.endswith("arrow") else path
    kind = "application/vnd.apache.arrow.stream" if path.endswith("arrow") else JSON["Content-Type"]
    headers = {"Content-Type": kind}
    by_length = client.post(address, content=b" " * 1001, headers=headers)
    chunked = client.post(address, content=pieces(30, b" " * 100), headers=headers)
    for answer in (by_length, chunked):
        assert (answer.status_code, code_of(answer)) == (413, "too_large")
        assert answer.headers["connection"] == "close"
    fits = client.post(address, content=pieces(10, b" " * 100), headers=headers)
    assert fits.status_code in (400, 422)


def test_a_token_is_wanted_of_everything_but_the_page(
    make_client: Callable[..., TestClient], world: World
) -> None:
    client = make_client(token="s3cret", is_loopback=False)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
        for answer in (
            client.get("/api/indexes", headers=headers),
            client.get("/openapi.json", headers=headers),
            client.get("/nowhere", headers=headers),
            client.post("/knn-service", json={}, headers=headers),
        ):
            assert (answer.status_code, code_of(answer)) == (401, "no_token")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/").status_code == 200
    given = {"Authorization": "Bearer s3cret", "Host": "anything.example"}
    assert client.post("/api/search", json=query(world), headers=given).status_code == 200


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "[::1]:80", "[::1]"]
)
def test_this_machine_may_be_called_by_its_own_names(client: TestClient, host: str) -> None:
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "[::2]:80", ""])
def test_a_name_of_another_site_is_refused(client: TestClient, host: str) -> None:
    answer = client.get("/healthz", headers={"Host": host})
    assert (answer.status_code, code_of(answer)) == (400, "bad_host")


class Held:
    """An engine whose searches last until they may end."""

    def __init__(self, engine: SearchEngine) -> None:
        self._engine = engine
        self.may_end = threading.Event()
        self.has_begun = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def search(self, *arguments: Any, **options: Any) -> Any:
        self.has_begun.set()
        assert self.may_end.wait(60)
        return self._engine.search(*arguments, **options)


def ask_together(
    settings: ServerSettings, bodies: list[bytes], meanwhile: Callable[[], None]
) -> list[tuple[int, bytes]]:
    """Ask an application in one event loop; all have begun to ask when the first body arrives."""

    async def ask(app: Any, body: bytes, arrives: asyncio.Event) -> tuple[int, bytes]:
        sent: list[Any] = []

        async def receive() -> Any:
            await arrives.wait()
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/api/search",
            "raw_path": b"/api/search",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        await app(scope, receive, send)
        return sent[0]["status"], sent[1]["body"]

    async def run() -> list[tuple[int, bytes]]:
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            arrives = asyncio.Event()
            tasks = [asyncio.create_task(ask(app, body, arrives)) for body in bodies]
            await asyncio.sleep(0)
            arrives.set()
            await asyncio.gather(asyncio.to_thread(meanwhile), *tasks)
            return [task.result() for task in tasks]

    return asyncio.run(run())


def search_body(world: World) -> bytes:
    numbers = ",".join(map(str, world.queries[0].tolist()))
    return f'{{"queries": [{{"vector": [{numbers}]}}], "k": 3}}'.encode()


def test_more_than_the_queue_holds_are_told_to_come_again(
    engine: SearchEngine, world: World
) -> None:
    held = Held(engine)
    settings = ServerSettings(
        {"main": ServedIndex("main", held)},  # type: ignore[arg-type]  # acts as one
        limits=Limits(most_waiting=3),
    )

    def meanwhile() -> None:
        assert held.has_begun.wait(60)
        held.may_end.set()

    answers = ask_together(settings, [search_body(world)] * 10, meanwhile)
    statuses = sorted(status for status, _ in answers)
    # One is searched for; of those that came before it ended, three could wait.
    assert set(statuses) == {200, 503} and 4 <= statuses.count(200) < 10
    for status, body in answers:
        if status == 503:
            assert b'"busy"' in body


def test_no_more_are_in_hand_than_the_limit(engine: SearchEngine, world: World) -> None:
    held = Held(engine)
    limits = Limits(most_waiting=1)
    settings = ServerSettings(
        {"main": ServedIndex("main", held)},  # type: ignore[arg-type]  # acts as one
        limits=limits,
    )

    def meanwhile() -> None:
        assert held.has_begun.wait(60)
        held.may_end.set()

    n_asked = limits.most_in_hand + 20
    answers = ask_together(settings, [search_body(world)] * n_asked, meanwhile)
    in_hand = [body for _, body in answers if b"too many requests are in hand" in body]
    assert len(in_hand) == 20


def test_what_takes_too_long_is_given_up(engine: SearchEngine, world: World) -> None:
    held = Held(engine)
    settings = ServerSettings(
        {"main": ServedIndex("main", held)},  # type: ignore[arg-type]  # acts as one
        limits=Limits(timeout_seconds=0.2),
    )
    timer = threading.Timer(1.0, held.may_end.set)
    timer.start()
    try:
        answers = ask_together(settings, [search_body(world)] * 2, lambda: None)
    finally:
        timer.join()
    assert [status for status, _ in answers] == [504, 504]
    assert all(b"no answer within 0.2 seconds" in body for _, body in answers)


def test_a_flaw_gives_500_and_a_number_that_the_log_has_too(
    make_client: Callable[..., TestClient],
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError(f"at {world.root}/deep/inside")

    monkeypatch.setattr(SearchEngine, "search", fail)
    with caplog.at_level(logging.ERROR, logger="voxseek"):
        answer = make_client().post("/api/search", json=query(world))
    assert (answer.status_code, code_of(answer)) == (500, "internal")
    assert str(world.root) not in answer.text and "Traceback" not in answer.text
    found = re.search(r"problem ([0-9a-f]{12})", answer.text)
    assert found is not None and found[1] in caplog.text
    assert "deep/inside" in caplog.text


@pytest.mark.parametrize("error", [ArtefactError("gone"), FileNotFoundError(2, "gone", "/x/y")])
def test_files_that_are_gone_give_503(
    make_client: Callable[..., TestClient],
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(SearchEngine, "search", fail)
    answer = make_client().post("/api/search", json=query(world))
    assert (answer.status_code, code_of(answer)) == (503, "index_unavailable")
    assert "gone" not in answer.text and "/x/y" not in answer.text


def test_metrics_count_what_was_asked(client: TestClient, world: World) -> None:
    for _ in range(3):
        client.post("/api/search", json=query(world))
    client.get("/api/pictures/main/1")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'voxseek_requests_total{route="/api/search",status="200"} 3.0' in answer.text
    missed = 'voxseek_requests_total{route="/api/pictures/{index}/{row}",status="404"} 1.0'
    assert missed in answer.text
    assert 'voxseek_batch_queries_count{index="main"} 3.0' in answer.text
    assert 'voxseek_waiting{index="main"} 0.0' in answer.text


@pytest.mark.parametrize(
    ("field", "value"), [("most_k", 0), ("most_waiting", 0), ("timeout_seconds", 0.0)]
)
def test_limits_are_above_zero(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Limits(**{field: value})
