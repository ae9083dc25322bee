from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.embeddings import writer as writer_module
from index_builder.embeddings.artefact import read_manifest, sha256_file, verify_files
from index_builder.embeddings.errors import ArtefactError, BadRowError, EmbeddingError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter

Rows = Callable[..., np.ndarray]
Batch = tuple[np.ndarray, pa.Table]
DETAILS = {"seed": 3, "weights": "openai"}


@pytest.fixture
def batches(unit_rows: Rows) -> list[Batch]:
    sizes, start, made = (5, 5, 5, 2), 0, []
    for n_rows in sizes:
        image_ids = np.arange(start, start + n_rows)
        captions = [f"picture {i}" for i in image_ids]
        made.append(
            (
                unit_rows(n_rows, dtype="float64"),
                pa.table({"image_id": image_ids, "caption": captions}),
            )
        )
        start += n_rows
    return made


def write_all(folder: Path, space: EmbeddingSpace, batches: list[Batch]) -> EmbeddingFolder:
    """What a command does: skip the rows that stand, write the rest, finish."""
    with EmbeddingWriter(folder, space, command="voxseek embed", details=DETAILS) as writer:
        row = 0
        for embeddings, metadata in batches:
            row += len(embeddings)
            if row > writer.n_rows_done:
                writer.write(embeddings, metadata)
        return writer.finish()


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_what_is_written_is_read_back(
    tmp_path: Path, space: EmbeddingSpace, batches: list[Batch]
) -> None:
    folder = write_all(tmp_path / "out", space, batches)
    expected = np.concatenate([embeddings for embeddings, _ in batches]).astype(np.float16)
    (batch,) = folder.iter_batches(batch_rows=100)
    np.testing.assert_array_equal(batch.embeddings, expected)
    assert folder.metadata().equals(pa.concat_tables([table for _, table in batches]))
    assert sorted(contents(tmp_path / "out")) == [
        *(f"img_emb/img_emb_000{n}.npy" for n in range(4)),
        *(f"metadata/metadata_000{n}.parquet" for n in range(4)),
        "space.json",
    ]


def test_others_can_read_it(tmp_path: Path, space: EmbeddingSpace, batches: list[Batch]) -> None:
    """By plain numpy and pyarrow, as clip-retrieval and autofaiss do."""
    write_all(tmp_path, space, batches)
    array = np.load(tmp_path / "img_emb" / "img_emb_0003.npy")
    assert array.dtype == np.float16 and array.shape == (2, 8) and array.flags.c_contiguous
    table = pq.read_table(tmp_path / "metadata" / "metadata_0003.parquet")
    assert table["image_id"].to_pylist() == [15, 16]


def test_the_manifest(tmp_path: Path, space: EmbeddingSpace, batches: list[Batch]) -> None:
    write_all(tmp_path, space, batches)
    manifest = read_manifest(tmp_path, "space.json", kind="embeddings", format_version=1)
    assert manifest["space"] == space.to_dict()
    assert manifest["details"] == DETAILS
    assert manifest["n_rows"] == 17
    assert manifest["dtype"] == "float16"
    assert manifest["made_by"]["command"] == "voxseek embed"
    assert [part["n_rows"] for part in manifest["parts"]] == [5, 5, 5, 2]
    verify_files(tmp_path, manifest)
    with open(tmp_path / "img_emb" / "img_emb_0001.npy", "rb+") as handle:
        handle.seek(130)
        handle.write(b"!")
    with pytest.raises(ArtefactError, match=r"img_emb_0001\.npy differs from its recorded SHA-256"):
        verify_files(tmp_path, manifest)


