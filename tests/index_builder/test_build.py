from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index_builder.build import build_index
from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.errors import BadRowError, SpaceMismatchError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.errors import BuildError
from index_builder.planning import IndexPlan, plan_index
from index_builder.verify import verify_index

WriteFolder = Callable[..., EmbeddingFolder]
Cone = Callable[..., np.ndarray]

# Builds an index; with a second argument, is killed just before the n-th file gets its name.
BUILD = """
import os, signal, sys
from index_builder.build import build_index
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.planning import plan_index

folder, n_files = sys.argv[1], int(sys.argv[2])
replace = os.replace

def replace_or_die(source, target):
    global n_files
    n_files -= 1
    if n_files == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace_or_die
embeddings = EmbeddingFolder.open(os.path.join(folder, "embeddings"))
plan = plan_index(embeddings.n_rows, embeddings.space, code="ivf-rabitq", n_shards=2)
build_index(embeddings, os.path.join(folder, "index"), plan)
"""


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def run_build(folder: Path, n_files: int = -1, n_threads: int = 1) -> int:
    threads = {f"{library}_NUM_THREADS": str(n_threads) for library in ("OMP", "OPENBLAS")}
    command = [sys.executable, "-c", BUILD, str(folder), str(n_files)]
    return subprocess.run(command, env={**os.environ, **threads}, check=False).returncode


def plan_of(embeddings: EmbeddingFolder, n_shards: int = 2) -> IndexPlan:
    return plan_index(embeddings.n_rows, embeddings.space, code="ivf-rabitq", n_shards=n_shards)


