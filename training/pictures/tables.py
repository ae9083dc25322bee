"""Pictures in parquet files: one file after another, in the memory of one part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from index_builder.embeddings.artefact import fingerprint

from ..errors import TargetsError
from .decoding import decode_picture
from .parquet_files import PicturesTable, picture_bytes
from .source import PicturePart, relative_place

_BATCH_ROWS = 64


class TableSource:
    """Parquet files; columns image_path (file and row), and what the files have beside pictures.

    Parameters
    ----------
    files : sequence of Path
        In order; their footers are read here.
    name : str
        For messages.

    Raises
    ------
    TargetsError
        If a file is no parquet file, has no column of pictures, or others than the first one.
    """

    is_strict = False

    def __init__(self, files: Sequence[Path], name: str) -> None:
        self.name = name
        self._files = list(files)
        tables = [PicturesTable(path) for path in self._files]
        self._schema = _kept(tables[0])
        for table in tables[1:]:
            if table.column != tables[0].column or _kept(table) != self._schema:
                raise TargetsError(
                    f"{table.path} has the columns\n{table.schema}\nand {tables[0].path}\n"
                    f"{tables[0].schema}\nGive each set of files a folder of its own."
                )
        self.n_pictures: int | None = sum(table.n_rows for table in tables)
        if not self.n_pictures:
            raise TargetsError(f"{name} holds no rows, so there are no pictures in it.")

    def identity(self, out: Path) -> dict[str, Any]:
        """Return the number of rows, and a fingerprint of the files' places and sizes."""
        listing = [(relative_place(path, out), path.stat().st_size) for path in self._files]
        return {"n_pictures": self.n_pictures, "pictures": fingerprint(listing)}

    def parts(
        self, out: Path, part_rows: int, *, after: Mapping[str, Any] | None
    ) -> Iterator[PicturePart]:
        """Yield the rows of each file; no part crosses files. See `PictureSource.parts`."""
        first_file, first_row = 0, 0
        if after is not None:
            place, _, row = after["image_path"].rpartition("/")
            first_file = [relative_place(path, out) for path in self._files].index(place)
            first_row = (int(row) // part_rows + 1) * part_rows
        for path in self._files[first_file:]:
            table = PicturesTable(path)
            for start, rows in _cut(table, first_row, part_rows, self._schema.names):
                yield self._as_part(table, start, rows, out)
            first_row = 0

    def _as_part(self, source: PicturesTable, start: int, rows: pa.Table, out: Path) -> PicturePart:
        path = Path(source.path)
        places = [relative_place(path / str(start + i), out) for i in range(rows.num_rows)]
        metadata = pa.table({"image_path": pa.array(places, pa.string())})
        for field in self._schema:
            metadata = metadata.append_column(field, rows[field.name])
        pictures = rows[source.column]

        def read(row: int) -> bytes:
            return picture_bytes(pictures[row].as_py(), f"{path}, row {start + row}")

        return PicturePart(
            metadata,
            lambda row: decode_picture(read(row), where=f"{path}, row {start + row}"),
        )


def _cut(
    table: PicturesTable, start: int, part_rows: int, names: list[str]
) -> Iterator[tuple[int, pa.Table]]:
    """Yield rows of a file, ``part_rows`` at a time, with the number of the first."""
    waiting: list[pa.RecordBatch] = []
    for batch in table.batches(
        start, batch_rows=min(part_rows, _BATCH_ROWS), columns=[table.column, *names]
    ):
        waiting.append(batch)
        while (held := sum(piece.num_rows for piece in waiting)) >= part_rows:
            rows = pa.Table.from_batches(waiting)
            yield start, rows.slice(0, part_rows)
            start += part_rows
            waiting = rows.slice(part_rows).to_batches() if held > part_rows else []
    if any(piece.num_rows for piece in waiting):
        yield start, pa.Table.from_batches(waiting)


def _kept(table: PicturesTable) -> pa.Schema:
    """Return the columns that become metadata: flat ones, but for a path of theirs."""
    return pa.schema(
        [
            pa.field(field.name, field.type)
            for field in table.schema
            if field.name not in ("image_path", table.column)
            and not pa.types.is_nested(field.type)
            and not pa.types.is_binary(field.type)
            and not pa.types.is_large_binary(field.type)
        ]
    )
