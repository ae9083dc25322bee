from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pyarrow as pa
import pytest

import cli
from index_builder.build import build_index
from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.errors import ArtefactError, EmbeddingError, SpaceMismatchError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.errors import BuildError, PlanError, SourceError
from index_builder.execution import make_executor
from index_builder.growth import add_embeddings
from index_builder.manifest import read_index_manifest, verify_index_files
from index_builder.planning import plan_index
from index_builder.verify import verify_index
from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest

Cone = Callable[..., np.ndarray]
WriteFolder = Callable[..., EmbeddingFolder]
WriteForeign = Callable[..., Path]

DESIGNS: dict[str, dict[str, Any]] = {
    "flat in memory": {"code": "flat"},
    "flat from disk": {"code": "flat", "tier": "disk"},
    "lists in memory": {"code": "ivf-rabitq", "tier": "memory"},
    "lists from disk": {"code": "ivf-rabitq", "tier": "disk"},
    "lists and a copy": {"code": "ivf-rabitq", "rerank": "fp16"},
    "graphs": {"code": "hnsw-sq8"},
    "graphs and a copy": {"code": "hnsw-sq8", "rerank": "fp16"},
}

# Adds embeddings; is killed just before the n-th file gets its name.
ADD = """
import os, signal, sys
from index_builder.growth import add_embeddings

folder, n_files = sys.argv[1], int(sys.argv[2])
replace = os.replace

def replace_or_die(source, target):
    global n_files
    n_files -= 1
    if n_files == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace_or_die
add_embeddings(os.path.join(folder, "index"), [os.path.join(folder, "later")])
"""


def build(
    root: Path, *folders: EmbeddingFolder, rows_per_shard: int = 150, **design: Any
) -> dict[str, Any]:
    source = Collection(folders)
    plan = plan_index(
        source.n_rows,
        source.space,
        dtype=str(source.dtype),
        rows_per_shard=rows_per_shard,
        **({"code": "ivf-rabitq"} | design),
    )
    return build_index(source, root, plan, n_queries=20)


