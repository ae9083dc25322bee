from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index_builder.cosine import unit_rows
from index_builder.embeddings.errors import ArtefactError
from index_builder.errors import FaissVersionError
from index_builder.quantizer import Quantizer, load_quantizer, save_quantizer, train_quantizer


def direction_scores(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    centroids = centroids.astype(np.float64)
    return points @ (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).T


def test_transform_keeps_distances(cone: Callable[..., np.ndarray]) -> None:
    unit = unit_rows(cone(200))
    transformed = train_quantizer(unit, 8, 0).transform(unit)
    before = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    after = np.linalg.norm(transformed[:, None] - transformed[None], axis=2)
    np.testing.assert_allclose(after, before, atol=2e-6)


def test_route_takes_the_lists_nearest_in_direction(cone: Callable[..., np.ndarray]) -> None:
    unit = unit_rows(cone(400))
    quantizer = train_quantizer(unit, 16, 0)
    points = quantizer.transform(unit)
    expected = np.argsort(-direction_scores(points, quantizer.centroids), axis=1)
    for n_probe in (1, 5, 16):
        nearest = np.sort(expected[:, :n_probe], axis=1)
        np.testing.assert_array_equal(quantizer.route(points, n_probe), nearest)


def test_equal_centroids_are_taken_by_number(cone: Callable[..., np.ndarray]) -> None:
    quantizer = train_quantizer(unit_rows(cone(100)), 4, 0)
    doubled = Quantizer.of(quantizer.mean, quantizer.signs, np.tile(quantizer.centroids, (3, 1)))
    points = quantizer.transform(unit_rows(cone(20)))
    nearest = quantizer.route(points, 1)
    np.testing.assert_array_equal(doubled.route(points, 2), np.hstack([nearest, nearest + 4]))


def test_training_improves_on_its_start(cone: Callable[..., np.ndarray]) -> None:
    unit = unit_rows(cone(2000))
    quantizer = train_quantizer(unit, 16, 0)
    points = quantizer.transform(unit)
    start = points[np.sort(np.random.default_rng(0).choice(2000, 16, replace=False))]
    trained = direction_scores(points, quantizer.centroids).max(axis=1).mean()
    assert trained > direction_scores(points, start).max(axis=1).mean() * 1.05


def test_every_list_gets_rows_though_rows_repeat(cone: Callable[..., np.ndarray]) -> None:
    # 20 distinct rows, 8 of them drawn as start: copies among these leave lists empty at first.
    unit = unit_rows(np.repeat(cone(20), 30, axis=0))
    quantizer = train_quantizer(unit, 8, 0)
    lists = quantizer.route(quantizer.transform(unit), 1)[:, 0]
    assert len(np.unique(lists)) == 8


def test_identical_rows_are_no_obstacle(cone: Callable[..., np.ndarray]) -> None:
    quantizer = train_quantizer(unit_rows(np.repeat(cone(1), 50, axis=0)), 2, 0)
    assert np.isfinite(quantizer.centroids).all()


def test_saved_quantizer_is_the_same(cone: Callable[..., np.ndarray], tmp_path: Path) -> None:
    quantizer = train_quantizer(unit_rows(cone(100)), 4, 7)
    save_quantizer(quantizer, tmp_path, "f")
    again = load_quantizer(tmp_path)
    for name in ("mean", "signs", "centroids"):
        np.testing.assert_array_equal(getattr(again, name), getattr(quantizer, name))


def test_another_faiss_is_refused(cone: Callable[..., np.ndarray], tmp_path: Path) -> None:
    save_quantizer(train_quantizer(unit_rows(cone(100)), 4, 7), tmp_path, "f")
    path = tmp_path / "quantizer.json"
    record = json.loads(path.read_text())
    assert record["faiss_version"] in path.read_text()
    code = bytearray.fromhex(record["probe_code"])
    code[0] ^= 1
    record |= {"probe_code": code.hex(), "faiss_version": "1.13.2"}
    path.write_text(json.dumps(record))
    with pytest.raises(FaissVersionError, match=r"otherwise than FAISS 1\.13\.2, which built"):
        load_quantizer(tmp_path)


def test_factors_of_another_processor_are_accepted(
    cone: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    save_quantizer(train_quantizer(unit_rows(cone(100)), 4, 7), tmp_path, "f")
    path = tmp_path / "quantizer.json"
    record = json.loads(path.read_text())
    code = bytes.fromhex(record["probe_code"])
    factors = np.frombuffer(code[-8:], "<f4") * np.float32(1 + 1e-6)
    path.write_text(json.dumps(record | {"probe_code": (code[:-8] + factors.tobytes()).hex()}))
    load_quantizer(tmp_path)


def test_an_altered_centroid_is_refused(cone: Callable[..., np.ndarray], tmp_path: Path) -> None:
    save_quantizer(train_quantizer(unit_rows(cone(100)), 4, 7), tmp_path, "f")
    content = bytearray((tmp_path / "centroids.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "centroids.npy").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"centroids\.npy differs from its recorded SHA-256"):
        load_quantizer(tmp_path)
