"""The metadata of an embedding folder: parquet columns, row for row with the vectors.

Names of foreign folders are brought to lower case, and the ones of `OTHER_NAMES` to ours, for the
same data comes as URL and TEXT (the releases) or url and caption (img2dataset's output).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .alignment import first_key
from .errors import PartError
from .storage import Storage
from .vectors import open_parquet, read_footer, require_all_rows

# What others call a column, in lower case, and what it is called here. Where a file has both, each
# keeps its name. All other names of LAION's sets are ours once they are in lower case: url, key,
# hash, similarity, nsfw, license, language, punsafe, pwatermark, width, height.
OTHER_NAMES = {
    "text": "caption",  # LAION-400M, LAION-5B and Re-LAION, beside URL
    "aesthetic_score": "aesthetic",  # sets derived from LAION-Aesthetics
}


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

    Attributes
    ----------
    file : str
    n_rows : int
    schema : pyarrow.Schema
    stored_names : dict of str to str
        What the file calls each column.
    first_key : int or None
        Of a foreign file; see `alignment.first_key`.

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
        names = normalize_names(stored) if is_foreign else stored
        if len(set(names)) != len(names):
            raise PartError(
                f"{storage.path_of(file)} has columns {stored}, of which two get the same name: "
                f"{names}. Rename or drop one."
            )
        self.stored_names = dict(zip(names, stored, strict=True))
        self.schema = pa.schema(
            [schema.field(old).with_name(new) for new, old in self.stored_names.items()]
        )
        self.first_key = first_key(footer, self.stored_names) if is_foreign else None

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

    def count_nulls(self) -> dict[str, int | None]:
        """Return how many values of each column are null by the footer; None where it is silent.

        It is silent of columns of lists and structs.
        """
        footer, _, _ = read_footer(self._storage, self.file)
        counts: dict[str, int | None] = dict.fromkeys(self.stored_names.values(), 0)
        seen = set()
        for group in (footer.row_group(i) for i in range(footer.num_row_groups)):
            for chunk in (group.column(i) for i in range(group.num_columns)):
                name, before = chunk.path_in_schema, counts.get(chunk.path_in_schema)
                seen.add(name)
                if before is not None:
                    has_count = chunk.statistics is not None and chunk.statistics.has_null_count
                    counts[name] = before + chunk.statistics.null_count if has_count else None
        return {
            new: counts[old] if old in seen or not footer.num_row_groups else None
            for new, old in self.stored_names.items()
        }

    def _stored(self, schema: Any) -> list[str]:
        return [self.stored_names[name] for name in schema.names]

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


def normalize_names(names: Sequence[str]) -> list[str]:
    """Return the names that columns of a foreign file get; two of them may become the same."""
    lowered = [name.lower() for name in names]
    ours = [OTHER_NAMES.get(name, name) for name in lowered]
    return [old if new in lowered else new for old, new in zip(lowered, ours, strict=True)]
