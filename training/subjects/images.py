"""The pictures of a subject folder: images.parquet, and the files it points to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from index_builder.embeddings.artefact import atomic_write
from index_builder.embeddings.progress import track

from ..errors import SubjectError

IMAGES = "images.parquet"
IMAGE_SCHEMA = pa.schema(
    [("image_id", pa.int64()), ("path", pa.string()), ("caption", pa.string())]
)


def write_images(root: Path, images: pa.Table, shown: Iterable[int]) -> list[str]:
    """Copy pictures into a subject folder and write images.parquet.

    Parameters
    ----------
    root : Path
        The subject folder.
    images : pyarrow.Table
        Columns image_id, path of an existing file, caption (may be null).
    shown : iterable of int
        The images that the trials show; ``images`` must hold these and no others.

    Returns
    -------
    files : list of str
        What was written, relative to ``root``.

    Raises
    ------
    SubjectError
        If an image is listed twice, missing, never shown, or can't be decoded.
    """
    table = _check_table(images, where="the image table")
    _require_same_ids(table["image_id"].to_pylist(), shown, where="the image table")
    relative_paths = []
    rows = zip(table["image_id"].to_pylist(), table["path"].to_pylist(), strict=True)
    for image_id, source in track(rows, label="copy images", total=len(table), unit="image"):
        extension = require_readable(Path(source), image_id)
        relative = f"images/{image_id}{extension}"
        with atomic_write(root / relative) as temporary:
            shutil.copyfile(source, temporary)
        relative_paths.append(relative)
    table = table.set_column(1, IMAGE_SCHEMA.field("path"), pa.array(relative_paths, pa.string()))
    with atomic_write(root / IMAGES) as temporary:
        pq.write_table(table, temporary)
    return [IMAGES, *relative_paths]


def read_images(root: Path, shown: Iterable[int]) -> dict[int, tuple[str, str | None]]:
    """Read images.parquet and check it.

    Returns
    -------
    images : dict of int to (str, str or None)
        Path relative to ``root``, and caption, by image id. Empty if the folder has no pictures.

    Raises
    ------
    SubjectError
        If the table is damaged, leaves the folder, or doesn't hold exactly the shown images, or
        a file is missing.
    """
    path = root / IMAGES
    if not path.is_file():
        return {}
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise SubjectError(f"{path} can't be read ({error}); import the subject again.") from error
    table = _check_table(table, where=str(path))
    _require_same_ids(table["image_id"].to_pylist(), shown, where=str(path))
    images = {}
    for row in table.to_pylist():
        relative = PurePosixPath(row["path"])
        if relative.is_absolute() or ".." in relative.parts:
            raise SubjectError(
                f"{path}: the path of image {row['image_id']} is {row['path']!r}, expected one "
                f"within the subject folder. Import the subject again."
            )
        if not (root / relative).is_file():
            raise SubjectError(
                f"{root / relative} is missing, and {path} lists it as image {row['image_id']}. "
                f"Restore the file, or import the subject again."
            )
        images[row["image_id"]] = (row["path"], row["caption"])
    return images


def require_readable(path: str | os.PathLike[str], image_id: int) -> str:
    """Decode a picture and return its file extension, with the dot, in lower case.

    Raises
    ------
    SubjectError
        If the file is missing, no picture, or truncated.
    """
    with _opened(path, image_id) as image:
        extension = Path(path).suffix.lower() or f".{str(image.format).lower()}"
        image.draft("RGB", (64, 64))  # JPEG: reads every byte, and skips most of the arithmetic
        image.load()
    return extension


def load_picture(path: str | os.PathLike[str], image_id: int) -> Image.Image:
    """Decode a picture, apart from its file; raises as `require_readable` does."""
    with _opened(path, image_id) as image:
        image.load()
        return image.copy()


@contextmanager
def _opened(path: str | os.PathLike[str], image_id: int) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SubjectError(
            f"image {image_id} can't be read from {os.fspath(path)} ({error}); expected a picture "
            f"that Pillow can decode. Restore the file or correct its path."
        ) from error


def _check_table(images: pa.Table, *, where: str) -> pa.Table:
    if sorted(images.column_names) != sorted(IMAGE_SCHEMA.names):
        raise SubjectError(
            f"{where} has columns {images.column_names}, expected exactly {IMAGE_SCHEMA.names}."
        )
    try:
        table = images.select(IMAGE_SCHEMA.names).cast(IMAGE_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SubjectError(
            f"{where} can't be read as images ({error}); expected whole numbers in image_id, "
            f"text in path and caption."
        ) from error
    for name in ("image_id", "path"):
        if table[name].null_count:
            row = int(np.argmax(table[name].is_null().to_numpy()))
            raise SubjectError(f"{where}, row {row}: {name} is empty; every image needs one.")
    ids = table["image_id"].to_numpy()
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise SubjectError(
            f"{where} lists image {unique[counts > 1][0]} {counts.max()} times; expected each "
            f"image once. Remove the duplicates."
        )
    return table


def _require_same_ids(listed: Iterable[int], shown: Iterable[int], *, where: str) -> None:
    listed_ids, shown_ids = set(listed), set(shown)
    if missing := sorted(shown_ids - listed_ids):
        raise SubjectError(
            f"{where} lacks image {missing[0]}, which trials show ({len(missing)} such images). "
            f"Add its file, or leave those trials out."
        )
    if extra := sorted(listed_ids - shown_ids):
        raise SubjectError(
            f"{where} lists image {extra[0]}, which no trial shows ({len(extra)} such images). "
            f"Leave it out."
        )
