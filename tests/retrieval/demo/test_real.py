from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import cli
from retrieval.demo.real import N_FIGURES, run_real_demo
from retrieval.errors import DemoError


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


@pytest.mark.slow
def test_real_fmri_by_another_recipe(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "fmri" / "miyawaki2008"
    if not source.is_dir():
        pytest.skip(f"real data absent: no folder {source}")
    out = tmp_path / "ridge"
    report = run_real_demo(
        out, source, recipe_name="linear", overrides=("data.memory=1GiB", "model.latent_dim=8")
    )
    assert report.averaged.brain_to_image.rate(2).expected.low > 0.5
    with pytest.raises(DemoError, match="begun with other options: recipe was"):
        run_real_demo(out, source)


def test_a_recipe_is_for_real_fmri_only(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.assemble(), ["demo", str(tmp_path / "d"), "--recipe", "tiny"])
    assert result.exit_code == 2
    assert "--recipe and --set go with --real" in result.output
