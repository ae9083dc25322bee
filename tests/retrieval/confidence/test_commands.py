from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from index_builder.deletion import delete_rows
from retrieval.confidence.artefact import Confidence
from retrieval.confidence.commands import confidence
from retrieval.errors import ConfidenceError
from retrieval.searching.engine import SearchEngine
from retrieval.searching.queries import QuerySet


def call(*arguments: str) -> str:
    result = CliRunner().invoke(confidence, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_fit_and_check(
    index: Path, validation: QuerySet, test_set: QuerySet, tmp_path: Path
) -> None:
    out, curve = str(tmp_path / "confidence"), str(tmp_path / "test.svg")
    facts = json.loads(call("fit", str(index), validation.label, out, "--seed", "2", "--json"))
    opened = Confidence.open(out, SearchEngine.open(index))
    assert facts["model"] == opened.model.to_dict()
    assert facts["fingerprint"] == opened.manifest["fingerprint"]
    assert facts["random_pairs"]["seed"] == 2
    assert facts["cross_validation"]["n_queries"] == 200
    checked = json.loads(call("check", str(index), test_set.label, out, "--plot", curve, "--json"))
    assert checked["n_queries"] == 400 and checked["plot"] == curve
    assert Path(curve).read_text().count("<circle") == len(checked["confidence"]["bins"])
    lines = call("check", str(index), test_set.label, out).splitlines()
    share = f"{checked['n_right']} ({checked['n_right'] / 4:.1f} %)"
    assert lines[0] == f"400 queries of 400 images: the first hit is the seen image for {share}"
    loss = checked["confidence"]["log_loss"]
    told = f"{loss['value']:.3f} [{loss['low']:.3f}, {loss['high']:.3f}]"
    assert any(line.startswith("confidence ") and told in line for line in lines)


def test_people_are_told_what_was_left_out(
    index: Path, validation: QuerySet, tmp_path: Path
) -> None:
    delete_rows(index, np.array([0, 1]))
    text = call("fit", str(index), validation.label, str(tmp_path / "confidence"))
    assert "2 of them saw an image that the index doesn't hold: wrong" in text
    assert "next: voxseek confidence check" in text


def test_refusals(index: Path, test_set: QuerySet, tmp_path: Path) -> None:
    runner, out = CliRunner(), str(tmp_path / "out")
    result = runner.invoke(confidence, ["fit", str(index), test_set.label, out])
    assert isinstance(result.exception, ConfidenceError)
    (tmp_path / "out").mkdir()
    wrong = ["check", str(index), test_set.label, out, "--plot", "curve.png"]
    result = runner.invoke(confidence, wrong)
    assert result.exit_code == 2 and "curve.png should end in .svg" in result.output


@pytest.mark.parametrize("name", ["fit", "check"])
def test_help_shows_an_example_and_loads_nothing_heavy(name: str) -> None:
    script = (
        f"from retrieval.confidence.commands import confidence; confidence(['{name}', '--help'])"
    )
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", script],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Example:" in finished.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in finished.stderr.splitlines()}
    assert "click" in loaded and not {"numpy", "pyarrow", "faiss", "torch"} & loaded
