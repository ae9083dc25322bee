"""Lists of rows to be left out, as takedowns are published: hashes, URLs or keys.

Whatever is to be cleaned, an index or an embedding folder, is compared with such a list.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from .artefact import sha256_file
from .columns import normalize_names
from .errors import EmbeddingError
from .row_keys import ROW_KEYS, RowKey, key_type, require_key_type

_HASH = re.compile(r"-?(0|[1-9][0-9]{0,18})")  # zeros before it make a number a key
_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class DropList:
    """Values by which rows are left out.

    Parameters
    ----------
    by : {"hash", "url", "key"}
    values : ndarray of shape (m,), int64, rising; or pyarrow.Array of m large strings
        Of hashes the former; each value once.
    sha256 : str
        Of the file.
    """

    by: RowKey
    values: Any
    sha256: str

    def __len__(self) -> int:
        """Return how many values there are."""
        return len(self.values)

    def is_listed(self, keys: Any) -> np.ndarray:
        """Tell which row keys are listed.

        Parameters
        ----------
        keys : pyarrow.Array of n
            int64 or large_string, from `row_keys.key_values`; null is not listed.

        Returns
        -------
        is_listed : ndarray of shape (n,), bool
        """
        if self.by != "hash":
            is_in: np.ndarray = pc.is_in(keys, value_set=self.values).to_numpy(zero_copy_only=False)
            return is_in
        hashes = keys.fill_null(0).to_numpy()
        places = np.searchsorted(self.values, hashes)
        found = np.append(self.values, 0)[places]  # beyond the last: the 0 is masked
        is_valid = keys.is_valid().to_numpy(zero_copy_only=False)
        is_equal: np.ndarray = (found == hashes) & (places < len(self.values)) & is_valid
        return is_equal


def read_drop_list(path: str | os.PathLike[str]) -> DropList:
    """Read a list of hashes, URLs or keys.

    Memory: the list, 8 bytes a hash.

    Parameters
    ----------
    path : path
        ``.parquet`` or ``.csv`` with a column hash, url or key, in any case (of several, the first
        of these); or text with a value a line: signed 64-bit numbers are hashes, and what has
        ``://`` in it is a URL. Keys look like numbers, so they need a column's name.

    Raises
    ------
    EmbeddingError
        If the file is something else, or empty.
    """
    source = Path(path)
    if source.suffix == ".parquet":
        by, values = _read_parquet(source)
    elif source.suffix == ".csv":
        by, values = _read_csv(source)
    else:
        by, values = _read_text(source)
    values = values.cast(key_type(by)).drop_null().unique()
    if not len(values):
        raise EmbeddingError(f"{source} lists nothing; expected a hash, URL or key at least.")
    digest = sha256_file(source)
    if by == "hash":
        return DropList(by, np.sort(values.to_numpy()), digest)
    return DropList(by, values, digest)


def _read_parquet(path: Path) -> tuple[RowKey, Any]:
    try:
        schema = pq.read_schema(path)
        by, name = _find_key(schema.names, path)
        require_key_type(schema.field(name).type, by, str(path))
        return by, pq.read_table(path, columns=[name])[name]
    except pa.ArrowInvalid as error:
        raise EmbeddingError(f"{path} is not a readable parquet file ({error}).") from error


def _read_csv(path: Path) -> tuple[RowKey, Any]:
    try:
        with pyarrow.csv.open_csv(path) as reader:
            by, name = _find_key(reader.schema.names, path)
        options = pyarrow.csv.ConvertOptions(
            include_columns=[name], column_types={name: key_type(by)}
        )
        return by, pyarrow.csv.read_csv(path, convert_options=options)[name]
    except pa.ArrowInvalid as error:
        raise EmbeddingError(
            f"{path} can't be read as CSV ({error}); expected a header, and signed 64-bit numbers "
            f"where it says hash."
        ) from error


def _read_text(path: Path) -> tuple[RowKey, Any]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise EmbeddingError(
            f"{path} is neither .parquet nor .csv, and not text ({error})."
        ) from error
    values = [text for line in lines if (text := line.strip())]
    if all(_HASH.fullmatch(each) for each in values):
        hashes = [int(each) for each in values]
        beyond = next((each for each in hashes if not -(2**63) <= each < 2**63), None)
        if beyond is not None:
            raise EmbeddingError(
                f"{path} lists {beyond}, expected signed numbers of 64 bits: LAION's hashes. "
                f"Of an unsigned one above 2**63, subtract 2**64."
            )
        return "hash", pa.array(hashes, pa.int64())
    if all("://" in each for each in values):
        return "url", pa.array(values, pa.large_string())
    begins_with_hash = bool(_HASH.fullmatch(values[0]))
    odd = next(
        each
        for each in values
        if not (_HASH.fullmatch(each) if begins_with_hash else "://" in each)
    )
    raise EmbeddingError(
        f"{path} lists {odd[:_LONGEST_SHOWN]!r}, expected hashes alone or URLs alone, one a line. "
        f"Of keys, make a .csv whose first line is 'key'."
    )


def _find_key(names: Sequence[str], path: Path) -> tuple[RowKey, str]:
    """Return the row key that a table has, and what its column is called there."""
    stored = dict(zip(normalize_names(names), names, strict=True))
    for by in ROW_KEYS:
        if by in stored:
            return by, stored[by]
    raise EmbeddingError(
        f"{path} has columns {', '.join(names)}, expected one named {', '.join(ROW_KEYS)}."
    )