def search_all(root: Path, queries: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Search with full effort."""
    engine = SearchEngine.open(root)
    nominator = engine._nominator
    effort = {"breadth": nominator.most_breadth, "n_candidates": engine.n_rows} if nominator else {}
    found = engine.search(queries, SearchRequest(k, **effort))
    return found.rows, found.scores


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("design", DESIGNS)
def test_a_grown_index_finds_what_one_of_all_folders_finds(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, design: str
) -> None:
    rows = cone(540)
    first, later = write_folder(rows[:300]), write_folder(rows[300:500], "later")
    root = tmp_path / "index"
    before = build(root, first, **DESIGNS[design])
    grown = add_embeddings(root, [later.path])
    at_once = build(tmp_path / "at_once", first, later, **DESIGNS[design])
    found, expected = (search_all(each, rows[500:]) for each in (root, tmp_path / "at_once"))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert grown == read_index_manifest(root)
    assert verify_index(root).n_searches == 16
    assert grown["plan"]["n_rows"] == 500
    assert grown["ram_bytes"] == grown["plan"]["ram_bytes"]
    assert grown["sources"] == at_once["sources"]
    assert [(each["row_start"], each["row_stop"]) for each in grown["shards"]] == [
        (0, 150),
        (150, 300),
        (300, 450),
        (450, 500),
    ]
    assert [each["folder"] for each in grown["shards"][2:]] == ["shards/0002", "shards/0003"]
    assert grown["certified_for"] == before["certified_for"]
    assert grown["made_by"]["command"] == "voxseek index add"
    assert list(grown) == list(before)
    engine = SearchEngine.open(root)
    captions = engine.metadata(np.array([299, 300, 499]))["caption"].to_pylist()
    assert captions == ["caption 299", "caption 0", "caption 199"]


def test_quantizer_and_old_shards_are_not_touched(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    root = tmp_path / "index"
    build(root, write_folder(cone(300)))
    before, old_times = digests(root), times(root)
    add_embeddings(root, [write_folder(cone(80), "later").path])
    after, new_times = digests(root), times(root)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"manifest.json"}
    assert {path.name for path, time in old_times.items() if new_times[path] != time} == changed
    assert {name.rpartition("/")[0] for name in set(after) - set(before)} == {"shards/0002"}


def test_an_index_grows_again_and_by_several_folders(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    rows = cone(540)
    folders = [
        write_folder(part, f"folder {number}")
        for number, part in enumerate(np.split(rows[:500], [300, 350, 450]))
    ]
    root = tmp_path / "index"
    build(root, folders[0])
    add_embeddings(root, [folders[1].path])
    grown = add_embeddings(root, [folders[2].path, folders[3].path])
    build(tmp_path / "at_once", *folders)
    found, expected = (search_all(each, rows[500:]) for each in (root, tmp_path / "at_once"))
    np.testing.assert_array_equal(found[0], expected[0])
    assert [each["path"] for each in grown["sources"]] == [
        f"../folder {number}" for number in range(4)
    ]


def test_the_last_folder_may_have_grown(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    rows = cone(480)
    earlier = write_folder(rows[:100], "earlier")
    last = write_folder(rows[100:250], n_parts=3)
    root = tmp_path / "index"
    build(root, earlier, last)
    path, bigger = Path(last.path), write_folder(rows[100:350], "bigger", n_parts=5)
    shutil.rmtree(path)
    Path(bigger.path).rename(path)
    later = write_folder(rows[350:440], "later")
    (tmp_path / "link").symlink_to(path)
    grown = add_embeddings(root, [later.path, tmp_path / "link"])
    folders = [earlier, EmbeddingFolder.open(path), later]
    build(tmp_path / "at_once", *folders)
    found, expected = (search_all(each, rows[440:]) for each in (root, tmp_path / "at_once"))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert [each["part_rows"] for each in grown["sources"]] == [
        folder.part_rows for folder in folders
    ]
    assert verify_index(root).n_searches == 16


def test_a_folder_without_a_manifest_grows_in_the_space_of_the_index(
    cone: Cone, write_foreign: WriteForeign, space: EmbeddingSpace, tmp_path: Path
) -> None:
    rows = cone(300)
    path, root = write_foreign(rows[:200]), tmp_path / "index"
    build(root, EmbeddingFolder.open(path, space=space))
    np.save(path / "img_emb" / "img_emb_1.npy", rows[200:260])
    assert add_embeddings(root, [path])["sources"][0]["part_rows"] == [200, 60]
    other = write_foreign(rows[260:], "other")
    grown = add_embeddings(root, [other])
    assert [each["part_rows"] for each in grown["sources"]] == [[200, 60], [40]]
    found, _ = search_all(root, rows)
    np.testing.assert_array_equal(found[:, 0], np.arange(300))


def test_bad_rows_are_counted(
    cone: Cone, write_foreign: WriteForeign, space: EmbeddingSpace, tmp_path: Path
) -> None:
    rows = cone(300)
    rows[[7, 250, 299]] = 0
    first = Collection.open([write_foreign(rows[:200])], space=space)
    plan = plan_index(200, space, code="ivf-rabitq")
    root = tmp_path / "index"
    build_index(first, root, plan, n_queries=20, bad_rows="tombstone")
    grown = add_embeddings(root, [write_foreign(rows[200:], "later")])
    assert grown["n_tombstones"] == 3
    tombstones = np.load(root / "shards" / "0001" / "tombstones.npy")
    assert tombstones.tolist() == [250, 299]


# first shard 1-6, second shard 7-12, the queries and the truth 13-19, manifest 20
@pytest.mark.parametrize("n_files", [1, 6, 9, 20])
def test_a_killed_addition_leaves_the_old_index_and_resumes_to_the_same_bytes(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, n_files: int
) -> None:
    root, whole = tmp_path / "index", tmp_path / "whole"
    before = build(root, write_folder(cone(300)))
    later = write_folder(cone(200), "later")
    shutil.copytree(root, whole)
    add_embeddings(whole, [later.path])
    command = [sys.executable, "-c", ADD, str(tmp_path), str(n_files)]
    assert subprocess.run(command, env=os.environ, check=False).returncode == -9
    assert read_index_manifest(root) == before
    verify_index_files(root, before)
    assert SearchEngine.open(root).n_rows == 300
    kept = {
        path: time
        for path, time in times(root).items()
        if (path.parent / "shard.json").is_file() and not path.name.startswith(".")
    }
    add_embeddings(root, [later.path])
    assert digests(root) == digests(whole)
    assert {path: times(root)[path] for path in kept} == kept


def test_what_another_addition_left_is_not_used(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, whole = tmp_path / "index", tmp_path / "whole"
    build(root, write_folder(cone(300)))
    others, later = write_folder(cone(400), "others"), write_folder(cone(200), "later")
    shutil.copytree(root, whole)
    add_embeddings(whole, [later.path])
    with monkeypatch.context() as patch:
        patch.setattr("index_builder.growth.measure", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            add_embeddings(root, [others.path])
    assert (root / "shards" / "0004" / "shard.json").is_file()
    add_embeddings(root, [later.path])
    assert digests(root) == digests(whole)


def test_other_processes_build_the_same_bytes(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    root, other = tmp_path / "index", tmp_path / "other"
    build(root, write_folder(cone(300)))
    later = write_folder(cone(200), "later")
    shutil.copytree(root, other)
    add_embeddings(root, [later.path])
    with make_executor("processes", n_workers=1) as executor:
        add_embeddings(other, [later.path], executor=executor)
    assert digests(root) == digests(other)


def test_queries_renew_the_certificate_or_are_missed(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, queries = tmp_path / "index", write_folder(cone(20), "queries", 1)
    build(root, write_folder(cone(200)))
    later = [write_folder(cone(60), f"later {number}").path for number in range(2)]
    grown = add_embeddings(root, later[:1], queries=queries)
    assert set(grown["certificate"]["query_sets"]) == {"held_out", "queries"}
    assert grown["certified_for"]["queries"] == queries.fingerprint
    assert "held-out rows alone" not in caplog.text
    grown = add_embeddings(root, later[1:])
    assert set(grown["certificate"]["query_sets"]) == {"held_out"}
    assert grown["certified_for"]["queries"] is None
    assert "holds for held-out rows alone" in caplog.text


def test_few_lists_are_reported(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "index"
    build(root, write_folder(cone(100)), n_lists=1)
    add_embeddings(root, [write_folder(cone(150), "later").path])
    assert "lists are few" not in caplog.text
    add_embeddings(root, [write_folder(cone(400), "last").path])
    assert "1 lists are few for 650 rows" in caplog.text
    assert "a new build would take 16" in caplog.text


def refused(root: Path, error: type[Exception], match: str, *paths: Any, **options: Any) -> None:
    """Expect a refusal that writes nothing."""
    before = digests(root)
    with pytest.raises(error, match=match):
        add_embeddings(root, paths, **options)
    assert digests(root) == before


def test_folders_without_anything_new_are_refused(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    folder, root = write_folder(cone(100)), tmp_path / "index"
    build(root, folder)
    refused(root, BuildError, r"holds all 100 rows of .*: nothing to add", folder.path)
    with pytest.raises(ValueError, match="embeddings is empty"):
        add_embeddings(root, [])
    later = write_folder(cone(50), "later")
    refused(root, EmbeddingError, "later was given 2 times", later.path, later.path)


def test_only_the_last_folder_can_grow(
    cone: Cone, write_foreign: WriteForeign, space: EmbeddingSpace, tmp_path: Path
) -> None:
    paths, root = [write_foreign(cone(80), name) for name in ("a", "b")], tmp_path / "index"
    build(root, *(EmbeddingFolder.open(path, space=space) for path in paths))
    np.save(paths[0] / "img_emb" / "img_emb_1.npy", cone(30))
    refused(root, BuildError, "a has 30 rows more than .*Only the last folder", paths[0])


def test_other_spaces_and_types_are_refused(
    cone: Cone,
    write_folder: WriteFolder,
    write_foreign: WriteForeign,
    space: EmbeddingSpace,
    tmp_path: Path,
) -> None:
    root = tmp_path / "index"
    build(root, write_folder(cone(100)))
    other = EmbeddingSpace("ViT-H-14", "final", 1, space.dim, True)
    foreign = write_foreign(cone(50))
    refused(root, SpaceMismatchError, "embedding spaces differ", foreign, space=other)
    narrow = write_foreign(cone(50, 32), "narrow")
    refused(root, SpaceMismatchError, "holds embeddings of 1 x 32", narrow)
    wide = write_foreign(cone(50).astype(np.float32), "wide")
    refused(root, EmbeddingError, "wide holds float32, and .* float16", wide)
    queries = EmbeddingFolder.open(foreign, space=other)
    later = write_folder(cone(50), "later")
    refused(root, SpaceMismatchError, "embedding spaces differ", later.path, queries=queries)


@pytest.fixture
def write_columns(tmp_path: Path, space: EmbeddingSpace) -> Callable[..., str]:
    """Write an embedding folder with the columns given, and return its path."""

    def write(rows: np.ndarray, name: str, **columns: Any) -> str:
        with EmbeddingWriter(tmp_path / name, space, command="test", details={}) as writer:
            writer.write(rows, pa.table(columns))
            return writer.finish().path

    return write


def test_columns_are_those_of_the_index(
    cone: Cone, write_columns: Callable[..., str], tmp_path: Path
) -> None:
    n, root = 60, tmp_path / "index"
    words, numbers = [f"word {i}" for i in range(n)], np.arange(n)
    first = write_columns(cone(n), "first", word=words, number=numbers)
    build(root, EmbeddingFolder.open(first))
    lacking = write_columns(cone(n), "lacking", number=numbers)
    refused(root, EmbeddingError, "lacking has no metadata column 'word'", lacking)
    wide = write_columns(cone(n), "wide", word=words, number=numbers / 2)
    expected = "column 'number' of .*wide needs the type double, and the index has int64"
    refused(root, BuildError, expected, wide)
    # Other columns are left out, and narrower types widened.
    later = write_columns(
        cone(n), "later", extra=words, number=-numbers.astype(np.int32), word=words
    )
    grown = add_embeddings(root, [later])
    assert grown["columns"] == ["word", "number"]
    assert [each["path"] for each in grown["sources"]] == ["../first", "../later"]
    found = SearchEngine.open(root).metadata(np.array([59, 119]))
    assert found.to_pydict() == {"word": ["word 59", "word 59"], "number": [59, -59]}
    assert str(found.schema.field("number").type) == "int64"


@pytest.mark.parametrize(("option", "field"), [("memory", "ram_bytes"), ("disk", "disk_bytes")])
def test_an_index_does_not_grow_beyond_its_budget(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, option: str, field: str
) -> None:
    folder, root = write_folder(cone(300)), tmp_path / "index"
    design: dict[str, Any] = {"code": "ivf-rabitq", "rows_per_shard": 150}
    limit = getattr(plan_index(300, folder.space, **design), field)
    build(root, folder, **{f"{option}_bytes": limit})
    later = write_folder(cone(100), "later")
    expected = (
        rf"400 rows as ivf-rabitq.* in 3 shards need \d+ bytes .* of {option}, and .* was planned "
        rf"for {limit} .*larger --{option}"
    )
    refused(root, PlanError, expected, later.path)


def test_a_damaged_index_is_not_grown(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    root = tmp_path / "index"
    build(root, write_folder(cone(300)))
    path = root / "shards" / "0001" / "codes.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(root, ArtefactError, r"0001/codes\.npy differs", write_folder(cone(9), "later").path)


def test_building_does_not_undo_what_was_added(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    folder, root = write_folder(cone(300)), tmp_path / "index"
    build(root, folder)
    grown = add_embeddings(root, [write_folder(cone(50), "later").path])
    assert build(root, folder) == grown
    before = digests(root)
    source = Collection([folder])
    plan = plan_index(300, folder.space, code="ivf-rabitq", rows_per_shard=150)
    with pytest.raises(BuildError, match=r"changed since it was built.* voxseek index tune"):
        build_index(source, root, plan, n_queries=30)
    assert digests(root) == before
    for name in ("shards/0000/rows.npy", "manifest.json"):
        (root / name).write_bytes((root / name).read_bytes()[:-1])
        before = digests(root)
        with pytest.raises(BuildError, match=r"building would undo that\. It is damaged: "):
            build(root, folder)
        assert digests(root) == before


def test_the_command_adds(cone: Cone, write_folder: WriteFolder, tmp_path: Path) -> None:
    root = tmp_path / "index"
    build(root, write_folder(cone(100)))
    later = write_folder(cone(50), "later")
    words = ["index", "add", str(root), later.path, "--json"]
    result = click.testing.CliRunner().invoke(cli.assemble(), words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == read_index_manifest(root)
    result = click.testing.CliRunner().invoke(cli.assemble(), words)
    assert isinstance(result.exception, BuildError)


def test_sources_that_moved_are_named(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    root = tmp_path / "index"
    first = Path(write_folder(cone(100)).path)
    before = build(root, EmbeddingFolder.open(first))
    first.rename(tmp_path / "elsewhere")
    later = write_folder(cone(50), "later").path
    with pytest.raises(SourceError, match=r"can't be opened at .* pass --embeddings"):
        add_embeddings(root, [later])
    words = ["index", "add", str(root), later, "--embeddings", str(tmp_path / "elsewhere")]
    result = click.testing.CliRunner().invoke(cli.assemble(), words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    grown = read_index_manifest(root)
    assert grown["plan"]["n_rows"] == 150
    assert grown["sources"][0] == before["sources"][0]
