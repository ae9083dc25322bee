from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from index_builder import costs
from index_builder import quantizer as quantizer_module
from index_builder.cosine import unit_rows
from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.errors import ArtefactError
from index_builder.errors import FaissVersionError, IndexDamagedError
from index_builder.factory import has_gpu
from index_builder.quantizer import Quantizer, load_quantizer, save_quantizer, train_quantizer

Cone = Callable[..., np.ndarray]


@pytest.fixture
def many_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take more than 15 lists for many: they are found by a graph."""
    monkeypatch.setattr(costs, "MOST_COMPARED_LISTS", 15)


def direction_scores(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    centroids = centroids.astype(np.float64)
    return points @ (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).T


def nearest_lists(points: np.ndarray, quantizer: Quantizer, n_probe: int) -> np.ndarray:
    """Lists in increasing order, from a comparison with all in float64."""
    order = np.argsort(-direction_scores(points, quantizer.centroids), axis=1, kind="stable")
    return np.sort(order[:, :n_probe], axis=1)


def test_transform_keeps_distances(cone: Cone) -> None:
    unit = unit_rows(cone(200))
    transformed = train_quantizer(unit.copy(), 8, 0).transform(unit)
    before = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    after = np.linalg.norm(transformed[:, None] - transformed[None], axis=2)
    np.testing.assert_allclose(after, before, atol=2e-6)


def test_route_takes_the_lists_nearest_in_direction(cone: Cone) -> None:
    unit = unit_rows(cone(400))
    quantizer = train_quantizer(unit.copy(), 16, 0)
    points = quantizer.transform(unit)
    for n_probe in (1, 5, 16):
        expected = nearest_lists(points, quantizer, n_probe)
        np.testing.assert_array_equal(quantizer.route(points, n_probe), expected)


def test_equal_centroids_are_taken_by_number(cone: Cone) -> None:
    trained = train_quantizer(unit_rows(cone(100)), 4, 0)
    thrice = np.tile(trained.centroids, (3, 1))
    doubled = Quantizer(trained.mean, trained.signs, thrice, trained.low, trained.high)
    points = trained.transform(unit_rows(cone(20)))
    nearest = trained.route(points, 1)
    np.testing.assert_array_equal(doubled.route(points, 2), np.hstack([nearest, nearest + 4]))


@pytest.mark.usefixtures("many_lists")
def test_many_lists_are_found_by_a_graph(cone: Cone) -> None:
    drawn = unit_rows(cone(3300))
    quantizer = train_quantizer(drawn[:3000].copy(), 128, 0)
    assert quantizer.graph is not None and len(quantizer.graph) == 128
    points = quantizer.transform(drawn[3000:])
    for n_probe in (1, 2, 10, 40, 128):
        found = quantizer.route(points, n_probe)
        assert found.shape == (300, n_probe)
        assert (np.diff(found, axis=1) > 0).all()  # each once, rising
        expected = nearest_lists(points, quantizer, n_probe)
        alike = [np.isin(*pair).mean() for pair in zip(expected, found, strict=True)]
        assert np.mean(alike) > 0.98
    np.testing.assert_array_equal(found, np.tile(np.arange(128), (300, 1)))


@pytest.mark.parametrize("n_lists", [12, 64])
@pytest.mark.usefixtures("many_lists")
def test_routes_do_not_depend_on_batches_or_threads(cone: Cone, n_lists: int) -> None:
    unit = unit_rows(cone(1500))
    quantizer = train_quantizer(unit.copy(), n_lists, 0)
    assert (quantizer.graph is None) == (n_lists == 12)
    points = quantizer.transform(unit[:200])
    threads = faiss.omp_get_max_threads()
    for n_probe in (1, 6):
        expected = quantizer.route(points, n_probe)
        for n in (1, 7, 150):
            pieces = [quantizer.route(points[i : i + n], n_probe) for i in range(0, 200, n)]
            np.testing.assert_array_equal(np.concatenate(pieces), expected)
        faiss.omp_set_num_threads(1 if threads > 1 else 3)
        try:
            np.testing.assert_array_equal(quantizer.route(points, n_probe), expected)
        finally:
            faiss.omp_set_num_threads(threads)
    assert quantizer.route(points[:0], 3).shape == (0, 3)


@pytest.mark.usefixtures("many_lists")
def test_links_that_lead_nowhere_are_made_up_for(cone: Cone) -> None:
    quantizer = train_quantizer(unit_rows(cone(1000)), 40, 0)
    assert quantizer.graph is not None
    points = quantizer.transform(unit_rows(cone(50)))
    quantizer.graph.links[:] = -1  # no node leads to another
    found = quantizer.route(points, 8)
    np.testing.assert_array_equal(found, nearest_lists(points, quantizer, 8))


def test_training_improves_on_its_start(cone: Cone) -> None:
    unit = unit_rows(cone(2000))
    quantizer = train_quantizer(unit.copy(), 16, 0)
    points = quantizer.transform(unit)
    start = points[np.sort(np.random.default_rng(0).choice(2000, 16, replace=False))]
    trained = direction_scores(points, quantizer.centroids).max(axis=1).mean()
    assert trained > direction_scores(points, start).max(axis=1).mean() * 1.05


def test_every_list_gets_rows_though_rows_repeat(cone: Cone) -> None:
    # 20 distinct rows, 8 of them drawn as start: copies among these leave lists empty at first.
    unit = unit_rows(np.repeat(cone(20), 30, axis=0))
    quantizer = train_quantizer(unit.copy(), 8, 0)
    lists = quantizer.route(quantizer.transform(unit), 1)[:, 0]
    assert len(np.unique(lists)) == 8


@pytest.mark.parametrize("n_lists", [2, 40])
@pytest.mark.usefixtures("many_lists")
def test_identical_rows_are_no_obstacle(cone: Cone, n_lists: int) -> None:
    unit = unit_rows(np.repeat(cone(1), 50, axis=0))
    quantizer = train_quantizer(unit.copy(), n_lists, 0)
    assert np.isfinite(quantizer.centroids).all()
    lists = quantizer.route(quantizer.transform(unit), 2)
    assert (lists >= 0).all() and (lists[:, 0] < lists[:, 1]).all()


@pytest.mark.parametrize("n_lists", [1, 40])
@pytest.mark.usefixtures("many_lists")
def test_as_many_rows_as_lists(cone: Cone, n_lists: int) -> None:
    unit = unit_rows(cone(n_lists))
    quantizer = train_quantizer(unit.copy(), n_lists, 0)
    assert quantizer.n_lists == n_lists and np.isfinite(quantizer.centroids).all()


def test_without_lists_there_is_a_mean_and_a_range(cone: Cone, tmp_path: Path) -> None:
    unit = unit_rows(cone(300))
    quantizer = train_quantizer(unit.copy(), 0, 5)
    assert quantizer.n_lists == 0 and quantizer.graph is None
    np.testing.assert_allclose(quantizer.mean, unit.mean(axis=0), atol=1e-7)
    transformed = quantizer.transform(unit)
    assert (transformed.min(), transformed.max()) == (quantizer.low, quantizer.high)
    save_quantizer(quantizer, tmp_path, "f")
    again = load_quantizer(tmp_path)
    assert again.n_lists == 0 and (again.low, again.high) == (quantizer.low, quantizer.high)
    np.testing.assert_array_equal(again.transform(unit), transformed)


@pytest.mark.parametrize("n_lists", [4, 32])
@pytest.mark.usefixtures("many_lists")
def test_saved_quantizer_is_the_same(cone: Cone, tmp_path: Path, n_lists: int) -> None:
    drawn = unit_rows(cone(700))
    quantizer = train_quantizer(drawn[:600].copy(), n_lists, 7)
    save_quantizer(quantizer, tmp_path / "first", "f")
    again = load_quantizer(tmp_path / "first")
    for name in ("mean", "signs", "centroids", "low", "high"):
        np.testing.assert_array_equal(getattr(again, name), getattr(quantizer, name))
    points = quantizer.transform(drawn[600:])
    for n_probe in (1, 3):
        found = again.route(again.transform(drawn[600:]), n_probe)
        np.testing.assert_array_equal(found, quantizer.route(points, n_probe))
    save_quantizer(again, tmp_path / "second", "f")
    for path in (tmp_path / "first").iterdir():
        assert sha256_file(path) == sha256_file(tmp_path / "second" / path.name), path.name


# Trains many lists and prints the hash of all arrays.
TRAIN = """
import sys
from pathlib import Path
import numpy as np
from index_builder import costs
from index_builder.embeddings.artefact import sha256_file
from index_builder.quantizer import save_quantizer, train_quantizer

