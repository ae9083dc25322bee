"""SQL predicates over the metadata columns of an index, to the rows for which they are true.

duckdb evaluates them where the metadata stand, in memory-mapped Arrow files, a million rows at a
time: nothing is imported into a database, and of each file only the columns that are named are
read. The database is empty, can reach neither files nor the network, and its settings are locked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from index_builder.execution.cores import available_cores
from index_builder.row_set import RowSet

from ..errors import FilterError
from .predicate import Predicate, predicate_of
from .store import MetadataStore

MEMORY_BYTES = 1 << 30
_MOST_CHARACTERS = 1 << 16
_MOST_DEPTH = 100  # of an expression; deeper ones would exhaust Python's stack when walked
_SCAN_BATCHES = 16  # record batches a query: a million rows, so that starting it costs little
_TEMPLATE = "SELECT 1 FROM metadata WHERE "
_RETRY = "make it simpler, or give it more time"


def parse_where(where: str, columns: tuple[str, ...]) -> Predicate:
    """Parse a predicate and judge what it holds; nothing is executed.

    Parameters
    ----------
    where : str
        SQL, what could stand after WHERE.
    columns : tuple of str
        The metadata columns that exist; case matters only where it tells two apart.

    Raises
    ------
    FilterError
        If it isn't SQL, is more than a predicate, or holds what isn't allowed.
    """
    if len(where) > _MOST_CHARACTERS:
        raise FilterError(
            f"where has {len(where)} characters, expected at most {_MOST_CHARACTERS}."
        )
    with _database(MEMORY_BYTES, 1) as database:
        try:
            node, template = (_parse(database, _TEMPLATE + each) for each in (where, "true"))
        except RecursionError:
            raise FilterError(f"where is nested deeper than {_MOST_DEPTH} levels.") from None
    predicate = node.pop("where_clause", None)
    del template["where_clause"]
    if _without_places(node) != _without_places(template):
        raise FilterError("where holds more than a predicate: leave out what follows it in SQL.")
    return predicate_of(predicate, columns)


def rows_where(
    store: MetadataStore,
    where: str,
    *,
    timeout_seconds: float | None = None,
    memory_bytes: int = MEMORY_BYTES,
    n_threads: int | None = None,
) -> RowSet:
    """Return the rows for which a predicate is true: neither false nor null.

    Parameters
    ----------
    store : MetadataStore
    where : str
        See `parse_where`.
    timeout_seconds : float or None
        None: as long as it takes.
    memory_bytes : int
        What duckdb may use, strict; rows come on top, 16 bytes each, a million of them at a time.
    n_threads : int or None
        None: all cores.

    Raises
    ------
    FilterError
        If the predicate is refused, isn't boolean, can't be evaluated, or takes too long.
    """
    return rows_that(
        store,
        parse_where(where, store.columns),
        timeout_seconds=timeout_seconds,
        memory_bytes=memory_bytes,
        n_threads=n_threads,
    )


def rows_that(
    store: MetadataStore,
    predicate: Predicate,
    *,
    timeout_seconds: float | None = None,
    memory_bytes: int = MEMORY_BYTES,
    n_threads: int | None = None,
) -> RowSet:
    """Return the rows for which a parsed predicate is true; see `rows_where`."""
    if not store.columns:
        raise FilterError("where needs metadata, and the index has none.")
    folded = {name.casefold() for name in predicate.columns}
    if len(folded) < len(predicate.columns):
        raise FilterError(
            f"where names columns that differ by case alone: {', '.join(predicate.columns)}; "
            f"use one of them."
        )
    row = "row"
    while row in folded:
        row += "_"
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    bits = np.zeros(-(-store.n_rows // 8), np.uint8)
    with _database(memory_bytes, n_threads or available_cores()) as database:
        _require_boolean(database, store.empty_table(predicate.columns), predicate)
        for start, stop, table in store.iter_tables(predicate.columns, n_batches=_SCAN_BATCHES):
            numbered = _readable(table).append_column(row, pa.array(np.arange(stop - start)))
            query = f'SELECT "{row}" FROM metadata WHERE {predicate.sql}'
            with _interrupted_at(database, deadline, timeout_seconds):
                database.register("metadata", numbered)
                found = database.execute(query).fetchnumpy()[row]
            database.unregister("metadata")
            is_in = np.zeros(start % 8 + stop - start, bool)
            is_in[np.asarray(found) + start % 8] = True
            packed = np.packbits(is_in, bitorder="little")
            bits[start // 8 : start // 8 + len(packed)] |= packed
    return RowSet(bits, store.n_rows)


@contextmanager
def _database(memory_bytes: int, n_threads: int) -> Iterator[Any]:
    """Open an empty database that reaches nothing, and close it."""
    database = duckdb.connect(
        ":memory:",
        config={
            "threads": n_threads,
            "memory_limit": f"{memory_bytes}B",
            "temp_directory": "",
            "max_expression_depth": _MOST_DEPTH,
            # pyarrow, which filters would be handed to, orders NaN otherwise than SQL.
            "disabled_optimizers": "filter_pushdown",
            "python_enable_replacements": False,
            "autoload_known_extensions": False,
            "autoinstall_known_extensions": False,
        },
    )
    try:
        database.execute("SET enable_external_access = false; SET lock_configuration = true")
        yield database
    finally:
        database.close()


def _parse(database: Any, statement: str) -> dict[str, Any]:
    """Return the tree of the one query that a statement is."""
    (text,) = database.execute("SELECT json_serialize_sql(?)", [statement]).fetchone()
    parsed = json.loads(text)
    if parsed["error"]:
        raise FilterError(f"where is no SQL predicate: {parsed['error_message']}")
    if len(parsed["statements"]) != 1:
        raise FilterError(f"where holds {len(parsed['statements'])} statements, expected one.")
    node: dict[str, Any] = parsed["statements"][0]["node"]
    return node


def _without_places(tree: Any) -> Any:
    """Return a tree without where in the text its nodes stand."""
    if isinstance(tree, dict):
        return {
            key: _without_places(value)
            for key, value in tree.items()
            if not key.startswith("query_location")
        }
    return [_without_places(each) for each in tree] if isinstance(tree, list) else tree


def _require_boolean(database: Any, empty: Any, predicate: Predicate) -> None:
    with _interrupted_at(database, None, None):
        # A table needs a column, and a predicate may name none.
        database.register("metadata", _readable(empty).append_column("row_", pa.array([], "i8")))
        kind = database.execute(f"SELECT {predicate.sql} FROM metadata").description[0][1]
    database.unregister("metadata")
    if str(kind) != "BOOLEAN":
        raise FilterError(
            f"where is of type {kind}, expected a predicate, which is true or false: "
            f'"width >= 512", for example.'
        )


def _readable(table: Any) -> Any:
    """Return a table with float16 widened, which duckdb doesn't know."""
    for place, field in enumerate(table.schema):
        if pa.types.is_float16(field.type):
            table = table.set_column(place, field.name, table[field.name].cast(pa.float32()))
    return table


@contextmanager
def _interrupted_at(
    database: Any, deadline: float | None, timeout_seconds: float | None
) -> Iterator[None]:
    """Interrupt a query at the deadline, and raise what goes wrong in it as `FilterError`."""
    too_long = f"where took longer than {timeout_seconds} seconds: {_RETRY}."
    timer = None
    if deadline is not None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise FilterError(too_long)
        timer = Timer(left, database.interrupt)
        timer.start()
    try:
        yield
    except duckdb.InterruptException:
        raise FilterError(too_long) from None
    except duckdb.Error as error:
        reason = str(error).partition("\n")[0]
        raise FilterError(f"where can't be evaluated: {reason}") from error
    finally:
        if timer is not None:
            timer.cancel()
            timer.join()
