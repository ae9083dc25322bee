"""The exact nearest rows, by blocks, in bounded memory: ground truth and flat search.

The truth of a certificate is searched in pieces, each a task that an executor runs anywhere:

    workspace/{16 hex of the fingerprint of queries and sources}/
        unit.npy       (n_queries, width) float32
        excluded.npy   (n_queries,) int64, the row that each query must not find, or -1
        deleted.npy    (m,) int64, rising, rows that no query must find
        queries.json
        {row_start:012d}-{row_stop:012d}/    rows.npy, scores.npy (n_queries, k), piece.json

A piece is complete when its record stands, and is kept as long as the workspace is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .cosine import best_per_query, kth_largest, pair_scores, rounding_error, row_norms
from .embeddings.artefact import fingerprint, is_complete, write_manifest
from .embeddings.float16 import to_float32
from .embeddings.reader import EmbeddingBatch
from .npy import save_array

if TYPE_CHECKING:
    from .embeddings.collection import Collection
    from .execution.contract import Executor

_BLOCK_BYTES = 32 << 20  # float32 scores of all queries against a block
# Of rows that a task reads: enough to be worth the round trip, and not too many pieces to merge.
_TASK_BYTES = 256 << 20
_MOST_TASKS = 1024
_INPUTS = ("unit", "excluded", "deleted")
_FORMAT_VERSION = 1


def block_rows(n_queries: int, width: int) -> int:
    """Return how many rows to scan at once so that scores and rows stay within 32 MiB each."""
    return int(np.clip(_BLOCK_BYTES // (4 * max(n_queries, width)), 1, 1 << 16))


def exact_search(
    batches: Iterable[EmbeddingBatch],
    queries: np.ndarray,
    k: int,
    *,
    excluded: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` rows of largest cosine for each query, compared with every row.

    Parameters
    ----------
    batches : iterable of EmbeddingBatch
        All rows, for example of ``EmbeddingFolder.iter_batches``; dead rows are passed over.
    queries : ndarray of shape (n_queries, width), float32, unit rows
    k : int
    excluded : ndarray of shape (n_queries,), int64, or None
        A row that each query must not find: itself.

    Returns
    -------
    rows : ndarray of shape (n_queries, k), int64
        Best first, ties by smaller row; -1 where there are fewer rows.
    scores : ndarray of shape (n_queries, k), float32
        Cosines; NaN there.
    """
    n_queries, width = queries.shape
    tolerance = rounding_error(width)
    best_rows = np.full((n_queries, k), -1, np.int64)
    best_scores = np.full((n_queries, k), np.nan, np.float32)
    for batch in batches:
        vectors = batch.embeddings.reshape(len(batch.embeddings), width)
        widened = to_float32(vectors)
        nominees = queries @ widened.T
        nominees /= row_norms(widened)
        nominees[:, ~batch.is_alive] = -np.inf
        if excluded is not None:
            local = excluded - batch.row_start
            is_here = (local >= 0) & (local < len(vectors))
            nominees[np.flatnonzero(is_here), local[is_here]] = -np.inf
        # NaN, where fewer than k rows are known, must let everything through: cosines exceed -2.
        floor = np.fmax(best_scores[:, -1], np.float32(-2))
        if k <= len(vectors) and np.isnan(best_scores[:, -1]).any():
            floor = np.maximum(floor, kth_largest(nominees, k))
        query_of, local_rows = np.nonzero(nominees >= (floor - tolerance)[:, None])
        is_alive = nominees[query_of, local_rows] > -np.inf
        query_of, local_rows = query_of[is_alive], local_rows[is_alive]
        scores = pair_scores(queries, vectors, query_of, local_rows)
        known = best_rows >= 0
        best_rows, best_scores = best_per_query(
            np.concatenate([np.nonzero(known)[0], query_of]),
            np.concatenate([best_rows[known], local_rows + batch.row_start]),
            np.concatenate([best_scores[known], scores]),
            n_queries,
            k,
        )
    return best_rows, best_scores


def batches_of(
    vectors: np.ndarray, batch_rows: int, is_alive: np.ndarray | None = None
) -> Iterable[EmbeddingBatch]:
    """Yield an array of shape (n, width) that is in memory as batches; all alive by default."""
    alive = np.ones(len(vectors), bool) if is_alive is None else is_alive
    for start in range(0, len(vectors), batch_rows):
        piece = slice(start, start + batch_rows)
        yield EmbeddingBatch(start, vectors[piece], alive[piece])


@dataclass(frozen=True)
class TruthTask:
    """What it takes to search one range of rows, anywhere that sees the embeddings and the folder.

    Parameters
    ----------
    folder : str
        Of the queries, in the workspace; the piece is written there too.
    embeddings : Collection
    row_start, row_stop : int
    k : int
    bad_rows : {"error", "tombstone"}
    truth_fingerprint : str
        Of queries, embeddings and policy; a finished piece is kept only if it has the same.
    """

    folder: str
    embeddings: Collection
    row_start: int
    row_stop: int
    k: int
    bad_rows: Literal["error", "tombstone"]
    truth_fingerprint: str

    @property
    def piece(self) -> Path:
        """Where the piece stands."""
        return Path(self.folder) / f"{self.row_start:012d}-{self.row_stop:012d}"


