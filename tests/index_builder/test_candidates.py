from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from index_builder import candidates, graph
from index_builder.candidates import nominate, open_nominator
from index_builder.cosine import unit_rows
from index_builder.graph import Graph, GraphWriter
from index_builder.row_set import RowSet

Cone = Callable[..., np.ndarray]


class Exhaustive:
    """Nominates by inner product with all rows of lists that it reads in a fixed order.

    Row r is in list r % n_lists; a breadth of b reads the first b lists.
    """

    breadth_name = "n_probe"
    ram_bytes = 0

    def __init__(self, unit: np.ndarray, n_lists: int) -> None:
        self.unit, self.n_codes, self.most_breadth = unit, len(unit), n_lists
        self.n_asked = 0

    def breadths(self) -> list[int]:
        return [self.most_breadth]

    def read_bytes(self, breadth: int) -> int:
        return breadth

    def widened(self, breadth: int, share: float) -> int:
        return min(self.most_breadth, math.ceil(breadth / share))

    def candidates(
        self,
        unit: np.ndarray,
        breadth: int,
        n_candidates: int,
        *,
        n_least: int,
        allowed: RowSet | None = None,
    ) -> np.ndarray:
        assert allowed is None
        self.n_asked += len(unit)
        list_of = np.arange(self.n_codes) % self.most_breadth
        while (list_of < breadth).sum() < min(n_least, self.n_codes):
            breadth += 1
        seen = np.flatnonzero(list_of < breadth)
        order = np.argsort(-(unit @ self.unit[seen].T), axis=1, kind="stable")[:, :n_candidates]
        rows = np.full((len(unit), n_candidates), -1)
        rows[:, : order.shape[1]] = seen[order]
        return rows


