from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from index_builder.embeddings.errors import MissingExtraError
from training.errors import SourceError
from training.subjects.object_decoding import import_object_decoding, name_stimuli
from training.subjects.subject import Subject

N_VOXELS = 6
LABELS = [1518878.010042, 1518878.005958, 15075141.000123, 2084071.1, 1443537.022563]
NAMES = [
    "n01443537_22563",
    "n01518878_5958",
    "n01518878_10042",
    "n02084071_100000",
    "n15075141_123",
]
TEST = [1639765.052902, 1943899.024131]


def write_bdata(
    path: Path,
    columns: dict[str, Any],
    rows: dict[str, Any],
    *,
    legacy: bool = False,
    vmap: Any = (),
) -> Path:
    """Write a bdata file: ``columns`` of labels, ``rows`` of metadata of voxels."""
    voxels = columns.pop("VoxelData")
    n = voxels.shape[1]
    keys = ["VoxelData", *rows, *columns]
    value = np.full((len(keys), n + len(columns)), np.nan)
    value[0, :n] = 1
    for number, row in enumerate(rows.values(), start=1):
        value[number, :n] = row
    for number in range(len(columns)):
        value[1 + len(rows) + number, n + number] = 1
    with h5py.File(path, "w") as content:
        content["dataSet" if legacy else "dataset"] = np.column_stack([voxels, *columns.values()])
        metadata = content.create_group("metaData" if legacy else "metadata")
        metadata["key"] = [key.encode() for key in keys]
        metadata["description"] = [b"" for _ in keys]
        metadata["value"] = value
        for key, names in dict(vmap).items():
            for number, name in names.items():
                content[f"vmap/{key}/{number}"] = name.encode()
    return path


def rows_of(**changes: Any) -> dict[str, Any]:
    nan = np.nan
    return {
        "ROI_VC": [1, 1, nan, 1, 1, 1],
        "ROI_V1": [1, nan, nan, 1, nan, nan],
        "ROI_FFA": [nan, nan, 1, nan, nan, nan],
        "voxel_x": np.linspace(-20.5, 9.5, N_VOXELS),
        "voxel_i": np.arange(N_VOXELS),
    } | changes


@pytest.fixture
def columns(rng: np.random.Generator) -> dict[str, Any]:
    """10 samples of the training, 6 of the test, 3 of imagery."""
    labels = np.array(
        [*LABELS, *LABELS[::-1], *TEST, *TEST[::-1], *TEST, 1639765, 1943899, 1639765]
    )
    return {
        "VoxelData": rng.standard_normal((19, N_VOXELS)),
        "DataType": np.repeat([1.0, 2, 3], [10, 6, 3]),
        "Run": np.repeat([1.0, 2, 1, 2, 1], [5, 5, 3, 3, 3]),
        "stimulus_id": labels,
    }


def run(path: Path, folder: str = "subject", **options: Any) -> Subject:
    arguments: dict[str, Any] = {"subject": "Subject1", "n_validation": 1} | options
    return import_object_decoding(path, path.parent / folder, **arguments)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_subject_of_generic_object_decoding(
    tmp_path: Path, columns: dict[str, Any], legacy: bool, caplog: pytest.LogCaptureFixture
) -> None:
    voxels = columns["VoxelData"].copy()
    path = write_bdata(tmp_path / "Subject1.h5", columns, rows_of(), legacy=legacy)
    with caplog.at_level(logging.WARNING, logger="voxseek"):
        subject = run(path)
    assert "left out 3 samples of imagery" in caplog.text
    assert subject.details["n_imagery_left_out"] == 3
    kept = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(subject.voxels, voxels[:16, kept].astype(np.float32))
    assert {name: mask.tolist() for name, mask in subject.rois.items()} == {
        "VC": [True] * 5,
        "V1": [True, False, True, False, False],
    }
    stimuli = pq.read_table(subject.path / "stimuli.parquet")
    tests = ["n01639765_52902", "n01943899_24131"]
    assert stimuli["name"].to_pylist() == [*NAMES[:3], *tests, *NAMES[3:]]
    assert stimuli["caption"].to_pylist()[:2] == ["n01443537", "n01518878"]
    assert subject.image_ids("test").tolist() == [3, 4]
    assert len(subject.image_ids("validation")) == 1 and len(subject.image_ids("train")) == 4
    ids = [2, 1, 6, 5, 0]
    assert subject.trials["image_id"].to_pylist() == [*ids, *ids[::-1], 3, 4, 4, 3, 3, 4]
    # Runs 1 and 2 of the test are other runs than those of the training.
    assert subject.trials["session"].to_pylist() == np.repeat([0, 1, 2, 3], [5, 5, 3, 3]).tolist()
    table = subject.voxel_table()
    assert table is not None
    assert table["x"].to_pylist() == kept and table["x"].type == "int64"
    np.testing.assert_allclose(table["x_mm"], np.linspace(-20.5, 9.5, N_VOXELS)[kept])


