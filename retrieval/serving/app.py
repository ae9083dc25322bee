"""The application: all routes over one service, behind one gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from .answers import ErrorAnswer
from .arrow_api import arrow_router
from .clip_retrieval_api import KnnBody, MetadataBody, clip_retrieval_router
from .limits import Gate
from .metrics import CONTENT_TYPE
from .openapi import describe
from .own_api import own_router, problem_of_validation, refusals
from .page_files import Page
from .problems import Problem
from .questions import SearchBody
from .service import Service
from .settings import ServerSettings

_DESCRIPTION = (
    "From brain activity, pictures, words or vectors to the nearest images of an index. Every "
    'error is `{"error": {"code", "message"}}`.'
)


def create_app(settings: ServerSettings) -> FastAPI:
    """Return the application that serves indexes and runs.

    Parameters
    ----------
    settings : ServerSettings

    Returns
    -------
    app : FastAPI
        Its threads end with its lifespan.
    """
    service = Service(settings)
    page = Page()
    app = FastAPI(
        title="voxseek",
        version=version("voxseek"),
        description=_DESCRIPTION,
        lifespan=_lifespan(service),
        docs_url=None,  # FastAPI's page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in (
        clip_retrieval_router(service),
        own_router(service),
        arrow_router(service),
        page.router(),
    ):
        app.include_router(router)
    _add_metrics(app, service)
    _add_errors(app)
    app.add_middleware(
        Gate,
        settings=settings,
        metrics=service.metrics,
        hidden=service.hidden,
        open_paths=page.paths,
    )
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(
                describe(app, settings, (SearchBody, KnnBody, MetadataBody, ErrorAnswer))
            )
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it
    return app


def _lifespan(service: Service) -> Any:
    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    return live


def _add_metrics(app: FastAPI, service: Service) -> None:
    @app.get(
        "/metrics",
        summary="Counts and times, as Prometheus reads them",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **refusals(),
        },
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_errors(app: FastAPI) -> None:
    """Turn what FastAPI answers by itself into problems, which the gate tells."""

    async def refuse(request: Request, error: Exception) -> Response:
        raise _problem(error) from error

    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, refuse)


def _problem(error: Exception) -> Problem:
    if isinstance(error, RequestValidationError):
        return problem_of_validation(error.errors())
    assert isinstance(error, HTTPException)
    code = {404: "unknown_path", 405: "wrong_method"}.get(error.status_code, "refused")
    return Problem(error.status_code, code, f"{error.detail}.", error.headers)
