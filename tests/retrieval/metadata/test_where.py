from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from retrieval.errors import FilterError
from retrieval.metadata import where as where_module
from retrieval.metadata.predicate import FUNCTIONS
from retrieval.metadata.store import MetadataStore
from retrieval.metadata.where import parse_where, rows_where

ALLOWED = [
    "punsafe < 0.5 AND width >= 512",
    "width > height OR NOT is_drawn",
    "is_drawn",
    "NOT is_drawn",
    "true",
    "NULL::BOOLEAN",
    "width BETWEEN 300 AND 700",
    "width NOT BETWEEN 300 AND 700.5",
    "width IN (100, 101, 102, 1_03) OR height NOT IN (5, 6)",
    "caption IN ('zebra_1', 'A red fox')",
    "caption IS NULL",
    "caption IS NOT NULL AND punsafe IS NULL",
    "caption = NULL",
    "caption IS DISTINCT FROM 'zebra_1'",
    "caption IS NOT DISTINCT FROM NULL",
    "caption LIKE '%fox'",
    "caption NOT LIKE '%fox'",
    "caption ILIKE '%FOX%'",
    "caption NOT ILIKE '%FOX%'",
    "caption LIKE 'zebra!_%' ESCAPE '!'",
    "caption NOT ILIKE 'ZEBRA!_%' ESCAPE '!'",
    "caption GLOB '*fox*'",
    "caption SIMILAR TO '.*fox.*'",
    "caption ~ 'f.x'",
    "caption = '100% \"quoted\" ''fox'''",
    "caption = $$zebra_1$$",
    "regexp_matches(caption, '^a.*x$', 'i')",
    "lower(caption) = 'the blue fox' OR upper(caption) = 'A RED FOX'",
    "length(trim(caption)) > 7 AND contains(caption, 'fox')",
    "starts_with(caption, 'A') OR prefix(caption, 't') OR suffix(URL, '7.jpg')",
    "ends_with(caption, '1')",
    "caption || '!' = 'zebra_1!'",
    "coalesce(punsafe, 1) < 0.3",
    "ifnull(punsafe, 0) < 0.3",
    "nullif(width, 512) IS NULL",
    "width * height > 1e6 AND -width + 2 * height - 7 > .5 AND width % 2 = 1",
    "width / height BETWEEN 0.9 AND 1.1 OR height // width = 3",
    "greatest(width, height) < 700 AND least(width, height) > 3.",
    "abs(width - height) < 50 AND sqrt(width) > 15 AND round(aesthetic) = 5",
    "isnan(punsafe) OR floor(aesthetic) + ceil(aesthetic) = 7 OR ln(width) < 5",
    "punsafe > 0.9",
    "punsafe = 'nan'::FLOAT",
    "CAST(text_width AS INTEGER) > 250",
    "TRY_CAST(caption AS INT) IS NULL AND text_width::DOUBLE < 20.5",
    "text_width::decimal(10, 2) = 17",
    "day >= DATE '1999-12-31' AND day < CAST('2010-01-01' AS timestamp)",
    "Width > 1000 AND \"URL\" LIKE 'https%' AND url LIKE '%1.jpg'",
    '"odd ""name""; --" > 4',
    "tags IS NOT NULL AND contains(tags, 'b')",
    "width > 1000 -- and nothing else",
    "width > 1000 /* and nothing else */ ;",
    " OR ".join(f"width = {i}" for i in range(2000)),
    "width IN (" + ", ".join(str(i) for i in range(2000)) + ")",
]


def expected_rows(table: Any, where: str) -> np.ndarray:
    """Ask duckdb itself, of a copy in its own storage, whole."""
    numbered = table.append_column("row_number", pa.array(np.arange(len(table))))
    place = numbered.schema.get_field_index("aesthetic")
    numbered = numbered.set_column(place, "aesthetic", numbered["aesthetic"].cast(pa.float32()))
    with duckdb.connect() as database:
        database.register("arrow", numbered)
        database.execute("CREATE TABLE copy AS SELECT * FROM arrow")
        query = f"SELECT row_number FROM copy WHERE ({where.rstrip(' ;')}\n) ORDER BY row_number"
        rows: np.ndarray = np.asarray(database.execute(query).fetchnumpy()["row_number"])
    return rows


@pytest.mark.parametrize("where", ALLOWED, ids=lambda where: where[:60])
def test_rows_equal_duckdbs_own(store: MetadataStore, table: Any, where: str) -> None:
    found = rows_where(store, where)
    assert found.n_rows == len(table)
    np.testing.assert_array_equal(found.rows(), expected_rows(table, where))


def test_nulls_and_nan_follow_sql(store: MetadataStore, table: Any) -> None:
    values = table["punsafe"].to_numpy()  # null and NaN alike: NaN
    is_null = table["punsafe"].is_null().to_numpy()
    below = np.flatnonzero(values < 0.25)
    above = np.flatnonzero((values >= 0.25) | (np.isnan(values) & ~is_null))
    np.testing.assert_array_equal(rows_where(store, "punsafe < 0.25").rows(), below)
    np.testing.assert_array_equal(rows_where(store, "NOT (punsafe < 0.25)").rows(), above)


