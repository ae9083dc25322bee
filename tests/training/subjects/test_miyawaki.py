from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from training.errors import SourceError
from training.subjects.miyawaki import SIDE, identify_figures, import_miyawaki

LETTER_R = np.zeros((SIDE, SIDE), dtype=np.uint8)
LETTER_R[2, 3:7] = LETTER_R[2:7, 3] = 1
SQUARE = np.zeros((SIDE, SIDE), dtype=np.uint8)
SQUARE[3:7, 3:7] = 1


@pytest.fixture
def file(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A file of the published layout: two figures, each shown twice."""
    shown = [SQUARE, LETTER_R, LETTER_R, SQUARE]
    patches = np.stack([figure.ravel(order="F") for figure in shown], axis=1)
    path = tmp_path / "V1_mean_figure.mat"
    savemat(path, {"R2": rng.standard_normal((6, 4)), "I2": patches})
    return path


def test_figures_stand_upright_and_are_found_by_their_patches(file: Path, tmp_path: Path) -> None:
    subject = import_miyawaki(file.parent, tmp_path / "s", test_figure=1)
    assert subject.trials["image_id"].to_pylist() == [1, 0, 0, 1]
    assert subject.captions() == {0: "letter r", 1: "square"}
    with Image.open(subject.image(0)) as picture:
        small = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST))
        assert picture.size == (160, 160)
    np.testing.assert_array_equal(small, LETTER_R * 255)
    assert subject.image_ids("test").tolist() == [1]
    assert subject.image_ids("train").tolist() == [0]


def test_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test_figure is 2, expected 0 to 1"):
        import_miyawaki(file, tmp_path / "s", test_figure=2)
    savemat(file, {"R2": np.zeros((6, 4)), "I2": np.full((100, 4), 2)})
    with pytest.raises(SourceError, match=r"with patches of 0 and 1"):
        import_miyawaki(file, tmp_path / "s", test_figure=0)
    savemat(file, {"R2": np.zeros((6, 4))})
    with pytest.raises(SourceError, match=r"holds \{'R2': \(6, 4\)\}, expected R2"):
        import_miyawaki(file, tmp_path / "s", test_figure=0)
    file.write_bytes(b"not a MATLAB file, but long enough to look at" * 8)
    with pytest.raises(SourceError, match=r"can't be read as a MATLAB 5 file"):
        import_miyawaki(file, tmp_path / "s", test_figure=0)
    with pytest.raises(SourceError, match=r"missing.mat can't be read"):
        import_miyawaki(file.with_name("missing.mat"), tmp_path / "s", test_figure=0)


def test_the_real_figures_decode_from_the_real_voxels(shared_data: Path, tmp_path: Path) -> None:
    """Ridge to pixels, each figure left out: pixel correlation well above a mismatched figure's."""
    matched, mismatched = [], []
    for test_figure in range(10):
        subject = import_miyawaki(
            shared_data / "fmri/miyawaki2008", tmp_path / str(test_figure), test_figure=test_figure
        )
        assert (subject.n_trials, subject.n_voxels) == (80, 797)
        figures = []
        for image_id in range(10):
            with Image.open(subject.image(image_id)) as picture:
                figures.append(np.asarray(picture)[8::16, 8::16].ravel() / 255)
        pixels = np.array(figures)
        train, test = subject.trial_rows("train"), subject.trial_rows("test")
        assert (len(train), len(test)) == (72, 8)
        x = subject.voxels[train].astype(float)
        y = pixels[subject.trials["image_id"].to_numpy()[train]]
        weights = np.linalg.solve(
            (x - x.mean(0)) @ (x - x.mean(0)).T + 100 * np.eye(len(x)), y - y.mean(0)
        )
        average = subject.voxels[test].mean(axis=0) - x.mean(0)
        decoded = average @ (x - x.mean(0)).T @ weights + y.mean(0)
        correlation = [np.corrcoef(decoded, figure)[0, 1] for figure in pixels]
        matched.append(correlation.pop(test_figure))
        mismatched.append(np.mean(correlation))
    assert set(subject.captions().values()) >= {f"letter {c}" for c in "neuro"} | {"plus", "X"}
    assert np.mean(matched) > 0.78 and np.mean(mismatched) < 0.6


def test_patches_are_columns_of_the_figure() -> None:
    patches = LETTER_R.ravel(order="F")[:, None]
    figures, image_ids = identify_figures(patches)
    np.testing.assert_array_equal(figures[0], LETTER_R)
    assert image_ids.tolist() == [0]
