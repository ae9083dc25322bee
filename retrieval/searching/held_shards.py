"""What a worker of a cluster keeps: shards of an index, each opened when it is first asked for.

Kept for the life of the process, under the folder and the fingerprint of the index, so that the
next question finds them open. A question says which shards its worker is dealt; others of the same
index, and an earlier state of it, are let go.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from index_builder.candidates import open_nominator
from index_builder.embeddings.artefact import verify_files
from index_builder.embeddings.batches import EmbeddingBatch
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.verified import Verified
from index_builder.errors import IndexDamagedError
from index_builder.ground_truth import block_rows, exact_search
from index_builder.manifest import open_sources, read_deleted, read_index_manifest, shards_of
from index_builder.planning import IndexPlan
from index_builder.row_set import RowSet
from index_builder.shards import Shard, read_record
from index_builder.vector_copy import open_vectors

from .engine import SearchEngine
from .request import SearchRequest

Found = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class ShardQuestion:
    """What is asked of one shard, beside the queries.

    Parameters
    ----------
    index : str
        Its folder, which every worker sees by this path.
    fingerprint : str
        Of the index as who asks has it.
    embeddings : tuple of str, or None
        Where the embedding folders are, if they moved.
    shard : str
        Its folder, relative to the index.
    dealt : tuple of str
        All shards that the worker is to keep.
    k : int
        Hits a query.
    breadth, n_candidates : int or None
        The effort in this shard, as in `SearchRequest`.
    """

    index: str
    fingerprint: str
    embeddings: tuple[str, ...] | None
    shard: str = ""
    dealt: tuple[str, ...] = ()
    k: int = 1
    breadth: int | None = None
    n_candidates: int | None = None


def answer_shard(question: ShardQuestion, unit: np.ndarray, allowed: RowSet | None) -> Found:
    """Return the ``k`` best hits of each query in one shard, ranked exactly.

    Parameters
    ----------
    question : ShardQuestion
    unit : ndarray of shape (n_queries, width), float32, unit rows
    allowed : RowSet or None
        Rows of the shard that may be found, none of them deleted; None: all that aren't deleted.

    Returns
    -------
    rows : ndarray of shape (n_queries, k), int64
        Of the index, best first, ties by smaller row; -1 where there are fewer.
    scores : ndarray of shape (n_queries, k), float32
        Cosines; NaN there.

    Raises
    ------
    IndexDamagedError
        If the index is another one by now.
    ArtefactError
        Names the file of the shard that is missing or altered.
    """
    return _hold(question).nearest(unit, question, allowed)


def name_of(shard: Shard) -> str:
    """Return the folder of a shard, relative to the index, as the manifest has it."""
    return f"{shard.folder.parent.name}/{shard.folder.name}"


def rows_of_shard(bits: np.ndarray, first_byte: int, n_rows: int) -> RowSet:
    """Return a set of rows of an index from the bytes of it that a shard is in."""
    whole = np.zeros(-(-n_rows // 8), np.uint8)
    whole[first_byte : first_byte + len(bits)] = bits
    return RowSet(whole, n_rows)


def read_checked_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of an index, and compare all records with it, but not the files of shards.

    Raises
    ------
    ArtefactError
        Names the record that is missing or altered.
    """
    manifest = read_index_manifest(path)
    verify_files(path, manifest)
    return manifest


class OpenShard(Protocol):
    """One shard, opened for searching."""

    def nearest(self, unit: np.ndarray, question: ShardQuestion, allowed: RowSet | None) -> Found:
        """Return the best hits of each query in this shard; see `answer_shard`."""


