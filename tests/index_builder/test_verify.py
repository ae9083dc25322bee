from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder import verify as verify_module
from index_builder.build import build_index
from index_builder.deletion import delete_rows
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.errors import ArtefactError
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.errors import IndexDamagedError, SourceError
from index_builder.planning import plan_index
from index_builder.sampling import sample_rows
from index_builder.verify import verify_index

WriteCollection = Callable[..., Collection]
Cone = Callable[..., np.ndarray]

DESIGNS: dict[str, dict[str, Any]] = {
    "flat": {"code": "flat"},
    "lists": {"code": "ivf-rabitq"},
    "lists and a copy": {"code": "ivf-rabitq", "bits": 2, "rerank": "sq8"},
    "graph and a copy": {"code": "hnsw-sq8", "rerank": "fp16"},
}
N_FILES = {"flat": 7, "lists": 17, "lists and a copy": 19, "graph and a copy": 23}


@pytest.fixture
def embeddings(cone: Cone, write_collection: WriteCollection) -> Collection:
    return write_collection(cone(300), cone(100))


@pytest.fixture
def build(embeddings: Collection, tmp_path: Path) -> Callable[..., Path]:
    def build_design(design: str) -> Path:
        options = DESIGNS[design]
        plan = plan_index(400, embeddings.space, rows_per_shard=200, **options)
        build_index(embeddings, tmp_path / "index", plan, n_queries=20)
        return tmp_path / "index"

    return build_design


@pytest.fixture
def index(build: Callable[..., Path]) -> Path:
    return build("lists")


def files_of(index: Path) -> list[Path]:
    return sorted(path for path in index.rglob("*") if path.is_file())


@pytest.mark.parametrize("design", DESIGNS)
def test_a_sound_index_passes(build: Callable[..., Path], design: str) -> None:
    index = build(design)
    report = verify_index(index, n_searches=50)
    listed = [path for path in files_of(index) if path.name != "manifest.json"]
    assert report.n_files == len(listed) == N_FILES[design]
    assert report.n_bytes == sum(path.stat().st_size for path in listed)
    assert report.n_searches == 50
    assert report.embeddings.count(", ") == 1  # both folders


@pytest.mark.parametrize("design", DESIGNS)
def test_deleted_rows_are_neither_asked_for_nor_found(
    build: Callable[..., Path], design: str
) -> None:
    index = build(design)
    delete_rows(index, np.arange(0, 400, 2))
    report = verify_index(index, n_searches=400)
    assert (report.n_searches, report.n_files) == (200, N_FILES[design] + 1)
    delete_rows(index, np.arange(400))
    assert verify_index(index).n_searches == 0


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_one_flipped_bit_anywhere_is_refused_and_named(
    build: Callable[..., Path], design: str, where: float
) -> None:
    index = build(design)
    delete_rows(index, np.array([3, 250]))
    files = files_of(index)
    assert len(files) == N_FILES[design] + 2
    for path in files:
        sound = path.read_bytes()
        content = bytearray(sound)
        content[int(where * (len(content) - 1))] ^= 1
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match=path.name.replace(".", r"\.")) as caught:
            verify_index(index)
        assert str(path) in str(caught.value)
        path.write_bytes(sound)
    verify_index(index)


def test_every_byte_of_the_manifest_counts(index: Path) -> None:
    path = index / "manifest.json"
    sound = path.read_bytes()
    for place in range(0, len(sound), 97):
        for bit in (0, 7):
            content = bytearray(sound)
            content[place] ^= 1 << bit
            path.write_bytes(content)
            with pytest.raises(ArtefactError, match=r"manifest\.json"):
                verify_index(index)


def test_truncated_files_are_refused(index: Path) -> None:
    for path in files_of(index):
        sound = path.read_bytes()
        path.write_bytes(sound[:-1])
        with pytest.raises(ArtefactError, match=path.name.replace(".", r"\.")):
            verify_index(index)
        path.write_bytes(sound)


def test_missing_files_are_refused(index: Path) -> None:
    for path in files_of(index):
        sound = path.read_bytes()
        path.unlink()
        with pytest.raises(ArtefactError, match=rf"{path.name} is missing"):
            verify_index(index)
        path.write_bytes(sound)


