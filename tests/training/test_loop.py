from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index_builder.embeddings.artefact import read_manifest, sha256_file, verify_files
from training.checkpoint import Run
from training.epochs import Training
from training.errors import DivergedError, RunError
from training.loop import train
from training.processes import resolve_device
from training.recipe import Recipe
from training.study import Study
from training.validation import identify_validation

Maker = Callable[..., Any]
LEARNABLE = ("train.epochs=30", "prior=none", "train.learning_rate=0.01")


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_complete_and_says_what_it_is(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    brain, recipe = make_brain(), small_recipe()
    summary = train([brain.subject], brain.targets, recipe, tmp_path / "run")
    manifest = read_manifest(tmp_path / "run", "run.json", kind="run", format_version=2)
    verify_files(tmp_path / "run", manifest)
    assert not (tmp_path / "run" / "state").exists()
    assert manifest["space"] == brain.targets.space.to_dict()
    assert manifest["subjects"][0]["name"] == "sim"
    assert manifest["targets"]["fingerprint"] == brain.targets.fingerprint
    assert manifest["n_training_trials"] == 180
    assert manifest["n_parameters"] == summary.n_parameters
    assert (
        manifest["validation"] == summary.validation == metrics_of(summary.path)[-1]["validation"]
    )
    assert summary.n_steps == 4 * 4
    run = Run.open(tmp_path / "run")
    assert run.recipe == recipe
    assert sum(p.numel() for p in run.model.parameters()) == summary.n_parameters["total"]


def test_it_learns_and_the_shuffled_control_does_not(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    brain = make_brain(n_train=100, n_validation=50)
    scores = {}
    for control in ("none", "shuffled_labels"):
        recipe = small_recipe(f"data.control={control}", *LEARNABLE)
        summary = train([brain.subject], brain.targets, recipe, tmp_path / control)
        assert summary.validation is not None
        scores[control] = summary.validation["brain_to_image_top1"]
    assert scores["none"] > 0.9
    assert scores["shuffled_labels"] <= 0.14  # chance is 1/50; P(8 or more of 50) < 1e-4


def test_metrics_follow_phases_and_rates(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    brain = make_brain()
    recipe = small_recipe("loss.mixing_fraction=0.5")
    train([brain.subject], brain.targets, recipe, tmp_path / "run")
    lines = metrics_of(tmp_path / "run")
    assert [line["phase"] for line in lines] == ["bimixco"] * 2 + ["softclip"] * 2
    assert [line["step"] for line in lines] == [4, 8, 12, 16]
    assert lines[-1]["temperature"] > lines[2]["temperature"]
    assert lines[-1]["learning_rate"] < lines[0]["learning_rate"]
    assert all(line["prior_loss"] > 0 for line in lines)
    assert lines[0]["validation"]["n_images"] == 8


def test_memory_budget_changes_no_byte(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    brain = make_brain()
    for memory in ("1GiB", "0B"):
        recipe = small_recipe(f"data.memory={memory}")
        train([brain.subject], brain.targets, recipe, tmp_path / memory)
    assert model_hash(tmp_path / "1GiB") == model_hash(tmp_path / "0B")


def test_seeds_differ_and_repeat(make_brain: Maker, small_recipe: Maker, tmp_path: Path) -> None:
    brain = make_brain()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train([brain.subject], brain.targets, small_recipe(f"train.seed={seed}"), tmp_path / name)
    assert model_hash(tmp_path / "a") == model_hash(tmp_path / "b") != model_hash(tmp_path / "c")


def test_hidden_targets_of_several_tokens(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    brain = make_brain(tokens=3, n_voxels=80)
    summary = train([brain.subject], brain.targets, small_recipe(*LEARNABLE), tmp_path / "run")
    assert summary.space.tokens == 3
    assert summary.validation is not None and summary.validation["brain_to_image_top1"] > 0.8


def test_without_validation_images_training_says_so(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    brain = make_brain(n_validation=0)
    with caplog.at_level(logging.WARNING, "voxseek"):
        summary = train([brain.subject], brain.targets, small_recipe(), tmp_path / "run")
    assert "sim: no validation images: training is blind" in caplog.text
    assert summary.validation is None and metrics_of(summary.path)[-1]["validation"] is None


def test_a_loss_that_is_not_finite_stops_and_names_step_and_state(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    brain = make_brain()
    recipe = small_recipe("train.learning_rate=1000.0", "train.weight_decay=1e3", *LEARNABLE[:2])
    with pytest.raises(DivergedError, match=r"at epoch \d+, step \d+ are .*[Tt]he last good state"):
        train([brain.subject], brain.targets, recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_folders_in_use_are_not_overwritten(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    brain, out = make_brain(), tmp_path / "run"
    first = train([brain.subject], brain.targets, small_recipe(), out)
    with pytest.raises(RunError, match="holds a finished run; train into a new folder"):
        train([brain.subject], brain.targets, small_recipe(), out)
    again = train([brain.subject], brain.targets, small_recipe(), out, resume=True)
    assert again.validation == first.validation and again.n_parameters == first.n_parameters
    with pytest.raises(RunError, match=r"begun with another train\.seed: 0 there, 3 now"):
        train([brain.subject], brain.targets, small_recipe("train.seed=3"), out, resume=True)
    (out / "run.json").unlink()
    with pytest.raises(RunError, match=r"holds an interrupted run; go on with it \(--resume\)"):
        train([brain.subject], brain.targets, small_recipe(), out)


def test_cuda_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == resolve_device("cpu").type == "cpu"
    with pytest.raises(RunError, match="is 'cuda', and PyTorch finds no CUDA device"):
        resolve_device("cuda")


_TRAIN_SCRIPT = """
import sys
from index_builder.embeddings.reader import EmbeddingFolder
from training.loop import train
from training.recipe import load_recipe
from training.subjects.subject import Subject
subject, targets, recipe, out = sys.argv[1:]
train([Subject.open(subject)], EmbeddingFolder.open(targets), load_recipe(recipe), out, resume=True)
"""


def start(brain: Any, recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    arguments = [str(brain.subject.path), brain.targets.path, str(recipe), str(out)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", _TRAIN_SCRIPT, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def test_a_killed_run_resumes_to_the_same_bytes(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    brain = make_brain()
    recipe: Recipe = small_recipe("train.epochs=40", "train.save_every_epochs=3")
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    train([brain.subject], brain.targets, recipe, tmp_path / "whole")
    out = tmp_path / "killed"
    process = start(brain, path, out)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len(metrics_of(out)) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "run.json").exists()
    state = torch.load(out / "state" / "state.pt", weights_only=True)
    assert 3 <= len(state["metrics"]) < 40
    train([brain.subject], brain.targets, recipe, out, resume=True)
    for name in ("model.safetensors", "metrics.jsonl", "recipe.toml", "normalization.safetensors"):
        assert sha256_file(out / name) == sha256_file(tmp_path / "whole" / name), name
    assert (out / "run.json").read_bytes() == (tmp_path / "whole" / "run.json").read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cuda_learns_what_the_cpu_learns(
    make_brain: Maker, small_recipe: Maker, tmp_path: Path, precision: str
) -> None:
    brain = make_brain(n_train=150, n_validation=50)
    settings = ("train.device=cuda", f"train.precision={precision}", "train.epochs=30")
    recipe = small_recipe(*settings, "train.learning_rate=0.01")
    summary = train([brain.subject], brain.targets, recipe, tmp_path / "run")
    assert summary.validation is not None and summary.validation["brain_to_image_top1"] > 0.9


def model_hash(run: Path) -> str:
    return sha256_file(run / "model.safetensors")


def test_training_stops_when_validation_gets_no_better_and_keeps_the_best(
    make_brain: Maker, small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    brain = make_brain(noise=2.0)
    patient = ("train.patience=3", "train.epochs=40", "prior=none", "train.learning_rate=0.03")
    summary = train([brain.subject], brain.targets, small_recipe(*patient), tmp_path / "run")
    scores = [line["validation"]["score"] for line in metrics_of(tmp_path / "run")]
    assert summary.kept_epoch == int(np.argmax(scores)) == len(scores) - 4
    assert summary.n_epochs == len(scores) < 40
    assert summary.validation == metrics_of(tmp_path / "run")[summary.kept_epoch]["validation"]
    # Its weights are those of that epoch: a run that ends there has the same.
    study = Study([brain.subject], brain.targets, small_recipe().data, seed=0)
    kept = Run.open(tmp_path / "run").model
    again = identify_validation(kept, study, batch_size=16, device=torch.device("cpu"))
    assert again == summary.validation
    blind = make_brain("blind", n_validation=0)
    with pytest.raises(RunError, match=r"train\.patience needs validation images"):
        train([blind.subject], blind.targets, small_recipe(*patient), tmp_path / "blind")


def test_an_average_of_the_weights_is_kept_and_survives_a_resume(
    make_brain: Maker, small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    brain = make_brain()
    recipe = small_recipe("train.ema_decay=0.9")
    train([brain.subject], brain.targets, recipe, tmp_path / "whole")
    train([brain.subject], brain.targets, small_recipe(), tmp_path / "last")
    assert model_hash(tmp_path / "whole") != model_hash(tmp_path / "last")
    stopping = pytest.MonkeyPatch()
    with stopping.context() as patch:
        run_epoch = Training.run_epoch

        def interrupted(training: Training, epoch: int, root: Path) -> dict[str, Any]:
            if epoch == 2:
                raise KeyboardInterrupt
            return run_epoch(training, epoch, root)

        patch.setattr(Training, "run_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train([brain.subject], brain.targets, recipe, tmp_path / "resumed")
    train([brain.subject], brain.targets, recipe, tmp_path / "resumed", resume=True)
    assert model_hash(tmp_path / "whole") == model_hash(tmp_path / "resumed")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_as_well(
    make_brain: Maker, small_recipe: Callable[..., Recipe], tmp_path: Path, precision: str
) -> None:
    brain = make_brain(tokens=2)
    recipe = small_recipe(
        "train.epochs=30", "train.learning_rate=0.01", f"train.precision={precision}"
    )
    summary = train([brain.subject], brain.targets, recipe, tmp_path / "run")
    assert summary.validation is not None and summary.validation["brain_to_image_top1"] > 0.8


def test_tensorboard_gets_every_number_of_every_epoch(
    make_brain: Maker, small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    brain = make_brain()
    board = tmp_path / "board"
    train([brain.subject], brain.targets, small_recipe(), tmp_path / "run", tensorboard=board)
    events = EventAccumulator(str(board)).Reload()
    lines = metrics_of(tmp_path / "run")
    for name in ("contrastive_loss", "prior_loss", "learning_rate"):
        found = events.Scalars(name)
        assert [event.step for event in found] == [0, 1, 2, 3]
        assert [event.value for event in found] == pytest.approx([line[name] for line in lines])
    found = events.Scalars("validation/brain_to_image_top1")
    assert found[-1].value == pytest.approx(lines[-1]["validation"]["brain_to_image_top1"])


def test_more_negatives_than_images_are_refused(
    make_brain: Maker, small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    brain = make_brain()
    with pytest.raises(RunError, match="ask for 66 images a step, and there are 60 training"):
        recipe = small_recipe("loss.extra_negatives=50")
        train([brain.subject], brain.targets, recipe, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_model_learns_the_same(
    make_brain: Maker, small_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    brain = make_brain()
    for compiled in ("false", "true"):
        recipe = small_recipe(f"train.compile={compiled}", "train.epochs=2", "model.dropout=0.0")
        train([brain.subject], brain.targets, recipe, tmp_path / compiled)
    plain, fused = (Run.open(tmp_path / name).model.state_dict() for name in ("false", "true"))
    assert plain.keys() == fused.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(fused[name], tensor, rtol=1e-3, atol=1e-4)
