from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder.build import build_index
from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.errors import (
    ArtefactError,
    BadRowError,
    EmbeddingError,
    SpaceMismatchError,
)
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.errors import BuildError
from index_builder.planning import IndexPlan, plan_index
from index_builder.verify import verify_index

WriteCollection = Callable[..., Collection]
Cone = Callable[..., np.ndarray]

DESIGNS: dict[str, dict[str, Any]] = {
    "flat": {"code": "flat"},
    "lists": {"code": "ivf-rabitq"},
    "lists and a copy": {"code": "ivf-rabitq", "bits": 2, "rerank": "fp16"},
    "graph and a copy": {"code": "hnsw-sq8", "rerank": "rabitq4"},
}

# Builds an index of two folders; is killed just before the n-th file gets its name.
BUILD = """
import json, os, signal, sys
from index_builder.build import build_index
from index_builder.embeddings.collection import Collection
from index_builder.planning import plan_index

folder, n_files, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
replace = os.replace

def replace_or_die(source, target):
    global n_files
    n_files -= 1
    if n_files == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = replace_or_die
embeddings = Collection.open([f"{folder}/embeddings", f"{folder}/embeddings1"])
plan = plan_index(embeddings.n_rows, embeddings.space, rows_per_shard=270, **options)
build_index(embeddings, f"{folder}/index", plan, n_queries=20)
"""


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def run_build(folder: Path, options: dict[str, Any], n_files: int = -1, n_threads: int = 1) -> int:
    threads = {f"{library}_NUM_THREADS": str(n_threads) for library in ("OMP", "OPENBLAS")}
    command = [sys.executable, "-c", BUILD, str(folder), str(n_files), json.dumps(options)]
    return subprocess.run(command, env={**os.environ, **threads}, check=False).returncode


