"""The shape of a cloud of embeddings, beside closed forms and numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.embeddings.description import (
    describe_folder,
    measure_cloud,
    participation_ratio,
    sample_folder,
)
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace


def normalized(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("width", [12, 300], ids=["more rows", "more dimensions"])
def test_cosines_and_spectrum_beside_numpy(rng: np.random.Generator, width: int) -> None:
    rows = 3 * normalized(rng.standard_normal((150, width)) + 0.5).astype(np.float32)
    cloud = measure_cloud(rows)
    unit = normalized(rows.astype(np.float64))
    cosines = unit @ unit.T
    off_diagonal = cosines[~np.eye(150, dtype=bool)]
    assert cloud.mean_pair_cosine == pytest.approx(off_diagonal.mean(), abs=1e-6)
    assert cloud.pair_cosines.mean() == pytest.approx(off_diagonal.mean(), abs=0.01)
    mean = unit.mean(axis=0)
    np.testing.assert_allclose(cloud.mean_cosines, unit @ mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_allclose(cloud.norms, 3, rtol=1e-5)
    singular = np.linalg.svd(unit - mean, compute_uv=False)
    np.testing.assert_allclose(cloud.variances, singular**2 / 149, atol=1e-6)
    assert cloud.explained[-1] == pytest.approx(1)


def test_rows_of_a_few_equal_directions() -> None:
    """2 r unit rows, plus and minus each of r axes: r equal variances, all others 0."""
    rows = np.zeros((20, 16), np.float16)
    rows[np.arange(20), np.tile(np.arange(10), 2)] = np.repeat([1, -1], 10)
    spectrum = measure_cloud(rows).to_dict()["spectrum"]
    assert spectrum["dimensions"] == {"0.5": 5, "0.9": 9, "0.99": 10}
    assert spectrum["participation_ratio"] == pytest.approx(10)
    assert spectrum["first"] == pytest.approx(0.1)


def test_participation_ratio() -> None:
    assert participation_ratio(np.ones(7)) == pytest.approx(7)
    assert participation_ratio(np.array([5.0, 0, 0])) == pytest.approx(1)
    assert participation_ratio(np.array([2.0, 1])) == pytest.approx(9 / 5)


def test_flaws_are_counted_and_left_out(rng: np.random.Generator) -> None:
    rows = normalized(rng.standard_normal((40, 8)))
    rows[3], rows[9], rows[11, 2] = np.nan, 0, np.inf
    rows[20] = rows[21] = rows[5]
    rows[30] = normalized(rows[31:32] + 0.05)[0]
    facts = measure_cloud(rows.astype(np.float16)).to_dict()
    assert facts["n_rows"] == 40
    assert (facts["n_not_finite"], facts["n_zero"], facts["n_identical"]) == (2, 1, 2)
    sound = normalized(np.delete(rows, [3, 9, 11], axis=0))
    cosines = sound @ sound.T - 2 * np.eye(37)
    assert facts["n_alike"] == (cosines.max(axis=1) >= 0.94).sum() >= 5
    assert facts["norm"]["min"] == 0 and facts["norm"]["max"] == pytest.approx(1, abs=1e-3)


def test_blocks_cover_all_rows(rng: np.random.Generator) -> None:
    rows = normalized(rng.standard_normal((1500, 64))).astype(np.float32)
    rows[1400] = rows[2]
    assert measure_cloud(rows).to_dict()["n_alike"] == 2


def test_tokens_are_one_vector(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((30, 5, 4)).astype(np.float32)
    whole, flat = measure_cloud(rows), measure_cloud(rows.reshape(30, 20))
    np.testing.assert_array_equal(whole.variances, flat.variances)
    assert whole.to_dict() == flat.to_dict()


def test_too_few_rows_have_no_shape() -> None:
    facts = measure_cloud(np.full((1, 4), 0.5, np.float16)).to_dict()
    assert facts["cosine_of_pairs"] is None and facts["spectrum"] is None
    assert facts["norm"]["median"] == 1
    facts = measure_cloud(np.full((3, 4), np.nan, np.float32)).to_dict()
    assert facts["norm"] is None and facts["n_not_finite"] == 3
    assert measure_cloud(np.full((3, 4), 0.5, np.float32)).to_dict()["spectrum"] is None


def test_samples_are_seeded_and_bounded(
    laion_folder: Callable[..., Path], unit_rows: Callable[..., np.ndarray], space: EmbeddingSpace
) -> None:
    folder = EmbeddingFolder.open(laion_folder([unit_rows(90), unit_rows(60)]), space=space)
    rows = sample_folder(folder, 40, seed=1)
    assert len(np.unique(rows)) == 40 and (np.diff(rows) > 0).all() and rows.max() < 150
    np.testing.assert_array_equal(rows, sample_folder(folder, 40, seed=1))
    assert not np.array_equal(rows, sample_folder(folder, 40, seed=2))
    np.testing.assert_array_equal(sample_folder(folder, 1000, seed=1), np.arange(150))


def test_samples_of_parquet_files_are_runs(
    tmp_path: Path, unit_rows: Callable[..., np.ndarray], space: EmbeddingSpace
) -> None:
    table = pa.table({"vector": list(unit_rows(2000, dtype="float32"))})
    pq.write_table(table, tmp_path / "part_0.parquet")
    folder = EmbeddingFolder.open(tmp_path, space=space)
    rows = sample_folder(folder, 600, seed=3)
    assert len(rows) == 600 and (np.diff(rows) > 0).all()
    assert (np.diff(rows) > 1).sum() <= 2  # three runs
    np.testing.assert_array_equal(sample_folder(folder, 5000, seed=3), np.arange(2000))


def test_facts_of_a_folder(
    laion_folder: Callable[..., Path], unit_rows: Callable[..., np.ndarray], space: EmbeddingSpace
) -> None:
    tables = [pa.table({"URL": ["a", None, "c"]}), pa.table({"URL": [None, "e"]})]
    folder = laion_folder([unit_rows(3), unit_rows(2)], tables=tables)
    facts = describe_folder(EmbeddingFolder.open(folder, space=space))
    assert (facts["n_rows"], facts["n_parts"], facts["dtype"]) == (5, 2, "float16")
    assert facts["vector_bytes"] == 5 * 8 * 2
    assert facts["columns"] == {"url": {"type": "string", "n_null": 2}}
    assert facts["space"] == space.to_dict()
