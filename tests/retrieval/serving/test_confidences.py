from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from retrieval.confidence.artefact import Assessment
from retrieval.errors import ConfidenceError
from retrieval.searching.request import SearchRequest
from retrieval.serving.served import ServedRun


class FakeConfidence:
    """Sure of what it is asked by the first score; knows three trials at most."""

    def __init__(self, decoder: dict[str, str]) -> None:
        self.manifest = {"decoder": decoder}
        self.asked: list[Any] = []

    def require_applicable(self, request: SearchRequest) -> None:
        if request.where is not None:
            raise ConfidenceError("the search sets where")

    def assess(self, queries: np.ndarray, result: Any, n_trials: np.ndarray) -> Assessment:
        self.asked.append((queries, result.rows, n_trials))
        sure = np.where(n_trials > 1, result.scores[:, 0], np.nan).astype(np.float32)
        return Assessment(sure, result.scores)


@pytest.fixture
def confidence(run: ServedRun) -> FakeConfidence:
    return FakeConfidence(dict(run.decoder))


def search(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    queries = [
        {"vector": [1.0] * 48},
        {"run": "run01", "image_id": 5},
        {"run": "run01", "image_id": 11},
        {"run": "run01", "image_id": 7},
    ]
    answer = client.post("/api/search", json={"index": "main", "queries": queries, **body})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def test_trials_have_a_confidence_and_others_none(
    make_client: Callable[..., TestClient], confidence: FakeConfidence, run: ServedRun
) -> None:
    results = search(make_client(confidences=[confidence]))
    told = [result["confidence"] for result in results]
    firsts = [result["hits"][0]["score"] for result in results]
    # Image 11 is of one trial, of which the confidence knows nothing.
    assert told == [None, pytest.approx(firsts[1]), None, pytest.approx(firsts[3])]
    queries, rows, n_trials = confidence.asked[0]
    assert np.array_equal(queries, np.stack([run.vector(i) for i in (5, 11, 7)]))
    assert [row[0] for row in rows] == [result["hits"][0]["row"] for result in results[1:]]
    assert n_trials.tolist() == [3, 1, 2]


def test_a_search_that_it_was_not_fitted_on_has_none(
    make_client: Callable[..., TestClient], confidence: FakeConfidence
) -> None:
    results = search(make_client(confidences=[confidence]), where="image_id > 10")
    assert [result["confidence"] for result in results] == [None] * 4


def test_another_runs_confidence_says_nothing(make_client: Callable[..., TestClient]) -> None:
    other = FakeConfidence({"run": "e" * 64, "head": "retrieval"})
    results = search(make_client(confidences=[other]))
    assert [result["confidence"] for result in results] == [None] * 4
    assert not other.asked
