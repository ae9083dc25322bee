from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from retrieval.errors import PictureError
from retrieval.images.tar_shards import TarShards
from training.pictures import tar_files

from .conftest import picture_bytes


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))


@pytest.fixture
def pictures(rng: np.random.Generator) -> dict[str, bytes]:
    return {key: picture_bytes(rng) for key in ("000000000", "000000007", "000010003")}


@pytest.fixture
def shards(tmp_path: Path, pictures: dict[str, bytes]) -> Path:
    """Two shards as img2dataset writes them: picture, caption and JSON of each sample."""
    for shard in ("00000", "00001"):
        files = {}
        for key, content in pictures.items():
            if key.startswith(shard):
                files |= {f"{key}.jpg": content, f"{key}.txt": b"words", f"{key}.json": b"{}"}
        write_shard(tmp_path / f"{shard}.tar", files)
    return tmp_path


def test_pictures_are_found_by_key(shards: Path, pictures: dict[str, bytes]) -> None:
    opened = TarShards(shards)
    for key in [*pictures, *reversed(pictures)]:
        assert opened.read(key) == pictures[key]


def test_the_longest_name_that_begins_the_key_is_its_shard(
    tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    write_shard(tmp_path / "000.tar", {})
    write_shard(tmp_path / "00000.tar", {"inside/000000007.PNG": pictures["000000007"]})
    assert TarShards(tmp_path).read("000000007") == pictures["000000007"]


@pytest.mark.parametrize(
    ("key", "reason", "message"),
    [
        ("000000001", "not in its shard", r"00000\.tar holds no picture '000000001'"),
        ("999990001", "no such shard", "no shard whose name begins the key"),
        ("0", "no such shard", "no shard whose name begins the key"),
    ],
)
def test_keys_that_are_not_there_say_so(shards: Path, key: str, reason: str, message: str) -> None:
    with pytest.raises(PictureError, match=message) as found:
        TarShards(shards).read(key)
    assert found.value.reason == reason


def test_links_and_folders_are_no_pictures(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        link = tarfile.TarInfo("000000000.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(PictureError, match="holds no picture"):
        TarShards(tmp_path).read("000000000")


def test_damaged_shards_are_named(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = TarShards(shards)
    whole = (shards / "00000.tar").read_bytes()
    assert opened.read("000000007")
    (shards / "00000.tar").write_bytes(whole[:600])
    with pytest.raises(PictureError, match=r"00000\.tar ends within '000000007\.jpg'") as found:
        opened.read("000000007")
    assert found.value.reason == "damaged shard"
    (shards / "00000.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(PictureError, match=r"00000\.tar can't be read"):
        TarShards(shards).read("000000007")
    monkeypatch.setattr(tar_files, "MAX_BYTES", 10)
    with pytest.raises(PictureError, match="at most 10") as found:
        TarShards(shards).read("000010003")
    assert found.value.reason == "too large"


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"holds no \.tar files; expected shards"):
        TarShards(tmp_path)
