"""RowFilters: which rows a request may find, as sets that are made once and kept for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from index_builder.row_set import RowSet

from ..errors import FilterError
from .predicate import Predicate, quote
from .store import MetadataStore

if TYPE_CHECKING:
    from ..searching.request import SearchRequest

CACHE_BYTES = 2 << 30
MEMORY_BYTES = 1 << 30
UNSAFE_COLUMN = "punsafe"
WATERMARK_COLUMN = "pwatermark"
# What LAION and its derived sets call it.
AESTHETIC_COLUMNS = ("aesthetic", "aesthetic_score")
_NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)


class RowFilters:
    """The filters of an index's metadata: `where`, `unsafe_from` and `watermarked_from`.

    Threads may share it. A set of rows weighs an eighth of a byte a row and is kept, most recently
    used first, within ``cache_bytes``; what several threads ask at once is made once. One set is
    made at a time, on all threads it may use, so that ``memory_bytes`` holds for all of them.

    Parameters
    ----------
    store : MetadataStore
    deleted : ndarray of shape (m,), int64, or None
        Rows that were taken down, each once: they are in no set.
    cache_bytes : int
        For finished sets, strict. A set that is larger is made anew for each search.
    timeout_seconds : float or None
        For one predicate; None: as long as it takes.
    memory_bytes : int
        For the evaluation of predicates.
    n_threads : int or None
        For the same; None: all cores.
    """

    def __init__(
        self,
        store: MetadataStore,
        *,
        deleted: np.ndarray | None = None,
        cache_bytes: int = CACHE_BYTES,
        timeout_seconds: float | None = None,
        memory_bytes: int = MEMORY_BYTES,
        n_threads: int | None = None,
    ) -> None:
        self._store = store
        self._deleted = np.empty(0, np.int64) if deleted is None else deleted
        self._n_alive = store.n_rows - len(self._deleted)
        self._limits: dict[str, Any] = {
            "timeout_seconds": timeout_seconds,
            "memory_bytes": memory_bytes,
            "n_threads": n_threads,
        }
        self._cache = _SetCache(cache_bytes)
        self._is_scanning = Lock()
        self._aesthetic = _first(AESTHETIC_COLUMNS, store.columns)

    def allowed(self, request: SearchRequest) -> RowSet | None:
        """Return the rows that a request may find, or None where that is all that aren't deleted.

        Raises
        ------
        FilterError
            If the predicate is refused, fails, or takes too long, or there is no metadata.
        """
        conditions = self._conditions(request)
        if not conditions:
            return None
        allowed = self._cache.get(tuple(conditions), lambda: self._make(conditions))
        return None if len(allowed) == self._n_alive else allowed

    def applied(self, request: SearchRequest) -> dict[str, Any]:
        """Return what of a request's metadata filters has an effect on this index, as JSON.

        ``where``, ``unsafe_from`` and ``watermarked_from``, each where it applies, and
        ``n_allowed``, the rows that are left; empty where nothing restricts.
        """
        facts = {name: getattr(request, name) for name, _ in self._conditions(request)}
        if facts:
            allowed = self.allowed(request)
            facts["n_allowed"] = self._n_alive if allowed is None else len(allowed)
        return facts

    def aesthetic(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return what tells the aesthetic score of rows: float64, NaN where it is null.

        Raises
        ------
        FilterError
            If there is no such column, or it isn't one of numbers.
        """
        column = self._aesthetic
        if column is None:
            raise FilterError(
                f"aesthetic_weight needs a metadata column {' or '.join(AESTHETIC_COLUMNS)}; the "
                f"index has {', '.join(self._store.columns) or 'none at all'}."
            )

        kind = self._store.empty_table([column]).schema.field(column).type
        if not any(is_number(kind) for is_number in _NUMBERS):
            raise FilterError(
                f"aesthetic_weight needs numbers, and the metadata column {column} holds {kind}."
            )

        def score(rows: np.ndarray) -> np.ndarray:
            taken = self._store.take(rows, [column])[column].cast(pa.float64())
            scores: np.ndarray = taken.to_numpy().astype(np.float64)
            return scores

        return score

    def _conditions(self, request: SearchRequest) -> list[tuple[str, Any]]:
        """Return the name and value of each filter that has an effect."""
        conditions: list[tuple[str, Any]] = []
        if request.where is not None:
            if not self._store.columns:
                raise FilterError("where needs metadata, and the index has none.")
            conditions.append(("where", request.where))
        columns = self._store.columns
        if request.unsafe_from is not None and _first((UNSAFE_COLUMN,), columns):
            conditions.append(("unsafe_from", request.unsafe_from))
        if request.watermarked_from is not None and _first((WATERMARK_COLUMN,), columns):
            conditions.append(("watermarked_from", request.watermarked_from))
        return conditions

    def _make(self, conditions: list[tuple[str, Any]]) -> RowSet:
        if len(conditions) == 1:
            return self._scan(*conditions[0])
        sets = [
            self._cache.get((each,), lambda each=each: self._scan(*each))  # type: ignore[misc]
            for each in conditions
        ]
        allowed = sets[0]
        for each in sets[1:]:
            allowed &= each
        return allowed

    def _scan(self, name: str, value: Any) -> RowSet:
        from .where import parse_where, rows_that  # duckdb, only where something is filtered

        if name == "where":
            predicate = parse_where(value, self._store.columns)
        else:
            predicate = self._below(name, value)
        with self._is_scanning:
            rows = rows_that(self._store, predicate, **self._limits)
        return rows.without(self._deleted) if len(self._deleted) else rows

    def _below(self, name: str, threshold: float) -> Predicate:
        """Return the predicate of a threshold.

        A row without ``punsafe`` was never judged, and is left out; one without ``pwatermark`` is
        kept. What isn't a number counts as missing; so does NaN, which pandas writes for it.
        """
        wanted = UNSAFE_COLUMN if name == "unsafe_from" else WATERMARK_COLUMN
        column = str(_first((wanted,), self._store.columns))
        value = f"TRY_CAST({quote(column)} AS DOUBLE)"
        is_below = f"({value} < CAST({float(threshold)!r} AS DOUBLE))"
        if name == "watermarked_from":
            is_below = f"({value} IS NULL OR isnan({value}) OR {is_below})"
        return Predicate(is_below, (column,))


class _SetCache:
    """Sets of rows by key, least recently used dropped first."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes
        self._sets: OrderedDict[Any, RowSet] = OrderedDict()
        self._in_making: dict[Any, Future[RowSet]] = {}
        self._lock = Lock()

    def get(self, key: Any, make: Callable[[], RowSet]) -> RowSet:
        """Return the set of a key, made by the first thread that asks; the others wait for it."""
        with self._lock:
            if key in self._sets:
                self._sets.move_to_end(key)
                return self._sets[key]
            waited_for = self._in_making.get(key)
            if waited_for is None:
                future = self._in_making[key] = Future()
        if waited_for is not None:
            return waited_for.result()
        try:
            made = make()
        except BaseException as error:
            with self._lock:
                del self._in_making[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._in_making[key]
            self._sets[key] = made
            while sum(each.n_bytes for each in self._sets.values()) > self._n_bytes:
                self._sets.popitem(last=False)
        future.set_result(made)
        return made


def _first(names: Iterable[str], columns: Iterable[str]) -> str | None:
    """Return the first column that has one of the names in any case, in the order of the names."""
    spelled = {column.casefold(): column for column in reversed(list(columns))}
    return next((spelled[name] for name in names if name in spelled), None)
