"""Every way in which a release is found broken is one line: file, what, cure."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from index_builder.embeddings.errors import MissingExtraError
from training.errors import SourceError
from training.subjects.nsd.importer import import_nsd

from .conftest import Truth
from .miniature import GRID, N_TRIALS, Design, Miniature, write_betas_hdf5, write_nifti

HTML = b"<!DOCTYPE html>\n<html><body>Access denied</body></html>" * 20
Damage = Callable[[Miniature, Truth], object]


def refused(mini: Miniature, tmp_path: Path, match: str, **options: Any) -> None:
    with pytest.raises(SourceError, match=match) as caught:
        import_nsd(mini.root, tmp_path / "s", **{"subject": 1, "n_validation": 20, **options})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s" / "subject.json").exists()


def session(mini: Miniature, number: int) -> Path:
    return mini.betas_folder() / f"betas_session{number:02d}.hdf5"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


def in_form(mini: Miniature, truth: Truth, number: int, form: str) -> Path:
    session(mini, number).unlink()
    return mini.write_session(number, truth.betas[number - 1], form)


def design_with(mini: Miniature, **fields: Any) -> None:
    tables = {name: getattr(mini.design, name) for name in ("masterordering", "subjectim")}
    tables |= {"sharedix": mini.design.sharedix} | fields
    savemat(mini.design_file, {name: value for name, value in tables.items() if value is not None})


BETAS: dict[str, tuple[Damage, str]] = {
    "web page": (
        lambda mini, truth: session(mini, 2).write_bytes(HTML),
        r"betas_session02.hdf5 is a web page saved .* expected HDF5 .*Download the file itself",
    ),
    "empty": (
        lambda mini, truth: session(mini, 3).write_bytes(b""),
        r"betas_session03.hdf5 is empty \(0 bytes\)",
    ),
    "truncated hdf5": (
        lambda mini, truth: cut(session(mini, 3)),
        r"betas_session03.hdf5 can't be read as HDF5 \(.*it is truncated, or another kind",
    ),
    "truncated nii.gz": (
        lambda mini, truth: cut(in_form(mini, truth, 2, ".nii.gz")),
        r"betas_session02.nii.gz can't be read as NIfTI \(.*it is truncated",
    ),
    "truncated nii": (
        lambda mini, truth: cut(in_form(mini, truth, 2, ".nii")),
        r"betas_session02.nii has \d+ bytes, and its header announces \d+: it is truncated",
    ),
    "no nii": (
        lambda mini, truth: in_form(mini, truth, 2, ".nii").write_bytes(b"\x01" * 400),
        r"betas_session02.nii can't be read as NIfTI",
    ),
    "a map": (
        lambda mini, truth: write_nifti(in_form(mini, truth, 2, ".nii"), truth.labels),
        r"betas_session02.nii has shape \(7, 6, 5\), expected a fourth axis of trials",
    ),
    "no betas": (
        lambda mini, truth: h5py.File(session(mini, 2), "w").close(),
        r"betas_session02.hdf5 holds \[\], expected 'betas'",
    ),
    "other axes": (
        lambda mini, truth: write_betas_hdf5(session(mini, 2), truth.betas[0].T),
        r"shape \(7, 6, 5, 750\), expected 750 trials first",
    ),
    "other type": (
        lambda mini, truth: write_betas_hdf5(session(mini, 2), truth.betas[0] > 0),
        r"betas of bool, expected int16 \(percent signal change times 300\) or floats",
    ),
    "other grid": (
        lambda mini, truth: mini.write_session(2, truth.betas[1][1:]),
        r"session02.hdf5 has voxels \(6, 6, 5\), and betas_session01.hdf5 has \(7, 6, 5\); .*"
        r"another subject's",
    ),
    "gap": (
        lambda mini, truth: session(mini, 2).unlink(),
        r"holds no betas_session02, though later files .*Download it, or keep the first 1\.",
    ),
    "unfinished": (
        lambda mini, truth: session(mini, 3).rename(session(mini, 3).with_suffix(".hdf5.part")),
        r"session03.hdf5.part is a download that isn't finished.*or keep the first 2\.",
    ),
    "unfinished, awscli": (
        lambda mini, truth: session(mini, 1).rename(session(mini, 1).with_suffix(".hdf5.6eF32bD1")),
        r"session01.hdf5.6eF32bD1 is a download that isn't finished.*Finish the download\.",
    ),
    "unfinished, aria2": (
        lambda mini, truth: session(mini, 3).with_suffix(".hdf5.aria2").write_bytes(b"\x00"),
        r"session03.hdf5.aria2 is a download that isn't finished",
    ),
    "no sessions": (
        lambda mini, truth: [session(mini, number).unlink() for number in (1, 2, 3)],
        r"holds no betas_sessionNN of .hdf5, .*betas_session01 first",
    ),
    "session 41": (
        lambda mini, truth: [
            session(mini, number).hardlink_to(session(mini, 1)) for number in range(4, 42)
        ],
        r"betas_session41.hdf5 is session 41, and NSD has 40",
    ),
    "no data": (
        lambda mini, truth: [mini.write_session(i, 0 * truth.betas[0]) for i in (1, 2, 3)],
        r"every voxel of the mask is 0 or NaN in every session",
    ),
}


@pytest.mark.parametrize("name", BETAS)
def test_betas(name: str, mini: Miniature, truth: Truth, tmp_path: Path) -> None:
    damage, match = BETAS[name]
    damage(mini, truth)
    refused(mini, tmp_path, match)


MAPS: dict[str, tuple[Damage, str]] = {
    "missing mask": (
        lambda mini, truth: (mini.regions_folder() / "nsdgeneral.nii.gz").unlink(),
        r"subj01/func1pt8mm/roi/nsdgeneral.nii.gz is missing, expected NIfTI",
    ),
    "web page": (
        lambda mini, truth: (mini.regions_folder() / "nsdgeneral.nii.gz").write_bytes(HTML),
        r"nsdgeneral.nii.gz is a web page",
    ),
    "truncated": (
        lambda mini, truth: cut(mini.regions_folder() / "nsdgeneral.nii.gz"),
        r"nsdgeneral.nii.gz can't be read as NIfTI \(.*Download it again",
    ),
    "another subject's mask": (
        lambda mini, truth: mini.write_region("nsdgeneral", truth.labels[:, 1:]),
        r"nsdgeneral.nii.gz has shape \(7, 5, 5\), and betas_session01.hdf5 has \(7, 6, 5\); the "
        r"map is another subject's",
    ),
    "another subject's atlas": (
        lambda mini, truth: mini.write_region("streams", truth.labels[:, 1:]),
        r"streams.nii.gz has shape \(7, 5, 5\)",
    ),
    "another subject's ncsnr": (
        lambda mini, truth: mini.write_ncsnr(truth.ncsnr[1:]),
        r"ncsnr.nii.gz has shape \(6, 6, 5\)",
    ),
    "a series as a mask": (
        lambda mini, truth: mini.write_region("nsdgeneral", truth.betas[0]),
        r"nsdgeneral.nii.gz has shape \(7, 6, 5, 750\), expected one number a voxel",
    ),
    "empty mask": (
        lambda mini, truth: mini.write_region("nsdgeneral", np.minimum(truth.labels, 0)),
        r"marks no voxel \(no value above 0\); name another mask",
    ),
    "names": (
        lambda mini, truth: (mini.labels_folder() / "prf-visualrois.mgz.ctab").write_text("V1v 1"),
        r"prf-visualrois.mgz.ctab, line 1: 'V1v 1' isn't a number and a name",
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps(name: str, mini: Miniature, truth: Truth, tmp_path: Path) -> None:
    damage, match = MAPS[name]
    damage(mini, truth)
    refused(mini, tmp_path, match)


def test_ncsnr_that_is_asked_for(mini: Miniature, tmp_path: Path) -> None:
    refused(mini, tmp_path, r"no voxel of the mask has an ncsnr of at least 2", min_ncsnr=2.0)
    (mini.betas_folder() / "ncsnr.nii.gz").unlink()
    refused(mini, tmp_path, r"ncsnr.nii.gz is missing, and min_ncsnr is 0.2", min_ncsnr=0.2)


def first_row(mini: Miniature) -> str:
    """Beginning of the first row of responses.tsv, up to 73KID."""
    return f"1\t1\t1\t1\t{mini.design.image_ids(1)[0] + 1}\t"


def shift_responses(mini: Miniature, by: int) -> None:
    design = Design(np.random.default_rng(8))
    design.subjectim = design.subjectim + by
    Miniature(mini.root, design).write_responses(3)


TABLES: dict[str, tuple[Damage, str]] = {
    "no design": (
        lambda mini, truth: mini.design_file.unlink(),
        r"nsd_expdesign.mat is missing",
    ),
    "design is a web page": (
        lambda mini, truth: mini.design_file.write_bytes(HTML),
        r"nsd_expdesign.mat is a web page",
    ),
    "design is truncated": (
        lambda mini, truth: cut(mini.design_file),
        r"nsd_expdesign.mat can't be read as a MATLAB 5 file \(.*Download it again",
    ),
    "design of another experiment": (
        lambda mini, truth: design_with(mini, masterordering=np.ones((1, 284))),
        r"masterordering has shape \(1, 284\), expected shape \(1, 30000\)",
    ),
    "design without images": (
        lambda mini, truth: design_with(mini, subjectim=None),
        r"subjectim is missing, expected shape \(8, 10000\)",
    ),
    "design counts from 0": (
        lambda mini, truth: design_with(mini, masterordering=mini.design.masterordering - 1),
        r"masterordering has values from 0 to 9999, expected 1 to 10000",
    ),
    "design with other shared images": (
        lambda mini, truth: design_with(mini, sharedix=mini.design.sharedix + 1),
        r"the first 1000 images of subject 1 in subjectim aren't those of sharedix",
    ),
    "responses show another image": (
        lambda mini, truth: rewrite(mini.responses_file(), first_row(mini), "1\t1\t1\t1\t7\t"),
        r"responses.tsv, row 0: trial 0 shows image 6, and nsd_expdesign.mat says 46002 \(1 of "
        r"2250 trials differ, both counted from 0\)",
    ),
    "responses count from 0": (
        lambda mini, truth: shift_responses(mini, -1),
        r"row 0: trial 0 shows image 46001.*All ids differ by 1",
    ),
    "responses end within a session": (
        lambda mini, truth: mini.responses_file().write_text(
            "".join(mini.responses_file().read_text().splitlines(True)[:-5])
        ),
        r"responses.tsv, row 2244: session 3 .*2245 rows\); expected whole sessions",
    ),
    "responses miss a row": (
        lambda mini, truth: rewrite(mini.responses_file(), "\n1\t1\t", "\n1\t2\t"),
        r"responses.tsv, row 0: session 2 where 750 trials a session give session 1",
    ),
    "responses without an image": (
        lambda mini, truth: rewrite(mini.responses_file(), first_row(mini), "1\t1\t1\t1\t\t"),
        r"responses.tsv, row 0: 73KID is empty",
    ),
    "responses are no table": (
        lambda mini, truth: mini.responses_file().write_text("SUBJECT\tSESSION\n1\t1\n"),
        r"responses.tsv can't be read as a table with whole numbers in SESSION, 73KID",
    ),
    "stim_info is cut": (
        lambda mini, truth: mini.stim_info_file.write_text(
            "".join(mini.stim_info_file.read_text().splitlines(True)[:-5])
        ),
        r"row 72995: expected the rows of nsdId 0 to 72999 in order \(72995 rows found\)",
    ),
    "stim_info has other shared images": (
        lambda mini, truth: rewrite(mini.stim_info_file, "False,True,", "False,False,"),
        r"row 2950: shared1000 is False, and nsd_expdesign.mat says True \(1 images differ\)",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name: str, mini: Miniature, truth: Truth, tmp_path: Path) -> None:
    damage, match = TABLES[name]
    damage(mini, truth)
    refused(mini, tmp_path, match)


def test_stimuli_planned_for_other_trials(mini: Miniature, tmp_path: Path) -> None:
    lines = mini.stim_info_file.read_text().splitlines(True)
    fields = [lines[1 + image_id].split(",") for image_id in (46002, 48617)]
    swapped = [
        ",".join([*own[:-24], *other[-24:]])
        for own, other in zip(fields, reversed(fields), strict=True)
    ]
    lines[1 + 46002], lines[1 + 48617] = swapped
    mini.stim_info_file.write_text("".join(lines))
    refused(mini, tmp_path, r"row 48617: trial 0 shows image 48617, .* says 46002 \(6 of 30000")
    lines[1 + 46002] = lines[1 + 46002].replace(",29,", ",30,", 1)
    mini.stim_info_file.write_text("".join(lines))
    refused(mini, tmp_path, r"subject1_rep0 to subject1_rep2 name 29999 trials, expected each of")


def test_a_folder_that_is_not_a_release(mini: Miniature, tmp_path: Path) -> None:
    match = r"func1pt8mm holds betas_fithrf_GLMdenoise_RR\); expected the release's own folders"
    refused(mini, tmp_path, match, betas="betas_fithrf")
    refused(mini, tmp_path, r"subj01 holds func1pt8mm\)", space="func1mm")
    refused(mini, tmp_path, r"ppdata holds subj01\)", subject=2)
    refused(mini, tmp_path, r"holds sessions up to 3, and 37 were asked for", sessions=37)
    refused(mini, tmp_path, r"holds sessions up to 3, and 0 were asked for", sessions=0)


def test_options_out_of_range(mini: Miniature, tmp_path: Path) -> None:
    for options, match in (
        ({"subject": 9}, r"subject is 9, expected 1 to 8"),
        ({"space": "MNI"}, r"space is 'MNI', expected one of func1pt8mm, "),
        ({"dtype": "int16"}, r"dtype is 'int16', expected 'float16' or 'float32'"),
    ):
        with pytest.raises(ValueError, match=match):
            import_nsd(mini.root, tmp_path / "s", **{"subject": 1, **options})


@pytest.mark.parametrize("library", ["h5py", "nibabel", "scipy.io"])
def test_a_library_that_is_absent(
    library: str, whole: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    name = re.escape(library.split(".")[0])
    with pytest.raises(MissingExtraError, match=rf"{name} is not installed.*voxseek\[data\]"):
        import_nsd(whole.root, tmp_path / "s", subject=1, n_validation=20)


def test_the_damage_above_is_all_that_is_wrong(whole: Miniature, tmp_path: Path) -> None:
    subject = import_nsd(whole.root, tmp_path / "s", subject=1, n_validation=20)
    assert subject.n_trials == 3 * N_TRIALS and subject.n_voxels < np.prod(GRID)
