"""Pictures in tar shards, as img2dataset and webdataset write them: one shard at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from index_builder.embeddings.artefact import fingerprint
from index_builder.embeddings.progress import track

from ..errors import TargetsError
from .decoding import decode_picture
from .errors import PictureError
from .fields import Fields
from .source import PicturePart, relative_place
from .tar_files import Member, list_members, read_member, require_whole

_MAX_TEXT_BYTES = 1 << 20  # of one caption or JSON file
_OURS = ("image_path", "key", "caption")


@dataclass
class Sample:
    """The files of one key in a shard.

    Parameters
    ----------
    shard : Path
    picture : Member
        The first of its pictures, if there are several.
    text, facts : Member or None
        ``.txt`` and ``.json``.
    trouble : PictureError or None
        Why its caption or its JSON can't be used.
    """

    shard: Path
    picture: Member
    text: Member | None = None
    facts: Member | None = None
    trouble: PictureError | None = field(default=None, compare=False)

    def open(self) -> Image.Image:
        """Decode the picture.

        Raises
        ------
        PictureError
            Also for what is wrong with the sample's JSON.
        """
        if self.trouble is not None:
            raise self.trouble
        where = f"{self.picture.name!r} of {self.shard}"
        return decode_picture(read_member(self.shard, self.picture), where=where)

    def read_fields(self) -> dict[str, Any]:
        """Return the fields of its JSON, then its key and its caption as they win over those."""
        fields: dict[str, Any] = {}
        try:
            if self.facts is not None:
                fields = self._read_facts(self.facts)
            if self.text is not None:
                content = read_member(self.shard, self.text, limit=_MAX_TEXT_BYTES)
                fields["caption"] = content.decode("utf-8", "replace")
        except PictureError as error:
            self.trouble = error
        if not isinstance(fields.get("key"), str):
            fields["key"] = self.picture.key
        if not isinstance(fields.get("caption"), str):
            fields["caption"] = None
        return fields

    def _read_facts(self, facts: Member) -> dict[str, Any]:
        try:
            found = json.loads(read_member(self.shard, facts, limit=_MAX_TEXT_BYTES))
        except (ValueError, RecursionError) as error:
            raise PictureError(
                "not JSON",
                f"{facts.name!r} of {self.shard} is not JSON ({error}); nothing else is read. "
                f"Pack the shard again.",
            ) from error
        if not isinstance(found, dict):
            raise PictureError(
                "not JSON", f"{facts.name!r} of {self.shard} holds no object of named fields."
            )
        return found


class TarSource:
    """Tar shards; columns image_path, key, caption, and the flat fields of the samples' JSON.

    Parameters
    ----------
    shards : sequence of Path
        In order. First and last block of each are looked at here, the rest when its turn comes.
    name : str
        For messages.

    Raises
    ------
    TargetsError
        If a shard is no uncompressed tar file or isn't whole, or none holds a picture.
    """

    is_strict = False
    n_pictures: int | None = None

    def __init__(self, shards: Sequence[Path], name: str) -> None:
        self.name = name
        self._shards = list(shards)
        try:
            for shard in self._shards:
                require_whole(shard)
        except PictureError as error:
            raise TargetsError(str(error)) from error
        filled = (samples for shard in self._shards if (samples := list_samples(shard)))
        first = next(filled, None)
        if first is None:
            raise TargetsError(
                f"{name} holds no pictures in its {len(self._shards)} tar shards; expected files "
                f"such as 000000007.jpg with 000000007.txt and 000000007.json."
            )
        self._fields = Fields([_without_ours(sample.read_fields()) for sample in first])

    def identity(self, out: Path) -> dict[str, Any]:
        """Return the number of shards, and a fingerprint of their places and sizes."""
        listing = [(relative_place(path, out), path.stat().st_size) for path in self._shards]
        return {"n_shards": len(listing), "pictures": fingerprint(listing)}

    def parts(
        self, out: Path, part_rows: int, *, after: Mapping[str, Any] | None
    ) -> Iterator[PicturePart]:
        """Yield the samples of each shard in its order; no part crosses shards.

        See `PictureSource.parts`.
        """
        first_shard, first_row = self._find(out, after, part_rows) if after is not None else (0, 0)
        for shard in track(
            self._shards[first_shard:],
            label="embed",
            total=len(self._shards),
            unit="shard",
            n_done=first_shard,
        ):
            samples = list_samples(shard)
            for start in range(first_row, len(samples), part_rows):
                yield self._as_part(samples[start : start + part_rows], out)
            first_row = 0

    def _find(self, out: Path, after: Mapping[str, Any], part_rows: int) -> tuple[int, int]:
        """Return the shard that holds a picture, and the row in it where the next part begins."""
        places = [f"{relative_place(shard, out)}/" for shard in self._shards]
        number = next(i for i, place in enumerate(places) if after["image_path"].startswith(place))
        name = after["image_path"].removeprefix(places[number])
        names = [sample.picture.name for sample in list_samples(self._shards[number])]
        return number, (names.index(name) // part_rows + 1) * part_rows

    def _as_part(self, samples: Sequence[Sample], out: Path) -> PicturePart:
        fields = [sample.read_fields() for sample in samples]
        places = [relative_place(s.shard / s.picture.name, out) for s in samples]
        table = pa.table(
            {
                "image_path": pa.array(places, pa.string()),
                "key": pa.array([_text(record["key"]) for record in fields], pa.string()),
                "caption": pa.array([_text(record["caption"]) for record in fields], pa.string()),
            }
        )
        others = self._fields.table([_without_ours(record) for record in fields])
        for column in others.schema:
            table = table.append_column(column, others[column.name])
        return PicturePart(table, lambda row: samples[row].open())


def list_samples(shard: Path) -> list[Sample]:
    """Return the samples of a shard that have a picture, in the order of their first file.

    Raises
    ------
    TargetsError
        If the shard is damaged.
    """
    by_key: dict[str, dict[str, Member]] = {}
    try:
        members = list_members(shard)
    except PictureError as error:
        raise TargetsError(str(error)) from error
    for member in members:
        head, _, suffix = member.name.rpartition("/")[2].partition(".")
        kind = "picture" if member.is_picture else suffix.lower()
        key = f"{member.name.rpartition('/')[0]}/{head}"
        by_key.setdefault(key, {}).setdefault(kind, member)
    return [
        Sample(shard, files["picture"], files.get("txt"), files.get("json"))
        for files in by_key.values()
        if "picture" in files
    ]


def _without_ours(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in _OURS}


def _text(value: str | None) -> str | None:
    return None if value is None else value.encode("utf-8", "replace").decode()
