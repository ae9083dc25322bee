from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.encoders.pixels import PixelEncoder
from training.errors import TargetsError
from training.pictures.opening import open_source
from training.pictures.places import open_place
from training.targets import embed_pictures

from .conftest import BROKEN, HTML, checksums, picture_bytes, sample_files, write_tar


@pytest.fixture
def shards(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Two shards of five samples; the fields of the second are of wider kinds."""
    for shard in range(2):
        files: dict[str, bytes] = {}
        for number in range(5):
            facts = {
                "url": f"https://a.test/{shard}/{number}",
                "width": 10 + number,
                "punsafe": number / 8,
                "error_message": None,
                "exif": {"nested": 1},
            }
            if shard:
                facts |= {"width": "wide" if number == 3 else 2.5, "later": 1}
            key = f"{shard:05d}{number:04d}"
            files |= sample_files(key, picture_bytes(rng), **facts)
        write_tar(tmp_path / "tars" / f"{shard:05d}.tar", files)
    (tmp_path / "tars" / "00000.parquet").write_bytes(b"what img2dataset leaves beside a shard")
    return tmp_path / "tars"


def test_rows_are_the_samples_in_their_order(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = PixelEncoder(4)
    folder = embed_pictures(
        open_source(shards), tmp_path / "out", encoder, batch_size=2, part_rows=4
    )
    assert [part.n_rows for part in folder.parts] == [4, 1, 4, 1]  # No part crosses shards.
    table = folder.metadata()
    assert table.schema.names == [
        "image_path",
        "key",
        "caption",
        "status",
        "url",
        "width",
        "punsafe",
        "error_message",
    ]
    rows = table.to_pydict()
    keys = [f"{shard:05d}{number:04d}" for shard in range(2) for number in range(5)]
    assert rows["key"] == keys
    assert rows["caption"] == [f"of {key}" for key in keys]
    assert rows["image_path"][6] == "../tars/00001.tar/000010001.jpg"
    assert rows["width"] == [10, 11, 12, 13, 14, *[None] * 5]
    assert rows["punsafe"][:5] == [0, 0.125, 0.25, 0.375, 0.5]
    assert "field 'later' of a sample isn't in the first shard" in caplog.text
    assert caplog.text.count("field 'width'") == 1
    expected = np.stack(
        [
            encoder.encode(encoder.prepare(open_place(tmp_path / "out" / path))[None])[0]
            for path in rows["image_path"]
        ]
    )
    np.testing.assert_allclose(folder.take(np.arange(10)), expected, atol=1e-3)


def test_one_shard_alone_is_a_source(shards: Path, tmp_path: Path) -> None:
    folder = embed_pictures(open_source(shards / "00001.tar"), tmp_path / "out", PixelEncoder(4))
    assert folder.metadata().to_pydict()["width"] == ["2.5", "2.5", "2.5", "wide", "2.5"]


def test_samples_need_neither_caption_nor_json(tmp_path: Path, rng: np.random.Generator) -> None:
    files = {"deep/a.WEBP": picture_bytes(rng, "WEBP"), "b.txt": b"no picture", "c.npy": b"voxels"}
    write_tar(tmp_path / "tars" / "x.tar", {"__index__.json": b"{}", **files})
    folder = embed_pictures(open_source(tmp_path / "tars"), tmp_path / "out", PixelEncoder(4))
    assert folder.metadata().to_pylist() == [
        {"image_path": "../tars/x.tar/deep/a.WEBP", "key": "a", "caption": None}
    ]


class Interrupted(PixelEncoder):
    """An encoder that fails once it has been called ``n_calls`` times."""

    def __init__(self, n_calls: int) -> None:
        super().__init__(4)
        self.n_left = n_calls

    def encode(self, batch: np.ndarray) -> np.ndarray:
        self.n_left -= 1
        if self.n_left < 0:
            raise KeyboardInterrupt
        return super().encode(batch)


@pytest.mark.parametrize("n_calls", range(5))
def test_an_interrupted_run_gives_the_same_bytes_whatever_is_unreadable(
    n_calls: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    broken = {"00000": {1, 2, 3}, "00001": {0, 1}, "00002": {0, 1, 2}}  # Parts of two pictures.
    for shard, numbers in broken.items():
        files: dict[str, bytes] = {}
        for number in range(5 if shard == "00000" else 3):
            content = BROKEN if number in numbers else picture_bytes(rng)
            files |= sample_files(f"{shard}{number:04d}", content)
        write_tar(tmp_path / "tars" / f"{shard}.tar", files)
    source, whole, cut = open_source(tmp_path / "tars"), tmp_path / "whole", tmp_path / "cut"
    folder = embed_pictures(source, whole, PixelEncoder(4), batch_size=1, part_rows=2)
    if n_calls < 3:
        with pytest.raises(KeyboardInterrupt):
            embed_pictures(source, cut, Interrupted(n_calls), batch_size=1, part_rows=2)
        assert not (cut / "space.json").exists()
    embed_pictures(source, cut, PixelEncoder(4), batch_size=1, part_rows=2)
    assert checksums(cut) == checksums(whole)
    assert folder.metadata().to_pydict()["key"] == ["000000000", "000000004", "000010002"]
    listed = pq.read_table(whole / "unreadable.parquet")
    assert listed["key"].to_pylist() == [
        *("000000001", "000000002", "000000003", "000010000", "000010001"),
        *("000020000", "000020001", "000020002"),
    ]
    assert set(listed["reason"].to_pylist()) == {"not a picture"}
    manifest = json.loads((whole / "space.json").read_text())
    assert (manifest["n_rows"], manifest["n_unreadable"]) == (3, 8)
    assert not (whole / "unreadable").exists()


def test_a_set_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "0.tar", sample_files("00", BROKEN))
    with pytest.raises(TargetsError, match=r"none of the pictures of .*tars can be read\. The f"):
        embed_pictures(open_source(tmp_path / "tars"), tmp_path / "out", PixelEncoder(4))


def test_json_is_never_unpickled(tmp_path: Path, rng: np.random.Generator) -> None:
    pickled = b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."
    files = sample_files("00", picture_bytes(rng)) | {"00.json": pickled}
    write_tar(tmp_path / "tars" / "0.tar", files)
    source = open_source(tmp_path / "tars")
    with pytest.raises(TargetsError, match=r"'00\.json' of .*0\.tar is not JSON.*Pack the shard"):
        embed_pictures(source, tmp_path / "first", PixelEncoder(4))
    more = sample_files("01", picture_bytes(rng)) | {"01.json": b"[1]"}
    more |= sample_files("02", picture_bytes(rng))
    write_tar(tmp_path / "tars" / "0.tar", files | more)
    embed_pictures(open_source(tmp_path / "tars"), tmp_path / "out", PixelEncoder(4))
    listed = pq.read_table(tmp_path / "out" / "unreadable.parquet").to_pydict()
    assert (listed["key"], listed["reason"]) == (["00", "01"], ["not JSON"] * 2)


def test_text_that_is_no_unicode_is_kept_as_far_as_it_goes(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    files = sample_files("00", picture_bytes(rng), note="\ud800!", huge=1 << 70)
    write_tar(tmp_path / "tars" / "0.tar", files | {"00.txt": b"caf\xe9"})
    folder = embed_pictures(open_source(tmp_path / "tars"), tmp_path / "out", PixelEncoder(4))
    row = folder.metadata().to_pylist()[0]
    assert (row["caption"], row["note"], row["huge"]) == ("caf\ufffd", "?!", None)
    assert folder.metadata().schema.field("huge").type == pa.int64()


def damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    open_source(path.parent)


def test_shards_that_are_not_whole_are_named(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "00000.tar").read_bytes()
    target = shards / "00001.tar"
    with pytest.raises(TargetsError, match=r"00001\.tar is no tar file .*begin b'<!DOCTYPE html"):
        damaged(target, HTML)
    with pytest.raises(TargetsError, match=r"00001\.tar is no tar file .*its 0 bytes"):
        damaged(target, b"")
    with pytest.raises(TargetsError, match=r"00001\.tar is no tar file .*begin b'\\x1f\\x8b"):
        damaged(target, b"\x1f\x8b" + whole[2:])
    with pytest.raises(TargetsError, match=r"00001\.tar has no end mark where it ends: it was cut"):
        damaged(target, whole[:3000])
    broken = bytearray(whole)
    broken[1024 : 1024 + 512] = b"\xff" * 512  # The header of the second file.
    target.write_bytes(broken)
    source = open_source(shards)
    with pytest.raises(TargetsError, match=r"00001\.tar has no end mark|00001\.tar can't be read"):
        embed_pictures(source, tmp_path / "out", PixelEncoder(4))


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/outside.jpg", "a/../../b.jpg"])
def test_names_that_lead_out_of_a_shard_are_refused(name: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "0.tar", {name: b""})
    with pytest.raises(TargetsError, match=r"0\.tar holds a file '.*whose path leads out of the"):
        open_source(tmp_path / "tars")


def test_shards_without_pictures_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "0.tar", {"0.txt": b"words"})
    with pytest.raises(TargetsError, match="holds no pictures in its 1 tar shards; expected files"):
        open_source(tmp_path / "tars")
