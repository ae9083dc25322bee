"""Columns of side tables joined to embedding folders, and rows left out of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.embeddings import joining, partners
from index_builder.embeddings.drop_list import DropList
from index_builder.embeddings.errors import ArtefactError, EmbeddingError, PartError
from index_builder.embeddings.joining import Joined, join_tables, parse_columns
from index_builder.embeddings.partners import SideTables
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.row_keys import laion_hashes
from index_builder.embeddings.space import EmbeddingSpace

SIZES = (13, 0, 20, 9)
N_ROWS = sum(SIZES)
UNKNOWN = (0, 5, 14, 41)  # rows that the tables don't have
MEMORY = 256 << 20


@pytest.fixture
def rows(unit_rows: Callable[..., np.ndarray]) -> np.ndarray:
    return unit_rows(N_ROWS)


@pytest.fixture
def folder(
    laion_folder: Callable[..., Path], rows: np.ndarray, space: EmbeddingSpace
) -> EmbeddingFolder:
    arrays = np.split(rows, np.cumsum(SIZES)[:-1])
    return EmbeddingFolder.open(laion_folder(arrays), space=space)


@pytest.fixture
def hashes(folder: EmbeddingFolder) -> np.ndarray:
    table = folder.metadata()
    return laion_hashes(table["url"], table["caption"])


@pytest.fixture
def scores(tmp_path: Path, hashes: np.ndarray, rng: np.random.Generator) -> Path:
    """Two tables in an order of their own, with rows of others, and columns as LAION has them."""
    order = rng.permutation([row for row in range(N_ROWS) if row not in UNKNOWN])
    values = np.concatenate([hashes[order], rng.integers(-(2**62), 2**62, 30)])
    table = pa.table(
        {
            "URL": [f"https://elsewhere.org/{i}" for i in range(len(values))],
            "hash": values,
            "punsafe": pa.array(np.append(order / 64, np.ones(30)), pa.float32()),
            "AESTHETIC_SCORE": pa.array(np.append(order, np.ones(30)), pa.float16()),
        }
    ).take(pa.array(rng.permutation(len(values))))
    target = tmp_path / "scores"
    target.mkdir()
    pq.write_table(table.slice(0, 25), target / "part-0.parquet")
    shouted = table.slice(25).rename_columns(["URL", "HASH", "PUNSAFE", "AESTHETIC_SCORE"])
    pq.write_table(shouted, target / "part-1.parquet")
    return target


def join(folder: EmbeddingFolder, out: Path, *tables: Path, **options: Any) -> Joined:
    sides = SideTables.open(tables) if tables else None
    return join_tables(folder, out, tables=sides, memory_bytes=MEMORY, **options)


def digests(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_columns_reach_the_rows_whose_hash_they_have(
    folder: EmbeddingFolder, scores: Path, rows: np.ndarray, tmp_path: Path
) -> None:
    joined = join(folder, tmp_path / "out", scores)
    assert joined == Joined(N_ROWS, 0, N_ROWS - 4, 4, 0, ("punsafe", "aesthetic"))
    out = EmbeddingFolder.open(tmp_path / "out")
    assert out.columns == ("image_path", "url", "caption", "punsafe", "aesthetic")
    assert out.space == folder.space and out.part_rows == list(SIZES)
    np.testing.assert_array_equal(out.take(np.arange(N_ROWS)), rows)
    table = out.metadata()
    assert table.select(folder.columns).equals(folder.metadata().select(folder.columns))
    expected = [None if row in UNKNOWN else row for row in range(N_ROWS)]
    assert table["aesthetic"].to_pylist() == expected
    assert table["punsafe"].to_pylist() == [None if r is None else r / 64 for r in expected]
    assert not (tmp_path / "out" / ".join").exists()


def test_vectors_are_shared_and_not_copied(
    folder: EmbeddingFolder, scores: Path, tmp_path: Path
) -> None:
    join(folder, tmp_path / "out", scores)
    for number in range(len(SIZES)):
        source = Path(folder.path) / "img_emb" / f"img_emb_{number}.npy"
        assert (tmp_path / "out" / "img_emb" / f"img_emb_{number:04d}.npy").samefile(source)


def test_where_nothing_can_be_linked_bytes_are_copied(
    folder: EmbeddingFolder,
    scores: Path,
    rows: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_paths: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(joining.os, "link", refuse)
    monkeypatch.setattr(joining, "_BLOCK_BYTES", 100)  # several blocks
    join(folder, tmp_path / "out", scores)
    assert "is copied, for it can't be linked: Invalid cross-device link" in caplog.text
    out = EmbeddingFolder.open(tmp_path / "out")
    np.testing.assert_array_equal(out.take(np.arange(N_ROWS)), rows)
    assert not (tmp_path / "out" / "img_emb" / "img_emb_0000.npy").samefile(
        Path(folder.path) / "img_emb" / "img_emb_0.npy"
    )


def test_listed_rows_are_left_out(
    folder: EmbeddingFolder, scores: Path, hashes: np.ndarray, rows: np.ndarray, tmp_path: Path
) -> None:
    gone = np.array([1, 12, 14])  # of parts 0 and 2
    dropped = DropList("hash", np.sort(np.append(hashes[gone], 99)), "digest")
    joined = join(folder, tmp_path / "out", scores, dropped=dropped)
    assert (joined.n_rows, joined.n_dropped, joined.n_with_partner) == (39, 3, 38)
    kept = np.setdiff1d(np.arange(N_ROWS), gone)
    out = EmbeddingFolder.open(tmp_path / "out")
    np.testing.assert_array_equal(out.take(np.arange(39)), rows[kept])
    table = out.metadata()
    assert table["caption"].to_pylist() == [f"picture {row}" for row in kept]
    assert table["aesthetic"].to_pylist() == [None if r in UNKNOWN else r for r in kept]
    assert out.details["dropped"] == {"by": "hash", "n": 4, "sha256": "digest"}
    is_shared = [
        (tmp_path / "out" / "img_emb" / f"img_emb_{i:04d}.npy").stat().st_nlink == 2
        for i in range(len(SIZES))
    ]
    assert is_shared == [False, True, False, True]


def test_rows_are_dropped_without_a_table(
    folder: EmbeddingFolder, rows: np.ndarray, tmp_path: Path
) -> None:
    urls = pa.array([f"https://example.org/{row}" for row in range(13)], pa.large_string())
    joined = join(folder, tmp_path / "out", dropped=DropList("url", urls, ""))
    assert joined == Joined(N_ROWS - 13, 13, 0, 0, 0, ())
    out = EmbeddingFolder.open(tmp_path / "out")
    assert out.part_rows == [0, 0, 20, 9]  # parts keep their numbers
    np.testing.assert_array_equal(out.take(np.arange(out.n_rows)), rows[13:])


def test_a_list_of_everything_is_refused(folder: EmbeddingFolder, tmp_path: Path) -> None:
    urls = pa.array([f"https://example.org/{row}" for row in range(N_ROWS)], pa.large_string())
    with pytest.raises(EmbeddingError, match=r"every row of .* is listed"):
        join(folder, tmp_path / "out", dropped=DropList("url", urls, ""))


@pytest.mark.parametrize("n_parts", [0, 1, 3])
def test_an_interrupted_join_goes_on(
    folder: EmbeddingFolder,
    scores: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_parts: int,
) -> None:
    join(folder, tmp_path / "whole", scores)
    with monkeypatch.context() as patched:
        write, done = joining._PartWriter.take_over, []

        def stop(self: Any, *arguments: Any) -> None:
            if len(done) == n_parts:
                raise KeyboardInterrupt
            done.append(write(self, *arguments))

        patched.setattr(joining._PartWriter, "take_over", stop)
        with pytest.raises(KeyboardInterrupt):
            join(folder, tmp_path / "out", scores)
    with pytest.raises(ArtefactError, match="is unfinished"):
        EmbeddingFolder.open(tmp_path / "out")
    with pytest.raises(ArtefactError, match="was begun with other settings"):
        join(folder, tmp_path / "out", scores, columns={"punsafe": "punsafe"})
    monkeypatch.setattr(partners, "_run", None)  # the join itself stands
    assert join(folder, tmp_path / "out", scores).n_with_partner == N_ROWS - 4
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    with pytest.raises(ArtefactError, match="is complete already"):
        join(folder, tmp_path / "out", scores)


def test_several_partners(folder: EmbeddingFolder, hashes: np.ndarray, tmp_path: Path) -> None:
    table = pa.table({"hash": hashes[[3, 7, 7, 3]], "aesthetic": [1.0, 2.0, 3.0, 4.0]})
    pq.write_table(table, tmp_path / "twice.parquet", row_group_size=1)
    with pytest.raises(
        EmbeddingError, match=r"twice\.parquet has several rows for row 3 of .*--duplicates first"
    ):
        join(folder, tmp_path / "refused", tmp_path / "twice.parquet")
    joined = join(folder, tmp_path / "out", tmp_path / "twice.parquet", duplicates="first")
    assert (joined.n_with_partner, joined.n_duplicates) == (2, 2)
    scores = EmbeddingFolder.open(tmp_path / "out").metadata([3, 7, 4])["aesthetic"]
    assert scores.to_pylist() == [1.0, 2.0, None]


def test_by_url_under_new_names(folder: EmbeddingFolder, tmp_path: Path) -> None:
    """Width and height of LAION's first tables are exchanged back by naming them so."""
    table = pa.table(
        {"URL": [f"https://example.org/{i}" for i in range(9)], "WIDTH": [3] * 9, "HEIGHT": [4] * 9}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    columns = parse_columns("width=height, height=width")
    join(folder, tmp_path / "out", tmp_path / "t.parquet", by="url", columns=columns)
    found = EmbeddingFolder.open(tmp_path / "out").metadata([8, 9], ["width", "height"])
    assert found.to_pylist() == [{"width": 4, "height": 3}, {"width": None, "height": None}]


def test_columns_of_vectors_become_npy(
    rows: np.ndarray, space: EmbeddingSpace, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    table = pa.table({"key": [f"{i:09d}" for i in range(N_ROWS)], "vector": list(rows)})
    pq.write_table(table, tmp_path / "set" / "part_1.parquet")
    pq.write_table(pa.table({"key": ["000000002"], "nsfw": ["UNLIKELY"]}), tmp_path / "t.parquet")
    folder = EmbeddingFolder.open(tmp_path / "set", space=space)
    join(folder, tmp_path / "out", tmp_path / "t.parquet", by="key")
    out = EmbeddingFolder.open(tmp_path / "out")
    np.testing.assert_array_equal(out.take(np.arange(N_ROWS)), rows)
    assert out.metadata([1, 2])["nsfw"].to_pylist() == [None, "UNLIKELY"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"a": "nowhere"}}, "has no column 'nowhere'; it has url, hash, punsafe"),
        ({"columns": {"url": "punsafe"}}, r"has a column 'url' already.*table_url=punsafe"),
        ({"by": "key"}, "has no column key; it has image_path, url, caption"),
    ],
)
def test_joins_that_are_refused(
    options: dict[str, Any], message: str, folder: EmbeddingFolder, scores: Path, tmp_path: Path
) -> None:
    with pytest.raises(EmbeddingError, match=message):
        join(folder, tmp_path / "out", scores, **options)


