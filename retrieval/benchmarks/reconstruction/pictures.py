"""The two sides of the benchmark: reconstructions, and the pictures that were seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from index_builder.embeddings.artefact import fingerprint, sha256_file
from training.subjects.subject import MANIFEST, Subject

from ...errors import BenchmarkError
from ...images.decoding import PICTURE_SUFFIXES, decode_picture
from ..identification import IntArray
from .resizing import Pixels, Resize, picture_pixels, resize_square

SIDE = 256  # Where all metrics of Scotti et al. 2023 (arXiv:2305.18274) start, by their code.
RECONSTRUCTIONS = "images"  # of what `voxseek reconstruct` writes
_N_NAMED = 5


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures by image, read one by one.

    Parameters
    ----------
    name : str
        For the record.
    image_ids : int64 array of shape (n,), increasing
    open_picture : callable
        Returns the picture of an image id.
    fingerprint : str
        Of their content.
    """

    name: str
    image_ids: IntArray
    open_picture: Callable[[int], Image.Image]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.image_ids)

    def read(self, rows: IntArray, resize: Resize) -> Pixels:
        """Return pictures as float32 array of shape (n, 3, 256, 256), in [0, 1].

        Parameters
        ----------
        rows : int64 array of shape (n,)
            Positions in ``image_ids``.
        resize : {"plain", "antialiased"}
        """
        canvases = np.empty((len(rows), 3, SIDE, SIDE), np.float32)
        for canvas, image_id in zip(canvases, self.image_ids[rows].tolist(), strict=True):
            canvas[:] = resize_square(
                picture_pixels(self.open_picture(image_id))[None], SIDE, resize
            )[0]
        return canvases


def open_folder(path: Path) -> Pictures:
    """Open a folder of pictures that are named by image id, such as ``12.png``.

    Parameters
    ----------
    path : Path
        The folder, or one with a folder ``images`` in it, as `voxseek reconstruct` writes. Files
        that aren't pictures by their suffix are left alone.

    Raises
    ------
    BenchmarkError
        If it isn't a folder, holds no pictures, one with another name, or two of one image.
    """
    folder = path / RECONSTRUCTIONS if (path / RECONSTRUCTIONS).is_dir() else path
    if not folder.is_dir():
        raise BenchmarkError(
            f"{folder} is not a folder; expected one of pictures that are named by image_id, such "
            f"as 12.png."
        )
    files: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in PICTURE_SUFFIXES or file.name.startswith("."):
            continue
        if not (file.stem.isascii() and file.stem.isdecimal()):
            raise BenchmarkError(
                f"{file} is not named by an image_id; expected a whole number, such as 12.png. "
                f"Rename it or take it away."
            )
        image_id = int(file.stem)
        if image_id in files:
            raise BenchmarkError(
                f"{folder} has two pictures of image_id {image_id}, {files[image_id].name} and "
                f"{file.name}; expected one. Take one away."
            )
        files[image_id] = file
    if not files:
        raise BenchmarkError(
            f"{folder} holds no pictures; expected files that are named by image_id, such as "
            f"12.png ({', '.join(PICTURE_SUFFIXES)})."
        )
    hashes = {str(image_id): sha256_file(files[image_id]) for image_id in sorted(files)}
    return Pictures(
        path.name,
        np.array(sorted(files), dtype=np.int64),
        lambda image_id: decode_picture(files[image_id]),
        fingerprint(hashes),
    )


def open_of_subject(subject: Subject, split: str) -> Pictures:
    """Return the pictures that a subject saw in a split.

    Raises
    ------
    BenchmarkError
        If the subject has no pictures, or no trials of that split.
    """
    image_ids = subject.image_ids(split)
    if not subject.has_images or not len(image_ids):
        lacks = "pictures" if len(image_ids) else f"images of the split {split!r}"
        raise BenchmarkError(
            f"the subject {subject.path} has no {lacks}, so there is nothing to compare with. "
            f"Import it with its images, or give a folder of pictures that are named by image_id."
        )
    return Pictures(
        f"{subject.name}, {split}", image_ids, subject.open_image, fingerprint(subject.manifest)
    )


def open_seen(path: Path, split: str) -> tuple[Pictures, Subject | None]:
    """Open the pictures that were seen: those of a subject folder's split, or a folder's.

    Returns
    -------
    seen : Pictures
    subject : Subject or None
        Where they are from, if from one.
    """
    if not (path / MANIFEST).is_file():
        return open_folder(path), None
    subject = Subject.open(path)
    return open_of_subject(subject, split), subject


def training_pictures(subject: Subject | None) -> Pictures | None:
    """Return the pictures that a subject's decoder learned from, if there are any."""
    if subject is None or not len(subject.image_ids("train")):
        return None
    return open_of_subject(subject, "train")


def require_same_images(reconstructions: Pictures, seen: Pictures) -> None:
    """Raise unless every seen picture has its reconstruction, and there are no others.

    Raises
    ------
    BenchmarkError
        Names the images.
    """
    for missing, what, mend in (
        (
            np.setdiff1d(seen.image_ids, reconstructions.image_ids),
            f"no reconstruction of {{}} of the {len(seen)} seen pictures ({seen.name})",
            "Reconstruct them too: a mean over some images isn't one over all",
        ),
        (
            np.setdiff1d(reconstructions.image_ids, seen.image_ids),
            f"a reconstruction of {{}}, which is not among the seen pictures ({seen.name})",
            "Take it away, or name the split that was reconstructed",
        ),
    ):
        if len(missing):
            raise BenchmarkError(
                f"{reconstructions.name} has {what.format(_shown(missing))}. {mend}."
            )
    if len(seen) < 2:
        raise BenchmarkError(
            f"{seen.name} has {len(seen)} picture, expected at least 2: with nothing to confuse "
            f"it with, a picture is always identified."
        )


def mean_picture(pictures: Pictures, resize: Resize) -> Pictures:
    """Return one picture, the mean of ``pictures``, as of the first of their image ids."""
    total = np.zeros((3, SIDE, SIDE))
    for row in range(len(pictures)):
        total += pictures.read(np.array([row]), resize)[0]
    levels = np.rint(255 * total / len(pictures)).astype(np.uint8)
    picture = Image.fromarray(levels.transpose(1, 2, 0))
    return Pictures(
        f"mean of {pictures.name}",
        pictures.image_ids[:1],
        partial(_copy, picture),
        fingerprint(f"mean of {pictures.fingerprint}"),
    )


def _copy(picture: Image.Image, image_id: int) -> Image.Image:
    return picture.copy()


def _shown(image_ids: IntArray) -> str:
    ids = ", ".join(map(str, image_ids[:_N_NAMED].tolist()))
    more = f" and {len(image_ids) - _N_NAMED} more" if len(image_ids) > _N_NAMED else ""
    return f"image_id {ids}{more}"