def test_a_shard_of_another_index_is_refused(
    index: Path, cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    others = write_collection(cone(400), name="others")
    plan = plan_index(400, others.space, code="ivf-rabitq", rows_per_shard=200)
    build_index(others, tmp_path / "foreign", plan)
    shutil.rmtree(index / "shards" / "0001")
    shutil.copytree(tmp_path / "foreign" / "shards" / "0001", index / "shards" / "0001")
    with pytest.raises(ArtefactError, match=r"shards/0001/shard\.json"):
        verify_index(index)


def test_an_edited_manifest_is_refused(index: Path) -> None:
    path = index / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["certificate"]["target_recall"] = 0.99
    path.write_text(json.dumps(manifest, indent=2) + "\n")
    with pytest.raises(IndexDamagedError, match="its fingerprint doesn't match its content"):
        verify_index(index)


def test_moved_embeddings_are_asked_for(index: Path, tmp_path: Path) -> None:
    (tmp_path / "embeddings").rename(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match=r"can't be opened at .*embeddings.*pass --embeddings"):
        verify_index(index)
    elsewhere = [tmp_path / "elsewhere", tmp_path / "embeddings1"]
    verify_index(index, embeddings=elsewhere)
    with pytest.raises(
        SourceError, match="built from 2 embedding folders, and --embeddings was gi"
    ):
        verify_index(index, embeddings=elsewhere[:1])
    with pytest.raises(SourceError, match=r"embeddings1 changed since .* was built from it"):
        verify_index(index, embeddings=elsewhere[::-1])


def test_index_and_embeddings_may_move_together(index: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    for name in ("index", "embeddings", "embeddings1"):
        (tmp_path / name).rename(tmp_path / "project" / name)
    verify_index(tmp_path / "project" / "index")


def test_changed_embeddings_are_refused(
    index: Path, cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    write_collection(cone(300), name="others")
    with pytest.raises(SourceError, match=r"changed since .* was built from it: fingerprint"):
        verify_index(index, embeddings=[tmp_path / "others", tmp_path / "embeddings1"])


def test_parts_that_came_later_change_nothing(
    cone: Cone, space: EmbeddingSpace, write_foreign: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_foreign(cone(200))
    embeddings = Collection.open([folder], space=space)
    build_index(embeddings, tmp_path / "index", plan_index(200, space, code="ivf-rabitq"))
    np.save(folder / "img_emb" / "img_emb_1.npy", cone(50))
    assert verify_index(tmp_path / "index", n_searches=200).n_searches == 200


def test_embeddings_of_another_space_are_refused(index: Path, tmp_path: Path) -> None:
    path = tmp_path / "embeddings" / "space.json"
    path.write_text(path.read_text().replace("ViT-L-14", "ViT-H-14"))
    with pytest.raises(SourceError, match="holds other embeddings than those"):
        verify_index(index)


def test_rows_that_do_not_find_themselves_are_reported(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_everything(*_: object) -> tuple[np.ndarray, np.ndarray]:
        return np.full(16, -1), np.full(16, np.nan, np.float32)

    monkeypatch.setattr(verify_module, "_search", lose_everything)
    with pytest.raises(IndexDamagedError, match=r"16 of 16 rows .* don't find themselves first"):
        verify_index(index)


def test_copies_may_stand_in_for_each_other(
    cone: Cone, write_collection: WriteCollection, tmp_path: Path
) -> None:
    embeddings = write_collection(np.repeat(cone(50), 4, axis=0), name="repeated")
    plan = plan_index(200, embeddings.space, code="ivf-rabitq")
    build_index(embeddings, tmp_path / "copies", plan)
    assert verify_index(tmp_path / "copies", n_searches=200).n_searches == 200


@pytest.mark.parametrize("code", ["flat", "ivf-rabitq", "hnsw-sq8"])
def test_a_sample_may_be_all_dead(
    cone: Cone, space: EmbeddingSpace, write_foreign: Callable[..., Path], tmp_path: Path, code: Any
) -> None:
    rows = cone(60)
    rows[int(sample_rows([60], 1, 0)[0])] = 0
    embeddings = Collection.open([write_foreign(rows)], space=space)
    plan = plan_index(60, space, code=code)
    build_index(embeddings, tmp_path / "index", plan, bad_rows="tombstone")
    assert verify_index(tmp_path / "index", n_searches=1).n_searches == 0
