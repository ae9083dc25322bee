from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cli
from index_builder import joining
from index_builder.build import build_index
from index_builder.deletion import delete_rows, find_rows
from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.errors import ArtefactError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.errors import PlanError, SourceError
from index_builder.growth import add_embeddings
from index_builder.manifest import read_index_manifest, verify_index_files
from index_builder.merging import merge_shards
from index_builder.planning import plan_index
from index_builder.verify import verify_index
from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest

Cone = Callable[..., np.ndarray]
WriteFolder = Callable[..., EmbeddingFolder]

N_ROWS = 450
DESIGNS: dict[str, dict[str, Any]] = {
    "flat": {"code": "flat"},
    "lists": {"code": "ivf-rabitq"},
    "wide codes and a copy": {"code": "ivf-rabitq", "bits": 4, "rerank": "fp16"},
    "lists from disk and a small copy": {"code": "ivf-rabitq", "tier": "disk", "rerank": "rabitq4"},
    "graphs": {"code": "hnsw-sq8"},
    "graphs and a copy": {"code": "hnsw-sq8", "rerank": "sq8"},
}

# Merges; is killed just before the n-th file gets its name, or the first folder is removed.
MERGE = """
import os, shutil, signal, sys
from index_builder.merging import merge_shards

folder, n_files = sys.argv[1], int(sys.argv[2])
replace = os.replace

def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def replace_or_die(source, target):
    global n_files
    n_files -= 1
    if n_files == 0:
        die()
    replace(source, target)

os.replace, shutil.rmtree = replace_or_die, die
merge_shards(os.path.join(folder, "index"))
"""


def build(
    root: Path, folder: EmbeddingFolder, rows_per_shard: int = 100, **design: Any
) -> dict[str, Any]:
    plan = plan_index(
        folder.n_rows,
        folder.space,
        rows_per_shard=rows_per_shard,
        **({"code": "ivf-rabitq"} | design),
    )
    return build_index(Collection([folder]), root, plan, n_queries=20)


