"""OpenAPI: what FastAPI can't know, told by hand: bodies that we read ourselves, and limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from .settings import ServerSettings

_REF = "#/components/schemas/{model}"


def describe(
    app: FastAPI, settings: ServerSettings, models: tuple[type[BaseModel], ...]
) -> dict[str, Any]:
    """Return the OpenAPI document of an application.

    Parameters
    ----------
    app : FastAPI
    settings : ServerSettings
        Whose limits and indexes become bounds of the schemas: the document is of this server.
    models : tuple of pydantic models
        That routes read or write by themselves, and name as ``#/components/schemas/...``.
    """
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = document["components"]["schemas"]
    for model in models:
        schema = model.model_json_schema(ref_template=_REF)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    limits = settings.limits
    search, knn, rows = (schemas[name] for name in ("SearchBody", "KnnBody", "MetadataBody"))
    search["properties"]["k"]["maximum"] = limits.most_k
    search["properties"]["queries"]["maxItems"] = limits.most_queries
    rows["properties"]["ids"]["maxItems"] = limits.most_k
    for name in ("num_images", "num_result_ids"):
        for schema in _of_numbers(knn["properties"][name]):
            schema["maximum"] = limits.most_k
    for parameter in _parameters(document, "k"):
        parameter["schema"]["maximum"] = limits.most_k
    _name_indexes(document, settings)
    _bound_vectors(schemas, settings)
    if settings.token is not None:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _name_indexes(document: dict[str, Any], settings: ServerSettings) -> None:
    """Say which indexes there are, and that one must be named where there are several."""
    names = list(settings.indexes)
    search = document["components"]["schemas"]["SearchBody"]
    described = search["properties"]["index"]["description"]
    if len(names) > 1:
        search.setdefault("required", []).append("index")
        search["properties"]["index"] = {"enum": names, "description": described}
    for parameter in _parameters(document, "index"):
        parameter["required"] = parameter["in"] == "path" or len(names) > 1
        parameter["schema"] = {"enum": names}


def _bound_vectors(schemas: dict[str, Any], settings: ServerSettings) -> None:
    """Say how long a vector is, where all indexes are of one width."""
    widths = {served.engine.space.width for served in settings.indexes.values()}
    if len(widths) > 1:
        return
    (width,) = widths
    vectors = [schemas[name]["properties"]["vector"] for name in ("VectorQuery", "VectorPart")]
    given = schemas["KnnBody"]["properties"]["embedding_input"]["anyOf"]
    for schema in [*vectors, *(each for each in given if each.get("type") == "array")]:
        schema["minItems"] = schema["maxItems"] = width


def _parameters(document: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == name:
                    yield parameter


def _of_numbers(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a schema that are of numbers."""
    return [each for each in schema.get("anyOf", [schema]) if each.get("type") == "integer"]
