"""The page in a headless Chromium, against a real server of a small world."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.retrieval.serving.page.world import World, make_world

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ROOT = Path(__file__).resolve().parents[4]
SERVE = "from retrieval.serving.commands import serve; serve()"
# What the browser itself reports of an answer that isn't 200; tests that expect one allow it.
FAILED_LOAD = re.compile(r"Failed to load resource: ")


@pytest.fixture(scope="session")
def chromium() -> str:
    named = os.environ.get("VOXSEEK_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: install one, or name it in VOXSEEK_CHROMIUM")
    return found


@pytest.fixture(scope="session")
def world(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


class Server:
    """`voxseek serve` in a process of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str] | None = None) -> None:
        self._command = [sys.executable, "-c", SERVE, *arguments]
        self._environment = {**os.environ, **(environment or {})}
        self.address = ""
        self.start(port=0)

    def start(self, *, port: int | None = None) -> None:
        """Start it, on the port it had where none is given."""
        chosen = urlsplit(self.address).port if port is None else port
        self._process = subprocess.Popen(
            [*self._command, "--port", str(chosen)],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if not said.startswith("http://"):
            self.stop()
            pytest.fail(f"the server did not start; it said {said!r}")
        self.address = said

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=60)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def search(self, body: dict[str, Any]) -> dict[str, Any]:
        """Ask the API what the page asks."""
        request = urllib.request.Request(
            f"{self.address}/api/search",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}{path}") as answer:
            return json.load(answer)


def arguments_of(world: World) -> list[str]:
    first, second = world.runs
    indexes = [f"drawn={world.drawn}", f"written={world.written}"]
    runs = ["--run", f"first={first}", "--run", f"second={second}"]
    subjects = ["--subject", str(world.subject), "--subject", str(world.subject)]
    return [*indexes, *runs, *subjects, "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="session")
def serve(world: World) -> Iterator[Callable[..., Server]]:
    """Start servers of the world; all end with the session."""
    servers: list[Server] = []

    def start(**environment: str) -> Server:
        servers.append(Server(arguments_of(world), environment))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Without a sandbox of its own, for it may run as root in a container.
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visits:
    """Opens the page, and watches what it does.

    Attributes
    ----------
    problems : list of str
        What the console said, and requests to other places than the server.
    """

    browser: Any
    server: Server
    problems: list[str] = field(default_factory=list)
    may_fail: bool = False
    _contexts: list[Any] = field(default_factory=list)

    def __call__(
        self,
        link: str = "",
        *,
        width: int = 1280,
        height: int = 900,
        prepare: Callable[[Any], None] = lambda page: None,
        **options: Any,
    ) -> Any:
        context = self.browser.new_context(
            viewport={"width": width, "height": height},
            permissions=["clipboard-read", "clipboard-write"],
            **options,
        )
        context.set_default_timeout(20_000)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("request", self._watch)
        prepare(page)
        page.goto(f"{self.server.address}/{link}")
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def _hear(self, message: Any) -> None:
        if self.may_fail and FAILED_LOAD.match(message.text):
            return
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def _watch(self, request: Any) -> None:
        place = urlsplit(request.url)
        if place.scheme in ("data", "blob"):
            return
        if f"{place.scheme}://{place.netloc}" != self.server.address:
            self.problems.append(f"request to {request.url}")


@pytest.fixture
def visits(browser: Any, server: Server) -> Iterator[Visits]:
    """Open pages; at the end the console must be silent, and no other place have been asked."""
    visits = Visits(browser, server)
    yield visits
    visits.close()
    assert visits.problems == []


@pytest.fixture
def expect() -> Any:
    return playwright.expect


@pytest.fixture
def trial(server: Server) -> int:
    """Return the image of a trial."""
    return server.get("/api/runs/first/trials?limit=1")[0]["image_id"]
