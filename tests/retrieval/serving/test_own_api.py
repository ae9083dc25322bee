from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from index_builder.embeddings.space import EmbeddingSpace, Layer
from retrieval.searching.engine import SearchEngine
from retrieval.searching.mixes import mix
from retrieval.searching.request import SearchRequest
from retrieval.serving.answers import Space
from retrieval.serving.served import ServedIndex, ServedRun

from .conftest import N_ROWS, WIDTH, FakeEncoder, World


def search(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/api/search", json={"index": "main", **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def rows_of(found: dict[str, Any]) -> list[list[int]]:
    return [[hit["row"] for hit in result["hits"]] for result in found["results"]]


def refused(answer: Any, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"} and set(error) == {"code", "message"}
    assert error["code"] == code
    message: str = error["message"]
    return message


def as_base64(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


def picture(level: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (level, level, level)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_healthz_names_version_and_fingerprints(client: TestClient, engine: SearchEngine) -> None:
    health = client.get("/healthz").json()
    assert health["status"] == "ok" and health["version"]
    assert health["indexes"][0] == {
        "name": "main",
        "fingerprint": engine.fingerprint,
        "n_rows": N_ROWS,
    }
    assert [index["name"] for index in health["indexes"]] == ["main", "other"]


def test_indexes_are_described(client: TestClient, engine: SearchEngine) -> None:
    main, other = client.get("/api/indexes").json()
    assert main["space"] == {
        "model": "ViT-L-14/openai",
        "layer": "final",
        "tokens": 1,
        "dim": WIDTH,
        "unit_norm": True,
    }
    assert main["columns"] == list(engine.columns)
    assert main["certificate"] == engine.manifest["certificate"]["statement"]
    assert main["design"] == engine.plan.design
    assert main["has_pictures"] and not other["has_pictures"]
    assert main["takes"] == {"text": True, "image": True, "trial": True}
    assert other["takes"] == {"text": False, "image": False, "trial": True}


def test_vectors_find_what_the_engine_finds(
    client: TestClient, engine: SearchEngine, world: World
) -> None:
    found = search(client, queries=[{"vector": q.tolist()} for q in world.queries], k=7)
    expected = engine.search(world.queries, SearchRequest(7))
    assert rows_of(found) == expected.rows.tolist()
    scores = [[hit["score"] for hit in result["hits"]] for result in found["results"]]
    assert np.array_equal(np.array(scores, np.float32), expected.scores)
    assert found["fingerprint"] == engine.fingerprint and found["k"] == 7
    assert found["effort"] == engine.effort(SearchRequest(7))
    assert found["shards_missing"] == [] and found["seconds"] > 0
    hit = found["results"][0]["hits"][1]
    assert hit["rank"] == 1
    assert hit["metadata"]["caption"] == f"caption {hit['row']}"
    assert found["results"][0]["confidence"] is None


@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
def test_npy_finds_what_json_finds(client: TestClient, world: World, dtype: str) -> None:
    queries = world.queries[:5].astype(dtype)
    found = search(client, vectors_npy=as_base64(queries), k=3)
    listed = search(client, queries=[{"vector": q.astype(float).tolist()} for q in queries], k=3)
    assert rows_of(found) == rows_of(listed)


def test_the_norm_of_a_vector_does_not_matter(client: TestClient, world: World) -> None:
    query = world.queries[0].astype(float)
    pair = [{"vector": query.tolist()}, {"vector": (1000 * query).tolist()}]
    first, second = search(client, queries=pair)["results"]
    assert first == second


def test_filters_reach_the_engine(client: TestClient, engine: SearchEngine, world: World) -> None:
    asked = {
        "where": "image_id % 3 = 0",
        "unsafe_from": 0.95,
        "watermarked_from": 0.8,
        "duplicate_from": 0.4,
        "k": 4,
    }
    found = search(client, queries=[{"vector": world.queries[0].tolist()}], **asked)
    request = SearchRequest(4, **{name: asked[name] for name in asked if name != "k"})
    expected = engine.search(world.queries[:1], request)
    assert rows_of(found) == expected.rows.tolist()
    assert expected.n_duplicates is not None
    counts = [hit["n_duplicates"] for hit in found["results"][0]["hits"]]
    assert counts == expected.n_duplicates[0].tolist() and sum(counts) > 0


def test_unsafe_rows_are_left_out_unless_asked_for(client: TestClient, world: World) -> None:
    query = [{"vector": world.queries[0].tolist()}]
    usual = rows_of(search(client, queries=query, k=100))[0]
    assert not [row for row in usual if row % 10 == 3]
    all_rows = rows_of(search(client, queries=query, k=100, unsafe_from=None))[0]
    assert [row for row in all_rows if row % 10 == 3]


def test_a_wider_search_compares_more(client: TestClient, world: World) -> None:
    query = [{"vector": world.queries[0].tolist()}]
    found = search(client, queries=query, breadth=1, n_candidates=20)
    assert found["effort"] == {"n_probe": 1, "n_candidates": 20}


@pytest.mark.parametrize("layer", ["final", "hidden", "patches"])
def test_every_layer_can_be_told(layer: Layer) -> None:
    space = EmbeddingSpace("ViT-bigG-14/laion2b", layer, 256, 1664, False)
    assert Space(**space.to_dict()).model_dump() == space.to_dict()


def test_texts_and_pictures_are_encoded(
    client: TestClient, engine: SearchEngine, world: World
) -> None:
    encoder = FakeEncoder()
    found = search(
        client,
        queries=[
            {"text": "b"},
            {"image": picture(7)},
            {"vector": world.queries[0].tolist()},
            {"text": "a"},
        ],
    )
    a, b = encoder.encode_texts(["a", "b"])
    seen = encoder.encode_images([Image.new("RGB", (1, 1), (7, 7, 7))])[0]
    vectors = np.stack([b, seen, world.queries[0], a]).astype(np.float32)
    assert rows_of(found) == engine.search(vectors).rows.tolist()


def test_trials_ask_with_the_prediction(
    client: TestClient, engine: SearchEngine, run: ServedRun
) -> None:
    found = search(client, queries=[{"run": "run01", "image_id": 7}])
    vector = run.vector(7)
    assert vector is not None
    assert rows_of(found) == engine.search(vector[None]).rows.tolist()


def test_mixtures_are_weighted_sums(
    client: TestClient, engine: SearchEngine, run: ServedRun
) -> None:
    parts = [
        {"weight": 1.0, "run": "run01", "image_id": 5},
        {"weight": 0.5, "text": "z"},
        {"weight": -0.25, "image": picture(9)},
    ]
    found = search(client, queries=[{"mix": parts}])
    encoder = FakeEncoder()
    brain = run.vector(5)
    assert brain is not None
    text = encoder.encode_texts(["z"])
    seen = encoder.encode_images([Image.new("RGB", (1, 1), (9, 9, 9))])
    mixed = mix([(1.0, brain[None]), (0.5, text), (-0.25, seen)])
    assert rows_of(found) == engine.search(mixed).rows.tolist()


def test_a_mixture_that_cancels_out_is_refused(client: TestClient, world: World) -> None:
    vector = world.queries[0].tolist()
    parts = [{"weight": 1.0, "vector": vector}, {"weight": -1.0, "vector": vector}]
    answer = client.post("/api/search", json={"index": "main", "queries": [{"mix": parts}]})
    assert "cancel" in refused(answer, 422, "bad_search")


def test_columns_are_those_asked_for(client: TestClient, world: World) -> None:
    query = [{"vector": world.queries[0].tolist()}]
    found = search(client, queries=query, k=5, columns=["caption"])
    hits = found["results"][0]["hits"]
    assert all(set(hit["metadata"]) == {"caption"} for hit in hits)
    # Even rows have a picture, which the metadata that weren't asked for tell.
    assert [hit["picture"] is not None for hit in hits] == [hit["row"] % 2 == 0 for hit in hits]
    none = search(client, queries=query, columns=[])
    assert all(hit["metadata"] == {} for hit in none["results"][0]["hits"])
    answer = client.post("/api/search", json={"index": "main", "queries": query, "columns": ["x"]})
    assert "caption" in refused(answer, 422, "unknown_column")


def test_where_a_picture_lies_elsewhere_is_not_told(client: TestClient) -> None:
    line = client.get("/api/metadata?index=main&rows=0&columns=image_path").json()[0]
    assert line["metadata"] == {"image_path": "0.png"}


def test_one_index_needs_no_name(
    make_client: Callable[..., TestClient], engine: SearchEngine, world: World
) -> None:
    query = {"queries": [{"vector": world.queries[0].tolist()}]}
    both, alone = make_client(), make_client(indexes={"main": ServedIndex("main", engine)})
    assert "main, other" in refused(both.post("/api/search", json=query), 422, "no_index")
    assert alone.post("/api/search", json=query).status_code == 200


def test_two_indexes_answer_for_themselves(
    client: TestClient, other_engine: SearchEngine, world: World
) -> None:
    found = search(client, index="other", queries=[{"vector": world.queries[0].tolist()}], k=3)
    assert rows_of(found) == other_engine.search(world.queries[:1], SearchRequest(3)).rows.tolist()
    assert found["results"][0]["hits"][0]["metadata"]["TEXT"].startswith("text ")


NAN_NPY = as_base64(np.full((1, WIDTH), np.nan, np.float32))


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ("{", 400, "bad_json", "isn't JSON"),
        ('{"queries": [{"vector": [NaN]}]}', 422, "bad_request", "finite number"),
        ('{"queries": [{"vector": [1e999]}]}', 422, "bad_request", "finite number"),
        ({"queries": [{"vector": ["1"] * WIDTH}]}, 422, "bad_request", "valid number"),
        ({"queries": [{"vector": [True] * WIDTH}]}, 422, "bad_request", "valid number"),
        ({"queries": [{"vector": [1.0, 2.0]}]}, 422, "wrong_width", "2 numbers"),
        ({"queries": [{"vector": [0.0] * WIDTH}]}, 422, "no_direction", "is zero"),
        ({"queries": [{"vector": [1e300] * WIDTH}]}, 422, "no_direction", "infinite"),
        ({"queries": []}, 422, "bad_request", "at least 1 item"),
        ({}, 422, "no_queries", "either queries or vectors_npy"),
        ({"queries": [{"sound": "x"}]}, 422, "bad_request", "one of vector, text, image, run"),
        ({"queries": [{"text": "a", "more": 1}]}, 422, "bad_request", "Extra inputs"),
        ({"queries": [{"text": "a"}], "k": 0}, 422, "bad_request", "greater than or equal to 1"),
        ({"queries": [{"text": "a"}], "k": 10_001}, 422, "too_many", "at most 10000"),
        ({"queries": [{"text": "a"}], "k": 2.5}, 422, "bad_request", "valid integer"),
        ({"queries": [{"text": "a"}] * 1025}, 422, "too_many", "at most 1024"),
        ({"queries": [{"text": "a"}] * 1000, "k": 9999}, 422, "too_many", "k times queries"),
        ({"queries": [{"text": "a"}], "n_candidates": 2**40}, 422, "too_many", "n_candidates"),
        ({"queries": [{"text": "a"}], "breadth": 10**9}, 422, "bad_search", "n_probe is"),
        ({"queries": [{"text": "a"}], "where": "caption ="}, 422, "bad_search", "SQL"),
        ({"queries": [{"text": "a"}], "where": "nothing = 1"}, 422, "bad_search", "nothing"),
        ({"queries": [{"image": "%%%"}]}, 422, "bad_base64", "base64"),
        ({"queries": [{"image": "aGVsbG8="}]}, 422, "bad_image", "can't be read as a picture"),
        ({"queries": [{"run": "run09", "image_id": 3}]}, 404, "unknown_run", "run01"),
        ({"queries": [{"run": "run01", "image_id": 4}]}, 404, "unknown_image", "no image 4"),
        ({"queries": [{"text": "a"}], "index": "none"}, 404, "unknown_index", "main, other"),
        ({"index": "other", "queries": [{"text": "a"}]}, 409, "takes_no_text", "other"),
        ({"index": "other", "queries": [{"image": picture(1)}]}, 409, "takes_no_image", "other"),
        ({"vectors_npy": "aGVsbG8="}, 422, "bad_npy", "isn't an npy file"),
        ({"vectors_npy": as_base64(np.eye(WIDTH))}, 422, "bad_npy", "float64"),
        ({"vectors_npy": as_base64(np.ones(WIDTH, "f4"))}, 422, "bad_npy", "shape"),
        ({"vectors_npy": as_base64(np.ones((2, 3), "f4"))}, 422, "wrong_width", "3 numbers"),
        ({"vectors_npy": as_base64(np.ones((0, WIDTH), "f4"))}, 422, "no_queries", "no queries"),
        ({"vectors_npy": NAN_NPY}, 422, "no_direction", "NaN"),
        ({"vectors_npy": NAN_NPY, "queries": [{"text": "a"}]}, 422, "no_queries", "either"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_reason(
    client: TestClient, body: Any, status: int, code: str, message: str
) -> None:
    if isinstance(body, dict):
        body = json.dumps({"index": "main", **body})
    headers = {"Content-Type": "application/json"}
    answer = client.post("/api/search", content=body, headers=headers)
    assert message in refused(answer, status, code)


def test_an_npy_file_that_promises_more_than_it_holds_is_refused(client: TestClient) -> None:
    raw = base64.b64decode(as_base64(np.ones((2, WIDTH), "f4")))
    lying = raw.replace(b"(2, 48)", b"(9**9,48)") + b""
    for content in (lying, raw.replace(b"(2, 48), ", b"(999999, 48), "), raw[:-4]):
        body = {"index": "main", "vectors_npy": base64.b64encode(content).decode()}
        refused(client.post("/api/search", json=body), 422, "bad_npy")


def test_other_content_types_are_refused(client: TestClient) -> None:
    answer = client.post("/api/search", content="{}", headers={"Content-Type": "text/plain"})
    assert "application/json" in refused(answer, 415, "wrong_type")


def test_unknown_paths_and_methods_are_refused_alike(client: TestClient) -> None:
    refused(client.get("/nowhere"), 404, "unknown_path")
    answer = client.delete("/api/search")
    refused(answer, 405, "wrong_method")
    assert answer.headers["allow"] == "POST"


def test_metadata_of_rows(client: TestClient) -> None:
    lines = client.get("/api/metadata?index=main&rows=5,2,5&columns=caption,url").json()
    assert [line["row"] for line in lines] == [5, 2, 5]
    assert lines[0]["metadata"] == {"caption": "caption 5", "url": "https://example.org/5.jpg"}
    assert "row 600" in refused(client.get("/api/metadata?index=main&rows=600"), 404, "unknown_row")
    refused(client.get("/api/metadata?index=main&rows=1,-2"), 422, "bad_request")
    refused(client.get("/api/metadata?index=main&rows=1&columns=x"), 422, "unknown_column")
    many = ",".join(["1"] * 10_001)
    refused(client.get(f"/api/metadata?index=main&rows={many}"), 422, "too_many")


def test_pictures_are_small_jpegs(client: TestClient) -> None:
    answer = client.get("/api/pictures/main/2?size=20")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
    shown = Image.open(io.BytesIO(answer.content))
    assert shown.size == (20, 10)
    red, green, blue = shown.convert("RGB").getpixel((5, 5))
    assert abs(red - 120) < 12 and abs(green - 10) < 12 and abs(blue - 200) < 12
    assert Image.open(io.BytesIO(client.get("/api/pictures/main/2").content)).size == (40, 20)


def test_missing_pictures_are_missing(client: TestClient) -> None:
    refused(client.get("/api/pictures/main/1"), 404, "no_picture")  # has no path
    refused(client.get("/api/pictures/main/4"), 404, "no_picture")  # the file isn't there
    refused(client.get("/api/pictures/main/600"), 404, "no_picture")
    refused(client.get("/api/pictures/other/1"), 404, "no_picture")
    refused(client.get("/api/pictures/none/1"), 404, "unknown_index")
    refused(client.get("/api/pictures/main/x"), 422, "bad_request")
    refused(client.get("/api/pictures/main/2?size=5000"), 422, "bad_request")
    refused(client.get("/api/pictures/main/..%2f..%2fetc%2fpasswd"), 404, "unknown_path")


def test_runs_and_their_trials(client: TestClient) -> None:
    assert client.get("/api/runs").json() == [
        {"name": "run01", "subject": "subj01", "n_images": 5, "split": "test"}
    ]
    trials = client.get("/api/runs/run01/trials?offset=0&limit=2").json()
    assert trials == [
        {"image_id": 3, "n_trials": 3, "caption": "a zebra"},
        {"image_id": 5, "n_trials": 3, "caption": None},
    ]
    later = client.get("/api/runs/run01/trials?offset=3").json()
    assert [trial["image_id"] for trial in later] == [11, 13]
    assert client.get(f"/api/runs/run01/trials?offset={2**63 - 1}").json() == []
    refused(client.get("/api/runs/run02/trials"), 404, "unknown_run")
    seen = client.get("/api/runs/run01/pictures/3?size=16")
    assert Image.open(io.BytesIO(seen.content)).size == (16, 8)
    refused(client.get("/api/runs/run01/pictures/5"), 404, "no_picture")


def test_the_page_comes_with_its_policy(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "img-src 'self' data: blob:" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    script = client.get("/page.js")
    assert script.headers["content-type"].startswith("text/javascript")


def test_openapi_describes_every_field(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    search_body = schemas["SearchBody"]
    assert search_body["properties"]["k"]["maximum"] == 10_000
    assert search_body["properties"]["queries"]["maxItems"] == 1024
    for name in ("SearchBody", "KnnBody", "MetadataBody", "SearchAnswer", "Hit"):
        assert schemas[name]["description"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert "HTTPValidationError" not in json.dumps(operation), where
            for status, answer in operation["responses"].items():
                if status != "200":
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema["$ref"].endswith("/ErrorAnswer"), where
