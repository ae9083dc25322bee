"""Each way in which a folder of embeddings can be damaged, and the error that names the place.

The same damage is tried on the local disk and behind a URL.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.embeddings.errors import (
    BadRowError,
    EmbeddingError,
    PartError,
    SpaceMismatchError,
    VoxseekError,
)
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

Rows = Callable[..., np.ndarray]
Laion = Callable[..., Path]
Damage = Callable[[Path, np.ndarray], None]
SECOND = "img_emb/img_emb_1.npy"
METADATA = "metadata/metadata_1.parquet"
BAD_ROW = 7  # of the second part, and 10 more in the folder


def truncate(folder: Path, rows: np.ndarray) -> None:
    with open(folder / SECOND, "rb+") as handle:
        handle.truncate(128 + 9 * 16 + 5)


def truncate_in_header(folder: Path, rows: np.ndarray) -> None:
    with open(folder / SECOND, "rb+") as handle:
        handle.truncate(50)


def empty(folder: Path, rows: np.ndarray) -> None:
    (folder / SECOND).write_bytes(b"")


def append(folder: Path, rows: np.ndarray) -> None:
    with open(folder / SECOND, "ab") as handle:
        handle.write(b"\0" * 16)


def replace_by_text(folder: Path, rows: np.ndarray) -> None:
    (folder / SECOND).write_text("<html>404 Not Found</html>" * 10)


def garble_header(folder: Path, rows: np.ndarray) -> None:
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content.replace(b"'shape'", b"'shap('"))


def save(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(folder: Path, rows: np.ndarray) -> None:
        np.save(folder / SECOND, change(rows), allow_pickle=True)

    return damage


def save_objects(folder: Path, rows: np.ndarray) -> None:
    class Explosive:
        def __reduce__(self) -> tuple[object, ...]:
            return (pytest.fail, ("an npy file was unpickled",))

    np.save(folder / SECOND, np.array([[Explosive()]] * len(rows)), allow_pickle=True)


def remove_metadata(folder: Path, rows: np.ndarray) -> None:
    (folder / METADATA).unlink()


def remove_vectors(folder: Path, rows: np.ndarray) -> None:
    (folder / SECOND).unlink()


def shorten_metadata(folder: Path, rows: np.ndarray) -> None:
    pq.write_table(pq.read_table(folder / METADATA).slice(1), folder / METADATA)


def truncate_metadata(folder: Path, rows: np.ndarray) -> None:
    content = (folder / METADATA).read_bytes()
    (folder / METADATA).write_bytes(content[:-20])


def pad_differently(folder: Path, rows: np.ndarray) -> None:
    (folder / SECOND).rename(folder / "img_emb/img_emb_01.npy")


def duplicate(folder: Path, rows: np.ndarray) -> None:
    np.save(folder / "img_emb/img_emb_01.npy", rows)


AT_OPENING = {
    "truncated npy": (
        truncate,
        PartError,
        r"img_emb_1\.npy has 277 bytes, and its header promises 288 \(10 rows\): it was truncated",
    ),
    "npy truncated in its header": (
        truncate_in_header,
        PartError,
        r"img_emb_1\.npy \(50 bytes\) is not an npy file: EOF",
    ),
    "empty file": (empty, PartError, r"img_emb_1\.npy \(0 bytes\) is not an npy file"),
    "npy too long": (append, PartError, r"img_emb_1\.npy has 304 bytes, .* promises 288"),
    "not npy": (replace_by_text, PartError, r"img_emb_1\.npy .*is not an npy file"),
    "garbled header": (garble_header, PartError, r"img_emb_1\.npy .*is not an npy file"),
    "objects": (
        save_objects,
        PartError,
        r"img_emb_1\.npy holds Python objects, and voxseek never unpickles",
    ),
    "Fortran order": (
        save(np.asfortranarray),
        PartError,
        r"img_emb_1\.npy is in Fortran order.*ascontiguousarray",
    ),
    "float64": (
        save(lambda rows: rows.astype(np.float64)),
        PartError,
        r"img_emb_1\.npy holds <f8 \(float64\), expected little-endian float16 or float32",
    ),
    "integers": (save(lambda rows: rows.astype(np.int8)), PartError, r"holds \|i1 \(int8\)"),
    "big-endian": (save(lambda rows: rows.astype(">f2")), PartError, r"holds >f2"),
    "one axis": (save(np.ravel), PartError, r"img_emb_1\.npy has shape \(80,\), expected \(rows"),
    "four axes": (
        save(lambda rows: rows.reshape(10, 2, 2, 2)),
        PartError,
        r"has shape \(10, 2, 2, 2\)",
    ),
    "another dim": (
        save(lambda rows: rows[:, :4]),
        PartError,
        r"img_emb_1\.npy has \(tokens, dim\) \(1, 4\), and .*img_emb_0\.npy has \(1, 8\)",
    ),
    "several tokens": (
        save(lambda rows: rows.reshape(10, 2, 4)),
        PartError,
        r"img_emb_1\.npy has \(tokens, dim\) \(2, 4\)",
    ),
    "another dtype": (
        save(lambda rows: rows.astype(np.float32)),
        PartError,
        r"img_emb_1\.npy has dtype float32, and .*img_emb_0\.npy has float16",
    ),
    "more rows than metadata": (
        shorten_metadata,
        PartError,
        r"metadata_1\.parquet has 9 rows, and .*img_emb_1\.npy has 10: expected one for one",
    ),
    "no metadata for a part": (
        remove_metadata,
        PartError,
        r"no file of metadata \(parquet\) has the number of .*img_emb_1\.npy",
    ),
    "no vectors for a part": (
        remove_vectors,
        PartError,
        r"no file of embeddings \(npy\) has the number of .*metadata_1\.parquet",
    ),
    "truncated metadata": (
        truncate_metadata,
        PartError,
        r"metadata_1\.parquet is not a readable parquet file",
    ),
    "mixed padding": (
        pad_differently,
        EmbeddingError,
        r"img_emb_0\.npy and img_emb_01\.npy, whose numbers are padded to different widths",
    ),
    "the same part twice": (
        duplicate,
        EmbeddingError,
        r"both img_emb_01\.npy and img_emb_1\.npy, which are the same part",
    ),
}


def set_row(value: float) -> Damage:
    def change(rows: np.ndarray) -> np.ndarray:
        rows[BAD_ROW] = value
        return rows

    return save(change)


def set_one(value: float) -> Damage:
    def change(rows: np.ndarray) -> np.ndarray:
        rows[BAD_ROW, 3] = value
        return rows

    return save(change)


IN_A_ROW = {
    "NaN": (set_one(np.nan), "holds NaN"),
    "infinite": (set_one(np.inf), "holds an infinite value"),
    "minus infinite": (set_one(-np.inf), "holds an infinite value"),
    "zero": (set_row(0), "is all zeros"),
    "minus zero": (set_row(-0.0), "is all zeros"),
}


@pytest.fixture
def folder(laion_folder: Laion, unit_rows: Rows) -> Path:
    return laion_folder([unit_rows(10), unit_rows(10)])


@pytest.fixture(params=["", "file://"], ids=["local", "url"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("damage", "error", "message"), AT_OPENING.values(), ids=AT_OPENING)
def test_seen_at_opening(
    folder: Path,
    unit_rows: Rows,
    space: EmbeddingSpace,
    prefix: str,
    damage: Damage,
    error: type[Exception],
    message: str,
) -> None:
    damage(folder, unit_rows(10))
    with pytest.raises(error, match=message):
        EmbeddingFolder.open(f"{prefix}{folder}", space=space)


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize(("damage", "message"), IN_A_ROW.values(), ids=IN_A_ROW)
def test_bad_rows_are_named(
    folder: Path, unit_rows: Rows, prefix: str, damage: Damage, message: str, unit_norm: bool
) -> None:
    damage(folder, unit_rows(10))
    space = EmbeddingSpace("ViT-L-14/openai", "final", 1, 8, unit_norm)
    opened = EmbeddingFolder.open(f"{prefix}{folder}", space=space)
    batches = opened.iter_batches(batch_rows=6)
    assert [next(batches).row_start for _ in range(2)] == [0, 6]
    with pytest.raises(
        BadRowError, match=rf"img_emb_1\.npy, row 7 \(row 17 of the folder\) {message}; .*tombstone"
    ):
        next(batches)


@pytest.mark.parametrize(("damage", "message"), IN_A_ROW.values(), ids=IN_A_ROW)
def test_bad_rows_become_tombstones(
    folder: Path, unit_rows: Rows, space: EmbeddingSpace, damage: Damage, message: str
) -> None:
    rows = unit_rows(10)
    damage(folder, rows)
    opened = EmbeddingFolder.open(folder, space=space)
    batches = list(opened.iter_batches(batch_rows=6, bad_rows="tombstone"))
    is_alive = np.concatenate([batch.is_alive for batch in batches])
    embeddings = np.concatenate([batch.embeddings for batch in batches])
    assert np.flatnonzero(~is_alive).tolist() == [17]
    assert not embeddings[17].any()
    others = np.delete(np.arange(10), BAD_ROW)
    np.testing.assert_array_equal(embeddings[10 + others], rows[others])


@pytest.mark.parametrize("bad_rows", ["error", "tombstone"])
@pytest.mark.parametrize("norm", [0.95, 1.05])
def test_norms_that_contradict_the_space(
    folder: Path, unit_rows: Rows, space: EmbeddingSpace, norm: float, bad_rows: str
) -> None:
    rows = unit_rows(10)
    rows[BAD_ROW] *= np.float16(norm)
    np.save(folder / SECOND, rows)
    opened = EmbeddingFolder.open(folder, space=space)
    with pytest.raises(
        BadRowError,
        match=rf"img_emb_1\.npy, row 7 .* has norm {norm}.*declare the space with unit_norm false",
    ):
        list(opened.iter_batches(batch_rows=100, bad_rows=bad_rows))  # type: ignore[arg-type]  # a str
    any_norm = EmbeddingSpace("ViT-L-14/openai", "final", 1, 8, False)
    opened = EmbeddingFolder.open(folder, space=any_norm)
    (batch,) = opened.iter_batches(batch_rows=100)
    assert batch.is_alive.all()


def test_a_file_that_shrinks_after_opening(
    folder: Path, space: EmbeddingSpace, prefix: str
) -> None:
    opened = EmbeddingFolder.open(f"{prefix}{folder}", space=space)
    truncate(folder, np.empty(0))
    with pytest.raises(PartError, match=r"img_emb_1\.npy ended before byte 288"):
        list(opened.iter_batches(batch_rows=100))


def test_metadata_that_is_not_row_for_row_is_never_paired_by_name(
    laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace
) -> None:
    """Eleven unpadded parts: sorted as text, part 10 would come before part 2."""
    arrays = [unit_rows(2) for _ in range(11)]
    opened = EmbeddingFolder.open(laion_folder(arrays), space=space)
    rows = np.array([20, 4])
    np.testing.assert_array_equal(opened.take(rows), [arrays[10][0], arrays[2][0]])
    assert opened.metadata(rows, ["image_path"])["image_path"].to_pylist() == [
        "000020.jpg",
        "000004.jpg",
    ]


def test_a_flipped_byte_in_a_header_never_raises_anything_else(
    folder: Path, space: EmbeddingSpace, rng: np.random.Generator
) -> None:
    """300 npy headers and parquet footers with random bytes in them."""
    for name in (SECOND, METADATA):
        content = (folder / name).read_bytes()
        in_header = range(128) if name == SECOND else range(len(content) - 200, len(content))
        for _ in range(150):
            damaged = bytearray(content)
            for position in rng.choice(in_header, size=2):
                damaged[position] = rng.integers(256)
            (folder / name).write_bytes(damaged)
            try:
                EmbeddingFolder.open(folder, space=space)
            except VoxseekError as error:
                assert name in str(error) or "columns" in str(error)
        (folder / name).write_bytes(content)
    assert EmbeddingFolder.open(folder, space=space).n_rows == 20


def test_first_part_differs_from_the_space(
    laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace
) -> None:
    with pytest.raises(SpaceMismatchError, match=r"holds embeddings of 2 x 4"):
        EmbeddingFolder.open(laion_folder([unit_rows(3, 2, 4)]), space=space)


def test_table_of_objects_in_metadata_is_not_unpickled(
    laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace
) -> None:
    """Binary columns stay bytes."""
    table = pa.table({"blob": [b"cos\nsystem\n."] * 3})
    opened = EmbeddingFolder.open(laion_folder([unit_rows(3)], tables=[table]), space=space)
    assert opened.metadata([0])["blob"].to_pylist() == [b"cos\nsystem\n."]