def test_small_row_groups(
    tmp_path: Path, space: EmbeddingSpace, unit_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert writer_module._ROW_GROUP_ROWS <= 16_384
    monkeypatch.setattr(writer_module, "_ROW_GROUP_ROWS", 4)
    write_all(tmp_path, space, [(unit_rows(10), pa.table({"image_id": np.arange(10)}))])
    footer = pq.read_metadata(tmp_path / "metadata" / "metadata_0000.parquet")
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [4, 4, 2]
    assert footer.row_group(0).column(0).compression == "ZSTD"


class Crash(Exception):
    pass


@pytest.mark.parametrize("n_files", range(10))
def test_interrupted_or_not_the_bytes_are_the_same(
    tmp_path: Path,
    space: EmbeddingSpace,
    batches: list[Batch],
    monkeypatch: pytest.MonkeyPatch,
    n_files: int,
) -> None:
    """Crash while writing any of the files: state, four npy and four parquet, manifest."""
    write_all(tmp_path / "whole", space, batches)
    n_renamed = 0
    rename = writer_module.atomic_write.__globals__["os"].replace

    def crash(source: str, target: str) -> None:
        nonlocal n_renamed
        if n_renamed == n_files:
            raise Crash
        n_renamed += 1
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", crash)
        with pytest.raises(Crash):
            write_all(tmp_path / "broken", space, batches)
    with EmbeddingWriter(
        tmp_path / "broken", space, command="voxseek embed", details=DETAILS
    ) as writer:
        assert writer.n_rows_done == [0, 0, 0, 5, 5, 10, 10, 15, 15, 17][n_files]
    write_all(tmp_path / "broken", space, batches)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_process_that_is_killed_leaves_temporary_files_that_go_away(
    tmp_path: Path, space: EmbeddingSpace, batches: list[Batch]
) -> None:
    write_all(tmp_path / "whole", space, batches)
    broken = tmp_path / "broken"
    with EmbeddingWriter(broken, space, command="voxseek embed", details=DETAILS) as writer:
        writer.write(*batches[0])
        writer.write(*batches[1])
    (broken / "img_emb" / ".img_emb_0002.npy.partial").write_bytes(b"half")
    (broken / "metadata" / ".metadata_0001.parquet.partial").write_bytes(b"half")
    write_all(broken, space, batches)
    assert contents(broken) == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "damage",
    [
        lambda npy, parquet: npy.write_bytes(npy.read_bytes()[:-1]),
        lambda npy, parquet: npy.unlink(),
        lambda npy, parquet: parquet.write_bytes(parquet.read_bytes()[:-1]),
        lambda npy, parquet: pq.write_table(pq.read_table(parquet).slice(1), parquet),
    ],
    ids=["truncated npy", "no npy", "truncated parquet", "another number of rows"],
)
def test_a_part_counts_only_if_both_files_stand(
    tmp_path: Path, space: EmbeddingSpace, batches: list[Batch], damage: Callable[..., object]
) -> None:
    write_all(tmp_path / "whole", space, batches)
    broken = tmp_path / "broken"
    with EmbeddingWriter(broken, space, command="voxseek embed", details=DETAILS) as writer:
        for batch in batches[:3]:
            writer.write(*batch)
    damage(broken / "img_emb/img_emb_0001.npy", broken / "metadata/metadata_0001.parquet")
    with EmbeddingWriter(broken, space, command="voxseek embed", details=DETAILS) as writer:
        assert writer.n_rows_done == 5
    write_all(broken, space, batches)
    assert contents(broken) == contents(tmp_path / "whole")


def test_a_crash_after_the_manifest_leaves_a_finished_folder(
    tmp_path: Path, space: EmbeddingSpace, batches: list[Batch]
) -> None:
    whole = write_all(tmp_path, space, batches)
    (tmp_path / "unfinished.json").write_text("{}")
    assert EmbeddingFolder.open(tmp_path).fingerprint == whole.fingerprint
    with pytest.raises(ArtefactError, match="is complete already"):
        write_all(tmp_path, space, batches)
    assert not (tmp_path / "unfinished.json").exists()


