"""Writes one simulated subject of NSD in the layouts of MindEye's and of MindEye2's releases."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SESSION = 750
N_SESSIONS, N_VOXELS = 3, 6
N_IDS = 900  # of the picture store; subjects see some of them
# Which of the different rows of voxels stand in a sample, by their number: padding to three.
PADDING = {1: ["aaa"], 2: ["aab", "aba", "abb"], 3: ["abc"]}
MISSING = -np.ones(17)


@dataclass(frozen=True)
class Brain:
    """Trial by trial, in the order of presentation: what was shown, and the response."""

    image_ids: NDArray[np.int64]
    voxels: NDArray[np.float32]
    shared: NDArray[np.int64]

    @property
    def n_trials(self) -> int:
        return len(self.image_ids)

    @property
    def is_shared(self) -> NDArray[np.bool_]:
        return np.isin(self.image_ids, self.shared)

    def trials_of(self, sessions: Iterable[int]) -> NDArray[np.int64]:
        return np.flatnonzero(np.isin(np.arange(self.n_trials) // SESSION, list(sessions)))


def simulate_brain(dtype: type = np.float32, *, n_sessions: int = N_SESSIONS) -> Brain:
    """Three showings of each image in random order, cut off: some images have one or two."""
    rng = np.random.default_rng(73)
    images = rng.permutation(N_IDS)[: 270 * n_sessions]
    shown = rng.permutation(np.repeat(images, 3))[: n_sessions * SESSION]
    voxels = rng.standard_normal((len(shown), N_VOXELS)).astype(dtype)
    return Brain(shown, voxels, images[: len(images) // 10])


def color_of(image_id: int) -> tuple[int, int, int]:
    return image_id // 16, 16 * (image_id % 16), 7


def npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def png(image_id: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), color_of(image_id)).save(content, "png")
    return content.getvalue()


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, fields in samples:
            for field, content in fields.items():
                entry = tarfile.TarInfo(f"{name}.{field}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def replace_in_tar(path: Path, field: str, content: bytes | None, *, sample: int = 0) -> str:
    """Replace (or with None remove) a field of a sample, and return the sample's name."""
    with tarfile.open(path) as archive:
        members = [(entry.name, archive.extractfile(entry).read()) for entry in archive]  # type: ignore[union-attr]
    name = [name for name, _ in members if name.endswith(f".{field}")][sample]
    with tarfile.open(path, "w") as archive:
        for member, old in members:
            new = content if member == name else old
            if new is not None:
                entry = tarfile.TarInfo(member)
                entry.size = len(new)
                archive.addfile(entry, io.BytesIO(new))
    return name.removesuffix(f".{field}")


def write_mindeye(
    brain: Brain,
    folder: Path,
    *,
    subject: int = 1,
    first_trial: int = 0,
    sessions: Iterable[int] = range(N_SESSIONS),
) -> Path:
    """Tars of a sample an image, in shuffled order and under names that say nothing."""
    rng = np.random.default_rng(48)
    trials = brain.trials_of(sessions)
    samples = []
    for counter, image_id in enumerate(rng.permutation(np.unique(brain.image_ids[trials]))):
        mine = rng.permutation(trials[brain.image_ids[trials] == image_id])
        patterns = PADDING[len(mine)]
        rows = mine[["abc".index(letter) for letter in patterns[counter % len(patterns)]]]
        fields = {
            "png": png(int(image_id)),
            "nsdgeneral.npy": npy(brain.voxels[rows]),
            "wholebrain_3d.npy": b"of no account",
            "trial.npy": npy(rows + first_trial),
            "coco73k.npy": npy(np.array([image_id])),
            "num_uniques.npy": npy(np.array([len(mine)])),
        }
        samples.append((image_id, (f"sample{counter:09d}", fields)))
    test = [sample for image_id, sample in samples if image_id in brain.shared]
    others = [sample for image_id, sample in samples if image_id not in brain.shared]
    n_val = 30
    name = f"subj{subject:02d}"
    for number in range(3):
        write_tar(folder / f"train/train_{name}_{number}.tar", others[n_val:][number::3])
    write_tar(folder / f"val/val_{name}_0.tar", others[:n_val])
    for number in range(2):
        write_tar(folder / f"test/test_{name}_{number}.tar", test[number::2])
    return folder


def behavior_of(brain: Brain, trial: int, subject: int) -> NDArray[np.float64]:
    """The 17 columns; what isn't of the trial table is -1 or a plausible number."""
    image_id, is_shared = brain.image_ids[trial], brain.is_shared[trial]
    session, of_session = divmod(trial, SESSION)
    head = [image_id, subject, session + 1, of_session // 63 + 1, of_session % 63 + 1, trial]
    return np.array([*head, 735000.5, 0, 1, 812.5, -1, 0, 1, 2, 0, 1, is_shared], dtype=float)


def write_mindeye2(
    brain: Brain,
    folder: Path,
    *,
    subject: int = 1,
    sessions: Iterable[int] = range(N_SESSIONS),
) -> Path:
    """Betas, behavior and pictures; the old test lacks the last session."""
    name = f"subj{subject:02d}"
    behaviors = np.array([behavior_of(brain, trial, subject) for trial in range(brain.n_trials)])
    padded = np.vstack([np.tile(MISSING, (15, 1)), behaviors, np.tile(MISSING, (15, 1))])

    def sample(trial: int) -> dict[str, bytes]:
        others = np.flatnonzero(brain.image_ids == brain.image_ids[trial])
        olds = np.tile(MISSING, (3, 1))
        olds[: len(others) - 1] = behaviors[others[others != trial]]
        return {
            "behav.npy": npy(behaviors[trial : trial + 1]),
            "past_behav.npy": npy(padded[trial : trial + 15][::-1]),
            "future_behav.npy": npy(padded[trial + 16 : trial + 31]),
            "olds_behav.npy": npy(olds),
        }

    def write(path: Path, trials: NDArray[np.int64]) -> None:
        write_tar(
            folder / "wds" / name / path,
            ((f"sample{counter:09d}", sample(int(trial))) for counter, trial in enumerate(trials)),
        )

    for session in sessions:
        trials = brain.trials_of([session])
        write(Path(f"train/{session}.tar"), trials[~brain.is_shared[trials]])
    tested = brain.trials_of(sessions)
    write(Path("new_test/0.tar"), tested[brain.is_shared[tested]])
    old = brain.trials_of(list(sessions)[:-1])
    write(Path("test/0.tar"), old[brain.is_shared[old]])
    with h5py.File(folder / f"betas_all_{name}_fp32_renorm.hdf5", "w") as file:
        file.create_dataset("betas", data=brain.voxels)
    with h5py.File(folder / "coco_images_224_float16.hdf5", "w") as file:
        colors = np.array([color_of(image_id) for image_id in range(N_IDS)]) / 255
        pixels = np.broadcast_to(colors[:, :, None, None], (N_IDS, 3, 4, 4))
        file.create_dataset("images", data=pixels.astype(np.float16))
    return folder
