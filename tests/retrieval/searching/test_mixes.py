from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index_builder.embeddings.errors import SpaceMismatchError
from index_builder.embeddings.reader import EmbeddingFolder
from retrieval.errors import QueryError
from retrieval.searching.engine import SearchEngine
from retrieval.searching.mixes import load_mix, mix, mix_queries, parse_mix
from retrieval.searching.queries import QuerySet, load_queries
from retrieval.searching.request import SearchRequest


def unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def test_a_mixture_is_the_direction_of_the_weighted_sum_of_directions(
    rng: np.random.Generator,
) -> None:
    many = 7 * rng.standard_normal((5, 12)).astype(np.float32)
    few = rng.standard_normal((1, 12)).astype(np.float16)
    other = rng.standard_normal((5, 12))
    expected = unit(1.0 * unit(many) + 0.5 * unit(few) - 0.3 * unit(other))
    mixed = mix([(1.0, many), (0.5, few), (-0.3, other)])
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


def test_scale_of_queries_and_of_all_weights_changes_nothing(rng: np.random.Generator) -> None:
    parts = [(1.0, rng.standard_normal((3, 8))), (-0.4, rng.standard_normal((3, 8)))]
    scaled = [(50 * weight, 1e-3 * rows) for weight, rows in parts]
    np.testing.assert_allclose(mix(scaled), mix(parts), atol=1e-6)
    np.testing.assert_allclose(mix([(0.2, parts[0][1])]), unit(parts[0][1]), atol=1e-6)
    np.testing.assert_allclose(mix([(-0.2, parts[0][1])]), -unit(parts[0][1]), atol=1e-6)


def test_parts_that_cancel_have_no_direction(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((3, 8))
    apart = rows.copy()
    apart[[0, 2]] = rng.standard_normal((2, 8))
    with pytest.raises(QueryError, match="query 1 of a mixture vanishes: its parts cancel"):
        mix([(1e-3, rows), (-1e-3, 5 * apart)])
    nearly = rows + 1e-4 * rng.standard_normal((3, 8))
    assert np.isfinite(mix([(1.0, rows), (-1.0, nearly)])).all()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "needs at least one part"),
        ([(1, np.ones((2, 4))), (1, np.ones((3, 4)))], r"shapes \(2, 4\), \(3, 4\); expected one"),
        ([(1, np.ones((2, 4))), (1, np.ones((2, 5)))], "expected one width, and 2 queries or one"),
        ([(1, np.ones((1, 4))), (1, np.zeros((1, 4)))], "part 1 of a mixture holds a query that"),
        ([(1, np.full((1, 4), np.nan))], "part 0 of a mixture holds a query that is zero, NaN"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(
    parts: list[tuple[float, np.ndarray]], message: str
) -> None:
    with pytest.raises(QueryError, match=message):
        mix(parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("brain=1.0", ("brain", 1.0)),
        ("text:a zebra=0.5", ("text:a zebra", 0.5)),
        ("-text:a drawing=.3", ("text:a drawing", -0.3)),
        ("text:E=mc2=2", ("text:E=mc2", 2.0)),
        ("- image:a=b.png=1e-1", ("image:a=b.png", -0.1)),
    ],
)
def test_parts_are_read_as_they_are_written(text: str, expected: tuple[str, float]) -> None:
    assert parse_mix(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("brain", "--mix 'brain' is not SPEC=WEIGHT"),
        ("=1", "is not SPEC=WEIGHT"),
        ("-=1", "is not SPEC=WEIGHT"),
        ("text:a zebra=much", r"is 'much', expected a number above zero"),
        ("text:a zebra=-0.5", r"put the minus in front: '-text:a zebra=0\.5'"),
        ("brain=0", "expected a number above zero"),
        ("brain=inf", "expected a number above zero"),
        ("brain=nan", "expected a number above zero"),
    ],
)
def test_parts_that_cannot_be_read_say_why(text: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        parse_mix(text)


@pytest.fixture
def brain(
    draw_rows: Callable[[int], np.ndarray], write_gallery_rows: Callable[..., EmbeddingFolder]
) -> QuerySet:
    ids = {"image_id": [30 + i for i in range(9)]}
    return load_queries(write_gallery_rows(draw_rows(9), "brain", columns=ids).path)


def rows_of(queries: QuerySet, batch_queries: int = 100) -> np.ndarray:
    return np.concatenate(list(queries.iter_batches(batch_queries=batch_queries)))


@pytest.mark.parametrize("batch_queries", [1, 4, 100])
def test_a_single_query_is_mixed_into_each_of_a_set(
    brain: QuerySet, rng: np.random.Generator, tmp_path: Path, batch_queries: int
) -> None:
    np.save(tmp_path / "one.npy", rng.standard_normal(48))
    np.save(tmp_path / "nine.npy", rng.standard_normal((9, 48)))
    one, nine = (load_queries(tmp_path / f"{name}.npy") for name in ("one", "nine"))
    mixture = mix_queries([(-0.3, one), (1.0, brain), (0.5, nine)])
    batches = list(mixture.iter_batches(batch_queries=batch_queries))
    assert max(len(batch) for batch in batches) <= batch_queries
    expected = unit(-0.3 * unit(rows_of(one)) + unit(rows_of(brain)) + 0.5 * unit(rows_of(nine)))
    np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-6)
    assert (mixture.n_queries, mixture.space) == (9, brain.space)