def find_truth(
    embeddings: Collection,
    unit: np.ndarray,
    k: int,
    *,
    excluded: np.ndarray,
    deleted: np.ndarray,
    bad_rows: Literal["error", "tombstone"],
    executor: Executor,
    workspace: Path,
) -> np.ndarray:
    """Return the ``k`` rows of largest cosine for each query, compared with every row.

    The same rows whatever the executor. Interrupted, it goes on from the pieces that stand.

    Parameters
    ----------
    embeddings : Collection
    unit : ndarray of shape (n_queries, width), float32, unit rows
    k : int
    excluded : ndarray of shape (n_queries,), int64
        A row that each query must not find, itself; or -1.
    deleted : ndarray of shape (m,), int64, rising
        Rows that no query must find.
    bad_rows : {"error", "tombstone"}
    executor : Executor
    workspace : Path
        Where pieces stand; of the caller, to remove when they are no longer needed.

    Returns
    -------
    rows : ndarray of shape (n_queries, k), int64
        Best first, ties by smaller row; -1 where there are fewer rows.
    """
    n_queries = len(unit)
    rows, scores = np.full((n_queries, k), -1, np.int64), np.full((n_queries, k), np.nan, "f4")
    tasks = truth_tasks(
        embeddings,
        unit,
        k,
        excluded=excluded,
        deleted=deleted,
        bad_rows=bad_rows,
        workspace=workspace,
    )
    executor.run(search_piece, tasks, label="exact search")
    for task in tasks:
        piece_rows, piece_scores = (_load(task.piece, name) for name in ("rows", "scores"))
        all_rows, all_scores = np.hstack([rows, piece_rows]), np.hstack([scores, piece_scores])
        query_of, place = np.nonzero(all_rows >= 0)
        rows, scores = best_per_query(
            query_of, all_rows[query_of, place], all_scores[query_of, place], n_queries, k
        )
    return rows


def truth_tasks(
    embeddings: Collection,
    unit: np.ndarray,
    k: int,
    *,
    excluded: np.ndarray,
    deleted: np.ndarray,
    bad_rows: Literal["error", "tombstone"],
    workspace: Path,
) -> list[TruthTask]:
    """Write the queries into the workspace, and return the task of each range of rows.

    Parameters are those of `find_truth`. How rows are cut depends on their number and size alone.
    """
    inputs: dict[str, np.ndarray] = {
        "unit": np.ascontiguousarray(unit, np.float32),
        "excluded": np.ascontiguousarray(excluded, np.int64),
        "deleted": np.ascontiguousarray(deleted, np.int64),
    }
    truth_fingerprint = fingerprint(
        {
            **{name: hashlib.sha256(array.data).hexdigest() for name, array in inputs.items()},
            "shape": list(unit.shape),
            "embeddings": embeddings.fingerprint,
            "k": k,
            "bad_rows": bad_rows,
        }
    )
    folder = workspace / truth_fingerprint[:16]
    if not _is_complete(folder, "queries.json", "queries", truth_fingerprint):
        _write(folder, "queries.json", "queries", inputs, truth_fingerprint)
    row_bytes = embeddings.space.width * embeddings.dtype.itemsize
    n_rows = embeddings.n_rows
    rows_per_task = max(1, _TASK_BYTES // row_bytes, -(-n_rows // _MOST_TASKS))
    return [
        TruthTask(
            folder=str(folder),
            embeddings=embeddings,
            row_start=start,
            row_stop=min(start + rows_per_task, n_rows),
            k=k,
            bad_rows=bad_rows,
            truth_fingerprint=truth_fingerprint,
        )
        for start in range(0, n_rows, rows_per_task)
    ]


def search_piece(task: TruthTask) -> None:
    """Search one range of rows, unless its piece stands."""
    if _is_complete(task.piece, "piece.json", "truth piece", task.truth_fingerprint):
        return
    folder = Path(task.folder)
    unit, excluded, deleted = (_load(folder, name) for name in _INPUTS)
    batches = task.embeddings.iter_batches(
        batch_rows=block_rows(len(unit), unit.shape[1]),
        start=task.row_start,
        stop=task.row_stop,
        bad_rows=task.bad_rows,
    )
    alive = (batch.without(deleted) for batch in batches)
    rows, scores = exact_search(alive, unit, task.k, excluded=excluded)
    found = {"rows": rows, "scores": scores}
    _write(task.piece, "piece.json", "truth piece", found, task.truth_fingerprint)


def _is_complete(folder: Path, record: str, kind: str, truth_fingerprint: str) -> bool:
    return is_complete(
        folder,
        record,
        kind=kind,
        format_version=_FORMAT_VERSION,
        expected={"truth_fingerprint": truth_fingerprint},
    )


def _write(
    folder: Path, record: str, kind: str, arrays: dict[str, np.ndarray], truth_fingerprint: str
) -> None:
    for name, array in arrays.items():
        save_array(folder / f"{name}.npy", array)
    write_manifest(
        folder,
        record,
        kind=kind,
        format_version=_FORMAT_VERSION,
        command="voxseek index build",
        files=[f"{name}.npy" for name in arrays],
        body={"truth_fingerprint": truth_fingerprint},
    )


def _load(folder: Path, name: str) -> Any:
    return np.load(folder / f"{name}.npy", allow_pickle=False)
