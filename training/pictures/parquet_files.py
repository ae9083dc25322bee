"""Parquet files with a column of pictures: bytes, or the struct (bytes, path) of HF datasets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import TargetsError
from .decoding import TOO_LARGE
from .errors import PictureError
from .tar_files import MAX_BYTES

PARQUET_SUFFIXES = (".parquet",)
_NAMES = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "bytes", "content")
_FILES_KEPT = 16  # whose footers are kept for `read_picture_row`


class PicturesTable:
    """One parquet file of pictures, read row group after row group.

    Parameters
    ----------
    path : path

    Attributes
    ----------
    column : str
        That of the pictures.
    n_rows : int
    schema : pyarrow.Schema

    Raises
    ------
    TargetsError
        If it is no parquet file, or hasn't one column of pictures.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        try:
            self._footer = pq.read_metadata(path)
            self.schema = self._footer.schema.to_arrow_schema().remove_metadata()
        except (OSError, pa.ArrowException) as error:
            raise TargetsError(
                f"{path} can't be read as parquet ({error}): it was cut off, or is another kind of "
                f"file. Download it again."
            ) from error
        self.column = _find_column(self.schema, path)
        self.n_rows = int(self._footer.num_rows)

    def batches(
        self, start: int, *, batch_rows: int, columns: list[str]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows from ``start`` on, in batches of any size up to ``batch_rows``.

        Raises
        ------
        TargetsError
            If a page of the file is damaged.
        """
        ends = list(accumulate(self._group_rows()))
        groups = [group for group, end in enumerate(ends) if end > start]
        if not groups:
            return
        skipped = start - (ends[groups[0]] - self._footer.row_group(groups[0]).num_rows)
        try:
            with pq.ParquetFile(self.path, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_rows, row_groups=groups, columns=columns):
                    yield batch.slice(min(skipped, batch.num_rows))
                    skipped = max(0, skipped - batch.num_rows)
        except (OSError, pa.ArrowException) as error:
            raise TargetsError(
                f"{self.path} is damaged after its row {start} ({error}). Download it again."
            ) from error

    def _group_rows(self) -> list[int]:
        groups = range(self._footer.num_row_groups)
        return [self._footer.row_group(group).num_rows for group in groups]


def picture_bytes(value: Any, where: str) -> bytes:
    """Return the file of a picture from a value of a column of pictures.

    Parameters
    ----------
    value : bytes, dict with ``bytes``, or None
    where : str
        For messages.

    Raises
    ------
    PictureError
        If the row has none (a path alone is not followed), or too many bytes.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        raise PictureError("no bytes", f"{where} has no bytes of a picture.")
    if len(content) > MAX_BYTES:
        raise PictureError(TOO_LARGE, f"{where} has {len(content)} bytes; at most {MAX_BYTES}.")
    return bytes(content)


def read_picture_row(path: str | os.PathLike[str], row: int) -> bytes:
    """Return the file of the picture in one row; its row group is read for it.

    Raises
    ------
    PictureError
        If there is no such row, or it can't be read.
    """
    try:
        table = _open_table(os.fspath(path), os.stat(path).st_mtime_ns)
        batches = table.batches(row, batch_rows=64, columns=[table.column])
        batch = next((batch for batch in batches if batch.num_rows), None)
    except TargetsError as error:
        raise PictureError("damaged file", str(error)) from error
    if batch is None:
        raise PictureError("no such row", f"{path} has {table.n_rows} rows, and no row {row}.")
    return picture_bytes(batch.column(0)[0].as_py(), f"{path}, row {row}")


@lru_cache(maxsize=_FILES_KEPT)
def _open_table(path: str, modified: int) -> PicturesTable:
    return PicturesTable(path)


def _find_column(schema: pa.Schema, path: str | os.PathLike[str]) -> str:
    found = [field.name for field in schema if _holds_pictures(field.type)]
    usual = [name for name in found if name.lower() in _NAMES]
    if len(usual or found) == 1:
        name: str = (usual or found)[0]
        return name
    raise TargetsError(
        f"{path} has the columns {schema.names}, of which {found or 'none'} could hold pictures; "
        f"expected one of bytes, or of structs with bytes, and of several one called "
        f"{' or '.join(_NAMES[:2])}. Rename or drop the others."
    )


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _holds_pictures(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