costs.MOST_COMPARED_LISTS = 15
folder = Path(sys.argv[1])
save_quantizer(train_quantizer(np.load(folder / "unit.npy"), 50, 0), folder / "quantizer", "f")
print(sorted(sha256_file(path) for path in (folder / "quantizer").iterdir()))
"""


def test_training_does_not_depend_on_threads(cone: Cone, tmp_path: Path) -> None:
    np.save(tmp_path / "unit.npy", unit_rows(cone(4000)))
    printed = []
    for n_threads in (1, 3):
        threads = {f"{library}_NUM_THREADS": str(n_threads) for library in ("OMP", "OPENBLAS")}
        command = [sys.executable, "-c", TRAIN, str(tmp_path)]
        run = subprocess.run(
            command, env={**os.environ, **threads}, check=True, capture_output=True, text=True
        )
        printed.append(run.stdout)
    assert printed[0] == printed[1]


def test_another_faiss_is_refused(cone: Cone, tmp_path: Path) -> None:
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


def test_factors_of_another_processor_are_accepted(cone: Cone, tmp_path: Path) -> None:
    save_quantizer(train_quantizer(unit_rows(cone(100)), 4, 7), tmp_path, "f")
    path = tmp_path / "quantizer.json"
    record = json.loads(path.read_text())
    code = bytes.fromhex(record["probe_code"])
    factors = np.frombuffer(code[-8:], "<f4") * np.float32(1 + 1e-6)
    path.write_text(json.dumps(record | {"probe_code": (code[:-8] + factors.tobytes()).hex()}))
    load_quantizer(tmp_path)


@pytest.mark.parametrize("name", ["centroids.npy", "mean.npy", "links.npy"])
@pytest.mark.usefixtures("many_lists")
def test_an_altered_array_is_refused(cone: Cone, tmp_path: Path, name: str) -> None:
    save_quantizer(train_quantizer(unit_rows(cone(100)), 20, 7), tmp_path, "f")
    content = bytearray((tmp_path / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtefactError, match=rf"{name} differs from its recorded SHA-256"):
        load_quantizer(tmp_path)


@pytest.mark.usefixtures("many_lists")
def test_a_graph_of_other_centroids_is_refused(cone: Cone, tmp_path: Path) -> None:
    trained = train_quantizer(unit_rows(cone(200)), 20, 7)
    other = train_quantizer(unit_rows(cone(200)), 30, 7)
    mixed = Quantizer(
        trained.mean, trained.signs, trained.centroids, trained.low, trained.high, other.graph
    )
    save_quantizer(mixed, tmp_path, "f")
    with pytest.raises(IndexDamagedError, match="a graph of 30 nodes, and there are 20 centroids"):
        load_quantizer(tmp_path)


class HostDirections:
    """What a GPU does, done here: float32 products nominate."""

    def __init__(self, units: np.ndarray) -> None:
        self._units = units

    def nearest(self, points: np.ndarray, k: int) -> np.ndarray:
        return np.argsort(-(points @ self._units.T), axis=1)[:, :k]


def test_nominees_of_a_gpu_lead_to_the_same_lists(
    cone: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = unit_rows(cone(600))
    expected = train_quantizer(unit.copy(), 24, 0)
    monkeypatch.setattr(quantizer_module, "has_gpu", lambda: True)
    monkeypatch.setattr(quantizer_module, "GpuDirections", HostDirections)
    found = train_quantizer(unit.copy(), 24, 0)
    np.testing.assert_array_equal(found.centroids, expected.centroids)
    points = found.transform(unit)
    for n_probe in (1, 5, 24):
        lists = found.route(points, n_probe)
        np.testing.assert_array_equal(lists, expected.route(points, n_probe))


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="FAISS sees no CUDA device")
def test_a_gpu_finds_the_lists_that_a_processor_finds(cone: Callable[..., np.ndarray]) -> None:
    unit = unit_rows(cone(5000, 96))
    on_gpu = train_quantizer(unit.copy(), 64, 0)
    points = on_gpu.transform(unit)
    here = quantizer_module._Directions.of(on_gpu.centroids)
    for n_probe in (1, 8, 64):
        found = on_gpu.route(points, n_probe)
        np.testing.assert_array_equal(found, here.nearest(points, n_probe))
