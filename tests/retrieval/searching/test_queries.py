from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index_builder.embeddings.errors import ArtefactError
from index_builder.embeddings.reader import EmbeddingFolder
from retrieval.errors import PictureError, QueryError
from retrieval.searching import queries as queries_module
from retrieval.searching.encoding import QueryEncoder
from retrieval.searching.queries import load_queries, parse_query_spec, require_same_images
from training.encoders.pixels import PixelEncoder
from training.targets import embed_pictures, list_pictures


@pytest.mark.parametrize("batch_queries", [1, 4, 100])
def test_folder_and_npy_give_the_same_batches(
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    tmp_path: Path,
    batch_queries: int,
) -> None:
    rows = draw_rows(9)
    np.save(tmp_path / "queries.npy", rows)
    folder = write_gallery_rows(rows, "queries").path
    npy = tmp_path / "queries.npy"
    for spec in (folder, f"emb:{folder}", npy, f"npy:{npy}"):
        queries = load_queries(spec)
        batches = list(queries.iter_batches(batch_queries=batch_queries))
        assert max(len(batch) for batch in batches) <= batch_queries
        np.testing.assert_array_equal(np.concatenate(batches), rows)
        assert (queries.n_queries, queries.width) == (9, 48)


def test_a_folder_knows_its_space_and_metadata(
    draw_rows: Callable[[int], np.ndarray], write_gallery_rows: Callable[..., EmbeddingFolder]
) -> None:
    folder = write_gallery_rows(draw_rows(5), "queries")
    queries = load_queries(folder.path)
    assert (queries.space, queries.fingerprint) == (folder.space, folder.fingerprint)
    assert queries.metadata(np.array([4, 1]), ["image_id"]).to_pydict() == {"image_id": [4, 1]}
    assert queries.name == "queries"


def test_an_npy_file_knows_neither(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones(48))
    queries = load_queries(tmp_path / "one.npy")
    assert (queries.n_queries, queries.space, queries.columns) == (1, None, ())
    assert queries.metadata(np.array([0])) is None


