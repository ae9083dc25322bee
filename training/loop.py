"""The training loop: subject and targets in, a run folder out.

One epoch is the unit of everything: its batches, mixing and noise follow from (seed, epoch) alone,
its end is where the state is saved, so that a run that was killed and resumed ends with the same
bytes as one that was not.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from index_builder.embeddings.artefact import atomic_write, fingerprint, read_manifest
from index_builder.embeddings.progress import track
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

from .checkpoint import (
    FORMAT_VERSION,
    KIND,
    MANIFEST,
    RECIPE,
    STATE_FOLDER,
    load_state,
    require_same,
    save_state,
    write_metrics,
    write_run,
)
from .epochs import Training, resolve_device
from .errors import RunError
from .models.assemble import count_parameters
from .recipe import Recipe, load_recipe
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
    validation : dict or None
        ``n_images``, ``brain_to_image_top1``, ``image_to_brain_top1`` (all images of the split as
        the pool) after the last epoch; None without validation images.
    seconds : float
        Of this call; not stored.
    """

    path: Path
    space: EmbeddingSpace
    n_parameters: dict[str, int]
    n_epochs: int
    n_steps: int
    validation: dict[str, float] | None
    seconds: float


def train(
    subject: Subject,
    targets: EmbeddingFolder,
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
) -> RunSummary:
    """Train a brain model on the training trials of one subject.

    Parameters
    ----------
    subject : Subject
    targets : EmbeddingFolder
        Embeddings of the subject's images, with the column ``image_id``.
    recipe : Recipe
    out : path
        Run folder.
    resume : bool
        Go on from the state that an interrupted run left in ``out``; start if there is none.

    Returns
    -------
    summary : RunSummary

    Raises
    ------
    RunError
        If ``out`` holds a run already (with ``resume``: another one), an image lacks a target,
        the subject has no training trials, or the device is absent.
    DivergedError
        If the loss is no longer finite.
    """
    started = time.monotonic()
    root = Path(out)
    identity = {
        "subject": fingerprint(subject.manifest["files"]),
        "targets": targets.fingerprint,
        **_flatten(recipe),
    }
    if (root / MANIFEST).exists():
        return _summarize(_finished(root, identity, resume=resume), root, started)
    if (root / RECIPE).exists() and not resume:
        raise RunError(
            f"{root} holds an interrupted run; go on with it (--resume), or delete the folder."
        )
    with _torch_settings(recipe):
        training = Training(subject, targets, recipe, resolve_device(recipe.train.device))
        state = load_state(root, identity)
        with atomic_write(root / RECIPE) as temporary:
            temporary.write_text(recipe.to_toml(), encoding="utf-8")
        metrics = training.restore(state) if state else []
        epochs = range(len(metrics), recipe.train.epochs)
        for epoch in track(
            epochs, label="train", total=recipe.train.epochs, unit="epoch", n_done=len(metrics)
        ):
            metrics.append(training.run_epoch(epoch, root))
            write_metrics(root, metrics)
            is_last = epoch + 1 == recipe.train.epochs
            if is_last or (epoch + 1) % recipe.train.save_every_epochs == 0:
                save_state(root, {"identity": identity, "metrics": metrics, **training.state()})
        write_metrics(root, metrics)
        manifest = write_run(
            root,
            model=training.model,
            statistics=training.statistics,
            body={
                "recipe": recipe.name,
                "control": recipe.data.control,
                "seed": recipe.train.seed,
                "space": targets.space.to_dict(),
                "subject": {"name": subject.name, "fingerprint": identity["subject"]},
                "targets": {"fingerprint": identity["targets"]},
                "n_voxels": subject.n_voxels,
                "n_training_images": len(training.trials.image_ids),
                "n_training_trials": len(training.trials.rows),
                "n_parameters": count_parameters(training.model),
                "n_epochs": recipe.train.epochs,
                "n_steps": training.n_steps,
                "device": training.device.type,
                "validation": metrics[-1]["validation"],
            },
        )
    return _summarize(manifest, root, started)


def _flatten(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe by their dotted names."""
    flat: dict[str, Any] = {}
    for section, value in recipe.to_dict().items():
        if isinstance(value, dict):
            flat |= {f"{section}.{name}": field for name, field in value.items()}
        else:
            flat[section] = value
    return flat


def _finished(root: Path, identity: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """Return the manifest of a run that there is nothing left to do for."""
    if not resume:
        raise RunError(f"{root} holds a finished run; train into a new folder, or delete it.")
    manifest = read_manifest(root, MANIFEST, kind=KIND, format_version=FORMAT_VERSION)
    begun_with = {
        "subject": manifest["subject"]["fingerprint"],
        "targets": manifest["targets"]["fingerprint"],
        **_flatten(load_recipe(root / RECIPE)),
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
        validation=manifest["validation"],
        seconds=time.monotonic() - started,
    )


@contextmanager
def _torch_settings(recipe: Recipe) -> Iterator[None]:
    """Fix what the result's bytes depend on, and put it back after."""
    n_threads = torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    was_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.set_num_threads(recipe.train.n_threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
        torch.use_deterministic_algorithms(was_deterministic, warn_only=was_warning)
