from __future__ import annotations

import logging
from pathlib import Path

import pytest

from index_builder.embeddings.errors import ArtefactError, SpaceMismatchError, VoxseekError
from index_builder.errors import SourceError
from retrieval.errors import PictureError, QueryError, SearchError
from retrieval.serving.problems import Problem, Secrets, problem_of
from training.errors import EncoderError


@pytest.fixture
def hidden(tmp_path: Path) -> Secrets:
    return Secrets([(str(tmp_path), "all"), (str(tmp_path / "index"), "index main")])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{0}/index holds 3", "index main holds 3"),
        ("{0}/index/shards/0 is bad", "index main/shards/0 is bad"),
        ("{0}/index2 is bad", "all/index2 is bad"),
        ("see {0}, which", "see all, which"),
        ("at /home/someone/data/x.npy.", "at [path]"),
        ("2 / 3 and a/b of https://example.org/a/b", "2 / 3 and a/b of https://example.org/a/b"),
        ("got <_io.BytesIO object at 0x7f21>.", "got it."),
    ],
)
def test_paths_are_called_by_what_they_are(
    hidden: Secrets, tmp_path: Path, text: str, told: str
) -> None:
    assert hidden.hide(text.format(tmp_path)) == told


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Problem(418, "teapot", "no"), 418, "teapot"),
        (QueryError("a query"), 422, "bad_search"),
        (SearchError("a search"), 422, "bad_search"),
        (PictureError("HTTP 404", "gone"), 422, "bad_image"),
        (EncoderError("flat"), 422, "bad_image"),
        (SpaceMismatchError("spaces"), 409, "space_mismatch"),
        (ArtefactError("altered"), 503, "index_unavailable"),
        (SourceError("moved"), 503, "index_unavailable"),
        (PermissionError("no"), 503, "index_unavailable"),
        (VoxseekError("other"), 500, "internal"),
        (ZeroDivisionError("flaw"), 500, "internal"),
    ],
)
def test_each_error_has_its_status(
    hidden: Secrets, error: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, logger="voxseek"):
        problem = problem_of(error, hidden)
    assert (problem.status, problem.code) == (status, code)
    assert bool(caplog.records) == (status >= 500)
    if status >= 500:
        assert str(error) not in problem.message
