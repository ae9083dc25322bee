"""`voxseek data info --plot`: what is drawn is what the folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from PIL import Image

from index_builder.embeddings.figure import Bars, Histogram, Thumbnails
from training.subjects.commands import data
from training.subjects.describe import describe
from training.subjects.noise_ceiling import estimate_ncsnr, noise_ceiling
from training.subjects.overview import draw_overview
from training.subjects.subject import Subject, write_subject
from training.subjects.trials import build_trials

pytest.importorskip("matplotlib")


@pytest.fixture
def subject(tmp_path: Path, rng: np.random.Generator) -> Subject:
    for image_id in range(8):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(
            tmp_path / f"{image_id}.png"
        )
    shown = np.repeat(np.arange(8), 3)
    signal = rng.normal(size=(8, 5))
    return write_subject(
        tmp_path / "subject",
        name="viewer",
        voxels=signal[shown] + 0.3 * rng.normal(size=(24, 5)),
        trials=build_trials(
            shown,
            np.arange(24) // 12,
            {i: ("test" if i < 2 else "validation" if i < 3 else "train") for i in range(8)},
        ),
        rois={"V1": np.array([1, 1, 1, 0, 0], bool), "V2": np.array([0, 0, 0, 1, 0], bool)},
        images=pa.table(
            {
                "image_id": range(8),
                "path": [str(tmp_path / f"{i}.png") for i in range(8)],
                "caption": [None] * 8,
            }
        ),
        voxel_table=pa.table({"ncsnr": np.array([0.1, 0.2, 0.3, np.nan, 0.5], np.float32)}),
        command="test",
        details={},
    )


def test_panels_hold_the_counts_and_ceilings(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}

    def keep(panels: Any, path: Any, *, title: str, subtitle: str) -> None:
        drawn.update({panel.title: panel for panel in panels}, title=title, subtitle=subtitle)

    monkeypatch.setattr("training.subjects.overview.draw_panels", keep)
    draw_overview(subject, describe(subject), tmp_path / "plot.png")
    assert drawn["title"] == "viewer"
    assert drawn["subtitle"] == "24 trials of 5 voxels, 2 sessions"
    splits, repeats = drawn["Images by split"], drawn["Images by number of trials"]
    assert isinstance(splits, Bars) and isinstance(repeats, Bars)
    assert splits.values == {"train": 5, "validation": 1, "test": 2}
    assert repeats.values == {"3 x": 8}
    assert drawn["Voxels by region"].values == {"V1": 3, "V2": 1}
    estimated, told = drawn["Noise ceiling, from repeats"], drawn["Noise ceiling, by its source"]
    assert isinstance(estimated, Histogram)
    np.testing.assert_allclose(estimated.values, 100 * noise_ceiling(estimate_ncsnr(subject), 1))
    np.testing.assert_allclose(told.values[2], 100 * 0.09 / 1.09, rtol=1e-6)
    assert len(told.values) == 4
    pictures = drawn["Pictures that were seen"]
    assert isinstance(pictures, Thumbnails) and len(pictures.pictures) == 5


def test_the_command_writes_a_picture(subject: Subject, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    done = CliRunner().invoke(data, ["info", str(subject.path), "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    assert f"drawn: {plot}" in done.output
    with Image.open(plot) as picture:
        assert picture.format == "PNG" and picture.width > 1500
