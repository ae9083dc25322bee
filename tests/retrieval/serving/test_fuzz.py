"""Seeded nonsense on every route: a proper answer of a documented status, and nothing is told."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from .conftest import WIDTH, World

N_REQUESTS = 1500
STATUSES = {200, 400, 403, 404, 405, 409, 413, 415, 422}
TEXTS = (
    "",
    "a",
    "main",
    "other",
    "run01",
    "x" * 5000,
    "\u0000",
    "../../etc/passwd",
    "'; --",
    "%00",
)
NUMBERS = (0, -1, 1, 2, 5, 0.5, 1e308, -0.0, 2**63, 2**80, 1.0)


def value(rng: np.random.Generator, world: World, depth: int = 0) -> Any:
    kind = rng.integers(9 if depth < 3 else 5)
    if kind == 0:
        return None
    if kind == 1:
        return bool(rng.integers(2))
    if kind == 2:
        return NUMBERS[rng.integers(len(NUMBERS))]
    if kind in (3, 4):
        return TEXTS[rng.integers(len(TEXTS))]
    if kind == 5:
        return world.queries[rng.integers(64)].tolist()[: rng.integers(1, WIDTH + 1)]
    if kind == 6:
        return {"vector": world.queries[rng.integers(64)].tolist()}
    if kind == 7:
        return [value(rng, world, depth + 1) for _ in range(rng.integers(4))]
    return {
        key: value(rng, world, depth + 1)
        for key in rng.choice(["vector", "text", "image", "run", "image_id", "mix", "weight"], 3)
    }


FIELDS = {
    "/api/search": (
        *("index", "queries", "vectors_npy", "k", "where", "unsafe_from", "watermarked_from"),
        *("duplicate_from", "aesthetic_weight", "breadth", "n_candidates", "columns", "more"),
    ),
    "/knn-service": (
        *("text", "image", "image_url", "embedding_input", "modality", "num_images"),
        *("num_result_ids", "indice_name", "use_mclip", "deduplicate", "use_safety_model"),
        *("use_violence_detector", "aesthetic_score", "aesthetic_weight", "more"),
    ),
    "/metadata": ("indice_name", "ids", "more"),
}


def body(rng: np.random.Generator, world: World, path: str) -> dict[str, Any]:
    """A request that would be answered, with some of its fields replaced."""
    vector = world.queries[rng.integers(64)].tolist()
    sound: dict[str, Any] = {
        "/api/search": {"index": "main", "queries": [{"vector": vector}], "k": 3},
        "/knn-service": {"embedding_input": vector, "modality": "image", "num_images": 2},
        "/metadata": {"indice_name": "main", "ids": [1, 2]},
    }[path]
    for field in rng.choice(FIELDS[path], rng.integers(0, 3)):
        sound[str(field)] = value(rng, world)
    return sound


def address(rng: np.random.Generator) -> str:
    text = TEXTS[rng.integers(len(TEXTS))].replace("\u0000", "%00").replace("'; --", "%27")[:50]
    number = NUMBERS[rng.integers(len(NUMBERS))]
    routes = (
        f"/api/metadata?index={text}&rows={number}",
        f"/api/metadata?index=main&rows={number},3&columns={text}",
        f"/api/pictures/{text}/{number}?size={number}",
        f"/api/pictures/main/{number}",
        f"/api/runs/{text}/trials?offset={number}&limit={number}",
        f"/api/runs/run01/pictures/{number}?size={number}",
        f"/{text}",
    )
    return routes[rng.integers(len(routes))]


def test_nonsense_is_answered_properly(client: TestClient, world: World) -> None:
    rng = np.random.default_rng(11)
    paths = list(FIELDS)
    seen: dict[int, int] = {}
    for _ in range(N_REQUESTS):
        if rng.random() < 0.4:
            answer = client.get(address(rng))
        else:
            path = paths[rng.integers(len(paths))]
            content = json.dumps(body(rng, world, path)).encode()
            if rng.random() < 0.15:
                content = content[: rng.integers(len(content))]
            kind = "text/plain" if rng.random() < 0.05 else "application/json"
            answer = client.post(path, content=content, headers={"Content-Type": kind})
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        assert answer.status_code in STATUSES, (answer.status_code, answer.text)
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert set(error) == {"code", "message"} and len(error["message"]) < 2000
            for secret in (str(world.root), "secret-place", "Traceback", "/site-packages/"):
                assert secret not in answer.text
    # Nonsense of every kind was met, and sound requests among it.
    assert {200, 400, 404, 415, 422} <= set(seen)
