from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder import shards as shards_module
from index_builder.cosine import unit_rows
from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.errors import BadRowError
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.planning import plan_index
from index_builder.quantizer import save_quantizer, train_quantizer
from index_builder.shards import ShardTask, build_shard, is_finished, read_record, shard_folder

Cone = Callable[..., np.ndarray]
WriteCollection = Callable[..., Collection]
DESIGNS: dict[str, dict[str, Any]] = {
    "flat": {"code": "flat"},
    "lists": {"code": "ivf-rabitq", "rerank": "rabitq4"},
    "graph": {"code": "hnsw-sq8", "rerank": "sq8"},
}
FILES = {
    "flat": set(),
    "lists": {"codes.npy", "rows.npy", "list_sizes.npy", "vectors.npy"},
    "graph": {"codes.npy", "rows.npy", "levels.npy", "links.npy", "entry.npy", "vectors.npy"},
}


@pytest.fixture
def embeddings(cone: Cone, write_collection: WriteCollection) -> Collection:
    return write_collection(cone(300), cone(200))


@pytest.fixture
def make_task(embeddings: Collection, tmp_path: Path) -> Callable[..., ShardTask]:
    """Return the task of one shard, whose quantizer stands."""

    def make(design: str, **changed: Any) -> ShardTask:
        given: dict[str, Any] = {
            "index": str(tmp_path / "index"),
            "embeddings": embeddings,
            "number": 0,
            "row_start": 0,
            "row_stop": 500,
            "first_row": 0,
            "columns": ("caption",),
            "bad_rows": "error",
            "build_fingerprint": "f",
        } | changed
        source = given["embeddings"]
        given["plan"] = plan_index(source.n_rows, source.space, **DESIGNS[design])
        unit = unit_rows(embeddings.take(np.arange(500)))
        quantizer = train_quantizer(unit, given["plan"].n_lists, 0)
        save_quantizer(quantizer, Path(given["index"]) / "quantizer", "f")
        return ShardTask(**given)

    return make


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


@pytest.mark.parametrize("design", DESIGNS)
def test_a_shard_has_its_files_and_a_record(
    make_task: Callable[..., ShardTask], design: str, tmp_path: Path
) -> None:
    task = make_task(design, number=12, row_start=100, row_stop=350)
    build_shard(task)
    assert task.folder == tmp_path / "index" / "shards" / "0012"
    names = FILES[design] | {"tombstones.npy", "metadata.arrow"}
    record = read_record(task.folder)
    assert set(record["files"]) == names
    assert {path.name for path in task.folder.iterdir()} == names | {"shard.json"}
    expected = {"row_start": 100, "row_stop": 350, "n_tombstones": 0, "build_fingerprint": "f"}
    assert {name: record[name] for name in expected} == expected
    assert is_finished(task.folder, "f") and not is_finished(task.folder, "g")


@pytest.mark.parametrize("design", DESIGNS)
def test_a_shard_that_stands_is_left_alone_and_a_damaged_one_built_again(
    make_task: Callable[..., ShardTask], design: str
) -> None:
    task = make_task(design)
    build_shard(task)
    before = digests(task.folder)
    times = {path: path.stat().st_mtime_ns for path in task.folder.iterdir()}
    build_shard(pickle.loads(pickle.dumps(task)))
    assert times == {path: path.stat().st_mtime_ns for path in task.folder.iterdir()}
    for name in before:
        content = bytearray((task.folder / name).read_bytes())
        content[-2] ^= 1
        (task.folder / name).write_bytes(content)
        assert not is_finished(task.folder, "f")
        build_shard(task)
        assert digests(task.folder) == before
    build_shard(replace(task, build_fingerprint="another"))
    assert read_record(task.folder)["build_fingerprint"] == "another"
    assert {**digests(task.folder), "shard.json": ""} == {**before, "shard.json": ""}


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("batch_bytes", [1, 7 * 4 * 48])
def test_the_same_bytes_in_any_batches(
    make_task: Callable[..., ShardTask],
    monkeypatch: pytest.MonkeyPatch,
    design: str,
    batch_bytes: int,
) -> None:
    task = make_task(design, row_start=290, row_stop=320)  # of both folders
    build_shard(task)
    monkeypatch.setattr(shards_module, "BATCH_BYTES", batch_bytes)
    again = replace(task, number=1)
    build_shard(again)
    assert digests(again.folder) == digests(task.folder)


@pytest.mark.parametrize("design", DESIGNS)
def test_rows_are_those_of_the_index_wherever_the_embeddings_begin(
    make_task: Callable[..., ShardTask],
    cone: Cone,
    write_foreign: Callable[..., Path],
    space: EmbeddingSpace,
    embeddings: Collection,
    design: str,
) -> None:
    rows = cone(200)
    rows[[50, 120]] = 0
    later = Collection.open([write_foreign(rows)], space=space)
    given = {"row_start": 540, "row_stop": 640, "bad_rows": "tombstone", "columns": ()}
    task = make_task(design, embeddings=later, first_row=500, **given)
    build_shard(task)
    assert np.load(task.folder / "tombstones.npy").tolist() == [550, 620]
    assert read_record(task.folder)["n_tombstones"] == 2
    # The same codes as in a collection where these rows have their numbers.
    whole = Collection([*embeddings.folders, *later.folders])
    same = replace(task, embeddings=whole, first_row=0, number=1)
    build_shard(same)
    assert digests(same.folder) == digests(task.folder)
    if design != "flat":
        stored = np.sort(np.load(task.folder / "rows.npy"))
        np.testing.assert_array_equal(stored, np.setdiff1d(np.arange(100), [10, 80]))
        copied = np.load(task.folder / "vectors.npy")
        assert copied.shape[0] == 100 and not copied[[10, 80]].any()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [(None, ["image_id", "caption"]), (("caption",), ["caption"]), ((), None)],
)
def test_metadata_is_what_was_asked_for(
    make_task: Callable[..., ShardTask],
    embeddings: Collection,
    columns: tuple[str, ...] | None,
    expected: list[str] | None,
) -> None:
    task = make_task("flat", columns=columns, row_start=290, row_stop=310)
    build_shard(task)
    if expected is None:
        assert not (task.folder / "metadata.arrow").exists()
        return
    with pa.memory_map(str(task.folder / "metadata.arrow")) as mapped:
        found = pa.ipc.open_file(mapped).read_all()
        assert found.equals(embeddings.metadata(np.arange(290, 310), expected))


def test_a_bad_row_leaves_no_shard(
    make_task: Callable[..., ShardTask],
    cone: Cone,
    write_foreign: Callable[..., Path],
    space: EmbeddingSpace,
) -> None:
    rows = cone(40)
    rows[30] = np.nan
    bad = Collection.open([write_foreign(rows)], space=space)
    task = make_task("lists", embeddings=bad, row_stop=40, columns=())
    with pytest.raises(BadRowError, match="row 30 "):
        build_shard(task)
    assert not (task.folder / "shard.json").exists()
    assert not is_finished(task.folder, "f")


def test_shards_are_numbered() -> None:
    assert [shard_folder(number) for number in (0, 17, 12_345)] == [
        "shards/0000",
        "shards/0017",
        "shards/12345",
    ]
