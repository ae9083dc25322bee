from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder import certificate as certificate_module
from index_builder.build import build_index
from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.errors import ArtefactError, SpaceMismatchError
from index_builder.manifest import read_index_manifest, verify_index_files
from index_builder.planning import plan_index
from index_builder.tuning import tune_index

N_ROWS = 1500


@pytest.fixture
def embeddings(
    cone: Callable[..., np.ndarray], write_folder: Callable[..., Any]
) -> Callable[..., Collection]:
    def write(n: int, name: str) -> Collection:
        return Collection.open([write_folder(cone(n), name).path])

    return write


def build(root: Path, source: Collection, **options: Any) -> dict[str, Any]:
    plan = plan_index(N_ROWS, source.space, **options)
    return build_index(source, root, plan, n_queries=30, target_recall=0.9)


@pytest.mark.parametrize("code", ["ivf-rabitq", "hnsw-sq8"])
def test_a_tuned_index_is_as_if_it_had_been_built_so(
    embeddings: Callable[..., Collection], tmp_path: Path, code: str
) -> None:
    source, queries = embeddings(N_ROWS, "embeddings"), embeddings(50, "queries")
    root = tmp_path / "index"
    before = build(root, source, code=code)
    sums = {path: sha256_file(path) for path in root.rglob("*") if path.is_file()}
    tuned = tune_index(root, queries=queries, target_recall=0.8, n_queries=40)
    assert tuned == read_index_manifest(root)
    verify_index_files(root, tuned)
    assert tuned["fingerprint"] != before["fingerprint"]
    assert tuned["certified_for"]["queries"] == queries.fingerprint
    assert set(tuned["certificate"]["query_sets"]) == {"held_out", "queries"}
    assert tuned["certificate"]["is_reached"]
    changed = {path.name for path, found in sums.items() if sha256_file(path) != found}
    assert changed == {"manifest.json"}
    assert {path for path in root.rglob("*") if path.is_file()} == set(sums)
    # The same as a build with this goal.
    other = tmp_path / "other"
    plan = plan_index(N_ROWS, source.space, code=code)
    built = build_index(source, other, plan, queries=queries, n_queries=40, target_recall=0.8)
    for name in ("certificate", "certified_for", "ram_bytes", "files"):
        assert built[name] == tuned[name], name


def test_the_target_stays_unless_another_is_asked_for(
    embeddings: Callable[..., Collection], tmp_path: Path
) -> None:
    build(tmp_path / "index", embeddings(N_ROWS, "embeddings"), code="flat")
    tuned = tune_index(tmp_path / "index")
    assert tuned["certificate"]["target_recall"] == 0.9
    assert tuned["certificate"]["is_exact"]
    assert tune_index(tmp_path / "index", target_recall=0.7)["certified_for"] == {
        "target_recall": 0.7,
        "n_queries": 200,
        "queries": None,
    }


def test_an_interruption_leaves_the_old_certificate(
    embeddings: Callable[..., Collection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "index"
    before = build(root, embeddings(N_ROWS, "embeddings"), code="ivf-rabitq")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(certificate_module, "find_shares", stop)
        with pytest.raises(KeyboardInterrupt):
            tune_index(root, n_queries=40)
    assert read_index_manifest(root) == before
    verify_index_files(root, before)
    assert tune_index(root, n_queries=40)["certified_for"]["n_queries"] == 40
    assert not [path.name for path in root.iterdir() if path.name.startswith(".")]


def test_a_damaged_index_is_not_certified(
    embeddings: Callable[..., Collection], tmp_path: Path
) -> None:
    root = tmp_path / "index"
    build(root, embeddings(N_ROWS, "embeddings"), code="ivf-rabitq")
    path = next(root.glob("shards/*/codes.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"codes\.npy differs from its recorded SHA-256"):
        tune_index(root)


def test_queries_of_another_space_are_refused(
    embeddings: Callable[..., Collection], tmp_path: Path
) -> None:
    root = tmp_path / "index"
    source = embeddings(N_ROWS, "embeddings")
    build(root, source, code="flat")
    strangers = embeddings(20, "strangers")
    strangers.space = replace(source.space, model="another/model")
    with pytest.raises(SpaceMismatchError, match="another/model"):
        tune_index(root, queries=strangers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_recall": 1.5}, "target_recall is 1.5, expected above 0 and at most 1"),
        ({"n_queries": 0}, "n_queries is 0, expected at least 1"),
    ],
)
def test_goals_that_make_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune_index(tmp_path, **options)


def test_a_manifest_stays_one_json_object(
    embeddings: Callable[..., Collection], tmp_path: Path
) -> None:
    root = tmp_path / "index"
    build(root, embeddings(N_ROWS, "embeddings"), code="flat")
    tune_index(root)
    found = json.loads((root / "manifest.json").read_bytes())
    assert found["made_by"]["command"] == "voxseek index tune"
