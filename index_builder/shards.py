"""One shard: a contiguous range of rows, coded, written once and never changed.

A shard folder is complete when ``shard.json`` stands in it; it is made by `build_shard` from a
`ShardTask`, which is small, picklable, and all that another process needs.

    shards/0000/codes.npy ...    what nominates: `inverted_file` or `graph` say which files
                vectors.npy      what ranks, where that is a copy: `vector_copy`
                tombstones.npy   (m,) int64, rows of the embeddings that are left out
                metadata.arrow   metadata of all rows of the range, in row order
                shard.json

A flat index has neither codes nor a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from .costs import BATCH_BYTES
from .embeddings.artefact import is_complete, read_manifest, write_manifest
from .embeddings.batches import EmbeddingBatch
from .embeddings.collection import Collection
from .embeddings.progress import track
from .graph import GraphWriter
from .inverted_file import ListsWriter
from .metadata import METADATA_FILE, write_metadata
from .npy import save_array
from .planning import IndexPlan
from .quantizer import QUANTIZER_FOLDER, load_quantizer
from .vector_copy import CopyWriter

RECORD_FILE = "shard.json"
KIND = "shard"
FORMAT_VERSION = 2
TOMBSTONES_FILE = "tombstones.npy"

BadRows = Literal["error", "tombstone"]


@dataclass(frozen=True)
class Shard:
    """A shard that stands.

    Parameters
    ----------
    folder : Path
    row_start, row_stop : int
        Rows of the index that it covers.
    """

    folder: Path
    row_start: int
    row_stop: int


@dataclass(frozen=True)
class ShardTask:
    """What it takes to build one shard, anywhere that sees the index and the embeddings.

    Parameters
    ----------
    index : str
        The index folder; its quantizer must stand.
    embeddings : Collection
    plan : IndexPlan
    number : int
        Of the shard.
    row_start, row_stop : int
        Rows of the index.
    first_row : int
        Row of the index that is row 0 of ``embeddings``.
    columns : tuple of str, or None
        Metadata to copy; None: all.
    bad_rows : {"error", "tombstone"}
    build_fingerprint : str
        Of plan, embeddings, seed and policy; a finished shard is kept only if it has the same.
    """

    index: str
    embeddings: Collection
    plan: IndexPlan
    number: int
    row_start: int
    row_stop: int
    first_row: int
    columns: tuple[str, ...] | None
    bad_rows: BadRows
    build_fingerprint: str

    @property
    def folder(self) -> Path:
        """Where the shard stands."""
        return Path(self.index) / shard_folder(self.number)


class _Writer(Protocol):
    """Codes or copies the rows of a shard."""

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Append rows (m,) within the shard, rising, and their vectors as stored."""

    def finish(self) -> list[str]:
        """Write the files, and return their names."""


def shard_folder(number: int) -> str:
    """Return the folder of a shard, relative to the index."""
    return f"shards/{number:04d}"


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a finished shard."""
    return read_manifest(folder, RECORD_FILE, kind=KIND, format_version=FORMAT_VERSION)


def is_finished(folder: Path, build_fingerprint: str) -> bool:
    """Tell whether a shard stands, complete and unaltered, of the same build."""
    return is_complete(
        folder,
        RECORD_FILE,
        kind=KIND,
        format_version=FORMAT_VERSION,
        expected={"build_fingerprint": build_fingerprint},
    )


def write_record(
    folder: Path,
    files: list[str],
    *,
    build_fingerprint: str,
    row_start: int,
    row_stop: int,
    n_tombstones: int,
    n_deleted: int = 0,
    command: str = "voxseek index build",
) -> None:
    """Complete a shard; ``n_deleted`` rows that were taken down have left nothing in it."""
    write_manifest(
        folder,
        RECORD_FILE,
        kind=KIND,
        format_version=FORMAT_VERSION,
        command=command,
        files=files,
        body={
            "build_fingerprint": build_fingerprint,
            "row_start": row_start,
            "row_stop": row_stop,
            "n_tombstones": n_tombstones,
            "n_deleted": n_deleted,
        },
    )


def build_shard(task: ShardTask) -> None:
    """Build one shard, unless it stands.

    Memory: a few batches of rows, the codes of the shard, and the quantizer.

    Raises
    ------
    BadRowError
        If ``bad_rows`` is ``"error"`` and there is one.
    """
    if is_finished(task.folder, task.build_fingerprint):
        return
    files = [TOMBSTONES_FILE]
    dead = [np.empty(0, np.int64)]
    writers = list(_open_writers(task))
    for batch in _read(task):
        start = task.first_row + batch.row_start
        dead.append(start + np.flatnonzero(~batch.is_alive))
        alive = np.flatnonzero(batch.is_alive)
        rows = (start - task.row_start + alive).astype(np.uint32)
        is_whole = len(alive) == len(batch.is_alive)
        vectors = batch.embeddings if is_whole else batch.embeddings[alive]
        for writer in writers:
            writer.add(rows, vectors)
    for writer in writers:
        files += writer.finish()
    tombstones = np.concatenate(dead)
    save_array(task.folder / TOMBSTONES_FILE, tombstones)
    columns = task.embeddings.columns if task.columns is None else task.columns
    if columns:
        rows_of_source = task.row_start - task.first_row, task.row_stop - task.first_row
        write_metadata(task.embeddings, task.folder / METADATA_FILE, *rows_of_source, columns)
        files.append(METADATA_FILE)
    write_record(
        task.folder,
        files,
        build_fingerprint=task.build_fingerprint,
        row_start=task.row_start,
        row_stop=task.row_stop,
        n_tombstones=len(tombstones),
    )


def _open_writers(task: ShardTask) -> Iterator[_Writer]:
    """Yield what codes the rows, and what copies them."""
    plan, n_rows = task.plan, task.row_stop - task.row_start
    if plan.code == "flat":
        return
    quantizer = load_quantizer(Path(task.index) / QUANTIZER_FOLDER)
    writer = GraphWriter if plan.code == "hnsw-sq8" else ListsWriter
    yield writer(task.folder, plan, quantizer, n_rows)
    if plan.rerank != "source":
        yield CopyWriter(task.folder, plan, quantizer, n_rows)


def _read(task: ShardTask) -> Iterator[EmbeddingBatch]:
    batch_rows = max(1, BATCH_BYTES // (4 * task.plan.space.width))
    return track(
        task.embeddings.iter_batches(
            batch_rows=batch_rows,
            start=task.row_start - task.first_row,
            stop=task.row_stop - task.first_row,
            bad_rows=task.bad_rows,
        ),
        label=f"shard {task.number}",
        total=-(-(task.row_stop - task.row_start) // batch_rows),
        unit="block",
    )
