"""The same build has the same bytes, whoever does it, and whoever is killed meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder.build import build_index
from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.execution import make_executor
from index_builder.planning import plan_index
from tests.index_builder.conftest import draw_cone
from tests.index_builder.execution.watched import Watcher

N_ROWS, ROWS_PER_SHARD = 2000, 500


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Two folders, of which the third of four shards has some rows each."""
    root = tmp_path_factory.mktemp("source")
    rows = draw_cone(np.random.default_rng(7), N_ROWS)
    space = EmbeddingSpace("ViT-L-14/openai", "final", 1, rows.shape[1], True)
    folders = []
    for name, numbers in (("first", np.arange(1200)), ("second", np.arange(1200, N_ROWS))):
        with EmbeddingWriter(root / name, space, command="test", details={}) as writer:
            for part in np.array_split(numbers, 3):
                writer.write(rows[part], pa.table({"image_id": part}))
            folders.append(writer.finish())
    return Collection(folders)


def build(source: Collection, root: Path, executor: Any, code: Any) -> dict[str, str]:
    """Build an index, and return the SHA-256 of each of its files."""
    plan = plan_index(N_ROWS, source.space, code=code, rerank="sq8", rows_per_shard=ROWS_PER_SHARD)
    build_index(source, root, plan, n_queries=40, executor=executor)
    return {
        path.relative_to(root).as_posix(): sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def expected(
    source: Collection, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("serial")
    return {code: build(source, folder / code, None, code) for code in ("ivf-rabitq", "hnsw-sq8")}


@pytest.mark.slow
@pytest.mark.parametrize("has_victim", [False, True], ids=["undisturbed", "killed"])
@pytest.mark.parametrize(
    ("name", "code"),
    [("processes", "ivf-rabitq"), ("processes", "hnsw-sq8"), ("dask", "ivf-rabitq")],
)
def test_bytes_do_not_depend_on_the_executor(
    source: Collection,
    expected: dict[str, dict[str, str]],
    tmp_path: Path,
    name: str,
    code: str,
    has_victim: bool,
) -> None:
    assert sum(path.endswith("/shard.json") for path in expected[code]) == N_ROWS // ROWS_PER_SHARD
    marks = tmp_path / "marks"
    marks.mkdir()
    with make_executor(name, n_workers=2) as executor:
        watcher = Watcher(executor, marks, has_victim=has_victim)
        assert build(source, tmp_path / "index", watcher, code) == expected[code]
    assert sorted(watcher.runs) == [1] * (len(watcher.runs) - has_victim) + [2] * has_victim
