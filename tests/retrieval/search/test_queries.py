from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index_builder.embeddings.errors import ArtefactError
from index_builder.embeddings.reader import EmbeddingFolder
from retrieval.errors import QueryError
from retrieval.search.queries import load_queries


@pytest.mark.parametrize("batch_queries", [1, 4, 100])
def test_folder_and_npy_give_the_same_batches(
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    tmp_path: Path,
    batch_queries: int,
) -> None:
    rows = draw_rows(9)
    np.save(tmp_path / "queries.npy", rows)
    for spec in (write_gallery_rows(rows, "queries").path, tmp_path / "queries.npy"):
        queries = load_queries(spec)
        batches = list(queries.iter_batches(batch_queries=batch_queries))
        assert max(len(batch) for batch in batches) <= batch_queries
        np.testing.assert_array_equal(np.concatenate(batches), rows)
        assert (queries.n_queries, queries.width) == (9, 48)


def test_a_folder_knows_its_space_and_metadata(
    draw_rows: Callable[[int], np.ndarray], write_gallery_rows: Callable[..., EmbeddingFolder]
) -> None:
    folder = write_gallery_rows(draw_rows(5), "queries")
    queries = load_queries(folder.path)
    assert (queries.space, queries.fingerprint) == (folder.space, folder.fingerprint)
    assert queries.metadata(np.array([4, 1]), ["image_id"]).to_pydict() == {"image_id": [4, 1]}


def test_an_npy_file_knows_neither(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones(48))
    queries = load_queries(tmp_path / "one.npy")
    assert (queries.n_queries, queries.space, queries.columns) == (1, None, ())
    assert queries.metadata(np.array([0])) is None


def test_what_is_no_query_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is not a folder"):
        load_queries(tmp_path / "nowhere")
    with pytest.raises(QueryError, match=r"nowhere\.npy can't be read as an npy file"):
        load_queries(tmp_path / "nowhere.npy")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(QueryError, match="can't be read as an npy file"):
        load_queries(tmp_path / "text.npy")
    np.save(tmp_path / "pickled.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(QueryError, match="can't be read as an npy file"):
        load_queries(tmp_path / "pickled.npy")
    for array in (np.ones((2, 3, 4)), np.ones((2, 3), np.int64), np.ones((0, 3))):
        np.save(tmp_path / "odd.npy", array)
        with pytest.raises(QueryError, match=r"odd\.npy has shape .* at least one query"):
            load_queries(tmp_path / "odd.npy")