def test_tables_that_are_refused(
    folder: EmbeddingFolder, scores: Path, hashes: np.ndarray, tmp_path: Path
) -> None:
    def table(**columns: Any) -> Path:
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        return tmp_path / "t.parquet"

    def refuse(message: str, *tables: Path, error: type[Exception] = EmbeddingError) -> None:
        with pytest.raises(error, match=message):
            join(folder, tmp_path / "out", *tables)

    refuse("hash of double, expected int64", table(hash=hashes.astype(float), x=hashes))
    refuse("has no column hash; it has x. Of tables, hashes aren't computed", table(x=hashes))
    refuse("has no column that .* lacks", table(hash=hashes, URL=["a"] * N_ROWS))
    refuse(
        "has no column aesthetic, punsafe, url, and", scores, table(hash=hashes), error=PartError
    )
    refuse("of which two get the same name", table(hash=hashes, Hash=hashes), error=PartError)
    (tmp_path / "bad.parquet").write_text("no")
    refuse("bad.parquet is not a readable parquet", tmp_path / "bad.parquet", error=PartError)
    (tmp_path / "empty").mkdir()
    refuse("empty holds no parquet files", tmp_path / "empty")
    refuse("there is nothing to do")


def test_bad_metadata_is_told_as_such(
    folder: EmbeddingFolder, scores: Path, tmp_path: Path
) -> None:
    file = Path(folder.path) / "metadata" / "metadata_2.parquet"
    content = bytearray(file.read_bytes())
    content[4:600] = bytes(596)
    file.write_bytes(content)
    with pytest.raises(PartError, match=r"metadata_2\.parquet is not a readable parquet file"):
        join(folder, tmp_path / "out", scores)


def test_too_little_memory_is_told(folder: EmbeddingFolder, scores: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match=r"can't be joined within 1000 bytes .* --memory"):
        join_tables(folder, tmp_path / "out", tables=SideTables.open([scores]), memory_bytes=1000)


@pytest.mark.parametrize("text", ["", "a,", "a=b,a=c", "=b", "a="])
def test_columns_that_name_nothing(text: str) -> None:
    with pytest.raises(EmbeddingError, match="names no columns; expected NAME,NEW=OLD"):
        parse_columns(text)
