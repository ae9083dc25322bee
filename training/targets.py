"""Targets: pictures through a frozen encoder into an embedding folder."""

from __future__ import annotations

import csv
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from index_builder.embeddings.artefact import fingerprint
from index_builder.embeddings.progress import track
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.writer import EmbeddingWriter

from .encoders.contract import ImageEncoder
from .errors import TargetsError
from .subjects.subject import Subject

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
CAPTIONS_NAME = "captions.csv"


@dataclass(frozen=True)
class Picture:
    """One picture to embed.

    Parameters
    ----------
    image_id : int
        Its number: in a subject, the subject's; in a folder, its place in the order of paths.
    path : Path
    caption : str
        May be empty.
    """

    image_id: int
    path: Path
    caption: str


def list_pictures(source: str | os.PathLike[str]) -> list[Picture]:
    """List the pictures of a subject folder, or of any folder and the folders in it.

    A file ``captions.csv`` in the folder (columns ``image`` and ``caption``; the first caption of
    a picture counts) gives captions by path relative to the folder.

    Raises
    ------
    TargetsError
        If there are no pictures, or a caption names one that is not there.
    """
    root = Path(source)
    if (root / "subject.json").is_file():
        subject = Subject.open(root)
        captions = subject.captions()
        return [
            Picture(
                int(image_id), subject.image_path(int(image_id)), captions.get(int(image_id), "")
            )
            for image_id in subject.image_ids("all")
        ]
    if not root.is_dir():
        raise TargetsError(f"{root} is not a folder; expected a folder of pictures or a subject.")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise TargetsError(
            f"{root} holds no pictures; looked for files ending in {', '.join(PICTURE_SUFFIXES)}."
        )
    by_name = _read_captions(root / CAPTIONS_NAME) if (root / CAPTIONS_NAME).is_file() else {}
    names = [path.relative_to(root).as_posix() for path in paths]
    if unknown := sorted(set(by_name) - set(names)):
        raise TargetsError(
            f"{root / CAPTIONS_NAME} has a caption for {unknown[0]!r} ({len(unknown)} such names), "
            f"which is not a picture of {root}. Correct the column `image`."
        )
    return [
        Picture(image_id, path, by_name.get(name, ""))
        for image_id, (path, name) in enumerate(zip(paths, names, strict=True))
    ]


def _read_captions(path: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    with open(path, newline="", encoding="utf-8") as handle:
        rows = csv.DictReader(handle)
        if not {"image", "caption"} <= set(rows.fieldnames or ()):
            raise TargetsError(
                f"{path} has the columns {rows.fieldnames}, expected `image` and `caption`."
            )
        for row in rows:
            captions.setdefault(row["image"], row["caption"])
    return captions


def embed_pictures(
    pictures: Sequence[Picture],
    out: str | os.PathLike[str],
    encoder: ImageEncoder,
    *,
    batch_size: int = 16,
    part_rows: int = 1024,
    command: str = "voxseek embed",
) -> EmbeddingFolder:
    """Embed pictures into a folder with the columns ``image_id``, ``image_path``, ``caption``.

    ``image_path`` is relative to ``out``. Parts that an interrupted run finished are kept.

    Parameters
    ----------
    pictures : sequence of Picture
    out : path
    encoder : ImageEncoder
    batch_size : int
        Pictures an encoder call; each core decodes and encodes one batch at a time.
    part_rows : int
        Rows of one part: what an interruption can cost.
    command : str
        Recorded in ``space.json``.

    Raises
    ------
    TargetsError
        If a picture can't be read; names it.
    """
    if batch_size < 1 or part_rows < 1:
        raise ValueError(f"batch_size {batch_size} and part_rows {part_rows} must be at least 1.")
    root = Path(out)
    listing = [(p.image_id, os.path.relpath(p.path, root), p.caption) for p in pictures]
    details = {**encoder.details, "n_pictures": len(pictures), "pictures": fingerprint(listing)}
    with EmbeddingWriter(root, encoder.space, command=command, details=details) as writer:
        n_done = writer.n_rows_done
        left = pictures[n_done:]
        embedded = track(
            _encode(left, encoder, batch_size, part_rows),
            label="embed",
            total=len(pictures),
            unit="picture",
            n_done=n_done,
        )
        for start in range(n_done, len(pictures), part_rows):
            rows = range(start, min(start + part_rows, len(pictures)))
            image_ids, paths, captions = zip(*(listing[row] for row in rows), strict=True)
            metadata = pa.table(
                {
                    "image_id": pa.array(image_ids, pa.int64()),
                    "image_path": pa.array([Path(path).as_posix() for path in paths], pa.string()),
                    "caption": pa.array(captions, pa.string()),
                }
            )
            writer.write(np.stack([next(embedded) for _ in rows]), metadata)
        return writer.finish()


def _encode(
    pictures: Sequence[Picture], encoder: ImageEncoder, batch_size: int, part_rows: int
) -> Iterator[NDArray[np.float32]]:
    """Yield one embedding a picture, in order; a batch is decoded and encoded by one thread.

    Side by side, batches share nothing: several threads inside one small convolution spend their
    time waiting for each other, most of all on a machine that has other work.
    """

    def embed(batch: Sequence[Picture]) -> NDArray[np.float32]:
        return encoder.encode(np.stack([_prepare(picture, encoder) for picture in batch]))

    # A batch never crosses parts: a resumed run forms the same ones, and rounds alike.
    batches = (
        pictures[i : min(i + batch_size, start + part_rows)]
        for start in range(0, len(pictures), part_rows)
        for i in range(start, min(start + part_rows, len(pictures)), batch_size)
    )
    n_workers = os.cpu_count() or 1
    with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = deque(pool.submit(embed, batch) for batch in islice(batches, 2 * n_workers))
        while waiting:
            embeddings = waiting.popleft().result()
            waiting.extend(pool.submit(embed, batch) for batch in islice(batches, 1))
            yield from embeddings


def _prepare(picture: Picture, encoder: ImageEncoder) -> NDArray[np.float32]:
    try:
        with Image.open(picture.path) as opened:
            return encoder.prepare(opened)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise TargetsError(
            f"{picture.path} (image_id {picture.image_id}) can't be read as a picture: "
            f"{error}. Replace or remove it; parts embedded so far are kept."
        ) from error
