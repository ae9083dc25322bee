from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embeddings import batches, mapped_reads, vectors
from index_builder.embeddings.errors import (
    ArtefactError,
    EmbeddingError,
    PartError,
    RowRangeError,
    SpaceMismatchError,
)
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter

Rows = Callable[..., np.ndarray]
Laion = Callable[..., Path]
SIZES = (13, 1, 0, 20, 9)


@pytest.fixture
def arrays(unit_rows: Rows) -> list[np.ndarray]:
    return [unit_rows(n) for n in SIZES]


@pytest.fixture
def opened(laion_folder: Laion, arrays: list[np.ndarray], space: EmbeddingSpace) -> EmbeddingFolder:
    return EmbeddingFolder.open(laion_folder(arrays), space=space)


def test_opening_tells_what_is_there(
    opened: EmbeddingFolder, arrays: list[np.ndarray], space: EmbeddingSpace
) -> None:
    assert opened.n_rows == sum(SIZES)
    assert opened.dtype == np.float16
    assert opened.space == space
    assert opened.is_local
    assert opened.details == {}
    assert opened.columns == ("image_path", "url", "caption")
    assert [part.n_rows for part in opened.parts] == list(SIZES)
    assert [part.row_start for part in opened.parts] == [0, 13, 14, 14, 34]
    assert opened.parts[-1].row_stop == 43
    assert opened.parts[0].file == "img_emb/img_emb_0.npy"


@pytest.mark.parametrize("batch_rows", [1, 2, 13, 14, 42, 43, 1000])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (5, 38), (13, 14), (14, 14), (43, 43)])
def test_batches_are_the_rows_whatever_their_size(
    opened: EmbeddingFolder,
    arrays: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    batch_rows: int,
    start: int,
    stop: int | None,
) -> None:
    monkeypatch.setattr(batches, "_PIECE_BYTES", 3 * 16)  # several pieces a batch
    read = list(opened.iter_batches(batch_rows=batch_rows, start=start, stop=stop))
    stop = 43 if stop is None else stop
    assert [batch.row_start for batch in read] == list(range(start, stop, batch_rows))
    assert all(len(batch.embeddings) == batch_rows for batch in read[:-1])
    rows = [row for batch in read for row in batch.embeddings]
    assert np.array_equal(np.array(rows).reshape(-1, 8), np.concatenate(arrays)[start:stop])
    for batch in read:
        assert batch.is_alive.all() and batch.is_alive.shape == (len(batch.embeddings),)
        assert batch.embeddings.dtype == np.float16
        batch.embeddings[:] = 0  # the caller's own


def test_a_reader_that_stops_early_leaves_no_thread(opened: EmbeddingFolder) -> None:
    import threading

    n_before = threading.active_count()
    unread = opened.iter_batches(batch_rows=2)
    next(unread)
    unread.close()  # type: ignore[attr-defined]  # a generator, promised as an iterator
    assert threading.active_count() == n_before


@pytest.mark.parametrize("n_rows", [0, 1, 24, 25, 512, 513, 5000])
@pytest.mark.parametrize("n_pages_read", [0.0, float("nan")])
def test_take_is_indexing(
    opened: EmbeddingFolder,
    arrays: list[np.ndarray],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    n_rows: int,
    n_pages_read: float,
) -> None:
    monkeypatch.setattr(vectors, "_TAKEN_BYTES", 3 * 16)  # three rows at once
    monkeypatch.setattr(mapped_reads, "_n_pages_read", lambda: n_pages_read)  # in turn; in threads
    rows = rng.integers(0, 43, n_rows)
    taken = opened.take(rows)
    np.testing.assert_array_equal(taken, np.concatenate(arrays)[rows])
    assert taken.dtype == np.float16 and taken.shape == (n_rows, 8)


def test_take_accepts_a_list(opened: EmbeddingFolder, arrays: list[np.ndarray]) -> None:
    np.testing.assert_array_equal(opened.take([42, 0]), np.concatenate(arrays)[[42, 0]])
    assert opened.take([]).shape == (0, 8)


@pytest.mark.parametrize("bad", [-1, 43, 10**12])
def test_rows_out_of_range(opened: EmbeddingFolder, bad: int) -> None:
    with pytest.raises(
        RowRangeError, match=f"row {bad} was asked for, and .*laion has rows 0 to 42"
    ):
        opened.take([3, bad])
    with pytest.raises(IndexError, match="rows 0 to 42"):
        opened.metadata([3, bad])


