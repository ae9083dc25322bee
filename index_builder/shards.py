"""One shard: a contiguous range of rows, coded, grouped by list, written once and never changed.

A shard folder is complete when ``shard.json`` stands in it; it is made by `build_shard` from a
`ShardTask`, which is small, picklable, and all that another process needs.

    shards/0000/codes.npy        (n, code_bytes) uint8, grouped by list, rows rising within a list
                rows.npy         (n,) uint32, row within the shard of each code
                list_sizes.npy   (n_lists,) int64
                tombstones.npy   (m,) int64, rows of the folder that are left out
                metadata.arrow   metadata of all rows of the range, in row order
                shard.json

A flat index has no codes; the first three files are absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .cosine import unit_rows
from .embeddings.artefact import atomic_write, read_manifest, verify_files, write_manifest
from .embeddings.errors import ArtefactError
from .embeddings.progress import track
from .embeddings.reader import EmbeddingBatch, EmbeddingFolder
from .embeddings.space import EmbeddingSpace
from .factory import encode, make_lists
from .metadata import METADATA_FILE, write_metadata
from .planning import code_bytes
from .quantizer import QUANTIZER_FOLDER, Quantizer, load_quantizer

RECORD_FILE = "shard.json"
KIND = "shard"
FORMAT_VERSION = 1
CODES_FILE, ROWS_FILE, SIZES_FILE = "codes.npy", "rows.npy", "list_sizes.npy"
TOMBSTONES_FILE = "tombstones.npy"
_BATCH_BYTES = 32 << 20  # of float32 rows, read, rotated and coded together
_WRITE_ROWS = 65_536

BadRows = Literal["error", "tombstone"]


@dataclass(frozen=True)
class ShardTask:
    """What it takes to build one shard, anywhere that sees both folders.

    Parameters
    ----------
    index : str
        The index folder; its quantizer must stand.
    embeddings : str
        Path or URL of the embedding folder.
    space : EmbeddingSpace
    number : int
        Of the shard.
    row_start, row_stop : int
    n_lists : int
        0 for flat.
    bad_rows : {"error", "tombstone"}
    build_fingerprint : str
        Of plan, embeddings, seed and policy; a finished shard is kept only if it has the same.
    """

    index: str
    embeddings: str
    space: EmbeddingSpace
    number: int
    row_start: int
    row_stop: int
    n_lists: int
    bad_rows: BadRows
    build_fingerprint: str

    @property
    def folder(self) -> Path:
        """Where the shard stands."""
        return Path(self.index) / shard_folder(self.number)


def shard_folder(number: int) -> str:
    """Return the folder of a shard, relative to the index."""
    return f"shards/{number:04d}"


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a finished shard."""
    return read_manifest(folder, RECORD_FILE, kind=KIND, format_version=FORMAT_VERSION)


def is_finished(task: ShardTask) -> bool:
    """Tell whether the task's shard stands, complete and unaltered, for the same build."""
    try:
        record = read_record(task.folder)
        verify_files(task.folder, record)
    except ArtefactError:
        return False
    return bool(record["build_fingerprint"] == task.build_fingerprint)


def build_shard(task: ShardTask) -> dict[str, Any]:
    """Build one shard and return its record.

    Memory: a batch of rows, the codes of the shard, and the quantizer.

    Raises
    ------
    BadRowError
        If ``bad_rows`` is ``"error"`` and there is one.
    """
    embeddings = EmbeddingFolder.open(task.embeddings, space=task.space)
    batch_rows = max(1, _BATCH_BYTES // (4 * task.space.width))
    batches = track(
        embeddings.iter_batches(
            batch_rows=batch_rows, start=task.row_start, stop=task.row_stop, bad_rows=task.bad_rows
        ),
        label=f"shard {task.number}",
        total=-(-(task.row_stop - task.row_start) // batch_rows),
        unit="block",
    )
    files = [TOMBSTONES_FILE]
    if task.n_lists:
        quantizer = load_quantizer(Path(task.index) / QUANTIZER_FOLDER)
        tombstones = _write_codes(task, quantizer, batches)
        files += [CODES_FILE, ROWS_FILE, SIZES_FILE]
    else:
        tombstones = np.concatenate(
            [batch.row_start + np.flatnonzero(~batch.is_alive) for batch in batches]
        )
    _save(task.folder / TOMBSTONES_FILE, tombstones.astype(np.int64))
    if embeddings.columns:
        write_metadata(embeddings, task.folder / METADATA_FILE, task.row_start, task.row_stop)
        files.append(METADATA_FILE)
    return write_manifest(
        task.folder,
        RECORD_FILE,
        kind=KIND,
        format_version=FORMAT_VERSION,
        command="voxseek index build",
        files=files,
        body={
            "build_fingerprint": task.build_fingerprint,
            "row_start": task.row_start,
            "row_stop": task.row_stop,
            "n_tombstones": len(tombstones),
        },
    )


def _write_codes(
    task: ShardTask, quantizer: Quantizer, batches: Iterator[EmbeddingBatch]
) -> np.ndarray:
    """Write codes, rows and list sizes; return the rows that are left out."""
    n = task.row_stop - task.row_start
    codes = np.empty((n, code_bytes(task.space.width)), np.uint8)
    lists = np.empty(n, np.int32)
    rows = np.empty(n, np.uint32)
    lists_of_shard = make_lists(quantizer.coarse)
    dead = [np.empty(0, np.int64)]
    n_coded = 0
    for batch in batches:
        alive = np.flatnonzero(batch.is_alive)
        dead.append(batch.row_start + np.flatnonzero(~batch.is_alive))
        vectors = quantizer.transform(unit_rows(batch.embeddings[alive]))
        piece = slice(n_coded, n_coded + len(alive))
        chosen = quantizer.route(vectors, 1)[:, 0]
        codes[piece] = encode(lists_of_shard, vectors, chosen)
        lists[piece] = chosen
        rows[piece] = batch.row_start - task.row_start + alive
        n_coded += len(alive)
    order = np.argsort(lists[:n_coded], kind="stable")
    sizes = np.bincount(lists[:n_coded], minlength=task.n_lists).astype(np.int64)
    with (
        atomic_write(task.folder / CODES_FILE) as temporary,
        open(temporary, "wb") as handle,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (n_coded, codes.shape[1])}
        np.lib.format.write_array_header_1_0(handle, header)
        for start in range(0, n_coded, _WRITE_ROWS):
            handle.write(codes[order[start : start + _WRITE_ROWS]].data)
    _save(task.folder / ROWS_FILE, rows[order])
    _save(task.folder / SIZES_FILE, sizes)
    return np.concatenate(dead)


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, array, allow_pickle=False)
