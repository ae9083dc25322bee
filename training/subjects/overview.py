"""The picture of ``voxseek data info --plot``: what a subject folder holds, at a glance."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import ImageOps

from index_builder.embeddings.figure import Bars, Histogram, Panel, Thumbnails, draw_panels

from .noise_ceiling import estimate_ncsnr, noise_ceiling
from .subject import Subject

_N_PICTURES = 6
_PICTURE_PIXELS = 320
_MOST_REGIONS = 16


def draw_overview(subject: Subject, facts: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw splits, repeats, regions, noise ceiling and a few pictures into a PNG file.

    Parameters
    ----------
    subject : Subject
    facts : dict
        Of `describe.describe`.
    path : path

    Raises
    ------
    MissingExtraError
        If matplotlib is absent.
    """
    splits = {name: float(split["n_images"]) for name, split in facts["splits"].items()}
    panels: list[Panel] = [
        Bars("Images by split", x="images", values=splits),
        Bars(
            "Images by number of trials",
            x="images",
            values={f"{times} x": float(n) for times, n in facts["repeats"].items()},
        ),
    ]
    if facts["rois"]:
        largest = sorted(facts["rois"].items(), key=lambda roi: -roi[1])[:_MOST_REGIONS]
        title = "Voxels by region"
        if len(facts["rois"]) > _MOST_REGIONS:
            title = f"Voxels of the {_MOST_REGIONS} largest regions"
        panels.append(Bars(title, x="voxels", values={name: float(n) for name, n in largest}))
    panels += _ceilings(subject, facts)
    if subject.has_images:
        panels.append(_pictures(subject))
    draw_panels(
        panels,
        path,
        title=subject.name,
        subtitle=f"{subject.n_trials:,} trials of {subject.n_voxels:,} voxels, "
        f"{facts['n_sessions']} session{'s' if facts['n_sessions'] > 1 else ''}",
    )


def _ceilings(subject: Subject, facts: dict[str, Any]) -> list[Panel]:
    """Return histograms of the explainable variance: from repeats, and as the source says."""
    panels: list[Panel] = []
    if facts["noise_ceiling"] is not None:
        ceiling = 100 * noise_ceiling(estimate_ncsnr(subject), 1)
        panels.append(_histogram("Noise ceiling, from repeats", ceiling))
    table = subject.voxel_table()
    if table is not None and "ncsnr" in table.column_names:
        told = table["ncsnr"].to_numpy().astype(np.float64)
        panels.append(_histogram("Noise ceiling, by its source", 100 * noise_ceiling(told, 1)))
    return panels


def _histogram(title: str, percent: np.ndarray) -> Histogram:
    finite = percent[np.isfinite(percent)]
    median = float(np.median(finite)) if len(finite) else 0.0
    return Histogram(
        title,
        x="% of a single trial's variance",
        y="voxels",
        values=finite if len(finite) else np.zeros(1),
        marks={"median": median},
    )


def _pictures(subject: Subject) -> Thumbnails:
    """Return pictures evenly spread over the images of the training split, or of all."""
    image_ids = subject.image_ids("train" if len(subject.trial_rows("train")) else "all")
    places = np.unique(np.linspace(0, len(image_ids) - 1, _N_PICTURES).round().astype(int))
    size = (_PICTURE_PIXELS, _PICTURE_PIXELS)
    pictures = [
        np.asarray(ImageOps.fit(subject.open_image(image_id).convert("RGB"), size))
        for image_id in image_ids[places].tolist()
    ]
    return Thumbnails("Pictures that were seen", pictures=pictures)
