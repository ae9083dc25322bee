"""By what rows of two sets are known to be the same: LAION's hash, the URL, or the key.

The hash is the only one that holds between LAION's tables: a URL comes several times, with other
captions, and a key is the position in one download.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import EmbeddingError, MissingExtraError

RowKey = Literal["hash", "url", "key"]
ROW_KEYS: tuple[RowKey, ...] = get_args(RowKey)
_HASHED = ("url", "caption")


def laion_hashes(urls: Any, captions: Any) -> np.ndarray:
    """Return LAION's hash of each pair: the first half of MurmurHash3_x64_128, seed 0, signed.

    Hashed is the UTF-8 of the URL with the caption right after it; a null counts as empty
    (rom1504/laion-prepro, laion5B/safety/compute_hashes.py).

    Parameters
    ----------
    urls, captions : pyarrow.Array or ChunkedArray of n strings

    Returns
    -------
    hashes : ndarray of shape (n,), int64

    Raises
    ------
    MissingExtraError
        If mmh3 is not installed.
    """
    try:
        import mmh3
    except ImportError as error:
        raise MissingExtraError("mmh3", "laion", "computing LAION's hash") from error
    texts = pc.binary_join_element_wise(
        urls.cast(pa.large_string()),
        captions.cast(pa.large_string()),
        pa.scalar("", pa.large_string()),
        null_handling="replace",
        null_replacement="",
    )
    hashes = (mmh3.hash64(text)[0] for text in texts.to_pylist())
    return np.fromiter(hashes, np.int64, len(texts))


def columns_of_key(columns: Sequence[str], by: RowKey, path: str) -> tuple[str, ...]:
    """Return which columns a row key is read from: its own, or those that are hashed.

    Parameters
    ----------
    columns : sequence of str
        That there are.
    by : {"hash", "url", "key"}
    path : str
        Of the set, for messages.

    Raises
    ------
    EmbeddingError
        If they don't suffice.
    """
    if by in columns:
        return (by,)
    if by == "hash" and set(columns).issuperset(_HASHED):
        return _HASHED
    needed = "hash, or of url and caption to compute it from" if by == "hash" else by
    raise EmbeddingError(
        f"{path} has no column {needed}; it has {', '.join(columns) or 'none at all'}. "
        f"Join by another of {', '.join(ROW_KEYS)}."
    )


def key_values(table: Any, by: RowKey, path: str) -> Any:
    """Return the row keys of a table that has `columns_of_key`, one chunk.

    Returns
    -------
    values : pyarrow.Array of n
        int64 for hashes, large_string for the others; null where the key is.

    Raises
    ------
    EmbeddingError
        If the column is of a type that can't hold such keys.
    """
    if by not in table.column_names:
        return pa.array(laion_hashes(*(table[name] for name in _HASHED)))
    require_key_type(table.schema.field(by).type, by, path)
    values = table[by].cast(key_type(by))
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def key_type(by: RowKey) -> Any:
    """Return the Arrow type of a row key's values."""
    return pa.int64() if by == "hash" else pa.large_string()


def require_key_type(kind: Any, by: RowKey, path: str) -> None:
    """Raise `EmbeddingError` if a column ``by`` of this type lost what its keys were."""
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if pa.types.is_int64(kind) if by == "hash" else is_text:
        return
    raise EmbeddingError(
        f"{path} has a column {by} of {kind}, expected "
        + (
            "int64: the signed half of a murmur hash. A column of doubles has lost its last digits "
            "(pandas makes them where values are missing); write the table anew from its source, "
            "or drop the column to have it computed from url and caption."
            if by == "hash"
            else "strings: zeros before a number count. Write the table anew, or join by another "
            "column."
        )
    )
