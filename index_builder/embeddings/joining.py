"""A new embedding folder from one that stands: with columns of side tables, without listed rows.

The vectors aren't copied: the new folder has hard links to the npy files. Written anew are those of
parts that lose rows, and of what can't be linked (another file system, a URL, parquet columns).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .artefact import atomic_write
from .drop_list import DropList
from .errors import EmbeddingError
from .opening import Part
from .partners import Duplicates, Partners, SideTables, added_columns, find_partners
from .progress import track
from .reader import EmbeddingFolder
from .row_keys import RowKey, columns_of_key, key_values
from .writer import EmbeddingWriter

MEMORY_BYTES = 4 << 30
_WORKSPACE_FOLDER = ".join"
_BATCH_ROWS = 65_536
_ROW_GROUP_ROWS = 4_096  # as EmbeddingWriter writes them
_BLOCK_BYTES = 64 << 20
logger = logging.getLogger("voxseek")


@dataclass(frozen=True)
class Joined:
    """What became of the rows of an embedding folder.

    Parameters
    ----------
    n_rows : int
        Of the new folder.
    n_dropped : int
        Rows left out, because they were listed.
    n_with_partner, n_without_partner : int
        Rows of the old folder that the tables know, and that they don't: the latter have nulls.
    n_duplicates : int
        Further rows of the tables for the former, passed over.
    columns : tuple of str
        That were added.
    """

    n_rows: int
    n_dropped: int
    n_with_partner: int
    n_without_partner: int
    n_duplicates: int
    columns: tuple[str, ...]


def join_tables(
    folder: EmbeddingFolder,
    out: str | os.PathLike[str],
    *,
    tables: SideTables | None = None,
    by: RowKey = "hash",
    columns: Mapping[str, str] | None = None,
    duplicates: Duplicates = "error",
    dropped: DropList | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> Joined:
    """Write a folder with more columns or fewer rows, or go on with one that was interrupted.

    The join is done first and kept in ``out/.join`` until the folder is complete; then parts are
    written one by one, and those that stand are kept. Parts keep their numbers and order; one that
    loses all rows stays, empty.

    Parameters
    ----------
    folder : EmbeddingFolder
        With metadata. It isn't changed, and its npy files must not be, for ``out`` shares them.
    out : path
    tables : SideTables or None
    by : {"hash", "url", "key"}
        What tables and folder have in common; a hash that the folder lacks is computed.
    columns : mapping of str to str, or None
        New name and name in the tables of each column to add; None: all that the folder lacks.
    duplicates : {"error", "first"}
        See `partners.find_partners`.
    dropped : DropList or None
    memory_bytes : int
        For the join; beside it, some batches of 65,536 rows and 64 MiB of vectors.

    Raises
    ------
    EmbeddingError
        If there is nothing to do, a column is missing or there already, or every row is listed.
    ArtefactError
        If ``out`` is finished, or holds something else.
    """
    if tables is None and dropped is None:
        raise EmbeddingError(
            f"there is nothing to do for {folder.path}: give tables to join, or a list of rows to "
            f"drop."
        )
    added = {} if tables is None else added_columns(folder, tables, by, columns)
    if dropped is not None:
        columns_of_key(folder.columns, dropped.by, folder.path)
    details = {
        "source": {"fingerprint": folder.fingerprint, "n_rows": folder.n_rows, **folder.details},
        "tables": [
            {"name": file.name, "bytes": file.stat().st_size}
            for file in (tables.files if tables else ())
        ],
        "by": by if tables else None,
        "columns": added,
        "duplicates": duplicates if tables else None,
        "dropped": dropped and {"by": dropped.by, "n": len(dropped), "sha256": dropped.sha256},
    }
    command = "voxseek embeddings join"
    dtype: Any = folder.dtype.name
    with _PartWriter(out, folder.space, command=command, details=details, dtype=dtype) as writer:
        workspace = writer.folder / _WORKSPACE_FOLDER
        partners = None
        if tables is not None:
            partners = find_partners(
                folder,
                tables,
                by,
                added,
                workspace,
                duplicates=duplicates,
                memory_bytes=memory_bytes,
            )
        n_done = writer.n_parts_done
        for part in track(
            folder.parts[n_done:],
            label="join",
            total=len(folder.parts),
            unit="part",
            n_done=n_done,
        ):
            writer.take_over(folder, part, _pieces(folder, part, partners, dropped))
        if not writer.n_rows_done:
            raise EmbeddingError(
                f"every row of {folder.path} is listed, so nothing is left for {out}. Check that "
                f"the list is the one that was meant."
            )
        n_rows = writer.finish().n_rows
        shutil.rmtree(workspace, ignore_errors=True)
    n_found = partners.n_found if partners else 0
    return Joined(
        n_rows=n_rows,
        n_dropped=folder.n_rows - n_rows,
        n_with_partner=n_found,
        n_without_partner=folder.n_rows - n_found if partners else 0,
        n_duplicates=partners.n_duplicates if partners else 0,
        columns=tuple(added),
    )


def _pieces(
    folder: EmbeddingFolder, part: Part, partners: Partners | None, dropped: DropList | None
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield the metadata of a part, some rows at a time, and which of them stay."""
    if part.columns is None:
        raise EmbeddingError(f"{folder.path} holds vectors and no metadata, so nothing is joined.")
    row = part.row_start
    tables = part.columns.iter_tables(_BATCH_ROWS, folder.schema)
    for table in tables if part.n_rows else [folder.schema.empty_table()]:
        is_kept = np.ones(len(table), bool)
        if dropped is not None:
            is_kept = ~dropped.is_listed(key_values(table, dropped.by, folder.path))
        if partners is not None:
            found = partners.take(row, row + len(table))
            for field, column in zip(found.schema, found.columns, strict=True):
                table = table.append_column(field, column)
        yield table, is_kept
        row += len(table)


