"""Pictures and CLIP-like targets that no camera and no encoder made, in any number.

A simulated brain needs pictures and their embeddings; thousands of photographs and an encoder of
many tokens are not at hand everywhere. Here both are drawn: dead leaves, and embeddings with the
cone, the spectrum and the clusters of CLIP's, to which the picture adds what it looks like. The
law, what was measured and what was chosen stand in ``docs/simulated_brain.md``.

Shapes: ``T`` tokens (the class token, then a square grid of patches), ``S`` cells along a side of
that grid, ``D`` width of a token.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.artefact import atomic_write
from index_builder.embeddings.progress import track
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter

from ..encoders.unit import unit_class_tokens
from .dead_leaves import paint_dead_leaves
from .low_level import GRID, N_CHANNELS, describe_pixels

PICTURES_FOLDER = "pictures"
# Of the final layer these were fitted to 200 CLIP ViT-L/14 embeddings of THINGS images.
_MEAN_SHARE = 0.54  # of the squared norm: the mean embedding, hence the mean cosine
_SPECTRUM_POWER = 0.36  # the k-th largest standard deviation falls as k ** -0.36
_KIND_SHARE = 0.35  # of the variance: that of the means of kinds of picture
_NORM_DEVIATION = 0.18  # over pictures, of the logarithm of the distance from the mean
# An object category of COCO, whose pictures NSD shows, is a kind: Lin et al. 2014, section 3.1.
_N_KINDS = 80
_KIND_POWER = 0.7  # the k-th most frequent kind has pictures in proportion to k ** -0.7
_LOOK_SHARE = 0.1  # of the variance: what the picture looks like at the token's place
# Of the patches, shares of the variance of what is not look.
_TOKEN_MEAN_SHARE = 0.3  # of the mean's square: what each token has of its own
_COMMON_SHARE = 0.5  # the whole picture's, the same in all tokens
_CELL_CORRELATION = 1 / 7  # standard deviation of the kernel of the rest, in picture widths
_N_REFERENCES = 256  # pictures that the looks are standardised by; none is among the images
_STREAM_WORLD, _STREAM_REFERENCES, _STREAM_IMAGES = range(3)
_VALUES_A_PART = 1 << 26


class World:
    """An endless row of pictures with their targets; any of them can be drawn alone.

    Parameters
    ----------
    tokens : int
        1 for embeddings like CLIP's final layer, or 1 + S * S for its hidden layer: 257 is that
        of ViT-L/14.
    dim : int
    seed : int, at least 0
        Worlds of different seeds have nothing in common; those of one seed and dim have the same
        pictures, and class tokens that differ in their mean alone.

    Raises
    ------
    ValueError
        If ``tokens`` is not one more than a square number.
    """

    def __init__(self, tokens: int, dim: int, seed: int) -> None:
        side = math.isqrt(tokens - 1) if tokens > 0 else -1
        if side * side + 1 != tokens:
            raise ValueError(
                f"tokens is {tokens}, expected 1, or one more than a square number: the class "
                f"token and a grid of patches, such as 17, 50 or 257."
            )
        self.seed = seed
        self.space = EmbeddingSpace(
            model=f"simulated-clip/seed{seed}",
            layer="final" if tokens == 1 else "hidden",
            tokens=tokens,
            dim=dim,
            unit_norm=tokens == 1,
        )
        rng = np.random.default_rng([seed, _STREAM_WORLD])
        scale = np.arange(1, dim + 1) ** -_SPECTRUM_POWER
        frame = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        self._axes = (frame * (scale / np.linalg.norm(scale))).T.astype(np.float32)
        self._kinds = rng.standard_normal((_N_KINDS, dim), dtype=np.float32)
        frequency = np.arange(1, _N_KINDS + 1) ** -_KIND_POWER
        self._frequency = frequency / frequency.sum()
        self._of_look = rng.standard_normal((N_CHANNELS, dim), dtype=np.float32)
        self._of_look /= np.float32(np.sqrt(N_CHANNELS))
        shared, own = rng.standard_normal((1, dim)), rng.standard_normal((tokens, dim))
        mean = np.sqrt(1 - _TOKEN_MEAN_SHARE) * shared + np.sqrt(_TOKEN_MEAN_SHARE) * own
        self._mean = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)
        self._smoothing = _smoothing_root(side)
        self._cells = _area_averages(side)
        looks = np.stack(
            [
                self._look(paint_dead_leaves(self._rng(_STREAM_REFERENCES, number)))
                for number in range(_N_REFERENCES)
            ]
        )
        self._mean_look, self._look_deviation = looks.mean(axis=0), looks.std(axis=0)

    def draw(self, image_id: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], int]:
        """Draw one picture and its target; depends on the seed and the number alone.

        Returns
        -------
        pixels : uint8 array of shape (side, side, 3), RGB
        latent : float32 array of shape (T, D)
            For `finish`, which turns many at once into targets.
        kind : int, 0 to 79
            What the picture is of.
        """
        rng = self._rng(_STREAM_IMAGES, image_id)
        kind = int(rng.choice(_N_KINDS, p=self._frequency))
        pixels = paint_dead_leaves(rng)
        dim, side = self.space.dim, len(self._smoothing)
        own = rng.standard_normal(dim, dtype=np.float32)
        common = np.sqrt(_KIND_SHARE) * self._kinds[kind] + np.sqrt(1 - _KIND_SHARE) * own
        away = np.exp(_NORM_DEVIATION * rng.standard_normal())
        latent = np.empty((self.space.tokens, dim), np.float32)
        latent[0] = common
        if side:
            noise = rng.standard_normal((side, side * dim), dtype=np.float32)
            rows = (self._smoothing @ noise).reshape(side, side, dim)
            field = np.einsum("st,rtd->rsd", self._smoothing, rows, optimize=True)
            latent[1:] = np.sqrt(_COMMON_SHARE) * common
            latent[1:] += np.sqrt(1 - _COMMON_SHARE) * field.reshape(-1, dim)
        look = (self._look(pixels) - self._mean_look) / self._look_deviation
        latent *= np.sqrt(1 - _LOOK_SHARE)
        latent += np.sqrt(_LOOK_SHARE) * (look.astype(np.float32) @ self._of_look)
        return pixels, latent * np.float32(away), kind

    def finish(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn latents (n, T, D) into targets of the same shape, the class token of unit norm."""
        targets = latents @ self._axes
        targets *= np.float32(np.sqrt(1 - _MEAN_SHARE))
        targets += np.float32(np.sqrt(_MEAN_SHARE)) * self._mean
        return unit_class_tokens(targets, self.space.model)

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, number])

    def _look(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the low-level channels of the whole picture and at each patch, (T, channels)."""
        features = describe_pixels(pixels).astype(np.float64)
        whole = features.mean(axis=(1, 2))[None]
        patches = self._cells @ features @ self._cells.T
        return np.concatenate([whole, patches.reshape(N_CHANNELS, -1).T])


def simulate_targets(
    folder: str | os.PathLike[str], *, n_images: int, tokens: int, dim: int, seed: int
) -> EmbeddingFolder:
    """Draw pictures and CLIP-like targets of them into an embedding folder.

    Goes on where an interrupted call stopped.

    Parameters
    ----------
    folder : path
        Gets, beside the embeddings, the folder ``pictures``.
    n_images : int
    tokens, dim : int
        See `World`.
    seed : int, at least 0
        The same arguments and libraries give the same bytes.

    Returns
    -------
    targets : EmbeddingFolder
        Columns image_id, image_path, caption, as `embed_pictures` writes them. Hidden layers have
        a class token of unit norm, as ``voxseek embed --layer hidden`` gives them.

    Notes
    -----
    Memory: 1 GiB, whatever the number of images.
    """
    root = Path(folder)
    world = World(tokens, dim, seed)
    part_rows = max(1, min(1024, _VALUES_A_PART // (tokens * dim)))
    details = {"encoder": "none: simulated", "n_images": n_images, "seed": seed}
    with EmbeddingWriter(
        root, world.space, command="voxseek data targets", details=details
    ) as writer:
        n_done = writer.n_rows_done
        numbers = iter(
            track(
                range(n_done, n_images),
                label="draw",
                total=n_images,
                unit="image",
                n_done=n_done,
            )
        )
        for start in range(n_done, n_images, part_rows):
            n_rows = min(part_rows, n_images - start)
            latents = np.empty((n_rows, tokens, dim), np.float32)
            paths, captions = [], []
            for row in range(n_rows):
                image_id = next(numbers)
                pixels, latents[row], kind = world.draw(image_id)
                paths.append(f"{PICTURES_FOLDER}/{image_id}.png")
                captions.append(f"dead leaves of kind {kind}")
                with atomic_write(root / paths[-1]) as temporary:
                    Image.fromarray(pixels).save(temporary, format="PNG")
            metadata = pa.table(
                {
                    "image_id": np.arange(start, start + n_rows, dtype=np.int64),
                    "image_path": paths,
                    "caption": captions,
                }
            )
            writer.write(world.finish(latents).reshape(n_rows, *world.space.row_shape), metadata)
        return writer.finish()


def _smoothing_root(side: int) -> NDArray[np.float32]:
    """Return a root, (S, S), of the correlation of cells along one side of the grid."""
    place = np.arange(side) / max(1, side)
    correlation = np.exp(-((place[:, None] - place) ** 2) / (2 * _CELL_CORRELATION**2))
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    return np.asarray(root, dtype=np.float32)


def _area_averages(side: int) -> NDArray[np.float64]:
    """Return weights, (S, GRID), that average the cells of the feature grid under each patch."""
    upper = np.minimum.outer(np.arange(1, side + 1) / max(1, side), np.arange(1, GRID + 1) / GRID)
    lower = np.maximum.outer(np.arange(side) / max(1, side), np.arange(GRID) / GRID)
    return np.asarray(np.maximum(upper - lower, 0) * side)
