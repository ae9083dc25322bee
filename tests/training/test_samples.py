from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embeddings.writer import EmbeddingWriter
from training.errors import RunError
from training.normalization import fit_statistics
from training.samples import (
    Samples,
    TargetTable,
    TrialTable,
    average_batches,
    count_batches,
    draw_batches,
)


def open_table(brain: Any, split: str = "train", memory_bytes: int = 1 << 30) -> TrialTable:
    subject = brain.subject
    statistics = fit_statistics(subject, subject.trial_rows("train"))
    rows = subject.trial_rows(split)
    return TrialTable(subject, rows, statistics, memory_bytes=memory_bytes)


@pytest.fixture
def uneven(make_brain: Callable[..., Any]) -> Samples:
    """Two images of three repeats, one of two, one of one."""
    table = open_table(make_brain(n_train=4))
    table.n_repeats = np.array([3, 1, 2, 3])
    table.trials_of_image[1, 1:] = table.trials_of_image[1, 0]
    table.trials_of_image[2, 2:] = table.trials_of_image[2, 0]
    return Samples([table])


@pytest.mark.parametrize("repeats", ["single", "one", "average", "random"])
def test_a_batch_holds_an_image_at_most_once_and_an_epoch_all(
    make_brain: Callable[..., Any], repeats: str
) -> None:
    table = open_table(make_brain(n_train=21))
    samples = Samples([table])
    batches = list(draw_batches(samples, repeats, batch_size=8, rng=np.random.default_rng(0)))
    assert len(batches) == count_batches(samples, repeats, batch_size=8)
    for batch in batches:
        assert len(np.unique(batch.images)) == len(batch.images) == 7
        np.testing.assert_allclose(batch.weights.sum(axis=1), 1, rtol=1e-6)
        own = table.trials_of_image[batch.images]
        assert (batch.trials[:, :, None] == own[:, None, :]).any(axis=2).all()
    times = 3 if repeats == "single" else 1
    images = np.concatenate([batch.images for batch in batches])
    assert (np.bincount(images) == times).all()
    if repeats == "single":
        trials = np.concatenate([batch.trials[:, 0] for batch in batches])
        assert np.array_equal(np.sort(trials), np.arange(len(table.rows)))


@pytest.mark.parametrize(("repeats", "n_batches"), [("single", 4), ("one", 2), ("random", 2)])
def test_missing_repeats_are_never_used(uneven: Samples, repeats: str, n_batches: int) -> None:
    batches = list(draw_batches(uneven, repeats, batch_size=3, rng=np.random.default_rng(0)))
    # single: passes of 4, 3 and 2 images
    assert len(batches) == count_batches(uneven, repeats, batch_size=3) == n_batches
    for batch in batches:
        used = (batch.weights > 0).sum(axis=1)
        assert (used <= uneven.n_repeats[batch.images]).all()
    if repeats == "single":
        trials = np.concatenate([batch.trials[:, 0] for batch in batches])
        assert len(trials) == len(np.unique(trials)) == 9


def test_one_trial_of_each_image_is_another_one_in_another_epoch(
    make_brain: Callable[..., Any],
) -> None:
    samples = Samples([open_table(make_brain(n_train=21))])

    def drawn(seed: int) -> dict[int, int]:
        rng = np.random.default_rng(seed)
        batches = draw_batches(samples, "one", batch_size=8, rng=rng)
        return {i: int(t) for b in batches for i, t in zip(b.images, b.trials[:, 0], strict=True)}

    assert drawn(1) == drawn(1)
    assert drawn(1).keys() == drawn(2).keys() and drawn(1) != drawn(2)


@pytest.mark.parametrize("repeats", ["single", "random"])
def test_an_image_that_two_subjects_saw_is_never_twice_in_a_batch(
    make_brain: Callable[..., Any], repeats: str
) -> None:
    tables = [open_table(make_brain(name, n_train=n)) for name, n in (("a", 20), ("b", 11))]
    samples = Samples(tables)  # the images of b are among those of a
    assert len(samples.image_ids) == 20 and len(samples.image_of_view) == 31
    batches = list(draw_batches(samples, repeats, batch_size=8, rng=np.random.default_rng(0)))
    assert len(batches) == count_batches(samples, repeats, batch_size=8)
    seen: set[tuple[int, int, int]] = set()
    for batch in batches:
        assert len(np.unique(batch.images)) == len(batch.images)
        assert (np.diff(batch.subjects) >= 0).all()
        voxels = samples.voxels(batch)
        for subject, table in enumerate(tables):
            rows = batch.rows_of(subject)
            assert (batch.subjects[rows] == subject).all()
            expected = table.combine(batch.trials[rows], batch.weights[rows])
            np.testing.assert_array_equal(voxels[subject], expected)
            own = table.rows[batch.trials[rows]]
            ids = table.image_ids[
                np.searchsorted(table.image_ids, samples.image_ids[batch.images[rows]])
            ]
            assert np.array_equal(ids, samples.image_ids[batch.images[rows]])
            seen |= {(subject, int(i), int(t)) for i, t in zip(ids, own[:, 0], strict=True)}
    assert len(seen) == (93 if repeats == "single" else 31)


