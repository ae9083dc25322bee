from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embeddings.errors import BadRowError, SpaceMismatchError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from retrieval.benchmarks.nway import identify, identify_scores
from retrieval.errors import BenchmarkError

MakeFolder = Callable[..., EmbeddingFolder]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    def make(
        name: str, embeddings: np.ndarray, *, model: str = "test/encoder", **columns: object
    ) -> EmbeddingFolder:
        tokens, dim = (1, embeddings.shape[1]) if embeddings.ndim == 2 else embeddings.shape[1:]
        layer = "final" if embeddings.ndim == 2 else "hidden"
        space = EmbeddingSpace(model, layer, tokens, dim, unit_norm=False)
        with EmbeddingWriter(
            tmp_path / name, space, command="test", details={}, dtype="float32"
        ) as writer:
            writer.write(embeddings.astype(np.float32), pa.table(columns))
            return writer.finish()

    return make


def noisy_pair(
    make_folder: MakeFolder, rng: np.random.Generator, n: int = 60, noise: float = 3.0
) -> tuple[EmbeddingFolder, EmbeddingFolder]:
    images = rng.normal(size=(n, 16))
    brains = images + noise * rng.normal(size=images.shape)
    ids = 7 * np.arange(n)
    return make_folder("brain", brains, image_id=ids), make_folder("image", images, image_id=ids)


def test_a_folder_against_itself_is_always_found(
    make_folder: MakeFolder, rng: np.random.Generator
) -> None:
    folder = make_folder("same", rng.normal(size=(40, 12)), image_id=np.arange(40))
    report = identify(folder, folder, n_way=(10, "all"), n_draws=5, n_resamples=50)
    for direction in report.directions:
        assert {rate.expected.value for rate in direction.top_rates} == {1.0}
        assert direction.median_rank.value == 1.0
        assert direction.mean_reciprocal_rank.value == 1.0
    assert report.brain_to_image.rate(10).drawn.mean == 1.0
    assert report.brain_to_image.rate(40).drawn is None


def test_unrelated_embeddings_are_found_by_chance(
    make_folder: MakeFolder, rng: np.random.Generator
) -> None:
    n = 400
    brain = make_folder("brain", rng.normal(size=(n, 24)), image_id=np.arange(n))
    image = make_folder("image", rng.normal(size=(n, 24)), image_id=np.arange(n))
    report = identify(brain, image, n_way=(20, "all"))
    for direction in report.directions:
        for top in (1, 5, 10):
            rate = direction.rate(20, top)
            assert rate.expected.low <= rate.chance <= rate.expected.high


def test_cosines_are_those_of_the_flattened_embeddings(
    make_folder: MakeFolder, rng: np.random.Generator
) -> None:
    images = rng.normal(size=(30, 5, 4)).astype(np.float32)
    brains = (images + 1.5 * rng.normal(size=images.shape)).astype(np.float32)
    ids = np.arange(30)
    report = identify(
        make_folder("brain", brains, image_id=ids),
        make_folder("image", images, image_id=ids),
        n_way=("all",),
        n_resamples=10,
    )
    brain, image = (side.reshape(30, 20).astype(np.float64) for side in (brains, images))
    cosines = (brain @ image.T) / np.outer(
        np.linalg.norm(brain, axis=1), np.linalg.norm(image, axis=1)
    )
    others = ~np.eye(30, dtype=bool)
    truth = np.diagonal(cosines)
    ranks = ((cosines >= truth[:, None]) & others).sum(axis=1)
    np.testing.assert_array_equal(report.brain_to_image.n_beating, ranks)
    ranks = ((cosines >= truth[None, :]) & others).sum(axis=0)
    np.testing.assert_array_equal(report.image_to_brain.n_beating, ranks)
    assert ranks.max() > 0


def test_memory_limit_changes_nothing_but_memory(
    make_folder: MakeFolder, rng: np.random.Generator
) -> None:
    brain, image = noisy_pair(make_folder, rng)
    whole = identify(brain, image, n_way=(8, "all"), n_resamples=20)
    tiles = identify(brain, image, n_way=(8, "all"), n_resamples=20, memory_bytes=4000)
    assert whole.to_dict() == tiles.to_dict()


