from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from index_builder.embeddings.errors import ArtefactError, MissingExtraError
from index_builder.errors import SizeError
from retrieval.serving import server
from retrieval.serving.commands import NamedFolder, serve
from retrieval.serving.problems import ServingError
from retrieval.serving.settings import ServerSettings
from retrieval.serving.start import StartOptions, read_aesthetic_vectors, start
from training.errors import EncoderError

from .conftest import WIDTH, World, write_embeddings, write_index


@pytest.fixture
def options(world: World) -> StartOptions:
    return StartOptions(
        indexes=(("main", world.main), ("other", world.other)),
        indices_paths=None,
        embeddings=(),
        runs=(),
        subjects=(),
        confidences=(),
        host="127.0.0.1",
        port=0,
        token_file=None,
        encoder=None,
        pretrained=None,
        device="cpu",
        most_k=10,
        most_queries=10,
        most_body="1MiB",
        queue=3,
        timeout=2.0,
        aesthetic_vectors=None,
        allow_fetch=False,
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been served, instead of serving."""
    apps: list[Any] = []

    def run_server(app: Any, host: str, port: int, **others: Any) -> None:
        apps.append((app, host, port, others))

    monkeypatch.setattr(server, "run_server", run_server)
    monkeypatch.delenv("VOXSEEK_TOKEN", raising=False)
    return apps


def served_settings(
    options: StartOptions, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> ServerSettings:
    kept: list[ServerSettings] = []
    monkeypatch.setattr("retrieval.serving.app.create_app", kept.append)
    start(dataclasses.replace(options, **changes), tell=lambda address: None)
    return kept[0]


def write_ratings(folder: Path, width: int) -> Path:
    folder.mkdir()
    for rating in range(10):
        np.save(folder / f"rating{rating}.npy", np.full((1, width), rating, np.float32))
    return folder


def test_options_become_settings(
    options: StartOptions,
    started: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    world: World,
) -> None:
    (tmp_path / "indices_paths.json").write_text(
        f'{{"third": {{"indice_folder": "{world.other}", "columns_to_return": ["TEXT"]}}}}'
    )
    monkeypatch.setenv("VOXSEEK_TOKEN", "word")
    settings = served_settings(
        options,
        monkeypatch,
        indices_paths=tmp_path / "indices_paths.json",
        host="0.0.0.0",
        aesthetic_vectors=write_ratings(tmp_path / "ratings", WIDTH),
        allow_fetch=True,
    )
    assert list(settings.indexes) == ["main", "other", "third"]
    assert settings.indexes["third"].knn_columns == ("TEXT",)
    assert settings.token == "word" and not settings.is_loopback and settings.may_fetch
    assert settings.limits.most_body_bytes == 1 << 20
    assert (settings.limits.most_k, settings.limits.most_waiting) == (10, 3)
    assert settings.aesthetic_vectors is not None
    assert settings.aesthetic_vectors[7].tolist() == [7.0] * WIDTH
    # Nobody asked for an encoder whose weights would have to be downloaded.
    assert not settings.indexes["main"].takes_image
    assert started[0][1:3] == ("0.0.0.0", 0)


def test_an_encoder_that_brings_its_weights_is_opened(
    options: StartOptions, started: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = np.tile(np.eye(100, dtype=np.float16), (3, 1))
    embeddings = write_embeddings(
        tmp_path / "emb", rows, {"image_id": list(range(300))}, model="pixels-10x10"
    )
    index = write_index(tmp_path / "pixels", embeddings)
    indexes = (("pixels", index), *options.indexes)
    settings = served_settings(options, monkeypatch, indexes=indexes)
    assert settings.indexes["pixels"].takes_image and not settings.indexes["pixels"].takes_text
    by_name = served_settings(options, monkeypatch, indexes=indexes, encoder="pixels")
    assert by_name.indexes["pixels"].takes_image and not by_name.indexes["main"].takes_image


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"host": "0.0.0.0"}, ServingError, "there is no token"),
        ({"host": "::"}, ServingError, "there is no token"),
        ({"most_body": "8G"}, SizeError, "8G"),
        ({"encoder": "pixels"}, ServingError, "none of the indexes' spaces"),
        ({"encoder": "nothing"}, EncoderError, "pretrained"),
        ({"embeddings": (("third", Path("x")),)}, ServingError, "there is no index 'third'"),
    ],
)
def test_what_cannot_be_served_is_refused(
    options: StartOptions,
    started: list[Any],
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        start(dataclasses.replace(options, **changes), tell=lambda address: None)
    assert not started


def test_names_are_distinct(
    options: StartOptions, started: list[Any], world: World, tmp_path: Path
) -> None:
    twice = dataclasses.replace(options, indexes=(("a", world.main), ("a", world.other)))
    with pytest.raises(ServingError, match="two indexes are called 'a'"):
        start(twice, tell=lambda address: None)
    runs = (("r", tmp_path), ("r", tmp_path))
    two_runs = dataclasses.replace(options, runs=runs, subjects=(tmp_path, tmp_path))
    with pytest.raises(ServingError, match="two runs are called 'r'"):
        start(two_runs, tell=lambda address: None)


def test_a_folder_that_is_no_index_is_named(
    options: StartOptions, started: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match=str(tmp_path)):
        start(dataclasses.replace(options, indexes=(("x", tmp_path),)), tell=lambda address: None)


def test_a_confidence_of_another_index_is_refused(
    options: StartOptions, started: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match=str(tmp_path)):
        start(dataclasses.replace(options, confidences=(tmp_path,)), tell=lambda address: None)


@pytest.mark.parametrize("content", ["", "two words", "\xe9"])
def test_a_token_is_one_word(
    options: StartOptions, started: list[Any], tmp_path: Path, content: str
) -> None:
    (tmp_path / "token").write_text(content, encoding="utf-8")
    with pytest.raises(ServingError, match="holds no token"):
        start(
            dataclasses.replace(options, token_file=tmp_path / "token"),
            tell=lambda address: None,
        )


def test_aesthetic_vectors_are_ten_of_one_width(tmp_path: Path, options: StartOptions) -> None:
    folder = write_ratings(tmp_path / "ratings", 5)
    with pytest.raises(ServingError, match="vectors of 5 numbers"):
        start(dataclasses.replace(options, aesthetic_vectors=folder), tell=lambda address: None)
    np.save(folder / "rating4.npy", np.ones(4, np.float32))
    with pytest.raises(ServingError, match=r"rating4\.npy has shape"):
        read_aesthetic_vectors(folder)
    (folder / "rating4.npy").unlink()
    with pytest.raises(ServingError, match=r"rating4\.npy can't be read"):
        read_aesthetic_vectors(folder)


@pytest.mark.parametrize(
    ("value", "name", "folder"),
    [
        ("laion5B-L-14=/data/x", "laion5B-L-14", "/data/x"),
        ("a=b=c", "a", "b=c"),
        ("/data/my-index", "my-index", "/data/my-index"),
        ("/data/a=b/index", "index", "/data/a=b/index"),
    ],
)
def test_a_folder_goes_by_a_name(value: str, name: str, folder: str) -> None:
    assert NamedFolder().convert(value, None, None) == (name, Path(folder))


@pytest.mark.parametrize("value", ["=x", "a/b?=x", "<b>=x", "/"])
def test_a_name_has_letters(value: str) -> None:
    with pytest.raises(click.BadParameter, match="is no name"):
        NamedFolder().convert(value, None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "name an index"), (["x", "--run", "."], "a --subject for each --run")],
)
def test_usage_is_checked_before_anything_is_opened(arguments: list[str], message: str) -> None:
    answer = CliRunner().invoke(serve, arguments)
    assert answer.exit_code == 2 and message in answer.output


def test_without_its_packages_the_extra_is_named(
    options: StartOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "retrieval.serving.app")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(MissingExtraError, match=r"fastapi .*voxseek\[serve\]"):
        start(options, tell=lambda address: None)


def test_a_host_that_is_none_is_refused() -> None:
    with pytest.raises(ServingError, match="isn't an address"):
        server.listen("no such host", 0)