@pytest.mark.parametrize("seed", range(40))
def test_deleted_rows_are_as_if_they_had_never_been(cone: Cone, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, n_lists = int(rng.integers(1, 200)), int(rng.integers(1, 12))
    unit, queries = unit_rows(cone(n)), unit_rows(cone(6))
    deleted = np.sort(rng.choice(n, rng.integers(0, n + 1), replace=False)).astype(np.int64)
    breadth = int(rng.integers(1, n_lists + 1))
    n_candidates = int(rng.integers(1, 2 * n + 1))
    n_least = int(rng.integers(1, n_candidates + 1))
    found = nominate(
        Exhaustive(unit, n_lists), queries, breadth, n_candidates, n_least=n_least, deleted=deleted
    )
    assert found.shape == (6, n_candidates)
    alive = np.setdiff1d(np.arange(n), deleted)
    assert not np.isin(found, deleted).any()
    assert ((found >= 0).sum(axis=1) >= min(n_least, len(alive))).all()
    # What is seen of the alive rows is listed from the best on, with no other between.
    in_breadth = alive[alive % n_lists < breadth]
    for query, rows in zip(queries, found, strict=True):
        n_found = (rows >= 0).sum()
        assert (rows[n_found:] == -1).all()
        assert n_found >= min(n_candidates, len(in_breadth))
        order = np.argsort(-(unit[rows[:n_found]] @ query), kind="stable")
        np.testing.assert_array_equal(order, np.arange(n_found))
        if len(in_breadth) >= n_least:
            expected = in_breadth[np.argsort(-(unit[in_breadth] @ query), kind="stable")]
            if set(rows[:n_found]) <= set(in_breadth):
                np.testing.assert_array_equal(rows[:n_found], expected[:n_candidates])


def test_all_lists_give_the_exhaustive_list_without_the_deleted(
    rng: np.random.Generator, cone: Cone
) -> None:
    unit, queries = unit_rows(cone(300)), unit_rows(cone(20))
    deleted = np.sort(rng.choice(300, 120, replace=False))
    every = Exhaustive(unit, 4).candidates(queries, 4, 300, n_least=1)
    found = nominate(Exhaustive(unit, 4), queries, 4, 50, n_least=10, deleted=deleted)
    for rows, listed in zip(found, every, strict=True):
        np.testing.assert_array_equal(rows, listed[~np.isin(listed, deleted)][:50])


def test_only_queries_that_lost_candidates_are_asked_again(cone: Cone) -> None:
    unit = unit_rows(cone(100))
    nominator = Exhaustive(unit, 1)
    nearest = nominator.candidates(unit, 1, 1, n_least=1)[:, 0]
    nominator.n_asked = 0
    nominate(nominator, unit, 1, 1, n_least=1, deleted=np.array([nearest[0]]))
    assert nominator.n_asked == 100 + (nearest == nearest[0]).sum()


def test_nothing_left(cone: Cone) -> None:
    unit = unit_rows(cone(30))
    found = nominate(Exhaustive(unit, 3), unit[:2], 1, 5, n_least=5, deleted=np.arange(30))
    np.testing.assert_array_equal(found, np.full((2, 5), -1))


@pytest.fixture
def shards(
    cone: Cone,
    tmp_path: Path,
    make_quantizer: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[np.ndarray, list[Any]]:
    unit = unit_rows(cone(700))
    quantizer = make_quantizer(unit)
    monkeypatch.setattr(graph, "load_quantizer", lambda folder: quantizer)
    plan = SimpleNamespace(space=SimpleNamespace(width=48))
    writer = GraphWriter(tmp_path / "shard", plan, quantizer, 700)
    writer.add(np.arange(700, dtype=np.uint32), unit)
    writer.finish()
    return unit, [SimpleNamespace(folder=tmp_path / "shard", row_start=0, row_stop=700)]


def test_a_graph_without_the_deleted_rows(
    rng: np.random.Generator, shards: tuple[np.ndarray, list[Any]], tmp_path: Path
) -> None:
    unit, stored = shards
    nominator = Graph.open(tmp_path, stored)
    deleted = np.sort(rng.choice(700, 400, replace=False))
    found = nominate(nominator, unit[:30], 700, 20, n_least=20, deleted=deleted)
    every = nominator.candidates(unit[:30], 700, 700, n_least=700)
    for rows, listed in zip(found, every, strict=True):
        np.testing.assert_array_equal(rows, listed[~np.isin(listed, deleted)][:20])
    few = nominate(nominator, unit[:30], 16, 300, n_least=300, deleted=deleted)
    np.testing.assert_array_equal(
        np.sort(few, axis=1), np.tile(np.setdiff1d(np.arange(700), deleted), (30, 1))
    )


def test_the_code_of_the_plan_is_opened(
    shards: tuple[np.ndarray, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        candidates,
        "InvertedFile",
        SimpleNamespace(open=lambda *args, **named: asked.append((args, named)) or "lists"),
    )
    flat = SimpleNamespace(code="flat", tier="memory")
    assert open_nominator(tmp_path, flat, []) is None
    planned = SimpleNamespace(code="hnsw-sq8", tier="memory")
    assert isinstance(open_nominator(tmp_path, planned, shards[1], tier="disk"), Graph)
    planned = SimpleNamespace(code="ivf-rabitq", tier="memory", bits=2)
    assert open_nominator(tmp_path, planned, [1]) == "lists"
    assert open_nominator(tmp_path, planned, [1], tier="disk") == "lists"
    assert asked == [
        ((tmp_path, [1]), {"bits": 2, "tier": "memory"}),
        ((tmp_path, [1]), {"bits": 2, "tier": "disk"}),
    ]


@pytest.mark.parametrize("share", [0.9, 0.3, 0.02])
def test_a_graph_finds_allowed_rows_alone(
    rng: np.random.Generator, shards: tuple[np.ndarray, list[Any]], tmp_path: Path, share: float
) -> None:
    unit, stored = shards
    opened = Graph.open(tmp_path, stored)
    allowed = RowSet.of_mask(rng.random(700) < share)
    every = opened.candidates(unit[:20], opened.most_breadth, 700, n_least=1)
    wide = opened.widened(16, share) or opened.most_breadth
    for breadth, n_least in ((opened.most_breadth, 1), (wide, 10)):
        found = nominate(
            opened,
            unit[:20],
            breadth,
            12,
            n_least=n_least,
            deleted=np.empty(0, np.int64),
            allowed=allowed,
        )
        expected = [rows[allowed.holds(rows)][:12] for rows in every]
        assert allowed.holds(found[found >= 0]).all()
        assert ((found >= 0).sum(axis=1) >= min(n_least, len(allowed))).all()
        hits = [np.isin(few, rows).mean() for few, rows in zip(expected, found, strict=True)]
        assert np.mean(hits) > (0.9 if breadth < opened.most_breadth else 0.9999)


def test_a_graph_is_not_walked_where_comparing_the_rows_is_less(
    shards: tuple[np.ndarray, list[Any]], tmp_path: Path
) -> None:
    opened = Graph.open(tmp_path, shards[1])
    assert opened.widened(16, 0.5) == 32  # of 350 rows that may be found
    assert opened.widened(16, 0.15) is None  # 107 nodes in view, 105 rows that may be found


def test_a_graph_forgets_sets_that_are_gone(
    shards: tuple[np.ndarray, list[Any]], tmp_path: Path
) -> None:
    unit, stored = shards
    opened = Graph.open(tmp_path, stored)
    allowed = RowSet.of_rows(np.arange(100), 700)
    opened.candidates(unit[:1], 16, 5, n_least=1, allowed=allowed)
    assert len(opened._allowed) == 1
    del allowed
    assert not opened._allowed
