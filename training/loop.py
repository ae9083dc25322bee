"""The training loop: subject and targets in, a run folder out.

One epoch is the unit of everything: its batches, mixing and noise follow from (seed, epoch) alone,
its end is where the state is saved, so that a run that was killed and resumed ends with the same
bytes as one that was not.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from index_builder.embeddings.artefact import fingerprint, read_manifest
from index_builder.embeddings.progress import track
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

from .board import Board
from .checkpoint import (
    BEST,
    FORMAT_VERSION,
    KIND,
    MANIFEST,
    RECIPE,
    STATE_FOLDER,
    Run,
    load_state,
    load_weights,
    require_same,
    save_state,
    save_weights,
    write_metrics,
    write_recipe,
    write_run,
)
from .closed_form import solve
from .epochs import Training
from .errors import RunError
from .models.assemble import summarize_parameters
from .processes import Processes
from .recipe import Recipe, load_recipe
from .reproducible import reproducible
from .schema.train import AdamWRecipe, RidgeRecipe
from .study import Study
from .subjects.subject import Subject


@dataclass(frozen=True)
class RunSummary:
    """What `train` returns.

    Parameters
    ----------
    path : Path
    space : EmbeddingSpace
    n_parameters : dict of str to int
        By part, with ``total``.
    n_epochs, n_steps : int
        Trained; 0 for a closed form.
    kept_epoch : int or None
        Whose weights these are: the last, or with ``train.patience`` the best; None for a closed
        form.
    validation : dict or None
        ``n_images``, ``brain_to_image_top1``, ``image_to_brain_top1`` (all images of the split as
        the pool) of these weights; None without validation images.
    seconds : float
        Of this call; not stored.
    """

    path: Path
    space: EmbeddingSpace
    n_parameters: dict[str, int]
    n_epochs: int
    n_steps: int
    kept_epoch: int | None
    validation: dict[str, float] | None
    seconds: float


def train(
    subjects: Sequence[Subject],
    targets: EmbeddingFolder,
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    finetune: str | os.PathLike[str] | None = None,
    teacher: Sequence[EmbeddingFolder] = (),
    tensorboard: str | os.PathLike[str] | None = None,
) -> RunSummary:
    """Train a brain model on the training trials of one subject, or of several together.

    Parameters
    ----------
    subjects : sequence of Subject
        Each has a voxel layer of its own; everything after it is shared.
    targets : EmbeddingFolder
        Embeddings of the subjects' images, with the column ``image_id``.
    recipe : Recipe
    out : path
        Run folder.
    resume : bool
        Go on from the state that an interrupted run left in ``out``; start if there is none.
    finetune : path, optional
        A finished run whose shared parts are the start (MindEye2: Scotti et al. 2024,
        arXiv:2403.11207, section 2.3).
    teacher : sequence of two EmbeddingFolder, optional
        A frozen teacher's features of the images, and of an augmented view of each, that the
        low-level branch is contrasted with.
    tensorboard : path, optional
        Folder for TensorBoard's event files.

    Returns
    -------
    summary : RunSummary

    Raises
    ------
    RunError
        If ``out`` holds a run already (with ``resume``: another one), an image lacks a target, a
        subject has no training trials, targets are of another shape than the recipe's, or the
        device is absent.
    DivergedError
        If the loss is no longer finite.
    """
    started = time.monotonic()
    root = Path(out)
    _require_shape(recipe, targets)
    start_from = Run.open(finetune) if finetune is not None else None
    identity = {
        "subjects": [fingerprint(subject.manifest["files"]) for subject in subjects],
        "targets": targets.fingerprint,
        "teacher": [features.fingerprint for features in teacher],
        "finetune": start_from.fingerprint if start_from else None,
        **recipe.flat(),
    }
    if (root / MANIFEST).exists():
        return _summarize(_finished(root, identity, resume=resume), root, started)
    if (root / RECIPE).exists() and not resume:
        raise RunError(
            f"{root} holds an interrupted run; go on with it (--resume), or delete the folder."
        )
    with reproducible(recipe.train.n_threads):
        way = recipe.train
        processes = Processes(way.device if isinstance(way, AdamWRecipe) else "cpu")
        study = Study(subjects, targets, recipe.data, seed=recipe.train.seed, teacher=teacher)
        if isinstance(way, RidgeRecipe):
            if finetune is not None:
                raise RunError("a closed form has no start; leave --finetune out.")
            outcome = _solve(study, targets, recipe, root)
        else:
            outcome = _descend(
                study, targets, recipe, root, identity, processes, start_from, tensorboard
            )
    if not processes.is_first:
        processes.wait()  # until the first has written the run
        return _summarize(_finished(root, identity, resume=True), root, started)
    n_voxels = [subject.n_voxels for subject in subjects]
    space = targets.space
    manifest = write_run(
        root,
        weights=outcome.weights,
        statistics=study.statistics,
        command="voxseek train",
        body={
            "recipe": recipe.name,
            "control": recipe.data.control,
            "seed": recipe.train.seed,
            "space": space.to_dict(),
            "subjects": [
                {"name": subject.name, "fingerprint": print_, "n_voxels": subject.n_voxels}
                for subject, print_ in zip(subjects, identity["subjects"], strict=True)
            ],
            "targets": {"fingerprint": identity["targets"]},
            "teacher": identity["teacher"],
            "finetune": identity["finetune"],
            "n_training_images": len(study.samples.image_ids),
            "n_training_trials": study.samples.n_trials,
            "n_parameters": summarize_parameters(
                recipe, n_voxels=n_voxels, tokens=space.tokens, dim=space.dim
            ),
            **outcome.facts,
        },
    )
    processes.wait()
    return _summarize(manifest, root, started)


@dataclass(frozen=True)
class _Outcome:
    """What became of training: weights by name, and what the manifest says of them."""

    weights: dict[str, Tensor]
    facts: dict[str, Any]


def _descend(
    study: Study,
    targets: EmbeddingFolder,
    recipe: Recipe,
    root: Path,
    identity: dict[str, Any],
    processes: Processes,
    start_from: Run | None,
    tensorboard: str | os.PathLike[str] | None,
) -> _Outcome:
    """Train by gradient descent, epoch by epoch; the first process writes."""
    assert isinstance(recipe.train, AdamWRecipe)
    training = Training(study, targets, recipe, processes, start_from=start_from)
    state = load_state(root, identity)
    processes.wait()
    if processes.is_first:
        write_recipe(root, recipe)
    metrics = training.restore(state) if state else []
    n_epochs, patience = recipe.train.epochs, recipe.train.patience
    with Board(tensorboard if processes.is_first else None, n_done=len(metrics)) as board:
        for epoch in track(
            range(len(metrics), n_epochs),
            label="train",
            total=n_epochs,
            unit="epoch",
            n_done=len(metrics),
        ):
            if patience and metrics and epoch - best_epoch(metrics) > patience:
                break
            metrics.append(training.run_epoch(epoch, root))
            board.add(metrics[-1])
            if not processes.is_first:
                continue
            write_metrics(root, metrics)
            if patience and best_epoch(metrics) == epoch:
                save_weights(root / STATE_FOLDER / BEST, training.weights())
            if epoch + 1 == n_epochs or (epoch + 1) % recipe.train.save_every_epochs == 0:
                save_state(root, {"identity": identity, "metrics": metrics, **training.state()})
    processes.wait()
    if processes.is_first:
        write_metrics(root, metrics)
    kept = best_epoch(metrics) if patience else len(metrics) - 1
    return _Outcome(
        weights=load_weights(root / STATE_FOLDER / BEST) if patience else training.weights(),
        facts={
            "n_epochs": len(metrics),
            "n_steps": metrics[-1]["step"],
            "kept_epoch": kept,
            "device": training.device.type,
            "validation": metrics[kept]["validation"],
        },
    )


def _solve(study: Study, targets: EmbeddingFolder, recipe: Recipe, root: Path) -> _Outcome:
    """Solve a linear model in closed form."""
    if len(study.n_voxels) > 1:
        raise RunError(
            f"a closed form is solved for one subject, and {len(study.n_voxels)} are given; train "
            f"one run a subject."
        )
    solution = solve(study, recipe, space=targets.space)
    write_recipe(root, recipe)
    write_metrics(root, [])
    return _Outcome(
        weights=solution.weights,
        facts={
            "n_epochs": 0,
            "n_steps": 0,
            "kept_epoch": None,
            "device": "cpu",
            "validation": solution.validation,
        },
    )


def best_epoch(metrics: Sequence[dict[str, Any]]) -> int:
    """Return the epoch with the best score of the validation images; the first of equals."""
    scores = [line["validation"]["score"] for line in metrics]
    return scores.index(max(scores))


def _require_shape(recipe: Recipe, targets: EmbeddingFolder) -> None:
    wanted, space = recipe.target, targets.space
    if wanted is not None and (space.tokens, space.dim) != (wanted.tokens, wanted.dim):
        raise RunError(
            f"recipe {recipe.name} is made for targets of {wanted.tokens} x {wanted.dim}, and "
            f"{targets.path} holds {space.tokens} x {space.dim} ({space}). Embed with the layer "
            f"and model that the recipe's header names, or let it train on any: --set target=none."
        )


def _finished(root: Path, identity: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """Return the manifest of a run that there is nothing left to do for."""
    if not resume:
        raise RunError(f"{root} holds a finished run; train into a new folder, or delete it.")
    manifest = read_manifest(root, MANIFEST, kind=KIND, format_version=FORMAT_VERSION)
    begun_with = {
        "subjects": [subject["fingerprint"] for subject in manifest["subjects"]],
        "targets": manifest["targets"]["fingerprint"],
        "teacher": manifest["teacher"],
        "finetune": manifest["finetune"],
        **load_recipe(root / RECIPE).flat(),
    }
    require_same(root, begun_with, identity)
    shutil.rmtree(root / STATE_FOLDER, ignore_errors=True)
    return manifest


def _summarize(manifest: dict[str, Any], root: Path, started: float) -> RunSummary:
    return RunSummary(
        path=root,
        space=EmbeddingSpace.from_dict(manifest["space"]),
        n_parameters=manifest["n_parameters"],
        n_epochs=manifest["n_epochs"],
        n_steps=manifest["n_steps"],
        kept_epoch=manifest["kept_epoch"],
        validation=manifest["validation"],
        seconds=time.monotonic() - started,
    )
