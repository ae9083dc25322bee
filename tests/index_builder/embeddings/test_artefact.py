from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from index_builder.embeddings.artefact import (
    atomic_write,
    describe_software,
    fingerprint,
    parse_manifest,
    read_manifest,
    sha256_file,
    verify_files,
    write_manifest,
)
from index_builder.embeddings.errors import ArtefactError


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.bin").write_bytes(b"second")
    (tmp_path / "sub" / "a.bin").write_bytes(b"first")
    return write_manifest(
        tmp_path,
        "run.json",
        kind="run",
        format_version=2,
        command="voxseek train",
        files=["sub/a.bin", "b.bin"],
        body={"score": 0.5},
    )


def test_a_manifest_lists_its_files(tmp_path: Path, manifest: dict[str, Any]) -> None:
    assert manifest["files"] == {
        "b.bin": {"bytes": 6, "sha256": hashlib.sha256(b"second").hexdigest()},
        "sub/a.bin": {"bytes": 5, "sha256": hashlib.sha256(b"first").hexdigest()},
    }
    assert manifest["made_by"]["command"] == "voxseek train"
    assert read_manifest(tmp_path, "run.json", kind="run", format_version=2) == manifest
    verify_files(tmp_path, manifest)


def test_the_same_files_give_the_same_bytes(tmp_path: Path, manifest: dict[str, Any]) -> None:
    before = (tmp_path / "run.json").read_bytes()
    write_manifest(
        tmp_path,
        "run.json",
        kind="run",
        format_version=2,
        command="voxseek train",
        files=["b.bin", "sub/a.bin"],  # the other order
        body={"score": 0.5},
    )
    assert (tmp_path / "run.json").read_bytes() == before


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        write_manifest(
            tmp_path,
            "x.json",
            kind="x",
            format_version=1,
            command="",
            files=[],
            body={"a": float("nan")},
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("contents", [True, False])
def test_what_differs_is_named(tmp_path: Path, manifest: dict[str, Any], contents: bool) -> None:
    (tmp_path / "b.bin").write_bytes(b"sec0nd")
    if contents:
        with pytest.raises(ArtefactError, match=r"b\.bin differs from its recorded SHA-256"):
            verify_files(tmp_path, manifest)
    verify_files(tmp_path, manifest, contents=False)
    (tmp_path / "b.bin").write_bytes(b"longer than before")
    with pytest.raises(ArtefactError, match=r"b\.bin has 18 bytes, and the manifest says 6"):
        verify_files(tmp_path, manifest, contents=contents)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(ArtefactError, match=r"b\.bin is missing; the manifest lists it"):
        verify_files(tmp_path, manifest, contents=contents)


def test_manifests_that_are_not_read(tmp_path: Path, manifest: dict[str, Any]) -> None:
    def read(folder: Path = tmp_path, kind: str = "run", format_version: int = 2) -> None:
        read_manifest(folder, "run.json", kind=kind, format_version=format_version)

    with pytest.raises(ArtefactError, match=r"describes a 'run', expected a 'index'"):
        read(kind="index")
    with pytest.raises(
        ArtefactError, match=r"has format_version 2, and this voxseek reads version 3"
    ):
        read(format_version=3)
    with pytest.raises(ArtefactError, match=r"nowhere is not a folder; expected a run folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(
        ArtefactError, match=r"run\.json is missing, so the run folder .* incomplete"
    ):
        read(tmp_path / "sub")
    for content, message in (
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[]", "describes a 'list'"),
    ):
        with pytest.raises(ArtefactError, match=f"here {message}"):
            parse_manifest(content, "here", kind="run", format_version=2)


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
        assert temporary.parent == path.parent
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_sha256_of_a_file_longer_than_a_block(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5_000
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_fingerprints_ignore_the_order_of_keys_alone() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1, "b": [1, 2]}) != fingerprint({"a": 1, "b": [2, 1]})
    assert len(fingerprint(None)) == 64


def test_software_leaves_out_what_is_not_installed() -> None:
    versions = describe_software("numpy", "no-such-package-at-all")
    assert {"python", "numpy"} <= versions.keys()
    assert "no-such-package-at-all" not in versions
    json.dumps(versions)
