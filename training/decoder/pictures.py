"""Which pictures a decoder is trained on, and those that it must never see.

A reconstruction is worth nothing if its decoder has seen the picture, so the test images of every
subject that will be reconstructed are named and left out, by their number and by their pixels: a
copy under another number is left out too. Validation images are held out for the validation loss.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.artefact import fingerprint
from index_builder.embeddings.progress import track
from index_builder.embeddings.reader import EmbeddingFolder

from ..encoders.square import square_pixels
from ..errors import RunError, SplitError
from ..pictures.places import open_place
from ..subjects.subject import Subject

DIGEST_BYTES = 16


@dataclass(frozen=True)
class DecoderPictures:
    """Pictures to train on and to validate with, by image id of the targets.

    Parameters
    ----------
    image_ids : int64 array of shape (n,), increasing
        To train on.
    pixels : uint8 array of shape (n, side, side, 3)
    validation_ids : int64 array of shape (m,), increasing
        May be empty.
    validation_pixels : uint8 array of shape (m, side, side, 3)
    excluded : list of dict
        Name and fingerprint of each subject whose test images were left out.
    n_excluded : int
        Targets that were left out as test images.
    n_copies : int
        Targets that were left out because their pixels are those of a test image.
    """

    image_ids: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    validation_ids: NDArray[np.int64]
    validation_pixels: NDArray[np.uint8]
    excluded: list[dict[str, str]]
    n_excluded: int
    n_copies: int


def gather_pictures(
    targets: EmbeddingFolder,
    side: int,
    *,
    images: Subject | None = None,
    excluded: Sequence[Subject] = (),
) -> DecoderPictures:
    """Read the pictures of targets, but for the test images of subjects.

    Parameters
    ----------
    targets : EmbeddingFolder
        With the column ``image_id``; and ``image_path``, relative to the folder, without
        ``images``.
    side : int
        Pictures are resized to a square of it.
    images : Subject or None
        Whose pictures these are: those of its training and validation images alone are read, and
        its test images are excluded.
    excluded : sequence of Subject
        Whose test images are left out, too; their numbers must be those of the targets.

    Raises
    ------
    RunError
        If the targets have no image ids or paths, or nothing is left to train on.
    SplitError
        If a subject trains on an image that another one is tested with.
    PictureError, ArtefactError, SubjectError
        If a picture can't be had.
    """
    subjects = [*([images] if images is not None else []), *excluded]
    known = _image_ids(targets)
    test = _ids_of(subjects, "test")
    validation = np.setdiff1d(_ids_of(subjects, "validation"), test)
    offered = known
    if images is not None:
        shown = np.union1d(images.image_ids("train"), images.image_ids("validation"))
        if len(both := np.intersect1d(shown, test)):
            raise SplitError(
                f"image {both[0]} is shown to {images.path} for training or validation, and to "
                f"another of the excluded subjects for testing ({len(both)} such images). Give "
                f"subjects with the same test images, or train one decoder each."
            )
        offered = np.intersect1d(known, shown)
    open_image = _opener(targets, images)
    learned = np.setdiff1d(offered, np.union1d(test, validation))
    held_out = np.intersect1d(offered, validation)
    tested = np.intersect1d(known, test)
    if not len(learned):
        raise RunError(
            f"{targets.path} has {len(known)} images, and none is left to train on without the "
            f"test and validation images. Give targets of more images, or other subjects."
        )
    ids = np.concatenate([learned, held_out, tested])
    pixels = _read(ids, open_image, side)
    digests = picture_digests(pixels)
    is_test = np.isin(ids, tested)
    forbidden = {digest.tobytes() for digest in digests[is_test]}
    is_copy = np.array([digest.tobytes() in forbidden for digest in digests])
    learns = np.isin(ids, learned) & ~is_copy
    validates = np.isin(ids, held_out) & ~is_copy
    return DecoderPictures(
        image_ids=ids[learns],
        pixels=pixels[learns],
        validation_ids=ids[validates],
        validation_pixels=pixels[validates],
        excluded=[
            {"name": subject.name, "fingerprint": fingerprint(subject.manifest["files"])}
            for subject in subjects
        ],
        n_excluded=len(tested),
        n_copies=int((is_copy & ~is_test).sum()),
    )


def picture_digests(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a short SHA-256 of each picture, uint8 of shape (n, 16)."""
    digests = [hashlib.sha256(picture.tobytes()).digest()[:DIGEST_BYTES] for picture in pixels]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def square_bytes(picture: Image.Image, side: int) -> NDArray[np.uint8]:
    """Resize a picture to a square, bilinearly and antialiased: (side, side, 3)."""
    pixels = (255 * square_pixels(picture, side)).round().byte()
    return np.asarray(pixels.permute(1, 2, 0).numpy())


def _image_ids(targets: EmbeddingFolder) -> NDArray[np.int64]:
    if "image_id" not in targets.columns:
        raise RunError(
            f"{targets.path} has no metadata column image_id (it has "
            f"{', '.join(targets.columns) or 'none'}), so pictures can't be told from each other. "
            f"Make the targets with `voxseek embed`."
        )
    return np.unique(targets.metadata(columns=["image_id"])["image_id"].to_numpy())


def _ids_of(subjects: Sequence[Subject], split: str) -> NDArray[np.int64]:
    ids = [subject.image_ids(split) for subject in subjects]
    return np.unique(np.concatenate([np.empty(0, np.int64), *ids]))


def _opener(targets: EmbeddingFolder, images: Subject | None) -> Callable[[int], Image.Image]:
    """Return what opens the picture of an image id."""
    if images is not None:
        return images.open_image
    if "image_path" not in targets.columns or not targets.is_local:
        raise RunError(
            f"{targets.path} doesn't say where its pictures are: expected a local folder with the "
            f"metadata column image_path. Give the subject that holds them: --images SUBJECT."
        )
    table = targets.metadata(columns=["image_id", "image_path"])
    places = dict(zip(table["image_id"].to_pylist(), table["image_path"].to_pylist(), strict=True))
    root = Path(targets.path)

    def open_image(image_id: int) -> Image.Image:
        return open_place(os.path.normpath(root / places[image_id]))

    return open_image


def _read(
    image_ids: NDArray[np.int64], open_image: Callable[[int], Image.Image], side: int
) -> NDArray[np.uint8]:
    pixels = np.empty((len(image_ids), side, side, 3), np.uint8)
    with ThreadPoolExecutor() as pool:
        read = pool.map(lambda number: square_bytes(open_image(number), side), image_ids.tolist())
        for row, picture in enumerate(
            track(read, label="read", total=len(image_ids), unit="picture")
        ):
            pixels[row] = picture
    return pixels
