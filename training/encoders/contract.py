"""What an image encoder is: a space, a size of picture, and a function from pixels to vectors."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.space import EmbeddingSpace


class ImageEncoder(Protocol):
    """A frozen encoder from pictures to one embedding space.

    Attributes
    ----------
    space : EmbeddingSpace
        Where the embeddings live.
    details : dict
        Everything that fixes the encoder beyond its name: resolution, weights, projection.
    takes_text : bool
        Whether it has ``encode_texts`` too, into the same space.
    """

    space: EmbeddingSpace
    details: dict[str, str | int]
    takes_text: bool

    def prepare(self, picture: Image.Image) -> NDArray[np.float32]:
        """Turn one RGB picture into the array that `encode` stacks; safe to call from threads."""
        ...

    def encode(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed ``batch``, a stack of `prepare` outputs, as (n, dim) or (n, tokens, dim) rows."""
        ...
