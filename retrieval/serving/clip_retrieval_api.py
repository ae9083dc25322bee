"""clip-retrieval's protocol (version 2.45.0): its clients work by changing the URL.

Field for field what ``clip-retrieval back`` answers, with four differences, each for the better:
``embedding_input`` is scaled to norm 1; hits that a filter leaves out are replaced, so that there
are as many as were asked for; duplicates are told by stored vectors; and ``aesthetic_score``, which
its client sends whether or not anybody asked, is without effect unless the server was given the
vectors that it stands for.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from index_builder.cosine import unit_rows

from ..images.fetching import FetchLimits, fetch
from ..searching.request import DUPLICATE_FROM, UNSAFE_FROM, SearchRequest
from .finding import PATH_COLUMN, metadata_lines, read_metadata
from .own_api import json_answer, parse, refusals
from .pictures import MOST_SIZE, thumbnail
from .problems import Problem
from .query_vectors import vectors_of
from .questions import ImageQuery, Query, Row, TextQuery, VectorQuery, Whole
from .served import ServedIndex
from .service import Service, check_vectors

MOST_PICTURES = 500  # in one answer
MOST_PICTURE_BYTES = 32 << 20
# LAION's releases have other names for what the protocol calls url and caption.
_ALSO_CALLED = {"url": ("URL",), "caption": ("TEXT",)}
_MOST_ID = 2**63 - 1
_MOST_WEIGHT = 1e6
_DECIMAL = re.compile("-?[0-9]{1,5}([.][0-9]{1,9})?")
_NOT_EMPTY = {"minLength": 1, "minItems": 1}


def _number(value: Any) -> Any:
    """Return as a number what clip-retrieval's page may send as text, or as nothing, ``""``."""
    if not isinstance(value, str):
        return value
    if value == "":
        return None
    if not _DECIMAL.fullmatch(value):
        raise ValueError("a number is expected")
    return float(value) if "." in value else int(value)


_ASKED = ("text", "image", "image_url", "embedding_input")


class KnnBody(BaseModel):
    """What `ClipClient` sends; unknown fields are let pass, as clip-retrieval does."""

    model_config = ConfigDict(
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {
                    "text": "a zebra",
                    "modality": "image",
                    "num_images": 40,
                    "indice_name": "demo",
                    "deduplicate": True,
                }
            ],
            "anyOf": [
                {
                    "required": [name],
                    "properties": {name: {"type": ["string", "array"], **_NOT_EMPTY}},
                }
                for name in _ASKED
            ],
        },
    )

    text: Annotated[str | None, Field(max_length=10_000, description="Words.")] = None
    image: Annotated[str | None, Field(description="A picture in base64.")] = None
    image_url: Annotated[
        str | None, Field(description="Fetched only where the server may fetch.")
    ] = None
    embedding_input: Annotated[
        list[float] | None, Field(description="A vector, of any norm but zero.")
    ] = None
    modality: Literal["image", "text"]
    num_images: Annotated[
        Whole, Field(ge=0, le=_MOST_ID, description="Hits that get their metadata.")
    ]
    num_result_ids: Annotated[
        Annotated[Whole, Field(ge=1, le=_MOST_ID)] | None,
        Field(description="Hits; null: as many as `num_images`."),
    ] = None
    indice_name: Annotated[str | None, Field(description="null: the first.")] = None
    use_mclip: Annotated[bool, Field(description="Without effect.")] = False
    deduplicate: Annotated[bool, Field(description="Leave out near-duplicates.")] = False
    use_safety_model: Annotated[
        bool, Field(description="Leave out rows whose `punsafe` is 0.5 or more.")
    ] = False
    use_violence_detector: Annotated[bool, Field(description="Without effect.")] = False
    aesthetic_score: Annotated[
        Annotated[Whole, Field(ge=0, le=9)] | None,
        BeforeValidator(_number),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "integer", "minimum": 0, "maximum": 9},
                    {"type": "string", "pattern": "^[0-9]?$"},
                    {"type": "null"},
                ]
            }
        ),
        Field(description="Without effect unless the server has aesthetic vectors."),
    ] = None
    aesthetic_weight: Annotated[
        Annotated[float, Field(ge=-_MOST_WEIGHT, le=_MOST_WEIGHT)] | None,
        BeforeValidator(_number),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "number", "minimum": -_MOST_WEIGHT, "maximum": _MOST_WEIGHT},
                    {"type": "string", "pattern": f"^({_DECIMAL.pattern})?$"},
                    {"type": "null"},
                ]
            }
        ),
        Field(description="Of the aesthetic vector that is added to the query."),
    ] = None


