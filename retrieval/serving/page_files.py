"""The web page: plain files, read once, served with a policy that lets nothing in from outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter, Response

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"
# W3C Content Security Policy Level 3.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class Page:
    """The files of the page, in memory.

    Attributes
    ----------
    paths : frozenset of str
        Where they are served.
    """

    def __init__(self) -> None:
        self._files = {}
        for file in files("retrieval.serving").joinpath("page").iterdir():
            media_type = _TYPES.get(file.name[file.name.rfind(".") :])
            if media_type is not None:
                path = "/" if file.name == _INDEX else f"/{file.name}"
                self._files[path] = file.read_bytes(), media_type
        self.paths = frozenset(self._files)

    def router(self) -> APIRouter:
        """Return a route a file; OpenAPI isn't told of them."""
        router = APIRouter(include_in_schema=False)
        for path, (content, media_type) in self._files.items():
            router.add_api_route(path, _sender(content, media_type), methods=["GET"])
        return router


def _sender(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}

    async def send() -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return send
