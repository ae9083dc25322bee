"""A miniature NSD release: the public layout, names, types and tables, and a tiny brain.

Tables have their true size (40 sessions, 73,000 images). The values that are known of the published
design stand in it, so that it can't be told from the published one by them.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray
from scipy.io import savemat

GRID = (7, 6, 5)
N_VERTICES = (40, 30)
N_TRIALS = 750
BETAS = "betas_fithrf_GLMdenoise_RR"
SHARED = (2950, 2990, 3049, 3077, 3146)
SHOWN = {0: 46002, 28: 48617, 35: 44980, 44: 32625, 55: 53052, 56: 4930, 90: 32625}
SHOWN |= {120: 6431, 126: 70335, 132: 36576}
RESPONSES = (
    *("SUBJECT", "SESSION", "RUN", "TRIAL", "73KID", "10KID", "TIME", "ISOLD", "ISCORRECT", "RT"),
    *("CHANGEMIND", "MEMORYRECENT", "MEMORYFIRST", "ISOLDCURRENT", "ISCORRECTCURRENT"),
    *("TOTAL1", "TOTAL2", "BUTTON", "MISSINGDATA"),
)
VISUAL_AREAS = ("Unknown", "V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4")


class Design:
    """``masterordering``, ``subjectim`` and ``sharedix`` as published: counted from 1."""

    def __init__(self, rng: np.random.Generator) -> None:
        ours = list(dict.fromkeys(SHOWN.values()))
        free = np.setdiff1d(np.arange(SHARED[-1] + 1, 72_949), ours)
        shared = np.concatenate([SHARED, rng.choice(free, 1000 - len(SHARED), replace=False)])
        rest = rng.permutation(np.setdiff1d(np.arange(73_000), np.concatenate([shared, ours])))
        own = np.concatenate([ours, rest]).reshape(8, 9000)
        self.subjectim = np.concatenate([np.tile(rng.permutation(shared), (8, 1)), own], axis=1) + 1
        order = rng.permutation(np.repeat(np.arange(10_000), 3))
        for trial, image_id in SHOWN.items():
            other = np.flatnonzero(order == 1000 + ours.index(image_id))[-1]
            order[[trial, other]] = order[[other, trial]]
        self.masterordering = order[None] + 1
        self.sharedix = np.sort(shared)[None] + 1

    def image_ids(self, subject: int) -> NDArray[np.int64]:
        """The published formula, counted from 0."""
        return np.array([self.subjectim[subject - 1, i - 1] - 1 for i in self.masterordering[0]])


class Miniature:
    """Writes the files of a release below ``root``, and knows what is in them."""

    def __init__(self, root: Path, design: Design) -> None:
        self.root = root
        self.design = design

    def betas_folder(self, subject: int = 1, space: str = "func1pt8mm") -> Path:
        return self.root / f"nsddata_betas/ppdata/subj{subject:02d}/{space}/{BETAS}"

    def regions_folder(self, subject: int = 1) -> Path:
        return self.root / f"nsddata/ppdata/subj{subject:02d}/func1pt8mm/roi"

    def labels_folder(self, owner: str = "subj01") -> Path:
        return self.root / f"nsddata/freesurfer/{owner}/label"

    @property
    def design_file(self) -> Path:
        return self.root / "nsddata/experiments/nsd/nsd_expdesign.mat"

    @property
    def stim_info_file(self) -> Path:
        return self.root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"

    @property
    def stimuli_file(self) -> Path:
        return self.root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"

    def responses_file(self, subject: int = 1) -> Path:
        return self.root / f"nsddata/ppdata/subj{subject:02d}/behav/responses.tsv"

    def write_design(self) -> None:
        self.design_file.parent.mkdir(parents=True, exist_ok=True)
        savemat(
            self.design_file,
            {
                "masterordering": self.design.masterordering.astype(np.float64),
                "basiccnt": np.zeros((3, 40)),
                "sharedix": self.design.sharedix.astype(np.float64),
                "stimpattern": np.zeros((40, 12, 75)),
                "subjectim": self.design.subjectim.astype(np.float64),
            },
        )

    def write_stim_info(self) -> None:
        n = 73_000
        columns: dict[str, Any] = {
            "": np.arange(n),
            "cocoId": np.arange(n) * 7 + 9,
            "cocoSplit": np.repeat("train2017", n),
            "cropBox": np.repeat("(0, 0, 0.1, 0.1)", n),
            "loss": np.zeros(n),
            "nsdId": np.arange(n),
            "flagged": np.zeros(n, dtype=bool),
            "BOLD5000": np.zeros(n, dtype=bool),
            "shared1000": np.isin(np.arange(n), self.design.sharedix - 1),
        }
        planned = np.zeros((8, 3, n), dtype=np.int64)
        for subject in range(1, 9):
            images = self.design.image_ids(subject)
            order = np.argsort(images, kind="stable").reshape(-1, 3)
            planned[subject - 1][:, images[order[:, 0]]] = order.T + 1
            columns[f"subject{subject}"] = (planned[subject - 1, 0] > 0).astype(int)
        for subject in range(8):
            for repeat in range(3):
                columns[f"subject{subject + 1}_rep{repeat}"] = planned[subject, repeat]
        self.stim_info_file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.stim_info_file, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))

    def write_responses(self, n_sessions: int, subject: int = 1) -> None:
        n = n_sessions * N_TRIALS
        in_session = np.arange(n) % N_TRIALS
        columns: dict[str, Any] = dict.fromkeys(RESPONSES, np.ones(n, dtype=np.int64))
        columns |= {
            "SUBJECT": np.full(n, subject),
            "SESSION": np.arange(n) // N_TRIALS + 1,
            "RUN": in_session // 63 + 1,
            "TRIAL": in_session % 63 + 1,
            "73KID": self.design.image_ids(subject)[:n] + 1,
            "10KID": self.design.masterordering[0, :n],
            "CHANGEMIND": np.repeat("NaN", n),
        }
        path = self.responses_file(subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        options = pa_csv.WriteOptions(delimiter="\t", quoting_style="none", quoting_header="none")
        pa_csv.write_csv(pa.table(columns), path, options)

    def write_stimuli(self) -> None:
        """Every picture has one color: the remainders of its id."""
        self.stimuli_file.parent.mkdir(parents=True, exist_ok=True)
        colors = np.arange(73_000)[:, None] % np.array([251, 241, 239])
        with h5py.File(self.stimuli_file, "w") as file:
            file["imgBrick"] = np.broadcast_to(
                colors[:, None, None].astype(np.uint8), (73_000, 2, 2, 3)
            )

    def write_region(self, atlas: str, labels: NDArray[Any], subject: int = 1) -> None:
        folder = self.regions_folder(subject)
        folder.mkdir(parents=True, exist_ok=True)
        write_nifti(folder / f"{atlas}.nii.gz", labels.astype(np.int16))

    def write_names(self, atlas: str, names: tuple[str, ...], owner: str = "subj01") -> None:
        folder = self.labels_folder(owner)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{i} {name} 10 20 30 0\n" for i, name in enumerate(names)]
        (folder / f"{atlas}.mgz.ctab").write_text("".join(lines))

    def write_ncsnr(self, ncsnr: NDArray[np.float32], subject: int = 1) -> None:
        folder = self.betas_folder(subject)
        folder.mkdir(parents=True, exist_ok=True)
        write_nifti(folder / "ncsnr.nii.gz", ncsnr)

    def write_session(
        self, number: int, betas: NDArray[np.int16], form: str = ".hdf5", subject: int = 1
    ) -> Path:
        """``betas``: (X, Y, Z, 750)."""
        folder = self.betas_folder(subject)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"betas_session{number:02d}{form}"
        if form in (".nii", ".nii.gz"):
            write_nifti(path, betas)
        elif form == ".mat":  # version 7.3: HDF5 behind 512 bytes, compressed, planes as chunks
            with h5py.File(path, "w", userblock_size=512) as file:
                chunks = (1, *betas.shape[2::-1])
                file.create_dataset("betas", data=betas.T, chunks=chunks, compression=3)
        else:
            write_betas_hdf5(path, betas)
        return path


def write_betas_hdf5(path: Path, betas: NDArray[Any]) -> None:
    """As MATLAB writes chunks of [1 1 1 750]: axes reversed, one voxel a chunk."""
    turned = betas.T
    with h5py.File(path, "w") as file:
        chunks = (turned.shape[0], *(1,) * (turned.ndim - 1))
        file.create_dataset("betas", data=turned, chunks=chunks)


def write_nifti(path: Path, values: NDArray[Any]) -> None:
    nibabel.Nifti1Image(values, np.diag([1.8, 1.8, 1.8, 1])).to_filename(path)


def write_surface(path: Path, values: NDArray[Any]) -> None:
    """``values``: (n_vertices,) or (n_vertices, n_trials)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(values), 1, 1, *values.shape[1:])
    nibabel.MGHImage(values.reshape(shape), np.eye(4)).to_filename(path)