def test_training_and_test_in_two_files(tmp_path: Path, columns: dict[str, Any]) -> None:
    """As Deep Image Reconstruction has them: sessions told, DataType absent, places the same."""
    parts = []
    for name, rows in (("Training", slice(0, 10)), ("Test", slice(10, 16))):
        part = {key: values[rows] for key, values in columns.items() if key != "DataType"}
        part["Session"] = part.pop("Run") + 4
        path = tmp_path / f"sub-01_perceptionNaturalImage{name}_original_VC.h5"
        parts.append(write_bdata(path, part, rows_of()))
    subject = run(parts[0], test_source=parts[1], subject="sub-01", mask="ROI_V1")
    np.testing.assert_array_equal(
        subject.voxels, columns["VoxelData"][:16, [0, 3]].astype(np.float32)
    )
    assert len(subject.image_ids("test")) == 2 and len(subject.trial_rows("test")) == 6
    assert subject.trials["session"].to_pylist() == np.repeat([0, 1, 2, 3], [5, 5, 3, 3]).tolist()
    other = write_bdata(
        tmp_path / "other.h5",
        dict(part, VoxelData=np.ones((6, N_VOXELS))),
        rows_of(voxel_i=np.arange(N_VOXELS) + 1),
    )
    with pytest.raises(
        SourceError, match=r"other.h5 has other voxels than .*Training.* \(5 and 5\)"
    ):
        run(parts[0], "x", test_source=other)
    with pytest.raises(
        SourceError, match=r"has no column DataType, which tells training from test"
    ):
        run(parts[0], "x")
    with pytest.raises(
        SourceError, match=r"picture n01443537_22563 is in training and test \(5 such"
    ):
        run(parts[0], "x", test_source=parts[0])


def test_names_from_the_table_of_values_and_pictures(
    tmp_path: Path, columns: dict[str, Any]
) -> None:
    del columns["stimulus_id"]
    numbers = [1.0, 2, 3, 1, 2, 3, 1, 2, 3, 1, 4, 5, 4, 5, 4, 5, np.nan, np.nan, np.nan]
    columns["stimulus_name"] = np.array(numbers)
    names = {1.0: "n01518878_10042.JPEG", 2.0: "n01518878_5958.JPEG", 3.0: "shape_b"}
    vmap = {"stimulus_name": names | {4.0: "n01639765_52902.JPEG", 5.0: "shape_a"}}
    path = write_bdata(tmp_path / "s.h5", columns, rows_of(), vmap=vmap)
    for name in ("n01518878_10042.JPEG", "n01518878_5958.JPEG", "n01639765_52902.JPEG"):
        (tmp_path / "pictures/deep").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / f"pictures/deep/{name}")
    for name in ("shape_a.tiff", "shape_b.tiff"):
        Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / f"pictures/{name}")
    subject = run(path, images=tmp_path / "pictures")
    stems = ["n01518878_5958", "n01518878_10042", "n01639765_52902", "shape_a", "shape_b"]
    stimuli = pq.read_table(subject.path / "stimuli.parquet")
    assert stimuli["name"].to_pylist() == stems
    assert subject.captions() == {0: "n01518878", 1: "n01518878", 2: "n01639765"}
    assert np.asarray(subject.open_image(3)).max() == 9
    columns["VoxelData"] = np.ones((19, N_VOXELS))
    del vmap["stimulus_name"][5.0]
    write_bdata(path, columns, rows_of(), vmap=vmap)
    with pytest.raises(
        SourceError, match=r"stimulus_name is 5.0 in some sample, and its table of n"
    ):
        run(path, "x")


