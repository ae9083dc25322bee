from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.errors import SpaceMismatchError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from retrieval.errors import PictureError, QueryError
from retrieval.images.sources import PictureSources
from retrieval.searching.encoding import QueryEncoder
from retrieval.searching.engine import SearchEngine
from retrieval.searching.queries import QuerySet, load_queries
from retrieval.searching.request import SearchRequest
from retrieval.searching.tokens import TokenStage, open_token_stage
from training.encoders.pixels import PixelEncoder
from training.targets import embed_pictures, list_pictures

N_PICTURES, N_QUERIES = 40, 20


class QuadrantEncoder:
    """Four tokens a picture: the pixels of its quadrants, 3 x 3 each in three channels."""

    space = EmbeddingSpace("quadrants", "hidden", 4, 27, False)
    details: ClassVar[dict[str, str | int]] = {}
    takes_text = False

    def prepare(self, picture: Image.Image) -> NDArray[np.float32]:
        small = picture.convert("RGB").resize((6, 6), Image.Resampling.BOX)
        return np.asarray(small, np.float32) - 100

    def encode(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        quadrants = batch.reshape(len(batch), 2, 3, 2, 3, 3).transpose(0, 1, 3, 2, 4, 5)
        return quadrants.reshape(len(batch), 4, 27)


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(N_PICTURES):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((48, 48), Image.Resampling.NEAREST)
        picture.save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def engine(tmp_path: Path, pictures: list[Path], build: Callable[..., Path]) -> SearchEngine:
    """The first stage: grey pixels, one vector a picture."""
    listed = list_pictures(tmp_path / "pictures")
    return SearchEngine.open(
        build(embed_pictures(listed, tmp_path / "gallery", PixelEncoder(6)), "flat")
    )


def tokens_of(pictures: list[Path]) -> np.ndarray:
    """Every picture's tokens, flattened: the brute force of the second stage."""
    return QueryEncoder(QuadrantEncoder()).encode_images([Image.open(p) for p in pictures])


@pytest.fixture
def write_tokens(tmp_path: Path) -> Callable[..., QuerySet]:
    def write(
        rows: np.ndarray, image_ids: np.ndarray, name: str = "tokens", **space: object
    ) -> QuerySet:
        fields = {**QuadrantEncoder.space.to_dict(), **space}
        with EmbeddingWriter(
            tmp_path / name, EmbeddingSpace(**fields), command="test", details={}, dtype="float32"
        ) as writer:
            shape = (len(rows), *writer.space.row_shape)
            writer.write(rows.reshape(shape), pa.table({"image_id": image_ids}))
            return load_queries(writer.finish().path)

    return write


@pytest.fixture
def seen(rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(N_PICTURES)[:N_QUERIES]


@pytest.fixture
def queries(
    engine: SearchEngine,
    seen: np.ndarray,
    rng: np.random.Generator,
    tmp_path: Path,
    write_gallery_rows: Callable[..., EmbeddingFolder],
) -> np.ndarray:
    """What a brain says of the seen pictures in the space of the index, and badly."""
    rows = engine.embeddings.take(seen).astype(np.float32)
    return rows + 0.5 * rng.standard_normal(rows.shape).astype(np.float32)


@pytest.fixture
def tokens(
    pictures: list[Path],
    seen: np.ndarray,
    rng: np.random.Generator,
    write_tokens: Callable[..., QuerySet],
) -> QuerySet:
    """What it says of their tokens, and better."""
    rows = tokens_of([pictures[number] for number in seen])
    noise = 20 * rng.standard_normal(rows.shape)
    return write_tokens((rows + noise).astype(np.float32), seen)


def stage_of(
    engine: SearchEngine, tokens: QuerySet, n_live: int, dead_share: float = 0.2
) -> TokenStage:
    sources = PictureSources(engine.embeddings)
    encoder = QueryEncoder(QuadrantEncoder())
    return TokenStage(engine, sources, encoder, tokens, n_live=n_live, dead_share=dead_share)


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = (each.astype(np.float64) for each in (left, right))
    norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    return left @ right.T / norms


def spoken(tokens: QuerySet) -> np.ndarray:
    return np.concatenate(list(tokens.iter_batches(batch_queries=100)))


@pytest.mark.parametrize("k", [1, 4, 10])
def test_candidates_are_ordered_by_the_cosine_of_their_tokens(
    engine: SearchEngine, queries: np.ndarray, tokens: QuerySet, pictures: list[Path], k: int
) -> None:
    result = stage_of(engine, tokens, n_live=10).search(queries, SearchRequest(k))
    nearest = engine.search(queries, SearchRequest(10))
    of_all = cosines(spoken(tokens), tokens_of(pictures))
    ours = np.take_along_axis(of_all, nearest.rows, axis=1)
    order = np.argsort(-ours, axis=1)[:, :k]
    np.testing.assert_array_equal(result.rows, np.take_along_axis(nearest.rows, order, axis=1))
    np.testing.assert_array_equal(result.scores, np.take_along_axis(nearest.scores, order, axis=1))
    np.testing.assert_allclose(
        result.token_scores, np.take_along_axis(ours, order, axis=1), atol=1e-6
    )


def test_the_second_stage_finds_what_the_first_blurred(
    engine: SearchEngine, queries: np.ndarray, tokens: QuerySet, seen: np.ndarray
) -> None:
    first = (engine.search(queries, SearchRequest(1)).rows[:, 0] == seen).sum()
    stage = stage_of(engine, tokens, n_live=30)
    second = (stage.search(queries, SearchRequest(1)).rows[:, 0] == seen).sum()
    assert second > first
    assert (stage.n_ranked, stage.dead.total()) == (30 * N_QUERIES, 0)
    assert stage.summary() == "600 pictures ranked by their tokens"


def test_batches_find_their_own_tokens(
    engine: SearchEngine, queries: np.ndarray, tokens: QuerySet
) -> None:
    whole = stage_of(engine, tokens, n_live=8).search(queries, SearchRequest(3))
    stage = stage_of(engine, tokens, n_live=8)
    for start in range(0, N_QUERIES, 7):
        piece = slice(start, start + 7)
        part = stage.search(queries[piece], SearchRequest(3), first_query=start)
        np.testing.assert_array_equal(part.rows, whole.rows[piece])
        np.testing.assert_array_equal(part.token_scores, whole.token_scores[piece])


def test_the_dead_are_skipped_counted_and_made_up_for(
    engine: SearchEngine, queries: np.ndarray, tokens: QuerySet, pictures: list[Path]
) -> None:
    for path in pictures[::4]:
        path.unlink()
    pictures[1].write_bytes(b"<html>no longer here</html>")
    dead = {*range(0, N_PICTURES, 4), 1}
    stage = stage_of(engine, tokens, n_live=10, dead_share=0.5)
    result = stage.search(queries, SearchRequest(10))
    ranked = engine.search(queries, SearchRequest(20)).rows
    gone = torn = 0
    for query in range(N_QUERIES):
        alive = [row for row in ranked[query].tolist() if row not in dead][:10]
        assert sorted(result.rows[query].tolist()) == sorted(alive)
        passed = ranked[query, : ranked[query].tolist().index(alive[-1]) + 1].tolist()
        gone += sum(row % 4 == 0 for row in passed)
        torn += 1 in passed
    assert stage.dead == {"no such file": gone, "not a picture": torn}
    assert stage.n_ranked == 10 * N_QUERIES
    told = stage.to_dict()
    assert json.loads(json.dumps(told)) == told
    assert (told["n_dead"], told["dead"]) == (gone + torn, dict(stage.dead.most_common()))
    assert stage.summary().startswith(
        f"200 pictures ranked by their tokens; {gone + torn} candidates without a picture "
        f"skipped: no such file {gone}"
    )


def test_where_candidates_end_there_are_fewer_hits_and_never_a_blank(
    engine: SearchEngine, queries: np.ndarray, tokens: QuerySet, pictures: list[Path]
) -> None:
    for path in pictures[3:]:
        path.unlink()
    result = stage_of(engine, tokens, n_live=32).search(queries, SearchRequest(5))
    np.testing.assert_array_equal((result.rows >= 0).sum(axis=1), 3)
    np.testing.assert_array_equal(np.isnan(result.token_scores), result.rows < 0)
    np.testing.assert_array_equal(np.isnan(result.scores), result.rows < 0)
    for path in pictures[:3]:
        path.unlink()
    nothing = stage_of(engine, tokens, n_live=5).search(queries, SearchRequest(5))
    assert (nothing.rows == -1).all()


@pytest.mark.parametrize(
    ("n_live", "dead_share", "expected"),
    [(16, 0.2, 20), (16, 0.0, 16), (10, 0.5, 20), (1, 0.9, 10)],
)
def test_the_first_stage_looks_for_the_dead_too(
    engine: SearchEngine, tokens: QuerySet, n_live: int, dead_share: float, expected: int
) -> None:
    request = SearchRequest(1, where="image_id < 9")
    widened = stage_of(engine, tokens, n_live, dead_share).widen(request)
    assert (widened.k, widened.where) == (expected, request.where)


def test_duplicates_stay_with_their_hits(
    engine: SearchEngine, queries: np.ndarray, tokens: QuerySet
) -> None:
    request = SearchRequest(4, duplicate_from=0.5)
    stage = stage_of(engine, tokens, n_live=8)
    result, first = stage.search(queries, request), engine.search(queries, stage.widen(request))
    assert result.n_duplicates is not None and first.n_duplicates is not None
    for query in range(N_QUERIES):
        counts = dict(zip(first.rows[query], first.n_duplicates[query], strict=True))
        expected = [counts[row] if row >= 0 else 0 for row in result.rows[query]]
        assert result.n_duplicates[query].tolist() == expected


def test_tokens_of_other_queries_are_refused(
    engine: SearchEngine,
    tokens: QuerySet,
    seen: np.ndarray,
    write_tokens: Callable[..., QuerySet],
    tmp_path: Path,
) -> None:
    rows = spoken(tokens)
    stage = stage_of(engine, tokens, n_live=4)
    swapped = write_tokens(rows, seen[::-1], "swapped")
    stage.require_applicable(tokens, SearchRequest(4))
    with pytest.raises(QueryError, match="expected the same images in the same order"):
        stage.require_applicable(swapped, SearchRequest(4))
    with pytest.raises(QueryError, match=r"has 5 queries, and .* has tokens of 20"):
        stage.require_applicable(write_tokens(rows[:5], seen[:5], "few"), SearchRequest(4))
    with pytest.raises(QueryError, match="5 hits a query are asked for, and 4 pictures are"):
        stage.require_applicable(tokens, SearchRequest(5))
    with pytest.raises(SpaceMismatchError, match="the encoder: quadrants:hidden"):
        stage_of(engine, write_tokens(rows, seen, "others", model="another"), n_live=4)
    np.save(tmp_path / "tokens.npy", rows)
    with pytest.raises(QueryError, match=r"tokens\.npy is no embedding folder"):
        stage_of(engine, load_queries(tmp_path / "tokens.npy"), n_live=4)
    for n_live, dead_share in ((0, 0.2), (4, 1.0), (4, -0.1)):
        with pytest.raises(QueryError, match=f"n_live is {n_live} and dead_share {dead_share}"):
            stage_of(engine, tokens, n_live, dead_share)


def test_predictions_of_one_vector_are_no_tokens(
    engine: SearchEngine, queries: np.ndarray, write_gallery_rows: Callable[..., EmbeddingFolder]
) -> None:
    final = load_queries(write_gallery_rows(np.ones((3, 8), np.float16) / 8**0.5, "final").path)
    with pytest.raises(QueryError, match="the second stage compares tokens: give predictions of"):
        open_token_stage(engine, final, n_live=4)


def test_patches_are_tokens(
    engine: SearchEngine,
    queries: np.ndarray,
    tokens: QuerySet,
    write_tokens: Callable[..., QuerySet],
    seen: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class PatchEncoder(QuadrantEncoder):
        space = replace(QuadrantEncoder.space, layer="patches")

    rows = np.load(tmp_path / "tokens/img_emb/img_emb_0000.npy")
    patches = write_tokens(rows, seen, "patches", layer="patches")
    monkeypatch.setattr(
        "retrieval.searching.tokens.open_query_encoder",
        lambda space, **options: QueryEncoder(PatchEncoder()),
    )
    found = open_token_stage(engine, patches, n_live=8).search(queries, SearchRequest(3))
    expected = stage_of(engine, tokens, 8).search(queries, SearchRequest(3))
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.token_scores, expected.token_scores)


def test_an_index_without_pictures_has_no_second_stage(
    tokens: QuerySet,
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    build: Callable[..., Path],
) -> None:
    bare = SearchEngine.open(
        build(write_gallery_rows(draw_rows(50), "bare"), "flat", name="bare-index")
    )
    with pytest.raises(PictureError, match="by image_path, and the index has the columns image_id"):
        stage_of(bare, tokens, n_live=4)


def test_tokens_without_direction_are_named(
    engine: SearchEngine, queries: np.ndarray, tokens: QuerySet, tmp_path: Path
) -> None:
    rows = np.load(tmp_path / "tokens/img_emb/img_emb_0000.npy")
    rows[17] = np.nan
    stage = stage_of(engine, tokens, n_live=4)
    np.save(tmp_path / "tokens/img_emb/img_emb_0000.npy", rows)
    with pytest.raises(QueryError, match=r"row 17 of .*tokens is zero or holds NaN"):
        stage.search(queries, SearchRequest(2))
