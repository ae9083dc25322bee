"""Simulated galleries: two families of vectors, drawn part by part, and queries unlike their rows.

``cone`` is like CLIP: a narrow cone (mean cosine about 0.5) of clusters whose sizes follow a power
law, every vector of full rank. ``copies`` is unlike it: vectors near a space of 96 dimensions
around an axis (mean cosine about 0.1), heavier clusters, and 30 % of the rows near-duplicates of
another row, as Webster et al. 2023 (arXiv:2303.12733) found of LAION-2B. What wins on one and loses
on the other is a property of the simulation, not of embeddings.

A part depends on the seed and its number alone: parts can be drawn anywhere, in any order, and a
gallery of any size never stands in memory.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIM = 768
FAMILIES = ("cone", "copies")
QUERY_KINDS = ("in", "shrunk", "shifted", "noisy")
_SHARE_OF_COPIES = 0.3
_COPY_NOISE = 0.1  # of norm; a copy's cosine with its original is about 0.995
_RANK = 96
_QUERY_PART = 1 << 40  # the part that queries are drawn as: no gallery has it


class Gallery:
    """A simulated gallery of ``n_rows`` vectors; draws any part of it.

    Parameters
    ----------
    family : {"cone", "copies"}
    n_rows : int
        Sets the number of clusters: its square root.
    seed : int
    """

    def __init__(self, family: str, n_rows: int, seed: int) -> None:
        if family not in FAMILIES:
            raise ValueError(f"family is {family!r}, expected one of {FAMILIES}")
        self.family, self.n_rows, self.seed = family, n_rows, seed
        rng = np.random.default_rng(seed)
        n_clusters = max(20, math.isqrt(n_rows))
        self.axis = unit(rng.standard_normal((1, DIM), dtype=np.float32))[0]
        if family == "cone":
            self._scale = np.arange(1, DIM + 1, dtype=np.float32) ** -0.35
            self._basis = None
        else:
            self._scale = np.exp(-np.arange(_RANK, dtype=np.float32) / 40)
            frame = np.linalg.qr(rng.standard_normal((DIM, _RANK)))[0]
            self._basis = np.ascontiguousarray(frame.T, np.float32)
        self._scale /= np.linalg.norm(self._scale)
        self._centers = rng.standard_normal((n_clusters, len(self._scale)), dtype=np.float32)
        weights = np.arange(1, n_clusters + 1) ** (-0.7 if family == "cone" else -1.0)
        self._weights = weights / weights.sum()

    def draw(self, part: int, n_rows: int) -> np.ndarray:
        """Return part number ``part`` as unit rows (n_rows, DIM), float32."""
        rng = np.random.default_rng((self.seed, part))
        labels = rng.choice(len(self._weights), n_rows, p=self._weights)
        latent = rng.standard_normal((n_rows, len(self._scale)), dtype=np.float32)
        latent += self._centers[labels]
        latent *= 0.5 * self._scale
        if self._basis is None:
            latent += 0.7 * self.axis
            return unit(latent)
        rows = latent @ self._basis
        rows += 0.25 * self.axis
        rows += rng.standard_normal(rows.shape, dtype=np.float32) * np.float32(0.15 / DIM**0.5)
        n_copies = int(_SHARE_OF_COPIES * n_rows)
        places = rng.permutation(n_rows)
        originals = rng.choice(places[n_copies:], n_copies)
        noise = rng.standard_normal((n_copies, DIM), dtype=np.float32)
        rows = unit(rows)
        rows[places[:n_copies]] = rows[originals] + np.float32(_COPY_NOISE / DIM**0.5) * noise
        return unit(rows)

    def draw_queries(self, kind: str, n_queries: int, seed: int) -> np.ndarray:
        """Return queries (n_queries, DIM) of one kind, unit rows, float32.

        ``in`` is drawn like the rows. The others are such rows, of which the gallery has neighbors,
        moved where no row is: ``shrunk`` halfway to the axis with noise of norm 0.6, as a decoder
        trained on squared error predicts; ``shifted`` by an offset of 0.6 and noise of norm 0.4, as
        text lies beside images; ``noisy`` by noise of norm 1 alone.
        """
        rows = self.draw(_QUERY_PART + seed, n_queries)
        if kind == "in":
            return rows
        rng = np.random.default_rng((self.seed, _QUERY_PART + seed, QUERY_KINDS.index(kind)))
        noise = rng.standard_normal(rows.shape, dtype=np.float32) / np.float32(DIM**0.5)
        if kind == "shrunk":
            return unit(0.5 * rows + 0.5 * self.axis + 0.6 * noise)
        if kind == "noisy":
            return unit(rows + noise)
        offset = np.random.default_rng((self.seed, 9)).standard_normal((1, DIM), dtype=np.float32)
        return unit(rows + 0.6 * unit(offset) + 0.4 * noise)


def write_gallery(folder: Path, gallery: Gallery, part_rows: int) -> None:
    """Write a gallery as clip-retrieval's inference leaves it: float16 parts and their metadata."""
    n_parts = -(-gallery.n_rows // part_rows)
    digits = len(str(n_parts - 1))
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for part in range(n_parts):
        first = part * part_rows
        rows = gallery.draw(part, min(part_rows, gallery.n_rows - first))
        np.save(folder / "img_emb" / f"img_emb_{part:0{digits}}.npy", rows.astype(np.float16))
        keys = [f"{first + i:09d}" for i in range(len(rows))]
        table = pa.table({"key": keys, "url": [f"https://example.org/{key}.jpg" for key in keys]})
        pq.write_table(table, folder / "metadata" / f"metadata_{part:0{digits}}.parquet")


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows divided by their norms, float32."""
    result: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return result
