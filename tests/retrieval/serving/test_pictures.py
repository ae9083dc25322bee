from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from retrieval.searching.engine import SearchEngine
from retrieval.serving.pictures import PictureFolders, encode_jpeg, thumbnail
from retrieval.serving.problems import Problem
from retrieval.serving.served import ServedIndex
from tests.retrieval.images.archives import KINDS, write_archives

from .conftest import WIDTH, draw, write_embeddings, write_index

TEAL = Image.new("RGB", (24, 24), (10, 160, 150))


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def foreign(root: Path) -> EmbeddingFolder:
    """A folder as clip-retrieval writes it, which doesn't say that we made it."""
    (root / "img_emb").mkdir(parents=True)
    (root / "metadata").mkdir()
    np.save(root / "img_emb" / "img_emb_0.npy", draw(3, 1))
    table = pa.table({"image_path": ["a", "b", "c"]})
    pq.write_table(table, root / "metadata" / "metadata_0.parquet")
    space = EmbeddingSpace("m", "final", 1, WIDTH, True)
    return EmbeddingFolder.open(root, space=space)


def test_a_picture_is_found_beside_the_folder_of_its_row(tmp_path: Path) -> None:
    first = write_embeddings(tmp_path / "a" / "emb", draw(3, 1), {"image_id": [0, 1, 2]})
    second = write_embeddings(tmp_path / "b" / "emb", draw(3, 2), {"image_id": [0, 1, 2]})
    in_a, in_b = save(tmp_path / "a" / "x.png"), save(tmp_path / "b" / "x.png")
    pictures = PictureFolders(Collection([first, second]))
    assert pictures.find(2, "../x.png") == in_a
    assert pictures.find(3, "../x.png") == in_b
    assert pictures.find(3, str(in_a)) == in_a
    for path in (None, "", "../y.png", "..", ".", "../x.png\0"):
        assert pictures.find(3, path) is None


def test_a_folder_of_strangers_shows_what_lies_in_it_alone(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "laion")
    inside, outside = save(tmp_path / "laion" / "x.png"), save(tmp_path / "secret.png")
    os.symlink(outside, tmp_path / "laion" / "link.png")
    os.symlink(tmp_path, tmp_path / "laion" / "up")
    pictures = PictureFolders(Collection([folder]))
    assert pictures.find(0, "x.png") == inside
    assert pictures.find(0, str(inside)) == inside
    for path in ("../secret.png", str(outside), "link.png", "up/secret.png", "a/../../secret.png"):
        assert pictures.find(0, path) is None, path


def test_a_link_leads_nowhere_else(tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path / "emb", draw(3, 1), {"image_id": [0, 1, 2]})
    secret = save(tmp_path / "private" / "secret.png")
    seen = save(tmp_path / "pictures" / "seen.png")
    os.symlink(secret, tmp_path / "pictures" / "link.png")
    os.symlink(seen, tmp_path / "pictures" / "same.png")
    pictures = PictureFolders(Collection([folder]))
    assert pictures.find(0, "../pictures/link.png") is None
    assert pictures.find(0, "../pictures/same.png") == seen


def test_a_file_that_is_no_picture_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("root:x:0:0")
    for path in (tmp_path / "x.png", tmp_path / "gone.png"):
        with pytest.raises(Problem, match="no picture that can be shown") as refused:
            thumbnail(path, 64)
        assert refused.value.status == 404


def test_transparent_parts_become_white_and_sizes_only_shrink() -> None:
    picture = Image.new("RGBA", (10, 40), (0, 0, 0, 0))
    shown = Image.open(io.BytesIO(encode_jpeg(picture, 20)))
    assert shown.size == (5, 20)
    assert shown.convert("L").getextrema()[0] > 250
    assert Image.open(io.BytesIO(encode_jpeg(picture, 400))).size == (10, 40)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_in_an_archive_is_found_and_shown(tmp_path: Path, kind: str) -> None:
    place = write_archives(tmp_path / "pictures", TEAL)[kind]
    folder = write_embeddings(tmp_path / "emb", draw(3, 1), {"image_id": [0, 1, 2]})
    pictures = PictureFolders(Collection([folder]))
    found = pictures.find(0, os.path.relpath(place, folder.path))
    assert found == pictures.find(0, str(place)) == place
    assert thumbnail(found, 16) == encode_jpeg(TEAL, 16)


