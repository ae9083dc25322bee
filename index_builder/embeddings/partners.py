"""Rows of side tables that belong to rows of an embedding folder, found by duckdb on disk.

LAION publishes scores apart from the embeddings: parquet tables of a hash and punsafe, pwatermark
or aesthetic, in another order and with other rows. Both sides are too large for memory, so duckdb
joins and sorts them within a limit, and spills the rest to a temporary folder.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .artefact import atomic_write
from .columns import normalize_names
from .errors import EmbeddingError, PartError
from .row_keys import RowKey, columns_of_key, key_type, key_values, require_key_type

if TYPE_CHECKING:
    from .reader import EmbeddingFolder

Duplicates = Literal["error", "first"]
_FOUND_FILE = "partners.parquet"
_RECORD_FILE = "partners.json"  # last: the search is complete
_SPILL_FOLDER = "spill"
_KEY_ROWS = 65_536
_MOST_FILE_ROWS = 1 << 40
# duckdb asks for 1 to 4 GB a thread where it joins; with less, it ran out of them when tried.
_THREAD_BYTES = 1 << 30
logger = logging.getLogger("voxseek")


@dataclass(frozen=True)
class SideTables:
    """Parquet files with columns to add; made by `open`.

    Parameters
    ----------
    files : tuple of Path
    stored_names : tuple of dict of str to str
        Of each file: what it calls each column, by our names.
    schema : pyarrow.Schema
        Of the first file, with our names.
    """

    files: tuple[Path, ...]
    stored_names: tuple[dict[str, str], ...]
    schema: Any

    @classmethod
    def open(cls, paths: Sequence[str | os.PathLike[str]]) -> SideTables:
        """Open files, or folders of ``*.parquet``, by their footers.

        Raises
        ------
        EmbeddingError
            If there is no file.
        PartError
            If a file isn't parquet, two of its columns get the same name, or it lacks a column of
            the first.
        """
        files = [file for path in paths for file in _parquet_files(Path(path))]
        names, schemas = [], []
        for file in files:
            try:
                schema = pq.read_schema(file)
            except (pa.ArrowInvalid, OSError) as error:
                raise PartError(f"{file} is not a readable parquet file ({error}).") from error
            ours = normalize_names(schema.names)
            if len(set(ours)) < len(ours):
                raise PartError(
                    f"{file} has columns {schema.names}, of which two get the same name: {ours}. "
                    f"Rename or drop one."
                )
            names.append(dict(zip(ours, schema.names, strict=True)))
            schemas.append(_renamed(schema, ours))
            lacking = set(names[0]) - set(ours)
            if lacking:
                raise PartError(
                    f"{file} has no column {', '.join(sorted(lacking))}, and {files[0]} has. "
                    f"Join tables of other columns one after the other."
                )
        return cls(tuple(files), tuple(names), schemas[0])

    @property
    def path(self) -> str:
        """Where they are, for messages."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


def added_columns(
    folder: EmbeddingFolder, tables: SideTables, by: RowKey, columns: Mapping[str, str] | None
) -> dict[str, str]:
    """Return what is added, by its new name: a column of the tables each.

    Parameters
    ----------
    folder : EmbeddingFolder
    tables : SideTables
    by : {"hash", "url", "key"}
    columns : mapping of str to str, or None
        None: all that the folder lacks, but for the one that is joined by.

    Raises
    ------
    EmbeddingError
        If a side has no such key, the tables lack a column, the folder has one of that name, or
        nothing is left to add.
    """
    columns_of_key(folder.columns, by, folder.path)
    if by not in tables.schema.names:
        raise EmbeddingError(
            f"{tables.path} has no column {by}; it has {', '.join(tables.schema.names)}. Of "
            f"tables, hashes aren't computed: join by another column."
        )
    require_key_type(tables.schema.field(by).type, by, tables.path)
    if columns is None:
        chosen = {name: name for name in tables.schema.names if name not in (*folder.columns, by)}
    else:
        chosen = dict(columns)
    for new, old in chosen.items():
        if old not in tables.schema.names:
            raise EmbeddingError(
                f"{tables.path} has no column {old!r}; it has {', '.join(tables.schema.names)}."
            )
        if new in folder.columns:
            raise EmbeddingError(
                f"{folder.path} has a column {new!r} already. Give it another name: "
                f"--columns table_{new}={old}."
            )
    if not chosen:
        raise EmbeddingError(
            f"{tables.path} has no column that {folder.path} lacks: {', '.join(folder.columns)}. "
            f"Name some, with new names: --columns NEW=OLD."
        )
    return chosen


class Partners:
    """What was found for the rows of a folder; made by `find_partners`.

    Attributes
    ----------
    n_found : int
        Rows that have a partner.
    n_duplicates : int
        Further partners of theirs, which were passed over.
    schema : pyarrow.Schema
        Of the columns that are added.
    """

    def __init__(self, workspace: Path) -> None:
        record = json.loads((workspace / _RECORD_FILE).read_text())
        self.n_found: int = record["n_found"]
        self.n_duplicates: int = record["n_duplicates"]
        self._file = workspace / _FOUND_FILE
        _row, _place, *added = pq.read_schema(self._file)
        self.schema = pa.schema([field.with_nullable(True) for field in added])

    def take(self, start: int, stop: int) -> Any:
        """Return the columns of rows ``start`` to ``stop`` (exclusive), null without a partner."""
        table = pq.read_table(self._file, filters=[("row", ">=", start), ("row", "<", stop)])
        rows, first = np.unique(table["row"].to_numpy(), return_index=True)
        places = np.full(stop - start, -1)
        places[rows - start] = first
        indices = pa.array(places, mask=places < 0)
        return table.select(self.schema.names).cast(self.schema).take(indices)


