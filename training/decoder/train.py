"""Train a decoder: targets and their pictures in, a decoder folder out."""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index_builder.embeddings.artefact import atomic_write, fingerprint, read_manifest, require_free
from index_builder.embeddings.progress import track
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

from ..checkpoint import (
    RECIPE,
    STATE,
    STATE_FOLDER,
    load_state,
    require_same,
    save_state,
    write_metrics,
)
from ..errors import DivergedError, RunError
from ..processes import resolve_device
from ..reproducible import reproducible
from ..samples import TargetTable
from .artefact import FORMAT_VERSION, KIND, MANIFEST, build_network, write_decoder
from .canvas import Canvas, open_canvas
from .condition import find_center
from .pictures import DecoderPictures, picture_digests
from .recipe import DecoderRecipe, load_decoder_recipe
from .sketch import draw_sketch_rows
from .steps import DecoderTraining, Examples

_BLOCK_ROWS = 64
_TARGET_BYTES = 4 << 30  # targets that need more are read from disk, batch by batch
_FEWEST_PICTURES = 3  # a direction is turned towards a mixture of others


@dataclass(frozen=True)
class DecoderSummary:
    """What `train_decoder` returns.

    Parameters
    ----------
    path : Path
    space : EmbeddingSpace
    n_parameters : int
    n_steps : int
    n_pictures : int
        Trained on.
    validation_loss : float or None
        Of held-out pictures; None without any.
    seconds : float
        Of this call; not stored.
    """

    path: Path
    space: EmbeddingSpace
    n_parameters: int
    n_steps: int
    n_pictures: int
    validation_loss: float | None
    seconds: float


