"""Checkpoints: the finished run folder, and the state from which an interrupted run goes on.

run.json                    manifest, written last: a run without it is not finished
model.safetensors           weights
recipe.toml                 the recipe as resolved
normalization.safetensors   statistics of the training sessions
metrics.jsonl               one line an epoch
state/                      while training runs: weights, optimizer, schedule, epoch
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from index_builder.embeddings.artefact import (
    atomic_write,
    fingerprint,
    read_manifest,
    verify_files,
    write_manifest,
)
from index_builder.embeddings.space import EmbeddingSpace

from .errors import RunError
from .models.assemble import BrainModel, build_model
from .normalization import SessionStatistics
from .recipe import Recipe, load_recipe

KIND = "run"
FORMAT_VERSION = 1
MANIFEST = "run.json"
MODEL, RECIPE = "model.safetensors", "recipe.toml"
NORMALIZATION, METRICS = "normalization.safetensors", "metrics.jsonl"
STATE_FOLDER, STATE = "state", "state.pt"
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
    statistics : SessionStatistics
    model : BrainModel
        On the CPU, in evaluation mode.
    manifest : dict
        ``run.json``.
    """

    path: Path
    recipe: Recipe
    space: EmbeddingSpace
    statistics: SessionStatistics
    model: BrainModel
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
                recipe, n_voxels=manifest["n_voxels"], tokens=space.tokens, dim=space.dim
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
            statistics=SessionStatistics.load(root / NORMALIZATION),
            model=model.eval(),
            manifest=manifest,
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the checksums of the run's files."""
        return fingerprint(self.manifest["files"])


def write_run(
    folder: Path, *, model: BrainModel, statistics: SessionStatistics, body: dict[str, Any]
) -> dict[str, Any]:
    """Write weights and statistics beside recipe and metrics, then the manifest; drop the state.

    Returns
    -------
    manifest : dict
    """
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_write(folder / MODEL) as temporary:
        save_file(weights, temporary)
    statistics.save(folder / NORMALIZATION)
    manifest = write_manifest(
        folder,
        MANIFEST,
        kind=KIND,
        format_version=FORMAT_VERSION,
        command="voxseek train",
        files=_FILES,
        body=body,
        packages=("numpy", "safetensors", "torch"),
    )
    shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)
    return manifest


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
