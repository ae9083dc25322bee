"""Our own API: indexes, searches, metadata, pictures and runs, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import numpy as np
import orjson
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ValidationError

from .answers import (
    ErrorAnswer,
    Health,
    IndexFacts,
    RowMetadata,
    RunFacts,
    SearchAnswer,
    Trial,
)
from .confidences import confidences_of
from .finding import PATH_COLUMN, Found, metadata_lines, read_metadata
from .pictures import LEAST_SIZE, MOST_SIZE, thumbnail
from .problems import Problem
from .query_vectors import decode_npy, vectors_of
from .questions import SearchBody
from .served import ServedIndex
from .service import Service, check_vectors

Model = TypeVar("Model", bound=BaseModel)

JSON = "application/json"
_FEW_HITS = 2048  # so many are written down at once; more, beside the event loop
_THUMBNAIL_SIZE = 256
_KEPT_SECONDS = 3600
_MEANINGS = {
    400: "It can't be read, or names another host.",
    401: "The token is missing or wrong.",
    403: "The server may not do this.",
    404: "There is no such index, run, row or picture.",
    408: "It arrived too slowly.",
    409: "The index takes no such query.",
    413: "The body is too large.",
    415: "The content is of another type.",
    422: "It can be read, and asks for what can't be.",
    500: "The server failed.",
    503: "Too many requests wait, or files can't be read.",
    504: "There was no answer in time.",
}
ROWS_PATTERN = r"^\d{1,18}(,\d{1,18})*$"
Size = Annotated[int, Query(ge=LEAST_SIZE, le=MOST_SIZE, description="Longer side, in pixels.")]
ImageId = Annotated[int, Path(ge=0, le=2**63 - 1)]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the answers other than 200 that a route may give, for OpenAPI."""
    always = (400, 401, 408, 500, 503, 504)
    # Not as FastAPI's "model", which would be of the content type of the route's own answers.
    content = {JSON: {"schema": {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}}}
    return {
        status: {"content": content, "description": _MEANINGS[status]}
        for status in sorted({*always, *statuses})
    }


def own_router(service: Service) -> APIRouter:
    """Return the routes, over a service."""
    router = APIRouter()
    _add_facts(router, service)
    _add_search(router, service)
    _add_pictures(router, service)
    _add_runs(router, service)
    return router


def json_answer(content: Any) -> Response:
    """Return plain data as JSON; what JSON doesn't have (dates, bytes) becomes text."""
    return Response(orjson.dumps(content, default=_as_text), media_type=JSON)


def require_type(request: Request, *types: str) -> None:
    """Refuse a body of another content type with 415."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in types:
        raise Problem(
            415, "wrong_type", f"Content-Type is {given[:100]!r}, expected {' or '.join(types)}."
        )


def parse(model: type[Model], content: bytes) -> Model:
    """Return a body of JSON as a model.

    Raises
    ------
    Problem
        400 if it isn't JSON, 422 if it is of another shape.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        raise problem_of_validation(errors) from error


def problem_of_validation(errors: Sequence[Any]) -> Problem:
    """Return the first few errors of pydantic as a problem, without what was sent."""
    if errors[0]["type"] == "json_invalid":
        return Problem(400, "bad_json", f"the body isn't JSON: {errors[0]['ctx']['error']}.")
    told = [f"{'.'.join(map(str, error['loc'])) or 'body'}: {error['msg']}" for error in errors[:5]]
    return Problem(422, "bad_request", "; ".join(told)[:1000])


