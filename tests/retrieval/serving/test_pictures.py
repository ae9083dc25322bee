from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from retrieval.serving.pictures import PictureFolders, encode_jpeg, thumbnail
from retrieval.serving.problems import Problem

from .conftest import WIDTH, draw, write_embeddings


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
