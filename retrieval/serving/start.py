"""The start of a server: options into what is served, opened and checked, and off it goes."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index_builder.embeddings.errors import MissingExtraError, SpaceMismatchError
from index_builder.embeddings.npy_header import read_npy_header
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.sizes import parse_size
from training.errors import EncoderError

from ..confidence.artefact import Confidence
from ..errors import ConfidenceError
from ..searching.engine import SearchEngine
from .indices_paths import IndexEntry, read_indices_paths
from .problems import ServingError
from .served import QueryEncoder, ServedIndex, ServedRun
from .settings import Limits, ServerSettings

logger = logging.getLogger("voxseek")

TOKEN_VARIABLE = "VOXSEEK_TOKEN"
Named = tuple[str, Path]


@dataclass(frozen=True)
class StartOptions:
    """What the command line says; see ``voxseek serve --help``."""

    indexes: tuple[Named, ...]
    indices_paths: Path | None
    embeddings: tuple[Named, ...]
    runs: tuple[Named, ...]
    subjects: tuple[Path, ...]
    confidences: tuple[Path, ...]
    host: str
    port: int
    token_file: Path | None
    encoder: str | None
    pretrained: str | None
    device: str
    most_k: int
    most_queries: int
    most_body: str
    queue: int
    timeout: float
    aesthetic_vectors: Path | None
    allow_fetch: bool


def start(options: StartOptions, *, tell: Callable[[str], None]) -> None:
    """Open everything, then serve until interrupted.

    Parameters
    ----------
    options : StartOptions
    tell : callable
        Told the address, once requests are answered.

    Raises
    ------
    ServingError
        If two indexes or runs have one name, or the server would be open to others without a token.
    MissingExtraError
        If the packages of a server aren't installed.
    ArtefactError, SourceError
        If an index can't be opened.
    """
    token = _token(options)
    is_loopback = _is_loopback(options.host)
    if not is_loopback and token is None:
        raise ServingError(
            f"--host {options.host} lets other machines connect, and there is no token; give "
            f"--token-file FILE or {TOKEN_VARIABLE}, or leave --host out."
        )
    limits = Limits(
        most_k=options.most_k,
        most_queries=options.most_queries,
        most_body_bytes=parse_size(options.most_body),
        most_waiting=options.queue,
        timeout_seconds=options.timeout,
    )
    try:
        from .app import create_app
        from .server import run_server
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve", "a server") from error
    indexes = _open_indexes(options)
    settings = ServerSettings(
        indexes=indexes,
        runs=_open_runs(options),
        limits=limits,
        token=token,
        is_loopback=is_loopback,
        aesthetic_vectors=_aesthetic_vectors(options.aesthetic_vectors, indexes),
        may_fetch=options.allow_fetch,
    )
    run_server(
        create_app(settings),
        options.host,
        options.port,
        timeout_seconds=options.timeout,
        tell=tell,
    )


def read_aesthetic_vectors(folder: Path) -> dict[int, np.ndarray]:
    """Return the vectors of ratings 0 to 9, (width,), float32, of ``rating0.npy`` and so on.

    Raises
    ------
    ServingError
        If one is missing, or no vector of the others' width.
    """
    vectors: dict[int, np.ndarray] = {}
    for rating in range(10):
        path = folder / f"rating{rating}.npy"
        try:
            with open(path, "rb") as handle:
                shape, _, dtype = read_npy_header(handle)
                if dtype.kind != "f":
                    raise ValueError(f"it holds {dtype}")
                vector = np.frombuffer(handle.read(), dtype).reshape(-1).astype(np.float32)
        except (OSError, ValueError) as error:
            raise ServingError(f"{path} can't be read as a vector: {error}.") from error
        if vector.size != int(np.prod(shape)) or vector.shape != vectors.get(0, vector).shape:
            raise ServingError(f"{path} has shape {shape}, expected that of rating0.npy.")
        vectors[rating] = vector
    return vectors


def _token(options: StartOptions) -> str | None:
    if options.token_file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    token = options.token_file.read_text(encoding="utf-8").strip()
    if not token or not token.isascii() or any(letter.isspace() for letter in token):
        raise ServingError(f"{options.token_file} holds no token; expected one word of ASCII.")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _open_indexes(options: StartOptions) -> dict[str, ServedIndex]:
    entries = [IndexEntry(name, folder) for name, folder in options.indexes]
    if options.indices_paths is not None:
        entries += read_indices_paths(options.indices_paths)
    names = [entry.name for entry in entries]
    _require_distinct("indexes", names)
    moved = _moved(options.embeddings, names)
    engines = {}
    for entry in entries:
        logger.info("open %s ...", entry.name)
        engines[entry.name] = SearchEngine.open(
            entry.folder,
            embeddings=moved.get(entry.name),
            device=options.device,
            filter_seconds=options.timeout,
        )
    confidences = _open_confidences(options.confidences, engines)
    served = {}
    for entry in entries:
        engine = engines[entry.name]
        encoder = _open_encoder(entry.name, engine.space, options)
        served[entry.name] = ServedIndex(
            entry.name, engine, encoder, confidences.get(entry.name, ()), entry.columns
        )
    if options.encoder is not None and not any(index.takes_image for index in served.values()):
        raise ServingError(
            f"--encoder {options.encoder} makes vectors of none of the indexes' spaces: "
            f"{', '.join(str(engine.space) for engine in engines.values())}."
        )
    return served


def _open_confidences(
    folders: tuple[Path, ...], engines: Mapping[str, SearchEngine]
) -> dict[str, list[Confidence]]:
    """Return the confidences of each index, told by its fingerprint."""
    opened: dict[str, list[Confidence]] = {}
    for folder in folders:
        told = "there is no index"
        for name, engine in engines.items():
            try:
                opened.setdefault(name, []).append(Confidence.open(folder, engine))
                break
            except ConfidenceError as error:
                told = str(error)
        else:
            raise ServingError(f"--confidence {folder} is of none of the indexes: {told}")
    return opened


def _moved(embeddings: tuple[Named, ...], names: list[str]) -> dict[str, list[Path]]:
    """Return where the embedding folders of each index are, of those that moved."""
    moved: dict[str, list[Path]] = {}
    for name, folder in embeddings:
        owner = names[0] if len(names) == 1 else name
        if owner not in names:
            raise ServingError(
                f"--embeddings {name}={folder}: there is no index {name!r}; expected one of "
                f"{', '.join(names)}."
            )
        moved.setdefault(owner, []).append(folder)
    return moved


def _open_encoder(name: str, space: EmbeddingSpace, options: StartOptions) -> QueryEncoder | None:
    """Return what encodes words and pictures for an index; None, and why, where nothing does.

    Weights that would have to be downloaded are used only by those who ask for them.
    """
    from training.encoders.catalogue import name_encoder

    from ..searching.encoding import open_query_encoder  # brings torch

    is_asked_for = options.encoder is not None or options.pretrained is not None
    try:
        if not is_asked_for:
            encoder, weights = name_encoder(space)
            if weights is not None:
                raise EncoderError(
                    f"its encoder is {encoder}; give --pretrained {weights} (downloaded by "
                    f"open_clip), or the file."
                )
        opened: QueryEncoder = open_query_encoder(
            space, encoder=options.encoder, pretrained=options.pretrained, device=options.device
        )
    except SpaceMismatchError as error:
        logger.info("%s takes neither words nor pictures: %s", name, error)
        return None
    except (EncoderError, MissingExtraError) as error:
        if is_asked_for:
            raise
        logger.info("%s takes neither words nor pictures: %s", name, error)
        return None
    return opened


def _open_runs(options: StartOptions) -> dict[str, ServedRun]:
    _require_distinct("runs", [name for name, _ in options.runs])
    runs = {}
    for (name, folder), subject in zip(options.runs, options.subjects, strict=True):
        logger.info("predict %s ...", name)
        runs[name] = ServedRun.open(name, folder, subject)
    return runs


def _aesthetic_vectors(
    folder: Path | None, indexes: Mapping[str, ServedIndex]
) -> dict[int, np.ndarray] | None:
    if folder is None:
        return None
    vectors = read_aesthetic_vectors(folder)
    widths = {served.engine.space.width for served in indexes.values()}
    if len(vectors[0]) not in widths:
        raise ServingError(
            f"{folder} holds vectors of {len(vectors[0])} numbers, and the indexes have "
            f"{', '.join(map(str, sorted(widths)))}."
        )
    return vectors


def _require_distinct(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ServingError(f"two {what} are called {name!r}; say NAME=FOLDER for one of them.")
        seen.add(name)