def test_random_shares_differ_from_epoch_to_epoch_and_follow_the_seed(
    make_brain: Callable[..., Any],
) -> None:
    samples = Samples([open_table(make_brain())])

    def weights(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return next(draw_batches(samples, "random", batch_size=8, rng=rng)).weights

    np.testing.assert_array_equal(weights(1), weights(1))
    assert not np.allclose(weights(1), weights(2))


def test_repeats_are_averaged_after_normalization(make_brain: Callable[..., Any]) -> None:
    brain = make_brain()
    subject = brain.subject
    statistics = fit_statistics(subject, subject.trial_rows("train"))
    table = open_table(brain, "test")
    samples = Samples([table])
    combined = np.concatenate(
        [samples.voxels(b)[0] for b in average_batches(samples, batch_size=5)]
    )
    shown, sessions = (subject.trials[name].to_numpy() for name in ("image_id", "session"))
    for i, image_id in enumerate(table.image_ids):
        rows = np.flatnonzero(shown == image_id)
        z = statistics.apply(subject.voxels[rows], sessions[rows])
        np.testing.assert_allclose(combined[i], z.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_mixing_is_a_convex_combination_with_the_partner(make_brain: Callable[..., Any]) -> None:
    samples = Samples([open_table(make_brain())])
    rng = np.random.default_rng(3)
    batch = next(draw_batches(samples, "random", batch_size=4, rng=rng))
    (voxels,) = samples.voxels(batch)
    lam, partner = np.array([1.0, 0.25, 0.5, 0.0], np.float32), np.array([2, 0, 1, 3])
    (mixed,) = samples.voxels(batch.mixed(lam, partner))
    expected = lam[:, None] * voxels + (1 - lam)[:, None] * voxels[partner]
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)
    (some,) = samples.voxels(batch.mixed(lam, partner).take(np.array([1, 3])))
    np.testing.assert_allclose(some, expected[[1, 3]], rtol=1e-4, atol=1e-5)


def test_voxels_and_targets_read_from_disk_are_the_same_numbers(
    make_brain: Callable[..., Any],
) -> None:
    brain = make_brain()
    held, lazy = open_table(brain), open_table(brain, memory_bytes=0)
    trials = np.array([5, 0, 5, 17])
    np.testing.assert_array_equal(held.read(trials), lazy.read(trials))
    assert lazy.memory_left == 0
    assert held.memory_left == (1 << 30) - 180 * 50 * 4
    images = np.array([3, 1, 3])
    np.testing.assert_array_equal(
        TargetTable(brain.targets, held.image_ids, memory_bytes=1 << 30).read(images),
        TargetTable(brain.targets, held.image_ids, memory_bytes=0).read(images),
    )


def test_targets_are_joined_by_image_id(make_brain: Callable[..., Any]) -> None:
    brain = make_brain(tokens=2)
    table = open_table(brain)
    found = TargetTable(brain.targets, table.image_ids, memory_bytes=0).read(np.array([4]))
    row = brain.targets.metadata()["image_id"].to_pylist().index(int(table.image_ids[4]))
    np.testing.assert_array_equal(found, brain.targets.take(np.array([row])))
    assert found.shape == (1, 2, 12)


def test_missing_targets_are_named(make_brain: Callable[..., Any]) -> None:
    targets = make_brain().targets
    with pytest.raises(RunError, match="no target for image_id 1, 2, 3, 4, 5 and 2 more of the 8"):
        TargetTable(targets, np.array([1, 2, 3, 4, 5, 6, 8, 100]), memory_bytes=0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_id": [7, 7]}, "several targets for image_id 7; expected one an image"),
        ({"picture": [7, 8]}, r"no metadata column image_id \(it has picture\)"),
    ],
)
def test_ambiguous_targets_are_refused(
    make_brain: Callable[..., Any], tmp_path: Any, columns: dict[str, Any], message: str
) -> None:
    space = make_brain().targets.space
    with EmbeddingWriter(tmp_path / "twice", space, command="test", details={}) as writer:
        writer.write(np.eye(2, 12, dtype=np.float32), pa.table(columns))
        twice = writer.finish()
    with pytest.raises(RunError, match=message):
        TargetTable(twice, np.array([7]), memory_bytes=0)


def test_single_trials_are_those_trials(make_brain: Callable[..., Any]) -> None:
    table = open_table(make_brain())
    combined = table.combine(np.array([[4], [9]]), np.ones((2, 1), np.float32))
    np.testing.assert_array_equal(combined, table.read(np.array([4, 9])))
