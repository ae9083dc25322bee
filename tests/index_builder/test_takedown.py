"""Takedown lists on an index: the rows they name, and that no search finds them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index_builder import takedown
from index_builder.build import build_index
from index_builder.deletion import delete_rows
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.drop_list import DropList, read_drop_list
from index_builder.embeddings.errors import ArtefactError, EmbeddingError
from index_builder.embeddings.row_keys import laion_hashes
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.planning import plan_index
from index_builder.takedown import find_listed_rows
from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest

N_ROWS = 200


def url(row: int) -> str:
    return f"https://example.org/{row % 190}"  # the last ten come twice, with other captions


@pytest.fixture
def rows(cone: Callable[..., np.ndarray]) -> np.ndarray:
    return cone(N_ROWS)


@pytest.fixture
def hashes() -> np.ndarray:
    return laion_hashes(
        pa.array([url(i) for i in range(N_ROWS)]), pa.array([f"{i}" for i in range(N_ROWS)])
    )


@pytest.fixture
def build(
    tmp_path: Path, space: EmbeddingSpace, rows: np.ndarray, hashes: np.ndarray
) -> Callable[..., Path]:
    """Build an index of three shards with some of the columns url, caption, hash, key."""

    def build_(*columns: str) -> Path:
        table = pa.table(
            {
                "url": [url(i) for i in range(N_ROWS)],
                "caption": [f"{i}" for i in range(N_ROWS)],
                "hash": hashes,
                "key": [f"{i:09d}" for i in range(N_ROWS)],
            }
        ).select(columns)
        with EmbeddingWriter(tmp_path / "set", space, command="test", details={}) as writer:
            writer.write(rows, table)
            source = Collection([writer.finish()])
        plan = plan_index(N_ROWS, space, code="flat", rows_per_shard=70)
        build_index(source, tmp_path / "index", plan)
        return tmp_path / "index"

    return build_


@pytest.mark.parametrize("columns", [("hash",), ("url", "caption")], ids=["stored", "computed"])
def test_hashes_are_compared_or_computed(
    build: Callable[..., Path],
    hashes: np.ndarray,
    columns: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(takedown, "_BATCHES", 1)
    gone = [0, 69, 70, 199]
    (tmp_path / "list.txt").write_text("\n".join(map(str, [*hashes[gone], 17])))
    found = find_listed_rows(build(*columns), read_drop_list(tmp_path / "list.txt"))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, gone)


def test_all_rows_of_a_url_and_the_row_of_a_key(build: Callable[..., Path]) -> None:
    index = build("url", "key")
    urls = pa.array([url(3), url(50), "https://nowhere.org"], pa.large_string())
    np.testing.assert_array_equal(find_listed_rows(index, DropList("url", urls, "")), [3, 50, 193])
    keys = pa.array(["000000011", "11"], pa.large_string())
    np.testing.assert_array_equal(find_listed_rows(index, DropList("key", keys, "")), [11])


def test_what_is_listed_is_never_found_again(
    build: Callable[..., Path], rows: np.ndarray, hashes: np.ndarray
) -> None:
    index = build("url", "caption")
    dropped = DropList("hash", np.sort(hashes[:50]), "")
    manifest = delete_rows(index, find_listed_rows(index, dropped))
    assert manifest["deleted"]["n_rows"] == 50
    engine = SearchEngine.open(index)
    result = engine.search(rows[:60], SearchRequest(k=5))
    assert result.rows.min() >= 50
    np.testing.assert_array_equal(result.rows[50:, 0], np.arange(50, 60))


def test_an_index_without_such_columns(build: Callable[..., Path]) -> None:
    with pytest.raises(EmbeddingError, match="has no column hash, or of url and caption"):
        find_listed_rows(build("url"), DropList("hash", np.array([1]), ""))


def test_altered_metadata_are_found_before_they_are_read(build: Callable[..., Path]) -> None:
    index = build("key")
    file = index / "shards" / "0001" / "metadata.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"0001/metadata\.arrow differs from its recorded"):
        find_listed_rows(index, DropList("key", pa.array(["x"], pa.large_string()), ""))
