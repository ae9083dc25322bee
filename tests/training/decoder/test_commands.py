from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from training.decoder.commands import decoder
from training.decoder.recipe import load_decoder_recipe

Maker = Callable[..., Any]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(decoder, ["train", *map(str, arguments)])


def test_a_decoder_is_trained_and_told_of(
    make_lab: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    lab, recipe = make_lab(), tmp_path / "recipe.toml"
    recipe.write_text(small_recipe().to_toml())
    arguments = [lab.targets.path, "--recipe", recipe, "--out", tmp_path / "decoder", "--json"]
    finished = call(*arguments, "--exclude", lab.subject.path, "--set", "train.steps=4")
    assert finished.exit_code == 0, finished.output
    facts = json.loads(finished.stdout)
    manifest = json.loads((tmp_path / "decoder" / "decoder.json").read_text())
    for field in ("n_steps", "n_pictures", "n_excluded", "validation_loss", "n_parameters"):
        assert facts[field] == manifest[field], field
    assert (facts["n_steps"], facts["n_pictures"], facts["n_excluded"]) == (4, 60, 12)
    assert manifest["excluded"][0]["name"] == "lab"
    again = call(*arguments, "--images", lab.subject.path, "--set", "train.steps=4", "--resume")
    assert json.loads(again.stdout) | {"seconds": 0} == facts | {"seconds": 0}


@pytest.mark.parametrize("choice", [[], ["--all-pictures", "--exclude"]])
def test_what_must_not_be_trained_on_is_said_either_way(
    make_lab: Maker, tmp_path: Path, choice: list[str]
) -> None:
    lab = make_lab(n_train=3, n_validation=0, n_test=3)
    subject = [lab.subject.path] if choice else []
    refused = call(lab.targets.path, "--out", tmp_path / "decoder", *choice, *subject)
    assert refused.exit_code == 2
    assert "say which pictures will be reconstructed" in refused.output
    assert call("--out", tmp_path / "decoder").exit_code == 2


def test_recipes_are_listed_and_shown() -> None:
    assert set(json.loads(call("--list", "--json").stdout)) == {"flow_tiny", "flow_latent"}
    shown = call("--dry-run", "--set", "train.steps=5", "--json")
    expected = load_decoder_recipe("flow_tiny", ("train.steps=5",))
    assert json.loads(shown.stdout) == expected.to_dict()
