"""The commands on embedding folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from index_builder.embedding_commands import COMMANDS
from index_builder.embeddings.overview import find_pictures
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

SPACE = "ViT-L-14/openai:final:1x48"
N_ROWS = 120


@pytest.fixture
def run() -> Callable[..., click.testing.Result]:
    (embeddings,) = COMMANDS

    def run_(*words: object) -> click.testing.Result:
        return click.testing.CliRunner().invoke(embeddings, [str(word) for word in words])

    return run_


@pytest.fixture
def laion(tmp_path: Path, cone: Callable[..., np.ndarray], write_foreign: Any) -> Path:
    """A foreign folder of one part, with pictures for some of its rows."""
    folder: Path = write_foreign(cone(N_ROWS), "laion")
    (folder / "metadata").mkdir()
    (folder / "pictures").mkdir()
    for row in (3, 4, 5):
        Image.new("RGB", (40, 20), (row * 10, 0, 0)).save(folder / "pictures" / f"{row}.png")
    (folder / "pictures" / "6.png").write_text("no picture")
    table = pa.table(
        {
            "image_path": [None, *(f"pictures/{row}.png" for row in range(1, N_ROWS))],
            "URL": [f"https://example.org/{row}" for row in range(N_ROWS)],
            "TEXT": [f"picture {row}" for row in range(N_ROWS)],
            "WIDTH": [40] * N_ROWS,
            "HEIGHT": [20] * N_ROWS,
        }
    )
    pq.write_table(table, folder / "metadata" / "metadata_0.parquet")
    return folder


def test_info_says_what_a_folder_holds(
    run: Callable[..., click.testing.Result], laion: Path
) -> None:
    result = run("info", laion, "--space", SPACE, "--sample", "50", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert (facts["n_rows"], facts["sample"]["n_rows"]) == (N_ROWS, 50)
    assert facts["columns"]["image_path"] == {"type": "string", "n_null": 1}
    assert 0 < facts["sample"]["cosine_of_pairs"]["mean"] < 1
    result = run("info", laion, "--space", SPACE)
    assert "120 rows of ViT-L-14/openai:final (1 x 48, unit norm)" in result.output
    assert "image_path  string    1 null" in result.output
    assert "participation ratio" in result.output
    assert "note: width and height were WIDTH and HEIGHT" in result.output


def test_info_of_flawed_rows_says_so(
    run: Callable[..., click.testing.Result], write_foreign: Any, cone: Callable[..., np.ndarray]
) -> None:
    rows = cone(30)
    rows[2], rows[3] = np.nan, 0
    rows[8] = rows[9]
    output = run("info", write_foreign(rows, "flawed"), "--space", SPACE).output
    assert "1 with NaN or infinity, 1 all zeros, 1 the same as an earlier one" in output
    assert "note:" not in output


def test_info_draws_a_picture(
    run: Callable[..., click.testing.Result], laion: Path, tmp_path: Path
) -> None:
    words = ["info", laion, "--space", SPACE, "--plot"]
    assert run(*words, tmp_path / "with.png").exit_code == 0
    assert run(*words, tmp_path / "without.png", "--images", tmp_path).exit_code == 0
    with Image.open(tmp_path / "with.png") as one, Image.open(tmp_path / "without.png") as other:
        assert one.width == other.width and one.height > other.height  # a row of pictures more


def test_pictures_are_those_that_can_be_read(laion: Path) -> None:
    folder = EmbeddingFolder.open(laion, space=EmbeddingSpace.parse(SPACE))
    pictures = find_pictures(folder, np.arange(N_ROWS), None)
    assert sorted(picture[0, 0, 0] for picture in pictures) == [30, 40, 50]
    assert {picture.shape for picture in pictures} == {(320, 320, 3)}
    assert find_pictures(folder, np.arange(4, 6), laion)[0][0, 0, 0] == 40
    assert find_pictures(folder, np.arange(N_ROWS), laion / "pictures") == []


def test_join_and_drop(
    run: Callable[..., click.testing.Result], laion: Path, tmp_path: Path
) -> None:
    table = pa.table(
        {"URL": [f"https://example.org/{row}" for row in range(100)], "prediction": [0.25] * 100}
    )
    pq.write_table(table, tmp_path / "safety.parquet")
    (tmp_path / "list.txt").write_text("https://example.org/7\n")
    words = ["join", laion, tmp_path / "safety.parquet", "--space", SPACE, "--by", "url"]
    result = run(
        *words, "--columns", "punsafe=prediction", "--out", tmp_path / "scored",
        "--drop-hashes", tmp_path / "list.txt", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert (facts["n_rows"], facts["n_dropped"], facts["n_without_partner"]) == (119, 1, 20)
    scored = EmbeddingFolder.open(tmp_path / "scored")
    assert scored.metadata([6, 7, 118], ["caption", "punsafe"]).to_pylist() == [
        {"caption": "picture 6", "punsafe": 0.25},
        {"caption": "picture 8", "punsafe": 0.25},
        {"caption": "picture 119", "punsafe": None},
    ]


def test_options_that_do_not_go_together(
    run: Callable[..., click.testing.Result], laion: Path, tmp_path: Path
) -> None:
    result = run("join", laion, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "give a TABLE, or --drop-hashes FILE" in result.output
    (tmp_path / "list.txt").write_text("1\n")
    words = ["join", laion, "--out", tmp_path / "out", "--drop-hashes", tmp_path / "list.txt"]
    result = run(*words, "--columns", "a")
    assert result.exit_code == 2 and "--columns goes with a TABLE" in result.output
