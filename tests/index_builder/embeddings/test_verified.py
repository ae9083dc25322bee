from __future__ import annotations

import os
from pathlib import Path

import pytest

from index_builder.embeddings import artefact
from index_builder.embeddings.artefact import read_manifest, verify_files, write_manifest
from index_builder.embeddings.errors import ArtefactError
from index_builder.embeddings.verified import Verified

OLD = 1_600_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "artefact"
    root.mkdir()
    for name in ("a.npy", "b.npy"):
        (root / name).write_bytes(name.encode() * 100)
    write_manifest(
        root, "m.json", kind="test", format_version=1, command="test", files=["a.npy", "b.npy"],
        body={},
    )  # fmt: skip
    return root


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read to be hashed, in order."""
    names: list[str] = []
    original = artefact.sha256_file

    def count(path: Path) -> str:
        names.append(Path(path).name)
        return original(path)

    monkeypatch.setattr(artefact, "sha256_file", count)
    return names


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once: the times of their inodes can't be set back."""
    monkeypatch.setattr("index_builder.embeddings.verified._FRESH_SECONDS", -1)


def verify(folder: Path, memory: Path) -> None:
    verified = Verified(memory)
    manifest = read_manifest(folder, "m.json", kind="test", format_version=1)
    verify_files(folder, manifest, verified=verified)
    verified.save()


@pytest.mark.usefixtures("settled")
def test_files_are_read_once(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    for _ in range(3):
        verify(folder, tmp_path / "memory.json")
    assert hashed == ["a.npy", "b.npy"]


@pytest.mark.usefixtures("settled")
def test_a_touched_file_is_read_again(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    verify(folder, tmp_path / "memory.json")
    os.utime(folder / "b.npy", (OLD, OLD))
    verify(folder, tmp_path / "memory.json")
    assert hashed == ["a.npy", "b.npy", "b.npy"]


@pytest.mark.usefixtures("settled")
def test_an_altered_file_is_refused_though_its_time_was_set_back(
    folder: Path, tmp_path: Path
) -> None:
    verify(folder, tmp_path / "memory.json")
    file = folder / "a.npy"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtefactError, match=r"a\.npy differs from its recorded SHA-256"):
        verify(folder, tmp_path / "memory.json")


def test_a_file_that_was_just_written_is_not_remembered(
    folder: Path, tmp_path: Path, hashed: list[str]
) -> None:
    for _ in range(2):
        verify(folder, tmp_path / "memory.json")
    assert hashed == ["a.npy", "b.npy"] * 2


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"{broken", b"\xff\xfe"])
def test_a_damaged_memory_is_forgotten(
    folder: Path, tmp_path: Path, hashed: list[str], content: bytes
) -> None:
    (tmp_path / "memory.json").write_bytes(content)
    verify(folder, tmp_path / "memory.json")
    verify(folder, tmp_path / "memory.json")
    assert hashed == ["a.npy", "b.npy"]


@pytest.mark.usefixtures("settled")
def test_where_nothing_can_be_remembered_files_are_read_each_time(
    folder: Path, tmp_path: Path, hashed: list[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for _ in range(2):
        verify(folder, tmp_path / "file" / "memory.json")
    assert hashed == ["a.npy", "b.npy"] * 2


def test_each_folder_has_a_memory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = {Verified.of(tmp_path / name)._path for name in ("a", "b", "./a")}
    assert len(paths) == 2
    assert all(path.parent == tmp_path / "cache" / "voxseek" / "verified" for path in paths)