def test_order_of_rows_does_not_matter(make_folder: MakeFolder, rng: np.random.Generator) -> None:
    brain, image = noisy_pair(make_folder, rng)
    forth, back = rng.permutation(60), rng.permutation(60)
    ids = 7 * np.arange(60)
    shuffled_brain = make_folder("brain2", brain.take(forth), image_id=ids[forth])
    shuffled_image = make_folder("image2", image.take(back), image_id=ids[back])
    expected = identify(brain, image, n_way=(8, "all"), n_resamples=50).to_dict()
    found = identify(shuffled_brain, shuffled_image, n_way=(8, "all"), n_resamples=50).to_dict()
    for key in ("brain_to_image", "image_to_brain", "raw"):
        assert expected[key] == found[key]


def test_unpredicted_targets_are_no_distractors(
    make_folder: MakeFolder, rng: np.random.Generator
) -> None:
    brain, image = noisy_pair(make_folder, rng)
    half = make_folder("half", brain.take(np.arange(0, 60, 2)), image_id=14 * np.arange(30))
    report = identify(half, image, n_way=("all",), n_resamples=10)
    alone = make_folder("alone", image.take(np.arange(0, 60, 2)), image_id=14 * np.arange(30))
    assert report.pool_size == 30
    np.testing.assert_array_equal(
        report.brain_to_image.n_beating,
        identify(half, alone, n_way=("all",), n_resamples=10).brain_to_image.n_beating,
    )


def test_drawn_pools_agree_with_the_closed_form(
    make_folder: MakeFolder, rng: np.random.Generator
) -> None:
    brain, image = noisy_pair(make_folder, rng, n=100)
    report = identify(brain, image, n_way=(10, 30), n_draws=1000, n_resamples=10)
    for direction in report.directions:
        for rate in direction.top_rates:
            assert 0.05 < rate.expected.value < 1
            error = abs(rate.drawn.mean - rate.expected.value)
            assert error < 4 * rate.drawn.standard_error


def test_copies_of_an_image_tie_and_fail(make_folder: MakeFolder, rng: np.random.Generator) -> None:
    embeddings = np.tile(rng.normal(size=(40, 700)), (2, 1))
    folder = make_folder("copies", embeddings, image_id=np.arange(80))
    # Each image is there twice: a sum rounded another way must not break the tie.
    report = identify(folder, folder, n_way=("all",), n_resamples=10, memory_bytes=300_000)
    for direction in report.directions:
        assert direction.n_beating.tolist() == [1] * 80
        assert direction.rate(80).expected.value == 0.0


def test_single_trials_are_queries_of_their_own(
    make_folder: MakeFolder, rng: np.random.Generator
) -> None:
    images = rng.normal(size=(20, 8))
    which = np.repeat(np.arange(20), 3)
    brains = images[which] + 1.5 * rng.normal(size=(60, 8))
    shuffle = rng.permutation(60)
    brain = make_folder(
        "brain",
        brains[shuffle],
        image_id=which[shuffle],
        trial=np.arange(60)[shuffle],
        n_trials=np.ones(60, np.int64),
    )
    image = make_folder("image", images, image_id=np.arange(20))
    report = identify(brain, image, n_way=(5, "all"), n_draws=200, n_resamples=100)
    assert report.pool_size == 20
    assert report.image_to_brain is None
    assert "single trials" in report.image_to_brain_absent
    assert report.n_trials_averaged == {1: 60}
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    scores = brains.astype(np.float32) @ unit.T
    beats = scores >= scores[np.arange(60), which][:, None]
    np.testing.assert_array_equal(report.brain_to_image.n_beating, beats.sum(axis=1) - 1)
    rate = report.brain_to_image.rate(5)
    assert abs(rate.drawn.mean - rate.expected.value) < 4 * rate.drawn.standard_error