def test_a_finished_folder_is_left_alone(
    tmp_path: Path, space: EmbeddingSpace, batches: list[Batch]
) -> None:
    write_all(tmp_path, space, batches)
    before = contents(tmp_path)
    with pytest.raises(ArtefactError, match=r"is complete already, .*: 17 rows\. Use it, or"):
        write_all(tmp_path, space, batches)
    other = EmbeddingSpace("ViT-B-32/openai", "final", 1, 8, True)
    with pytest.raises(
        ArtefactError, match=r'was finished with other settings:\n  space\.model: "V'
    ):
        write_all(tmp_path, other, batches)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("details", "dtype", "message"),
    [
        (
            {**DETAILS, "seed": 4},
            "float16",
            r"  details\.seed: 3 there, 4 now\nGive those settings",
        ),
        ({"seed": 3}, "float16", r'  details\.weights: "openai" there, absent now'),
        ({**DETAILS, "n": 1}, "float16", r"  details\.n: absent there, 1 now"),
        (DETAILS, "float32", r'  dtype: "float16" there, "float32" now'),
    ],
)
def test_an_unfinished_folder_of_other_settings_is_left_alone(
    tmp_path: Path,
    space: EmbeddingSpace,
    batches: list[Batch],
    details: dict[str, object],
    dtype: str,
    message: str,
) -> None:
    with EmbeddingWriter(tmp_path, space, command="voxseek embed", details=DETAILS) as writer:
        writer.write(*batches[0])
    before = contents(tmp_path)
    with (
        pytest.raises(ArtefactError, match=rf"was begun with other settings:\n{message}"),
        EmbeddingWriter(
            tmp_path,
            space,
            command="voxseek embed",
            details=details,
            dtype=dtype,  # type: ignore[arg-type]  # a str
        ),
    ):
        pytest.fail("the folder was opened")
    assert contents(tmp_path) == before


def test_files_of_someone_else_are_left_alone(
    tmp_path: Path, space: EmbeddingSpace, laion_folder: Callable[..., Path], unit_rows: Rows
) -> None:
    folder = laion_folder([unit_rows(4)])
    before = contents(folder)
    with (
        pytest.raises(ArtefactError, match=r"img_emb exists, and unfinished\.json isn't there"),
        EmbeddingWriter(folder, space, command="voxseek embed", details={}),
    ):
        pytest.fail("the folder was opened")
    assert contents(folder) == before


def test_details_that_json_changes_are_the_same_details(
    tmp_path: Path, space: EmbeddingSpace, batches: list[Batch]
) -> None:
    """A tuple comes back as a list, and is no difference."""
    for _ in range(2):
        with EmbeddingWriter(tmp_path, space, command="test", details={"size": (3, 4)}) as writer:
            pass
    writer.write(*batches[0])
    assert writer.finish().details == {"size": [3, 4]}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "holds NaN"), (np.inf, "holds an infinite value"), (0.0, "is all zeros")],
)
def test_bad_rows_are_not_written(
    tmp_path: Path,
    space: EmbeddingSpace,
    batches: list[Batch],
    dtype: str,
    value: float,
    message: str,
) -> None:
    rows, table = batches[0]
    rows[3] = value
    with EmbeddingWriter(tmp_path, space, command="t", details={}, dtype=dtype) as writer:  # type: ignore[arg-type]  # a str
        with pytest.raises(
            BadRowError, match=rf"img_emb_0000\.npy, row 3 {message}\. Leave it out"
        ):
            writer.write(rows, table)
        assert writer.n_rows_done == 0


