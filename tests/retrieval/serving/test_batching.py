from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from retrieval.searching.request import SearchRequest
from retrieval.serving.batching import Batcher
from retrieval.serving.finding import Found
from retrieval.serving.problems import Problem

ONE = SearchRequest(1)


class Panic(BaseException):
    """As libraries written in Rust raise it."""


class Echo:
    """Finds for a query the row that its first number says; tells what went together."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.has_begun = threading.Event()
        self.error: type[BaseException] = ValueError

    def find(self, vectors: np.ndarray, request: SearchRequest, columns: Any) -> Found:
        self.batches.append(vectors[:, 0].tolist())
        self.has_begun.set()
        assert self.may_go.wait(60)
        if (vectors < 0).any():
            raise self.error("below zero")
        rows = np.repeat(vectors[:, :1].astype(np.int64), request.k, axis=1)
        metadata = pa.table({"row": rows.ravel()})
        zeros = np.zeros(rows.shape, np.int32)
        return Found(rows, rows.astype(np.float32), zeros, metadata, (), 0.0)


def vectors(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)[:, None]


def drive(
    echo: Echo, body: Callable[[Batcher], Any], *, most_waiting: int = 8, most_queries: int = 4
) -> Any:
    async def run() -> Any:
        batcher = Batcher(echo.find, most_waiting=most_waiting, most_queries=most_queries)
        try:
            return await body(batcher)
        finally:
            echo.may_go.set()
            batcher.close()

    return asyncio.run(run())


async def hold(echo: Echo, batcher: Batcher, number: float) -> asyncio.Task[Found]:
    """Begin a search that lasts until `may_go` is set."""
    echo.may_go.clear()
    echo.has_begun.clear()
    task = asyncio.create_task(batcher.submit(vectors(number), ONE, ()))
    await asyncio.to_thread(echo.has_begun.wait, 60)
    return task


def test_what_waits_goes_together_and_comes_back_apart() -> None:
    echo = Echo()

    async def body(batcher: Batcher) -> list[Found]:
        first = await hold(echo, batcher, 1)
        rest = [
            asyncio.create_task(batcher.submit(vectors(*numbers), ONE, ()))
            for numbers in ((2,), (3, 4), (5,), (6,))
        ]
        while batcher.n_waiting < len(rest):
            await asyncio.sleep(0)
        echo.may_go.set()
        return await asyncio.gather(first, *rest)

    found = drive(echo, body)
    assert echo.batches == [[1], [2, 3, 4, 5], [6]]
    assert [each.rows[:, 0].tolist() for each in found] == [[1], [2], [3, 4], [5], [6]]
    assert found[2].metadata["row"].to_pylist() == [3, 4]


def test_an_idle_batcher_starts_at_once() -> None:
    echo = Echo()

    async def body(batcher: Batcher) -> None:
        for number in range(3):
            await batcher.submit(vectors(number), ONE, ())

    drive(echo, body)
    assert echo.batches == [[0], [1], [2]]


def test_other_requests_go_apart() -> None:
    echo = Echo()

    async def body(batcher: Batcher) -> None:
        first = await hold(echo, batcher, 1)
        others = [
            asyncio.create_task(batcher.submit(vectors(2), SearchRequest(2), ())),
            asyncio.create_task(batcher.submit(vectors(3), ONE, ("caption",))),
            asyncio.create_task(batcher.submit(vectors(4), SearchRequest(2), ())),
        ]
        while batcher.n_waiting < len(others):
            await asyncio.sleep(0)
        echo.may_go.set()
        await asyncio.gather(first, *others)

    drive(echo, body)
    assert echo.batches == [[1], [2, 4], [3]]


def test_a_large_request_lets_a_small_one_pass_between_its_pieces() -> None:
    echo = Echo()

    async def body(batcher: Batcher) -> Found:
        first = await hold(echo, batcher, 1)
        large = asyncio.create_task(batcher.submit(vectors(*range(10, 19)), ONE, ()))
        small = asyncio.create_task(batcher.submit(vectors(2), SearchRequest(2), ()))
        while batcher.n_waiting < 2:
            await asyncio.sleep(0)
        echo.may_go.set()
        await asyncio.gather(first, small)
        return await large

    found = drive(echo, body)
    assert echo.batches == [[1], [10, 11, 12, 13], [2], [14, 15, 16, 17], [18]]
    assert found.rows[:, 0].tolist() == list(range(10, 19))
    assert found.metadata["row"].to_pylist() == list(range(10, 19))


def test_too_many_are_refused_and_come_through_later() -> None:
    echo = Echo()

    async def body(batcher: Batcher) -> Found:
        first = await hold(echo, batcher, 1)
        waiting = [asyncio.create_task(batcher.submit(vectors(2), ONE, ())) for _ in range(3)]
        while batcher.n_waiting < 3:
            await asyncio.sleep(0)
        with pytest.raises(Problem, match="3 requests wait already") as refused:
            await batcher.submit(vectors(3), ONE, ())
        assert refused.value.status == 503
        assert refused.value.headers == {"Retry-After": "1"}
        echo.may_go.set()
        await asyncio.gather(first, *waiting)
        return await batcher.submit(vectors(3), ONE, ())

    assert drive(echo, body, most_waiting=3).rows.tolist() == [[3]]


def test_who_gave_up_is_not_searched_for_and_makes_room() -> None:
    echo = Echo()

    async def body(batcher: Batcher) -> Found:
        first = await hold(echo, batcher, 1)
        given_up = asyncio.create_task(batcher.submit(vectors(2), ONE, ()))
        while batcher.n_waiting < 1:
            await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        third = asyncio.create_task(batcher.submit(vectors(3), ONE, ()))
        while batcher.n_waiting != 1:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        echo.may_go.set()
        await first
        return await third

    assert drive(echo, body, most_waiting=1).rows.tolist() == [[3]]
    assert echo.batches == [[1], [3]]


@pytest.mark.parametrize("error", [ValueError, Panic])
def test_an_error_reaches_those_who_asked_and_nobody_else(error: type[BaseException]) -> None:
    echo = Echo()
    echo.error = error

    async def body(batcher: Batcher) -> Found:
        first = await hold(echo, batcher, 1)
        bad = asyncio.create_task(batcher.submit(vectors(-1), SearchRequest(2), ()))
        good = asyncio.create_task(batcher.submit(vectors(7), ONE, ()))
        while batcher.n_waiting < 2:
            await asyncio.sleep(0)
        echo.may_go.set()
        with pytest.raises(error, match="below zero"):
            await bad
        await first
        return await good

    assert drive(echo, body).rows.tolist() == [[7]]
