"""Miyawaki 2008: 797 voxels of V1 that see ten figures of 10 x 10 patches, real and small.

The file ``V1_mean_figure.mat`` (KamitaniLab/VBCCA, ``sample/data``, BSD-3) holds ``R2``, (797, 80)
responses, and ``I2``, (100, 80) patches, 0 or 1: five shapes and the letters n, e, u, r, o, each
shown eight times (Miyawaki et al. 2008, doi:10.1016/j.neuron.2008.11.004).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.errors import MissingExtraError

from ..errors import SourceError
from .images import IMAGE_SCHEMA
from .subject import Subject, write_subject
from .trials import build_trials

FILE_NAME = "V1_mean_figure.mat"
SIDE = 10  # patches along a side
_PIXELS_A_PATCH = 16
# Lit patches of each figure, packed row by row into bits.
_CAPTIONS = {
    "000001e0401004010000000000": "letter r",
    "0000000078120481e000000000": "small frame",
    "0000012048120481e000000000": "letter u",
    "000001e0481204812000000000": "letter n",
    "000001e048120481e000000000": "letter o",
    "000001e0481e0401e000000000": "letter e",
    "00000000781e0781e000000000": "square",
    "000300c0307f9fe0c0300c0000": "plus",
    "00186738fc1e0783f1ce618000": "X",
    "001fe7f98661986619fe7f8000": "large frame",
}


def import_miyawaki(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], *, test_figure: int
) -> Subject:
    """Make a subject folder in which one figure is the test and the other nine train.

    Parameters
    ----------
    source : path
        ``V1_mean_figure.mat``, or the folder that holds it.
    folder : path
        The subject folder to write.
    test_figure : int in 0..9
        image_id of the figure that is left out of training, by number of lit patches.

    Returns
    -------
    subject : Subject
        float32 voxels, one region V1, all trials in session 0, because the file doesn't say which
        run or session a trial belongs to. There is no validation split: nine figures are too few
        to lose one. Score by leaving out each figure in turn.

    Raises
    ------
    MissingExtraError
        If scipy is absent.
    SourceError
        If the file is missing, or does not hold the arrays described above.
    """
    path = Path(source)
    if path.is_dir():
        path = path / FILE_NAME
    responses, patches = _read(path)
    figures, image_ids = identify_figures(patches)
    if not 0 <= test_figure < len(figures):
        raise ValueError(f"test_figure is {test_figure}, expected 0 to {len(figures) - 1}.")
    with tempfile.TemporaryDirectory() as scratch:
        paths = [str(_draw(figure, Path(scratch) / f"{i}.png")) for i, figure in enumerate(figures)]
        return write_subject(
            folder,
            name=f"miyawaki2008-figure{test_figure}",
            voxels=responses.T.astype(np.float32),
            trials=build_trials(
                image_ids,
                np.zeros(len(image_ids), dtype=np.int64),
                {i: "test" if i == test_figure else "train" for i in range(len(figures))},
            ),
            rois={"V1": np.ones(len(responses), dtype=bool)},
            images=pa.table(
                {
                    "image_id": range(len(figures)),
                    "path": paths,
                    "caption": [_CAPTIONS.get(_code(figure)) for figure in figures],
                },
                schema=IMAGE_SCHEMA,
            ),
            command="voxseek data import miyawaki",
            details={"source": "Miyawaki et al. 2008", "test_figure": test_figure},
        )


def identify_figures(
    patches: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Find the distinct figures and which one each trial shows.

    Parameters
    ----------
    patches : uint8 array of shape (SIDE * SIDE, n_trials), 0 or 1
        Column by column of the figure, as MATLAB stores it: read row by row, the letters n and u
        lie on their sides.

    Returns
    -------
    figures : uint8 array of shape (n_figures, SIDE, SIDE)
        Upright, by increasing number of lit patches.
    image_ids : int64 array of shape (n_trials,)
        Rows of ``figures``.
    """
    upright = patches.T.reshape(-1, SIDE, SIDE).transpose(0, 2, 1).reshape(-1, SIDE * SIDE)
    keyed = np.column_stack([upright.sum(axis=1, dtype=np.int64), upright])
    unique, image_ids = np.unique(keyed, axis=0, return_inverse=True)
    figures = unique[:, 1:].reshape(-1, SIDE, SIDE).astype(np.uint8)
    return figures, image_ids.reshape(-1).astype(np.int64)


def _code(figure: NDArray[np.uint8]) -> str:
    return np.packbits(figure).tobytes().hex()


def _draw(figure: NDArray[np.uint8], path: Path) -> Path:
    enlarged = np.kron(figure * np.uint8(255), np.ones((_PIXELS_A_PATCH,) * 2, dtype=np.uint8))
    Image.fromarray(enlarged).save(path)
    return path


def _read(path: Path) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise MissingExtraError("scipy", "train", "reading MATLAB files") from error
    try:
        content = loadmat(path, variable_names=["R2", "I2"])
    except (OSError, ValueError, NotImplementedError, MatReadError) as error:
        raise SourceError(
            f"{path} can't be read as a MATLAB 5 file ({error}); expected {FILE_NAME}, with R2 "
            f"(voxels x trials) and I2 ({SIDE * SIDE} x trials)."
        ) from error
    found = {name: value.shape for name, value in content.items() if not name.startswith("__")}
    responses, patches = content.get("R2"), content.get("I2")
    if (
        responses is None
        or patches is None
        or responses.ndim != 2
        or patches.shape != (SIDE * SIDE, responses.shape[1])
        or not np.isin(patches, (0, 1)).all()
    ):
        raise SourceError(
            f"{path} holds {found}, expected R2 (voxels x trials) and I2 ({SIDE * SIDE} x trials) "
            f"with patches of 0 and 1; download {FILE_NAME} again."
        )
    return responses, patches.astype(np.uint8)
