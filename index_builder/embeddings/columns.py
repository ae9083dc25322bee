"""The metadata of an embedding folder: parquet columns, row for row with the vectors.

Names of foreign folders are brought to lower case, and LAION's TEXT becomes ``caption``, for the
same data comes as URL and TEXT (the releases) or url and caption (img2dataset's output).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .errors import PartError
from .storage import Storage
from .vectors import open_parquet, read_footer, require_all_rows


class PartColumns:
    """The metadata file of one part.

    Parameters
    ----------
    storage : Storage
    file : str
    is_foreign : bool
        Bring the names to voxseek's form.
    leave_out : str or None
        A stored column that isn't metadata: the vectors.

    Raises
    ------
    PartError
        If the file is not parquet, or two of its names become the same.
    """

    def __init__(
        self, storage: Storage, file: str, *, is_foreign: bool, leave_out: str | None = None
    ) -> None:
        self.file = file
        self._storage = storage
        footer, schema, self._group_rows = read_footer(storage, file)
        self.n_rows = footer.num_rows
        stored = [name for name in schema.names if name != leave_out]
        names = _normalize(stored) if is_foreign else stored
        if len(set(names)) != len(names):
            raise PartError(
                f"{storage.path_of(file)} has columns {stored}, of which two get the same name: "
                f"{names}. Rename or drop one."
            )
        self._stored_names = dict(zip(names, stored, strict=True))
        self.schema = pa.schema(
            [schema.field(old).with_name(new) for new, old in self._stored_names.items()]
        )

    def read_rows(self, rows: np.ndarray, schema: Any) -> Any:
        """Return rows, given in increasing order, from the row groups that hold them alone."""
        bounds = np.cumsum([0, *self._group_rows])
        groups = np.searchsorted(bounds, rows, side="right") - 1
        pieces = []
        with open_parquet(self._storage, self.file) as parquet:
            for group in np.unique(groups):
                table = parquet.read_row_group(int(group), columns=self._stored(schema))
                chosen = rows[groups == group] - bounds[group]
                pieces.append(self._to_schema(table.take(pa.array(chosen)), schema))
        return pa.concat_tables(pieces)

    def iter_tables(self, batch_rows: int, schema: Any) -> Iterator[Any]:
        """Yield all rows in order, at most ``batch_rows`` at a time."""
        n_read = 0
        with open_parquet(self._storage, self.file) as parquet:
            for batch in parquet.iter_batches(batch_size=batch_rows, columns=self._stored(schema)):
                yield self._to_schema(pa.Table.from_batches([batch]), schema)
                n_read += len(batch)
            require_all_rows(n_read, self.n_rows)

    def _stored(self, schema: Any) -> list[str]:
        return [self._stored_names[name] for name in schema.names]

    def _to_schema(self, table: Any, schema: Any) -> Any:
        table = table.select(self._stored(schema)).rename_columns(schema.names)
        try:
            return table.cast(schema)
        except pa.ArrowInvalid as error:
            raise PartError(
                f"{self._storage.path_of(self.file)} has values that don't fit the type its column "
                f"has in the other parts ({error}). Write this part anew with the same types."
            ) from error


def unify_schemas(storage: Storage, parts: Sequence[PartColumns]) -> Any:
    """Return the one schema to which the metadata of all parts is cast; empty for no parts.

    Raises
    ------
    PartError
        If a part has other columns than the first, or a type that doesn't go with the others'.
    """
    unified = parts[0].schema if parts else pa.schema([])
    for part in parts[1:]:
        if set(part.schema.names) != set(unified.names):
            raise PartError(
                f"{storage.path_of(part.file)} has columns {sorted(part.schema.names)}, and "
                f"{storage.path_of(parts[0].file)} has {sorted(unified.names)}. "
                f"Write all parts with the same columns."
            )
        if part.schema.equals(unified):
            continue
        try:
            unified = pa.unify_schemas([unified, part.schema], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise PartError(
                f"{storage.path_of(part.file)} has a column of another type than the parts before "
                f"it ({error}). Write all parts with the same types."
            ) from error
    return unified.remove_metadata()


def _normalize(names: list[str]) -> list[str]:
    lowered = [name.lower() for name in names]
    if "caption" in lowered:
        return lowered
    return ["caption" if name == "text" else name for name in lowered]