def test_batches_out_of_range(opened: EmbeddingFolder) -> None:
    for start, stop in [(-1, 5), (0, 44), (6, 5)]:
        with pytest.raises(RowRangeError, match=f"rows {start} to {stop} were asked for"):
            opened.iter_batches(batch_rows=1, start=start, stop=stop)


def test_bad_arguments_are_the_programmers(opened: EmbeddingFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_rows is 0"):
        opened.iter_batches(batch_rows=0)
    with pytest.raises(ValueError, match="batch_rows is 0"):
        opened.iter_metadata(batch_rows=0)
    with pytest.raises(ValueError, match="bad_rows is 'skip'"):
        opened.iter_batches(batch_rows=1, bad_rows="skip")  # type: ignore[arg-type]  # the point
    with pytest.raises(
        ValueError, match=r"shape \(1, 1\) and dtype int64, expected \(n,\) integers"
    ):
        opened.take(np.array([[1]]))
    with pytest.raises(ValueError, match="dtype float64"):
        opened.take(np.array([1.0]))
    with pytest.raises(ValueError, match="modality is 'audio'"):
        EmbeddingFolder.open(tmp_path, modality="audio")


def test_several_tokens(laion_folder: Laion, unit_rows: Rows) -> None:
    space = EmbeddingSpace("ViT-L-14/openai", "hidden", 5, 8, True)
    arrays = [unit_rows(6, 5, 8), unit_rows(3, 5, 8)]
    folder = EmbeddingFolder.open(laion_folder(arrays), space=space)
    expected = np.concatenate(arrays)
    (batch,) = folder.iter_batches(batch_rows=100)
    np.testing.assert_array_equal(batch.embeddings, expected)
    np.testing.assert_array_equal(folder.take([8, 2]), expected[[8, 2]])


def test_one_token_may_have_an_axis_of_its_own(
    laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace
) -> None:
    array = unit_rows(6, 1, 8)
    folder = EmbeddingFolder.open(laion_folder([array]), space=space)
    np.testing.assert_array_equal(folder.take(np.arange(6)), array[:, 0])


def test_float32_stays_float32(laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace) -> None:
    array = unit_rows(6, dtype="float32")
    folder = EmbeddingFolder.open(laion_folder([array]), space=space)
    (batch,) = folder.iter_batches(batch_rows=6)
    assert folder.dtype == batch.embeddings.dtype == folder.take([1]).dtype == np.float32
    np.testing.assert_array_equal(batch.embeddings, array)


def save_with_header(path: Path, array: np.ndarray, *, version: int, is_fortran: bool) -> None:
    """Write what other programs may write; numpy itself says C order where both are true."""
    header = {"descr": "<f2", "fortran_order": is_fortran, "shape": array.shape}
    write = getattr(np.lib.format, f"write_array_header_{version}_0")
    with open(path, "wb") as handle:
        write(handle, header)
        handle.write(array.tobytes("F" if is_fortran else "C"))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("is_fortran", [True, False])
def test_one_row_is_in_either_order(
    tmp_path: Path, unit_rows: Rows, space: EmbeddingSpace, version: int, is_fortran: bool
) -> None:
    row = unit_rows(1)
    save_with_header(tmp_path / "0.npy", row, version=version, is_fortran=is_fortran)
    folder = EmbeddingFolder.open(tmp_path, space=space)
    np.testing.assert_array_equal(folder.take([0]), row)


@pytest.mark.parametrize("shape", [(1, 2, 4), (3, 1, 8), (3, 8)])
def test_fortran_order_is_refused_where_it_matters(
    tmp_path: Path, unit_rows: Rows, space: EmbeddingSpace, shape: tuple[int, ...]
) -> None:
    rows = unit_rows(*shape)
    save_with_header(tmp_path / "0.npy", rows, version=1, is_fortran=True)
    with pytest.raises(PartError, match=r"0\.npy is in Fortran order"):
        EmbeddingFolder.open(tmp_path, space=space)


def test_text_embeddings(laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace) -> None:
    images, texts = [unit_rows(4)], [unit_rows(4)]
    folder = laion_folder(images)
    np_folder = folder / "text_emb"
    np_folder.mkdir()
    np.save(np_folder / "text_emb_0.npy", texts[0])
    opened = EmbeddingFolder.open(folder, space=space, modality="text_emb")
    np.testing.assert_array_equal(opened.take(np.arange(4)), texts[0])
    assert opened.metadata([2], ["caption"]).to_pydict() == {"caption": ["picture 2"]}


def test_without_a_space_the_error_says_what_to_give(laion_folder: Laion, unit_rows: Rows) -> None:
    folder = laion_folder([unit_rows(4)])
    with pytest.raises(
        EmbeddingError,
        match=r"has no space\.json.*img_emb_0\.npy holds 1 x 8 in float16\. .*"
        r"--space MODEL:final:1x8:unit",
    ):
        EmbeddingFolder.open(folder)


def test_a_space_of_another_size_is_refused(
    laion_folder: Laion, unit_rows: Rows, space: EmbeddingSpace
) -> None:
    with pytest.raises(
        SpaceMismatchError, match=r"holds embeddings of 1 x 8, and the space is .*768"
    ):
        EmbeddingFolder.open(laion_folder([unit_rows(4)]), space=replace(space, dim=768))


def test_a_folder_of_empty_parts_is_refused(laion_folder: Laion, space: EmbeddingSpace) -> None:
    folder = laion_folder([np.zeros((0, 8), np.float16)])
    with pytest.raises(EmbeddingError, match="has 1 parts and not a row in them"):
        EmbeddingFolder.open(folder, space=space)


def test_an_empty_part_is_reported(
    laion_folder: Laion,
    arrays: list[np.ndarray],
    space: EmbeddingSpace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = laion_folder(arrays)
    EmbeddingFolder.open(folder, space=space)
    assert caplog.messages == [f"{folder}/img_emb/img_emb_2.npy has no rows"]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="absent is not a folder; expected a folder of embedd"):
        EmbeddingFolder.open(tmp_path / "absent")


def test_foreign_fingerprint_follows_names_sizes_and_space_not_the_place(
    laion_folder: Laion, arrays: list[np.ndarray], space: EmbeddingSpace
) -> None:
    def fingerprint(name: str, space: EmbeddingSpace = space, **options: object) -> str:
        return EmbeddingFolder.open(
            laion_folder(arrays, name=name, **options), space=space
        ).fingerprint

    first = fingerprint("a")
    assert len(first) == 64
    assert fingerprint("b") == first
    assert fingerprint("c", pattern="{:02d}") != first
    assert fingerprint("d", with_metadata=False) != first
    assert fingerprint("e", space=replace(space, model="ViT-B-32/openai")) != first
    arrays[0] = arrays[0][:-1]
    assert fingerprint("f") != first


@pytest.mark.parametrize("n_parts", [1, 2, 4])
def test_the_first_parts_stay_what_they_are_when_parts_are_added(
    laion_folder: Laion,
    arrays: list[np.ndarray],
    space: EmbeddingSpace,
    unit_rows: Rows,
    n_parts: int,
) -> None:
    before = EmbeddingFolder.open(laion_folder(arrays[:n_parts], name="before"), space=space)
    grown = laion_folder(arrays, name="grown")
    prefix = EmbeddingFolder.open(grown, space=space, n_parts=n_parts)
    assert prefix.fingerprint == before.fingerprint
    assert prefix.part_rows == before.part_rows == list(SIZES[:n_parts])
    assert prefix.n_rows == sum(SIZES[:n_parts])
    rows = np.arange(prefix.n_rows)
    np.testing.assert_array_equal(prefix.take(rows), np.concatenate(arrays)[rows])
    assert prefix.metadata().equals(before.metadata())
    with pytest.raises(RowRangeError, match=f"rows 0 to {prefix.n_rows - 1}"):
        prefix.take([prefix.n_rows])
    (batch,) = prefix.iter_batches(batch_rows=1000)
    assert len(batch.embeddings) == prefix.n_rows
    assert EmbeddingFolder.open(grown, space=space).fingerprint != before.fingerprint
    assert pickle.loads(pickle.dumps(prefix)).fingerprint == before.fingerprint
    # Whatever becomes of the other parts; of those that were opened, any change counts.
    np.save(grown / "img_emb" / f"img_emb_{n_parts}.npy", unit_rows(3))
    assert EmbeddingFolder.open(grown, space=space, n_parts=n_parts).fingerprint == (
        before.fingerprint
    )
    (grown / "metadata" / "metadata_0.parquet").write_bytes(
        (before.path / Path("metadata/metadata_0.parquet")).read_bytes() + b"\0"
    )
    with pytest.raises(PartError, match=r"metadata_0\.parquet"):
        EmbeddingFolder.open(grown, space=space, n_parts=n_parts)


@pytest.mark.parametrize("n_parts", [0, 6])
def test_more_parts_than_there_are(
    laion_folder: Laion, arrays: list[np.ndarray], space: EmbeddingSpace, n_parts: int
) -> None:
    folder = laion_folder(arrays)
    with pytest.raises(
        EmbeddingError, match=f"laion has 5 parts, and the first {n_parts} were asked for"
    ):
        EmbeddingFolder.open(folder, space=space, n_parts=n_parts)


class TestOwnFolder:
    """A folder with space.json: the manifest rules."""

    @pytest.fixture
    def folder(self, tmp_path: Path, space: EmbeddingSpace, unit_rows: Rows) -> Path:
        with EmbeddingWriter(
            tmp_path / "own", space, command="test", details={"seed": 3}
        ) as writer:
            for start in (0, 4):
                image_ids = np.arange(start, start + 4)
                writer.write(unit_rows(4), pa.table({"image_id": image_ids, "URL": image_ids}))
            writer.finish()
        return tmp_path / "own"

    def test_says_what_it_is(self, folder: Path, space: EmbeddingSpace) -> None:
        opened = EmbeddingFolder.open(folder)
        assert opened.space == space
        assert opened.details == {"seed": 3}
        assert opened.columns == ("image_id", "URL")  # as written: names are not brought to form
        assert opened.metadata([7, 1])["image_id"].to_pylist() == [7, 1]
        assert EmbeddingFolder.open(folder, space=space).fingerprint == opened.fingerprint

    def test_the_first_parts_stay_what_they_are_when_parts_are_added(
        self, folder: Path, tmp_path: Path, space: EmbeddingSpace, unit_rows: Rows
    ) -> None:
        before = EmbeddingFolder.open(folder)
        with EmbeddingWriter(tmp_path / "grown", space, command="test", details={}) as writer:
            for rows, table in (
                (before.take(np.arange(4)), before.metadata(np.arange(4))),
                (before.take(np.arange(4, 8)), before.metadata(np.arange(4, 8))),
                (unit_rows(5), before.metadata(np.arange(5))),
            ):
                writer.write(rows, table)
            writer.finish()
        prefix = EmbeddingFolder.open(tmp_path / "grown", n_parts=2)
        assert prefix.fingerprint == before.fingerprint
        assert (prefix.n_rows, prefix.part_rows) == (8, [4, 4])
        np.testing.assert_array_equal(prefix.take(np.arange(8)), before.take(np.arange(8)))
        assert EmbeddingFolder.open(tmp_path / "grown").fingerprint != before.fingerprint
        for n_parts in (0, 4):
            with pytest.raises(EmbeddingError, match=f"has 3 parts, and the first {n_parts} were"):
                EmbeddingFolder.open(tmp_path / "grown", n_parts=n_parts)

    def test_another_space_is_a_contradiction(self, folder: Path, space: EmbeddingSpace) -> None:
        for other in (replace(space, model="ViT-B-32/openai"), replace(space, unit_norm=False)):
            with pytest.raises(SpaceMismatchError, match=r"space\.json says .* was given"):
                EmbeddingFolder.open(folder, space=other)

    def test_another_modality_is_refused(self, folder: Path) -> None:
        with pytest.raises(EmbeddingError, match="describes img_emb, and text_emb was asked for"):
            EmbeddingFolder.open(folder, modality="text_emb")

    @pytest.mark.parametrize("name", ["img_emb/img_emb_0001.npy", "metadata/metadata_0000.parquet"])
    def test_a_changed_size_is_seen_at_opening(self, folder: Path, name: str) -> None:
        size = (folder / name).stat().st_size
        with open(folder / name, "ab") as handle:
            handle.write(b"\0")
        message = f"{name} has {size + 1} bytes, and space.json says {size} bytes"
        with pytest.raises(ArtefactError, match=message):
            EmbeddingFolder.open(folder)
        (folder / name).unlink()
        with pytest.raises(ArtefactError, match=f"{name} is missing"):
            EmbeddingFolder.open(folder)

    def test_files_beyond_the_manifest_are_not_read(self, folder: Path, unit_rows: Rows) -> None:
        np.save(folder / "img_emb" / "img_emb_0002.npy", unit_rows(4))
        assert EmbeddingFolder.open(folder).n_rows == 8

    def test_order_comes_from_the_manifest(self, folder: Path) -> None:
        before = EmbeddingFolder.open(folder)
        text = (folder / "space.json").read_text()
        swapped = text.replace("_0000.", "_X.").replace("_0001.", "_0000.").replace("_X.", "_0001.")
        head, _, _ = swapped.partition('"files"')
        _, _, files = text.partition('"files"')
        (folder / "space.json").write_text(head + '"files"' + files)
        after = EmbeddingFolder.open(folder)
        rows = np.arange(8)
        np.testing.assert_array_equal(after.take(rows), before.take((rows + 4) % 8))
        assert after.fingerprint != before.fingerprint

    def test_rows_that_contradict_the_manifest(self, folder: Path) -> None:
        text = (folder / "space.json").read_text()
        (folder / "space.json").write_text(text.replace('"n_rows": 4', '"n_rows": 5', 1))
        with pytest.raises(
            EmbeddingError, match=r"img_emb_0000\.npy has 4 rows, and space.json says 5"
        ):
            EmbeddingFolder.open(folder)

    @pytest.mark.parametrize("field", ["space", "parts", "details", "modality", "files"])
    def test_a_field_that_is_gone(self, folder: Path, field: str) -> None:
        text = (folder / "space.json").read_text()
        (folder / "space.json").write_text(text.replace(f'"{field}":', '"gone":'))
        with pytest.raises(ArtefactError, match=f"space.json lacks the field '{field}'"):
            EmbeddingFolder.open(folder)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"kind": "embeddings"', '"kind": "index"', "describes a 'index', expected a 'embedd"),
            (
                '"format_version": 1',
                '"format_version": 9',
                "has format_version 9, and this voxseek",
            ),
            ("{", "", "is not JSON"),
        ],
    )
    def test_a_foreign_manifest(self, folder: Path, old: str, new: str, message: str) -> None:
        text = (folder / "space.json").read_text()
        (folder / "space.json").write_text(text.replace(old, new, 1))
        with pytest.raises(ArtefactError, match=message):
            EmbeddingFolder.open(folder)

    def test_an_unfinished_folder_is_not_read_as_a_foreign_one(
        self, tmp_path: Path, space: EmbeddingSpace, unit_rows: Rows
    ) -> None:
        with EmbeddingWriter(tmp_path / "half", space, command="test", details={}) as writer:
            writer.write(unit_rows(4), pa.table({"image_id": np.arange(4)}))
        with pytest.raises(ArtefactError, match=r"half is unfinished: unfinished\.json is there"):
            EmbeddingFolder.open(tmp_path / "half", space=space)


def test_a_copy_in_another_process_reads_on(
    opened: EmbeddingFolder, arrays: list[np.ndarray]
) -> None:
    opened.take(np.arange(43).repeat(20))  # threads and maps are in use and can't travel
    copy = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(copy.take([42]), np.concatenate(arrays)[[42]])
    assert copy.fingerprint == opened.fingerprint


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_take_after_a_fork(opened: EmbeddingFolder) -> None:
    rows = np.arange(43).repeat(20)
    expected = opened.take(rows)  # starts the threads, which the child won't have
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(opened.take(rows), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_real_clip_vectors(shared_data: Path, tmp_path: Path) -> None:
    """200 THINGS images, stored (200, 1, 768) and not normalized."""
    source = shared_data / "clip_vectors" / "clip_feature_maps_test.npy"
    vectors = np.load(source)
    np.save(tmp_path / "0.npy", vectors.astype(np.float32))
    space = EmbeddingSpace("ViT-L-14/openai", "final", 1, 768, False)
    folder = EmbeddingFolder.open(tmp_path, space=space)
    (batch,) = folder.iter_batches(batch_rows=1000)
    np.testing.assert_array_equal(batch.embeddings, vectors.reshape(200, 768).astype(np.float32))
