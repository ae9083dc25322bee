"""Folders as LAION, Re-LAION, img2dataset, clip-retrieval and others have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.embeddings.columns import normalize_names
from index_builder.embeddings.errors import EmbeddingError, PartError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

Rows = Callable[..., np.ndarray]
Laion = Callable[..., Path]


@pytest.mark.parametrize(
    ("stored", "ours"),
    [
        (
            "URL TEXT WIDTH HEIGHT similarity hash pwatermark punsafe LANGUAGE",
            "url caption width height similarity hash pwatermark punsafe language",
        ),
        (
            "SAMPLE_ID URL TEXT HEIGHT WIDTH LICENSE NSFW similarity",
            "sample_id url caption height width license nsfw similarity",
        ),
        (
            "image_path caption NSFW similarity LICENSE url key status error_message width height "
            "original_width original_height exif md5",
            "image_path caption nsfw similarity license url key status error_message width height "
            "original_width original_height exif md5",
        ),
        ("URL TEXT AESTHETIC_SCORE hash", "url caption aesthetic hash"),
        ("caption TEXT aesthetic AESTHETIC_SCORE", "caption text aesthetic aesthetic_score"),
    ],
    ids=["LAION-5B, joined", "LAION-400M", "clip-retrieval", "aesthetics", "both names"],
)
def test_columns_of_the_releases(stored: str, ours: str) -> None:
    assert normalize_names(stored.split()) == ours.split()


def test_a_hundred_million_rows_as_clickhouse_has_them(
    tmp_path: Path, unit_rows: Rows, space: EmbeddingSpace
) -> None:
    rows = unit_rows(30, dtype="float32")
    numbers = np.arange(30)
    table = pa.table(
        {
            "id": numbers,
            "image_path": [f"{i:09d}" for i in numbers],
            "caption": [f"picture {i}" for i in numbers],
            "NSFW": ["UNLIKELY"] * 30,
            "similarity": numbers / 100,
            "LICENSE": ["?"] * 30,
            "url": [f"https://example.org/{i}" for i in numbers],
            "key": [f"{i:09d}" for i in numbers],
            "status": ["success"] * 30,
            "width": numbers,
            "height": numbers,
            "original_width": numbers,
            "original_height": numbers,
            "exif": [None, "{}"] * 15,
            "md5": [f"{i:032x}" for i in numbers],
            "vector": pa.array(list(rows), pa.list_(pa.float32())),
        }
    )
    for number in (1, 2, 10):
        place = {1: 0, 2: 10, 10: 20}[number]
        file = tmp_path / f"laion100m_part_{number}.parquet"
        pq.write_table(table.slice(place, 10), file, row_group_size=4)
    folder = EmbeddingFolder.open(tmp_path, space=space)
    assert (folder.n_rows, folder.dtype, len(folder.parts)) == (30, np.float32, 3)
    np.testing.assert_array_equal(folder.take([29, 3, 12]), rows[[29, 3, 12]])
    batches = [batch.embeddings for batch in folder.iter_batches(batch_rows=7)]
    np.testing.assert_array_equal(np.concatenate(batches), rows)
    assert " ".join(folder.columns) == (
        "id image_path caption nsfw similarity license url key status width height "
        "original_width original_height exif md5"
    )
    (found,) = folder.metadata([12], ["id", "nsfw", "license", "key"]).to_pylist()
    assert found == {"id": 12, "nsfw": "UNLIKELY", "license": "?", "key": "000000012"}
    nulls = [part.columns.count_nulls() for part in folder.parts if part.columns]
    assert [each["exif"] for each in nulls] == [5, 5, 5]
    assert {each["md5"] for each in nulls} == {0}


def test_metadata_of_a_release_stand_under_its_name(
    laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = laion_folder([unit_rows(3), unit_rows(4)], name="laion2B-en", pattern="{:04d}")
    (folder / "metadata").rename(folder / "laion2B-en-metadata")
    for path in (folder, f"file://{folder}"):
        opened = EmbeddingFolder.open(path, space=space)
        assert opened.metadata([6])["caption"].to_pylist() == ["picture 6"]
    monkeypatch.chdir(folder)
    assert EmbeddingFolder.open(".", space=space).columns == ("image_path", "url", "caption")
    (folder / "metadata").mkdir()
    pq.write_table(pa.table({"url": ["a"]}), folder / "metadata" / "metadata_0000.parquet")
    with pytest.raises(EmbeddingError, match="in metadata and in laion2B-en-metadata; expected"):
        EmbeddingFolder.open(folder, space=space)


def test_files_downloaded_side_by_side(
    laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace, tmp_path: Path
) -> None:
    folder = laion_folder([unit_rows(3), unit_rows(4)])
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in folder.rglob("*_*.*"):
        file.rename(flat / file.name)
    opened = EmbeddingFolder.open(flat, space=space)
    assert opened.part_rows == [3, 4]
    assert opened.metadata([5])["caption"].to_pylist() == ["picture 5"]
    (flat / "metadata_1.parquet").unlink()
    with pytest.raises(PartError, match=r"no file of metadata .* has the number of .*img_emb_1"):
        EmbeddingFolder.open(flat, space=space)


def test_nulls_are_counted_by_footers(
    laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace
) -> None:
    table = pa.table(
        {
            "TEXT": ["a", None, "c", None, None, "f", None],
            "tags": [["x"], None, [], [], [], [], None],
            "exif": pa.array([None] * 7, pa.string()),
        }
    )
    folder = EmbeddingFolder.open(laion_folder([unit_rows(7)], tables=[table]), space=space)
    assert folder.parts[0].columns is not None
    assert folder.parts[0].columns.count_nulls() == {"caption": 4, "tags": None, "exif": 7}
