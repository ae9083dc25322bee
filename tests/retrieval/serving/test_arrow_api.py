from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from retrieval.results import HIT_SCHEMA
from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest
from retrieval.serving.arrow_api import read_vectors
from retrieval.serving.problems import Problem

from .conftest import WIDTH, World

STREAM = "application/vnd.apache.arrow.stream"


def stream(*batches: Any, name: str = "vector", **options: Any) -> bytes:
    schema = pa.schema([pa.field(name, batches[0].type)])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema, **options) as writer:
        for batch in batches:
            writer.write_batch(pa.record_batch([batch], schema))
    return sink.getvalue()


def fixed(rows: np.ndarray) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def ask(client: TestClient, content: bytes, query: str = "index=main&k=4") -> Any:
    headers = {"Content-Type": STREAM}
    return client.post(f"/api/search.arrow?{query}", content=content, headers=headers)


def read(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == STREAM
    with pa.ipc.open_stream(answer.content) as reader:
        return reader.read_all()


def test_a_stream_of_vectors_gives_a_stream_of_hits(
    client: TestClient, engine: SearchEngine, world: World
) -> None:
    rows = world.queries
    hits = read(ask(client, stream(fixed(rows[:10]), fixed(rows[10:]))))
    expected = engine.search(rows, SearchRequest(4))
    assert hits.column_names[: len(HIT_SCHEMA.names)] == HIT_SCHEMA.names
    assert hits.schema.metadata[b"fingerprint"].decode() == engine.fingerprint
    assert hits.schema.metadata[b"effort"].startswith(b"n_probe=")
    assert np.array_equal(hits["row"].to_numpy().reshape(-1, 4), expected.rows)
    assert np.array_equal(hits["score"].to_numpy().reshape(-1, 4), expected.scores)
    assert np.array_equal(hits["query"].to_numpy(), np.repeat(np.arange(len(rows)), 4))
    assert np.array_equal(hits["rank"].to_numpy(), np.tile(np.arange(4), len(rows)))
    captions = [f"caption {row}" for row in expected.rows.ravel()]
    assert hits["caption"].to_pylist() == captions


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("kind", ["fixed", "list", "large", "sliced"])
def test_lists_of_every_kind_are_read(world: World, dtype: Any, kind: str) -> None:
    rows = world.queries[:6].astype(dtype)
    values = pa.array(rows.ravel(), pa.from_numpy_dtype(dtype))
    offsets = np.arange(7) * WIDTH
    lists = {
        "fixed": lambda: fixed(rows),
        "list": lambda: pa.ListArray.from_arrays(offsets.astype(np.int32), values),
        "large": lambda: pa.LargeListArray.from_arrays(offsets, values),
        "sliced": lambda: pa.ListArray.from_arrays(offsets.astype(np.int32), values).slice(2, 3),
    }[kind]()
    read_back = read_vectors(stream(lists), 100)
    assert read_back.dtype == dtype
    assert np.array_equal(read_back, rows[2:5] if kind == "sliced" else rows)


def test_other_columns_are_let_be(world: World) -> None:
    rows = world.queries[:2]
    table = pa.table({"name": ["a", "b"], "vector": fixed(rows)})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert np.array_equal(read_vectors(sink.getvalue(), 2), rows)


def test_parameters_reach_the_engine(
    client: TestClient, engine: SearchEngine, world: World
) -> None:
    content = stream(fixed(world.queries[:3]))
    hits = read(
        ask(client, content, "index=main&k=50&unsafe_from=none&columns=url&columns=punsafe")
    )
    expected = engine.search(world.queries[:3], SearchRequest(50, unsafe_from=None))
    assert np.array_equal(hits["row"].to_numpy().reshape(3, 50), expected.rows)
    assert hits.column_names[-2:] == ["url", "punsafe"]
    assert max(hits["punsafe"].to_pylist()) == 0.9
    few = read(ask(client, content, "index=main&k=50&where=image_id+%3C+5"))
    assert sorted(set(few["row"].to_pylist())) == [0, 1, 2, 4]


ROWS = np.ones((3, WIDTH), np.float32)


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", "bad_arrow", "isn't a sound Arrow IPC stream"),
        (b"hello, this is no stream", "bad_arrow", "isn't a sound Arrow IPC stream"),
        (stream(fixed(ROWS))[:-60], "bad_arrow", "isn't a sound Arrow IPC stream"),
        (stream(fixed(ROWS), name="x"), "bad_arrow", "column vector is missing"),
        (stream(pa.array([1.0])), "bad_arrow", "column vector is double"),
        (stream(fixed(ROWS.astype(np.float64))), "bad_arrow", "expected lists of float16"),
        (stream(pa.array([[1.0], None], pa.list_(pa.float32()))), "bad_arrow", "holds nulls"),
        (stream(pa.array([[1.0, None]], pa.list_(pa.float32()))), "bad_arrow", "holds nulls"),
        (stream(pa.array([[1.0], [1.0, 2.0]], pa.list_(pa.float32()))), "bad_arrow", "lengths"),
        (stream(pa.array([[1.0], [], [1.0, 2.0]], pa.list_(pa.float32()))), "bad_arrow", "lengths"),
        (stream(fixed(ROWS[:, :5])), "wrong_width", "5 numbers"),
        (stream(fixed(np.full((1, WIDTH), np.nan, np.float16))), "no_direction", "NaN"),
        (stream(fixed(ROWS[:0])), "no_queries", "no queries"),
        (stream(fixed(np.ones((1025, WIDTH), np.float16))), "too_many", "more than 1024"),
        (
            stream(fixed(ROWS), options=pa.ipc.IpcWriteOptions(compression="zstd")),
            "bad_arrow",
            "compressed",
        ),
    ],
)
def test_what_is_no_stream_of_vectors_is_refused(
    client: TestClient, content: bytes, code: str, message: str
) -> None:
    answer = ask(client, content)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["code"] == code
    assert message in answer.json()["error"]["message"]


def test_parameters_are_judged(client: TestClient) -> None:
    content = stream(fixed(ROWS))
    for query, status in (
        ("index=main&k=0", 422),
        ("index=main&k=x", 422),
        ("index=main&unsafe_from=2", 422),
        ("index=main&nonsense=1", 422),
        ("index=nowhere", 404),
    ):
        assert ask(client, content, query).status_code == status, query
    wrong = client.post("/api/search.arrow", content=content, headers={"Content-Type": "text/csv"})
    assert wrong.status_code == 415


def test_a_damaged_stream_is_refused_and_nothing_worse() -> None:
    """Flip and cut bytes anywhere: a sound answer or a problem, never another error."""
    rng = np.random.default_rng(5)
    sound = stream(fixed(ROWS))
    for _ in range(400):
        content = bytearray(sound)
        for place in rng.integers(len(content), size=rng.integers(1, 4)):
            content[place] = rng.integers(256)
        damaged = bytes(content[: rng.integers(len(content))] if rng.random() < 0.3 else content)
        try:
            rows = read_vectors(damaged, 1024)
        except Problem as problem:
            assert problem.status == 422
        else:
            assert rows.ndim == 2
