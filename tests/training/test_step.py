"""Batches in pieces and over processes: the same step as in one piece."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from training.loop import train
from training.recipe import Recipe

Maker = Callable[..., Any]
STILL = ("model.dropout=0.0", "model.n_blocks=1", "train.epochs=2")


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def difference(first: Path, second: Path) -> float:
    one, other = weights_of(first), weights_of(second)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("extra", [0, 7])
def test_a_batch_in_pieces_trains_as_one_in_one_piece(
    make_brain: Maker, small_recipe: Callable[..., Recipe], tmp_path: Path, extra: int
) -> None:
    brain = make_brain(tokens=2)
    for name, size in (("whole", 16), ("pieces", 5)):
        recipe = small_recipe(
            *STILL, f"train.micro_batch_size={size}", f"loss.extra_negatives={extra}"
        )
        train([brain.subject], brain.targets, recipe, tmp_path / name)
    assert difference(tmp_path / "whole", tmp_path / "pieces") < 2e-5
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "pieces")
    ]
    for whole, pieces in zip(*lines, strict=True):
        assert pieces["contrastive_loss"] == pytest.approx(whole["contrastive_loss"], rel=1e-4)
        assert pieces["prior_loss"] == pytest.approx(whole["prior_loss"], rel=1e-4)


def test_both_passes_of_a_piece_see_the_same_dropout(
    make_brain: Maker, small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """With pieces of the whole batch's rows, one piece and gradient caching must agree."""
    from training.epochs import Training
    from training.processes import Processes
    from training.study import Study

    brain = make_brain()
    recipe = small_recipe("model.dropout=0.5", "model.n_blocks=2", "train.micro_batch_size=16")
    weights = []
    for in_pieces in (False, True):
        study = Study([brain.subject], brain.targets, recipe.data, seed=0)
        training = Training(study, brain.targets, recipe, Processes("cpu"))
        torch.nn.init.normal_(training.model.trunk.blocks[0].refine[1].weight)
        stepper = training.stepper
        if in_pieces:
            stepper.take = lambda pieces, targets, draws, labels, s=stepper: _forced(  # type: ignore[method-assign]
                s, pieces, targets, draws, labels
            )
        training.run_epoch(0, tmp_path)
        weights.append(training.weights())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6)


def _forced(stepper: Any, pieces: Any, targets: Any, draws: Any, labels: Any) -> torch.Tensor:
    stepper.optimization.clear()
    losses = stepper._take_in_pieces(pieces, targets, draws, labels)
    stepper.optimization.step()
    return torch.stack([loss.detach() for loss in losses])


SCRIPT = """
import sys
from index_builder.embeddings.reader import EmbeddingFolder
from training.loop import train
from training.recipe import load_recipe
from training.subjects.subject import Subject
subjects, targets, recipe, out = sys.argv[1].split(","), *sys.argv[2:]
train([Subject.open(s) for s in subjects], EmbeddingFolder.open(targets), load_recipe(recipe), out)
"""


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(
    make_brain: Maker, small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    brain, other = make_brain(), make_brain("b", n_train=21, n_voxels=33, seed=6)
    recipe = small_recipe(*STILL, "train.device='cpu'")
    subjects = [brain.subject, other.subject]
    train(subjects, brain.targets, recipe, tmp_path / "one")
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2"),
            *("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"),
            *("--num_cpu_threads_per_process=1", f"--main_process_port={port}"),
            *(str(tmp_path / "script.py"), ",".join(str(s.path) for s in subjects)),
            *(str(brain.targets.path), str(tmp_path / "recipe.toml"), str(tmp_path / "two")),
        ],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert difference(tmp_path / "one", tmp_path / "two") < 2e-5
    assert (tmp_path / "two" / "run.json").exists()