def test_labels_bear_rounding_and_nothing_else() -> None:
    labels = np.array([*LABELS, *TEST])
    expected = [
        "n01518878_10042", "n01518878_5958", "n15075141_123", "n02084071_100000",
        "n01443537_22563", "n01639765_52902", "n01943899_24131",
    ]  # fmt: skip
    assert name_stimuli(np.nextafter(labels, np.inf), where="x") == expected
    assert name_stimuli(np.nextafter(labels, 0), where="x") == expected
    for wrong in (1518878.0, 1518878.0100425, np.nan, 0.5, 12.0):
        with pytest.raises(SourceError, match=r"x: the stimulus of sample 1 is .*expected synset"):
            name_stimuli(np.array([LABELS[0], wrong]), where="x")


def test_what_is_missing_in_a_file_is_named(tmp_path: Path, columns: dict[str, Any]) -> None:
    path = write_bdata(tmp_path / "s.h5", dict(columns), rows_of())
    with pytest.raises(SourceError, match=r"no row 'ROI_V9'.*one of ROI_FFA, ROI_V1, ROI_VC"):
        run(path, mask="ROI_V9")
    with pytest.raises(
        SourceError, match=r"has no column Label; its metadata name DataType, ROI_FF"
    ):
        run(path, label="Label")
    write_bdata(path, dict(columns), rows_of(ROI_VC=np.zeros(N_VOXELS)))
    with pytest.raises(SourceError, match=r"no column is marked by 'ROI_VC'. Name another mask"):
        run(path)
    write_bdata(path, columns | {"DataType": np.full(19, 4.0)}, rows_of())
    with pytest.raises(SourceError, match=r"DataType of sample 0 is 4, expected 1 \(training\)"):
        run(path)
    write_bdata(
        path,
        columns | {"DataType": np.full(19, 1.0), "stimulus_id": np.full(19, LABELS[0])},
        rows_of(),
    )
    with pytest.raises(SourceError, match=r"s.h5 has no samples of the test. Give both parts"):
        run(path)


def test_damaged_and_other_files_are_refused(tmp_path: Path, columns: dict[str, Any]) -> None:
    path = write_bdata(tmp_path / "s.h5", columns, rows_of())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=r"s.h5 can't be read as bdata.*it is truncated"):
        run(path)
    path.unlink()
    with h5py.File(path, "w") as file:
        file["something"] = [1]
    with pytest.raises(SourceError, match=r"s.h5 can't be read as bdata"):
        run(path)
    path.unlink()
    with h5py.File(path, "w") as file:
        file["dataset"] = np.zeros((3, 4))
        file["metadata/key"] = [b"a"]
        file["metadata/description"] = [b""]
        file["metadata/value"] = np.zeros((1, 3))
    with pytest.raises(
        SourceError, match=r"a matrix of shape \(3, 4\) and metadata of shape \(1, 3"
    ):
        run(path)
    (tmp_path / "s.mat").write_bytes(b"MATLAB")
    with pytest.raises(SourceError, match=r"s.mat ends in '.mat', expected a bdata file"):
        run(tmp_path / "s.mat")


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bdpy.bdata", None)
    with pytest.raises(MissingExtraError, match=r"bdpy is not installed.*voxseek\[data\]"):
        run(tmp_path / "s.h5")