@pytest.fixture
def photographs(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Seven pictures in two folders, of several sizes, forms and modes."""
    folder = tmp_path / "photographs"
    (folder / "deeper").mkdir(parents=True)
    for number in range(7):
        pixels = rng.integers(0, 256, (30 + number, 40, 3), dtype=np.uint8)
        suffix = ("png", "jpg", "webp", "gif")[number % 4]
        where = folder / "deeper" if number % 2 else folder
        Image.fromarray(pixels).save(where / f"{number}.{suffix}")
    grey = Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8))
    grey.putalpha(128)
    grey.save(folder / "grey.png")
    return folder


@pytest.fixture
def get_encoder() -> Callable[[], QueryEncoder]:
    encoder = QueryEncoder(PixelEncoder(6))
    return lambda: encoder


def test_pictures_are_embedded_as_the_gallery_was(
    photographs: Path, tmp_path: Path, get_encoder: Callable[[], QueryEncoder]
) -> None:
    gallery = embed_pictures(list_pictures(photographs), tmp_path / "gallery", PixelEncoder(6))
    queries = load_queries(photographs, get_encoder=get_encoder)
    assert (queries.n_queries, queries.space) == (8, gallery.space)
    (batch,) = queries.iter_batches(batch_queries=20)
    np.testing.assert_allclose(batch, gallery.take(np.arange(8)), atol=1e-3)  # float16 there
    paths = queries.metadata(np.arange(8))["image_path"].to_pylist()
    assert paths == [str(picture.path) for picture in list_pictures(photographs)]
    assert queries.metadata(np.array([7, 0]), ["image_path"]).num_rows == 2
    alone = load_queries(f"image:{paths[3]}", get_encoder=get_encoder)
    assert (alone.n_queries, alone.name) == (1, Path(paths[3]).name)
    np.testing.assert_array_equal(next(alone.iter_batches(batch_queries=1)), batch[3:4])


def test_pictures_do_not_say_which_image_of_a_subject_they_are(
    photographs: Path, get_encoder: Callable[[], QueryEncoder]
) -> None:
    queries = load_queries(photographs, get_encoder=get_encoder)
    assert "image_id" not in queries.columns  # Else a gallery would count it as found or not.


def test_many_pictures_are_to_be_embedded_once(
    photographs: Path, get_encoder: Callable[[], QueryEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries_module, "MAX_PICTURES", 7)
    with pytest.raises(QueryError, match=r"holds 8 pictures, and at most 7 .*voxseek embed"):
        load_queries(photographs, get_encoder=get_encoder)


def test_what_lies_in_a_folder_tells_its_kind(
    photographs: Path,
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    tmp_path: Path,
) -> None:
    assert parse_query_spec(str(photographs)) == ("image", str(photographs))
    folder = Path(write_gallery_rows(draw_rows(3), "queries").path)
    Image.new("RGB", (9, 9)).save(folder / "cover.png")
    assert parse_query_spec(str(folder)) == ("emb", str(folder))
    np.save(photographs / "vectors.npy", np.ones((1, 2)))
    assert parse_query_spec(str(photographs)) == ("emb", str(photographs))
    assert parse_query_spec("s3://bucket/folder") == ("emb", "s3://bucket/folder")
    assert parse_query_spec("text: two words:three ") == ("text", " two words:three ")
    with pytest.raises(ArtefactError, match="is not a folder"):
        load_queries(f"emb:{tmp_path / 'nowhere'}")


def test_what_is_no_query_is_refused(
    tmp_path: Path, get_encoder: Callable[..., QueryEncoder]
) -> None:
    with pytest.raises(QueryError, match=r"nowhere is neither a file nor a folder.*text:a zebra"):
        load_queries(tmp_path / "nowhere")
    with pytest.raises(QueryError, match=r"nowhere\.npy can't be read as an npy file"):
        load_queries(tmp_path / "nowhere.npy")
    for spec in ("text:", "image: ", "emb:", "npy:"):
        with pytest.raises(QueryError, match="ends after its prefix"):
            load_queries(spec)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(QueryError, match=r"ends in '\.txt', expected \.npy or one of \.bmp"):
        load_queries(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(QueryError, match="holds no pictures"):
        load_queries(f"image:{tmp_path / 'empty'}", get_encoder=get_encoder)
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    with pytest.raises(PictureError, match=r"torn\.jpg can't be read as a picture"):
        load_queries(tmp_path / "torn.jpg", get_encoder=get_encoder)
    for spec in ("text:a zebra", tmp_path / "torn.jpg"):
        with pytest.raises(QueryError, match="has to be embedded, and there is no encoder"):
            load_queries(spec)


def test_what_is_no_npy_file_of_queries_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(QueryError, match="can't be read as an npy file"):
        load_queries(tmp_path / "text.npy")
    np.save(tmp_path / "pickled.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(QueryError, match="can't be read as an npy file"):
        load_queries(tmp_path / "pickled.npy")
    for array in (np.ones((2, 3, 4)), np.ones((2, 3), np.int64), np.ones((0, 3))):
        np.save(tmp_path / "odd.npy", array)
        with pytest.raises(QueryError, match=r"odd\.npy has shape .* at least one query"):
            load_queries(tmp_path / "odd.npy")


def test_sets_of_other_images_are_told_apart(
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    tmp_path: Path,
) -> None:
    rows = draw_rows(3)
    sets = [
        load_queries(write_gallery_rows(rows, name, columns={"image_id": ids}).path)
        for name, ids in (("first", [4, 5, 6]), ("second", [4, 6, 5]))
    ]
    require_same_images(sets[0], sets[0])
    with pytest.raises(QueryError, match=r"query 1 is of image 5 in .*first, and of image 6 in"):
        require_same_images(*sets)
    np.save(tmp_path / "silent.npy", rows)
    require_same_images(sets[0], load_queries(tmp_path / "silent.npy"))
