"""Columns from JSON: one schema for all the samples of a set, fixed by its first shard."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

logger = logging.getLogger("voxseek")

_KINDS: dict[type, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
}
_INT64 = range(-(1 << 63), 1 << 63)


class Fields:
    """The flat fields that samples have, and their types.

    Whole numbers are int64, and float64 where others of their field aren't whole; a field that is
    null everywhere, or of mixed kinds, is text. Lists and objects are left out.

    Parameters
    ----------
    records : sequence of mapping
        The samples of the first shard.

    Attributes
    ----------
    schema : pyarrow.Schema
        In the order in which the fields first came.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        kinds: dict[str, set[type]] = {}
        for record in records:
            for name, value in record.items():
                if value is None or type(value) in _KINDS:
                    kinds.setdefault(name, set()).update(() if value is None else (type(value),))
        self.schema = pa.schema([(name, _common(found)) for name, found in kinds.items()])
        self._said: set[str] = set()

    def table(self, records: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Return samples as a table of `schema`.

        A value that doesn't fit its column becomes null, and a field that the first shard hasn't
        got is left out; each is said once.
        """
        for record in records:
            for name, value in record.items():
                if name not in self.schema.names and type(value) in _KINDS:
                    self._say(name, "isn't in the first shard, and is left out")
        arrays = []
        for field in self.schema:
            values = [_fit(record.get(field.name), field.type) for record in records]
            for record, value in zip(records, values, strict=True):
                if value is None and record.get(field.name) is not None:
                    self._say(field.name, f"is {record[field.name]!r}, no {field.type}: left empty")
            arrays.append(pa.array(values, field.type))
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _say(self, name: str, what: str) -> None:
        if name not in self._said:
            self._said.add(name)
            logger.warning("field %r of a sample %s", name, what)


def _common(kinds: set[type]) -> pa.DataType:
    if kinds == {int, float}:
        return pa.float64()
    return _KINDS[kinds.pop()] if len(kinds) == 1 else pa.string()


def _fit(value: Any, kind: pa.DataType) -> Any:
    """Return a value as its column has it, or None."""
    if value is None or type(value) not in _KINDS:
        return None
    if kind == pa.string():
        return str(value).encode("utf-8", "replace").decode()
    if kind == pa.bool_():
        return value if isinstance(value, bool) else None
    if isinstance(value, (bool, str)):
        return None
    if kind == pa.float64():
        return float(value)
    return int(value) if value == value // 1 and int(value) in _INT64 else None