def test_the_server_shows_rows_of_archives(
    tmp_path: Path, make_client: Callable[..., TestClient]
) -> None:
    places = [
        f"../pictures/{p.relative_to(tmp_path / 'pictures')}"
        for p in write_archives(tmp_path / "pictures", TEAL).values()
    ]
    n_rows = 50
    columns = {"image_path": [*places, "../pictures/0.tar/a/8.png", *[None] * (n_rows - 4)]}
    index = write_index(
        tmp_path / "idx", write_embeddings(tmp_path / "emb", draw(n_rows, 1), columns)
    )
    served = ServedIndex("archived", SearchEngine.open(index))
    assert served.has_pictures
    client = make_client(indexes={"archived": served})
    for row in range(3):
        assert client.get(f"/api/pictures/archived/{row}?size=20").content == encode_jpeg(TEAL, 20)
    assert client.get("/api/pictures/archived/3").status_code == 404  # the shard hasn't got it
    assert client.get("/api/pictures/archived/4").status_code == 404  # has no path


def test_archives_of_strangers_are_those_in_their_folder(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "laion")
    inside = write_archives(tmp_path / "laion" / "in", TEAL)
    outside = write_archives(tmp_path / "out", TEAL)
    save(tmp_path / "secret.png")
    os.symlink(tmp_path / "out" / "0.tar", tmp_path / "laion" / "link.tar")
    os.symlink(tmp_path / "out", tmp_path / "laion" / "up")
    pictures = PictureFolders(Collection([folder]))
    assert pictures.find(0, "in/0.tar/a/7.png") == inside["tar"]
    assert pictures.find(0, "in/a.parquet/1") == inside["parquet"]
    # An HDF5 file may name the bytes of any other file as its pixels.
    assert pictures.find(0, "in/stimuli.hdf5/imgBrick/1") is None
    for path in (
        *map(str, outside.values()),
        *(f"../out/{p.relative_to(tmp_path / 'out')}" for p in outside.values()),
        "link.tar/a/7.png",
        "up/0.tar/a/7.png",
        "in/0.tar/../../../out/0.tar/a/7.png",
        "in/0.tar/../../../secret.png",
    ):
        assert pictures.find(0, path) is None, path


def test_a_link_to_an_archive_leads_nowhere_else(tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path / "emb", draw(3, 1), {"image_id": [0, 1, 2]})
    write_archives(tmp_path / "private", TEAL)
    seen = write_archives(tmp_path / "pictures", TEAL)["tar"]
    os.symlink(tmp_path / "private" / "0.tar", tmp_path / "pictures" / "link.tar")
    os.symlink(tmp_path / "pictures" / "0.tar", tmp_path / "pictures" / "same.tar")
    os.symlink(save(tmp_path / "pictures" / "x.png"), tmp_path / "pictures" / "picture.tar")
    pictures = PictureFolders(Collection([folder]))
    assert pictures.find(0, "../pictures/link.tar/a/7.png") is None
    assert pictures.find(0, "../pictures/same.tar/a/7.png") == seen
    for path in ("x.png/a/7.png", "picture.tar/a/7.png", "gone.tar/a/7.png"):
        assert pictures.find(0, f"../pictures/{path}") is None, path


def test_what_an_archive_does_not_hold_is_not_shown(tmp_path: Path) -> None:
    write_archives(tmp_path, TEAL)
    (tmp_path / "torn.tar").write_bytes(b"root:x:0:0" * 100)
    for inside in (
        "0.tar/a/7.txt",
        "0.tar/../x.png",
        "0.tar",
        "torn.tar/a/7.png",
        "stimuli.hdf5/imgBrick/2",
        "stimuli.hdf5/others/0",
        "a.parquet/2",
        "a.parquet/image",
    ):
        with pytest.raises(Problem, match="no picture that can be shown") as refused:
            thumbnail(tmp_path / inside, 64)
        assert refused.value.status == 404


def test_without_h5py_the_log_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = write_archives(tmp_path, TEAL)["hdf5"]
    monkeypatch.setitem(sys.modules, "h5py", None)
    with caplog.at_level(logging.WARNING), pytest.raises(Problem, match="no picture"):
        thumbnail(place, 64)
    assert "h5py" in caplog.text