@pytest.mark.parametrize("n_batches", [1, 3])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_pieces_and_threads_change_nothing(
    store: MetadataStore,
    table: Any,
    monkeypatch: pytest.MonkeyPatch,
    n_batches: int,
    n_threads: int,
) -> None:
    monkeypatch.setattr(where_module, "_SCAN_BATCHES", n_batches)
    where = "width > 700 AND caption LIKE '%fox'"
    found = rows_where(store, where, n_threads=n_threads)
    np.testing.assert_array_equal(found.rows(), expected_rows(table, where))


def test_a_column_that_is_named_row_keeps_its_meaning(
    write_store: Callable[..., MetadataStore],
) -> None:
    values = np.arange(900)[::-1].copy()
    store = write_store(pa.table({"row": values, "Row_": values + 1}))
    found = rows_where(store, "row < 10 AND row_ > 5")
    np.testing.assert_array_equal(found.rows(), np.flatnonzero((values < 10) & (values > 4)))


def test_columns_that_differ_by_case_alone(write_store: Callable[..., MetadataStore]) -> None:
    store = write_store(pa.table({"URL": np.arange(800), "url": np.arange(800) % 2}))
    assert len(rows_where(store, '"url" = 1')) == 400
    assert len(rows_where(store, "URL = 1")) == 1
    with pytest.raises(FilterError, match="URL and url differ by case alone, and 'Url' could"):
        rows_where(store, "Url = 1")
    with pytest.raises(FilterError, match="columns that differ by case alone: URL, url"):
        rows_where(store, "URL = url")


REFUSED = {
    "width > (SELECT 1)": "class SUBQUERY",
    "EXISTS (SELECT 1)": "class SUBQUERY",
    "width = ANY([1, 2])": "class SUBQUERY",
    "width IN (SELECT 1)": "class SUBQUERY",
    "width IN (FROM read_csv('/etc/passwd'))": "class SUBQUERY",
    "sum(width) OVER () > 1": "class WINDOW",
    "width > $1": "class PARAMETER",
    "width > ?": "class PARAMETER",
    "COLUMNS('w.*') > 1": "class STAR",
    "list_filter(tags, lambda tag: tag = 'a') = tags": "the function list_filter",
    "list_filter(tags, tag -> tag = 'a') = tags": "the function list_filter",
    "tags -> 1 = 'a'": "class LAMBDA",
    "tags[1] = 'a'": "operator ARRAY_EXTRACT",
    "TRY(width > 1)": "operator OPERATOR_TRY",
    "CASE WHEN is_drawn THEN true ELSE false END": "class CASE",
    "caption COLLATE nocase = 'x'": "class COLLATE",
    "width = DEFAULT": "class DEFAULT",
    "read_text('/etc/passwd') = 'x'": "the function read_text",
    "getenv('HOME') = 'x'": "the function getenv",
    "repeat(caption, 1000000000) = 'x'": "the function repeat",
    "random() < 0.5": "the function random",
    "count(*) > 1": "the function count",
    "error('x')": "the function error",
    "2 ** width > 1": r"the function \*\*",
    "main.lower(caption) = 'x'": "FUNCTION lower with schema|qualified name",
    "caption.lower() = 'x'": "FUNCTION lower with schema|qualified name",
    "lower(DISTINCT caption) = 'x'": "FUNCTION lower with distinct",
    "lower(caption) FILTER (WHERE is_drawn) = 'x'": "FUNCTION lower with filter",
    "lower(caption ORDER BY width) = 'x'": "an order within lower",
    "lower(string := caption) = 'x'": "a named argument of lower",
    "metadata.width > 1": "the qualified name metadata.width",
    "width::STRUCT(a INT) = 1": "a cast to struct",
    "width::INTEGER[] = 1": "a cast to list",
    "width::mood = 1": "a cast to mood",
    "'2020-01-01'::TIMESTAMPTZ > day": "a cast to timestamptz",
    "(width, height) = (1, 2)": "the function row",
    "x'AB' = 'x'": "a constant of kind HEX",
}


@pytest.mark.parametrize("where", REFUSED)
def test_what_is_no_predicate_over_columns_is_refused(store: MetadataStore, where: str) -> None:
    with pytest.raises(FilterError, match=rf"where holds .*({REFUSED[where]}).*may not"):
        parse_where(where, store.columns)