class CodedShard:
    """A shard with codes: an engine that has no other shard.

    Parameters
    ----------
    path : Path
        The index.
    manifest : dict
    embeddings : Collection
        Of the index.
    shard : Shard
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], embeddings: Collection, shard: Shard
    ) -> None:
        plan = IndexPlan.from_dict(manifest["plan"])
        nominator = open_nominator(path, plan, [shard])
        assert nominator is not None  # flat shards are `FlatShard`
        self._most_breadth = nominator.most_breadth
        number = shards_of(path, manifest).index(shard)
        alone = {**manifest, "shards": [manifest["shards"][number]]}
        vectors = open_vectors(path, plan, [shard], embeddings)
        self._engine = SearchEngine(path, alone, embeddings, nominator, vectors)

    def nearest(self, unit: np.ndarray, question: ShardQuestion, allowed: RowSet | None) -> Found:
        """Return the best hits of each query in this shard; see `answer_shard`."""
        breadth = question.breadth and min(question.breadth, self._most_breadth)
        request = SearchRequest(question.k, breadth, question.n_candidates)
        return self._engine.nearest(unit, request, allowed)


class FlatShard:
    """A shard without codes: a range of rows, in memory where the plan says so.

    Parameters are those of `CodedShard`.
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], embeddings: Collection, shard: Shard
    ) -> None:
        self._shard, self._embeddings = shard, embeddings
        self._bad_rows = manifest["bad_rows"]
        deleted = read_deleted(path, manifest)
        self._deleted = deleted[(deleted >= shard.row_start) & (deleted < shard.row_stop)]
        self._held: EmbeddingBatch | None = None
        if manifest["plan"]["tier"] == "memory":
            self._held = self._hold()

    def nearest(self, unit: np.ndarray, question: ShardQuestion, allowed: RowSet | None) -> Found:
        """Return the best hits of each query in this shard; see `answer_shard`."""
        return exact_search(self._batches(len(unit), allowed), unit, question.k)

    def _batches(self, n_queries: int, allowed: RowSet | None) -> Iterator[EmbeddingBatch]:
        batch_rows = block_rows(n_queries, self._embeddings.space.width)
        held = self._held
        batches = self._read(batch_rows) if held is None else _pieces(held, batch_rows)
        for batch in batches:
            if allowed is None:
                yield batch
                continue
            may_be_found = allowed.mask(batch.row_start, batch.row_start + len(batch.is_alive))
            yield replace(batch, is_alive=batch.is_alive & may_be_found)

    def _read(self, batch_rows: int) -> Iterator[EmbeddingBatch]:
        for batch in self._embeddings.iter_batches(
            batch_rows=batch_rows,
            start=self._shard.row_start,
            stop=self._shard.row_stop,
            bad_rows=self._bad_rows,
        ):
            yield batch.without(self._deleted)

    def _hold(self) -> EmbeddingBatch:
        width, start = self._embeddings.space.width, self._shard.row_start
        n_rows = self._shard.row_stop - start
        rows, is_alive = np.empty((n_rows, width), self._embeddings.dtype), np.empty(n_rows, bool)
        for batch in self._read(block_rows(1, width)):
            first = batch.row_start - start
            piece = slice(first, first + len(batch.is_alive))
            rows[piece] = batch.embeddings.reshape(len(batch.is_alive), width)
            is_alive[piece] = batch.is_alive
        return EmbeddingBatch(start, rows, is_alive)


def _pieces(held: EmbeddingBatch, batch_rows: int) -> Iterator[EmbeddingBatch]:
    for start in range(0, len(held.is_alive), batch_rows):
        piece = slice(start, start + batch_rows)
        yield EmbeddingBatch(held.row_start + start, held.embeddings[piece], held.is_alive[piece])


@dataclass
class _Place:
    """Where a shard is opened, once, by whoever comes first."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    shard: OpenShard | None = None


class _HeldIndex:
    """The shards of one index that this process keeps."""

    def __init__(self, question: ShardQuestion) -> None:
        self._path = Path(question.index)
        self._manifest = read_checked_manifest(self._path)
        found, expected = self._manifest["fingerprint"][:12], question.fingerprint[:12]
        if found != expected:
            raise IndexDamagedError(
                f"{self._path} has fingerprint {found}, and was opened with {expected}: it changed "
                f"meanwhile, or a worker sees another folder by that path. Start the search again."
            )
        self._embeddings = open_sources(self._path, self._manifest, question.embeddings)
        shards = shards_of(self._path, self._manifest)
        self._shards = {name_of(shard): shard for shard in shards}
        self.places: dict[str, _Place] = {}

    def open(self, name: str) -> OpenShard:
        """Open a shard after the checksums of its files."""
        shard = self._shards[name]
        verified = Verified.of(shard.folder)
        verify_files(shard.folder, read_record(shard.folder), verified=verified)
        verified.save()
        kind = FlatShard if self._manifest["plan"]["code"] == "flat" else CodedShard
        return kind(self._path, self._manifest, self._embeddings, shard)


_lock = threading.Lock()
_held: dict[tuple[Any, ...], _HeldIndex] = {}


def _hold(question: ShardQuestion) -> OpenShard:
    """Return a shard that is open, and let go of what is no longer dealt to this worker."""
    key = question.index, question.embeddings, question.fingerprint
    with _lock:
        for other in [other for other in _held if other[:2] == key[:2] and other != key]:
            del _held[other]
        if key not in _held:
            _held[key] = _HeldIndex(question)
        index = _held[key]
        for name in set(index.places) - {*question.dealt, question.shard}:
            del index.places[name]
        place = index.places.setdefault(question.shard, _Place())
    with place.lock:
        if place.shard is None:
            place.shard = index.open(question.shard)
        return place.shard
