from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index_builder import code_graph
from index_builder.code_graph import FILES, LEVELS_FILE, LINKS_FILE, CodeGraph, GraphLinker
from index_builder.errors import FaissVersionError, IndexDamagedError

WIDTH = 24


@pytest.fixture
def codes(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (600, WIDTH), dtype=np.uint8)


def link(codes: np.ndarray, batch: int = 100) -> CodeGraph:
    linker = GraphLinker(codes.shape[1], len(codes))
    for start in range(0, len(codes), batch):
        linker.add(codes[start : start + batch])
    return linker.finish()


@pytest.fixture
def folder(codes: np.ndarray, tmp_path: Path) -> Path:
    assert link(codes).save(tmp_path) == list(FILES)
    return tmp_path


def squared_distances(queries: np.ndarray, codes: np.ndarray) -> np.ndarray:
    difference = queries[:, None].astype(np.int64) - codes[None].astype(np.int64)
    distances: np.ndarray = (difference**2).sum(axis=2)
    return distances


def test_a_walk_finds_most_of_the_nearest(codes: np.ndarray, rng: np.random.Generator) -> None:
    graph = link(codes)
    queries = rng.integers(0, 256, (40, WIDTH), dtype=np.uint8)
    exact = squared_distances(queries, codes)
    distances, nodes = graph.nearest(queries, 10, 100)
    np.testing.assert_array_equal(distances, np.take_along_axis(exact, nodes, axis=1))
    nearest = np.argsort(exact, axis=1, kind="stable")[:, :10]
    assert np.mean([np.isin(*pair).mean() for pair in zip(nearest, nodes, strict=True)]) > 0.95


@pytest.mark.parametrize("breadth", [600, 10_000])
def test_all_nodes_in_view_are_all_compared(
    codes: np.ndarray, rng: np.random.Generator, breadth: int
) -> None:
    queries = rng.integers(0, 256, (10, WIDTH), dtype=np.uint8)
    distances, nodes = link(codes).nearest(queries, 600, breadth)
    np.testing.assert_array_equal(np.sort(nodes, axis=1), np.tile(np.arange(600), (10, 1)))
    expected = np.sort(squared_distances(queries, codes), axis=1)
    np.testing.assert_array_equal(distances, expected)


def test_what_is_saved_is_what_was_linked(codes: np.ndarray, folder: Path) -> None:
    graph, again = link(codes), CodeGraph.load(folder, WIDTH)
    assert len(again) == len(graph) == 600 and again.entry == graph.entry
    np.testing.assert_array_equal(again.codes, codes)
    np.testing.assert_array_equal(again.links, graph.links)
    for breadth in (16, 64, 600):
        for found, expected in zip(
            again.nearest(codes[:50], 8, breadth),
            graph.nearest(codes[:50], 8, breadth),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)


def test_the_same_graph_however_codes_are_handed_over(
    codes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_graph, "_BLOCK_BYTES", 4 * WIDTH * 170)
    first = link(codes)
    for batch in (1, 169, 170, 171, 600):
        again = link(codes, batch)
        np.testing.assert_array_equal(again.links, first.links)
        np.testing.assert_array_equal(again.levels, first.levels)
        assert again.entry == first.entry


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_nodes_and_none(codes: np.ndarray, tmp_path: Path, n: int) -> None:
    link(codes[:n]).save(tmp_path)
    graph = CodeGraph.load(tmp_path, WIDTH)
    assert len(graph) == n and graph.codes.shape == (n, WIDTH)
    if n:
        nodes = graph.nearest(codes[:n], n, 1)[1]
        np.testing.assert_array_equal(nodes[:, 0], np.arange(n))


def test_what_is_not_found_is_minus_one(codes: np.ndarray, folder: Path) -> None:
    np.save(folder / LINKS_FILE, np.full_like(np.load(folder / LINKS_FILE), -1))
    distances, nodes = CodeGraph.load(folder, WIDTH).nearest(codes[:5], 4, 10)
    assert (nodes[:, 1:] == -1).all() and np.isinf(distances[:, 1:]).all()
    assert (nodes[:, 0] >= 0).all() and np.isfinite(distances[:, 0]).all()


def lead_astray(levels: np.ndarray, links: np.ndarray) -> None:
    links[5] = len(levels)


def lead_below(levels: np.ndarray, links: np.ndarray) -> None:
    links[7] = -2


def leave_a_level(levels: np.ndarray, links: np.ndarray) -> None:
    node = int(np.flatnonzero(levels == 2)[0])
    links[64 * node + 32 * int((levels[:node] - 1).sum()) + 64] = np.flatnonzero(levels == 1)[0]


def raise_a_level(levels: np.ndarray, links: np.ndarray) -> None:
    levels[0] = 200


def sink_a_level(levels: np.ndarray, links: np.ndarray) -> None:
    levels[0] = 0


def raise_and_keep(levels: np.ndarray, links: np.ndarray) -> None:
    levels[np.flatnonzero(levels == 1)[0]] = 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lead_astray, "links lead from -1 to 600"),
        (lead_below, "links lead from -2 to"),
        (leave_a_level, "a link of level 1 leads to a node that is not on it"),
        (raise_a_level, "levels are 1 to 200, expected 1 to"),
        (sink_a_level, "levels are 0 to"),
        (raise_and_keep, r"links are int32 \(\d+,\), expected int32"),
    ],
)
def test_links_that_lead_out_of_the_arrays(
    folder: Path,
    damage: Callable[[np.ndarray, np.ndarray], None],
    message: str,
) -> None:
    levels, links = np.load(folder / LEVELS_FILE), np.load(folder / LINKS_FILE)
    damage(levels, links)
    np.save(folder / LEVELS_FILE, levels)
    np.save(folder / LINKS_FILE, links)
    with pytest.raises(IndexDamagedError, match=f"not a graph of 600 nodes: {message}"):
        CodeGraph.load(folder, WIDTH)


@pytest.mark.parametrize("entry", [-1, 600])
def test_an_entry_that_is_no_node(folder: Path, entry: int) -> None:
    np.save(folder / "entry.npy", np.array([entry]))
    with pytest.raises(IndexDamagedError, match=f"the entry is {entry}, expected a node on level"):
        CodeGraph.load(folder, WIDTH)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("codes.npy", np.zeros((600, 23), np.uint8)),
        ("levels.npy", np.ones(600, np.int32)),
        ("entry.npy", np.zeros(2, np.int64)),
    ],
)
def test_arrays_that_do_not_fit(folder: Path, name: str, array: np.ndarray) -> None:
    np.save(folder / name, array)
    with pytest.raises(IndexDamagedError, match="has codes, levels and entry of"):
        CodeGraph.load(folder, WIDTH)


def test_a_faiss_that_lays_out_links_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_graph, "link_bounds", lambda graph: np.array([0, 32, 64]))
    with pytest.raises(FaissVersionError, match=r"at \[0, 32, 64\], and graphs .* \[0, 64, 96\]"):
        CodeGraph.load(folder, WIDTH)