@pytest.mark.parametrize(
    "where",
    [
        *("is_drawn LIMIT 3", "is_drawn GROUP BY width", "is_drawn ORDER BY width"),
        *("is_drawn QUALIFY true", "is_drawn USING SAMPLE 3", "is_drawn HAVING true"),
        "is_drawn UNION SELECT 1",
    ],
)
def test_what_follows_a_predicate_is_refused(store: MetadataStore, where: str) -> None:
    with pytest.raises(FilterError, match="more than a predicate: leave out what follows"):
        parse_where(where, store.columns)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "where is no SQL predicate: syntax error"),
        ("width >", "where is no SQL predicate: syntax error"),
        ("width > 1) OR (true", "where is no SQL predicate: syntax error"),
        ("width > 1 /* ", "where is no SQL predicate: unterminated"),
        ("width > 1; DROP TABLE metadata", "is no SQL predicate|holds 2 statements"),
        ("true; SELECT 1 FROM metadata WHERE true", "where holds 2 statements, expected one"),
        ("NOT " * 500 + "is_drawn", "depth|nested deeper than 100"),
        ("(" * 30_000 + "is_drawn" + ")" * 30_000, "depth|nested"),
        ("is_drawn AND " * 6000 + "is_drawn", "where has 78008 characters, expected at most 65536"),
        ("breadth > 1", "names 'breadth', .* no such metadata column; it has URL, caption, width"),
        ("current_date > day", "names 'current_date', and the index has no such"),
        ("rowid < 5", "names 'rowid', and the index has no such"),
    ],
    ids=lambda text: text[:30],
)
def test_unsound_predicates_are_refused(store: MetadataStore, where: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_where(where, store.columns)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("width", "where is of type INTEGER, expected a predicate"),
        ("lower(caption)", "where is of type VARCHAR, expected a predicate"),
        ("width = 'broad'", "can't be evaluated: Conversion Error: .*'broad' to INT32"),
        ("CAST(caption AS INTEGER) > 1", "can't be evaluated: Conversion Error: Could not"),
        ("width LIKE 'x'", "can't be evaluated: Binder Error: No function matches"),
        ("regexp_matches(caption, '(')", r"can't be evaluated: .*missing \)"),
    ],
)
def test_predicates_that_fail_say_why_in_a_line(
    store: MetadataStore, where: str, message: str
) -> None:
    with pytest.raises(FilterError, match=message) as caught:
        rows_where(store, where)
    assert "\n" not in str(caught.value)


def test_a_predicate_may_take_its_time_and_no_longer(
    store: MetadataStore, write_store: Callable[..., MetadataStore]
) -> None:
    assert len(rows_where(store, "width > 0", timeout_seconds=60)) == store.n_rows
    with pytest.raises(FilterError, match="where took longer than 0 seconds: make it simpler"):
        rows_where(store, "width > 0", timeout_seconds=0)


def test_a_query_is_interrupted_while_it_runs(write_store: Callable[..., MetadataStore]) -> None:
    # A billion bytes are copied and searched, by no shortcut: seconds anywhere, and a tenth of
    # one for the 2,048 rows after which duckdb looks whether it was interrupted.
    store = write_store(pa.table({"text": pa.repeat("ab" * 100, 100_000)}))
    slow = " OR ".join(f"contains(lower(upper(text || '{i}')), 'z{i}')" for i in range(60))
    with pytest.raises(FilterError, match=r"where took longer than 0\.05 seconds"):
        rows_where(store, slow, timeout_seconds=0.05)


def test_an_index_without_metadata_has_nothing_to_filter_by() -> None:
    with pytest.raises(FilterError, match="where needs metadata, and the index has none"):
        rows_where(MetadataStore([], [], 10), "true")


def test_the_database_reaches_nothing_and_stays_so() -> None:
    with where_module._database(1 << 28, 1) as database:
        for statement in (
            "SELECT * FROM read_csv('/etc/passwd')",
            "COPY (SELECT 1) TO '/tmp/never.csv'",
            "ATTACH '/tmp/never.db'",
            "INSTALL httpfs",
            "SET memory_limit = '100GB'",
            "SET enable_external_access = true",
        ):
            with pytest.raises(duckdb.Error, match=r"disabled|locked|[Cc]annot"):
                database.execute(statement)
        limit = database.execute("SELECT current_setting('memory_limit')").fetchone()[0]
        assert limit == "256.0 MiB"


def test_the_document_lists_every_function() -> None:
    text = (Path(__file__).parents[3] / "docs" / "filters.md").read_text()
    named = [name for name in FUNCTIONS if not name.endswith("_escape")]  # LIKE ... ESCAPE
    assert not [name for name in named if f"`{name}`" not in text]


def test_a_tree_that_another_duckdb_would_write_is_refused(
    store: MetadataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = where_module._parse

    def rename(old: str, new: str) -> Callable[..., Any]:
        return lambda *given: json.loads(json.dumps(parse(*given)).replace(old, new))

    monkeypatch.setattr(where_module, "_parse", rename('"literal"', '"value"'))
    with pytest.raises(FilterError, match="CONSTANT as this version of duckdb describes it"):
        parse_where("width > 1", store.columns)
    monkeypatch.setattr(where_module, "_parse", rename('"class": "FUNCTION"', '"class": "CALL"'))
    with pytest.raises(FilterError, match="an expression of class CALL"):
        parse_where("lower(caption) = 'x'", store.columns)
    monkeypatch.setattr(
        where_module, "_parse", rename('"try_cast": false', '"try_cast": false, "on_error": 1')
    )
    with pytest.raises(FilterError, match="CAST OPERATOR_CAST with on_error"):
        parse_where("width::DOUBLE > 1", store.columns)
