"""Pictures that can be listed: those of folders, of subjects, and of HDF5 stores."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from index_builder.embeddings.artefact import fingerprint

from ..errors import TargetsError
from ..subjects.image_store import ImageStore, StoredImage
from ..subjects.subject import MANIFEST, Subject
from .decoding import PICTURE_SUFFIXES
from .places import open_place
from .source import PicturePart, relative_place

CAPTIONS_NAME = "captions.csv"


@dataclass(frozen=True)
class Picture:
    """One picture to embed.

    Parameters
    ----------
    image_id : int
        Its number: in a subject, the subject's; in a store, its row; in a folder, its place in
        the order of paths.
    path : Path
        A place; see `training.pictures.places`.
    caption : str
        May be empty.
    """

    image_id: int
    path: Path
    caption: str


class PictureList(Sequence[Picture]):
    """A source whose pictures are listed in memory; columns image_id, image_path and caption.

    Parameters
    ----------
    pictures : sequence of Picture
    name : str
        For messages.
    is_strict : bool
        See `PictureSource`.
    """

    def __init__(self, pictures: Sequence[Picture], name: str, *, is_strict: bool = False) -> None:
        self.name = name
        self.is_strict = is_strict
        self.n_pictures: int | None = len(pictures)
        self._pictures = list(pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        return self._pictures[index]

    def identity(self, out: Path) -> dict[str, Any]:
        """Return the number of pictures, and a fingerprint of ids, places and captions."""
        listing = [(p.image_id, relative_place(p.path, out), p.caption) for p in self._pictures]
        return {"n_pictures": len(listing), "pictures": fingerprint(listing)}

    def parts(
        self, out: Path, part_rows: int, *, after: Mapping[str, Any] | None
    ) -> Iterator[PicturePart]:
        """Yield the pictures in the order of the list; see `PictureSource.parts`."""
        first = 0
        if after is not None:
            position = [picture.image_id for picture in self._pictures].index(after["image_id"])
            first = (position // part_rows + 1) * part_rows
        for start in range(first, len(self._pictures), part_rows):
            yield _as_part(self._pictures[start : start + part_rows], out)


def _as_part(pictures: Sequence[Picture], out: Path) -> PicturePart:
    metadata = pa.table(
        {
            "image_id": pa.array([p.image_id for p in pictures], pa.int64()),
            "image_path": pa.array([relative_place(p.path, out) for p in pictures], pa.string()),
            "caption": pa.array([p.caption for p in pictures], pa.string()),
        }
    )
    return PicturePart(metadata, lambda row: open_place(pictures[row].path))


def list_pictures(source: str | os.PathLike[str]) -> PictureList:
    """List the pictures of a subject folder, or of any folder and the folders in it.

    A file ``captions.csv`` in the folder (columns ``image`` and ``caption``; the first caption of
    a picture counts) gives captions by path relative to the folder.

    Raises
    ------
    TargetsError
        If there are no pictures, or a caption names one that is not there.
    """
    root = Path(source)
    if (root / MANIFEST).is_file():
        return _list_subject(root)
    if not root.is_dir():
        raise TargetsError(f"{root} is not a folder; expected a folder of pictures or a subject.")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise TargetsError(
            f"{root} holds no pictures; looked for files ending in {', '.join(PICTURE_SUFFIXES)}."
        )
    by_name = _read_captions(root / CAPTIONS_NAME) if (root / CAPTIONS_NAME).is_file() else {}
    names = [path.relative_to(root).as_posix() for path in paths]
    if unknown := sorted(set(by_name) - set(names)):
        raise TargetsError(
            f"{root / CAPTIONS_NAME} has a caption for {unknown[0]!r} ({len(unknown)} such names), "
            f"which is not a picture of {root}. Correct the column `image`."
        )
    return PictureList(
        [
            Picture(image_id, path, by_name.get(name, ""))
            for image_id, (path, name) in enumerate(zip(paths, names, strict=True))
        ],
        str(root),
    )


def list_store(path: str | os.PathLike[str]) -> PictureList:
    """List the pictures of an HDF5 store, of which each row is an image id.

    Raises
    ------
    MissingExtraError, SourceError
        As `ImageStore.open`.
    """
    store = ImageStore.open(path)
    places = (_place(StoredImage(store, row)) for row in range(store.n_images))
    return PictureList([Picture(row, place, "") for row, place in enumerate(places)], str(path))


def _list_subject(root: Path) -> PictureList:
    subject = Subject.open(root)
    captions = subject.captions()
    return PictureList(
        [
            Picture(image_id, _place(subject.image(image_id)), captions.get(image_id, ""))
            for image_id in subject.image_ids("all").tolist()
        ],
        str(root),
        is_strict=True,
    )


def _place(where: Path | StoredImage) -> Path:
    if isinstance(where, Path):
        return where
    return where.store.path / where.store.dataset / str(where.image_id)


def _read_captions(path: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    with open(path, newline="", encoding="utf-8") as handle:
        rows = csv.DictReader(handle)
        if not {"image", "caption"} <= set(rows.fieldnames or ()):
            raise TargetsError(
                f"{path} has the columns {rows.fieldnames}, expected `image` and `caption`."
            )
        for row in rows:
            captions.setdefault(row["image"], row["caption"])
    return captions
