from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index_builder import verify as verify_module
from index_builder.build import build_index
from index_builder.embeddings.errors import ArtefactError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.errors import IndexDamagedError, SourceError
from index_builder.planning import plan_index
from index_builder.verify import verify_index

WriteFolder = Callable[..., EmbeddingFolder]
Cone = Callable[..., np.ndarray]


@pytest.fixture
def embeddings(cone: Cone, write_folder: WriteFolder) -> EmbeddingFolder:
    return write_folder(cone(400))


@pytest.fixture
def index(embeddings: EmbeddingFolder, tmp_path: Path) -> Path:
    plan = plan_index(400, embeddings.space, code="ivf-rabitq", n_shards=2)
    build_index(embeddings, tmp_path / "index", plan)
    return tmp_path / "index"


def files_of(index: Path) -> list[Path]:
    return sorted(path for path in index.rglob("*") if path.is_file())


def test_a_sound_index_passes(index: Path) -> None:
    report = verify_index(index, n_searches=50)
    listed = [path for path in files_of(index) if path.name != "manifest.json"]
    assert report.n_files == len(listed) == 17
    assert report.n_bytes == sum(path.stat().st_size for path in listed)
    assert report.n_searches == 50


def test_a_flat_index_passes(embeddings: EmbeddingFolder, tmp_path: Path) -> None:
    build_index(embeddings, tmp_path / "flat", plan_index(400, embeddings.space))
    assert verify_index(tmp_path / "flat").n_searches == 16


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_one_flipped_bit_anywhere_is_refused_and_named(index: Path, where: float) -> None:
    for path in files_of(index):
        sound = path.read_bytes()
        content = bytearray(sound)
        content[int(where * (len(content) - 1))] ^= 1
        path.write_bytes(content)
        with pytest.raises(ArtefactError, match=path.name.replace(".", r"\.")) as caught:
            verify_index(index)
        assert str(path) in str(caught.value)
        path.write_bytes(sound)
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
    index: Path, cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    others = write_folder(cone(400), "others")
    plan = plan_index(400, others.space, code="ivf-rabitq", n_shards=2)
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
    verify_index(index, embeddings=tmp_path / "elsewhere")


def test_index_and_embeddings_may_move_together(index: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    for name in ("index", "embeddings"):
        (tmp_path / name).rename(tmp_path / "project" / name)
    verify_index(tmp_path / "project" / "index")


def test_changed_embeddings_are_refused(
    index: Path, cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    write_folder(cone(400), "others")
    with pytest.raises(SourceError, match=r"changed since .* was built from it: fingerprint"):
        verify_index(index, embeddings=tmp_path / "others")


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
    cone: Cone, write_folder: WriteFolder, tmp_path: Path
) -> None:
    embeddings = write_folder(np.repeat(cone(50), 4, axis=0))
    plan = plan_index(200, embeddings.space, code="ivf-rabitq")
    build_index(embeddings, tmp_path / "copies", plan)
    assert verify_index(tmp_path / "copies", n_searches=200).n_searches == 200