def test_report_says_what_was_averaged(make_folder: MakeFolder, rng: np.random.Generator) -> None:
    brain = make_folder(
        "brain",
        rng.normal(size=(4, 6)),
        image_id=np.arange(4),
        n_trials=np.array([3, 3, 3, 2]),
        subject=["subj01"] * 4,
        split=["test"] * 4,
    )
    image = make_folder("image", rng.normal(size=(4, 6)), image_id=np.arange(4))
    report = identify(brain, image, n_way=("all",), n_resamples=5)
    assert report.n_trials_averaged == {2: 1, 3: 3}
    described = report.inputs["predictions"]
    assert described["name"] == "brain"
    assert described["fingerprint"] == brain.fingerprint
    assert (described["subject"], described["split"]) == (["subj01"], ["test"])


def test_scores_give_the_same_as_embeddings(
    make_folder: MakeFolder, rng: np.random.Generator
) -> None:
    brain, image = noisy_pair(make_folder, rng)
    rows = np.arange(60)
    unit = [folder.take(rows).astype(np.float64) for folder in (brain, image)]
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in unit]
    shuffle = rng.permutation(60)
    scores = (unit[0] @ unit[1].T)[np.ix_(shuffle, shuffle)]
    ready = identify_scores(scores, 7 * shuffle, source="cosines", n_way=(8, "all")).to_dict()
    embedded = identify(brain, image, n_way=(8, "all")).to_dict()
    for key in ("brain_to_image", "image_to_brain", "raw"):
        assert ready[key] == embedded[key]


def test_spaces_must_agree(make_folder: MakeFolder, rng: np.random.Generator) -> None:
    brain = make_folder("brain", rng.normal(size=(3, 4)), image_id=np.arange(3))
    image = make_folder("image", rng.normal(size=(3, 4)), image_id=np.arange(3), model="other")
    with pytest.raises(SpaceMismatchError, match="embedding spaces differ"):
        identify(brain, image)


@pytest.mark.parametrize(
    ("brain_columns", "image_columns", "match"),
    [
        ({"image_id": [1, 2, 9]}, {"image_id": [1, 2, 3]}, "image_id 9 is predicted but absent"),
        ({"image_id": [7, 8, 9]}, {"image_id": [1, 2, 3]}, "image_id 7, 8, 9 are predicted but"),
        ({"image_id": [1, 2, 2]}, {"image_id": [1, 2, 3]}, "image_id 2 is predicted more than"),
        ({"image_id": [1, 2, 3]}, {"image_id": [3, 2, 3]}, "image_id 1 is predicted but absent"),
        ({"image_id": [1, 2]}, {"image_id": [1, 2, 2]}, "image_id 2 is in .*image more than once"),
        ({"key": [1, 2, 3]}, {"image_id": [1, 2, 3]}, "brain has no metadata column 'image_id'"),
        ({"image_id": [1, 2, 3]}, {"key": [1, 2, 3]}, "image has no metadata column 'image_id'"),
        ({"image_id": [1, None, 3]}, {"image_id": [1, 2, 3]}, "'image_id' .* has 1 empty value"),
        ({"image_id": ["1", "2"]}, {"image_id": [1, 2, 3]}, "holds string, expected integers"),
        (
            {"image_id": [1, 1, 2], "trial": [4, 4, 5]},
            {"image_id": [1, 2, 3]},
            "image_id 1 is predicted twice from the same trial",
        ),
    ],
)
def test_sides_that_do_not_join_are_refused(
    make_folder: MakeFolder,
    rng: np.random.Generator,
    brain_columns: dict[str, list],
    image_columns: dict[str, list],
    match: str,
) -> None:
    n_brain, n_image = (len(next(iter(c.values()))) for c in (brain_columns, image_columns))
    brain = make_folder("brain", rng.normal(size=(n_brain, 4)), **brain_columns)
    image = make_folder("image", rng.normal(size=(n_image, 4)), **image_columns)
    with pytest.raises(BenchmarkError, match=match):
        identify(brain, image, n_way=("all",))


