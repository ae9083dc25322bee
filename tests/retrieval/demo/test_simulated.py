from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.demo.simulated import run_demo
from retrieval.demo.stages import Stages
from retrieval.errors import DemoError

QUICK = {
    "overrides": ("train.epochs=2", "model.latent_dim=32", "prior.depth=1", "prior.width=32"),
    "decoder_overrides": ("train.steps=3", "train.batch_size=8", "network.channels=8"),
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(60):
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 64)).save(folder / f"{number:02}.png")
    return folder


def checksums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "report.json"
    }


@pytest.mark.slow
def test_the_demo_goes_from_pictures_to_a_gallery_and_can_be_resumed(
    photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    report = run_demo(out, images=photographs, seed=1, control=True, **QUICK)
    facts = json.loads((out / "report.json").read_text())
    assert facts == json.loads(json.dumps(report.to_dict()))
    assert report.n_pictures == 60 and report.identification.pool_size == 20
    assert report.design.startswith("flat") and report.recall.recall[10].value == 1
    assert set(report.comparison.expected) == set(report.comparison.fractions) == {20}
    assert 0.5 < report.comparison.expected[20] <= 1
    assert 0 <= report.n_found_first <= report.n_found <= 20
    text = "\n".join(report.lines())
    for words in (
        "brain→image",
        "ideal observer",
        "shuffled labels",
        "recall@10",
        "drawings:",
        "gallery:",
    ):
        assert words in text
    assert report.gallery.read_text().count("<article") == 20
    assert len(list((out / "reconstructions" / "images").glob("*.png"))) == 20
    assert report.drawings.sheet.is_file()
    assert 0 <= report.drawings.two_way.low <= report.drawings.two_way.high <= 1

    before = checksums(out)
    shutil.rmtree(out / "predictions")
    (out / "results" / "results.json").unlink()
    again = run_demo(out, images=photographs, seed=1, control=True, **QUICK)
    assert set(again.seconds) >= {"predict", "search"} and "train" not in again.seconds
    assert checksums(out) == before


def test_a_folder_begun_with_other_options_is_refused(tmp_path: Path) -> None:
    Stages(tmp_path / "demo", {"seed": 0})
    Stages(tmp_path / "demo", {"seed": 0})
    with pytest.raises(DemoError, match="seed was 0 and is now 1"):
        Stages(tmp_path / "demo", {"seed": 1})


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DemoError, match="is not empty and no demo began there"):
        Stages(tmp_path, {"seed": 0})


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    with pytest.raises(DemoError, match="holds 1 pictures, expected at least 40"):
        run_demo(tmp_path / "demo", images=folder)
