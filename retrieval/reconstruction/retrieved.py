"""Retrieval as reconstruction: the best picture of an index stands for what was seen.

It needs no generative weights, and shows nothing that isn't a real picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import PictureError, ReconstructionError
from ..images.sources import PictureSources
from ..searching.engine import SearchEngine
from ..searching.request import SearchRequest


@dataclass(frozen=True)
class Retrieved:
    """The picture that an index gives for one image.

    Parameters
    ----------
    picture : PIL.Image.Image
        RGB.
    row : int
        Of the gallery.
    score : float
        Cosine with the retrieval embedding.
    """

    picture: Image.Image
    row: int
    score: float


@dataclass(frozen=True)
class RetrievedPictures:
    """Asks an index for the best picture that can be had.

    Parameters
    ----------
    engine : SearchEngine
    sources : PictureSources
        Where the pictures of its rows are.
    request : SearchRequest
        How many hits are looked through, and which rows may be found.
    """

    engine: SearchEngine
    sources: PictureSources
    request: SearchRequest

    def find(self, vectors: NDArray[np.float32]) -> list[Retrieved]:
        """Return the best picture for each retrieval embedding (n, width).

        Raises
        ------
        ReconstructionError
            If an image has no hit whose picture can be had.
        """
        found = self.engine.search(vectors, self.request)
        columns = self.sources.columns(self.engine.columns)
        return [
            self._best(rows[rows >= 0], scores, columns)
            for rows, scores in zip(found.rows, found.scores, strict=True)
        ]

    def _best(
        self, rows: NDArray[np.int64], scores: NDArray[np.float32], columns: tuple[str, ...]
    ) -> Retrieved:
        reason = "there is no hit"
        for row, score in zip(rows.tolist(), scores.tolist(), strict=False):
            facts = self.engine.metadata(np.array([row]), list(columns)).to_pylist()
            picture = self.sources.get([row], facts, seconds=self.sources.seconds)[0]
            if not isinstance(picture, PictureError):
                return Retrieved(picture.convert("RGB"), row, score)
            reason = str(picture)
        raise ReconstructionError(
            f"none of the {len(rows)} best rows of {self.engine.path} has a picture that can be "
            f"had ({reason}). Say where they are: --shards DIR or --fetch."
        )
