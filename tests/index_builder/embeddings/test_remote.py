"""Folders behind a URL: the same rows, and no more bytes than asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from index_builder.embeddings.errors import ArtefactError, EmbeddingError, PartError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

Rows = Callable[..., np.ndarray]
Laion = Callable[..., Path]
DIM = 512
N_ROWS = (4_000, 3_000)


class CountingFileSystem(MemoryFileSystem):
    """A memory file system that counts what is fetched, and may hide sizes as HTTP does."""

    protocol = "counting"
    store: dict[str, Any] = {}  # noqa: RUF012  # the parent class keeps its files in a class attribute
    pseudo_dirs = [""]  # noqa: RUF012
    ranges: list[tuple[str, int, int]] = []  # noqa: RUF012
    caches: set[str] = set()  # noqa: RUF012
    has_sizes = True

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("counting://")))

    def _open(self, path: str, *args: Any, **options: Any) -> Any:
        type(self).caches.add(options.get("cache_type", "read-ahead of megabytes"))
        return super()._open(path, *args, **options)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        content: bytes = super().cat_file(path, start=start, end=end)
        type(self).ranges.append((path, start or 0, len(content)))
        return content

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        entries = super().ls(path, detail=detail, **options)
        if detail and not self.has_sizes:
            return [{**entry, "size": None} for entry in entries]
        return entries


@pytest.fixture
def file_system(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingFileSystem]:
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    for name, fresh in (("store", {}), ("pseudo_dirs", [""]), ("ranges", [])):
        monkeypatch.setattr(CountingFileSystem, name, fresh)
    yield fsspec.filesystem("counting")


@pytest.fixture
def space() -> EmbeddingSpace:
    return EmbeddingSpace("ViT-B-32/openai", "final", 1, DIM, True)


@pytest.fixture
def arrays(unit_rows: Rows) -> list[np.ndarray]:
    return [unit_rows(n, DIM) for n in N_ROWS]


@pytest.fixture
def folder(laion_folder: Laion, arrays: list[np.ndarray]) -> Path:
    return laion_folder(arrays)


@pytest.fixture
def url(folder: Path, file_system: CountingFileSystem) -> str:
    file_system.put(str(folder), "/laion", recursive=True)
    CountingFileSystem.ranges.clear()
    CountingFileSystem.caches.clear()
    return "counting://laion"


def fetched() -> int:
    return sum(n_bytes for _, _, n_bytes in CountingFileSystem.ranges)


def test_the_same_as_the_local_folder(url: str, folder: Path, space: EmbeddingSpace) -> None:
    here, there = (EmbeddingFolder.open(path, space=space) for path in (folder, url))
    assert here.is_local and not there.is_local
    assert there.path == url
    assert there.fingerprint == here.fingerprint
    assert there.columns == here.columns
    rows = np.array([6_999, 0, 4_000, 3_999, 0])
    np.testing.assert_array_equal(there.take(rows), here.take(rows))
    assert there.metadata(rows).equals(here.metadata(rows))
    ours, theirs = (list(f.iter_batches(batch_rows=1_500)) for f in (here, there))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.embeddings, other.embeddings)


def test_opening_reads_headers_alone(url: str, space: EmbeddingSpace) -> None:
    EmbeddingFolder.open(url, space=space)
    assert {path for path, _, _ in CountingFileSystem.ranges} == {
        "/laion/img_emb/img_emb_0.npy",
        "/laion/img_emb/img_emb_1.npy",
    }
    assert fetched() <= 2 * 12_000
    assert CountingFileSystem.caches == {"none"}


def test_take_reads_its_rows_alone_and_neighbours_at_once(url: str, space: EmbeddingSpace) -> None:
    folder = EmbeddingFolder.open(url, space=space)
    CountingFileSystem.ranges.clear()
    folder.take([10, 5_000])
    row_bytes = DIM * 2
    assert sorted(CountingFileSystem.ranges) == [
        ("/laion/img_emb/img_emb_0.npy", 128 + 10 * row_bytes, row_bytes),
        ("/laion/img_emb/img_emb_1.npy", 128 + 1_000 * row_bytes, row_bytes),
    ]
    CountingFileSystem.ranges.clear()
    rows = np.repeat(np.arange(100, 164), 2)
    folder.take(rows)
    assert fetched() <= 72 * row_bytes  # 16 requests, whose ends may share a row
    assert len(CountingFileSystem.ranges) <= 16


def test_batches_read_their_range_alone(url: str, space: EmbeddingSpace) -> None:
    folder = EmbeddingFolder.open(url, space=space)
    CountingFileSystem.ranges.clear()
    list(folder.iter_batches(batch_rows=300, start=3_900, stop=4_500))
    assert fetched() == 600 * DIM * 2


def test_sizes_that_a_listing_does_not_tell(
    url: str, space: EmbeddingSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountingFileSystem, "has_sizes", False)
    assert EmbeddingFolder.open(url, space=space).n_rows == 7_000


def test_own_folder_behind_a_url(
    tmp_path: Path, file_system: CountingFileSystem, space: EmbeddingSpace, unit_rows: Rows
) -> None:
    import pyarrow as pa

    from index_builder.embeddings.writer import EmbeddingWriter

    with EmbeddingWriter(tmp_path / "own", space, command="test", details={"seed": 1}) as writer:
        writer.write(unit_rows(5, DIM), pa.table({"image_id": np.arange(5)}))
        local = writer.finish()
    file_system.put(str(tmp_path / "own"), "/own", recursive=True)
    opened = EmbeddingFolder.open("counting://own/")
    assert (opened.fingerprint, opened.details) == (local.fingerprint, {"seed": 1})
    np.testing.assert_array_equal(opened.take([4, 1]), local.take([4, 1]))
    file_system.pipe_file("/own/img_emb/img_emb_0000.npy", b"short")
    with pytest.raises(
        ArtefactError, match=r"counting://own/img_emb/img_emb_0000\.npy has 5 bytes"
    ):
        EmbeddingFolder.open("counting://own")


@pytest.mark.parametrize("error", [TimeoutError("slow"), RuntimeError("503")])
def test_a_failing_network_names_the_file_and_the_range(
    url: str, space: EmbeddingSpace, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    folder = EmbeddingFolder.open(url, space=space)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(CountingFileSystem, "cat_file", fail)
    message = rf"img_emb_1\.npy: bytes 128 to 1152 can't be read \({re.escape(repr(error))}\)"
    with pytest.raises(PartError, match=message):
        folder.take([4_000])
    with pytest.raises(PartError, match=r"bytes 128 to \d+ can't be read"):
        list(folder.iter_batches(batch_rows=100, start=4_000))
    monkeypatch.setattr(CountingFileSystem, "ls", fail)
    with pytest.raises(ArtefactError, match=r"counting://laion can't be listed"):
        EmbeddingFolder.open(url, space=space)


def test_nothing_there(file_system: CountingFileSystem, space: EmbeddingSpace) -> None:
    with pytest.raises(EmbeddingError, match=r"counting://absent holds no embeddings"):
        EmbeddingFolder.open("counting://absent", space=space)


def test_an_unknown_protocol(space: EmbeddingSpace) -> None:
    with pytest.raises(ArtefactError, match=r"gopher://hole can't be opened .*install the fsspec"):
        EmbeddingFolder.open("gopher://hole", space=space)
