from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from index_builder.build import build_index
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.planning import plan_index
from retrieval.searching.engine import SearchEngine
from retrieval.serving.app import create_app
from retrieval.serving.served import ServedIndex, ServedRun
from retrieval.serving.settings import Limits, ServerSettings

ROOT = Path(__file__).resolve().parents[3]
WIDTH = 48
N_ROWS = 600
MODEL = "ViT-L-14/openai"


def draw(n: int, seed: int) -> np.ndarray:
    """Unit rows around an axis, float16."""
    rng = np.random.default_rng(seed)
    rows = 0.1 + rng.standard_normal((n, WIDTH)) / 7
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def write_embeddings(
    folder: Path, rows: np.ndarray, columns: dict[str, Any], *, model: str = MODEL
) -> EmbeddingFolder:
    space = EmbeddingSpace(model, "final", 1, rows.shape[1], True)
    with EmbeddingWriter(folder, space, command="test", details={"made": "here"}) as writer:
        writer.write(rows, pa.table(columns))
        return writer.finish()


def write_index(folder: Path, embeddings: EmbeddingFolder, *, n_shards: int = 1) -> Path:
    source = Collection([embeddings])
    rows_per_shard = -(-source.n_rows // n_shards)
    plan = plan_index(source.n_rows, source.space, code="ivf-rabitq", rows_per_shard=rows_per_shard)
    build_index(source, folder, plan)
    return folder


@dataclass(frozen=True)
class World:
    """An index with pictures, another without, and where they lie."""

    root: Path
    main: Path
    other: Path
    queries: np.ndarray


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("secret-place")
    (root / "pictures").mkdir()
    for number in range(4):
        Image.new("RGB", (40, 20), (number * 60, 10, 200)).save(root / "pictures" / f"{number}.png")
    numbers = list(range(N_ROWS))
    main = write_embeddings(
        root / "embeddings",
        draw(N_ROWS, 1),
        {
            "image_id": numbers,
            "image_path": [f"../pictures/{i % 5}.png" if i % 2 == 0 else None for i in numbers],
            "caption": [f"caption {i}" for i in numbers],
            "url": [f"https://example.org/{i}.jpg" for i in numbers],
            "punsafe": [0.9 if i % 10 == 3 else 0.1 for i in numbers],
        },
    )
    other = write_embeddings(
        root / "others", draw(300, 2), {"TEXT": [f"text {i}" for i in range(300)]}
    )
    return World(
        root,
        write_index(root / "main", main, n_shards=2),
        write_index(root / "other", other),
        draw(64, 3).astype(np.float32),
    )


@pytest.fixture(scope="session")
def engine(world: World) -> SearchEngine:
    return SearchEngine.open(world.main)


@pytest.fixture(scope="session")
def other_engine(world: World) -> SearchEngine:
    return SearchEngine.open(world.other)


class FakeEncoder:
    """Words and pictures to fixed directions: the first letter, the first pixel."""

    takes_text = True

    def encode_texts(self, texts: list[str], /) -> np.ndarray:
        return np.stack([np.roll(np.eye(WIDTH)[0], ord(text[0])) + 0.1 for text in texts])

    def encode_images(self, images: list[Any], /) -> np.ndarray:
        rows = [np.roll(np.eye(WIDTH)[0], image.convert("L").getpixel((0, 0))) for image in images]
        return np.stack(rows) + 0.1


@pytest.fixture(scope="session")
def run(world: World) -> ServedRun:
    vectors = draw(5, 4).astype(np.float32)
    ids = np.array([3, 5, 7, 11, 13])
    return ServedRun(
        "run01",
        "subj01",
        EmbeddingSpace(MODEL, "final", 1, WIDTH, True),
        {"run": "f" * 64, "head": "retrieval"},
        {"image_id": ids, "n_trials": np.array([3, 3, 2, 1, 3])},
        vectors,
        {3: "a zebra"},
        {3: world.root / "pictures" / "1.png"},
    )


@pytest.fixture
def make_client(
    engine: SearchEngine, other_engine: SearchEngine, run: ServedRun
) -> Iterator[Callable[..., TestClient]]:
    """Serve two indexes and a run in this process; options are those of ServerSettings."""
    opened: list[TestClient] = []

    def make(
        *, encoder: Any = None, confidences: Any = (), indexes: Any = None, **options: Any
    ) -> TestClient:
        served = indexes or {
            "main": ServedIndex("main", engine, encoder, confidences),
            "other": ServedIndex("other", other_engine),
        }
        limits = Limits(**options.pop("limits", {}))
        settings = ServerSettings(served, {"run01": run}, limits, **options)
        client = TestClient(create_app(settings), base_url="http://127.0.0.1:8000")
        opened.append(client.__enter__())
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client(encoder=FakeEncoder())


@dataclass(frozen=True)
class Process:
    """A server of its own."""

    child: subprocess.Popen[bytes]
    port: int

    def post(self, path: str, body: Any, timeout: float = 60) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., Any]:
    """Run `voxseek serve` as users do."""

    @contextmanager
    def run_process(*arguments: str | Path, port: int = 0) -> Iterator[Process]:
        command = [sys.executable, "cli.py", "serve", *map(str, arguments), "--port", str(port)]
        with open(tmp_path / "server.log", "wb") as log:
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        try:
            assert child.stdout is not None
            address = child.stdout.readline().decode().strip()
            assert address, (tmp_path / "server.log").read_text()
            yield Process(child, int(address.rpartition(":")[2]))
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
            try:
                child.wait(timeout=60)
            finally:
                child.kill()
                child.wait()
                assert child.stdout is not None
                child.stdout.close()

    return run_process
