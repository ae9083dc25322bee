from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from index_builder.embeddings.errors import SpaceMismatchError
from index_builder.embeddings.reader import EmbeddingFolder
from retrieval.api import open_index, search
from retrieval.errors import QueryError
from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest

Draw = Callable[[int], np.ndarray]
Write = Callable[..., EmbeddingFolder]


@pytest.fixture
def index(draw_rows: Draw, write_gallery_rows: Write, build: Callable[..., Path]) -> SearchEngine:
    return open_index(build(write_gallery_rows(draw_rows(400)), n_shards=2))


def arrow_lists(queries: np.ndarray) -> Any:
    values = pa.array(queries.astype(np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, queries.shape[1])


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "float16": lambda queries: queries,
    "float64": lambda queries: queries.astype(np.float64),
    "lists": lambda queries: queries.astype(float).tolist(),
    "tensor": lambda queries: torch.from_numpy(queries),
    "tensor with a gradient": lambda queries: torch.from_numpy(queries).float().requires_grad_(),
    "Arrow array": arrow_lists,
    "Arrow lists": lambda queries: pa.array(list(queries.astype(np.float32))),
    "Arrow chunks": lambda queries: pa.chunked_array(
        [arrow_lists(queries[:2]), arrow_lists(queries[2:])]
    ),
    "Arrow table": lambda queries: pa.table(
        {"name": [str(i) for i in range(len(queries))], "vector": arrow_lists(queries)}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_queries_of_any_kind(index: SearchEngine, draw_rows: Draw, form: str) -> None:
    queries = draw_rows(5)
    expected = index.search(queries, SearchRequest(7))
    hits = search(index, FORMS[form](queries), 7)
    np.testing.assert_array_equal(hits.rows, expected.rows)
    np.testing.assert_array_equal(hits.scores, expected.scores)


def test_a_bfloat16_tensor_is_what_it_says(index: SearchEngine, draw_rows: Draw) -> None:
    tensor = torch.from_numpy(draw_rows(3)).to(torch.bfloat16)
    expected = index.search(tensor.float().numpy(), SearchRequest(4))
    np.testing.assert_array_equal(search(index, tensor, 4).rows, expected.rows)


def test_one_vector_is_one_query(index: SearchEngine, draw_rows: Draw) -> None:
    query = draw_rows(1)
    np.testing.assert_array_equal(search(index, query[0], 3).rows, search(index, query, 3).rows)


def test_paths_are_loaded_and_compared(
    index: SearchEngine, draw_rows: Draw, write_gallery_rows: Write, tmp_path: Path
) -> None:
    queries = draw_rows(9)
    np.save(tmp_path / "queries.npy", queries)
    folder = write_gallery_rows(queries, "asked")
    expected = search(index, queries, 2).rows
    for path in (tmp_path / "queries.npy", folder.path):
        np.testing.assert_array_equal(search(index, path, 2).rows, expected)
    with pytest.raises(SpaceMismatchError):
        search(index, write_gallery_rows(queries, "alien", model="ViT-H-14").path, 2)


def test_hits_as_a_table_and_as_tensors(index: SearchEngine, draw_rows: Draw) -> None:
    hits = search(index, draw_rows(4), 6, duplicate_from=0.999)
    table = hits.to_arrow()
    assert table.column_names[:5] == ["query", "rank", "row", "score", "n_duplicates"]
    np.testing.assert_array_equal(table["row"].to_numpy(), hits.rows.reshape(-1))
    assert table["caption"].to_pylist() == [f"caption {row}" for row in hits.rows.reshape(-1)]
    assert hits.to_arrow(["caption"]).column_names[5:] == ["caption"]
    rows, scores = hits.to_torch()
    assert rows.dtype == torch.int64 and scores.dtype == torch.float32
    np.testing.assert_array_equal(rows.numpy(), hits.rows)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (pa.array([1.0, 2.0]), "Arrow array of double, expected lists"),
        (pa.array([[1.0], [1.0, 2.0]]), r"\['1', '2'\] numbers, expected one length"),
        (pa.table({"a": [1]}), r"0 columns of lists \(none\), expected one"),
        (pa.table({"a": [[1.0]], "b": [[1.0]]}), r"2 columns of lists \(a, b\)"),
        (np.ones((2, 3)), "3"),
        (np.ones((2, 48), np.int64), "int64"),
    ],
)
def test_other_queries_are_refused(index: SearchEngine, queries: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        search(index, queries)


def test_the_five_lines_of_the_document(
    index: SearchEngine, draw_rows: Draw, tmp_path: Path
) -> None:
    """docs/api.md, typed into a new interpreter where nothing was imported before."""
    document = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    code = document.split("```python\n")[1].split("```")[0]
    np.save(tmp_path / "vectors.npy", draw_rows(3))
    script = f"{code}\nprint(hits.rows.shape, hits.to_arrow().num_rows)"
    finished = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout.split("\n")[0] == "(3, 10) 30", finished.stderr