def _add_facts(router: APIRouter, service: Service) -> None:
    indexes = service.settings.indexes.values()

    @router.get(
        "/healthz", summary="Whether the server answers, and what for", responses=refusals()
    )
    async def healthz() -> Health:
        facts = [
            {
                "name": served.name,
                "fingerprint": served.engine.fingerprint,
                "n_rows": served.engine.n_rows,
            }
            for served in indexes
        ]
        return Health.model_validate(
            {"status": "ok", "version": version("voxseek"), "indexes": facts}
        )

    @router.get("/api/indexes", summary="The indexes that are served", responses=refusals())
    async def list_indexes() -> list[IndexFacts]:
        return [_index_facts(served, service) for served in indexes]

    @router.get(
        "/api/metadata",
        summary="Metadata of rows",
        response_model=list[RowMetadata],
        responses=refusals(404, 422),
    )
    async def metadata(
        rows: Annotated[
            str,
            Query(
                pattern=ROWS_PATTERN, description="Row numbers, with commas.", examples=["1,2,3"]
            ),
        ],
        index: Annotated[str | None, Query(description="Its name.")] = None,
        columns: Annotated[
            str | None, Query(description="Column names, with commas; none: all.")
        ] = None,
    ) -> Response:
        served = service.index(index)
        numbers = np.array([int(row) for row in rows.split(",")], np.int64)
        if len(numbers) > service.limits.most_k:
            raise Problem(
                422, "too_many", f"{len(numbers)} rows, expected at most {service.limits.most_k}."
            )
        service.check_rows(served, numbers)
        wanted = None if columns is None else columns.split(",")
        names = service.columns(served, wanted)
        table = await service.in_thread(read_metadata, served.engine, numbers, names)
        lines = metadata_lines(table, len(numbers))
        return json_answer(
            [
                {"row": row, "metadata": line}
                for row, line in zip(numbers.tolist(), lines, strict=True)
            ]
        )


def _add_search(router: APIRouter, service: Service) -> None:
    @router.post(
        "/api/search",
        summary="The nearest images of queries",
        response_model=SearchAnswer,
        responses=refusals(404, 409, 413, 415, 422),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {JSON: {"schema": {"$ref": "#/components/schemas/SearchBody"}}},
            }
        },
    )
    async def search(request: Request) -> Response:
        require_type(request, JSON)
        body = parse(SearchBody, await request.body())
        if bool(body.queries) == (body.vectors_npy is not None):
            raise Problem(422, "no_queries", "give either queries or vectors_npy.")
        served = service.index(body.index)
        asked = body.request()
        service.check_size(max(1, len(body.queries)), asked)
        effort = served.engine.effort(asked)
        columns = service.columns(served, body.columns)
        if body.vectors_npy is not None:
            vectors = check_vectors(served, decode_npy(body.vectors_npy))
        else:
            vectors = await vectors_of(service, served, body.queries)
        shown = columns
        if served.has_pictures and PATH_COLUMN not in columns:
            shown = (*columns, PATH_COLUMN)
        found = await service.search(served, vectors, asked, shown)
        facts = {
            "index": served.name,
            "fingerprint": served.engine.fingerprint,
            "k": asked.k,
            "effort": effort,
            "seconds": found.seconds,
            "shards_missing": list(found.shards_missing),
        }
        sure: Sequence[float | None] = [None] * len(vectors)
        if served.confidences:
            runs = service.settings.runs
            sure = await service.in_thread(
                confidences_of, served, runs, body.queries, vectors, found, asked
            )
        if found.rows.size > _FEW_HITS:
            content = await service.in_thread(_write_answer, served, found, facts, columns, sure)
        else:
            content = _write_answer(served, found, facts, columns, sure)
        return Response(content, media_type=JSON)


def _add_pictures(router: APIRouter, service: Service) -> None:
    answers: dict[int | str, dict[str, Any]] = {
        200: {"content": {"image/jpeg": {}}, "description": "The picture, smaller."},
        **refusals(404, 422),
    }

    @router.get(
        "/api/pictures/{index}/{row}",
        summary="The picture of a row",
        response_class=Response,
        responses=answers,
    )
    async def picture(
        index: str, row: Annotated[int, Path(ge=0, le=2**63 - 1)], size: Size = _THUMBNAIL_SIZE
    ) -> Response:
        served = service.index(index)
        path = await service.in_thread(served.picture_of, row)
        return await _picture_answer(service, path, size)

    @router.get(
        "/api/runs/{run}/pictures/{image_id}",
        summary="The picture that a subject saw",
        response_class=Response,
        responses=answers,
    )
    async def seen_picture(run: str, image_id: ImageId, size: Size = _THUMBNAIL_SIZE) -> Response:
        return await _picture_answer(service, service.run(run).pictures.get(image_id), size)


