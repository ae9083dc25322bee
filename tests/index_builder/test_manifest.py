from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from index_builder.build import build_index
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.errors import ArtefactError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.errors import IndexDamagedError, SourceError
from index_builder.manifest import (
    describe_sources,
    open_sources,
    read_deleted,
    read_index_manifest,
    shards_of,
    verify_index_files,
    write_index_manifest,
)
from index_builder.planning import plan_index

Cone = Callable[..., np.ndarray]
WriteCollection = Callable[..., Collection]


@pytest.fixture
def embeddings(cone: Cone, write_collection: WriteCollection) -> Collection:
    return write_collection(cone(60), cone(40))


@pytest.fixture
def index(embeddings: Collection, tmp_path: Path) -> Path:
    plan = plan_index(100, embeddings.space, code="flat", rows_per_shard=45)
    build_index(embeddings, tmp_path / "index", plan)
    return tmp_path / "index"


def rewrite(index: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the body of a manifest, and seal it anew."""
    manifest = read_index_manifest(index)
    records = list(manifest["files"])
    command = manifest["made_by"]["command"]
    for name in ("kind", "format_version", "made_by", "files", "fingerprint"):
        del manifest[name]
    change(manifest)
    write_index_manifest(index, command=command, records=records, body=manifest)


def test_what_is_written_is_read(index: Path) -> None:
    manifest = read_index_manifest(index)
    assert manifest["kind"] == "index" and manifest["format_version"] == 2
    assert set(manifest["files"]) == {
        "plan.json",
        "shards/0000/shard.json",
        "shards/0001/shard.json",
        "shards/0002/shard.json",
    }
    verify_index_files(index, manifest)
    rewrite(index, lambda body: None)
    assert read_index_manifest(index) == manifest


def test_the_first_format_is_refused(index: Path) -> None:
    path = index / "manifest.json"
    old = json.loads(path.read_text()) | {"format_version": 1}
    path.write_text(json.dumps(old, indent=2) + "\n")
    with pytest.raises(
        ArtefactError,
        match=r"manifest\.json has format_version 1, and this voxseek reads version 2\. Make the "
        r"index again, or use the voxseek that wrote it",
    ):
        read_index_manifest(index)


@pytest.mark.parametrize("change", ["value", "space", "fingerprint", "newline"])
def test_any_other_bytes_are_refused(index: Path, change: str) -> None:
    path = index / "manifest.json"
    manifest, text = json.loads(path.read_text()), path.read_text()
    changed = {
        "value": text.replace('"seed": 0', '"seed": 1'),
        "space": text.replace('"seed": 0', '"seed":  0'),
        "fingerprint": text.replace(manifest["fingerprint"], "0" * 64),
        "newline": text.rstrip("\n"),
    }[change]
    assert changed != text
    path.write_text(changed)
    with pytest.raises(IndexDamagedError, match="its fingerprint doesn't match its content"):
        read_index_manifest(index)


def test_folders_are_found_from_where_the_index_is(
    index: Path, embeddings: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_index_manifest(index)
    assert [source["path"] for source in manifest["sources"]] == ["../embeddings", "../embeddings1"]
    monkeypatch.chdir("/")
    opened = open_sources(index, manifest)
    assert opened.fingerprint == embeddings.fingerprint
    assert opened.part_rows == [20, 20, 20, 14, 13, 13]
    monkeypatch.chdir(tmp_path)
    assert open_sources("index", manifest).fingerprint == embeddings.fingerprint


def test_folders_behind_urls_keep_them(cone: Cone, space: EmbeddingSpace, tmp_path: Path) -> None:
    with fsspec.open("memory://laion/img_emb/img_emb_0.npy", "wb") as handle:
        np.save(handle, cone(20))
    remote = Collection([EmbeddingFolder.open("memory://laion", space=space)])
    (described,) = describe_sources(tmp_path / "index", remote)
    assert described["path"] == "memory://laion"
    opened = open_sources(tmp_path / "index", {"sources": [described]})
    assert opened.fingerprint == remote.fingerprint and not opened.is_local


def test_folders_that_are_not_the_recorded_ones(
    index: Path, cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    manifest = read_index_manifest(index)
    first, second = tmp_path / "embeddings", tmp_path / "embeddings1"
    for given, message in (
        ([first], "was built from 2 embedding folders, and --embeddings was given 1 times"),
        ([second, first], r"embeddings1 changed since .*index was built from it: fingerprint"),
        ([first, tmp_path / "absent"], r"can't be opened at .*absent.*pass --embeddings"),
    ):
        with pytest.raises(SourceError, match=message):
            open_sources(index, manifest, given)
    fewer = write_collection(cone(40), name="fewer", n_parts=2)
    with pytest.raises(SourceError, match="has 2 parts, and the first 3 were asked for"):
        open_sources(index, manifest, [first, fewer.folders[0].path])


def test_shards_stand_where_the_manifest_says(index: Path) -> None:
    shards = shards_of(index, read_index_manifest(index))
    assert [(shard.folder, shard.row_start, shard.row_stop) for shard in shards] == [
        (index / "shards" / "0000", 0, 45),
        (index / "shards" / "0001", 45, 90),
        (index / "shards" / "0002", 90, 100),
    ]


def test_deleted_rows_are_read_from_the_file_that_is_named(index: Path) -> None:
    manifest = read_index_manifest(index)
    assert read_deleted(index, manifest).tolist() == []
    np.save(index / "gone.npy", np.array([3, 8]))
    named = {**manifest, "deleted": {"n_rows": 2, "file": "gone.npy"}}
    assert read_deleted(index, named).tolist() == [3, 8]


def test_files_are_counted_once(index: Path) -> None:
    n_files, n_bytes = verify_index_files(index, read_index_manifest(index))
    files = [path for path in index.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert (n_files, n_bytes) == (len(files), sum(path.stat().st_size for path in files))
