"""Vectors that rank candidates: the embedding folder itself, or a copy in the index.

A copy serves where the folder is behind a network, in parquet, or will go away. It stands in row
order, one file a shard, and gives back vectors of the embedding space whatever it stores:

    fp16     two bytes a number. float16 rows are copied as they are, so that scores are the
             folder's bit for bit; float32 rows are divided by their norm and rounded.
    sq8      one byte a number of the centered and rotated vector (`scalar_codes`)
    rabitq4  half a byte a number of it, and 4 bytes
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .cosine import unit_rows
from .embeddings.artefact import atomic_write
from .embeddings.errors import RowRangeError
from .embeddings.space import EmbeddingSpace
from .embeddings.storage import LocalStorage
from .errors import IndexDamagedError
from .quantizer import QUANTIZER_FOLDER, Quantizer, load_quantizer
from .rotation import rotate_back
from .scalar_codes import (
    decode_eight_bits,
    decode_four_bits,
    encode_eight_bits,
    encode_four_bits,
    four_bit_bytes,
)
from .threads import Pool

if TYPE_CHECKING:
    from .embeddings.collection import Collection
    from .planning import IndexPlan
    from .shards import Shard

VECTORS_FILE = "vectors.npy"
# Handing rows to a thread costs as much as copying this many that are in memory already.
_FEWEST_ROWS_OF_A_THREAD = 64


class Vectors(Protocol):
    """The vectors that candidates are ranked by."""

    @property
    def space(self) -> EmbeddingSpace:
        """Their space."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what `take` returns."""

    @property
    def row_bytes(self) -> int:
        """What taking a row reads."""

    @property
    def is_exact(self) -> bool:
        """Whether cosines with them are those with the rows of the embedding folder."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return global rows (n,), in the order asked, as vectors (n, width) of any norm."""


def open_vectors(
    root: Path, plan: IndexPlan, shards: Sequence[Shard], embeddings: Collection
) -> Vectors:
    """Open what ``plan.rerank`` names: the rows of ``embeddings``, or the copy in the index.

    Checksums are the caller's business.

    Raises
    ------
    IndexDamagedError
        If the copy of a shard is truncated, or of another shape than the plan says.
    """
    if plan.rerank == "source":
        return SourceVectors(embeddings)
    quantizer = None if plan.rerank == "fp16" else load_quantizer(root / QUANTIZER_FOLDER)
    return CopiedVectors(plan, quantizer, shards)


@dataclass(frozen=True)
class SourceVectors:
    """The rows of the embeddings themselves."""

    embeddings: Collection
    is_exact: bool = True

    @property
    def space(self) -> EmbeddingSpace:
        """The space of the embeddings."""
        return self.embeddings.space

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        return self.embeddings.dtype

    @property
    def row_bytes(self) -> int:
        """What taking a row reads."""
        return self.space.width * self.dtype.itemsize

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (n, width) in the order asked."""
        return self.embeddings.take(rows).reshape(len(rows), self.space.width)


class CopyWriter:
    """Writes the copy of one shard; its memory is a multiple of what a call of `add` brings.

    Parameters
    ----------
    folder : Path
    plan : IndexPlan
        Its ``rerank`` is "fp16", "sq8" or "rabitq4".
    quantizer : Quantizer or None
        None where ``rerank`` is "fp16".
    n_rows : int
        Of the shard; rows that don't come are zero bytes.
    """

    def __init__(
        self, folder: Path, plan: IndexPlan, quantizer: Quantizer | None, n_rows: int
    ) -> None:
        self._codec = _codec_of(plan, quantizer)
        self._width = plan.space.width
        shape = n_rows, self._codec.n_values
        self._row_bytes = _row_bytes(self._codec)
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(atomic_write(folder / VECTORS_FILE))
        header = {"descr": self._codec.stored.str, "fortran_order": False, "shape": shape}
        with open(self._temporary, "wb") as handle:
            np.lib.format.write_array_header_1_0(handle, header)
            self._first_byte = handle.tell()
            handle.truncate(self._first_byte + n_rows * self._row_bytes)

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Write rows of the shard.

        Parameters
        ----------
        rows : ndarray of shape (m,), uint32
            Within the shard, rising.
        vectors : ndarray of shape (m, width) or (m, tokens, dim), any norm
            As the embedding folder holds them: only then is "fp16" its rows bit for bit. Unit rows
            serve all else as well.
        """
        stored = self._codec.encode(vectors.reshape(len(rows), self._width))
        numbers = rows.astype(np.int64)
        runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(numbers) > 1) + 1)
        with open(self._temporary, "rb+") as handle:
            for run in runs:
                if len(run):
                    handle.seek(self._first_byte + int(numbers[run[0]]) * self._row_bytes)
                    handle.write(np.ascontiguousarray(stored[run[0] : run[-1] + 1]).data)

    def finish(self) -> list[str]:
        """Put the file in its place, and return its name."""
        self._stack.close()
        return [VECTORS_FILE]


