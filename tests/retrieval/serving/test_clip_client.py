"""clip-retrieval's own client against ours: its bytes, and, where it is installed, itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest

from .conftest import World

# What ClipClient 2.45.0 put on the wire for a query of two numbers, recorded. %s: the numbers.
HEAD = (
    "POST /knn-service HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: python-requests/2.34.2\r\n"
    "Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n"
    "Content-Length: %d\r\n\r\n"
)
BODY = (
    '{"text": null, "image": null, "image_url": null, "embedding_input": %s, '
    '"deduplicate": true, "use_safety_model": false, "use_violence_detector": false, '
    '"indice_name": "laion5B-L-14", "use_mclip": false, "aesthetic_score": 5, '
    '"aesthetic_weight": 1, "modality": "image", "num_images": 30, "num_result_ids": 30}'
)
CLIENT = """
import json, sys
from clip_retrieval.clip_client import ClipClient
url, query = sys.argv[1], json.load(sys.stdin)
client = ClipClient(url, "laion5B-L-14", num_images=30)
bare = ClipClient(url, "laion5B-L-14", num_images=30, deduplicate=False, use_safety_model=False)
print(json.dumps([client.query(embedding_input=query), bare.query(embedding_input=query)]))
"""


def expected_ids(engine: SearchEngine, query: np.ndarray, **options: Any) -> list[int]:
    found: list[int] = engine.search(query[None], SearchRequest(30, **options)).rows[0].tolist()
    return found


def test_its_bytes_are_answered(
    serve: Callable[..., Any], world: World, engine: SearchEngine
) -> None:
    query = world.queries[0]
    body = (BODY % json.dumps(query.astype(float).tolist())).encode()
    with (
        serve(f"laion5B-L-14={world.main}") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection,
    ):
        connection.sendall((HEAD % (server.port, len(body))).encode() + body)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(1 << 16)
        head, _, content = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and b"content-type: application/json" in head
        (length,) = [
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.startswith(b"content-length")
        ]
        while len(content) < length:
            content += connection.recv(1 << 16)
    hits = json.loads(content)
    assert [hit["id"] for hit in hits] == expected_ids(
        engine, query, unsafe_from=None, duplicate_from=0.94
    )
    assert hits[0]["url"] == f"https://example.org/{hits[0]['id']}.jpg"


def test_the_real_client_gets_what_voxseek_finds(
    serve: Callable[..., Any], world: World, engine: SearchEngine
) -> None:
    python = os.environ.get("VOXSEEK_CLIP_CLIENT_PYTHON")
    if not python:
        pytest.skip("VOXSEEK_CLIP_CLIENT_PYTHON names no python that has clip-retrieval==2.45.0")
    query = world.queries[1]
    with serve(f"laion5B-L-14={world.main}") as server:
        finished = subprocess.run(
            [python, "-c", CLIENT, f"http://127.0.0.1:{server.port}/knn-service"],
            input=json.dumps(query.astype(float).tolist()),
            capture_output=True,
            text=True,
            check=True,
            timeout=240,
        )
    filtered, bare = json.loads(finished.stdout.strip().splitlines()[-1])
    usual = expected_ids(engine, query, unsafe_from=0.5, duplicate_from=0.94)
    assert [hit["id"] for hit in filtered] == usual
    assert [hit["id"] for hit in bare] == expected_ids(engine, query, unsafe_from=None)
    assert all(hit["caption"] == f"caption {hit['id']}" for hit in bare)