class _PartWriter(EmbeddingWriter):
    """An `EmbeddingWriter` whose parts are those of another folder, linked where they can be."""

    @property
    def n_parts_done(self) -> int:
        """Parts that stand."""
        return len(self._part_rows)

    def take_over(
        self, source: EmbeddingFolder, part: Part, pieces: Iterator[tuple[Any, np.ndarray]]
    ) -> None:
        """Write one part: its metadata anew, then its vectors, linked if all rows stay."""
        files = self._files(len(self._part_rows))
        masks = []
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self.folder / str(files.metadata)))
            file = None
            for table, mask in pieces:
                if file is None:
                    file = pq.ParquetWriter(
                        temporary, table.schema, compression="zstd", version="2.6"
                    )
                    stack.enter_context(file)
                file.write_table(table.filter(pa.array(mask)), _ROW_GROUP_ROWS)
                masks.append(mask)
        is_kept = np.concatenate(masks)
        path = self.folder / files.embeddings
        path.parent.mkdir(exist_ok=True)
        if not is_kept.all() or not _link(source, part, path):
            self._copy(part, is_kept, path)
        self._part_rows.append(int(is_kept.sum()))

    def _copy(self, part: Part, is_kept: np.ndarray, path: Path) -> None:
        """Write the rows that stay as an npy file, as they are stored."""
        width = self.space.width
        header = {
            "descr": self.dtype.str,
            "fortran_order": False,
            "shape": (int(is_kept.sum()), *self.space.row_shape),
        }
        step = max(1, _BLOCK_BYTES // (width * self.dtype.itemsize))
        with atomic_write(path) as temporary, open(temporary, "wb") as handle:
            np.lib.format.write_array_header_1_0(handle, header)
            for start in range(0, len(is_kept), step):
                mask = is_kept[start : start + step]
                rows = np.empty((len(mask), width), self.dtype)
                part.vectors.read_into(start, rows)
                handle.write(np.ascontiguousarray(rows[mask]).data)


def _link(source: EmbeddingFolder, part: Part, path: Path) -> bool:
    """Give an npy file a second name, if the file system can."""
    if not source.is_local or not part.file.endswith(".npy"):
        return False
    file = os.path.join(source.path, part.file)
    try:
        os.link(os.path.realpath(file), path)
    except OSError as error:
        logger.warning("%s is copied, for it can't be linked: %s", file, error.strerror)
        return False
    return True


def parse_columns(text: str) -> dict[str, str]:
    """Return new name and name in the table of each column in ``"punsafe,score=prediction"``.

    Raises
    ------
    EmbeddingError
        If a name is empty, or a new one comes twice.
    """
    pairs: Sequence[tuple[str, str, str]] = [each.partition("=") for each in text.split(",")]
    chosen = {new.strip(): (old if equals else new).strip() for new, equals, old in pairs}
    if len(chosen) < len(pairs) or not all(chosen) or not all(chosen.values()):
        raise EmbeddingError(
            f"{text!r} names no columns; expected NAME,NEW=OLD,..., each new name once."
        )
    return chosen
