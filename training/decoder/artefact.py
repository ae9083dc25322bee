"""Decoder folders: the finished decoder, and the state from which an interrupted run goes on.

decoder.json        manifest, written last: a decoder without it is not finished
model.safetensors   weights (the average over steps), and the center of the embeddings
recipe.toml         the recipe as resolved
metrics.jsonl       one line every so many steps
seen.npy            digests of the pictures that it was trained on
state/              while training runs: weights, optimizer, schedule, metrics
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index_builder.embeddings.artefact import (
    atomic_write,
    fingerprint,
    read_manifest,
    verify_files,
    write_manifest,
)
from index_builder.embeddings.space import EmbeddingSpace

from ..checkpoint import METRICS, MODEL, RECIPE, STATE_FOLDER, load_weights, save_weights
from ..errors import RunError
from .network import FlowNetwork
from .pictures import picture_digests
from .recipe import DecoderRecipe, load_decoder_recipe

KIND = "decoder"
FORMAT_VERSION = 1
MANIFEST = "decoder.json"
SEEN = "seen.npy"
_CENTER = "center"


@dataclass(frozen=True)
class TrainedDecoder:
    """A finished decoder, loaded.

    Parameters
    ----------
    path : Path
    recipe : DecoderRecipe
    space : EmbeddingSpace
        Of the embeddings that it takes.
    center : float32 Tensor of shape (tokens, dim)
        See `condition.find_center`.
    network : FlowNetwork
        On the CPU, in evaluation mode.
    manifest : dict
        ``decoder.json``.
    """

    path: Path
    recipe: DecoderRecipe
    space: EmbeddingSpace
    center: Tensor
    network: FlowNetwork
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TrainedDecoder:
        """Open a finished decoder; its files are compared with the manifest, contents included.

        Raises
        ------
        ArtefactError
            If the folder is no finished decoder, or a file of it is missing or altered.
        RunError
            If the weights are of another architecture than this version builds.
        """
        root = Path(path)
        manifest = read_manifest(root, MANIFEST, kind=KIND, format_version=FORMAT_VERSION)
        verify_files(root, manifest)
        recipe = load_decoder_recipe(root / RECIPE)
        space = EmbeddingSpace.from_dict(manifest["space"])
        with torch.device("meta"):
            network = build_network(recipe, space)
        weights = load_weights(root / MODEL)
        center = weights.pop(_CENTER, torch.empty(0))
        try:
            if center.shape != (space.tokens, space.dim):
                raise RuntimeError(f"center has shape {tuple(center.shape)}")
            network.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise RunError(
                f"{root / MODEL} doesn't fit the network that {RECIPE} beside it describes: "
                f"{error} Another voxseek trained it; train again."
            ) from error
        return cls(root, recipe, space, center, network.eval(), manifest)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the checksums of the decoder's files."""
        return fingerprint(self.manifest["files"])

    def require_unseen(self, pixels: NDArray[np.uint8], *, where: str) -> None:
        """Raise if a picture is one that the decoder was trained on.

        Parameters
        ----------
        pixels : uint8 array of shape (n, side, side, 3)
            Of `pictures.square_bytes`, at the side of the recipe.
        where : str
            Whose pictures these are, for the message.

        Raises
        ------
        RunError
        """
        seen = {digest.tobytes() for digest in np.load(self.path / SEEN, allow_pickle=False)}
        known = [row for row, d in enumerate(picture_digests(pixels)) if d.tobytes() in seen]
        if known:
            raise RunError(
                f"{self.path} was trained on {len(known)} of the {len(pixels)} pictures of "
                f"{where}, the first at place {known[0]}: it would draw from memory. Train a "
                f"decoder without them: voxseek decoder train --exclude SUBJECT."
            )


def build_network(recipe: DecoderRecipe, space: EmbeddingSpace) -> FlowNetwork:
    """Return the network of a recipe for embeddings of a space, with weights to train."""
    channels, side, _ = recipe.image_shape
    network = recipe.network
    return FlowNetwork(
        image_channels=channels,
        image_side=side,
        tokens=space.tokens,
        dim=space.dim,
        patch=network.patch,
        channels=network.channels,
        n_levels=network.n_levels,
        n_blocks=network.n_blocks,
        width=network.width,
        layout_channels=network.layout_channels,
        sketch_side=network.sketch_side,
        sketch_rank=network.sketch_rank,
    )


def write_decoder(
    folder: Path,
    *,
    weights: dict[str, Tensor],
    center: Tensor,
    seen: NDArray[np.uint8],
    body: dict[str, Any],
) -> dict[str, Any]:
    """Write weights beside recipe and metrics, then the manifest; drop the state.

    Returns
    -------
    manifest : dict
    """
    save_weights(folder / MODEL, {**weights, _CENTER: center})
    with atomic_write(folder / SEEN) as temporary, open(temporary, "wb") as handle:
        np.save(handle, seen)
    manifest = write_manifest(
        folder,
        MANIFEST,
        kind=KIND,
        format_version=FORMAT_VERSION,
        command="voxseek decoder train",
        files=(MODEL, RECIPE, METRICS, SEEN),
        body=body,
        packages=("numpy", "pillow", "safetensors", "torch"),
    )
    shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)
    return manifest
