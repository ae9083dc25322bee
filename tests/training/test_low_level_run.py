"""A low-level run: latents of a VAE as targets, with and without a teacher."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from training.checkpoint import Run
from training.errors import RecipeError, RunError
from training.loop import train
from training.predict import predict
from training.recipe import Recipe, load_recipe

Maker = Callable[..., Any]
SMALL = (
    *("target.tokens=64", "model.latent_dim=48", "model.n_blocks=1", "model.start_channels=32"),
    *("model.start_side=2", "model.channels=32", "model.feature_dim=6", "model.stem_dropout=0.0"),
    *("train.epochs=3", "train.batch_size=16", "train.micro_batch_size=16", "train.n_threads=1"),
    *("model.block_dropout=0.0", "train.learning_rate=3e-3", "train.save_every_epochs=1"),
)


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    return lambda *overrides: load_recipe("mindeye_low_level", (*SMALL, *overrides))


@pytest.fixture
def brain(make_brain: Maker) -> Any:
    return make_brain(tokens=64, dim=4)


def features_of(folder: Path, brain: Any, seed: int) -> EmbeddingFolder:
    ids = brain.targets.metadata(columns=["image_id"])
    space = EmbeddingSpace("teacher", "hidden", 4, 6, unit_norm=False)
    rows = np.random.default_rng(seed).normal(size=(len(ids), 4, 6)).astype(np.float32)
    with EmbeddingWriter(folder, space, command="test", details={}) as writer:
        writer.write(rows, pa.table({"image_id": ids["image_id"]}))
        return writer.finish()


def test_latents_are_learned_and_predicted(
    brain: Any, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    one = recipe("loss.feature_weight=0", "train.epochs=12")
    summary = train([brain.subject], brain.targets, one, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["latent_loss"] < 0.9 * lines[0]["latent_loss"]
    assert summary.validation == lines[-1]["validation"]
    assert summary.validation["latent_error"] == -summary.validation["score"]
    out = predict(tmp_path / "run", brain.subject, tmp_path / "latents", head="latent")
    assert (out.space.tokens, out.space.dim, out.space.unit_norm) == (64, 4, False)
    again = predict(tmp_path / "run", brain.subject, tmp_path / "one", head="latent", batch_size=5)
    np.testing.assert_allclose(
        out.take(np.arange(12)).astype(float), again.take(np.arange(12)).astype(float), atol=2e-3
    )
    with pytest.raises(RunError, match="has no head 'retrieval'; it has latent"):
        predict(tmp_path / "run", brain.subject, tmp_path / "p")


def test_a_teacher_has_a_say_and_pieces_change_nothing(
    brain: Any, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    teacher = [features_of(tmp_path / f"teacher{seed}", brain, seed) for seed in (1, 2)]
    weights = {}
    for name, size in (("whole", 16), ("pieces", 5)):
        one = recipe(f"train.micro_batch_size={size}", "train.learning_rate=1e-4")
        train([brain.subject], brain.targets, one, tmp_path / name, teacher=teacher)
        weights[name] = Run.open(tmp_path / name).model.state_dict()
    for name, tensor in weights["whole"].items():
        np.testing.assert_allclose(tensor, weights["pieces"][name], atol=3e-4)
    line = json.loads((tmp_path / "whole/metrics.jsonl").read_text().splitlines()[0])
    assert line["feature_loss"] > 1  # the entropy of 64 candidates is 4.2


def test_teachers_and_their_weight_come_together(
    brain: Any, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="needs 2 folders of a teacher's features, and 0 are given"):
        train([brain.subject], brain.targets, recipe(), tmp_path / "none")
    with pytest.raises(RunError, match="needs 0 folders of a teacher's features, and 1 are given"):
        train(
            [brain.subject],
            brain.targets,
            recipe("loss.feature_weight=0"),
            tmp_path / "one",
            teacher=[features_of(tmp_path / "teacher", brain, 1)],
        )


def test_targets_of_another_shape_are_refused(
    make_brain: Maker, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    other = make_brain("other")
    with pytest.raises(RunError, match=r"made for targets of 64 x 4, and .* holds 1 x 12"):
        train([other.subject], other.targets, recipe(), tmp_path / "run")
    with pytest.raises(RunError, match=r"makes latents of 64 x 4, and the targets are 1 x 12"):
        train([other.subject], other.targets, recipe("target=none"), tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss=none", "no section loss"),
        ("target.tokens=65", r"section target is 65 x 4, and model\.start_side 2 makes .* 64 x 4"),
    ],
)
def test_sections_that_contradict_each_other_are_named(
    recipe: Callable[..., Recipe], override: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(override)


def test_a_low_level_model_has_a_loss_of_its_own() -> None:
    text = load_recipe("tiny", ("prior=none",)).to_toml()
    low_level = load_recipe("mindeye_low_level").to_toml()
    mixed = text[: text.index("[model]")] + low_level[low_level.index("[model]") :]
    mixed = mixed[: mixed.index("[loss]")] + text[text.index("[loss]") :]
    with pytest.raises(RecipeError, match=r"'low_level' and loss\.kind 'contrastive' don't go"):
        Recipe.from_dict(tomllib.loads(mixed), where="mixed")
