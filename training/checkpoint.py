"""Checkpoints: the finished run folder, and the state from which an interrupted run goes on.

run.json                    manifest, written last: a run without it is not finished
model.safetensors           weights
recipe.toml                 the recipe as resolved
normalization.safetensors   statistics of the training sessions of each subject
metrics.jsonl               one line an epoch; empty where there are none
state/                      while training runs: weights, optimizer, schedule, epoch, best weights
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from index_builder.embeddings.artefact import (
    atomic_write,
    fingerprint,
    read_manifest,
    verify_files,
    write_manifest,
)
from index_builder.embeddings.space import EmbeddingSpace

from .errors import RunError
from .models.assemble import BrainModel, LowLevelModel, build_model
from .normalization import SessionStatistics, load_statistics, save_statistics
from .recipe import Recipe, load_recipe
from .subjects.subject import Subject

KIND = "run"
FORMAT_VERSION = 2
MANIFEST = "run.json"
MODEL, RECIPE = "model.safetensors", "recipe.toml"
NORMALIZATION, METRICS = "normalization.safetensors", "metrics.jsonl"
STATE_FOLDER, STATE, BEST = "state", "state.pt", "best.safetensors"
_FILES = (MODEL, RECIPE, NORMALIZATION, METRICS)


@dataclass(frozen=True)
class Run:
    """A finished run, loaded.

    Parameters
    ----------
    path : Path
    recipe : Recipe
    space : EmbeddingSpace
        Of the targets it was trained on.
    statistics : list of SessionStatistics
        Of each subject.
    model : BrainModel or LowLevelModel
        On the CPU, in evaluation mode.
    manifest : dict
        ``run.json``.
    """

    path: Path
    recipe: Recipe
    space: EmbeddingSpace
    statistics: list[SessionStatistics]
    model: BrainModel | LowLevelModel
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Open a finished run; its files are compared with the manifest, contents included.

        Raises
        ------
        ArtefactError
            If the folder is no finished run, or a file of it is missing or altered.
        RunError
            If the weights are of another architecture than this version builds.
        """
        root = Path(path)
        manifest = read_manifest(root, MANIFEST, kind=KIND, format_version=FORMAT_VERSION)
        verify_files(root, manifest)
        recipe = load_recipe(root / RECIPE)
        space = EmbeddingSpace.from_dict(manifest["space"])
        with torch.device("meta"):
            model = build_model(
                recipe,
                n_voxels=[subject["n_voxels"] for subject in manifest["subjects"]],
                tokens=space.tokens,
                dim=space.dim,
            )
        try:
            model.load_state_dict(load_file(root / MODEL), assign=True)
        except RuntimeError as error:
            raise RunError(
                f"{root / MODEL} doesn't fit the model that {RECIPE} beside it describes: {error} "
                f"Another voxseek trained it; train again, or predict with that one."
            ) from error
        return cls(
            path=root,
            recipe=recipe,
            space=space,
            statistics=load_statistics(root / NORMALIZATION),
            model=model.eval(),
            manifest=manifest,
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the checksums of the run's files."""
        return fingerprint(self.manifest["files"])

    def place_of(self, subject: Subject) -> int:
        """Return which of the run's subjects this one is.

        Raises
        ------
        RunError
            If it is none of them.
        """
        for place, known in enumerate(self.manifest["subjects"]):
            if (known["name"], known["n_voxels"]) == (subject.name, subject.n_voxels):
                return place
        trained_on = ", ".join(
            f"{known['name']} with {known['n_voxels']} voxels"
            for known in self.manifest["subjects"]
        )
        raise RunError(
            f"{subject.path} is subject {subject.name} with {subject.n_voxels} voxels, and "
            f"{self.path} was trained on {trained_on}. Train a run on this subject, or fit this "
            f"one to it (voxseek train --finetune)."
        )


def write_run(
    folder: Path,
    *,
    weights: dict[str, Tensor],
    statistics: Sequence[SessionStatistics],
    command: str,
    body: dict[str, Any],
) -> dict[str, Any]:
    """Write weights and statistics beside recipe and metrics, then the manifest; drop the state.

    Returns
    -------
    manifest : dict
    """
    save_weights(folder / MODEL, weights)
    save_statistics(folder / NORMALIZATION, statistics)
    manifest = write_manifest(
        folder,
        MANIFEST,
        kind=KIND,
        format_version=FORMAT_VERSION,
        command=command,
        files=_FILES,
        body=body,
        packages=("numpy", "safetensors", "torch"),
    )
    shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)
    return manifest


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write weights as safetensors, atomically."""
    stored = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    with atomic_write(path) as temporary:
        save_file(stored, temporary)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read what `save_weights` wrote."""
    weights: dict[str, Tensor] = load_file(path)
    return weights


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write ``recipe.toml``, atomically; the first file of a run."""
    with atomic_write(folder / RECIPE) as temporary:
        temporary.write_text(recipe.to_toml(), encoding="utf-8")


def write_metrics(folder: Path, metrics: list[dict[str, Any]]) -> None:
    """Write ``metrics.jsonl``, one line an epoch."""
    with atomic_write(folder / METRICS) as temporary:
        temporary.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in metrics))


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state for resuming: tensors and plain values only."""
    with atomic_write(folder / STATE_FOLDER / STATE) as temporary:
        torch.save(state, temporary)


def load_state(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state of an interrupted run, or None if it had not saved any.

    Parameters
    ----------
    folder : Path
    identity : dict
        What determines the run's result; must equal the saved state's.

    Raises
    ------
    RunError
        If the state can't be read, or belongs to another recipe, subject or targets.
    """
    path = folder / STATE_FOLDER / STATE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its zip reader and unpickler do
        raise RunError(
            f"{path} can't be read ({error}). Delete {folder} and train again."
        ) from error
    require_same(folder, state["identity"], identity)
    return state


def require_same(folder: Path, begun_with: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise unless a run is to go on with what it was begun with.

    Raises
    ------
    RunError
        Names the first field that differs.
    """
    for key, value in identity.items():
        if begun_with.get(key) != value:
            raise RunError(
                f"{folder} was begun with another {key}: {begun_with.get(key)!r} there, "
                f"{value!r} now. Resume with what it was begun with, or train into a new folder."
            )
