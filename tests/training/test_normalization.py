from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from training.normalization import (
    SessionStatistics,
    fit_statistics,
    load_statistics,
    save_statistics,
)


def fake_subject(voxels: np.ndarray, sessions: list[int], splits: list[str]) -> Any:
    return SimpleNamespace(
        path=Path("subj"),
        voxels=voxels,
        n_voxels=voxels.shape[1],
        trials=pa.table({"session": pa.array(sessions, pa.int64())}),
        trial_rows=lambda split: np.flatnonzero(np.array(splits) == split),
    )


def fit_training(subject: Any) -> SessionStatistics:
    return fit_statistics(subject, subject.trial_rows("train"))


def test_training_trials_have_mean_0_and_deviation_1_in_each_session(
    make_brain: Callable[..., Any],
) -> None:
    subject = make_brain().subject
    rows = subject.trial_rows("train")
    sessions = subject.trials["session"].to_numpy()[rows]
    z = fit_training(subject).apply(subject.voxels[rows], sessions)
    for session in (0, 1, 2):
        np.testing.assert_allclose(z[sessions == session].mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(z[sessions == session].std(axis=0), 1, rtol=1e-4)


def test_test_and_validation_trials_change_nothing(rng: np.random.Generator) -> None:
    voxels = rng.normal(size=(9, 4)).astype(np.float32)
    splits = ["train"] * 5 + ["validation", "test", "test", "train"]
    sessions = [1, 1, 1, 2, 2, 1, 2, 1, 2]
    expected = fit_training(fake_subject(voxels, sessions, splits))
    voxels[5:8] = 1e4
    altered = fit_training(fake_subject(voxels, sessions, splits))
    for field in dataclasses.fields(SessionStatistics):
        np.testing.assert_array_equal(getattr(altered, field.name), getattr(expected, field.name))


def test_pooled_statistics_are_those_of_all_training_trials(rng: np.random.Generator) -> None:
    voxels = (100 + 30 * rng.normal(size=(10, 4))).astype(np.float32)
    found = fit_training(fake_subject(voxels, [1] * 3 + [4] * 7, ["train"] * 10))
    np.testing.assert_allclose(found.pooled_mean, voxels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.pooled_std, voxels.std(axis=0), rtol=1e-5)


def test_voxels_that_do_not_vary_are_not_divided_by_zero() -> None:
    voxels = np.array([[1, 5, 2], [1, 5, 3], [2, 5, 2], [4, 5, 3]], np.float32)
    found = fit_training(fake_subject(voxels, [1, 1, 2, 2], ["train"] * 4))
    z = found.apply(voxels, np.array([1, 1, 2, 2]))
    assert np.isfinite(z).all()
    assert (z[:, 1] == 0).all()  # constant everywhere
    assert found.std[0, 0] == pytest.approx(np.sqrt(1.5))  # constant in session 1: the pooled one


def test_an_unseen_session_falls_back_to_the_pooled_statistics(
    rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    voxels = rng.normal(3, 2, size=(20, 4)).astype(np.float32)
    found = fit_training(fake_subject(voxels, [1] * 20, ["train"] * 20))
    np.testing.assert_allclose(
        found.apply(voxels, np.full(20, 9)), (voxels - voxels.mean(0)) / voxels.std(0), rtol=1e-4
    )
    with caplog.at_level(logging.WARNING, "voxseek"):
        found.report_unseen(np.array([1, 9, 9]), where="subj")
    assert "subj: session 9 has no training trials" in caplog.text


def test_statistics_survive_their_file(rng: np.random.Generator, tmp_path: Path) -> None:
    voxels = rng.normal(size=(6, 4)).astype(np.float32)
    found = fit_training(fake_subject(voxels, [1, 1, 1, 2, 2, 2], ["train"] * 6))
    path = tmp_path / "normalization.safetensors"
    save_statistics(path, [found, SessionStatistics.identity(3)])
    again, nothing = load_statistics(path)
    for field in dataclasses.fields(SessionStatistics):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))
    np.testing.assert_array_equal(nothing.apply(voxels[:, :3], np.arange(6)), voxels[:, :3])
