"""What a subject folder holds, in one dict: the answer of ``voxseek data info``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .noise_ceiling import estimate_ncsnr, noise_ceiling
from .subject import MANIFEST, Subject
from .trials import SPLITS


def describe(subject: Subject) -> dict[str, Any]:
    """Count what a subject folder holds and estimate its noise ceiling.

    Reads the voxels twice, in bounded memory.

    Returns
    -------
    description : dict
        JSON-serialisable. ``splits`` gives trials and images by split, ``repeats`` the number of
        images by number of presentations, ``noise_ceiling`` the median over voxels of the share
        of variance that could be explained (None where no image is repeated), ``disk_bytes`` the
        files and the manifest.
    """
    image_ids = subject.trials["image_id"].to_numpy()
    presentations = np.unique(image_ids, return_counts=True)[1]
    n_presentations, n_images = np.unique(presentations, return_counts=True)
    voxels = subject.voxels
    return {
        "name": subject.name,
        "path": str(subject.path),
        "is_simulated": subject.is_simulated,
        "n_trials": subject.n_trials,
        "n_voxels": subject.n_voxels,
        "n_images": len(presentations),
        "n_sessions": len(np.unique(subject.trials["session"].to_numpy())),
        "dtype": str(voxels.dtype),
        "splits": {
            split: {
                "n_trials": len(subject.trial_rows(split)),
                "n_images": len(subject.image_ids(split)),
            }
            for split in SPLITS
        },
        "repeats": {
            str(times): int(count) for times, count in zip(n_presentations, n_images, strict=True)
        },
        "rois": {name: int(mask.sum()) for name, mask in subject.rois.items()},
        "has_images": subject.has_images,
        "n_captions": len(subject.captions()),
        "noise_ceiling": _noise_ceiling(subject, int(presentations.max())),
        "disk_bytes": sum(file["bytes"] for file in subject.manifest["files"].values())
        + (subject.path / MANIFEST).stat().st_size,
        "details": subject.details,
    }


def _noise_ceiling(subject: Subject, n_repeats: int) -> dict[str, float] | None:
    if n_repeats < 2:
        return None
    ncsnr = estimate_ncsnr(subject)
    return {
        "n_repeats": n_repeats,
        "median_ncsnr": float(np.median(ncsnr)),
        "median_single_trial": float(np.median(noise_ceiling(ncsnr, 1))),
        "median_averaged": float(np.median(noise_ceiling(ncsnr, n_repeats))),
    }
