from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.encoders.pixels import PixelEncoder
from training.errors import TargetsError
from training.pictures.errors import PictureError
from training.pictures.opening import open_source
from training.pictures.places import open_place
from training.targets import embed_pictures

from .conftest import BROKEN, HTML, checksums, picture_bytes

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_tables(
    folder: Path, rng: np.random.Generator, *, as_struct: bool, group_rows: int
) -> list[bytes]:
    """Write 7 and 4 rows; the sixth is no picture, and the third has a path alone."""
    pictures = [picture_bytes(rng) for _ in range(11)]
    pictures[5] = BROKEN
    folder.mkdir(parents=True)
    for number, rows in enumerate((range(7), range(7, 11))):
        values = [
            {"bytes": None if row == 2 else pictures[row], "path": f"../{row}.jpg"} for row in rows
        ]
        column = (
            pa.array(values, STRUCT)
            if as_struct
            else pa.array([value["bytes"] for value in values], pa.binary())
        )
        table = pa.table(
            {
                "image": column,
                "image_path": pa.array(["theirs"] * len(rows)),
                "text": pa.array([f"words {row}" for row in rows]),
                "label": pa.array(list(rows), pa.int32()),
                "boxes": pa.array([[1, 2]] * len(rows)),
            }
        )
        name = f"train-{number:05d}-of-00002.parquet"
        pq.write_table(table, folder / name, row_group_size=group_rows)
    return pictures


@pytest.mark.parametrize("group_rows", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("as_struct", [True, False], ids=["struct", "bytes"])
def test_rows_are_those_of_the_files(
    as_struct: bool, group_rows: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    write_tables(tmp_path / "set" / "data", rng, as_struct=as_struct, group_rows=group_rows)
    encoder = PixelEncoder(4)
    source = open_source(tmp_path / "set")
    assert source.n_pictures == 11
    folder = embed_pictures(source, tmp_path / "out", encoder, batch_size=2, part_rows=3)
    assert [part.n_rows for part in folder.parts] == [2, 2, 1, 3, 1]
    rows = folder.metadata().to_pydict()
    kept = [0, 1, 3, 4, 6, 7, 8, 9, 10]
    assert list(rows) == ["image_path", "text", "label"]
    assert rows["label"] == kept
    assert rows["image_path"][5] == "../set/data/train-00001-of-00002.parquet/0"
    expected = np.stack(
        [
            encoder.encode(encoder.prepare(open_place(tmp_path / "out" / path))[None])[0]
            for path in rows["image_path"]
        ]
    )
    np.testing.assert_allclose(folder.take(np.arange(9)), expected, atol=1e-3)
    listed = pq.read_table(tmp_path / "out" / "unreadable.parquet").to_pydict()
    assert listed["label"] == [2, 5]
    assert listed["reason"] == ["no bytes", "not a picture"]


class Interrupted(PixelEncoder):
    n_left = 3

    def encode(self, batch: np.ndarray) -> np.ndarray:
        self.n_left -= 1
        if self.n_left < 0:
            raise KeyboardInterrupt
        return super().encode(batch)


def test_an_interrupted_run_gives_the_same_bytes(tmp_path: Path, rng: np.random.Generator) -> None:
    write_tables(tmp_path / "set", rng, as_struct=True, group_rows=2)
    source = open_source(tmp_path / "set")
    embed_pictures(source, tmp_path / "whole", PixelEncoder(), batch_size=3, part_rows=3)
    with pytest.raises(KeyboardInterrupt):
        embed_pictures(source, tmp_path / "cut", Interrupted(), batch_size=3, part_rows=3)
    embed_pictures(source, tmp_path / "cut", PixelEncoder(), batch_size=3, part_rows=3)
    assert checksums(tmp_path / "cut") == checksums(tmp_path / "whole")


def test_rows_that_are_not_there_say_so(tmp_path: Path, rng: np.random.Generator) -> None:
    write_tables(tmp_path / "set", rng, as_struct=True, group_rows=2)
    file = tmp_path / "set" / "train-00000-of-00002.parquet"
    for row, reason, message in (
        ("7", "no such row", "has 7 rows, and no row 7"),
        ("x", "no such row", "names no row of"),
        ("2", "no bytes", "row 2 has no bytes of a picture"),
    ):
        with pytest.raises(PictureError, match=message) as found:
            open_place(file / row)
        assert found.value.reason == reason


def test_files_that_hold_no_pictures_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(HTML)
    with pytest.raises(TargetsError, match=r"a\.parquet can't be read as parquet"):
        open_source(file)
    png = pa.array([picture_bytes(rng)], pa.binary())
    pq.write_table(pa.table({"image": png}), file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with pytest.raises(TargetsError, match=r"a\.parquet can't be read as parquet.*cut off"):
        open_source(file)
    pq.write_table(pa.table({"url": ["x"], "caption": ["y"]}), file)
    with pytest.raises(TargetsError, match=r"\['url', 'caption'\], of which none could hold pict"):
        open_source(file)
    pq.write_table(pa.table({"left": png, "right": png}), file)
    with pytest.raises(TargetsError, match=r"of which \['left', 'right'\] could hold pictures"):
        open_source(file)
    pq.write_table(pa.table({"image": png[:0]}), file)
    with pytest.raises(TargetsError, match=r"a\.parquet holds no rows"):
        open_source(file)
    pq.write_table(pa.table({"image": png, "a": [1]}), file)
    pq.write_table(pa.table({"image": png, "b": [1]}), tmp_path / "b.parquet")
    with pytest.raises(TargetsError, match=r"(?s)b\.parquet has the columns.*a folder of its own"):
        open_source(tmp_path)


def test_a_damaged_page_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    file = tmp_path / "a.parquet"
    column = pa.array([picture_bytes(rng) for _ in range(40)], pa.binary())
    pq.write_table(pa.table({"image": column}), file, use_dictionary=False)
    content = bytearray(file.read_bytes())
    content[4:60] = b"\xff" * 56
    file.write_bytes(content)
    with pytest.raises(TargetsError, match=r"a\.parquet is damaged after its row 0"):
        embed_pictures(open_source(file), tmp_path / "out", PixelEncoder(4))
