"""What a worker keeps: the process of the tests plays the worker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder.cosine import unit_rows
from index_builder.deletion import delete_rows
from index_builder.embeddings.errors import ArtefactError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.errors import IndexDamagedError
from index_builder.manifest import read_index_manifest
from index_builder.row_set import RowSet
from retrieval.searching import held_shards
from retrieval.searching.engine import SearchEngine
from retrieval.searching.held_shards import ShardQuestion, answer_shard, rows_of_shard
from retrieval.searching.request import SearchRequest

Draw = Callable[[int], np.ndarray]
Write = Callable[..., EmbeddingFolder]
Build = Callable[..., Path]
NAMES = ("shards/0000", "shards/0001", "shards/0002")


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    held_shards._held.clear()
    yield
    held_shards._held.clear()


@pytest.fixture
def build(build: Build) -> Build:
    return partial(build, n_queries=20)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that were opened, in this order."""
    names: list[str] = []
    really_open = held_shards._HeldIndex.open

    def note(index: Any, name: str) -> Any:
        names.append(name)
        return really_open(index, name)

    monkeypatch.setattr(held_shards._HeldIndex, "open", note)
    return names


def question_of(
    index: Path, shard: str = NAMES[0], dealt: tuple[str, ...] = NAMES
) -> ShardQuestion:
    fingerprint = read_index_manifest(index)["fingerprint"]
    return ShardQuestion(str(index), fingerprint, None, shard, dealt, k=5)


def test_a_shard_is_opened_once_and_kept(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, opened: list[str]
) -> None:
    index = build(write_gallery_rows(draw_rows(300)), n_shards=3)
    unit = unit_rows(draw_rows(2))
    for name in (*NAMES, *NAMES):
        answer_shard(question_of(index, name), unit, None)
    assert opened == list(NAMES)


def test_threads_open_a_shard_once(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, opened: list[str]
) -> None:
    index = build(write_gallery_rows(draw_rows(300)), n_shards=3)
    unit, barrier = unit_rows(draw_rows(2)), threading.Barrier(4)

    def ask(name: str) -> Any:
        barrier.wait()
        return answer_shard(question_of(index, name), unit, None)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, [NAMES[0], NAMES[1]] * 2))
    assert sorted(opened) == list(NAMES[:2])
    np.testing.assert_array_equal(found[0][0], found[2][0])


def test_shards_that_go_to_others_are_let_go(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, opened: list[str]
) -> None:
    index = build(write_gallery_rows(draw_rows(300)), n_shards=3)
    unit = unit_rows(draw_rows(2))
    for name in NAMES:
        answer_shard(question_of(index, name), unit, None)
    answer_shard(question_of(index, NAMES[0], NAMES[:2]), unit, None)
    (held,) = held_shards._held.values()
    assert set(held.places) == set(NAMES[:2])
    # One that it is asked for without being dealt it is opened all the same.
    answer_shard(question_of(index, NAMES[2], NAMES[:1]), unit, None)
    assert set(held.places) == {NAMES[0], NAMES[2]}
    assert opened == [*NAMES, NAMES[2]]


def test_an_earlier_state_of_an_index_is_let_go(
    draw_rows: Draw, write_gallery_rows: Write, build: Build, opened: list[str]
) -> None:
    rows = draw_rows(300)
    index = build(write_gallery_rows(rows), n_shards=3)
    other = build(write_gallery_rows(rows, "others"), n_shards=3, name="other")
    unit = unit_rows(rows[:1])
    earlier = question_of(index)
    for question in (earlier, question_of(other)):
        assert answer_shard(question, unit, None)[0][0, 0] == 0
    delete_rows(index, np.array([0]))
    assert answer_shard(question_of(index), unit, None)[0][0, 0] != 0
    assert len(held_shards._held) == 2
    assert opened == [NAMES[0]] * 3
    with pytest.raises(IndexDamagedError, match=r"has fingerprint .*, and was opened with"):
        answer_shard(earlier, unit, None)


def test_a_shard_that_was_altered_is_not_opened(
    draw_rows: Draw, write_gallery_rows: Write, build: Build
) -> None:
    index = build(write_gallery_rows(draw_rows(300)), n_shards=3)
    unit, sound = unit_rows(draw_rows(2)), question_of(index)
    for name in ("codes.npy", "metadata.arrow"):
        path = index / "shards" / "0001" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ArtefactError, match=name.replace(".", r"\.")):
            answer_shard(replace(sound, shard=NAMES[1]), unit, None)
        path.write_bytes(content)
    answer_shard(replace(sound, shard=NAMES[1]), unit, None)  # nobody remembers the failure


@pytest.mark.parametrize(
    "design",
    [
        {"code": "flat", "tier": "disk"},
        {"code": "flat", "tier": "memory"},
        {"code": "ivf-rabitq"},
        {"code": "hnsw-sq8"},
    ],
    ids=["flat from disk", "flat in memory", "lists", "graph"],
)
def test_only_allowed_rows_of_the_shard_are_found(
    draw_rows: Draw,
    write_gallery_rows: Write,
    build: Build,
    rng: np.random.Generator,
    design: dict[str, Any],
) -> None:
    index = build(write_gallery_rows(draw_rows(301)), n_shards=3, **design)  # of 101 rows
    unit = unit_rows(draw_rows(4))
    one = SearchEngine.open(index)
    for share in (0.0, 0.05, 0.6):
        is_allowed = rng.random(301) < share
        allowed = RowSet.of_mask(is_allowed)
        for number, name in enumerate(NAMES):
            start, stop = 101 * number, min(101 * (number + 1), 301)
            first = start // 8
            mask = allowed.mask(8 * first, stop).copy()
            mask[: start - 8 * first] = False
            bits = np.packbits(mask, bitorder="little")
            here = rows_of_shard(bits, first, 301)
            np.testing.assert_array_equal(
                here.rows(), np.flatnonzero(is_allowed[start:stop]) + start
            )
            asked = replace(
                question_of(index, name),
                breadth=None if one.plan.code == "flat" else one.plan.n_lists or 101,
                n_candidates=None if one.plan.code == "flat" else 301,
            )
            rows, scores = answer_shard(asked, unit, here)
            effort = {"breadth": asked.breadth, "n_candidates": asked.n_candidates}
            expected = one.nearest(unit, SearchRequest(5, **effort), here)
            np.testing.assert_array_equal(rows, expected[0])
            np.testing.assert_array_equal(scores, expected[1])
            assert ((rows >= 0).sum(axis=1) == min(5, mask.sum())).all()