def test_norms_that_contradict_the_space_are_not_written(
    tmp_path: Path, space: EmbeddingSpace, batches: list[Batch]
) -> None:
    rows, table = batches[0]
    rows[1] *= 2
    with (
        EmbeddingWriter(tmp_path, space, command="t", details={}) as writer,
        pytest.raises(BadRowError, match=r"row 1 has norm 2, .*declare unit_norm false"),
    ):
        writer.write(rows, table)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (70_000.0, "float16", r"row 2 has 7e\+04 as its largest value, and float16 holds 6e-08 to"),
        (1e-9, "float16", r"row 2 has 1e-09 as its largest value.*write float32"),
        (
            1e39,
            "float32",
            r"row 2 has 1e\+39 as its largest value, and float32 holds 1e-45 to 3\.40",
        ),
    ],
)
def test_values_that_the_stored_type_cannot_hold(
    tmp_path: Path, batches: list[Batch], value: float, dtype: str, message: str
) -> None:
    rows, table = batches[0]
    rows[2] = value
    space = EmbeddingSpace("m", "final", 1, 8, False)
    with (
        EmbeddingWriter(tmp_path, space, command="t", details={}, dtype=dtype) as writer,  # type: ignore[arg-type]  # a str
        pytest.raises(BadRowError, match=message),
    ):
        writer.write(rows, table)


def test_bad_arguments_are_the_programmers(
    tmp_path: Path, space: EmbeddingSpace, batches: list[Batch], unit_rows: Rows
) -> None:
    rows, table = batches[0]
    with EmbeddingWriter(tmp_path / "out", space, command="t", details={}) as writer:
        for bad in (rows[:, :4], rows[:0], rows.astype(int), rows.ravel(), rows[:, None]):
            with pytest.raises(
                ValueError, match=r"expected floats of shape \(n, 8\), n at least 1"
            ):
                writer.write(bad, table)
        with pytest.raises(ValueError, match="5 embeddings came with 4 rows of metadata"):
            writer.write(rows, table.slice(1))
        writer.write(rows, table)
        with pytest.raises(ValueError, match="and the parts before it have"):
            writer.write(rows, table.drop_columns("caption"))
    with (
        EmbeddingWriter(tmp_path / "out", space, command="t", details={}) as writer,
        pytest.raises(ValueError, match="and the parts before it have"),
    ):
        writer.write(rows, table.drop_columns("caption"))
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        EmbeddingWriter(tmp_path, space, command="t", details={}, dtype="int8")  # type: ignore[arg-type]  # the point
    with pytest.raises(ValueError, match="s3://bucket is a URL; expected a local folder"):
        EmbeddingWriter("s3://bucket", space, command="t", details={})
    with pytest.raises(ValueError, match="Out of range float values"):
        EmbeddingWriter(tmp_path, space, command="t", details={"x": float("nan")})


def test_nothing_written_is_nothing_to_finish(tmp_path: Path, space: EmbeddingSpace) -> None:
    with (
        EmbeddingWriter(tmp_path, space, command="t", details={}) as writer,
        pytest.raises(EmbeddingError, match="got no rows"),
    ):
        writer.finish()


def test_several_tokens(tmp_path: Path, unit_rows: Rows) -> None:
    space = EmbeddingSpace("m", "hidden", 5, 8, True)
    rows = unit_rows(3, 5, 8)
    with EmbeddingWriter(tmp_path, space, command="t", details={}) as writer:
        with pytest.raises(ValueError, match=r"expected floats of shape \(n, 5, 8\)"):
            writer.write(rows.reshape(3, 40), pa.table({"image_id": np.arange(3)}))
        writer.write(rows, pa.table({"image_id": np.arange(3)}))
        folder = writer.finish()
    np.testing.assert_array_equal(folder.take([2, 0]), rows[[2, 0]])
    assert json.loads((tmp_path / "space.json").read_text())["space"]["tokens"] == 5


def test_bytes_do_not_depend_on_how_a_table_is_chunked(
    tmp_path: Path, space: EmbeddingSpace, unit_rows: Rows
) -> None:
    """Parquet looks whether a page is full at the end of each chunk, if nobody joins them."""
    rows = unit_rows(4_000)
    table = pa.table({"caption": [f"{i:04d}" * 250 for i in range(len(rows))]})
    chunked = pa.concat_tables([table.slice(i, 700) for i in range(0, len(rows), 700)])
    write_all(tmp_path / "a", space, [(rows, table)])
    write_all(tmp_path / "b", space, [(rows, chunked.replace_schema_metadata({"pandas": "{}"}))])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