def search(
    root: Path, queries: np.ndarray, *, is_full: bool, k: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    engine = SearchEngine.open(root)
    nominator = engine._nominator
    effort = {}
    if nominator and is_full:
        effort = {"breadth": nominator.most_breadth, "n_candidates": engine.n_rows}
    found = engine.search(queries, SearchRequest(k, **effort))
    return found.rows, found.scores


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def ranges(manifest: dict[str, Any]) -> list[tuple[int, int]]:
    return [(each["row_start"], each["row_stop"]) for each in manifest["shards"]]


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("block_bytes", [joining._BLOCK_BYTES, 600])
def test_a_joined_shard_is_what_a_build_of_it_would_be(
    cone: Cone,
    write_folder: WriteFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    design: str,
    block_bytes: int,
) -> None:
    monkeypatch.setattr(joining, "_BLOCK_BYTES", block_bytes)
    folder, root = write_folder(cone(N_ROWS)), tmp_path / "index"
    before = build(root, folder, **DESIGNS[design])
    whole = build(tmp_path / "whole", folder, N_ROWS, **DESIGNS[design])
    merged = merge_shards(root)
    found, expected = digests(root / "shards" / "0005"), digests(tmp_path / "whole/shards/0000")
    assert found.pop("shard.json") != expected.pop("shard.json")
    assert found == expected
    assert [path.name for path in (root / "shards").iterdir()] == ["0005"]
    assert ranges(merged) == [(0, N_ROWS)]
    assert merged["ram_bytes"] == merged["plan"]["ram_bytes"] == whole["ram_bytes"]
    assert merged["plan"]["n_shards"] == 1
    assert merged["sources"] == before["sources"]
    assert merged == read_index_manifest(root)
    assert verify_index(root).n_searches == 16
    # What lists nominate doesn't depend on shards, so what was measured holds.
    same = whole if design.startswith("graphs") else before
    assert merged["certificate"] == same["certificate"]


@pytest.mark.parametrize("design", DESIGNS)
def test_searches_find_the_same(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, design: str
) -> None:
    rows, root = cone(N_ROWS + 30), tmp_path / "index"
    build(root, write_folder(rows[:N_ROWS]), **DESIGNS[design])
    hits, _ = search(root, rows[N_ROWS:], is_full=True)
    delete_rows(root, np.unique(hits[:, :2]))
    efforts = [True] if design.startswith("graphs") else [True, False]
    expected = [search(root, rows[N_ROWS:], is_full=is_full) for is_full in efforts]
    merge_shards(root)
    for is_full, (hits, scores) in zip(efforts, expected, strict=True):
        found = search(root, rows[N_ROWS:], is_full=is_full)
        np.testing.assert_array_equal(found[0], hits)
        np.testing.assert_array_equal(found[1], scores)
    assert verify_index(root).n_searches > 8


def test_shards_stay_within_the_rows_asked_for(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    rows, root = cone(N_ROWS + 30), tmp_path / "index"
    build(root, write_folder(rows[:N_ROWS]))
    expected = search(root, rows[N_ROWS:], is_full=False)
    merged = merge_shards(root, rows_per_shard=220)
    assert ranges(merged) == [(0, 200), (200, 400), (400, 450)]
    # The last one had no neighbor, and stays as it was.
    assert [each["folder"] for each in merged["shards"]] == [
        "shards/0005",
        "shards/0006",
        "shards/0004",
    ]
    found = search(root, rows[N_ROWS:], is_full=False)
    np.testing.assert_array_equal(found[0], expected[0])
    before = digests(root)
    assert merge_shards(root, rows_per_shard=100) == merged
    assert digests(root) == before
    assert [each["folder"] for each in merge_shards(root)["shards"]] == ["shards/0007"]
    assert ranges(merge_shards(root)) == [(0, 450)]


def test_a_merged_index_grows(cone: Cone, write_folder: WriteFolder, tmp_path: Path) -> None:
    rows, root = cone(480), tmp_path / "index"
    build(root, write_folder(rows[:300]))
    merge_shards(root)
    grown = add_embeddings(root, [write_folder(rows[300:450], "later").path])
    assert [each["folder"] for each in grown["shards"]] == [
        "shards/0003",
        "shards/0004",
        "shards/0005",
    ]
    expected = search(root, rows[450:], is_full=False)
    assert ranges(merge_shards(root)) == [(0, 450)]
    found = search(root, rows[450:], is_full=False)
    np.testing.assert_array_equal(found[0], expected[0])
    captions = SearchEngine.open(root).metadata(np.array([299, 300]))["caption"].to_pylist()
    assert captions == ["caption 299", "caption 0"]


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("rows_per_shard", [100, N_ROWS])
def test_nothing_of_a_deleted_row_remains(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, design: str, rows_per_shard: int
) -> None:
    rows, root = cone(N_ROWS), tmp_path / "index"
    build(root, write_folder(rows), rows_per_shard, **DESIGNS[design])
    gone = np.array([77, 99, 100, 311])
    copies = [np.load(path) for path in sorted(root.rglob("vectors.npy"))]
    deleted = delete_rows(root, gone)
    merged = merge_shards(root)
    assert (merged["deleted"], merged["files"].keys() & {deleted["deleted"]["file"]}) == (
        deleted["deleted"],
        {deleted["deleted"]["file"]},
    )
    content = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert any(b"caption 78" in text for text in content.values())
    for row in gone:
        caption = f"caption {row}".encode()
        assert not [path for path, text in content.items() if caption in text], row
    engine = SearchEngine.open(root)
    table = engine.metadata(np.array([76, 77, 78]))
    assert table.to_pydict() == {
        "image_id": [76, None, 78],
        "caption": ["caption 76", None, "caption 78"],
    }
    if engine.plan.code != "flat":
        (path,) = root.rglob("rows.npy")
        np.testing.assert_array_equal(np.sort(np.load(path)), np.setdiff1d(np.arange(N_ROWS), gone))
        assert len(np.load(path.with_name("codes.npy"))) == N_ROWS - len(gone)
    if engine.plan.rerank != "source":
        (path,) = root.rglob("vectors.npy")
        expected = np.concatenate(copies)
        assert expected[gone].any(axis=1).all()
        expected[gone] = 0
        np.testing.assert_array_equal(np.load(path), expected)
    hits, _ = search(root, rows[gone], is_full=True)
    assert not np.isin(hits, gone).any()
    # A later deletion is removed by a later merge, and by that one alone.
    assert merge_shards(root) == merged
    delete_rows(root, np.array([5]))
    again = merge_shards(root)
    assert again["shards"] != merged["shards"]
    assert merge_shards(root) == again
    assert not [path for path in root.rglob("*.arrow") if b"caption 5\0" in path.read_bytes()]
    assert SearchEngine.open(root).metadata(np.array([5, 77]))["caption"].null_count == 2


def test_only_shards_of_deleted_rows_are_written_anew(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    root = tmp_path / "index"
    build(root, write_folder(cone(N_ROWS)))
    delete_rows(root, np.array([250]))
    merged = merge_shards(root, rows_per_shard=100)
    names = [each["folder"].removeprefix("shards/") for each in merged["shards"]]
    assert names == ["0000", "0001", "0005", "0003", "0004"]
    assert all(stop == start for (_, stop), (start, _) in pairwise(ranges(merged)))


def test_metadata_of_a_row_that_never_had_a_code_goes_too(
    cone: Cone, tmp_path: Path, space: EmbeddingSpace
) -> None:
    rows = cone(120)
    rows[7] = 0
    (tmp_path / "foreign" / "img_emb").mkdir(parents=True)
    (tmp_path / "foreign" / "metadata").mkdir()
    np.save(tmp_path / "foreign" / "img_emb" / "img_emb_0.npy", rows)
    table = pa.table({"url": [f"http://{i}.example/" for i in range(120)]})
    schema = pa.schema([pa.field("url", pa.string(), nullable=False)])
    pq.write_table(table.cast(schema), tmp_path / "foreign" / "metadata" / "metadata_0.parquet")
    source = Collection.open([tmp_path / "foreign"], space=space)
    root = tmp_path / "index"
    plan = plan_index(120, space, code="ivf-rabitq")
    build_index(source, root, plan, n_queries=10, bad_rows="tombstone")
    delete_rows(root, find_rows(root, "url", ["http://7.example/"]))
    merged = merge_shards(root)
    assert merged["n_tombstones"] == 1
    assert not [path for path in root.rglob("*.arrow") if b"//7.example" in path.read_bytes()]
    assert merge_shards(root) == merged


def test_all_rows_may_be_gone(cone: Cone, write_folder: WriteFolder, tmp_path: Path) -> None:
    rows = cone(90)
    for code in ("ivf-rabitq", "hnsw-sq8"):
        root = tmp_path / code
        build(root, write_folder(rows, f"of {code}"), 40, code=code)
        delete_rows(root, np.arange(90))
        merge_shards(root)
        hits, scores = search(root, rows[:3], is_full=False)
        assert (hits == -1).all() and np.isnan(scores).all()


def test_what_interrupted_commands_left_is_removed(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    root = tmp_path / "index"
    build(root, write_folder(cone(120)), 120)
    before = digests(root)
    shutil.copytree(root / "shards" / "0000", root / "shards" / "0042")
    (root / ".truth" / "pieces").mkdir(parents=True)
    (root / "deleted-0123456789abcdef.npy").write_bytes(b"")
    merge_shards(root)
    assert digests(root) == before
    assert not (root / ".truth").exists()


# tombstones come after codes, rows, sizes, copy and metadata; 7 files, manifest 8, then removal
@pytest.mark.parametrize("n_files", [1, 5, 7, 8, 99])
def test_a_killed_merge_leaves_a_whole_index_and_resumes_to_the_same_bytes(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, n_files: int
) -> None:
    root, whole = tmp_path / "index", tmp_path / "whole"
    rows = cone(330)
    build(root, write_folder(rows[:300]), rerank="sq8")
    before = delete_rows(root, np.array([3, 140]))
    shutil.copytree(root, whole)
    merged = merge_shards(whole)
    expected = search(root, rows[300:], is_full=False)
    command = [sys.executable, "-c", MERGE, str(tmp_path), str(n_files)]
    assert subprocess.run(command, env=os.environ, check=False).returncode == -9
    found = read_index_manifest(root)
    assert found == (merged if n_files == 99 else before)
    verify_index_files(root, found)
    np.testing.assert_array_equal(search(root, rows[300:], is_full=False)[0], expected[0])
    assert merge_shards(root) == merged
    assert digests(root) == digests(whole)


def test_graphs_are_measured_again(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, queries = write_folder(cone(N_ROWS)), write_folder(cone(20), "queries", 1)
    for code in ("ivf-rabitq", "hnsw-sq8"):
        caplog.clear()
        root = tmp_path / code
        plan = plan_index(N_ROWS, folder.space, rows_per_shard=100, code=code)  # type: ignore[arg-type]  # literal
        before = build_index(Collection([folder]), root, plan, n_queries=20, queries=queries)
        merged = merge_shards(root)
        assert (merged["certificate"] == before["certificate"]) == (code == "ivf-rabitq")
        assert ("held-out rows alone" in caplog.text) == (code == "hnsw-sq8")
        kept = queries.fingerprint if code == "ivf-rabitq" else None
        assert merged["certified_for"] == {**before["certified_for"], "queries": kept}


def test_merges_that_cannot_be_are_refused(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    folder = write_folder(cone(N_ROWS))
    lists, graphs = tmp_path / "lists", tmp_path / "graphs"
    build(lists, folder)
    build(graphs, folder, code="hnsw-sq8")
    with pytest.raises(PlanError, match="rows_per_shard is 0, expected 1 to 4294967296: row"):
        merge_shards(lists, rows_per_shard=0)
    with pytest.raises(PlanError, match="is 2147483648, expected 1 to 2147483647: node numbers"):
        merge_shards(graphs, rows_per_shard=1 << 31)
    (lists / "shards" / "0002" / "rows.npy").write_bytes(b"")
    shutil.move(folder.path, tmp_path / "moved")
    for root, error, match in (
        (lists, ArtefactError, r"0002/rows\.npy has 0 bytes"),
        (graphs, SourceError, "can't be opened at"),
    ):
        before = digests(root)
        with pytest.raises(error, match=match):
            merge_shards(root)
        assert digests(root) == before
    words = ["index", "merge", str(graphs), "--embeddings", str(tmp_path / "moved"), "--json"]
    result = click.testing.CliRunner().invoke(cli.assemble(), words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert len(read_index_manifest(graphs)["shards"]) == 1


def test_the_command_merges(cone: Cone, write_folder: WriteFolder, tmp_path: Path) -> None:
    root = tmp_path / "index"
    build(root, write_folder(cone(N_ROWS)))
    words = ["index", "merge", str(root), "--rows-per-shard", "200", "--json"]
    result = click.testing.CliRunner().invoke(cli.assemble(), words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == read_index_manifest(root)
    assert ranges(read_index_manifest(root)) == [(0, 200), (200, 400), (400, 450)]