class CopiedVectors:
    """The copies of all shards, read at random, several reads at a time.

    Attributes
    ----------
    space : EmbeddingSpace
    dtype : numpy.dtype
        float16 for "fp16", otherwise float32.
    row_bytes : int
        What taking a row reads.
    is_exact : bool
        Whether scores are the embedding folder's bit for bit.

    Notes
    -----
    Decoded vectors are rotated back, about 10 microseconds each at 768 numbers, so that they can be
    compared with anything in the embedding space.
    """

    def __init__(
        self, plan: IndexPlan, quantizer: Quantizer | None, shards: Sequence[Shard]
    ) -> None:
        self.space = plan.space
        self.is_exact = plan.rerank == "fp16" and plan.dtype == "float16"
        self._codec = _codec_of(plan, quantizer)
        self.dtype = self._codec.decoded
        self.row_bytes = _row_bytes(self._codec)
        self._starts = np.array([shard.row_start for shard in shards])
        self._n_rows = shards[-1].row_stop
        self._mapped = [_map_copy(shard, self._codec) for shard in shards]
        self._pool = Pool(LocalStorage.n_threads)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return vectors (n, width) of global rows (n,), in the order asked.

        Raises
        ------
        RowRangeError
            If a row is below 0 or not below the number of rows; it is an IndexError too.
        """
        bad = (rows < 0) | (rows >= self._n_rows)
        if bad.any():
            raise RowRangeError(
                f"row {rows[bad][0]} was asked for, and the copy of the vectors has rows 0 to "
                f"{self._n_rows - 1}."
            )
        order = np.argsort(rows, kind="stable")
        stored = np.empty((len(rows), self._codec.n_values), self._codec.stored)
        bounds = np.searchsorted(rows[order], np.append(self._starts, self._n_rows))
        step = max(_FEWEST_ROWS_OF_A_THREAD, -(-len(rows) // LocalStorage.n_threads))
        chunks = [
            (shard, order[i : min(i + step, stop)])
            for shard, (start, stop) in enumerate(pairwise(bounds))
            for i in range(start, stop, step)
        ]

        def copy(shard: int, places: np.ndarray) -> None:
            # Unlike indexing, take lets other threads run while it waits for the disk.
            local_rows = rows[places] - self._starts[shard]
            stored[places] = self._mapped[shard].take(local_rows, axis=0, mode="clip")

        if len(rows) <= _FEWEST_ROWS_OF_A_THREAD:
            for chunk in chunks:
                copy(*chunk)
        else:
            for future in [self._pool.threads.submit(copy, *chunk) for chunk in chunks]:
                future.result()
        return self._codec.decode(stored)


def _map_copy(shard: Shard, codec: _Codec) -> np.ndarray:
    path = shard.folder / VECTORS_FILE
    expected = shard.row_stop - shard.row_start, codec.n_values
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IndexDamagedError(
            f"{path} is not a whole npy file ({error}), expected {codec.stored} {expected}: "
            f"it was truncated or replaced. Restore the shard or build it again."
        ) from error
    if (found.shape, found.dtype) != (expected, codec.stored):
        raise IndexDamagedError(
            f"{path} holds {found.dtype} {found.shape}, expected {codec.stored} {expected}. "
            f"Restore the shard or build it again."
        )
    storage = LocalStorage(shard.folder)
    mapped = storage.map_rows(VECTORS_FILE, found.offset, found.shape, found.dtype)
    assert mapped is not None  # local files can be mapped
    return mapped


class _Codec(Protocol):
    """What a copy stores: ``n_values`` a row of dtype ``stored``, read as dtype ``decoded``."""

    n_values: int
    stored: np.dtype[Any]
    decoded: np.dtype[Any]

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Return (n, n_values) for rows (n, width) of any norm."""

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Return rows (n, width)."""


class _Halves:
    stored = decoded = np.dtype(np.float16)

    def __init__(self, width: int) -> None:
        self.n_values = width

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        if vectors.dtype == np.float16:
            return vectors
        return unit_rows(vectors).astype(np.float16)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        return stored


class _Bytes:
    stored, decoded = np.dtype(np.uint8), np.dtype(np.float32)

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer
        self.n_values = len(quantizer.mean)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        quantizer = self._quantizer
        transformed = quantizer.transform(unit_rows(vectors))
        return encode_eight_bits(transformed, quantizer.low, quantizer.high)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        quantizer = self._quantizer
        return _untransform(quantizer, decode_eight_bits(stored, quantizer.low, quantizer.high))


class _HalfBytes:
    stored, decoded = np.dtype(np.uint8), np.dtype(np.float32)

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer
        self.n_values = four_bit_bytes(len(quantizer.mean))

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        return encode_four_bits(self._quantizer.transform(unit_rows(vectors)))

    def decode(self, stored: np.ndarray) -> np.ndarray:
        width = len(self._quantizer.mean)
        return _untransform(self._quantizer, decode_four_bits(stored, width))


def _row_bytes(codec: _Codec) -> int:
    return codec.n_values * codec.stored.itemsize


def _codec_of(plan: IndexPlan, quantizer: Quantizer | None) -> _Codec:
    if plan.rerank == "fp16":
        return _Halves(plan.space.width)
    if quantizer is None or plan.rerank not in ("sq8", "rabitq4"):
        raise ValueError(f"rerank is {plan.rerank!r}, which makes no copy without a quantizer")
    return _Bytes(quantizer) if plan.rerank == "sq8" else _HalfBytes(quantizer)


def _untransform(quantizer: Quantizer, transformed: np.ndarray) -> np.ndarray:
    vectors = rotate_back(transformed, quantizer.signs)
    vectors += quantizer.mean
    return vectors
