"""One picture in each kind of archive that a path may go on into."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from .test_tar_shards import write_shard

KINDS = ("tar", "hdf5", "parquet")


def write_archives(folder: Path, picture: Image.Image) -> dict[str, Path]:
    """Write a picture into three archives, and return its place in each by `KINDS`.

    Parameters
    ----------
    folder : Path
    picture : Image
        A square one, RGB; a black one stands before it in the archives that have rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for each in (Image.new("RGB", picture.size), picture):
        buffer = BytesIO()
        each.save(buffer, "PNG")
        files.append(buffer.getvalue())
    write_shard(folder / "0.tar", {"a/7.png": files[1], "a/7.txt": b"words"})
    with h5py.File(folder / "stimuli.hdf5", "w") as store:
        pixels = np.asarray(picture)
        store["imgBrick"] = np.stack([np.zeros_like(pixels), pixels])
    pq.write_table(pa.table({"image": files}), folder / "a.parquet")
    return {
        "tar": folder / "0.tar/a/7.png",
        "hdf5": folder / "stimuli.hdf5/imgBrick/1",
        "parquet": folder / "a.parquet/1",
    }
