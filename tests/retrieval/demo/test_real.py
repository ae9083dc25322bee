from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.demo.real import N_FIGURES, run_real_demo


@pytest.mark.slow
def test_real_fmri_goes_the_same_way(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "fmri" / "miyawaki2008"
    if not source.is_dir():
        pytest.skip(f"real data absent: no folder {source}")
    report = run_real_demo(tmp_path / "real", source, seed=3)
    assert report.averaged.pool_size == report.single.pool_size == N_FIGURES
    assert len(report.single.brain_to_image.n_beating) == 80
    assert report.averaged.n_trials_averaged == {8: 10}
    # A figure that training never saw: above chance in pairs, by the interval over figures.
    assert report.averaged.brain_to_image.rate(2).expected.low > 0.5
    assert report.gallery.read_text().count("<article") == N_FIGURES
    assert "no model has seen the figure" in "\n".join(report.lines())