# plan 1, quantizer 2-5, first shard 6-11, second shard 12-17, manifest 18
@pytest.mark.parametrize("n_files", [1, 3, 7, 11, 15, 18])
def test_a_killed_build_resumes_to_the_same_bytes(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, n_files: int
) -> None:
    embeddings = write_folder(cone(500))
    whole = tmp_path / "whole"
    build_index(embeddings, whole, plan_of(embeddings))
    assert run_build(tmp_path, n_files) == -9
    root = tmp_path / "index"
    assert not (root / "manifest.json").exists()
    kept = {
        path: path.stat().st_mtime_ns
        for record in root.glob("shards/*/shard.json")
        for path in record.parent.iterdir()
        if not path.name.startswith(".")
    }
    build_index(embeddings, root, plan_of(embeddings))
    assert digests(root) == digests(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_bytes_do_not_depend_on_threads(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    write_folder(cone(1500))
    found = []
    for n_threads in (1, 3):
        assert run_build(tmp_path, n_threads=n_threads) == 0
        found.append(digests(tmp_path / "index"))
        shutil.rmtree(tmp_path / "index")
    assert found[0] == found[1]


def test_a_complete_index_is_left_alone(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    embeddings = write_folder(cone(300))
    first = build_index(embeddings, tmp_path / "index", plan_of(embeddings))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}
    assert build_index(embeddings, tmp_path / "index", plan_of(embeddings)) == first
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}


def test_new_queries_renew_the_certificate_alone(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    embeddings, queries = write_folder(cone(300)), write_folder(cone(20), "queries", 1)
    root = tmp_path / "index"
    build_index(embeddings, root, plan_of(embeddings))
    before = digests(root)
    manifest = build_index(embeddings, root, plan_of(embeddings), queries=queries)
    assert set(manifest["certificate"]["query_sets"]) == {"held_out", "queries"}
    changed = {name for name, digest in digests(root).items() if before[name] != digest}
    assert changed == {"manifest.json"}


def test_a_damaged_piece_is_built_again(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    embeddings = write_folder(cone(300))
    root = tmp_path / "index"
    build_index(embeddings, root, plan_of(embeddings))
    before = digests(root)
    for name in ("shards/0001/codes.npy", "quantizer/mean.npy"):
        content = bytearray((root / name).read_bytes())
        content[-1] ^= 1
        (root / name).write_bytes(content)
    build_index(embeddings, root, plan_of(embeddings))
    assert digests(root) == before


@pytest.mark.parametrize(
    ("change", "name"), [("seed", "seed"), ("plan", "plan"), ("bad_rows", "bad_rows")]
)
def test_pieces_of_another_build_are_refused(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, change: str, name: str
) -> None:
    embeddings = write_folder(cone(300))
    root = tmp_path / "index"
    build_index(embeddings, root, plan_of(embeddings))
    before = digests(root)
    plan = plan_of(embeddings, n_shards=3) if change == "plan" else plan_of(embeddings)
    with pytest.raises(BuildError, match=rf"of another build: {name} changed.*remove the folder"):
        build_index(
            embeddings,
            root,
            plan,
            seed=1 if change == "seed" else 0,
            bad_rows="tombstone" if change == "bad_rows" else "error",
        )
    assert digests(root) == before


def test_other_embeddings_are_refused(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    embeddings, others = write_folder(cone(300)), write_folder(cone(300), "others")
    build_index(embeddings, tmp_path / "index", plan_of(embeddings))
    with pytest.raises(BuildError, match="of another build: embeddings changed"):
        build_index(others, tmp_path / "index", plan_of(others))


def test_strangers_are_not_written_over(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    embeddings = write_folder(cone(60))
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.tex").write_text("x")
    with pytest.raises(BuildError, match=r"holds thesis\.tex and no plan\.json"):
        build_index(embeddings, tmp_path / "index", plan_of(embeddings))
    with pytest.raises(BuildError, match="is a file; an index is a folder"):
        build_index(embeddings, tmp_path / "index" / "thesis.tex", plan_of(embeddings))


def test_a_plan_for_other_embeddings_is_refused(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path, space: EmbeddingSpace
) -> None:
    embeddings = write_folder(cone(60))
    with pytest.raises(BuildError, match="has rows 60, and the plan is for rows 61"):
        build_index(embeddings, tmp_path / "index", plan_index(61, space))
    with pytest.raises(BuildError, match="has dtype float16, and the plan is for dtype float32"):
        build_index(embeddings, tmp_path / "index", plan_index(60, space, dtype="float32"))
    other = EmbeddingSpace("ViT-H-14", "final", 1, space.dim, True)
    with pytest.raises(BuildError, match=r"has space ViT-L-14.* the plan is for space ViT-H-14"):
        build_index(embeddings, tmp_path / "index", plan_index(60, other))


def test_bad_arguments_are_refused(cone: Cone, write_folder: WriteFolder, tmp_path: Path) -> None:
    embeddings = write_folder(cone(60))
    plan = plan_of(embeddings)
    with pytest.raises(ValueError, match=r"target_recall is 1\.5"):
        build_index(embeddings, tmp_path / "index", plan, target_recall=1.5)
    with pytest.raises(ValueError, match="n_queries is 0"):
        build_index(embeddings, tmp_path / "index", plan, n_queries=0)


def test_queries_of_another_space_are_refused(
    cone: Cone, write_folder: WriteFolder, write_foreign: Callable[..., Path], tmp_path: Path
) -> None:
    embeddings = write_folder(cone(60))
    space = EmbeddingSpace("ViT-H-14", "final", 1, 48, True)
    queries = EmbeddingFolder.open(write_foreign(cone(5)), space=space)
    with pytest.raises(SpaceMismatchError, match="embedding spaces differ"):
        build_index(embeddings, tmp_path / "index", plan_of(embeddings), queries=queries)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("code", ["flat", "ivf-rabitq"])
def test_bad_rows_stop_the_build_or_become_tombstones(
    cone: Cone,
    write_foreign: Callable[..., Path],
    space: EmbeddingSpace,
    tmp_path: Path,
    code: str,
) -> None:
    rows = cone(300)
    rows[[7, 150, 299]] = [[np.nan], [0], [np.inf]]
    embeddings = EmbeddingFolder.open(write_foreign(rows), space=space)
    plan = plan_index(300, space, code=code, n_shards=2)  # type: ignore[arg-type]  # parametrized
    with pytest.raises(BadRowError, match="row 7"):
        build_index(embeddings, tmp_path / "index", plan)
    manifest = build_index(embeddings, tmp_path / "other", plan, bad_rows="tombstone")
    assert manifest["n_tombstones"] == 3
    found = [np.load(path) for path in sorted((tmp_path / "other").rglob("tombstones.npy"))]
    assert [part.tolist() for part in found] == [[7], [150, 299]]


def test_a_shard_may_be_all_tombstones(
    cone: Cone, write_foreign: Callable[..., Path], space: EmbeddingSpace, tmp_path: Path
) -> None:
    rows = cone(300)
    rows[:150] = 0
    embeddings = EmbeddingFolder.open(write_foreign(rows), space=space)
    root = tmp_path / "index"
    build_index(embeddings, root, plan_of(embeddings), bad_rows="tombstone")
    assert len(np.load(root / "shards" / "0000" / "codes.npy")) == 0
    assert verify_index(root, n_searches=300).n_searches == 150


def test_too_few_sound_rows_are_refused(
    write_foreign: Callable[..., Path], cone: Cone, space: EmbeddingSpace, tmp_path: Path
) -> None:
    rows = cone(400)
    rows[2:] = 0
    embeddings = EmbeddingFolder.open(write_foreign(rows), space=space)
    with pytest.raises(BuildError, match="2 sound rows in a sample of 400, and 8 lists need"):
        build_index(embeddings, tmp_path / "index", plan_of(embeddings, 1), bad_rows="tombstone")


def test_metadata_is_copied_in_row_order(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    embeddings = write_folder(cone(500), n_parts=4)
    build_index(embeddings, tmp_path / "index", plan_of(embeddings, 3))
    tables = [
        pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        for path in sorted((tmp_path / "index").rglob("metadata.arrow"))
    ]
    assert len(tables) == 3
    assert pa.concat_tables(tables).equals(embeddings.metadata())


def test_folders_without_metadata_are_indexed(
    cone: Cone, write_foreign: Callable[..., Path], space: EmbeddingSpace, tmp_path: Path
) -> None:
    embeddings = EmbeddingFolder.open(write_foreign(cone(80)), space=space)
    build_index(embeddings, tmp_path / "index", plan_of(embeddings))
    assert not list((tmp_path / "index").rglob("metadata.arrow"))


def test_the_manifest_says_what_the_index_is(
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    embeddings = write_folder(cone(301))
    plan = plan_of(embeddings)
    manifest = build_index(embeddings, tmp_path / "index", plan, seed=9, command="voxseek demo")
    assert IndexPlan.from_dict(manifest["plan"]) == plan
    assert manifest["embeddings"]["path"] == "../embeddings"
    assert manifest["embeddings"]["fingerprint"] == embeddings.fingerprint
    assert manifest["embeddings"]["part_rows"] == [101, 100, 100]
    assert (manifest["seed"], manifest["made_by"]["command"]) == (9, "voxseek demo")
    assert manifest["faiss_version"].startswith("1.")
