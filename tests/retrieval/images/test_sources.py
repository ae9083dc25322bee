from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingFolder
from retrieval.errors import PictureError
from retrieval.images.addresses import Network
from retrieval.images.fetching import FetchLimits
from retrieval.images.sources import PictureSources
from retrieval.images.tar_shards import TarShards

from .conftest import Stranger, picture_bytes
from .test_tar_shards import write_shard


@pytest.fixture
def embeddings(
    write_gallery_rows: Callable[..., EmbeddingFolder], draw_rows: Callable[[int], np.ndarray]
) -> Collection:
    """Two folders of three rows each."""
    return Collection([write_gallery_rows(draw_rows(3), name) for name in ("first", "second")])


def described(found: Sequence[Image.Image | PictureError]) -> list[str | tuple[int, int]]:
    return [each.reason if isinstance(each, PictureError) else each.size for each in found]


def test_a_path_is_relative_to_the_folder_of_its_row(
    embeddings: Collection, rng: np.random.Generator
) -> None:
    for side, folder in zip((10, 20), embeddings.folders, strict=True):
        (Path(folder.path) / "a.png").write_bytes(picture_bytes(rng, side=side))
    facts = [{"image_path": "a.png"}, {"image_path": "a.png"}, {"image_path": "b.png"}, {}]
    found = PictureSources(embeddings).get([2, 3, 0, 1], facts, seconds=1)
    assert described(found) == [(10, 10), (20, 20), "no such file", "nowhere to look"]


def test_files_come_before_shards_and_shards_before_urls(
    embeddings: Collection,
    rng: np.random.Generator,
    tmp_path: Path,
    stranger: Stranger,
    here: Network,
) -> None:
    (Path(embeddings.folders[0].path) / "a.png").write_bytes(picture_bytes(rng, side=10))
    (tmp_path / "tars").mkdir()
    shard = {"000000001.jpg": picture_bytes(rng, "JPEG", 11), "000000002.jpg": b"no picture"}
    write_shard(tmp_path / "tars" / "00000.tar", shard)
    stranger.routes |= {
        "/a": lambda asked: asked.answer(picture_bytes(rng, side=12)),
        "/html": lambda asked: asked.answer(b"<html></html>"),
        "/gone": lambda asked: asked.answer(b"", 404),
    }
    facts = [
        {"image_path": "a.png", "key": "000000001", "url": stranger.url("/a")},
        {"image_path": None, "key": "000000001", "url": stranger.url("/a")},
        {"image_path": "000000001", "key": None, "url": None},
        {"image_path": None, "key": "000000002", "url": stranger.url("/a")},
        {"image_path": None, "key": "000000003", "url": stranger.url("/gone")},
        {"image_path": None, "key": "000000003", "url": stranger.url("/html")},
    ]
    sources = PictureSources(
        embeddings, TarShards(tmp_path / "tars"), FetchLimits(seconds=20), here
    )
    found = sources.get(range(6), facts, seconds=30)
    assert described(found) == [
        (10, 10),
        (11, 11),
        (11, 11),
        (12, 12),
        "HTTP 404",
        "not a picture",
    ]
    unfetched = PictureSources(embeddings).get(range(6), facts, seconds=30)
    assert described(unfetched) == [
        (10, 10),
        "nowhere to look",
        "no such file",
        *["nowhere to look"] * 3,
    ]


def test_a_path_may_go_on_into_a_shard(
    embeddings: Collection, rng: np.random.Generator, tmp_path: Path
) -> None:
    (tmp_path / "tars").mkdir()
    shard = tmp_path / "tars" / "00000.tar"
    write_shard(shard, {"000000001.jpg": picture_bytes(rng, "JPEG", 11)})
    folder = Path(embeddings.folders[0].path)
    places = [Path(os.path.relpath(shard, folder)) / f"00000000{i}.jpg" for i in (1, 2)]
    facts = [{"image_path": str(place), "key": place.stem} for place in places]
    found = PictureSources(embeddings).get([0, 1], facts, seconds=1)
    assert described(found) == [(11, 11), "not in its shard"]
    moved = [{**fact, "image_path": fact["image_path"].replace("tars", "gone")} for fact in facts]
    sources = PictureSources(embeddings, TarShards(tmp_path / "tars"))
    assert described(sources.get([0, 1], moved, seconds=1)) == [(11, 11), "not in its shard"]


def test_a_path_that_cannot_be_followed_is_no_picture(embeddings: Collection) -> None:
    found = PictureSources(embeddings).get(
        [0], [{"image_path": f"{'a' * 300}.tar/x.png"}], seconds=1
    )
    assert described(found) == ["no such file"]


def test_columns_are_those_that_a_source_can_use(embeddings: Collection, tmp_path: Path) -> None:
    available = ("url", "caption", "key", "image_path")
    assert PictureSources(embeddings).columns(available) == ("image_path",)
    fetching = PictureSources(embeddings, limits=FetchLimits())
    assert fetching.columns(available) == ("image_path", "url")
    assert fetching.columns(("url",)) == ("url",)
    write_shard(tmp_path / "00000.tar", {})
    assert PictureSources(embeddings, TarShards(tmp_path)).columns(available) == (
        "image_path",
        "key",
    )
    with pytest.raises(PictureError, match="by image_path, and the index has the columns url"):
        PictureSources(embeddings).columns(("url",))