class MetadataBody(BaseModel):
    """Rows of an index."""

    model_config = ConfigDict(
        strict=True, json_schema_extra={"examples": [{"indice_name": "demo", "ids": [0, 1]}]}
    )

    indice_name: str
    ids: list[Row]


class KnnHit(BaseModel):
    """A hit; beside these the columns of its row and, where there is one, its picture."""

    model_config = ConfigDict(extra="allow")

    id: Annotated[int, Field(ge=0, description="Row of the gallery.")]
    similarity: Annotated[float, Field(description="Cosine with the stored vector.")]


class IdMetadata(BaseModel):
    """A row and what is known of it."""

    id: Annotated[int, Field(ge=0)]
    metadata: dict[str, Any]


def clip_retrieval_router(service: Service) -> APIRouter:
    """Return the routes, over a service."""
    router = APIRouter(tags=["clip-retrieval"])

    @router.get("/indices-list", summary="Names of the indexes", responses=refusals())
    async def indices_list() -> list[str]:
        return list(service.settings.indexes)

    @router.post(
        "/knn-service",
        summary="The nearest images of a query",
        response_model=list[KnnHit],
        responses=refusals(403, 404, 409, 413, 422),
        openapi_extra=_body("KnnBody"),
    )
    async def knn_service(request: Request) -> Response:
        body = parse(KnnBody, await request.body())
        served = _index(service, body.indice_name)
        if body.modality == "text":
            raise Problem(409, "no_text_index", f"index {served.name} holds images, not texts.")
        k = body.num_images if body.num_result_ids is None else body.num_result_ids
        asked = SearchRequest(
            max(k, 1),
            unsafe_from=UNSAFE_FROM if body.use_safety_model else None,
            duplicate_from=DUPLICATE_FROM if body.deduplicate else None,
        )
        service.check_size(1, asked)
        vectors = await _query_vector(service, served, body)
        if not k:
            return json_answer([])
        columns = _columns(served)
        found = await service.search(served, vectors, asked, tuple(columns.values()))
        rows = found.rows[0][found.rows[0] >= 0].tolist()
        n_shown = min(body.num_images, len(rows))
        shown = found.metadata.slice(0, n_shown)
        lines = await _as_told(service, served, columns, rows[:n_shown], shown)
        lines.extend({} for _ in rows[n_shown:])
        return json_answer(
            [
                {**line, "id": row, "similarity": score}
                for line, row, score in zip(lines, rows, found.scores[0].tolist(), strict=False)
            ]
        )

    @router.post(
        "/metadata",
        summary="Metadata of rows",
        response_model=list[IdMetadata],
        responses=refusals(404, 413, 422),
        openapi_extra=_body("MetadataBody"),
    )
    async def metadata(request: Request) -> Response:
        body = parse(MetadataBody, await request.body())
        served = _index(service, body.indice_name)
        rows = np.array(body.ids, np.int64)
        if len(rows) > service.limits.most_k:
            raise Problem(
                422, "too_many", f"{len(rows)} ids, expected at most {service.limits.most_k}."
            )
        service.check_rows(served, rows)
        columns = _columns(served)
        table = await service.in_thread(read_metadata, served.engine, rows, tuple(columns.values()))
        lines = await _as_told(service, served, columns, body.ids, table)
        return json_answer(
            [{"id": row, "metadata": line} for row, line in zip(body.ids, lines, strict=True)]
        )

    @router.get(
        "/metrics-summary",
        summary="Calls and their mean time, for people",
        response_class=PlainTextResponse,
        responses=refusals(),
    )
    async def metrics_summary() -> str:
        return _summary(service)

    return router


