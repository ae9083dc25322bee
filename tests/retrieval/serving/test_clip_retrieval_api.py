"""clip-retrieval's protocol, with the fields that version 2.45.0 of its server reads and writes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from index_builder.cosine import unit_rows
from retrieval.errors import PictureError
from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest
from retrieval.serving import clip_retrieval_api
from retrieval.serving.served import ServedIndex

from .conftest import WIDTH, FakeEncoder, World


def knn_body(**fields: Any) -> dict[str, Any]:
    """What `ClipClient` sends, with its defaults, but for what is said."""
    return {
        "text": None,
        "image": None,
        "image_url": None,
        "embedding_input": None,
        "deduplicate": True,
        "use_safety_model": True,
        "use_violence_detector": True,
        "indice_name": "main",
        "use_mclip": False,
        "aesthetic_score": 9,
        "aesthetic_weight": 0.5,
        "modality": "image",
        "num_images": 5,
        "num_result_ids": 5,
        **fields,
    }


def knn(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    # ClipClient sends the body without a content type.
    answer = client.post("/knn-service", json=knn_body(**fields), headers={"Content-Type": ""})
    assert answer.status_code == 200, answer.text
    hits: list[dict[str, Any]] = answer.json()
    return hits


def ids(hits: list[dict[str, Any]]) -> list[int]:
    return [hit["id"] for hit in hits]


def refused(client: TestClient, status: int, code: str, **fields: Any) -> str:
    answer = client.post("/knn-service", json=knn_body(**fields))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    message: str = error["message"]
    return message


def test_names_of_the_indexes(client: TestClient) -> None:
    assert client.get("/indices-list").json() == ["main", "other"]


def test_a_hit_has_the_fields_of_the_protocol(
    client: TestClient, engine: SearchEngine, world: World
) -> None:
    query = world.queries[0]
    hits = knn(client, embedding_input=query.tolist())
    expected = engine.search(query[None], SearchRequest(5, unsafe_from=0.5, duplicate_from=0.94))
    assert ids(hits) == expected.rows[0].tolist()
    similarities = np.array([hit["similarity"] for hit in hits], np.float32)
    assert np.array_equal(similarities, expected.scores[0])
    for hit in hits:
        row = hit["id"]
        assert hit["url"] == f"https://example.org/{row}.jpg"
        assert hit["caption"] == f"caption {row}"
        shown = row % 2 == 0 and row % 5 != 4
        assert set(hit) == {"id", "similarity", "url", "caption", "image_path"} | (
            {"image"} if shown else set()
        )
        if shown:
            picture = Image.open(io.BytesIO(base64.b64decode(hit["image"])))
            assert picture.format == "JPEG" and picture.size == (40, 20)


def test_an_embedding_of_any_norm_asks_the_same(client: TestClient, world: World) -> None:
    query = world.queries[1].astype(float)
    first = knn(client, embedding_input=query.tolist())
    assert first == knn(client, embedding_input=(32 * query).tolist())


def test_similarities_are_the_scores_of_a_search(
    client: TestClient, engine: SearchEngine, world: World
) -> None:
    asked = SearchRequest(5, unsafe_from=0.5, duplicate_from=0.94)
    for query in np.float32(1.7) * world.queries:
        hits = knn(client, embedding_input=query.tolist())
        similarities = np.array([hit["similarity"] for hit in hits], np.float32)
        assert np.array_equal(similarities, engine.search(query[None], asked).scores[0])


def test_the_first_kind_of_query_counts(
    client: TestClient, engine: SearchEngine, world: World
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (5, 5, 5)).save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    vector = world.queries[0].tolist()
    usual = SearchRequest(5, unsafe_from=0.5, duplicate_from=0.94)
    encoder = FakeEncoder()

    def expected(vectors: np.ndarray) -> list[int]:
        found: list[int] = engine.search(vectors, usual).rows[0].tolist()
        return found

    by_text = expected(encoder.encode_texts(["a zebra"]))
    by_image = expected(encoder.encode_images([Image.new("RGB", (1, 1), (5, 5, 5))]))
    both = knn(client, text="a zebra", image=picture, embedding_input=vector)
    assert ids(both) == by_text
    assert ids(knn(client, text="", image=picture, embedding_input=vector)) == by_image
    assert ids(knn(client, text="", embedding_input=vector)) == expected(world.queries[:1])


def test_filters_are_the_engines(client: TestClient, engine: SearchEngine, world: World) -> None:
    query = world.queries[:1]
    for deduplicate in (False, True):
        for is_safe in (False, True):
            hits = knn(
                client,
                embedding_input=query[0].tolist(),
                deduplicate=deduplicate,
                use_safety_model=is_safe,
                num_images=60,
                num_result_ids=60,
            )
            request = SearchRequest(
                60,
                unsafe_from=0.5 if is_safe else None,
                duplicate_from=0.94 if deduplicate else None,
            )
            assert ids(hits) == engine.search(query, request).rows[0].tolist()
            assert is_safe != any(row % 10 == 3 for row in ids(hits))


def test_items_beyond_num_images_have_no_metadata(client: TestClient, world: World) -> None:
    vector = world.queries[0].tolist()
    hits = knn(client, embedding_input=vector, num_images=2, num_result_ids=6)
    assert len(hits) == 6
    assert ["url" in hit for hit in hits] == [True, True, False, False, False, False]
    assert all(set(hit) == {"id", "similarity"} for hit in hits[2:])
    body = knn_body(embedding_input=vector, num_images=3)
    del body["num_result_ids"]
    assert len(client.post("/knn-service", json=body).json()) == 3
    few = knn(client, embedding_input=vector, num_images=9, num_result_ids=3)
    assert len(few) == 3 and "url" in few[2]
    assert knn(client, embedding_input=vector, num_images=0, num_result_ids=None) == []


def test_optional_fields_may_be_left_out(client: TestClient, world: World) -> None:
    body = {
        "embedding_input": world.queries[0].tolist(),
        "modality": "image",
        "num_images": 4,
        "indice_name": None,
        "aesthetic_score": "",
        "aesthetic_weight": "",
        "something_new": 1,
    }
    answer = client.post("/knn-service", json=body)
    assert answer.status_code == 200 and len(answer.json()) == 4


def test_aesthetic_score_is_neutral_unless_the_server_has_its_vectors(
    make_client: Callable[..., TestClient],
    client: TestClient,
    engine: SearchEngine,
    world: World,
) -> None:
    query = world.queries[:1]
    vector = query[0].tolist()
    neutral = knn(client, embedding_input=vector, aesthetic_score=9, aesthetic_weight=0.5)
    assert neutral == knn(client, embedding_input=vector, aesthetic_score="", aesthetic_weight="")
    ratings = {k: np.roll(np.eye(WIDTH, dtype=np.float32)[0], k) for k in range(10)}
    moved = make_client(aesthetic_vectors=ratings)
    asked = SearchRequest(5, unsafe_from=0.5, duplicate_from=0.94)
    for score, weight in ((9, 0.5), (2, 3.0)):
        hits = knn(moved, embedding_input=vector, aesthetic_score=score, aesthetic_weight=weight)
        # As clip-retrieval does: normalise(query + weight * rating), the query being of norm 1.
        expected = engine.search(unit_rows(query) + np.float32(weight) * ratings[score], asked)
        assert ids(hits) == expected.rows[0].tolist()
    assert knn(moved, embedding_input=vector, aesthetic_score="") == neutral
    assert knn(moved, embedding_input=vector, aesthetic_weight="") == neutral


def test_columns_of_an_index_may_be_chosen_and_laions_names_are_known(
    make_client: Callable[..., TestClient],
    engine: SearchEngine,
    other_engine: SearchEngine,
    world: World,
) -> None:
    client = make_client(
        indexes={
            "main": ServedIndex("main", engine, knn_columns=("caption", "punsafe", "missing")),
            "other": ServedIndex("other", other_engine),
        }
    )
    vector = world.queries[0].tolist()
    hits = knn(client, embedding_input=vector)
    assert all(set(hit) == {"id", "similarity", "caption", "punsafe"} for hit in hits)
    others = knn(client, embedding_input=vector, indice_name="other")
    assert all(hit["caption"] == f"text {hit['id']}" for hit in others)


def test_what_cannot_be_asked_is_refused(client: TestClient, world: World) -> None:
    vector = world.queries[0].tolist()
    assert "main, other" in refused(
        client, 404, "unknown_index", indice_name="laion5B", embedding_input=vector
    )
    refused(client, 422, "no_queries")
    refused(client, 422, "no_queries", embedding_input=[], text="")
    refused(client, 422, "no_queries", num_images=0, num_result_ids=None)
    refused(client, 422, "wrong_width", embedding_input=[1.0])
    refused(client, 422, "no_direction", embedding_input=[0.0] * WIDTH)
    refused(client, 409, "no_text_index", embedding_input=vector, modality="text")
    refused(client, 422, "bad_request", embedding_input=vector, modality="sound")
    refused(client, 422, "bad_request", embedding_input=vector, aesthetic_score=10)
    refused(client, 422, "too_many", embedding_input=vector, num_result_ids=10_001)
    refused(client, 422, "bad_base64", image="%")
    refused(client, 403, "no_fetching", image_url="http://127.0.0.1/x.png")
    nan = client.post("/knn-service", content='{"embedding_input": [NaN], "num_images": 1}')
    assert nan.status_code == 422


def test_urls_are_fetched_only_where_that_is_allowed(
    make_client: Callable[..., TestClient],
    engine: SearchEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (8, 8, 8)).save(buffer, "PNG")
    asked: list[str] = []

    def fetch(url: str, limits: Any) -> bytes:
        asked.append(url)
        return buffer.getvalue()

    client = make_client(
        indexes={"main": ServedIndex("main", engine, FakeEncoder())}, may_fetch=True
    )
    # The real one refuses addresses of this machine before it connects.
    message = refused(client, 422, "bad_image", image_url="http://127.0.0.1:9/x.png")
    assert "127.0.0.1" in message
    monkeypatch.setattr(clip_retrieval_api, "fetch", fetch)
    hits = knn(client, image_url="https://example.org/x.png")
    assert asked == ["https://example.org/x.png"]
    vector = FakeEncoder().encode_images([Image.new("RGB", (1, 1), (8, 8, 8))])
    request = SearchRequest(5, unsafe_from=0.5, duplicate_from=0.94)
    assert ids(hits) == engine.search(vector, request).rows[0].tolist()

    def fail(url: str, limits: Any) -> bytes:
        raise PictureError("HTTP 404", f"{url} answered 404.")

    monkeypatch.setattr(clip_retrieval_api, "fetch", fail)
    assert "404" in refused(client, 422, "bad_image", image_url="https://example.org/y.png")


def test_metadata_of_ids(client: TestClient) -> None:
    answer = client.post("/metadata", json={"indice_name": "main", "ids": [2, 1]})
    first, second = answer.json()
    assert (first["id"], second["id"]) == (2, 1)
    assert first["metadata"]["caption"] == "caption 2" and "image" in first["metadata"]
    assert second["metadata"] == {
        "url": "https://example.org/1.jpg",
        "image_path": None,
        "caption": "caption 1",
    }
    assert client.post("/metadata", json={"indice_name": "main", "ids": []}).json() == []
    for body, status in (
        ({"indice_name": "main", "ids": [600]}, 404),
        ({"indice_name": "none", "ids": [1]}, 404),
        ({"indice_name": "main", "ids": [-1]}, 422),
        ({"indice_name": "main"}, 422),
        ({"indice_name": "main", "ids": [1] * 10_001}, 422),
    ):
        assert client.post("/metadata", json=body).status_code == status


def test_the_summary_counts_calls(client: TestClient, world: World) -> None:
    knn(client, embedding_input=world.queries[0].tolist())
    answer = client.get("/metrics-summary")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "/knn-service: 1 calls" in answer.text
