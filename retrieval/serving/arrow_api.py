"""Batches as Arrow: a stream of vectors in, a stream of hits out, without a number as text."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Query, Request, Response
from pydantic import BeforeValidator, ConfigDict

from ..results import HIT_SCHEMA
from .finding import Found
from .own_api import refusals, require_type
from .problems import Problem
from .questions import Asked, Cosine, IndexName, Probability
from .service import Service, check_vectors

STREAM = "application/vnd.apache.arrow.stream"  # registered with IANA
VECTOR_COLUMN = "vector"
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_RECORD_BATCH = 3  # in the union MessageHeader of Arrow's Message.fbs


def _none(value: Any) -> Any:
    return None if value in ("", "none", "null") else value


class ArrowParameters(Asked):
    """What is asked of the search; `none` turns a threshold off."""

    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)

    index: IndexName = None
    unsafe_from: Annotated[Probability | None, BeforeValidator(_none)] = Asked.model_fields[
        "unsafe_from"
    ].default
    watermarked_from: Annotated[Probability | None, BeforeValidator(_none)] = None
    duplicate_from: Annotated[Cosine | None, BeforeValidator(_none)] = None


def arrow_router(service: Service) -> APIRouter:
    """Return the route, over a service."""
    router = APIRouter()

    @router.post(
        "/api/search.arrow",
        summary="The nearest images of queries, as Arrow",
        description=f"In: an uncompressed Arrow IPC stream with a column `{VECTOR_COLUMN}`, lists "
        "of float16 or float32, one a query. Out: query, rank, row, score, then the metadata.",
        response_class=Response,
        responses={
            200: {"content": {STREAM: _BINARY}, "description": "A line a hit, by query and rank."},
            **refusals(404, 409, 413, 415, 422),
        },
        openapi_extra={"requestBody": {"required": True, "content": {STREAM: _BINARY}}},
    )
    async def search_arrow(
        request: Request, asked: Annotated[ArrowParameters, Query()]
    ) -> Response:
        require_type(request, STREAM)
        served = service.index(asked.index)
        wanted = asked.request()
        service.check_size(1, wanted)
        effort = served.engine.effort(wanted)
        columns = service.columns(served, asked.columns)
        content = await request.body()
        lists = await service.in_thread(read_vectors, content, service.limits.most_queries)
        if not len(lists):
            raise Problem(422, "no_queries", "there are no queries; expected at least one.")
        vectors = check_vectors(served, lists)
        found = await service.search(served, vectors, wanted, columns)
        facts = {
            "index": served.name,
            "fingerprint": served.engine.fingerprint,
            "k": str(wanted.k),
            "effort": " ".join(f"{name}={value}" for name, value in effort.items()),
        }
        answer = await service.in_thread(write_hits, found, facts)
        return Response(answer, media_type=STREAM)

    return router


def read_vectors(content: bytes, most_queries: int) -> np.ndarray:
    """Return the column ``vector`` of an Arrow IPC stream: (n, width), float16 or float32.

    Raises
    ------
    Problem
        422 if it is something else, holds nulls, lists of several lengths or too many of them, or
        is compressed: what it grows to would be known too late.
    """
    try:
        _refuse_compression(content)
        with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
            column = _column_of(reader.schema)
            batches = []
            n_rows = 0
            for batch in reader:
                n_rows += batch.num_rows
                if n_rows > most_queries:
                    raise Problem(
                        422,
                        "too_many",
                        f"queries: more than {most_queries}, the most in one request.",
                    )
                lists = batch.column(column)
                lists.validate(full=True)
                batches.append(_as_rows(lists))
    except (pa.ArrowException, OSError, struct.error, IndexError) as error:
        raise Problem(422, "bad_arrow", "the body isn't a sound Arrow IPC stream.") from error
    widths = {rows.shape[1] for rows in batches if len(rows)}
    if len(widths) > 1:
        raise _uneven()
    return np.concatenate([rows for rows in batches if len(rows)] or [np.empty((0, 0), np.float32)])


def write_hits(found: Found, facts: dict[str, str]) -> bytes:
    """Return the hits as an Arrow IPC stream, with the columns of a results folder.

    Parameters
    ----------
    found : Found
    facts : dict
        Kept in the schema's metadata.
    """
    query_of, rank = np.nonzero(found.rows >= 0)
    values = {
        "query": query_of,
        "rank": rank.astype(np.int32),
        "row": found.rows[query_of, rank],
        "score": found.scores[query_of, rank],
        "n_duplicates": found.n_duplicates[query_of, rank],
    }
    table = pa.table([values[name] for name in HIT_SCHEMA.names], schema=HIT_SCHEMA)
    for name in found.metadata.column_names:
        own = name if name not in HIT_SCHEMA.names else f"metadata.{name}"
        table = table.append_column(own, found.metadata[name])
    table = table.replace_schema_metadata(facts)
    sink = BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _column_of(schema: Any) -> int:
    place: int = schema.get_field_index(VECTOR_COLUMN)
    kind = schema.field(place).type if place >= 0 else None
    if (
        kind is None
        or not any(is_lists(kind) for is_lists in _LISTS)
        or kind.value_type not in (pa.float16(), pa.float32())
    ):
        raise Problem(
            422,
            "bad_arrow",
            f"column {VECTOR_COLUMN} is {kind or 'missing'}, expected lists of float16 or float32.",
        )
    return place


def _as_rows(lists: Any) -> np.ndarray:
    """Return lists of one length as the rows of an array."""
    values = lists.flatten()
    if lists.null_count or values.null_count or (len(lists) and len(values) % len(lists)):
        raise _uneven()
    width = len(values) // len(lists) if len(lists) else 0
    if not pa.types.is_fixed_size_list(lists.type):
        lengths = np.diff(lists.offsets.to_numpy())
        if (lengths != width).any():
            raise _uneven()
    rows: np.ndarray = values.to_numpy(zero_copy_only=False).reshape(len(lists), width)
    return rows


def _uneven() -> Problem:
    return Problem(
        422, "bad_arrow", f"column {VECTOR_COLUMN} holds nulls, or lists of several lengths."
    )


def _refuse_compression(content: bytes) -> None:
    """Raise if a record batch of a stream is compressed, before any is decompressed.

    Notes
    -----
    Arrow Columnar Format 1.5, "Encapsulated message format"; tables as FlatBuffers keeps them.
    """
    reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(content))
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        metadata = message.metadata.to_pybytes()
        (root,) = struct.unpack_from("<I", metadata)
        header_type = _field(metadata, root, 1)
        header = _field(metadata, root, 2)
        if header_type is None or header is None or metadata[header_type] != _RECORD_BATCH:
            continue
        (offset,) = struct.unpack_from("<I", metadata, header)
        if _field(metadata, header + offset, 3) is not None:
            raise Problem(
                422, "bad_arrow", "the stream is compressed; write it without compression."
            )


def _field(buffer: bytes, table: int, number: int) -> int | None:
    """Return where a field of a FlatBuffers table stands, or None where it is absent."""
    (to_vtable,) = struct.unpack_from("<i", buffer, table)
    vtable = table - to_vtable
    (vtable_bytes,) = struct.unpack_from("<H", buffer, vtable)
    place = 4 + 2 * number
    if place >= vtable_bytes:
        return None
    (offset,) = struct.unpack_from("<H", buffer, vtable + place)
    return table + offset if offset else None
