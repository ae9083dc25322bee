from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder.row_set import RowSet
from retrieval.errors import FilterError
from retrieval.metadata import where as where_module
from retrieval.metadata.filters import RowFilters
from retrieval.metadata.store import MetadataStore
from retrieval.searching.request import SearchRequest


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The predicates that were evaluated, in order."""
    sql: list[str] = []
    evaluate = where_module.rows_that

    def record(store: MetadataStore, predicate: Any, **limits: Any) -> RowSet:
        sql.append(predicate.sql)
        return evaluate(store, predicate, **limits)

    monkeypatch.setattr(where_module, "rows_that", record)
    return sql


def rows_of(filters: RowFilters, **asked: Any) -> np.ndarray:
    allowed = filters.allowed(SearchRequest(**asked))
    assert allowed is not None
    return allowed.rows()


def test_thresholds_equal_a_mask(store: MetadataStore, table: Any) -> None:
    unsafe, watermark = (table[name].to_numpy() for name in ("punsafe", "pwatermark"))
    filters = RowFilters(store)
    # What was never judged is left out; what has no watermark score is kept.
    np.testing.assert_array_equal(rows_of(filters), np.flatnonzero(unsafe < 0.5))
    np.testing.assert_array_equal(
        rows_of(filters, unsafe_from=0.3, watermarked_from=0.8),
        np.flatnonzero((unsafe < 0.3) & ~(watermark >= 0.8)),
    )
    np.testing.assert_array_equal(
        rows_of(filters, unsafe_from=None, watermarked_from=0.8, where="width > 700"),
        np.flatnonzero(~(watermark >= 0.8) & (table["width"].to_numpy() > 700)),
    )
    assert filters.allowed(SearchRequest(unsafe_from=None)) is None


def test_columns_are_found_in_any_case_and_of_any_type(
    write_store: Callable[..., MetadataStore],
) -> None:
    texts = ["0.2", "0.7", "", None, "unlikely"] * 160
    filters = RowFilters(write_store(pa.table({"PUNSAFE": texts, "pWatermark": texts})))
    np.testing.assert_array_equal(rows_of(filters), np.arange(0, 800, 5))
    np.testing.assert_array_equal(
        rows_of(filters, unsafe_from=None, watermarked_from=0.5),
        np.setdiff1d(np.arange(800), np.arange(1, 800, 5)),
    )


def test_thresholds_have_no_effect_without_their_columns(
    write_store: Callable[..., MetadataStore], scanned: list[str]
) -> None:
    filters = RowFilters(write_store(pa.table({"width": np.arange(900)})))
    request = SearchRequest(watermarked_from=0.5)
    assert filters.allowed(request) is None and filters.applied(request) == {}
    assert not scanned
    nothing = RowFilters(MetadataStore([], [], 10))
    assert nothing.allowed(request) is None
    with pytest.raises(FilterError, match="where needs metadata, and the index has none"):
        nothing.allowed(SearchRequest(where="width > 1"))


def test_a_filter_that_all_rows_pass_is_none(
    write_store: Callable[..., MetadataStore],
) -> None:
    filters = RowFilters(write_store(pa.table({"punsafe": np.zeros(900)})))
    assert filters.allowed(SearchRequest()) is None
    assert filters.applied(SearchRequest()) == {"unsafe_from": 0.5, "n_allowed": 900}


def test_what_was_applied_is_told(store: MetadataStore, table: Any) -> None:
    filters = RowFilters(store)
    n_safe = int((table["punsafe"].to_numpy() < 0.5).sum())
    assert filters.applied(SearchRequest()) == {"unsafe_from": 0.5, "n_allowed": n_safe}
    request = SearchRequest(where="width > 700", unsafe_from=None, watermarked_from=0.9)
    facts = filters.applied(request)
    assert facts == {
        "where": "width > 700",
        "watermarked_from": 0.9,
        "n_allowed": len(
            rows_of(
                filters,
                **{name: facts.get(name) for name in ("where", "unsafe_from", "watermarked_from")},
            )
        ),
    }
    assert filters.applied(SearchRequest(unsafe_from=None)) == {}


def test_a_set_is_made_once_and_its_parts_are_shared(
    store: MetadataStore, scanned: list[str]
) -> None:
    filters = RowFilters(store)
    for where in ("width > 700", "width > 800", "width > 700"):
        rows_of(filters, where=where)
        rows_of(filters)
    assert len(scanned) == 3  # two predicates, and punsafe


def test_the_least_recently_used_set_is_dropped(store: MetadataStore, scanned: list[str]) -> None:
    n_bytes = -(-store.n_rows // 8)
    filters = RowFilters(store, cache_bytes=2 * n_bytes)

    def ask(width: int) -> None:
        rows_of(filters, where=f"width > {width}", unsafe_from=None)

    for width in (701, 702, 701, 703, 701, 702):
        ask(width)
    assert [sql.split()[-1] for sql in scanned] == ["701)", "702)", "703)", "702)"]
    scanned.clear()
    without = RowFilters(store, cache_bytes=n_bytes - 1)
    for _ in range(2):
        rows_of(without, where="width > 700", unsafe_from=None)
    assert len(scanned) == 2


def test_threads_that_ask_the_same_wait_for_one(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_start = threading.Event()
    evaluate, started = where_module.rows_that, []

    def wait(*given: Any, **limits: Any) -> RowSet:
        started.append(given[1].sql)
        assert may_start.wait(60)
        return evaluate(*given, **limits)

    monkeypatch.setattr(where_module, "rows_that", wait)
    filters = RowFilters(store)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(rows_of, filters, where="width > 700") for _ in range(4)]
        may_start.set()
        found = [each.result() for each in asked]
    assert len(started) == 2
    for each in found:
        np.testing.assert_array_equal(each, found[0])


def test_a_failure_reaches_all_who_wait_and_is_not_kept(
    store: MetadataStore, scanned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filters = RowFilters(store)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(rows_of, filters, where="width > 'x'") for _ in range(4)]
        for each in asked:
            with pytest.raises(FilterError, match="can't be evaluated"):
                each.result()
    n_before = len(scanned)
    with pytest.raises(FilterError, match="can't be evaluated"):
        rows_of(filters, where="width > 'x'")
    assert len(scanned) == n_before + 1


def test_limits_are_handed_on(store: MetadataStore) -> None:
    filters = RowFilters(store, timeout_seconds=0, n_threads=1)
    with pytest.raises(FilterError, match="where took longer than 0 seconds"):
        filters.allowed(SearchRequest())


def test_aesthetic_scores_come_by_row(
    store: MetadataStore, table: Any, write_store: Callable[..., MetadataStore]
) -> None:
    rows = np.array([5, 1000, 5, 0])
    scores = RowFilters(store).aesthetic()(rows)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, table["aesthetic"].to_numpy()[rows].astype(np.float64))
    named = write_store(pa.table({"AESTHETIC_SCORE": pa.array([None, 3, 4] * 300, pa.int32())}))
    np.testing.assert_array_equal(
        RowFilters(named).aesthetic()(np.array([700, 5, 0])), [3, 4, np.nan]
    )
    with pytest.raises(
        FilterError, match=r"needs a metadata column aesthetic or .*; the index has a"
    ):
        RowFilters(write_store(pa.table({"a": np.arange(900)}))).aesthetic()
    named = write_store(pa.table({"aesthetic": ["5"] * 900}))
    with pytest.raises(FilterError, match="needs numbers, and the metadata column aesthetic holds"):
        RowFilters(named).aesthetic()


def test_deleted_rows_are_in_no_set(store: MetadataStore, table: Any) -> None:
    deleted = np.arange(0, store.n_rows, 3)
    filters = RowFilters(store, deleted=deleted)
    is_allowed = table["width"].to_numpy() > 700
    is_allowed[deleted] = False
    request = SearchRequest(where="width > 700", unsafe_from=None)
    np.testing.assert_array_equal(
        rows_of(filters, where="width > 700", unsafe_from=None), np.flatnonzero(is_allowed)
    )
    assert filters.applied(request) == {"where": "width > 700", "n_allowed": is_allowed.sum()}
    everything = SearchRequest(where="width > 0", unsafe_from=None)
    assert filters.allowed(everything) is None
    n_alive = store.n_rows - len(deleted)
    assert filters.applied(everything) == {"where": "width > 0", "n_allowed": n_alive}
