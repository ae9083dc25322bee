"""Folders of reconstructions: what they hold, and how an unfinished one is known.

images/<image_id>.png      the picked picture of each image
samples/<image_id>/00.png  all of them, where they are kept
low_level/<image_id>.png   the blurry picture that image-to-image started from
retrieved/<image_id>.png   the best picture of an index
scores.parquet             one line a sample: image_id, sample, score, is_picked; and the row
contact_sheet.png          seen | low-level | reconstructed | retrieved
reconstruction.json        last: run, subject, decoder, seed
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from index_builder.embeddings.artefact import (
    atomic_write,
    read_manifest,
    verify_files,
    write_manifest,
)

from ..errors import ReconstructionError

KIND = "reconstruction"
FORMAT_VERSION = 1
MANIFEST_FILE = "reconstruction.json"
SCORES_FILE = "scores.parquet"
SHEET_FILE = "contact_sheet.png"
UNFINISHED_FILE = "unfinished.json"
IMAGES, SAMPLES, LOW_LEVEL, RETRIEVED = "images", "samples", "low_level", "retrieved"
SCORE_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("sample", pa.int32()),
        ("score", pa.float32()),
        ("is_picked", pa.bool_()),
        ("retrieved_row", pa.int64()),
        ("retrieved_score", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Reconstruction:
    """A finished folder of reconstructions.

    Parameters
    ----------
    path : Path
    image_ids : tuple of int
    details : dict
    """

    path: Path
    image_ids: tuple[int, ...]
    details: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Reconstruction:
        """Open a folder and compare its files with the manifest by size.

        Raises
        ------
        ArtefactError
            If it is missing, unfinished or altered.
        """
        root = Path(path)
        manifest = read_manifest(root, MANIFEST_FILE, kind=KIND, format_version=FORMAT_VERSION)
        verify_files(root, manifest, contents=False)
        return cls(root, tuple(manifest["image_ids"]), manifest["details"])

    def image_path(self, image_id: int) -> Path:
        """Return the file of the picked picture."""
        return self.path / IMAGES / f"{image_id}.png"

    def scores(self) -> pa.Table:
        """Return one line a sample: `SCORE_SCHEMA`."""
        return pq.read_table(self.path / SCORES_FILE)


def begin(root: Path, details: dict[str, Any]) -> None:
    """Note what an unfinished folder will hold, or compare it with what was begun there.

    Raises
    ------
    ReconstructionError
        If something else was begun.
    """
    path = root / UNFINISHED_FILE
    if path.is_file():
        try:
            begun = json.loads(path.read_text())
        except ValueError as error:
            raise ReconstructionError(
                f"{path} can't be read ({error}). Remove {root} and begin anew."
            ) from error
        require_same(begun, details, root)
        return
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(details, indent=2) + "\n")


def require_same(found: dict[str, Any], details: dict[str, Any], root: Path) -> None:
    """Raise `ReconstructionError` unless a folder's details are those that are asked for."""
    if found == details:
        return
    names = sorted({*found, *details})
    name = next(name for name in names if found.get(name) != details.get(name))
    raise ReconstructionError(
        f"{root} holds reconstructions whose {name} is {found.get(name)!r}, and "
        f"{details.get(name)!r} was asked for. Write to another folder, or remove this one."
    )


def block_path(root: Path, number: int) -> Path:
    """Return where the scores of a block stand until all are there."""
    return root / f".scores-{number:05d}.parquet"


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture as PNG, whole or not at all."""
    with atomic_write(path) as temporary:
        picture.save(temporary, "PNG")


def finish(
    root: Path, image_ids: list[int], n_blocks: int, details: dict[str, Any]
) -> Reconstruction:
    """Join the scores of all blocks, write the manifest, and open the folder."""
    blocks = [block_path(root, number) for number in range(n_blocks)]
    with atomic_write(root / SCORES_FILE) as temporary:
        pq.write_table(pa.concat_tables([pq.read_table(block) for block in blocks]), temporary)
    pictures = [p.relative_to(root).as_posix() for p in root.rglob("*.png")]
    write_manifest(
        root,
        MANIFEST_FILE,
        kind=KIND,
        format_version=FORMAT_VERSION,
        command="voxseek reconstruct",
        files=[SCORES_FILE, *pictures],
        body={"image_ids": image_ids, "details": details},
        packages=("numpy", "pillow", "torch", "diffusers"),
    )
    for path in (*blocks, root / UNFINISHED_FILE):
        path.unlink()
    return Reconstruction.open(root)
