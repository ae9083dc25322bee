"""Pictures and texts as queries, by the encoder that made the pictures' side of an index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from index_builder.embeddings.errors import MissingExtraError
from index_builder.embeddings.space import EmbeddingSpace
from training.encoders.catalogue import name_encoder, open_encoder
from training.encoders.contract import ImageEncoder

from ..errors import QueryError

_BATCH_IMAGES = 16
_BATCH_TEXTS = 64


class QueryEncoder:
    """An encoder into the space of an index; made by `open_query_encoder`.

    Safe to call from threads.

    Attributes
    ----------
    space : EmbeddingSpace
    takes_text : bool
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder
        self.space = encoder.space
        self.takes_text = encoder.takes_text

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embed pictures as `voxseek embed` does, of any size and mode.

        Returns
        -------
        embeddings : ndarray of shape (n, width), float32

        Raises
        ------
        EncoderError
            If a picture has no direction in the space, such as one flat color.
        """
        rows = np.empty((len(images), self.space.width), np.float32)
        for start in range(0, len(images), _BATCH_IMAGES):
            piece = slice(start, start + _BATCH_IMAGES)
            prepared = np.stack([self._encoder.prepare(image) for image in images[piece]])
            rows[piece] = self._encoder.encode(prepared).reshape(len(prepared), -1)
        return rows

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts.

        Returns
        -------
        embeddings : ndarray of shape (n, width), float32, unit rows

        Raises
        ------
        QueryError
            If the encoder has no text tower, or a text is blank.
        """
        if not self.takes_text:
            raise QueryError(
                f"texts can't be embedded in {self.space}: its encoder reads pictures alone. Ask "
                f"with a picture, or search an index of the final layer of an open_clip model "
                f"(voxseek embed IMAGES OUT --encoder ViT-L-14 --pretrained TAG|FILE)."
            )
        for number, text in enumerate(texts):
            if not text.strip():
                raise QueryError(f"text {number} of {len(texts)} is blank; write what to look for.")
        from training.encoders.clip import ClipEncoder

        assert isinstance(self._encoder, ClipEncoder)  # the one encoder that takes text
        rows = np.empty((len(texts), self.space.width), np.float32)
        for start in range(0, len(texts), _BATCH_TEXTS):
            piece = slice(start, start + _BATCH_TEXTS)
            rows[piece] = self._encoder.encode_texts(texts[piece])
        return rows


def open_query_encoder(
    space: EmbeddingSpace,
    *,
    encoder: str | None = None,
    pretrained: str | None = None,
    device: str = "cpu",
) -> QueryEncoder:
    """Open the encoder whose embeddings may be compared with those of an index.

    Parameters
    ----------
    space : EmbeddingSpace
        Of the index.
    encoder : str or None
        A name that `voxseek embed --encoder` takes. None: the one that ``space.model`` names.
    pretrained : str or None
        For open_clip: a tag, a local weight file, or ``TAG=FILE``, a file that holds the weights of
        a tag. None: the tag in ``space.model``.
    device : str
        As of `open_encoder`, and so what `SearchEngine.open` takes.

    Raises
    ------
    EncoderError
        If the space doesn't tell its encoder, or the encoder can't be opened.
    SpaceMismatchError
        If the encoder makes another space.
    MissingExtraError
        If the encoder's packages are not installed.
    """
    if encoder is None:
        encoder, pretrained = name_encoder(space, pretrained=pretrained)
    try:
        opened = open_encoder(encoder, pretrained=pretrained, device=device, layer=space.layer)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "train", f"the encoder {encoder}") from error
    space.require_comparable(opened.space, mine="the index", theirs=f"the encoder {encoder}")
    return QueryEncoder(opened)
