"""Several embedding folders as one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embeddings.collection import Collection
from index_builder.embeddings.errors import (
    BadRowError,
    EmbeddingError,
    PartError,
    RowRangeError,
    SpaceMismatchError,
)
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

Rows = Callable[..., np.ndarray]
Laion = Callable[..., Path]
SIZES = ((13, 1, 20), (7,), (1, 0, 9))  # rows of the parts of three folders
N_ROWS = 51


@pytest.fixture
def arrays(unit_rows: Rows) -> list[list[np.ndarray]]:
    return [[unit_rows(n) for n in sizes] for sizes in SIZES]


@pytest.fixture
def paths(laion_folder: Laion, arrays: list[list[np.ndarray]]) -> list[Path]:
    return [laion_folder(parts, name=f"folder{i}") for i, parts in enumerate(arrays)]


@pytest.fixture
def opened(paths: list[Path], space: EmbeddingSpace) -> Collection:
    return Collection.open(paths, space=space)


@pytest.fixture
def every_row(arrays: list[list[np.ndarray]]) -> np.ndarray:
    return np.concatenate([part for parts in arrays for part in parts])


@pytest.fixture
def open_tables(
    laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace
) -> Callable[..., Collection]:
    """Open one folder a table, of one part each."""

    def open_(*tables: pa.Table) -> Collection:
        paths = [
            laion_folder([unit_rows(len(table))], tables=[table], name=f"table{i}")
            for i, table in enumerate(tables)
        ]
        return Collection.open(paths, space=space)

    return open_


def test_rows_are_numbered_one_folder_after_the_other(
    opened: Collection, paths: list[Path], space: EmbeddingSpace
) -> None:
    assert opened.n_rows == N_ROWS
    assert opened.row_starts.tolist() == [0, 34, 41, 51]
    assert opened.part_rows == [13, 1, 20, 7, 1, 0, 9]
    assert opened.space == space and opened.dtype == np.float16
    assert opened.is_local
    assert opened.columns == ("image_path", "url", "caption")
    assert opened.path == ", ".join(map(str, paths))


def test_the_fingerprint_follows_the_folders_and_their_order(
    opened: Collection, paths: list[Path], space: EmbeddingSpace
) -> None:
    assert len(opened.fingerprint) == 64
    assert Collection.open(paths, space=space).fingerprint == opened.fingerprint
    others = [paths[::-1], paths[:2], paths[:1]]
    found = {Collection.open(each, space=space).fingerprint for each in others}
    assert len(found) == 3 and opened.fingerprint not in found
    alone = EmbeddingFolder.open(paths[0], space=space)
    assert Collection([alone]).fingerprint != alone.fingerprint  # a list of one is not its item


@pytest.mark.parametrize("batch_rows", [1, 2, 7, 13, 34, 1000])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (30, 44), (34, 41), (40, 42), (51, 51)])
def test_batches_are_the_rows_and_end_with_their_folder(
    opened: Collection, every_row: np.ndarray, batch_rows: int, start: int, stop: int | None
) -> None:
    read = list(opened.iter_batches(batch_rows=batch_rows, start=start, stop=stop))
    stop = N_ROWS if stop is None else stop
    rows = [row for batch in read for row in batch.embeddings]
    np.testing.assert_array_equal(np.array(rows).reshape(-1, 8), every_row[start:stop])
    at = start
    for batch in read:
        assert batch.row_start == at
        assert 1 <= len(batch.embeddings) == len(batch.is_alive) <= batch_rows
        at += len(batch.embeddings)
        is_within = np.searchsorted(opened.row_starts, [batch.row_start, at - 1], side="right")
        assert is_within[0] == is_within[1]
    assert at == stop


def test_a_bad_row_is_counted_where_it_stands(
    laion_folder: Laion, arrays: list[list[np.ndarray]], space: EmbeddingSpace
) -> None:
    arrays[1][0][3] = np.nan
    paths = [laion_folder(parts, name=f"bad{i}") for i, parts in enumerate(arrays)]
    opened = Collection.open(paths, space=space)
    with pytest.raises(BadRowError, match=r"bad1/img_emb/img_emb_0\.npy, row 3 "):
        list(opened.iter_batches(batch_rows=20))
    dead = [
        batch.row_start + place
        for batch in opened.iter_batches(batch_rows=20, bad_rows="tombstone")
        for place in np.flatnonzero(~batch.is_alive)
    ]
    assert dead == [37]
    assert np.isnan(opened.take([37])).all()  # unjudged


@pytest.mark.parametrize("n", [0, 1, 64, 3000])
def test_take_is_indexing(
    opened: Collection, every_row: np.ndarray, rng: np.random.Generator, n: int
) -> None:
    rows = rng.integers(0, N_ROWS, n)
    taken = opened.take(rows)
    np.testing.assert_array_equal(taken, every_row[rows])
    assert taken.dtype == np.float16 and taken.shape == (n, 8)


@pytest.mark.parametrize("n_folders", [1, 3])
def test_take_accepts_a_list(
    paths: list[Path], space: EmbeddingSpace, every_row: np.ndarray, n_folders: int
) -> None:
    opened = Collection.open(paths[:n_folders], space=space)
    last = opened.n_rows - 1
    np.testing.assert_array_equal(opened.take([last, 0, last]), every_row[[last, 0, last]])
    assert opened.take([]).shape == (0, 8)


def test_several_tokens(laion_folder: Laion, unit_rows: Rows) -> None:
    space = EmbeddingSpace("ViT-L-14/openai", "hidden", 5, 8, True)
    arrays = [unit_rows(6, 5, 8), unit_rows(3, 5, 8)]
    paths = [laion_folder([array], name=f"hidden{i}") for i, array in enumerate(arrays)]
    opened = Collection.open(paths, space=space)
    expected = np.concatenate(arrays)
    np.testing.assert_array_equal(opened.take([8, 2, 6]), expected[[8, 2, 6]])
    np.testing.assert_array_equal(
        np.concatenate([batch.embeddings for batch in opened.iter_batches(batch_rows=4)]), expected
    )


def test_metadata_in_the_order_asked(opened: Collection, rng: np.random.Generator) -> None:
    rows = rng.integers(0, N_ROWS, 200)
    table = opened.metadata(rows, ["caption", "image_path"])
    folder_of = np.searchsorted(opened.row_starts, rows, side="right") - 1
    local = rows - opened.row_starts[folder_of]
    assert table.column_names == ["caption", "image_path"]
    assert table["caption"].to_pylist() == [f"picture {row}" for row in local]
    assert opened.metadata(rows).column_names == ["image_path", "url", "caption"]
    assert opened.metadata([]).num_rows == 0
    assert opened.metadata([], ["url"]).schema == opened.schema_of(["url"])


def test_columns_are_those_that_every_folder_has(open_tables: Callable[..., Collection]) -> None:
    opened = open_tables(
        pa.table({"sha": ["a"], "url": ["u0"], "width": [1]}),
        pa.table({"width": [2, 3], "license": ["x", "y"], "url": ["u1", "u2"]}),
    )
    assert opened.columns == ("url", "width")  # in the order of the first
    assert opened.metadata([2, 0]).to_pydict() == {"url": ["u2", "u0"], "width": [3, 1]}
    with pytest.raises(
        EmbeddingError, match=r"table1 has no metadata column 'sha'; it has width, license, url"
    ):
        opened.metadata([0], ["url", "sha"])
    with pytest.raises(EmbeddingError, match=r"table0 has no metadata column 'license'"):
        opened.schema_of(["license"])


def test_folders_may_have_no_column_in_common(open_tables: Callable[..., Collection]) -> None:
    opened = open_tables(pa.table({"url": ["u"]}), pa.table({"sha": ["s"]}))
    assert opened.columns == ()
    assert opened.metadata([0, 1]).column_names == []


@pytest.mark.parametrize(
    ("types", "widened"),
    [
        ((pa.int32(), pa.int64()), pa.int64()),
        ((pa.int64(), pa.int32()), pa.int64()),
        ((pa.int32(), pa.float64()), pa.float64()),
        ((pa.null(), pa.int64()), pa.int64()),
        ((pa.float32(), pa.float64()), pa.float64()),
    ],
)
def test_types_are_widened(
    open_tables: Callable[..., Collection], types: Sequence[pa.DataType], widened: pa.DataType
) -> None:
    values = [None if kind == pa.null() else i for i, kind in enumerate(types)]
    opened = open_tables(
        *(
            pa.table({"n": pa.array([value], kind)})
            for value, kind in zip(values, types, strict=True)
        )
    )
    assert opened.schema_of(["n"]).field("n").type == widened
    table = opened.metadata([1, 0, 1])
    assert table["n"].type == widened
    assert table["n"].to_pylist() == [values[1], values[0], values[1]]


def test_short_and_long_strings_go_together(open_tables: Callable[..., Collection]) -> None:
    opened = open_tables(
        pa.table({"url": pa.array(["a"])}), pa.table({"url": pa.array(["b"], pa.large_string())})
    )
    assert opened.metadata([1, 0])["url"].to_pylist() == ["b", "a"]


def test_types_that_do_not_go_together(open_tables: Callable[..., Collection]) -> None:
    with pytest.raises(PartError, match=r"table0, .*table1 have a column of types that don't go"):
        open_tables(pa.table({"n": ["a"]}), pa.table({"n": [1]}))


def test_folders_without_metadata(
    laion_folder: Laion, unit_rows: Rows, paths: list[Path], space: EmbeddingSpace
) -> None:
    bare = laion_folder([unit_rows(3)], name="bare", with_metadata=False)
    for folders in ([bare], [paths[0], bare], [bare, paths[0]]):
        opened = Collection.open(folders, space=space)
        assert opened.columns == () and opened.schema_of().names == []
        with pytest.raises(EmbeddingError, match=r"bare has no metadata column 'url'.*none at all"):
            opened.metadata([0], ["url"])
        with pytest.raises(EmbeddingError, match="no metadata"):
            opened.metadata([0, opened.n_rows - 1])


def echo_collection(pickled: bytes) -> tuple[str, list[list[float]]]:
    """Open a collection in another process, and return what it says."""
    opened = pickle.loads(pickled)
    return opened.fingerprint, opened.take([50, 0]).tolist()


def test_a_copy_in_another_process_reads_on(opened: Collection, every_row: np.ndarray) -> None:
    opened.take(np.arange(N_ROWS).repeat(90))  # threads and maps are in use and can't travel
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(echo_collection, [pickle.dumps(opened)] * 2)
    assert found == [(opened.fingerprint, every_row[[50, 0]].tolist())] * 2


def test_a_process_opens_a_collection_once(opened: Collection) -> None:
    pickled = pickle.dumps(opened)
    assert pickle.loads(pickled) is pickle.loads(pickled)


def test_a_folder_that_changed_meanwhile(opened: Collection, paths: list[Path]) -> None:
    pickled = pickle.dumps(opened)
    os.remove(paths[2] / "img_emb" / "img_emb_2.npy")
    os.remove(paths[2] / "metadata" / "metadata_2.parquet")
    with pytest.raises(EmbeddingError, match=r"changed while a command was at work: fingerprint"):
        pickle.loads(pickled)


def test_a_copy_has_the_parts_that_were_opened(
    paths: list[Path], space: EmbeddingSpace, every_row: np.ndarray
) -> None:
    opened = Collection([EmbeddingFolder.open(paths[0], space=space, n_parts=2)])
    copied = pickle.loads(pickle.dumps(opened))
    assert copied.n_rows == 14 and copied.fingerprint == opened.fingerprint
    np.testing.assert_array_equal(copied.take([13]), every_row[[13]])


def test_an_empty_collection_is_refused() -> None:
    with pytest.raises(ValueError, match="folders is empty, expected at least one"):
        Collection([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "ViT-H-14"}, r"embedding spaces differ\.\n  .*folder0: .*\n  .*folder1: ViT-H"),
        ({"unit_norm": False}, r"folder1 is in .*any norm.*, and .*folder0 in .*unit norm"),
    ],
)
def test_folders_of_two_spaces(
    paths: list[Path], space: EmbeddingSpace, change: dict[str, object], message: str
) -> None:
    first = EmbeddingFolder.open(paths[0], space=space)
    second = EmbeddingFolder.open(paths[1], space=replace(space, **change))  # type: ignore[arg-type]  # parametrized
    with pytest.raises(SpaceMismatchError, match=message):
        Collection([first, second])


def test_folders_of_two_dtypes(
    laion_folder: Laion, unit_rows: Rows, paths: list[Path], space: EmbeddingSpace
) -> None:
    wide = laion_folder([unit_rows(3, dtype="float32")], name="wide")
    with pytest.raises(EmbeddingError, match=r"wide holds float32, and .*folder0 float16; expecte"):
        Collection.open([paths[0], wide], space=space)


def test_the_same_folder_twice(
    paths: list[Path], space: EmbeddingSpace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(paths[0])
    for again in (paths[0], "folder0", f"{paths[0]}/", tmp_path / "." / "link"):
        with pytest.raises(EmbeddingError, match=r"folder0 was given 2 times; expected each folde"):
            Collection.open([paths[0], paths[1], again], space=space)


@pytest.mark.parametrize("bad", [-1, N_ROWS, 10**12])
def test_rows_out_of_range(opened: Collection, bad: int) -> None:
    with pytest.raises(RowRangeError, match=rf"row {bad} was asked for, and .*rows 0 to 50"):
        opened.take([3, bad])
    with pytest.raises(IndexError, match="rows 0 to 50"):
        opened.metadata([3, bad])


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (0, 52), (6, 5)])
def test_batches_out_of_range(opened: Collection, start: int, stop: int) -> None:
    with pytest.raises(RowRangeError, match=rf"rows {start} to {stop} were asked for"):
        list(opened.iter_batches(batch_rows=1, start=start, stop=stop))


def test_rows_that_are_no_row_numbers(opened: Collection) -> None:
    for rows in (np.array([1.5]), np.array([[1]])):
        with pytest.raises(ValueError, match=r"expected \(n,\) integers"):
            opened.take(rows)
