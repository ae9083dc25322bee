"""Lists of rows to leave out, in the forms in which they are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.embeddings.drop_list import DropList, read_drop_list
from index_builder.embeddings.errors import EmbeddingError

LOW, HIGH = -(2**63), 2**63 - 1


def listed(dropped: DropList, keys: pa.Array) -> list[bool]:
    return dropped.is_listed(keys).tolist()


def test_hashes_a_line(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text(f"{HIGH}\n\n -5 \n{LOW}\n-5\n")
    dropped = read_drop_list(file)
    assert (dropped.by, dropped.values.tolist(), len(dropped)) == ("hash", [LOW, -5, HIGH], 3)
    keys = pa.array([HIGH, 0, None, LOW, -5, -6, HIGH - 1])
    assert listed(dropped, keys) == [True, False, False, True, True, False, False]


def test_zero_is_listed_only_where_it_is() -> None:
    assert listed(DropList("hash", np.array([-1]), ""), pa.array([0, None, -1])) == [
        False,
        False,
        True,
    ]
    assert listed(DropList("hash", np.array([0]), ""), pa.array([0, None])) == [True, False]


def test_many_hashes_beside_numpy(rng: np.random.Generator) -> None:
    values = np.unique(rng.integers(-1000, 1000, 400))
    keys = rng.integers(-1200, 1200, 5000)
    found = DropList("hash", values, "").is_listed(pa.array(keys))
    np.testing.assert_array_equal(found, np.isin(keys, values))


def test_urls_a_line(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("https://a.org/1,2.jpg\nhttp://b.org\n")
    dropped = read_drop_list(file)
    assert dropped.by == "url"
    keys = pa.array(["http://b.org", "http://c.org", None], pa.large_string())
    assert listed(dropped, keys) == [True, False, False]


def test_tables_say_by_a_name_what_they_list(tmp_path: Path) -> None:
    (tmp_path / "keys.csv").write_text("note,KEY\nx,000000012\ny,000000007\n")
    dropped = read_drop_list(tmp_path / "keys.csv")
    assert (dropped.by, dropped.values.to_pylist()) == ("key", ["000000012", "000000007"])
    (tmp_path / "hashes.csv").write_text("hash\n-3\n")
    assert read_drop_list(tmp_path / "hashes.csv").values.tolist() == [-3]
    pq.write_table(pa.table({"URL": ["a", None], "Hash": [4, 2]}), tmp_path / "both.parquet")
    dropped = read_drop_list(tmp_path / "both.parquet")
    assert (dropped.by, dropped.values.tolist()) == ("hash", [2, 4])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", "\n", "lists nothing"),
        ("list.txt", "5\nhttps://a.org\n", "'https://a.org', expected hashes alone or URLs alone"),
        ("list.txt", "https://a.org\n5\n", "lists '5', expected hashes alone or URLs alone"),
        ("list.txt", "000000012\n", "'000000012'.* make a .csv whose first line is 'key'"),
        ("list.txt", f"{2**63}\n", "lists 9223372036854775808, expected signed numbers of 64 bits"),
        ("list.bin", "\udcff", "neither .parquet nor .csv, and not text"),
        ("list.csv", "md5\nabc\n", "has columns md5, expected one named hash, url, key"),
        ("list.csv", "hash\nabc\n", "can't be read as CSV"),
        ("list.parquet", "no", "not a readable parquet file"),
    ],
)
def test_lists_that_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(EmbeddingError, match=message):
        read_drop_list(tmp_path / name)