def _body(name: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    # ClipClient sends no Content-Type; whatever comes is read as JSON.
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _index(service: Service, name: str | None) -> ServedIndex:
    return service.index(next(iter(service.settings.indexes)) if name is None else name)


async def _query_vector(service: Service, served: ServedIndex, body: KnnBody) -> np.ndarray:
    """Return the query, (1, width), of any norm; of several the first of the protocol's order."""
    query: Query
    if body.text:
        query = TextQuery(text=body.text)
    elif body.image:
        query = ImageQuery(image=body.image)
    elif body.image_url:
        query = ImageQuery(image=await _fetch(service, body.image_url))
    elif body.embedding_input:
        query = VectorQuery.model_construct(vector=body.embedding_input)  # judged with the body
    else:
        raise Problem(422, "no_queries", "give text, image, image_url or embedding_input.")
    vectors = await vectors_of(service, served, [query])
    ratings = service.settings.aesthetic_vectors
    if ratings is None or body.aesthetic_score is None or body.aesthetic_weight is None:
        return vectors
    rating = ratings[body.aesthetic_score]
    if rating.shape != vectors.shape[1:]:  # made for another space
        return vectors
    turned = unit_rows(vectors) + np.float32(body.aesthetic_weight) * rating
    return check_vectors(served, turned)


async def _fetch(service: Service, url: str) -> str:
    if not service.settings.may_fetch:
        raise Problem(
            403, "no_fetching", "this server fetches no pictures; send the picture itself."
        )
    content = await service.in_thread(fetch, url, FetchLimits())
    return base64.b64encode(content).decode()


def _columns(served: ServedIndex) -> dict[str, str]:
    """Return the names that the protocol gives columns, and what the index calls them."""
    known = served.engine.columns
    columns = {}
    for name in served.knn_columns:
        for candidate in (name, *_ALSO_CALLED.get(name, ())):
            if candidate in known:
                columns[name] = candidate
                break
    return columns


async def _as_told(
    service: Service,
    served: ServedIndex,
    columns: Mapping[str, str],
    rows: Sequence[int],
    table: Any,
) -> list[dict[str, Any]]:
    """Return lines of metadata under the protocol's names, with the pictures that there are."""
    told = metadata_lines(table.rename_columns(list(columns)), len(rows))
    if served.has_pictures and PATH_COLUMN in columns:
        pictures = await service.in_thread(_pictures, served, rows)
        for line, picture in zip(told, pictures, strict=True):
            if picture is not None:
                line["image"] = picture
    return told


def _pictures(served: ServedIndex, rows: Sequence[int]) -> list[str | None]:
    """Return the pictures of rows as JPEG in base64, until there are too many, or too large."""
    left = MOST_PICTURE_BYTES
    pictures: dict[int, str] = {}
    for row in dict.fromkeys(rows):
        if left <= 0 or len(pictures) == MOST_PICTURES:
            break
        path = served.picture_of(row)
        if path is None:
            continue
        try:
            content = thumbnail(path, MOST_SIZE)
        except Problem:  # it isn't a picture: the protocol leaves it out
            continue
        pictures[row] = base64.b64encode(content).decode()
        left -= len(content)
    return [pictures.get(row) for row in rows]


def _summary(service: Service) -> str:
    totals = service.metrics.totals()
    n_calls, seconds = totals.pop("/knn-service", (0, 0.0))
    lines = [f"/knn-service: {n_calls} calls, {seconds / max(n_calls, 1):.4f} s each"]
    for route, (n_others, total) in sorted(totals.items()):
        lines.append(f"{route}: {n_others} calls, {total / max(n_others, 1):.4f} s each")
    return "\n".join(lines) + "\n"