def _add_runs(router: APIRouter, service: Service) -> None:
    @router.get("/api/runs", summary="The runs whose brains may be asked", responses=refusals())
    async def list_runs() -> list[RunFacts]:
        return [
            RunFacts(
                name=run.name, subject=run.subject, n_images=len(run.image_ids), split=run.split
            )
            for run in service.settings.runs.values()
        ]

    @router.get(
        "/api/runs/{run}/trials", summary="The images of a run", responses=refusals(404, 422)
    )
    async def trials(
        run: str,
        offset: Annotated[int, Query(ge=0, le=2**63 - 1, description="Images left out.")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000, description="Images at most.")] = 100,
    ) -> list[Trial]:
        served = service.run(run)
        page = slice(offset, offset + limit)
        return [
            Trial(image_id=image_id, n_trials=n_trials, caption=served.captions.get(image_id))
            for image_id, n_trials in zip(
                served.image_ids[page].tolist(), served.n_trials[page].tolist(), strict=True
            )
        ]


async def _picture_answer(service: Service, path: Any, size: int) -> Response:
    if path is None:
        raise Problem(404, "no_picture", "there is no picture that can be shown.")
    content = await service.in_thread(thumbnail, path, size)
    headers = {"Cache-Control": f"private, max-age={_KEPT_SECONDS}"}
    return Response(content, media_type="image/jpeg", headers=headers)


def _index_facts(served: ServedIndex, service: Service) -> IndexFacts:
    engine = served.engine
    space = engine.space.to_dict()
    runs = service.settings.runs.values()
    takes = {
        "text": served.takes_text,
        "image": served.takes_image,
        "trial": any(run.is_comparable(engine.space) for run in runs),
    }
    return IndexFacts.model_validate(
        {
            "name": served.name,
            "fingerprint": engine.fingerprint,
            "n_rows": engine.n_rows,
            "space": {
                name: space[name] for name in ("model", "layer", "tokens", "dim", "unit_norm")
            },
            "design": engine.plan.design,
            "columns": list(engine.columns),
            "certificate": engine.manifest["certificate"]["statement"],
            "has_pictures": served.has_pictures,
            "takes": takes,
        }
    )


def _write_answer(
    served: ServedIndex,
    found: Found,
    facts: dict[str, Any],
    columns: Sequence[str],
    sure: Sequence[float | None],
) -> bytes:
    """Write the answer of a search as JSON."""
    shows_path = PATH_COLUMN in columns
    address = f"/api/pictures/{quote(served.name, safe='')}/"
    lines = iter(metadata_lines(found.metadata, int((found.rows >= 0).sum())))
    results = []
    for rows, scores, n_duplicates, confidence in zip(
        found.rows.tolist(), found.scores.tolist(), found.n_duplicates.tolist(), sure, strict=True
    ):
        hits = []
        for rank, row in enumerate(rows):
            if row < 0:
                break
            line = next(lines)
            path = line.get(PATH_COLUMN) if shows_path else line.pop(PATH_COLUMN, None)
            hits.append(
                {
                    "rank": rank,
                    "row": row,
                    "score": scores[rank],
                    "n_duplicates": n_duplicates[rank],
                    "metadata": line,
                    "picture": f"{address}{row}" if served.has_pictures and path else None,
                }
            )
        results.append({"hits": hits, "confidence": confidence})
    return orjson.dumps({**facts, "results": results}, default=_as_text)


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
