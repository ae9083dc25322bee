from __future__ import annotations

import hashlib
import json
import os
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
from index_builder import deletion
from index_builder.build import build_index
from index_builder.deletion import delete_rows, find_rows, read_rows
from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.errors import ArtefactError, RowRangeError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.errors import BuildError
from index_builder.growth import add_embeddings
from index_builder.manifest import read_deleted, read_index_manifest, verify_index_files
from index_builder.planning import plan_index
from index_builder.verify import verify_index
from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest

Cone = Callable[..., np.ndarray]
WriteFolder = Callable[..., EmbeddingFolder]

N_ROWS = 300

# Deletes row 5; is killed just before the n-th file gets its name, or after the last.
DELETE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from index_builder.deletion import delete_rows

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
    if n_files == 1:
        Path.unlink = die

os.replace = replace_or_die
delete_rows(os.path.join(folder, "index"), np.array([5]))
"""


@pytest.fixture
def build(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> Callable[..., tuple[Path, np.ndarray]]:
    """Build an index in three shards, and return it with its rows."""

    def run(**design: Any) -> tuple[Path, np.ndarray]:
        rows, root = cone(N_ROWS), tmp_path / "index"
        folder = write_folder(rows)
        options = {"code": "ivf-rabitq"} | design
        plan = plan_index(N_ROWS, folder.space, rows_per_shard=100, **options)
        build_index(Collection([folder]), root, plan, n_queries=20)
        return root, rows

    return run


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "design",
    [
        {"code": "flat"},
        {"code": "flat", "tier": "disk"},
        {},
        {"rerank": "sq8"},
        {"code": "hnsw-sq8"},
    ],
)
def test_deleted_rows_are_in_no_search(
    build: Callable[..., tuple[Path, np.ndarray]], design: dict[str, Any]
) -> None:
    root, rows = build(**design)
    before = SearchEngine.open(root).search(rows[:40], SearchRequest(5)).rows
    gone = np.array([7, 3, 3, 299], np.int32)
    manifest = delete_rows(root, gone)
    assert manifest == read_index_manifest(root)
    assert manifest["deleted"]["n_rows"] == 3
    engine = SearchEngine.open(root)
    np.testing.assert_array_equal(engine.deleted, [3, 7, 299])
    found = engine.search(rows[:40], SearchRequest(5)).rows
    assert not np.isin(found, gone).any() and (found >= 0).all()
    is_same = ~np.isin(before, gone).any(axis=1)
    assert is_same.any() and not is_same.all()
    np.testing.assert_array_equal(found[is_same], before[is_same])
    assert verify_index(root).n_searches >= 13


def test_each_deletion_lists_all_of_them(build: Callable[..., tuple[Path, np.ndarray]]) -> None:
    root, _ = build()
    before, untouched = read_index_manifest(root), digests(root)
    first = delete_rows(root, np.array([9, 4]))
    second = delete_rows(root, np.array([4, 200]))
    content = np.array([4, 9, 200], "<i8")
    name = f"deleted-{hashlib.sha256(content.tobytes()).hexdigest()[:16]}.npy"
    assert second["deleted"] == {"n_rows": 3, "file": name}
    assert name in second["files"]
    np.testing.assert_array_equal(np.load(root / name), content)
    assert [path.name for path in root.glob("deleted-*")] == [name]
    verify_index_files(root, second)
    changed = {name for name, digest in untouched.items() if digests(root)[name] != digest}
    assert changed == {"manifest.json"}
    # What was measured is neither measured again nor changed.
    for field in ("certificate", "certified_for", "plan", "shards", "sources", "ram_bytes"):
        assert second[field] == before[field]
    assert len({each["fingerprint"] for each in (before, first, second)}) == 3


def test_deleting_nothing_new_changes_nothing(
    build: Callable[..., tuple[Path, np.ndarray]],
) -> None:
    root, _ = build()
    before = digests(root)
    assert delete_rows(root, np.empty(0, np.int64))["deleted"] == {"n_rows": 0, "file": None}
    assert digests(root) == before
    manifest = delete_rows(root, np.array([9, 4]))
    before = digests(root)
    assert delete_rows(root, np.array([4])) == manifest
    assert digests(root) == before


def test_rows_that_are_not_there_are_refused(
    build: Callable[..., tuple[Path, np.ndarray]],
) -> None:
    root, _ = build()
    before = digests(root)
    for row in (300, -1):
        with pytest.raises(RowRangeError, match=f"row {row} was to be deleted, .* 0 to 299"):
            delete_rows(root, np.array([5, row]))
    with pytest.raises(ValueError, match=r"shape \(2,\) and dtype float64, expected \(n,\)"):
        delete_rows(root, np.array([5.0, 6.0]))
    assert digests(root) == before


def test_an_altered_list_is_not_passed_on(build: Callable[..., tuple[Path, np.ndarray]]) -> None:
    root, _ = build()
    manifest = delete_rows(root, np.array([9, 4]))
    np.save(root / manifest["deleted"]["file"], np.array([9, 5]))
    with pytest.raises(ArtefactError, match=r"deleted-.* differs from its recorded SHA-256"):
        delete_rows(root, np.array([11]))


@pytest.mark.parametrize("n_files", [1, 2, 3])
def test_a_killed_deletion_leaves_one_list_or_the_other(
    build: Callable[..., tuple[Path, np.ndarray]], tmp_path: Path, n_files: int
) -> None:
    root, _ = build(code="flat")
    before = delete_rows(root, np.array([9]))
    command = [sys.executable, "-c", DELETE, str(tmp_path), str(n_files)]
    assert subprocess.run(command, env=os.environ, check=False).returncode == -9
    found = read_index_manifest(root)
    verify_index_files(root, found)
    assert read_deleted(root, found).tolist() == ([5, 9] if n_files == 3 else [9])
    assert (found == before) == (n_files < 3)
    after = delete_rows(root, np.array([5]))
    assert [path.name for path in root.glob("deleted-*")] == [after["deleted"]["file"]]
    assert read_deleted(root, after).tolist() == [5, 9]


def test_deleted_rows_stay_so_when_an_index_grows(
    build: Callable[..., tuple[Path, np.ndarray]], write_folder: WriteFolder
) -> None:
    root, rows = build()
    delete_rows(root, np.array([7]))
    grown = add_embeddings(root, [write_folder(rows[::3], "later").path])
    assert read_deleted(root, grown).tolist() == [7]
    assert not (SearchEngine.open(root).search(rows[:20], SearchRequest(5)).rows == 7).any()
    delete_rows(root, np.array([399]))
    assert SearchEngine.open(root).deleted.tolist() == [7, 399]


def test_building_does_not_bring_rows_back(
    build: Callable[..., tuple[Path, np.ndarray]], tmp_path: Path
) -> None:
    root, _ = build()
    manifest = delete_rows(root, np.array([7]))
    source = Collection.open([tmp_path / "embeddings"])
    plan = plan_index(N_ROWS, source.space, rows_per_shard=100, code="ivf-rabitq")
    assert build_index(source, root, plan, n_queries=20) == manifest
    with pytest.raises(BuildError, match="taken down, and building would undo that"):
        build_index(source, root, plan, n_queries=10)


def test_rows_are_found_by_value(
    build: Callable[..., tuple[Path, np.ndarray]], caplog: pytest.LogCaptureFixture
) -> None:
    root, _ = build(code="flat")
    wanted = ["caption 250", "", "caption 5", "  ", "caption 199"]
    np.testing.assert_array_equal(find_rows(root, "caption", wanted), [5, 199, 250])
    assert "values are in no row" not in caplog.text
    found = find_rows(root, "image_id", ["17", "017", "300", "299"])
    np.testing.assert_array_equal(found, [17, 299])
    assert found.dtype == np.int64
    assert "2 of 4 values are in no row of column image_id" in caplog.text
    assert len(find_rows(root, "caption", [])) == 0


@pytest.fixture
def build_columns(cone: Cone, space: EmbeddingSpace, tmp_path: Path) -> Callable[[pa.Table], Path]:
    """Build a flat index of a folder with the columns given."""

    def run(table: pa.Table) -> Path:
        with EmbeddingWriter(tmp_path / "columns", space, command="test", details={}) as writer:
            writer.write(cone(len(table)), table)
            folder = writer.finish()
        plan = plan_index(len(table), space, code="flat", rows_per_shard=3)
        build_index(Collection([folder]), tmp_path / "by columns", plan)
        return tmp_path / "by columns"

    return run


def test_all_rows_of_a_value_are_found_and_nulls_never(
    build_columns: Callable[[pa.Table], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deletion, "_BATCHES", 1)
    urls = ["a", None, "b", "é", "a", "None", "", "a"]
    root = build_columns(pa.table({"url": urls, "part": [[1]] * 8}))
    np.testing.assert_array_equal(find_rows(root, "url", ["a", "a"]), [0, 4, 7])
    np.testing.assert_array_equal(find_rows(root, "url", ["é", "None", ""]), [3, 5])
    with pytest.raises(BuildError, match=r"column 'part' .* holds list.*can't be compared"):
        find_rows(root, "part", ["[1]"])


def test_unknown_columns_and_altered_files_are_refused(
    build: Callable[..., tuple[Path, np.ndarray]],
) -> None:
    root, _ = build(code="flat")
    with pytest.raises(BuildError, match="no metadata column 'url'; it has image_id, caption"):
        find_rows(root, "url", ["a"])
    path = root / "shards" / "0001" / "metadata.arrow"
    path.write_bytes(path.read_bytes().replace(b"caption 150", b"caption 151"))
    with pytest.raises(ArtefactError, match=r"0001/metadata\.arrow differs"):
        find_rows(root, "caption", ["caption 150"])


def test_row_numbers_are_read_from_text_and_arrays(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("12\n\n  7\r\n4000000000\n")
    np.testing.assert_array_equal(read_rows(tmp_path / "rows.txt"), [12, 7, 4_000_000_000])
    np.save(tmp_path / "rows.npy", np.array([3, 1], np.uint32))
    rows = read_rows(str(tmp_path / "rows.npy"))
    assert rows.tolist() == [3, 1] and rows.dtype == np.int64
    (tmp_path / "empty.txt").write_text("\n")
    assert read_rows(tmp_path / "empty.txt").dtype == np.int64


@pytest.mark.parametrize("line", ["http://x", "-1", "1.5", "1 2", "9" * 19])
def test_lines_that_are_no_row_number_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "rows.txt").write_text(f"12\n{line}\n")
    with pytest.raises(BuildError, match=rf"rows\.txt, line 2 is '{line}', expected a row number"):
        read_rows(tmp_path / "rows.txt")


def test_files_that_hold_no_row_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(BuildError, match=r"rows\.txt is not text"):
        read_rows(tmp_path / "rows.txt")
    path = tmp_path / "rows.npy"
    path.write_bytes(b"12\n")
    with pytest.raises(BuildError, match=r"rows\.npy is not an npy file of integers"):
        read_rows(path)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(BuildError, match=r"rows\.npy is not an npy file of integers"):
        read_rows(path)
    for array in (np.zeros(3), np.zeros((1, 3), int)):
        np.save(path, array)
        with pytest.raises(BuildError, match=r"rows\.npy holds .*, expected \(n,\) integers"):
            read_rows(path)


def test_the_command_deletes(build: Callable[..., tuple[Path, np.ndarray]], tmp_path: Path) -> None:
    root, _ = build()
    (tmp_path / "rows.txt").write_text("12\n13\n")
    (tmp_path / "values.txt").write_text("caption 13\ncaption 200\n")
    runner, words = click.testing.CliRunner(), ["index", "delete", str(root), "--json"]
    by_rows = ["--rows", str(tmp_path / "rows.txt")]
    by_values = ["--column", "caption", "--values", str(tmp_path / "values.txt")]
    for options, expected in ((by_rows, [12, 13]), (by_values, [12, 13, 200])):
        result = runner.invoke(cli.assemble(), [*words, *options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        manifest = read_index_manifest(root)
        assert json.loads(result.stdout) == manifest
        assert read_deleted(root, manifest).tolist() == expected
    result = runner.invoke(cli.assemble(), [*words, "--column", "caption"])
    assert result.exit_code == 2
