from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from index_builder.embeddings.reader import EmbeddingFolder
from retrieval.errors import QueryError, SearchError
from retrieval.searching import options
from retrieval.searching.commands import search
from retrieval.searching.options import filter_options, read_request
from retrieval.searching.request import (
    DUPLICATE_FROM,
    UNSAFE_FROM,
    WATERMARKED_FROM,
    SearchRequest,
)

N_ROWS = 400


def parse(*arguments: str) -> SearchRequest:
    """Return the request that a command with the options makes."""
    made: list[SearchRequest] = []

    @click.command()
    @filter_options
    def command(**values: Any) -> None:
        made.append(read_request(5, 3, 50, **values))

    command.main(list(arguments), standalone_mode=False)
    return made[0]


def test_without_options_the_request_has_its_own_defaults() -> None:
    assert parse() == SearchRequest(5, breadth=3, n_candidates=50)
    assert parse().excluded is None


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--where", "width > 3"], {"where": "width > 3"}),
        (["--unsafe-from", "0"], {"unsafe_from": 0.0}),
        (["--unsafe-from", ".3"], {"unsafe_from": 0.3}),
        (["--allow-unsafe"], {"unsafe_from": None}),
        (["--watermarked-from", "0.8"], {"watermarked_from": 0.8}),
        (["--dedup"], {"duplicate_from": DUPLICATE_FROM}),
        (["--dedup", "--duplicate-from", "0.9"], {"duplicate_from": 0.9}),
        (["--dedup", "--no-dedup"], {"duplicate_from": None}),
        (["--aesthetic-weight", "-0.2"], {"aesthetic_weight": -0.2}),
    ],
    ids=lambda value: " ".join(value),
)
def test_each_option_fills_its_field(arguments: list[str], asked: dict[str, Any]) -> None:
    assert parse(*arguments) == SearchRequest(5, breadth=3, n_candidates=50, **asked)


@pytest.mark.parametrize("source", ["folder", "npy"])
def test_excluded_vectors_are_read(
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    tmp_path: Path,
    source: str,
) -> None:
    rows = draw_rows(9)
    np.save(tmp_path / "stimuli.npy", rows)
    path = write_gallery_rows(rows).path if source == "folder" else tmp_path / "stimuli.npy"
    request = parse("--exclude", str(path))
    np.testing.assert_array_equal(request.excluded, rows)
    assert request.excluded_from == DUPLICATE_FROM
    assert parse("--exclude", str(path), "--exclude-from", "0.8").excluded_from == 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--allow-unsafe", "--unsafe-from", "0.5"], "either --unsafe-from or --allow-unsafe"),
        (["--duplicate-from", "0.9"], "--duplicate-from needs --dedup"),
        (["--exclude-from", "0.9"], "--exclude-from needs --exclude"),
        (["--unsafe-from", "1.5"], "1.5 is not in the range"),
        (["--dedup", "--duplicate-from", "0"], "not in the range"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        parse(*arguments)


def test_excluded_vectors_that_can_not_be_had_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "words.npy", np.array(["no", "numbers"]))
    with pytest.raises(QueryError, match=r"words\.npy has shape \(1, 2\)"):
        parse("--exclude", str(tmp_path / "words.npy"))
    np.save(tmp_path / "many.npy", np.ones((100, 8), np.float16))
    monkeypatch.setattr(options, "EXCLUDED_BYTES", 3199)
    with pytest.raises(SearchError, match=r"100 vectors of 8 numbers, 3200 bytes .* at most 3199"):
        parse("--exclude", str(tmp_path / "many.npy"))


def test_the_help_names_the_defaults_that_hold() -> None:
    @click.command()
    @filter_options
    def command(**values: Any) -> None: ...

    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert f"{UNSAFE_FROM} by default" in text
    assert f"LAION's own threshold is {WATERMARKED_FROM}" in text
    assert text.count(f"{DUPLICATE_FROM} by default") == 2


@pytest.fixture
def gallery(draw_rows: Callable[[int], np.ndarray]) -> np.ndarray:
    """Rows of which the last hundred are copies of the first."""
    rows = draw_rows(N_ROWS)
    rows[-100:] = rows[:100]
    return rows


@pytest.fixture
def ask(
    gallery: np.ndarray,
    write_gallery_rows: Callable[..., EmbeddingFolder],
    build: Callable[..., Path],
    rng: np.random.Generator,
    tmp_path: Path,
) -> Callable[..., tuple[Result, np.ndarray]]:
    """Run `voxseek search` for the first three rows; return what it said and the rows it found."""
    columns = {
        "number": list(range(N_ROWS)),
        "PUNSAFE": [0.9 if i % 5 == 0 else 0.1 for i in range(N_ROWS)],
        "pwatermark": [0.9 if i % 7 == 0 else None for i in range(N_ROWS)],
        "aesthetic": rng.uniform(0, 10, N_ROWS),
    }
    index = build(write_gallery_rows(gallery, columns=columns), "flat")
    np.save(tmp_path / "queries.npy", gallery[1:4])

    def run(*arguments: str) -> tuple[Result, np.ndarray]:
        command = [str(index), str(tmp_path / "queries.npy"), "-k", "12", *arguments]
        result = CliRunner().invoke(search, command)
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        found = np.full((3, 12), -1)
        for line in lines:
            found[line["query"], line["rank"]] = line["row"]
        return result, found

    return run


def test_the_search_command_filters(
    ask: Callable[..., tuple[Result, np.ndarray]], gallery: np.ndarray, tmp_path: Path
) -> None:
    numbers = np.arange(N_ROWS)
    _, found = ask()
    assert (found >= 0).all() and (found % 5 > 0).all()
    assert (found[:, 0] == [1, 2, 3]).all() and (found[:, 1] == [301, 302, 303]).all()
    _, found = ask("--allow-unsafe")
    assert (found % 5 == 0).any()
    _, found = ask("--where", "number BETWEEN 100 AND 130", "--watermarked-from", "0.8")
    passing = numbers[(numbers >= 100) & (numbers <= 130) & (numbers % 5 > 0) & (numbers % 7 > 0)]
    assert np.isin(found, passing).all()
    _, found = ask("--dedup")
    assert (found >= 0).all() and not np.isin([301, 302, 303], found).any()
    np.save(tmp_path / "stimuli.npy", gallery[1:3])
    _, found = ask("--exclude", str(tmp_path / "stimuli.npy"), "--exclude-from", "0.99")
    assert (found >= 0).all() and not np.isin([1, 2, 301, 302], found).any()
    _, plain = ask("--allow-unsafe")
    _, beautiful = ask("--allow-unsafe", "--aesthetic-weight", "1")
    assert (beautiful >= 0).all() and (plain != beautiful).any()


def test_the_search_command_says_what_is_wrong_with_a_filter(
    ask: Callable[..., tuple[Result, np.ndarray]],
) -> None:
    result, _ = ask("--where", "breadth > 1")
    assert result.exit_code == 1 and "no such metadata column" in str(result.exception)
    result, _ = ask("--allow-unsafe", "--unsafe-from", "0.1")
    assert result.exit_code == 2 and "either --unsafe-from or --allow-unsafe" in result.output
