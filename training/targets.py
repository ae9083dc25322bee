"""Targets: pictures through a frozen encoder into an embedding folder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from index_builder.embeddings.progress import track
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.writer import UNREADABLE_FILE, EmbeddingWriter

from .encoders.contract import ImageEncoder
from .errors import TargetsError
from .pictures.errors import PictureError
from .pictures.listed import Picture, PictureList, list_pictures
from .pictures.source import PicturePart, PictureSource

__all__ = ["Picture", "count_unreadable", "embed_pictures", "list_pictures"]


def embed_pictures(
    pictures: PictureSource | list[Picture],
    out: str | os.PathLike[str],
    encoder: ImageEncoder,
    *,
    batch_size: int = 16,
    part_rows: int = 1024,
    command: str = "voxseek embed",
) -> EmbeddingFolder:
    """Embed pictures into a folder with the metadata that their source has.

    ``image_path`` is relative to ``out``. Parts that an interrupted run finished are kept. Pictures
    that can't be read are left out, and listed in ``unreadable.parquet`` with the column
    ``reason``; in a strict source, such as a subject, the first of them is an error.

    Parameters
    ----------
    pictures : PictureSource or list of Picture
    out : path
    encoder : ImageEncoder
    batch_size : int
        Pictures an encoder call; each core decodes and encodes one batch at a time.
    part_rows : int
        Pictures of one part: what an interruption can cost, and what is held in memory of a
        source that isn't files.
    command : str
        Recorded in ``space.json``.

    Raises
    ------
    TargetsError
        If a picture of a strict source can't be read, or none of another can; names it.
    """
    if batch_size < 1 or part_rows < 1:
        raise ValueError(f"batch_size {batch_size} and part_rows {part_rows} must be at least 1.")
    root = Path(out)
    source: PictureSource = (
        PictureList(pictures, "the list") if isinstance(pictures, list) else pictures
    )
    details = {**encoder.details, **source.identity(root), "part_rows": part_rows}
    with EmbeddingWriter(root, encoder.space, command=command, details=details) as writer:
        parts = source.parts(root, part_rows, after=writer.last_row())
        outcomes = _embed_each(parts, encoder, batch_size)
        if source.n_pictures is not None:
            outcomes = track(
                outcomes,
                label="embed",
                total=source.n_pictures,
                unit="picture",
                n_done=writer.n_rows_done,
            )
        unreadable: list[pa.Table] = []
        first_error: PictureError | None = None
        for part, group in groupby(outcomes, key=attrgetter("part")):
            rows, embeddings, errors = [], [], {}
            for outcome in group:
                if isinstance(outcome.found, PictureError):
                    first_error = first_error or outcome.found
                    errors[outcome.row] = outcome.found
                    if source.is_strict:
                        raise _refusal(outcome.found)
                else:
                    rows.append(outcome.row)
                    embeddings.append(outcome.found)
            if errors:
                unreadable.append(_list_unreadable(part, errors))
            if rows:
                writer.write(
                    np.stack(embeddings), part.metadata.take(rows), unreadable=_joined(unreadable)
                )
                unreadable = []
        if first_error is not None and not writer.n_rows_done:
            raise TargetsError(
                f"none of the pictures of {source.name} can be read. The first: {first_error}"
            ) from first_error
        return writer.finish(unreadable=_joined(unreadable))


def count_unreadable(folder: EmbeddingFolder) -> int:
    """Return how many pictures were left out of a local folder that `embed_pictures` wrote."""
    listed = Path(folder.path) / UNREADABLE_FILE
    return int(pq.read_metadata(listed).num_rows) if listed.is_file() else 0


def _refusal(error: PictureError) -> TargetsError:
    return TargetsError(f"{error} Replace or remove it; parts embedded so far are kept.")


def _list_unreadable(part: PicturePart, errors: dict[int, PictureError]) -> pa.Table:
    """Return the metadata of pictures that can't be read, and why."""
    reasons = pa.array([error.reason for error in errors.values()], pa.string())
    return part.metadata.take(list(errors)).append_column("reason", reasons)


def _joined(tables: Sequence[pa.Table]) -> pa.Table | None:
    return pa.concat_tables(tables).combine_chunks() if tables else None


@dataclass(frozen=True)
class _Outcome:
    """What became of one picture: its embedding, or why there is none."""

    part: PicturePart
    row: int
    found: NDArray[np.float32] | PictureError


def _embed_each(
    parts: Iterable[PicturePart], encoder: ImageEncoder, batch_size: int
) -> Iterator[_Outcome]:
    """Yield what became of each picture, in order; one thread decodes and encodes a batch.

    Side by side, batches share nothing: several threads inside one small convolution spend their
    time waiting for each other, most of all on a machine that has other work.
    """

    def embed(part: PicturePart, rows: range) -> list[_Outcome]:
        prepared: dict[int, NDArray[np.float32]] = {}
        found: dict[int, NDArray[np.float32] | PictureError] = {}
        for row in rows:
            try:
                prepared[row] = encoder.prepare(part.open(row))
            except PictureError as error:
                found[row] = error
        if prepared:
            encoded = encoder.encode(np.stack(list(prepared.values())))
            found |= dict(zip(prepared, encoded, strict=True))
        return [_Outcome(part, row, found[row]) for row in rows]

    # A batch never crosses parts: a resumed run forms the same ones, and rounds alike.
    batches = (
        (part, range(start, min(start + batch_size, part.metadata.num_rows)))
        for part in parts
        for start in range(0, part.metadata.num_rows, batch_size)
    )
    n_workers = os.cpu_count() or 1
    with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = deque(pool.submit(embed, *batch) for batch in islice(batches, 2 * n_workers))
        while waiting:
            outcomes = waiting.popleft().result()
            waiting.extend(pool.submit(embed, *batch) for batch in islice(batches, 1))
            yield from outcomes
