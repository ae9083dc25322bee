from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from index_builder.build import build_index
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.planning import plan_index
from retrieval.errors import ResultsError
from retrieval.gallery.results_page import (
    _images_held,
    _picture,
    count_found,
    write_results_gallery,
)
from retrieval.results import write_results
from retrieval.searching.engine import SearchEngine
from retrieval.searching.queries import load_queries
from retrieval.searching.request import SearchRequest
from tests.retrieval.images.archives import write_archives

SPACE = EmbeddingSpace("a model", "final", 1, 8, True)


def write(folder: Path, vectors: np.ndarray, columns: dict[str, object]) -> EmbeddingFolder:
    with EmbeddingWriter(folder, SPACE, command="test", details={}) as writer:
        writer.write(vectors.astype(np.float32), pa.table(columns))
        return writer.finish()


@pytest.fixture
def engine(tmp_path: Path) -> SearchEngine:
    """Search eight orthogonal images, numbered from 10."""
    for number in range(8):
        Image.new("RGB", (16, 16), (30 * number, 99, 0)).save(tmp_path / f"{number}.png")
    gallery = write(
        tmp_path / "gallery",
        np.eye(8),
        {
            "image_id": np.arange(10, 18),
            "image_path": [f"../{number}.png" for number in range(8)],
            "caption": [f"number {number} <u>" for number in range(8)],
        },
    )
    build_index(Collection.open([gallery.path]), tmp_path / "index", plan_index(8, SPACE))
    return SearchEngine.open(tmp_path / "index")


def test_seen_images_are_counted_and_shown(engine: SearchEngine, tmp_path: Path) -> None:
    near = np.eye(8)[[2, 3, 5]] + 0.5 * np.eye(8)[[2, 4, 6]]
    near[1] = np.eye(8)[3] * 0.4 + np.eye(8)[4]  # finds 14 first, then 13, which was seen
    near[2] = np.eye(8)[5]  # an image that the gallery does not hold was seen
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    write(tmp_path / "asked", near, {"image_id": [12, 13, 99], "n_trials": [3, 3, 1]})
    queries = load_queries(tmp_path / "asked")
    results = write_results(tmp_path / "results", engine, queries, SearchRequest(4))
    found = count_found(results, queries)
    assert (found.n_known, found.n_first, found.n_found) == (3, 1, 2)
    page = write_results_gallery(results, engine, queries, title="Test")
    text = page.read_text()
    assert "Found at rank 1" in text and "Found at rank 2" in text
    assert "number 2 &lt;u&gt;" in text and "<u>" not in text
    assert "3 trials averaged" in text


def test_queries_without_a_record_of_what_was_seen(engine: SearchEngine, tmp_path: Path) -> None:
    np.save(tmp_path / "asked.npy", np.eye(8, dtype=np.float32)[:2])
    queries = load_queries(tmp_path / "asked.npy")
    results = write_results(tmp_path / "results", engine, queries, SearchRequest(2))
    assert count_found(results, queries).n_known == 0
    text = write_results_gallery(results, engine, queries, title="Test").read_text()
    assert "query 0" in text and "Found at rank" not in text.split("</style>")[1]


def test_a_gallery_without_pictures_is_refused(tmp_path: Path) -> None:
    gallery = write(tmp_path / "bare", np.eye(8), {"image_id": np.arange(8)})
    build_index(Collection.open([gallery.path]), tmp_path / "index", plan_index(8, SPACE))
    engine = SearchEngine.open(tmp_path / "index")
    queries = load_queries(tmp_path / "bare")
    results = write_results(tmp_path / "results", engine, queries, SearchRequest(2))
    with pytest.raises(ResultsError, match="has no column image_path"):
        write_results_gallery(results, engine, queries, title="Test")


def test_pictures_are_those_of_the_folder_of_the_row(tmp_path: Path) -> None:
    folders = []
    for place, color in enumerate(((255, 0, 0), (0, 0, 255))):
        name = "red" if place == 0 else "blue"
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (16, 16), color).save(tmp_path / name / f"{number}.png")
        folder = write(
            tmp_path / name / "gallery",
            np.eye(8)[4 * place : 4 * place + 4],
            {
                "image_id": np.arange(4 * place, 4 * place + 4),
                "image_path": [f"../{number}.png" for number in range(4)],
            },
        )
        folders.append(folder)
    build_index(Collection(folders), tmp_path / "index", plan_index(8, SPACE))
    engine = SearchEngine.open(tmp_path / "index")
    assert [
        _picture(engine.embeddings, {"row": r, "image_path": "../3.png"}) for r in (0, 3, 4, 7)
    ] == [Path(folders[place].path) / "../3.png" for place in (0, 0, 1, 1)]
    assert _picture(engine.embeddings, {"row": 0, "image_path": None}) is None
    write(tmp_path / "asked", np.eye(8)[[1, 6]], {"image_id": [1, 6]})
    queries = load_queries(tmp_path / "asked")
    results = write_results(tmp_path / "results", engine, queries, SearchRequest(1))
    text = write_results_gallery(results, engine, queries, title="Test").read_text()
    assert text.count("data:image/") == 2  # each found first, and shown once


def test_pictures_in_archives_are_shown(tmp_path: Path) -> None:
    places = [
        place.relative_to(tmp_path).as_posix()
        for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255)))
        for place in write_archives(tmp_path / name, Image.new("RGB", (16, 16), color)).values()
    ]
    paths = [*(f"../{place}" for place in places), "../red/0.tar/a/8.png", None]
    write(tmp_path / "gallery", np.eye(8), {"image_id": np.arange(8), "image_path": paths})
    build_index(Collection.open([tmp_path / "gallery"]), tmp_path / "index", plan_index(8, SPACE))
    engine = SearchEngine.open(tmp_path / "index")
    queries = load_queries(tmp_path / "gallery")
    results = write_results(tmp_path / "results", engine, queries, SearchRequest(1))
    text = write_results_gallery(results, engine, queries, title="Test").read_text()
    shown = re.findall('data:image/webp;base64,([^"]+)', text)
    colors = [
        Image.open(BytesIO(base64.b64decode(content))).resize((1, 1)).getpixel((0, 0))
        for content in shown
    ]
    assert [color[0] > 200 > 50 > color[2] for color in colors] == [True] * 3 + [False] * 3


def test_images_that_were_taken_down_are_not_held(engine: SearchEngine) -> None:
    asked = np.array([12, 17, 99])
    assert _images_held(engine, asked) == {12, 17}
    engine.deleted = np.array([2, 3])
    assert _images_held(engine, asked) == {17}