def test_many_images_are_not_all_named(make_folder: MakeFolder, rng: np.random.Generator) -> None:
    brain = make_folder("brain", rng.normal(size=(9, 4)), image_id=np.arange(9))
    image = make_folder("image", rng.normal(size=(1, 4)), image_id=[0])
    with pytest.raises(BenchmarkError, match="image_id 1, 2, 3, 4, 5 and 3 more are predicted"):
        identify(brain, image)


@pytest.mark.parametrize(("value", "what"), [(0.0, "a zero vector"), (np.nan, "NaN or infinite")])
def test_bad_embeddings_are_refused(
    make_folder: MakeFolder, tmp_path: Path, rng: np.random.Generator, value: float, what: str
) -> None:
    image = make_folder("image", rng.normal(size=(3, 4)), image_id=[5, 6, 7])
    good = make_folder("brain", rng.normal(size=(3, 4)), image_id=[7, 6, 5])
    part = next((tmp_path / "brain" / "img_emb").glob("*.npy"))
    stored = np.load(part, mmap_mode="r+")
    stored[2] = value
    stored.flush()
    with pytest.raises(BadRowError, match=rf"row 2 of .*brain \(image_id 5\) is {what}"):
        identify(good, image, n_way=("all",))


def test_n_way_must_fit_into_the_pool(make_folder: MakeFolder, rng: np.random.Generator) -> None:
    brain, image = noisy_pair(make_folder, rng)
    with pytest.raises(BenchmarkError, match="n_way is 300 and the pool has 60 images"):
        identify(brain, image)
    with pytest.raises(ValueError, match="n_way is 1, expected at least 2, or 'all'"):
        identify(brain, image, n_way=(1,))
    with pytest.raises(ValueError, match="n_way is empty"):
        identify(brain, image, n_way=())
    with pytest.raises(ValueError, match="n_draws is -1, expected 0 or more"):
        identify(brain, image, n_way=(5,), n_draws=-1)
    with pytest.raises(ValueError, match="memory_bytes is 100, expected at least"):
        identify(brain, image, n_way=(5,), memory_bytes=100)
    one = make_folder("one", rng.normal(size=(1, 16)), image_id=[0])
    with pytest.raises(BenchmarkError, match="the pool has 1 image, expected at least 2"):
        identify(one, image, n_way=("all",))


def test_the_whole_pool_asked_twice_is_reported_once(
    make_folder: MakeFolder, rng: np.random.Generator
) -> None:
    brain, image = noisy_pair(make_folder, rng)
    report = identify(brain, image, n_way=(60, "all"), n_resamples=5)
    assert [(r.n_way, r.top) for r in report.brain_to_image.top_rates] == [
        (60, 1), (60, 5), (60, 10),
    ]  # fmt: skip


def test_a_top_as_large_as_the_pool_is_not_reported(
    make_folder: MakeFolder, rng: np.random.Generator
) -> None:
    brain, image = noisy_pair(make_folder, rng)
    report = identify(brain, image, n_way=(5,), n_resamples=5)
    assert [rate.top for rate in report.brain_to_image.top_rates] == [1]


def test_no_draws_leave_the_closed_form(make_folder: MakeFolder, rng: np.random.Generator) -> None:
    brain, image = noisy_pair(make_folder, rng)
    rate = identify(brain, image, n_way=(8,), n_draws=0, n_resamples=5).brain_to_image.rate(8)
    assert rate.drawn is None
    assert rate.expected.low <= rate.expected.value <= rate.expected.high


def test_score_matrices_are_checked() -> None:
    with pytest.raises(ValueError, match=r"scores have shape \(3, 2\), expected \(3, 3\)"):
        identify_scores(np.zeros((3, 2)), np.arange(3), source="x")
    with pytest.raises(BenchmarkError, match="image_id 4 labels several rows"):
        identify_scores(np.zeros((3, 3)), np.array([4, 1, 4]), source="x")
    with pytest.raises(BenchmarkError, match="is NaN"):
        identify_scores(np.full((3, 3), np.nan), np.arange(3), source="x", n_way=("all",))