def train_decoder(
    targets: EmbeddingFolder,
    pictures: DecoderPictures,
    recipe: DecoderRecipe,
    out: str | os.PathLike[str],
    *,
    vae: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> DecoderSummary:
    """Train a decoder from the embeddings of pictures to the pictures.

    Parameters
    ----------
    targets : EmbeddingFolder
        With the column ``image_id``.
    pictures : DecoderPictures
        Of `gather_pictures`, at the side of the recipe.
    recipe : DecoderRecipe
    out : path
        Decoder folder.
    vae : path or None
        Frozen weights, for a recipe that draws latents.
    resume : bool
        Go on from the state that an interrupted run left in ``out``; start if there is none.

    Raises
    ------
    RunError
        If ``out`` holds a decoder already (with ``resume``: another one), an image lacks a target,
        there are fewer than three pictures, or the device is absent.
    DivergedError
        If the loss is no longer finite.
    """
    started = time.monotonic()
    root, way = Path(out), recipe.train
    require_free(root, [RECIPE, MANIFEST], "a decoder is", RunError)
    if len(pictures.image_ids) < _FEWEST_PICTURES:
        raise RunError(
            f"there are {len(pictures.image_ids)} pictures to train a decoder on, expected at "
            f"least {_FEWEST_PICTURES}, and thousands for good ones. Give targets of more images."
        )
    device = resolve_device(way.device)
    canvas = open_canvas(recipe.pictures, pretrained=vae, device=str(device))
    seen = picture_digests(pictures.pixels)
    identity = {
        "targets": targets.fingerprint,
        "pictures": fingerprint([pictures.image_ids.tolist(), seen.tobytes().hex()]),
        "weights": canvas.weights,
        **recipe.flat(),
    }
    if (root / MANIFEST).exists():
        return _summarize(_finished(root, identity, resume=resume), root, started)
    if (root / RECIPE).exists() and not resume:
        raise RunError(
            f"{root} holds an interrupted run; go on with it (--resume), or delete the folder."
        )
    with reproducible(way.n_threads):
        state = load_state(root, identity)
        root.mkdir(parents=True, exist_ok=True)
        _write_recipe(root, recipe)
        examples = _examples(targets, pictures.image_ids, pictures.pixels, canvas, None)
        validation = None
        if len(pictures.validation_ids):
            held_out = (pictures.validation_ids, pictures.validation_pixels)
            validation = _examples(targets, *held_out, canvas, examples.center)
        torch.manual_seed(way.seed)
        network = build_network(recipe, targets.space)
        if state is None:
            rows = draw_sketch_rows(len(examples), targets.space.width, seed=way.seed)
            painted, directions = examples.take(rows)
            network.sketch.fit(directions, painted)
        network = network.to(device).to(memory_format=torch.channels_last)
        training = DecoderTraining(network, recipe, examples, validation)
        if state is not None:
            training.restore(state)
        metrics = _descend(training, root, identity, state["metrics"] if state else [])
    manifest = write_decoder(
        root,
        weights=training.weights(),
        center=examples.center,
        seen=seen,
        body={
            "recipe": recipe.name,
            "seed": way.seed,
            "space": targets.space.to_dict(),
            "targets": identity["targets"],
            "pictures": identity["pictures"],
            "weights": canvas.weights,
            "excluded": pictures.excluded,
            "n_pictures": len(pictures.image_ids),
            "n_excluded": pictures.n_excluded,
            "n_copies": pictures.n_copies,
            "n_parameters": sum(p.numel() for p in network.parameters()),
            "n_steps": way.steps,
            "device": device.type,
            "loss": metrics[-1]["loss"],
            "validation_loss": metrics[-1]["validation_loss"],
        },
    )
    return _summarize(manifest, root, started)


def _descend(
    training: DecoderTraining, root: Path, identity: dict[str, Any], metrics: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Take the steps that are left, and return the metrics of all."""
    way = training.recipe.train
    first = metrics[-1]["step"] if metrics else 0
    losses: list[Tensor] = []
    numbers = track(
        range(first, way.steps), label="train", total=way.steps, unit="step", n_done=first
    )
    for number in numbers:
        losses.append(training.step(number))
        if number + 1 != way.steps and (number + 1) % way.save_every_steps:
            continue
        told = torch.stack(losses).cpu()
        _require_finite(training, told, number + 1 - len(told), root)
        metrics.append(
            {
                "step": number + 1,
                "loss": float(told.mean()),
                "learning_rate": float(training.rates.get_last_lr()[0]),
                "validation_loss": training.validate(),
            }
        )
        losses.clear()
        write_metrics(root, metrics)
        save_state(root, {"identity": identity, "metrics": metrics, **training.state()})
    write_metrics(root, metrics)
    return metrics


def _require_finite(training: DecoderTraining, losses: Tensor, first: int, root: Path) -> None:
    """Raise if a loss of the steps from ``first`` on, or what became of the weights, isn't."""
    bad = ~losses.isfinite()
    if not bad.any() and all(bool(p.isfinite().all()) for p in training.network.parameters()):
        return
    at = int(bad.int().argmax()) if bad.any() else len(losses) - 1
    state = root / STATE_FOLDER / STATE
    kept = f"The last good state is {state}." if state.is_file() else "No state was saved yet."
    raise DivergedError(
        f"the loss at step {first + at} is {float(losses[at])}, or its update was not finite. "
        f"{kept} Train again with a lower train.learning_rate, or with train.clip_norm = 1."
    )


def _examples(
    targets: EmbeddingFolder,
    image_ids: NDArray[np.int64],
    pixels: NDArray[np.uint8],
    canvas: Canvas,
    center: Tensor | None,
) -> Examples:
    """Join pictures with their targets; without a center, that of these targets is found."""
    table = TargetTable(targets, image_ids, memory_bytes=_TARGET_BYTES)
    blocks = _usable_blocks(targets, table, image_ids)
    if center is None:
        center = find_center(blocks)
    else:
        deque(blocks, maxlen=0)  # checked, and let go
    return Examples(canvas, canvas.keep(pixels), table, center)


def _usable_blocks(
    targets: EmbeddingFolder, table: TargetTable, image_ids: NDArray[np.int64]
) -> Iterator[NDArray[np.float32]]:
    """Yield the targets in blocks, and raise at one that has no direction."""
    for at in range(0, len(image_ids), _BLOCK_ROWS):
        rows = np.arange(at, min(at + _BLOCK_ROWS, len(image_ids)))
        block = table.read(rows)
        usable = np.isfinite(block).all(axis=(1, 2)) & block.any(axis=(1, 2))
        if not usable.all():
            raise RunError(
                f"the target of image {image_ids[rows[int(np.argmin(usable))]]} in {targets.path} "
                f"is zero or not finite; expected numbers. Embed the images again (voxseek embed)."
            )
        yield block


def _write_recipe(root: Path, recipe: DecoderRecipe) -> None:
    with atomic_write(root / RECIPE) as temporary:
        temporary.write_text(recipe.to_toml(), encoding="utf-8")


def _finished(root: Path, identity: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """Return the manifest of a decoder that there is nothing left to do for."""
    if not resume:
        raise RunError(f"{root} holds a finished decoder; train into a new folder, or delete it.")
    manifest = read_manifest(root, MANIFEST, kind=KIND, format_version=FORMAT_VERSION)
    begun_with = {
        **{field: manifest[field] for field in ("targets", "pictures", "weights")},
        **load_decoder_recipe(root / RECIPE).flat(),
    }
    require_same(root, begun_with, identity)
    shutil.rmtree(root / STATE_FOLDER, ignore_errors=True)
    return manifest


def _summarize(manifest: dict[str, Any], root: Path, started: float) -> DecoderSummary:
    return DecoderSummary(
        path=root,
        space=EmbeddingSpace.from_dict(manifest["space"]),
        n_parameters=manifest["n_parameters"],
        n_steps=manifest["n_steps"],
        n_pictures=manifest["n_pictures"],
        validation_loss=manifest["validation_loss"],
        seconds=time.monotonic() - started,
    )
