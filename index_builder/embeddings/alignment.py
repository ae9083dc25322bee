"""Whether keys rise with the numbers of the parts, as they do where nobody renumbered the files.

``img_emb_3.npy`` has no keys in it, so that row 7 of it belongs to row 7 of ``metadata_3.parquet``
is known from the number alone. ``clip-retrieval inference`` deals its tar files out in turn: of P
parts, part k has the tars k, k + P, k + 2 P, and so the smallest key of part k rises with k. Where
the smallest keys rise when the numbers are ordered as *text* (0, 1, 10, 11, 2), a list of files was
numbered after sorting it by name, and from part 2 on vectors meet the captions of others.

Keys in any other order prove nothing: downloads were shuffled, topped up, or put together.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import PartError
from .storage import Storage

if TYPE_CHECKING:
    from .columns import PartColumns

KEY_COLUMNS = ("key", "image_path")
_KEY = re.compile(r"([0-9]{1,18})(\.[A-Za-z]+)?")  # 000123456 or 000123456.jpg
_MOST_EXCHANGED = 0.25  # of the parts: beyond, the order is another one and no mistake
logger = logging.getLogger("voxseek")


def first_key(footer: Any, stored_names: Mapping[str, str]) -> int | None:
    """Return the smallest key of a parquet file by the statistics of its row groups.

    Parameters
    ----------
    footer : pyarrow.parquet.FileMetaData
    stored_names : dict of str to str
        What the file calls ``key`` and ``image_path``; the first of them that it has is read.

    Returns
    -------
    key : int or None
        None if there is no such column, a row group has no statistics, or the keys aren't numbers
        padded to one width.
    """
    name = next((stored_names[each] for each in KEY_COLUMNS if each in stored_names), None)
    if name is None:
        return None
    smallest = []
    for group in (footer.row_group(i) for i in range(footer.num_row_groups)):
        place = next(
            (i for i in range(group.num_columns) if group.column(i).path_in_schema == name), None
        )
        statistics = None if place is None else group.column(place).statistics
        if statistics is None or not statistics.has_min_max:
            return None
        low, high = (_KEY.fullmatch(str(each)) for each in (statistics.min, statistics.max))
        is_text = isinstance(statistics.min, str)
        if not low or not high or (is_text and len(low[1]) != len(high[1])):
            return None  # of texts of several widths, the smallest isn't the smallest number
        smallest.append(int(low[1]))
    return min(smallest, default=None)


def require_rising_keys(storage: Storage, parts: Sequence[PartColumns]) -> None:
    """Raise if the metadata files were numbered after sorting their names as text.

    Two files that look exchanged are warned of.

    Parameters
    ----------
    storage : Storage
    parts : sequence of PartColumns
        In the order of their numbers.

    Raises
    ------
    PartError
        Names two files between which the order breaks.
    """
    keys = [part.first_key for part in parts if part.first_key is not None]
    if len(set(keys)) < len(parts):
        return
    order = np.argsort(keys)
    in_turn = np.arange(len(parts))
    if (order == in_turn).all():
        return
    as_text = sorted(in_turn.tolist(), key=lambda i: _unpadded(parts[i].file))
    if order.tolist() == as_text:
        i = int(np.flatnonzero(order != in_turn)[0])
        early, late = parts[i], parts[order[i]]
        raise PartError(
            f"{storage.path_of(late.file)} begins with key {late.first_key}, and "
            f"{storage.path_of(early.file)} with key {early.first_key}: the keys of these "
            f"{len(parts)} parts rise when their numbers are ordered as text (1, 10, 2), expected "
            f"as numbers (1, 2, 10). The files were numbered after sorting their names as text, so "
            f"vectors would meet the metadata of others. Rename the metadata files so that keys "
            f"rise with the number; if the npy files were numbered in the same way, rename both."
        )
    moved = np.flatnonzero(order != in_turn)
    if (order[order] == in_turn).all() and len(moved) <= _MOST_EXCHANGED * len(parts):
        early, late = parts[moved[0]], parts[order[moved[0]]]
        logger.warning(
            "keys rise from part to part, but %s begins with %d and %s with %d: if these two files "
            "were exchanged, vectors meet the metadata of others; compare some rows with their "
            "pictures",
            storage.path_of(early.file),
            early.first_key,
            storage.path_of(late.file),
            late.first_key,
        )


def _unpadded(file: str) -> list[str]:
    """Return the numbers in a file's name, as text without the zeros before them."""
    return [str(int(digits)) for digits in re.findall("[0-9]+", file.rpartition("/")[2])]
