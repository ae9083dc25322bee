"""Keys that tell whether metadata files were numbered as the npy files were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.embeddings.alignment import first_key
from index_builder.embeddings.errors import PartError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

N_PARTS = 13


def dealt(n_parts: int, n_rounds: int = 3) -> list[list[str]]:
    """Keys of two rows a tar, tars dealt to the parts in turn, as clip-retrieval does."""
    return [
        [f"{tar:05d}{row:04d}" for tar in range(k, n_rounds * n_parts, n_parts) for row in (1, 0)]
        for k in range(n_parts)
    ]


@pytest.fixture
def open_keys(
    laion_folder: Callable[..., Path], unit_rows: Callable[..., np.ndarray], space: EmbeddingSpace
) -> Callable[..., EmbeddingFolder]:
    def open_(
        keys: Sequence[Sequence[str]], column: str = "key", pattern: str = "{}"
    ) -> EmbeddingFolder:
        tables = [pa.table({column: list(part), "caption": list(part)}) for part in keys]
        arrays = [unit_rows(len(part)) for part in keys]
        folder = laion_folder(arrays, tables=tables, pattern=pattern)
        return EmbeddingFolder.open(folder, space=space)

    return open_


def renumbered_as_text(keys: list[list[str]]) -> list[list[str]]:
    """What part N holds after parts were renumbered in the order of their names as text."""
    as_text = sorted(range(len(keys)), key=str)
    moved: list[list[str]] = [[]] * len(keys)
    for rank, number in enumerate(as_text):
        moved[number] = keys[rank]
    return moved


def test_parts_dealt_in_turn_are_in_order(
    open_keys: Callable[..., EmbeddingFolder], caplog: pytest.LogCaptureFixture
) -> None:
    folder = open_keys(dealt(N_PARTS))
    assert [part.columns.first_key for part in folder.parts if part.columns] == [
        10_000 * k for k in range(N_PARTS)
    ]
    assert not caplog.records


@pytest.mark.parametrize("column", ["key", "KEY", "image_path"])
@pytest.mark.parametrize("pattern", ["{}", "{:04d}"], ids=["unpadded", "padded"])
def test_numbers_given_after_sorting_as_text_are_refused(
    open_keys: Callable[..., EmbeddingFolder], column: str, pattern: str
) -> None:
    with pytest.raises(
        PartError,
        match=r"metadata_0*10\.parquet begins with key 20000, and .*metadata_0*2\.parquet with key "
        r"50000: the keys of these 13 parts rise .* as text \(1, 10, 2\), expected as numbers "
        r"\(1, 2, 10\)\. .* Rename the metadata files so that keys rise with the number",
    ):
        open_keys(renumbered_as_text(dealt(N_PARTS)), column, pattern)


def test_shuffled_keys_are_no_alarm(
    open_keys: Callable[..., EmbeddingFolder],
    rng: np.random.Generator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = dealt(N_PARTS)
    assert open_keys([keys[i] for i in rng.permutation(N_PARTS)]).n_rows == 6 * N_PARTS
    assert not caplog.records


@pytest.mark.parametrize(
    "order",
    [
        [*range(6), *range(6)],  # two downloads, each from key 0
        [*range(3, 12), 0, 1, 2],  # a later one put after the first
    ],
    ids=["repeated", "turned"],
)
def test_downloads_put_together_are_no_alarm(
    open_keys: Callable[..., EmbeddingFolder], order: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    keys = dealt(12)
    open_keys([keys[i] for i in order])
    assert not caplog.records


def test_two_files_that_look_exchanged_are_warned_of(
    open_keys: Callable[..., EmbeddingFolder], caplog: pytest.LogCaptureFixture
) -> None:
    keys = dealt(N_PARTS)
    keys[3], keys[7] = keys[7], keys[3]
    open_keys(keys)
    (record,) = caplog.records
    assert "metadata_3.parquet begins with 70000 and" in record.getMessage()
    assert "metadata_7.parquet with 30000" in record.getMessage()


def key_of(table: pa.Table, tmp_path: Path, **options: object) -> int | None:
    pq.write_table(table, tmp_path / "t.parquet", **options)
    return first_key(pq.read_metadata(tmp_path / "t.parquet"), {n: n for n in table.column_names})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["0012", "0009", "0100", "0007"], 7),  # in the second row group
        (["0012.jpg", "0007.jpg"], 7),
        ([12, 7, 100], 7),
        (["12", "7", "100"], None),  # the smallest text is not the smallest number
        (["a/0012.jpg", "b/0007.jpg"], None),
        (["0012", "cat"], None),
        ([None, None], None),
    ],
)
def test_the_smallest_key(keys: list[object], expected: int | None, tmp_path: Path) -> None:
    assert key_of(pa.table({"key": keys}), tmp_path, row_group_size=3) == expected


def test_a_file_without_statistics_says_nothing(tmp_path: Path) -> None:
    assert key_of(pa.table({"key": ["0012"]}), tmp_path, write_statistics=False) is None
    assert key_of(pa.table({"caption": ["0012"]}), tmp_path) is None
