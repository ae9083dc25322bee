from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embeddings.writer import EmbeddingWriter
from training.errors import RunError
from training.normalization import fit_statistics
from training.recipe import Recipe
from training.samples import (
    Batch,
    TargetTable,
    TrialTable,
    average_batches,
    count_batches,
    draw_batches,
)


def open_table(brain: Any, split: str = "train", memory_bytes: int = 1 << 30) -> TrialTable:
    statistics = fit_statistics(brain.subject)
    return TrialTable(brain.subject, split, statistics, memory_bytes=memory_bytes)


@pytest.fixture
def uneven(make_brain: Callable[..., Any]) -> TrialTable:
    """Two images of three repeats, one of two, one of one."""
    table = open_table(make_brain(n_train=4))
    table.n_repeats = np.array([3, 1, 2, 3])
    table.trials_of_image[1, 1:] = table.trials_of_image[1, 0]
    table.trials_of_image[2, 2:] = table.trials_of_image[2, 0]
    return table


@pytest.mark.parametrize("repeats", ["single", "average", "random"])
def test_a_batch_holds_an_image_at_most_once_and_an_epoch_all(
    make_brain: Callable[..., Any], small_recipe: Callable[..., Recipe], repeats: str
) -> None:
    table, recipe = open_table(make_brain(n_train=21)), small_recipe(f"data.repeats={repeats}").data
    batches = list(draw_batches(table, recipe, batch_size=8, rng=np.random.default_rng(0)))
    assert len(batches) == count_batches(table, recipe, batch_size=8)
    for batch in batches:
        assert len(np.unique(batch.images)) == len(batch.images) == 7
        np.testing.assert_allclose(batch.weights.sum(axis=1), 1, rtol=1e-6)
        shown = table.image_ids[batch.images]
        assert (np.isin(batch.trials, table.trials_of_image[batch.images])).all()
        assert len(shown) == len(batch.trials)
    times = 3 if repeats == "single" else 1
    images = np.concatenate([batch.images for batch in batches])
    assert (np.bincount(images) == times).all()
    if repeats == "single":
        trials = np.concatenate([batch.trials[:, 0] for batch in batches])
        assert np.array_equal(np.sort(trials), np.arange(len(table.rows)))


@pytest.mark.parametrize(("repeats", "n_batches"), [("single", 4), ("random", 2)])
def test_missing_repeats_are_never_used(
    uneven: TrialTable, small_recipe: Callable[..., Recipe], repeats: str, n_batches: int
) -> None:
    recipe = small_recipe(f"data.repeats={repeats}").data
    batches = list(draw_batches(uneven, recipe, batch_size=3, rng=np.random.default_rng(0)))
    # single: passes of 4, 3 and 2 images
    assert len(batches) == count_batches(uneven, recipe, batch_size=3) == n_batches
    for batch in batches:
        used = (batch.weights > 0).sum(axis=1)
        assert (used <= uneven.n_repeats[batch.images]).all()
    if repeats == "single":
        trials = np.concatenate([batch.trials[:, 0] for batch in batches])
        assert len(trials) == len(np.unique(trials)) == 9


def test_random_shares_differ_from_epoch_to_epoch_and_follow_the_seed(
    make_brain: Callable[..., Any], small_recipe: Callable[..., Recipe]
) -> None:
    table, recipe = open_table(make_brain()), small_recipe("data.repeats=random").data

    def weights(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return next(draw_batches(table, recipe, batch_size=8, rng=rng)).weights

    np.testing.assert_array_equal(weights(1), weights(1))
    assert not np.allclose(weights(1), weights(2))


def test_repeats_are_averaged_after_normalization(make_brain: Callable[..., Any]) -> None:
    brain = make_brain()
    subject, statistics = brain.subject, fit_statistics(brain.subject)
    table = open_table(brain, "test")
    combined = np.concatenate([table.combine(b) for b in average_batches(table, batch_size=5)])
    shown, sessions = (subject.trials[name].to_numpy() for name in ("image_id", "session"))
    for i, image_id in enumerate(table.image_ids):
        rows = np.flatnonzero(shown == image_id)
        z = statistics.apply(subject.voxels[rows], sessions[rows])
        np.testing.assert_allclose(combined[i], z.mean(axis=0), rtol=1e-4, atol=1e-5)


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


def test_a_batch_of_single_trials_is_those_trials(make_brain: Callable[..., Any]) -> None:
    table = open_table(make_brain())
    batch = Batch(np.array([0, 1]), np.array([[4], [9]]), np.ones((2, 1), np.float32))
    np.testing.assert_array_equal(table.combine(batch), table.read(np.array([4, 9])))
