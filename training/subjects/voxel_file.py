"""The voxels of a subject folder, written by rows in bounded memory and checked as they pass.

Voxels that come from many files are written block by block. What stands after an interruption is
kept: the next run with the same identity goes on after the last whole block, and ends with the
same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_builder.embeddings.artefact import (
    TEMPORARY_SUFFIX,
    atomic_write,
    fingerprint,
)
from index_builder.embeddings.progress import track

from ..errors import SubjectError

CHUNK_BYTES = 64 << 20
VOXEL_DTYPES = (np.dtype(np.float16), np.dtype(np.float32))


@dataclass(frozen=True)
class VoxelBlock:
    """Rows that come from one file or one session.

    Parameters
    ----------
    name : str
        For progress and messages: ``"session 3"``.
    n_rows : int
    read : callable
        Returns (n_rows, n_voxels); called only if the block isn't written yet.
    """

    name: str
    n_rows: int
    read: Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class VoxelSource:
    """Voxels in blocks of rows, which an interrupted import does not read twice.

    Parameters
    ----------
    blocks : sequence of VoxelBlock
    n_voxels : int
    dtype : dtype
        float16 or float32, of what is written.
    identity : dict
        JSON-serialisable; everything that fixes the bytes: options, sizes and times of the files.
        With another identity an unfinished file is begun anew.
    """

    blocks: Sequence[VoxelBlock]
    n_voxels: int
    dtype: np.dtype[Any]
    identity: dict[str, Any]


def write_voxels(path: Path, voxels: Any, *, n_trials: int) -> int:
    """Write voxels as an npy file of shape (n_trials, n_voxels), and return ``n_voxels``.

    Parameters
    ----------
    path : Path
    voxels : array, iterable of arrays by rows, or VoxelSource
        See `training.subjects.subject.write_subject`.
    n_trials : int

    Raises
    ------
    SubjectError
        If there isn't one row a trial, rows have different widths, or a voxel isn't finite.
    """
    if isinstance(voxels, VoxelSource):
        _write_blocks(path, voxels, n_trials)
        return voxels.n_voxels
    chunks = (
        (chunk for _, chunk in row_chunks(voxels))
        if isinstance(voxels, np.ndarray) and voxels.ndim == 2
        else iter(voxels)
    )
    return _write_chunks(path, chunks, n_trials)


def open_voxels(path: Path) -> np.memmap[Any, Any]:
    """Map the voxels of a subject folder into memory, read-only.

    Raises
    ------
    SubjectError
        If the file is damaged, or holds something else.
    """
    try:
        voxels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise SubjectError(
            f"{path} can't be read as an npy file of numbers ({error}); import the subject again."
        ) from error
    if voxels.ndim != 2 or voxels.dtype not in VOXEL_DTYPES:
        raise SubjectError(
            f"{path} holds {voxels.dtype} of shape {voxels.shape}, expected float16 or float32 "
            f"of shape (n_trials, n_voxels); import the subject again."
        )
    mapped: np.memmap[Any, Any] = voxels
    return mapped


def row_chunks(voxels: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the first row of a chunk and the chunk, at most `CHUNK_BYTES` each."""
    rows = max(1, CHUNK_BYTES // max(1, voxels.shape[1] * voxels.dtype.itemsize))
    for start in range(0, voxels.shape[0], rows):
        yield start, voxels[start : start + rows]


def require_finite(chunk: NDArray[Any], row_start: int, *, where: str) -> None:
    """Refuse NaN and infinity.

    Parameters
    ----------
    chunk : float16 or float32 array of shape (n, n_voxels)
    row_start : int
        Trial of its first row, for the message.
    where : str

    Raises
    ------
    SubjectError
        Names voxel and trial of the first such value.
    """
    if chunk.dtype == np.float16:
        # All exponent bits set; ten times faster than isfinite on float16.
        is_finite = (chunk.view(np.uint16) & 0x7C00) != 0x7C00
    else:
        is_finite = np.isfinite(chunk)
    if is_finite.all():
        return
    row, voxel = np.argwhere(~is_finite)[0]
    raise SubjectError(
        f"{where}: voxel {voxel} of trial {row_start + row} is {chunk[row, voxel]} "
        f"({int((~is_finite).sum())} such values in trials {row_start} to "
        f"{row_start + len(chunk) - 1}); expected finite numbers (float16 ends at 65504). "
        f"Leave the voxel out, or set invalid sessions to 0."
    )


def _write_chunks(path: Path, chunks: Iterable[Any], n_trials: int) -> int:
    n_voxels, n_rows = 0, 0
    with atomic_write(path) as temporary:
        out: np.memmap[Any, Any] | None = None
        for chunk in chunks:
            block = np.asarray(chunk)
            if out is None:
                if block.ndim != 2 or block.shape[1] == 0:
                    raise SubjectError(
                        f"voxels have shape {block.shape}, expected (n_trials, n_voxels) "
                        f"with at least one voxel."
                    )
                n_voxels = block.shape[1]
                dtype = block.dtype if block.dtype in VOXEL_DTYPES else np.dtype(np.float32)
                out = np.lib.format.open_memmap(
                    temporary, mode="w+", dtype=dtype, shape=(n_trials, n_voxels)
                )
            stop = n_rows + len(block)
            if stop <= n_trials:
                _put(out, n_rows, block, where="voxels")
            n_rows = stop
        if out is None:
            raise _wrong_count(0, n_trials)
        if n_rows != n_trials:
            raise _wrong_count(n_rows, n_trials)
        out.flush()
        del out
    return n_voxels


def _write_blocks(path: Path, source: VoxelSource, n_trials: int) -> None:
    n_rows = sum(block.n_rows for block in source.blocks)
    if n_rows != n_trials:
        raise _wrong_count(n_rows, n_trials)
    if source.n_voxels < 1 or source.dtype not in VOXEL_DTYPES:
        raise ValueError(
            f"voxels of {source.dtype}, {source.n_voxels} a trial; expected float16 or float32, "
            f"at least one."
        )
    unfinished = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    shape = (n_trials, source.n_voxels)
    whole = {"identity": source.identity, "shape": shape, "dtype": str(source.dtype)}
    ledger = _Ledger(path.with_name(f".{path.name}.blocks.json"), fingerprint(whole))
    n_done = ledger.n_done if unfinished.is_file() else 0
    if n_done:
        out = np.lib.format.open_memmap(unfinished, mode="r+")
    else:
        _require_space(path, n_trials * source.n_voxels * source.dtype.itemsize)
        out = np.lib.format.open_memmap(unfinished, mode="w+", dtype=source.dtype, shape=shape)
    starts = np.cumsum([0, *(block.n_rows for block in source.blocks)])
    numbered = range(n_done, len(source.blocks))
    for number in track(
        numbered, label="import", total=len(source.blocks), unit="block", n_done=n_done
    ):
        block = source.blocks[number]
        rows = np.asarray(block.read())
        if rows.shape != (block.n_rows, source.n_voxels):
            raise SubjectError(
                f"{block.name} gave voxels of shape {rows.shape}, expected "
                f"({block.n_rows}, {source.n_voxels}): every trial needs the same voxels."
            )
        _put(out, int(starts[number]), rows, where=f"{block.name}, voxels")
        out.flush()
        ledger.record(number + 1)
    del out
    with open(unfinished, "rb+") as handle:
        os.fsync(handle.fileno())
    os.replace(unfinished, path)
    ledger.path.unlink(missing_ok=True)


def _require_space(path: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise SubjectError(
            f"{path} will take {n_bytes / 1e9:.1f} GB, and {path.parent} has {free / 1e9:.1f} GB "
            f"free. Make room, or write to another disk."
        )


class _Ledger:
    """How many blocks of an unfinished file are whole, if it is a file of the same identity."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._identity = identity
        self.n_done = 0
        try:
            found = json.loads(path.read_text())
            if found["identity"] == identity:
                self.n_done = int(found["n_done"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # Nothing stands, or nothing that can be trusted: the file is begun anew.

    def record(self, n_done: int) -> None:
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps({"identity": self._identity, "n_done": n_done}))


def _put(out: np.memmap[Any, Any], start: int, rows: NDArray[Any], *, where: str) -> None:
    """Cast rows into the file, chunk by chunk, and refuse what isn't finite there."""
    if rows.ndim != 2 or rows.shape[1] != out.shape[1]:
        raise SubjectError(
            f"voxels of trials {start} onwards have shape {rows.shape}, expected "
            f"(n, {out.shape[1]}) as before them; every trial needs the same voxels."
        )
    for offset, chunk in row_chunks(rows):
        place = slice(start + offset, start + offset + len(chunk))
        with np.errstate(over="ignore"):  # what overflows becomes infinite, an error below
            out[place] = chunk
        require_finite(out[place], start + offset, where=where)


def _wrong_count(n_rows: int, n_trials: int) -> SubjectError:
    return SubjectError(
        f"there are {n_rows} rows of voxels and {n_trials} trials; expected one row a "
        f"trial, in the same order."
    )