def find_partners(
    folder: EmbeddingFolder,
    tables: SideTables,
    by: RowKey,
    columns: Mapping[str, str],
    workspace: Path,
    *,
    duplicates: Duplicates,
    memory_bytes: int,
) -> Partners:
    """Join side tables to the rows of a folder, or open the join that stands.

    Parameters
    ----------
    folder : EmbeddingFolder
    tables : SideTables
    by : {"hash", "url", "key"}
    columns : mapping of str to str
        From `added_columns`.
    workspace : Path
        Holds what was found, a row of the folder and the columns each, and while duckdb works what
        it spills. The caller makes sure that it belongs to these inputs, and removes it.
    duplicates : {"error", "first"}
        What to do where a row has several partners: stop, or take the first in the order of the
        files and of their rows.
    memory_bytes : int
        What duckdb may use, strict; batches of 65,536 rows come on top.

    Raises
    ------
    EmbeddingError
        If a row has several partners and ``duplicates`` is ``"error"``, or memory doesn't suffice.
    """
    if not (workspace / _RECORD_FILE).is_file():
        spill = workspace / _SPILL_FOLDER
        spill.mkdir(parents=True, exist_ok=True)
        query = _select(tables, by, columns)
        with atomic_write(workspace / _FOUND_FILE) as temporary:
            _run(query, temporary, folder, by, spill, memory_bytes)
        shutil.rmtree(spill)
        record = _count(workspace / _FOUND_FILE, folder.path, tables.path, duplicates)
        with atomic_write(workspace / _RECORD_FILE) as temporary:
            temporary.write_text(json.dumps(record) + "\n")
    return Partners(workspace)


def _run(
    query: str,
    out: Path,
    folder: EmbeddingFolder,
    by: RowKey,
    spill: Path,
    memory_bytes: int,
) -> None:
    """Let duckdb write the partners of all rows, in the order of rows."""
    import duckdb

    failed: list[Exception] = []
    key_columns = columns_of_key(folder.columns, by, folder.path)
    schema = pa.schema([("row", pa.int64()), ("value", key_type(by))])

    def keys() -> Iterator[Any]:
        row = 0
        try:
            for table in folder.iter_metadata(batch_rows=_KEY_ROWS, columns=key_columns):
                values = key_values(table, by, folder.path)
                rows = pa.array(np.arange(row, row + len(values)))
                yield pa.record_batch([rows, values], schema=schema)
                row += len(values)
        except Exception as error:
            failed.append(error)  # duckdb would tell of it as a text
            raise

    config = {
        "threads": max(1, min(os.cpu_count() or 1, memory_bytes // _THREAD_BYTES)),
        "memory_limit": f"{memory_bytes}B",
        "temp_directory": str(spill),
        "autoload_known_extensions": False,
        "autoinstall_known_extensions": False,
    }
    database = duckdb.connect(":memory:", config=config)
    try:
        database.register("keys", pa.RecordBatchReader.from_batches(schema, keys()))
        database.execute(
            f"COPY ({query}) TO {_text(out)} (FORMAT parquet, COMPRESSION zstd, "
            f"ROW_GROUP_SIZE {_KEY_ROWS})"
        )
    except duckdb.Error as error:
        if failed:
            raise failed[0] from error
        reason = str(error).partition("\n")[0]
        raise EmbeddingError(
            f"{folder.path} can't be joined within {memory_bytes} bytes of memory: {reason}. Give "
            f"more with --memory, or room where --out is."
        ) from error
    finally:
        database.close()


def _select(tables: SideTables, by: RowKey, columns: Mapping[str, str]) -> str:
    """Return the query: row, place of the partner in the tables, and the columns."""
    sides = []
    for number, (file, stored) in enumerate(zip(tables.files, tables.stored_names, strict=True)):
        chosen = ", ".join(f"{_name(stored[old])} AS {_name(new)}" for new, old in columns.items())
        sides.append(
            f"SELECT {_name(stored[by])} AS value, {number * _MOST_FILE_ROWS} + file_row_number "
            f"AS place, {chosen} FROM read_parquet({_text(file)}, file_row_number = true)"
        )
    added = ", ".join(f"side.{_name(new)}" for new in columns)
    return (
        f"SELECT keys.row AS row, side.place AS place, {added} FROM keys "
        f"JOIN ({' UNION ALL '.join(sides)}) AS side ON keys.value = side.value "
        f"ORDER BY keys.row, side.place"
    )


def _count(file: Path, path: str, tables: str, duplicates: Duplicates) -> dict[str, int]:
    """Count rows with a partner, and further partners; refuse the latter if they are to be."""
    n_found = n_duplicates = 0
    last = -1
    with pq.ParquetFile(file) as found:
        for batch in found.iter_batches(columns=["row"]):
            rows = batch.column(0).to_numpy()
            is_new = np.diff(rows, prepend=last) > 0
            if duplicates == "error" and not is_new.all():
                raise EmbeddingError(
                    f"{tables} has several rows for row {rows[~is_new][0]} of {path}; expected one "
                    f"at most. Say --duplicates first to take the first, or clean the table."
                )
            n_found += int(is_new.sum())
            n_duplicates += int((~is_new).sum())
            last = int(rows[-1]) if len(rows) else last
    return {"n_found": n_found, "n_duplicates": n_duplicates}


def _parquet_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise EmbeddingError(f"{path} holds no parquet files; expected a table, or a folder of it.")
    return files


def _renamed(schema: Any, names: Sequence[str]) -> Any:
    return pa.schema([field.with_name(name) for field, name in zip(schema, names, strict=True)])


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