def test_a_mixture_keeps_what_is_known_of_the_brain_and_says_its_parts(
    brain: QuerySet, draw_rows: Callable[[int], np.ndarray], tmp_path: Path
) -> None:
    np.save(tmp_path / "one.npy", draw_rows(1))
    mixture = load_mix([f"-npy:{tmp_path}/one.npy=0.25", "brain=2"], brain=brain)
    assert mixture.metadata(np.array([8, 0]))["image_id"].to_pylist() == [38, 30]
    assert [part.to_dict() for part in mixture.mix] == [
        {"query": "one.npy", "weight": -0.25, "fingerprint": None},
        {"query": "brain", "weight": 2.0, "fingerprint": brain.fingerprint},
    ]
    assert mixture.name == "-0.25 one.npy +2 brain"
    unlike = load_mix(["-brain=1", f"npy:{tmp_path}/one.npy=2"], brain=brain)
    assert unlike.columns == ()  # The image that was seen is not what is looked for.


def test_a_set_finds_between_its_parts_what_it_is_mixed_of(
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    build: Callable[..., Path],
) -> None:
    gallery = write_gallery_rows(draw_rows(300))
    engine = SearchEngine.open(build(gallery, "flat"))
    vectors = unit(gallery.take(np.arange(300)))
    parts = [load_queries(write_gallery_rows(draw_rows(4), name).path) for name in ("a", "b")]
    mixture = mix_queries([(1.0, parts[0]), (-0.6, parts[1])])
    (result,) = engine.search_set(mixture, SearchRequest(5))
    cosines = unit(unit(rows_of(parts[0])) - 0.6 * unit(rows_of(parts[1]))) @ vectors.T
    np.testing.assert_array_equal(result.rows, np.argsort(-cosines, axis=1)[:, :5])


def test_sets_that_do_not_go_together_are_refused(
    brain: QuerySet,
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    tmp_path: Path,
) -> None:
    def load(name: str, n: int, **options: object) -> QuerySet:
        return load_queries(write_gallery_rows(draw_rows(n), name, **options).path)

    with pytest.raises(QueryError, match=r"few has 2 queries, and .*brain has 9; expected as many"):
        mix_queries([(1.0, brain), (1.0, load("few", 2))])
    with pytest.raises(QueryError, match="expected the same images in the same order"):
        mix_queries([(1.0, brain), (1.0, load("others", 9))])
    with pytest.raises(SpaceMismatchError, match="embedding spaces differ"):
        mix_queries([(1.0, brain), (1.0, load("strange", 1, model="RN50/openai"))])
    np.save(tmp_path / "narrow.npy", np.ones(3))
    with pytest.raises(QueryError, match=r"narrow\.npy has 3 numbers a query"):
        load_mix(["brain=1", f"npy:{tmp_path}/narrow.npy=1"], brain=brain)
    same = draw_rows(9)
    same[5] = rows_of(brain)[5]
    np.save(tmp_path / "same.npy", same)
    with pytest.raises(QueryError, match="in the batch from query 4: query 1 of a mixture"):
        rows_of(load_mix(["brain=1", f"-npy:{tmp_path}/same.npy=1"], brain=brain), 4)
    with pytest.raises(QueryError, match="needs at least one part"):
        mix_queries([])


def test_a_brain_is_asked_where_it_is_given(brain: QuerySet, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones(48))
    with pytest.raises(QueryError, match="'brain=1' needs a brain to ask: --run RUN"):
        load_mix(["brain=1"])
    with pytest.raises(QueryError, match="is in no part of the mixture: add --mix brain=1"):
        load_mix([f"npy:{tmp_path}/one.npy=1"], brain=brain)
