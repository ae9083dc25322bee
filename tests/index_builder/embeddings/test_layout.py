from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_builder.embeddings.errors import EmbeddingError, PartError
from index_builder.embeddings.layout import (
    PartFiles,
    discover_parts,
    order_by_number,
    part_file_names,
)
from index_builder.embeddings.storage import LocalStorage


def touch(folder: Path, *names: str) -> LocalStorage:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return LocalStorage(folder)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["e_10.npy", "e_2.npy", "e_1.npy"], ["e_1.npy", "e_2.npy", "e_10.npy"]),
        (["e_0010.npy", "e_0002.npy"], ["e_0002.npy", "e_0010.npy"]),
        # %02d beyond 99 grows a digit
        (["e_100.npy", "e_99.npy", "e_07.npy"], ["e_07.npy", "e_99.npy", "e_100.npy"]),
        (["e_0.npy", "e_10.npy"], ["e_0.npy", "e_10.npy"]),
        (
            ["p-00001-of-00002.npy", "p-00000-of-00002.npy"],
            ["p-00000-of-00002.npy", "p-00001-of-00002.npy"],
        ),
        (["alone.npy"], ["alone.npy"]),
    ],
    ids=["unpadded", "padded", "outgrown padding", "zero", "two numbers", "no number"],
)
def test_parts_are_ordered_by_number(names: list[str], expected: list[str]) -> None:
    assert list(order_by_number(names, "here").values()) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["e_1.npy", "e_01.npy"], "both e_01.npy and e_1.npy, which are the same part"),
        (["e_1.npy", "e_02.npy"], "e_1.npy and e_02.npy, whose numbers are padded to different"),
        (["e_010.npy", "e_02.npy"], "e_02.npy and e_010.npy, whose numbers are padded"),
        (["e_1.npy", "f_2.npy"], "named in 2 ways .for example e_1.npy and f_2.npy"),
        (["e_1.npy", "extra.npy"], "named in 2 ways"),
    ],
)
def test_an_ambiguous_order_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(EmbeddingError, match=message):
        order_by_number(names, "here")


def test_every_single_padding_is_accepted(rng: np.random.Generator) -> None:
    for width in range(1, 6):
        numbers = rng.choice(20_000, size=50, replace=False)
        names = [f"x_{number:0{width}d}.npy" for number in numbers]
        ordered = order_by_number(names, "here")
        assert [number for (number,) in ordered] == sorted(numbers)


def test_npy_and_parquet_pair_by_number_whatever_their_padding(tmp_path: Path) -> None:
    storage = touch(
        tmp_path,
        *(f"img_emb/img_emb_{n}.npy" for n in (0, 1, 10)),
        *(f"metadata/metadata_{n:03d}.parquet" for n in (0, 1, 10)),
        "metadata/_SUCCESS",
        "img_emb/.img_emb_2.npy.partial",
    )
    assert discover_parts(storage, "img_emb") == (
        PartFiles("img_emb/img_emb_0.npy", "metadata/metadata_000.parquet"),
        PartFiles("img_emb/img_emb_1.npy", "metadata/metadata_001.parquet"),
        PartFiles("img_emb/img_emb_10.npy", "metadata/metadata_010.parquet"),
    )


def test_text_and_image_embeddings_share_the_metadata(tmp_path: Path) -> None:
    storage = touch(
        tmp_path,
        "img_emb/img_emb_0.npy",
        "text_emb/text_emb_0.npy",
        "metadata/metadata_0.parquet",
    )
    assert discover_parts(storage, "text_emb") == (
        PartFiles("text_emb/text_emb_0.npy", "metadata/metadata_0.parquet"),
    )


@pytest.mark.parametrize("names", [["0.npy", "1.npy"], ["img_emb/0.npy", "img_emb/1.npy"]])
def test_npy_alone(tmp_path: Path, names: list[str]) -> None:
    storage = touch(tmp_path, *names)
    assert discover_parts(storage, "img_emb") == tuple(PartFiles(name, None) for name in names)


@pytest.mark.parametrize("folder", ["", "metadata/", "img_emb/"])
def test_parquet_alone_is_both_vectors_and_metadata(tmp_path: Path, folder: str) -> None:
    file = f"{folder}part_0.parquet"
    assert discover_parts(touch(tmp_path, file), "img_emb") == (PartFiles(file, file),)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (
            ["img_emb/img_emb_0.npy", "img_emb/img_emb_1.npy", "metadata/metadata_0.parquet"],
            PartError,
            r"no file of metadata .parquet. has the number of .*img_emb_1\.npy\. Bring",
        ),
        (
            ["img_emb/img_emb_0.npy", "metadata/metadata_0.parquet", "metadata/metadata_1.parquet"],
            PartError,
            r"no file of embeddings .npy. has the number of .*metadata_1\.parquet",
        ),
        (
            ["img_emb/img_emb_0.npy", *(f"metadata/metadata_{n}.parquet" for n in range(8))],
            PartError,
            "and 2 more",
        ),
        (["notes.txt"], EmbeddingError, "holds no embeddings: expected img_emb/"),
        (["text_emb/text_emb_0.npy"], EmbeddingError, "It has text_emb/: pass modality='text_emb'"),
    ],
    ids=["no metadata", "no npy", "many", "nothing", "other modality"],
)
def test_what_does_not_pair_is_named(
    tmp_path: Path, names: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        discover_parts(touch(tmp_path, *names), "img_emb")


def test_names_that_voxseek_writes() -> None:
    assert part_file_names(7) == PartFiles(
        "img_emb/img_emb_0007.npy", "metadata/metadata_0007.parquet"
    )
    names = [part_file_names(number).embeddings for number in (10_000, 9_999, 0)]
    assert list(order_by_number(names, "here")) == [(0,), (9_999,), (10_000,)]
