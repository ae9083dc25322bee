from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from .miniature import GRID, N_TRIALS, VISUAL_AREAS, Design, Miniature

N_SESSIONS = 3


@dataclass(frozen=True)
class Truth:
    """What the miniature's subject 1 is made of; axes as nibabel has them."""

    betas: NDArray[np.int16]  # (n_sessions, X, Y, Z, 750)
    labels: NDArray[np.int16]
    visual: NDArray[np.int16]
    ncsnr: NDArray[np.float32]


@pytest.fixture(scope="session")
def truth() -> Truth:
    rng = np.random.default_rng(7)
    betas = rng.integers(-3000, 3000, size=(N_SESSIONS, *GRID, N_TRIALS), dtype=np.int16)
    labels = rng.choice(np.array([-1, 0, 1], dtype=np.int16), size=GRID, p=[0.4, 0.2, 0.4])
    visual = np.where(labels == 1, rng.integers(0, 8, size=GRID), np.minimum(labels, 0))
    ncsnr = rng.uniform(0, 1, size=GRID).astype(np.float32)
    return Truth(betas, labels, visual.astype(np.int16), ncsnr)


@pytest.fixture(scope="session")
def design() -> Design:
    return Design(np.random.default_rng(8))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, truth: Truth, design: Design) -> Miniature:
    """A release that no test may change."""
    mini = Miniature(tmp_path_factory.mktemp("nsd"), design)
    mini.write_design()
    mini.write_stim_info()
    mini.write_stimuli()
    mini.write_responses(N_SESSIONS)
    mini.write_region("nsdgeneral", truth.labels)
    mini.write_region("prf-visualrois", truth.visual)
    mini.write_names("prf-visualrois", VISUAL_AREAS)
    mini.write_ncsnr(truth.ncsnr)
    for number, betas in enumerate(truth.betas, start=1):
        mini.write_session(number, betas)
    return mini


@pytest.fixture
def mini(whole: Miniature, tmp_path: Path) -> Miniature:
    """A copy to change."""
    root = tmp_path / "release"
    shutil.copytree(whole.root, root)
    return Miniature(root, whole.design)
