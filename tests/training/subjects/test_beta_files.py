from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
from scipy.io import savemat

from index_builder.embeddings.errors import MissingExtraError
from training.errors import SourceError
from training.subjects import beta_files
from training.subjects.beta_files import (
    name_region,
    open_betas,
    read_mask,
    require_same_grid,
    select_voxels,
    tabulate_voxels,
)

SHAPE, N_TRIALS = (3, 4, 5), 11
AFFINE = np.diag([2.0, 2, 2, 1])


@pytest.fixture
def volumes(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((*SHAPE, N_TRIALS)).astype(np.float32)


def save_nifti(path: Path, values: Any, affine: np.ndarray = AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def save_hdf5(path: Path, name: str, values: np.ndarray) -> Path:
    with h5py.File(path, "w") as content:
        content[name] = values
        content["meanvol"] = h5py.Empty("f")
    return path


def forms(folder: Path, volumes: np.ndarray) -> list[Path]:
    return [
        save_nifti(folder / "a.nii.gz", volumes),
        save_nifti(folder / "b.nii", volumes),
        save_hdf5(folder / "c.hdf5", "betasmd", volumes),
        save_hdf5(folder / "d.mat", "modelmd", volumes.T),  # h5py sees MATLAB's axes reversed
    ]


def test_every_form_gives_the_same_voxels(
    tmp_path: Path, volumes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beta_files, "SLAB_BYTES", 8 * 60 * 3)  # three volumes at once
    xyz = np.argwhere(np.arange(60).reshape(SHAPE) % 7 < 3)
    trials = np.array([0, 3, 4, 8, 10])
    for path in forms(tmp_path, volumes):
        file = open_betas(path)
        assert (file.shape, file.n_trials, file.has_space) == (SHAPE, N_TRIALS, True)
        read = file.read(trials, xyz)
        np.testing.assert_array_equal(read, volumes[tuple(xyz.T)].T[trials], err_msg=path.name)
        table = tabulate_voxels(file, xyz)
        assert table is not None and table["z"].to_pylist() == xyz[:, 2].tolist()


@pytest.mark.parametrize("shape", [(6, N_TRIALS), (6, 1, 1, N_TRIALS)])
@pytest.mark.parametrize("name", ["betasmd", "modelmd"])
def test_lists_of_voxels_have_no_space(
    tmp_path: Path, volumes: np.ndarray, shape: tuple[int, ...], name: str
) -> None:
    values = volumes.reshape(-1, N_TRIALS)[:6].reshape(shape)
    file = open_betas(save_hdf5(tmp_path / "a.h5", name, values if name == "betasmd" else values.T))
    xyz, masks = select_voxels(file, None, ())
    assert tabulate_voxels(file, xyz) is None and masks == {}
    read = file.read(np.arange(2, N_TRIALS), xyz[1:])
    np.testing.assert_array_equal(read, values.reshape(6, -1)[1:, 2:].T)


def test_scaled_integers_are_unscaled(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 2, 2), AFFINE)
    image.header.set_slope_inter(0.5, 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    file = open_betas(tmp_path / "a.nii.gz")
    read = file.read(np.arange(2), np.array([[1, 2, 1]]))
    np.testing.assert_allclose(read[:, 0], np.array([22, 23]) * 0.5 + 1)


def test_stretches_cover_the_trials(
    tmp_path: Path, volumes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beta_files, "STRETCH_BYTES", 4 * 60 * 4)  # four trials at once
    file = open_betas(save_nifti(tmp_path / "a.nii.gz", volumes))
    xyz, _ = select_voxels(file, None, ())
    trials = np.arange(1, N_TRIALS)
    stretches = file.stretches(trials, trials // 6, xyz)
    assert [s.name for s in stretches] == [
        f"a.nii.gz, trials {a} to {b}" for a, b in ((1, 4), (5, 8), (9, 10))
    ]
    wanted = np.array([0, 17, 59])
    read = np.concatenate([s.read(wanted) for s in stretches])
    np.testing.assert_array_equal(read, volumes.reshape(60, -1).T[1:][:, wanted])
    assert np.concatenate([s.sessions for s in stretches]).tolist() == (trials // 6).tolist()


def test_the_mask_or_else_the_regions_choose_the_voxels(
    tmp_path: Path, volumes: np.ndarray
) -> None:
    file = open_betas(save_nifti(tmp_path / "a.nii.gz", volumes))
    labels = (np.arange(60).reshape(SHAPE) % 6 - 1).astype(np.int16)  # -1, 0 and above
    v1 = save_nifti(tmp_path / "V1.nii.gz", np.where(labels == 2, 1, labels.clip(max=0)))
    v2 = save_nifti(tmp_path / "sub-01_hemi-L_label-V2_mask.nii.gz", (labels == 3)[..., None] * 1.0)
    mask = save_nifti(tmp_path / "mask.nii", (labels > 1).astype(np.uint8))
    xyz, masks = select_voxels(file, None, (v1, v2))
    np.testing.assert_array_equal(xyz, np.argwhere((labels == 2) | (labels == 3)))
    np.testing.assert_array_equal(masks["lh.V2"], labels[tuple(xyz.T)] == 3)
    xyz, masks = select_voxels(file, mask, (v1,))
    np.testing.assert_array_equal(xyz, np.argwhere(labels > 1))
    np.testing.assert_array_equal(masks["V1"], labels[tuple(xyz.T)] == 2)
    with pytest.raises(SourceError, match=r"is a second region 'V1'; expected each name once"):
        select_voxels(file, None, (v1, v1))


def test_regions_are_named_by_their_files() -> None:
    assert name_region(Path("lh.floc-faces.nii.gz")) == "lh.floc-faces"
    assert name_region(Path("sub-1_hemi-R_space-T1w_label-FFA_mask.nii")) == "rh.FFA"


def test_masks_of_other_spaces_are_refused(tmp_path: Path, volumes: np.ndarray) -> None:
    file = open_betas(save_nifti(tmp_path / "a.nii.gz", volumes))
    ones = np.ones(SHAPE, np.uint8)
    with pytest.raises(SourceError, match=r"m.nii has volumes of 3 x 4 x 6 voxels, expected 3 x 4"):
        read_mask(save_nifti(tmp_path / "m.nii", np.ones((3, 4, 6), np.uint8)), file)
    shifted = AFFINE.copy()
    shifted[0, 3] = 1.5
    with pytest.raises(SourceError, match=r"another affine than a.nii.gz \(they differ by 1.5\)"):
        read_mask(save_nifti(tmp_path / "m.nii", ones, shifted), file)
    with pytest.raises(SourceError, match=r"m.nii is above 0 nowhere, expected a mask"):
        read_mask(save_nifti(tmp_path / "m.nii", -1 * ones.astype(np.int16)), file)
    other = open_betas(save_nifti(tmp_path / "b.nii", volumes, shifted))
    with pytest.raises(SourceError, match=r"b.nii has another affine than a.nii.gz"):
        require_same_grid([file, other])
    # GLMsingle's own files don't know where their voxels lie, so only the shape can be compared.
    bare = open_betas(save_hdf5(tmp_path / "c.hdf5", "betasmd", volumes))
    assert require_same_grid([bare, other]) is bare


def test_truncated_and_other_files_are_refused(tmp_path: Path, volumes: np.ndarray) -> None:
    paths = forms(tmp_path, volumes)
    for path in paths[:2]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
        file = open_betas(path)
        with pytest.raises(SourceError, match=rf"{path.name} breaks off after \d+ of 11 trials"):
            file.read(np.arange(N_TRIALS), np.argwhere(np.ones(SHAPE)))
    for path in paths[2:]:
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(SourceError, match=rf"{path.name} can't be read as HDF5"):
            open_betas(path)
    for name in ("e.nii.gz", "e.nii"):
        (tmp_path / name).write_bytes(b"not NIfTI" * 99)
        with pytest.raises(SourceError, match=rf"{name} can't be read as NIfTI"):
            open_betas(tmp_path / name)
    savemat(tmp_path / "old.mat", {"modelmd": volumes})
    with pytest.raises(SourceError, match=r"of MATLAB before 7.3. Save it again with -v7.3"):
        open_betas(tmp_path / "old.mat")


def test_damage_inside_a_gzip_stream_is_named(tmp_path: Path, volumes: np.ndarray) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", volumes)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"a.nii.gz breaks off after"):
        open_betas(path).read(np.arange(N_TRIALS), np.argwhere(np.ones(SHAPE)))


def test_what_holds_no_betas_is_refused(tmp_path: Path, volumes: np.ndarray) -> None:
    with pytest.raises(
        SourceError, match=r"of shape \(3, 4, 5\), expected betas X x Y x Z x trial"
    ):
        open_betas(save_nifti(tmp_path / "a.nii", volumes[..., 0]))
    with pytest.raises(SourceError, match=r"holds \{'R2': \(3, 4, 5\).*expected betasmd"):
        open_betas(save_hdf5(tmp_path / "b.hdf5", "R2", volumes[..., 0]))
    np.save(tmp_path / "TYPED.npy", {"betasmd": volumes}, allow_pickle=True)
    with pytest.raises(SourceError, match=r"is a pickled dictionary.*with wanthdf5=1"):
        open_betas(tmp_path / "TYPED.npy")
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(SourceError, match=r"a.csv ends in '.csv', expected betas"):
        open_betas(tmp_path / "a.csv")


@pytest.mark.parametrize(("package", "number"), [("nibabel", 0), ("h5py", 2)])
def test_a_missing_package_names_its_extra(
    tmp_path: Path,
    volumes: np.ndarray,
    package: str,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = forms(tmp_path, volumes)[number]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed.*voxseek\[data\]"):
        open_betas(path)
