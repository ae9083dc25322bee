from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from index_builder.embeddings.errors import ArtefactError
from training import checkpoint
from training.checkpoint import Run, load_state, save_state
from training.errors import RunError
from training.loop import train


def test_altered_weights_are_not_loaded(
    make_brain: Callable[..., Any], small_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    brain = make_brain()
    train([brain.subject], brain.targets, small_recipe("train.epochs=1"), tmp_path / "run")
    before = Run.open(tmp_path / "run").fingerprint
    assert Run.open(tmp_path / "run").fingerprint == before
    weights = tmp_path / "run" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"model\.safetensors differs from its recorded SHA"):
        Run.open(tmp_path / "run")


def test_weights_of_another_architecture_are_not_loaded(
    make_brain: Callable[..., Any],
    small_recipe: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brain = make_brain()
    train([brain.subject], brain.targets, small_recipe("train.epochs=1"), tmp_path / "run")
    monkeypatch.setattr(checkpoint, "build_model", lambda *_, **__: torch.nn.Linear(3, 4))
    with pytest.raises(RunError, match=r"doesn't fit the model that recipe\.toml beside it"):
        Run.open(tmp_path / "run")


def test_an_unfinished_run_is_not_opened(tmp_path: Path) -> None:
    save_state(tmp_path, {"identity": {"train.seed": 1}})
    with pytest.raises(ArtefactError, match=r"run\.json is missing"):
        Run.open(tmp_path)


def test_state_of_another_run_or_damaged_is_refused(tmp_path: Path) -> None:
    assert load_state(tmp_path, {"train.seed": 1}) is None
    save_state(tmp_path, {"identity": {"train.seed": 1}, "epoch": 3})
    state = load_state(tmp_path, {"train.seed": 1})
    assert state is not None and state["epoch"] == 3
    with pytest.raises(RunError, match=r"begun with another train\.seed: 1 there, 2 now"):
        load_state(tmp_path, {"train.seed": 2})
    path = tmp_path / "state" / "state.pt"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RunError, match=r"state\.pt can't be read"):
        load_state(tmp_path, {"train.seed": 1})