def plan_of(embeddings: Collection, n_shards: int = 2, **options: Any) -> IndexPlan:
    return plan_index(
        embeddings.n_rows,
        embeddings.space,
        rows_per_shard=-(-embeddings.n_rows // n_shards),
        **{"code": "ivf-rabitq", **options},
    )


class Killed(BaseException):
    """Ends a build as SIGKILL does: nothing is tidied up."""


@pytest.fixture
def build_until(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Build, killed just before the n-th file gets its name; tell whether it was killed."""

    def run(n_files: int, *args: Any, **options: Any) -> bool:
        replace, n_left = os.replace, n_files

        def replace_or_die(*paths: Any) -> None:
            nonlocal n_left
            n_left -= 1
            if n_left == 0:
                patched.setattr(Path, "unlink", lambda *_, **__: None)
                raise Killed
            replace(*paths)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", replace_or_die)
            try:
                build_index(*args, **options)
            except Killed:
                return True
        return False

    return run


@pytest.mark.slow
@pytest.mark.parametrize("design", ["flat", "lists and a copy", "graph and a copy"])
def test_a_build_killed_at_any_file_resumes_to_the_same_bytes(
    cone: Cone,
    write_collection: WriteCollection,
    build_until: Callable[..., bool],
    tmp_path: Path,
    design: str,
) -> None:
    embeddings = write_collection(cone(60), cone(40), n_parts=2)
    plan = plan_of(embeddings, **DESIGNS[design])
    given: dict[str, Any] = {"n_queries": 5, "columns": ["caption"], "target_recall": 0.3}
    whole = tmp_path / "whole"
    build_index(embeddings, whole, plan, **given)
    expected = digests(whole)
    n_files = 1
    while build_until(n_files, embeddings, tmp_path / f"index{n_files}", plan, **given):
        root = tmp_path / f"index{n_files}"
        assert not (root / "manifest.json").exists()
        records = list(root.glob("shards/*/shard.json"))
        kept = {
            path: path.stat().st_mtime_ns
            for record in records
            for path in record.parent.iterdir()
            if not path.name.startswith(".")
        }
        build_index(embeddings, root, plan, **given)
        assert digests(root) == expected, n_files
        assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
        n_files += 1
    assert n_files > len(expected)


@pytest.mark.parametrize(
    ("design", "n_files"), [("flat", 3), ("lists and a copy", 11), ("graph and a copy", 9)]
)
def test_a_killed_process_leaves_what_another_goes_on_from(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path, design: str, n_files: int
) -> None:
    embeddings = write_collection(cone(400), cone(140))
    plan = plan_index(540, embeddings.space, rows_per_shard=270, **DESIGNS[design])
    build_index(embeddings, tmp_path / "whole", plan, n_queries=20)
    assert run_build(tmp_path, DESIGNS[design], n_files) == -9
    assert not (tmp_path / "index" / "manifest.json").exists()
    build_index(embeddings, tmp_path / "index", plan, n_queries=20)
    assert digests(tmp_path / "index") == digests(tmp_path / "whole")


@pytest.mark.parametrize("design", ["lists and a copy", "graph and a copy"])
def test_bytes_do_not_depend_on_threads(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path, design: str
) -> None:
    write_collection(cone(1200), cone(300))
    found = []
    for n_threads in (1, 3):
        assert run_build(tmp_path, DESIGNS[design], n_threads=n_threads) == 0
        found.append(digests(tmp_path / "index"))
        shutil.rmtree(tmp_path / "index")
    assert found[0] == found[1]


@pytest.mark.parametrize("design", DESIGNS)
def test_a_complete_index_is_left_alone(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path, design: str
) -> None:
    embeddings = write_collection(cone(300))
    plan = plan_of(embeddings, **DESIGNS[design])
    first = build_index(embeddings, tmp_path / "index", plan)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}
    assert build_index(embeddings, tmp_path / "index", plan) == first
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}


def test_new_queries_renew_the_certificate_alone(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    embeddings = write_collection(cone(300))
    queries = write_collection(cone(20), name="queries", n_parts=1)
    root = tmp_path / "index"
    build_index(embeddings, root, plan_of(embeddings))
    before = digests(root)
    manifest = build_index(embeddings, root, plan_of(embeddings), queries=queries)
    assert set(manifest["certificate"]["query_sets"]) == {"held_out", "queries"}
    changed = {name for name, digest in digests(root).items() if before[name] != digest}
    assert changed == {"manifest.json"}


@pytest.mark.parametrize("design", ["lists and a copy", "graph and a copy"])
def test_a_damaged_piece_is_built_again(
    cone: Cone,
    write_collection: WriteCollection,
    tmp_path: Path,
    design: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    embeddings = write_collection(cone(300))
    root = tmp_path / "index"
    build_index(embeddings, root, plan_of(embeddings, **DESIGNS[design]))
    before = digests(root)
    for name in ("shards/0001/codes.npy", "shards/0000/vectors.npy", "quantizer/mean.npy"):
        content = bytearray((root / name).read_bytes())
        content[-1] ^= 1
        (root / name).write_bytes(content)
    build_index(embeddings, root, plan_of(embeddings, **DESIGNS[design]))
    assert digests(root) == before
    assert "building again what is damaged" in caplog.text


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"bad_rows": "tombstone"}, "bad_rows"),
        ({"columns": ["caption"]}, "columns"),
        ({"n_shards": 3}, "plan"),
        ({"bits": 2}, "plan"),
        ({"rerank": "sq8"}, "plan"),
    ],
)
def test_pieces_of_another_build_are_refused(
    cone: Cone,
    write_collection: WriteCollection,
    tmp_path: Path,
    change: dict[str, Any],
    name: str,
) -> None:
    embeddings = write_collection(cone(300))
    root = tmp_path / "index"
    build_index(embeddings, root, plan_of(embeddings))
    before = digests(root)
    planned = change if name == "plan" else {}
    given = {} if name == "plan" else change
    with pytest.raises(BuildError, match=rf"of another build: {name} changed.*remove the folder"):
        build_index(embeddings, root, plan_of(embeddings, **planned), **given)
    assert digests(root) == before


def test_other_embeddings_are_refused(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    embeddings = write_collection(cone(150), cone(150))
    build_index(embeddings, tmp_path / "index", plan_of(embeddings))
    others = [
        write_collection(cone(300), name="others"),
        Collection(embeddings.folders[::-1]),
    ]
    for other in others:
        with pytest.raises(BuildError, match="of another build: embeddings changed"):
            build_index(other, tmp_path / "index", plan_of(other))


def test_embeddings_may_move_between_two_attempts(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    embeddings = write_collection(cone(300))
    root = tmp_path / "index"
    build_index(embeddings, root, plan_of(embeddings))
    shards = digests(root / "shards")
    (root / "manifest.json").unlink()
    (tmp_path / "embeddings").rename(tmp_path / "elsewhere")
    moved = Collection.open([tmp_path / "elsewhere"])
    manifest = build_index(moved, root, plan_of(moved))
    assert manifest["sources"][0]["path"] == "../elsewhere"
    assert digests(root / "shards") == shards


def test_strangers_are_not_written_over(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    embeddings = write_collection(cone(60))
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.tex").write_text("x")
    with pytest.raises(BuildError, match=r"holds thesis\.tex and no plan\.json"):
        build_index(embeddings, tmp_path / "index", plan_of(embeddings))
    with pytest.raises(BuildError, match="is a file; an index is a folder"):
        build_index(embeddings, tmp_path / "index" / "thesis.tex", plan_of(embeddings))


def test_an_index_of_an_older_voxseek_is_not_written_over(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    embeddings = write_collection(cone(60))
    root = tmp_path / "index"
    build_index(embeddings, root, plan_of(embeddings))
    path = root / "plan.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 1', 1))
    before = digests(root)
    with pytest.raises(ArtefactError, match=r"plan\.json has format_version 1, and this voxseek"):
        build_index(embeddings, root, plan_of(embeddings))
    assert digests(root) == before


def test_a_plan_for_other_embeddings_is_refused(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path, space: EmbeddingSpace
) -> None:
    embeddings = write_collection(cone(40), cone(20))
    with pytest.raises(BuildError, match="has rows 60, and the plan is for rows 61"):
        build_index(embeddings, tmp_path / "index", plan_index(61, space))
    with pytest.raises(BuildError, match="has dtype float16, and the plan is for dtype float32"):
        build_index(embeddings, tmp_path / "index", plan_index(60, space, dtype="float32"))
    other = EmbeddingSpace("ViT-H-14", "final", 1, space.dim, True)
    with pytest.raises(BuildError, match=r"has space ViT-L-14.* the plan is for space ViT-H-14"):
        build_index(embeddings, tmp_path / "index", plan_index(60, other))


def test_bad_arguments_are_refused(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    embeddings = write_collection(cone(60))
    plan = plan_of(embeddings)
    with pytest.raises(ValueError, match=r"target_recall is 1\.5"):
        build_index(embeddings, tmp_path / "index", plan, target_recall=1.5)
    with pytest.raises(ValueError, match="n_queries is 0"):
        build_index(embeddings, tmp_path / "index", plan, n_queries=0)


def test_queries_of_another_space_are_refused(
    cone: Cone,
    write_collection: WriteCollection,
    write_foreign: Callable[..., Path],
    tmp_path: Path,
) -> None:
    embeddings = write_collection(cone(60))
    space = EmbeddingSpace("ViT-H-14", "final", 1, 48, True)
    queries = Collection.open([write_foreign(cone(5))], space=space)
    with pytest.raises(SpaceMismatchError, match="embedding spaces differ"):
        build_index(embeddings, tmp_path / "index", plan_of(embeddings), queries=queries)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("design", DESIGNS)
def test_bad_rows_stop_the_build_or_become_tombstones(
    cone: Cone,
    write_collection: WriteCollection,
    write_foreign: Callable[..., Path],
    space: EmbeddingSpace,
    tmp_path: Path,
    design: str,
) -> None:
    rows = cone(300)
    rows[[7, 150, 299]] = [[np.nan], [0], [np.inf]]
    sound = write_collection(cone(100))
    bad = Collection.open([write_foreign(rows)], space=space)
    embeddings = Collection([*sound.folders, *bad.folders])
    plan = plan_of(embeddings, **DESIGNS[design])
    with pytest.raises(BadRowError, match=r"img_emb_0\.npy, row 7 "):
        build_index(embeddings, tmp_path / "index", plan)
    gc.collect()  # the error holds the writers, and these what is half written
    assert not list(tmp_path.rglob("*.partial"))
    manifest = build_index(embeddings, tmp_path / "other", plan, bad_rows="tombstone")
    assert manifest["n_tombstones"] == 3
    found = [np.load(path) for path in sorted((tmp_path / "other").rglob("tombstones.npy"))]
    assert [part.tolist() for part in found] == [[107], [250, 399]]
    assert verify_index(tmp_path / "other", n_searches=400).n_searches == 397


@pytest.mark.parametrize("design", DESIGNS)
def test_a_shard_may_be_all_tombstones(
    cone: Cone,
    write_foreign: Callable[..., Path],
    space: EmbeddingSpace,
    tmp_path: Path,
    design: str,
) -> None:
    rows = cone(300)
    rows[:150] = 0
    embeddings = Collection.open([write_foreign(rows)], space=space)
    root = tmp_path / "index"
    plan = plan_of(embeddings, **DESIGNS[design])
    build_index(embeddings, root, plan, bad_rows="tombstone")
    if design != "flat":
        assert len(np.load(root / "shards" / "0000" / "codes.npy")) == 0
    assert verify_index(root, n_searches=300).n_searches == 150


def test_too_few_sound_rows_are_refused(
    write_foreign: Callable[..., Path], cone: Cone, space: EmbeddingSpace, tmp_path: Path
) -> None:
    rows = cone(400)
    rows[2:] = 0
    embeddings = Collection.open([write_foreign(rows)], space=space)
    with pytest.raises(BuildError, match="2 sound rows in a sample of 400, and 8 lists need"):
        build_index(embeddings, tmp_path / "index", plan_of(embeddings, 1), bad_rows="tombstone")


def read_metadata(root: Path) -> pa.Table:
    return pa.concat_tables(
        pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        for path in sorted(root.rglob("metadata.arrow"))
    )


def test_metadata_is_copied_in_row_order(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    embeddings = write_collection(cone(300), cone(200), n_parts=2)
    manifest = build_index(embeddings, tmp_path / "index", plan_of(embeddings, 3))
    assert len(list(tmp_path.rglob("metadata.arrow"))) == 3
    assert read_metadata(tmp_path / "index").equals(embeddings.metadata(np.arange(500)))
    assert manifest["columns"] == ["image_id", "caption"]


def test_chosen_columns_are_copied(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    embeddings = write_collection(cone(60), cone(40))
    given = {"columns": ["caption"], "n_queries": 5}
    manifest = build_index(embeddings, tmp_path / "index", plan_of(embeddings), **given)
    assert manifest["columns"] == ["caption"]
    found = read_metadata(tmp_path / "index")
    assert found.column_names == ["caption"]
    assert found["caption"].to_pylist()[60] == "caption 0"
    with pytest.raises(EmbeddingError, match="has no metadata column 'url'; it has image_id, capt"):
        build_index(embeddings, tmp_path / "other", plan_of(embeddings), columns=["url"])
    assert not (tmp_path / "other").exists()


def test_columns_that_not_all_folders_have_are_left_out_and_named(
    cone: Cone,
    write_collection: WriteCollection,
    space: EmbeddingSpace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = write_collection(cone(60))
    with EmbeddingWriter(tmp_path / "second", space, command="test", details={}) as writer:
        numbers = pa.array(range(40), pa.int32())
        writer.write(cone(40), pa.table({"image_id": numbers, "license": ["x"] * 40}))
        second = writer.finish()
    embeddings = Collection([*first.folders, second])
    with caplog.at_level(logging.WARNING, "voxseek"):
        build_index(embeddings, tmp_path / "index", plan_of(embeddings))
    assert "left out, for not every folder has it: caption, license" in caplog.text
    found = read_metadata(tmp_path / "index")
    assert found.schema == pa.schema({"image_id": pa.int64()})
    assert found["image_id"].to_pylist() == [*range(60), *range(40)]


def test_folders_without_metadata_are_indexed(
    cone: Cone, write_foreign: Callable[..., Path], space: EmbeddingSpace, tmp_path: Path
) -> None:
    embeddings = Collection.open([write_foreign(cone(80))], space=space)
    assert build_index(embeddings, tmp_path / "index", plan_of(embeddings))["columns"] == []
    assert not list((tmp_path / "index").rglob("metadata.arrow"))


@pytest.mark.parametrize("design", DESIGNS)
def test_several_folders_are_as_one_of_their_parts(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path, design: str
) -> None:
    rows = cone(600)
    several = write_collection(rows[:300], rows[300:500], rows[500:], n_parts=1)
    options = DESIGNS[design] | {"rows_per_shard": 250}  # some of two folders
    plan = plan_index(600, several.space, **options)
    build_index(several, tmp_path / "several", plan, n_queries=20)
    assert verify_index(tmp_path / "several", n_searches=600).n_searches == 600

    with EmbeddingWriter(tmp_path / "one", several.space, command="test", details={}) as writer:
        for folder in several.folders:
            numbers = np.arange(folder.n_rows)
            writer.write(folder.take(numbers), folder.metadata(numbers))
        one = Collection([writer.finish()])
    build_index(one, tmp_path / "whole", plan, n_queries=20)
    names = {path.name for path in tmp_path.rglob("several/**/*.*")} - {
        "plan.json",
        "shard.json",
        "quantizer.json",
        "manifest.json",
    }
    assert {"tombstones.npy", "metadata.arrow"} <= names
    found, expected = digests(tmp_path / "several"), digests(tmp_path / "whole")
    compared = [name for name in expected if Path(name).name in names]
    assert {name: found[name] for name in compared} == {name: expected[name] for name in compared}


def test_the_manifest_says_what_the_index_is(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    embeddings = write_collection(cone(301), cone(50))
    plan = plan_of(embeddings)
    manifest = build_index(embeddings, tmp_path / "index", plan, seed=9, command="voxseek demo")
    assert IndexPlan.from_dict(manifest["plan"]) == plan
    assert [
        {name: source[name] for name in ("path", "n_rows", "part_rows", "dtype", "fingerprint")}
        for source in manifest["sources"]
    ] == [
        {
            "path": f"../{name}",
            "n_rows": sum(part_rows),
            "part_rows": part_rows,
            "dtype": "float16",
            "fingerprint": folder.fingerprint,
        }
        for name, part_rows, folder in (
            ("embeddings", [101, 100, 100], embeddings.folders[0]),
            ("embeddings1", [17, 17, 16], embeddings.folders[1]),
        )
    ]
    assert manifest["shards"] == [
        {"folder": "shards/0000", "row_start": 0, "row_stop": 176},
        {"folder": "shards/0001", "row_start": 176, "row_stop": 351},
    ]
    assert manifest["deleted"] == {"n_rows": 0, "file": None}
    assert (manifest["seed"], manifest["made_by"]["command"]) == (9, "voxseek demo")
    assert manifest["faiss_version"].startswith("1.")
    assert manifest["ram_bytes"] == plan.ram_bytes
