"""What is served: opened indexes and the brains of runs, each under a name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from index_builder.candidates import is_among
from index_builder.embeddings.errors import SpaceMismatchError
from index_builder.embeddings.space import EmbeddingSpace
from training.subjects.image_store import StoredImage

from ..confidence.artefact import Confidence
from ..confidence.observations import decoder_of
from ..searching.engine import SearchEngine
from ..searching.queries import QuerySet
from .finding import PATH_COLUMN
from .pictures import PictureFolders

SPLIT = "test"
KNN_COLUMNS = ("url", "image_path", "caption", "NSFW")  # clip-retrieval's default
_SAMPLE_ROWS = 8


class QueryEncoder(Protocol):
    """What makes vectors of an index's space out of pictures and words."""

    @property
    def takes_text(self) -> bool:
        """Whether it knows words."""

    def encode_images(self, images: list[Any], /) -> np.ndarray:
        """Return a vector for each `PIL.Image.Image`: (n, width), float32."""

    def encode_texts(self, texts: list[str], /) -> np.ndarray:
        """Return a vector for each text: (n, width), float32."""


class ServedIndex:
    """An opened index under its name.

    Parameters
    ----------
    name : str
    engine : SearchEngine
    encoder : QueryEncoder or None
        None: queries are vectors and trials alone.
    confidences : sequence of Confidence
        Fitted on this index.
    knn_columns : sequence of str
        Metadata columns of an answer in clip-retrieval's protocol, where the index has them.

    Attributes
    ----------
    pictures : PictureFolders
    has_pictures : bool
        Whether one of the first rows has a picture on this machine.
    """

    def __init__(
        self,
        name: str,
        engine: SearchEngine,
        encoder: QueryEncoder | None = None,
        confidences: Sequence[Confidence] = (),
        knn_columns: Sequence[str] = KNN_COLUMNS,
    ) -> None:
        self.name, self.engine, self.encoder = name, engine, encoder
        self.confidences, self.knn_columns = tuple(confidences), tuple(knn_columns)
        self.pictures = PictureFolders(engine.embeddings)
        self.has_pictures = PATH_COLUMN in engine.columns and self._has_pictures()

    @property
    def takes_text(self) -> bool:
        """Whether a query may be words."""
        return self.encoder is not None and self.encoder.takes_text

    @property
    def takes_image(self) -> bool:
        """Whether a query may be a picture."""
        return self.encoder is not None

    def is_alive(self, rows: np.ndarray) -> np.ndarray:
        """Tell which row numbers (n,) exist and weren't taken down: bool, (n,)."""
        alive: np.ndarray = (rows >= 0) & (rows < self.engine.n_rows)
        alive &= ~is_among(rows, self.engine.deleted)
        return alive

    def picture_of(self, row: int) -> Path | None:
        """Return the file of a row's picture, or None where there is none."""
        if not self.has_pictures or not self.is_alive(np.array([row]))[0]:
            return None
        path = self.engine.metadata(np.array([row]), [PATH_COLUMN])[PATH_COLUMN][0].as_py()
        return self.pictures.find(row, path)

    def _has_pictures(self) -> bool:
        first = np.arange(min(self.engine.n_rows, _SAMPLE_ROWS + len(self.engine.deleted)))
        rows = first[self.is_alive(first)][:_SAMPLE_ROWS]
        paths = self.engine.metadata(rows, [PATH_COLUMN])[PATH_COLUMN].to_pylist()
        return any(
            self.pictures.find(int(row), path) is not None
            for row, path in zip(rows, paths, strict=True)
        )


class ServedRun:
    """What a subject's brain says it saw, image by image, made once; see `open`.

    Attributes
    ----------
    name : str
    subject : str
        Its name.
    split : str
    space : EmbeddingSpace
        Of the vectors.
    decoder : dict
        The run, by fingerprint, and the head that answers.
    image_ids : ndarray of shape (n,), int64
    n_trials : ndarray of shape (n,), int64
        Averaged for each image.
    captions : dict
        By image id; images without one are left out.
    pictures : dict
        Where they are, by image id; empty where the subject has none.
    """

    def __init__(
        self,
        name: str,
        subject: str,
        space: EmbeddingSpace,
        decoder: dict[str, Any],
        columns: dict[str, np.ndarray],
        vectors: np.ndarray,
        captions: dict[int, str],
        pictures: dict[int, Path | StoredImage],
    ) -> None:
        self.name, self.subject, self.split = name, subject, SPLIT
        self.space, self.decoder = space, decoder
        self.image_ids, self.n_trials = columns["image_id"], columns["n_trials"]
        self.captions, self.pictures = captions, pictures
        self._vectors = vectors
        self._place = {int(image_id): i for i, image_id in enumerate(self.image_ids)}

    @classmethod
    def open(cls, name: str, run: Path, subject_folder: Path) -> ServedRun:
        """Predict the images of a subject's test split, and keep the predictions in memory.

        Raises
        ------
        ArtefactError, RunError, SubjectError
            If run or subject can't be opened, or the run is of another subject.
        """
        from training.subjects.subject import Subject

        from ..searching.brain import brain_queries

        subject = Subject.open(subject_folder)
        with brain_queries(run, subject_folder, split=SPLIT) as asked:
            space, vectors, columns = _read(asked)
            decoder = decoder_of(asked)
        image_ids = columns["image_id"].tolist()
        captions = subject.captions()
        pictures = {i: subject.image(i) for i in image_ids} if subject.has_images else {}
        kept = {i: captions[i] for i in image_ids if i in captions}
        return cls(name, subject.name, space, decoder, columns, vectors, kept, pictures)

    def is_comparable(self, space: EmbeddingSpace) -> bool:
        """Tell whether predictions lie in a space."""
        try:
            self.space.require_comparable(space, mine=self.name, theirs="index")
        except SpaceMismatchError:
            return False
        return True

    def vector(self, image_id: int) -> np.ndarray | None:
        """Return the prediction for an image, (width,), float32; None where there is none."""
        place = self._place.get(image_id)
        return None if place is None else self._vectors[place]

    def trials_of(self, image_id: int) -> int:
        """Return how many trials of an image were averaged."""
        return int(self.n_trials[self._place[image_id]])


def _read(asked: QuerySet) -> tuple[EmbeddingSpace, np.ndarray, dict[str, np.ndarray]]:
    assert asked.space is not None  # predictions are an embedding folder
    vectors = np.concatenate(list(asked.iter_batches(batch_queries=1024))).astype(np.float32)
    table = asked.metadata(np.arange(asked.n_queries), ["image_id", "n_trials"])
    return asked.space, vectors, {name: table[name].to_numpy() for name in table.column_names}
