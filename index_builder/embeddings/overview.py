"""What `voxseek embeddings info` shows: lines for people, and one picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .description import ALIKE_FROM, Cloud
from .figure import Histogram, Line, Panel, Thumbnails, draw_panels
from .reader import EmbeddingFolder
from .space import EmbeddingSpace

_PICTURE_COLUMN = "image_path"
_N_PICTURES = 6
_MOST_TRIED = 200
_PICTURE_PIXELS = 320
_SWAPPED = {"width": "WIDTH", "height": "HEIGHT"}


def overview_lines(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what `description.describe_folder` and a ``sample`` say, a line each.

    Parameters
    ----------
    facts : dict
        The former, and the latter's `Cloud.to_dict` as ``sample``.
    """
    yield f"{facts['n_rows']:,} rows of {EmbeddingSpace.from_dict(facts['space'])}"
    yield (
        f"{facts['n_parts']} part(s), {facts['dtype']}, "
        f"{facts['vector_bytes'] / 1e9:,.3g} GB of vectors, fingerprint {facts['fingerprint'][:16]}"
    )
    width = max((len(name) for name in facts["columns"]), default=0)
    for name, column in facts["columns"].items():
        nulls = column["n_null"]
        told = "nulls unknown" if nulls is None else f"{nulls:,} null" if nulls else ""
        yield f"  {name:<{width}}  {column['type']:<8}  {told}".rstrip()
    sample = facts["sample"]
    yield f"of {sample['n_rows']:,} sampled rows:"
    flaws = [
        f"{sample[name]:,} {what}"
        for name, what in (
            ("n_not_finite", "with NaN or infinity"),
            ("n_zero", "all zeros"),
            ("n_identical", "the same as an earlier one"),
            ("n_alike", f"with another at a cosine of {ALIKE_FROM} or more"),
        )
        if sample[name]
    ]
    yield f"  flaws     {', '.join(flaws) or 'none'}"
    for label, name, shown in (
        ("norm", "norm", ("min", "median", "max")),
        ("pairs", "cosine_of_pairs", ("mean", "p5", "p95")),
        ("to mean", "cosine_with_mean", ("min", "median", "max")),
    ):
        if sample[name]:
            numbers = ", ".join(f"{each} {sample[name][each]:.4g}" for each in shown)
            yield f"  {label:<8}  {numbers}{'' if name == 'norm' else ' (cosines)'}"
    if sample["spectrum"]:
        dimensions = sample["spectrum"]["dimensions"]
        shares = ", ".join(f"{n} hold {float(share):.0%}" for share, n in dimensions.items())
        ratio = sample["spectrum"]["participation_ratio"]
        yield f"  variance  {shares} of it; participation ratio {ratio:.1f}"


def notes_on(folder: EmbeddingFolder) -> Iterator[str]:
    """Yield what the names of a folder's columns should make one think of."""
    stored = folder.parts[0].columns.stored_names if folder.parts[0].columns else {}
    if any(stored.get(name) == old for name, old in _SWAPPED.items()):
        yield (
            "width and height were WIDTH and HEIGHT: LAION's first tables have the two exchanged, "
            "its joined ones don't; compare some pictures before you filter by size"
        )


def find_pictures(
    folder: EmbeddingFolder, rows: np.ndarray, images: str | os.PathLike[str] | None
) -> list[np.ndarray]:
    """Return the pictures of a few rows that have one, small: up to 6 of (h, w, 3), uint8.

    Parameters
    ----------
    folder : EmbeddingFolder
    rows : ndarray of shape (n,), int64
    images : path or None
        Where a relative ``image_path`` begins; None: in the embedding folder.
    """
    pictures: list[np.ndarray] = []
    if _PICTURE_COLUMN not in folder.columns:
        return pictures
    root = Path(images or folder.path)
    drawn = np.random.default_rng(0).permutation(rows)[:_MOST_TRIED]
    tried = folder.metadata(drawn, [_PICTURE_COLUMN])[_PICTURE_COLUMN].to_pylist()
    for path in (root / str(each) for each in tried if each is not None):
        if len(pictures) < _N_PICTURES and path.is_file():
            try:
                with Image.open(path) as picture:
                    small = ImageOps.fit(picture.convert("RGB"), (_PICTURE_PIXELS, _PICTURE_PIXELS))
            except (OSError, Image.DecompressionBombError):
                continue
            pictures.append(np.asarray(small))
    return pictures


def draw_overview(
    facts: dict[str, Any], cloud: Cloud, pictures: list[np.ndarray], path: str | os.PathLike[str]
) -> None:
    """Draw spectrum, cosines and norms of a sample, and some pictures, into a PNG file."""
    panels: list[Panel] = []
    spectrum = facts["sample"]["spectrum"]
    if spectrum:
        marks = {
            f"{float(share):.0%} in {n}": (float(n), float(cloud.explained[n - 1]))
            for share, n in spectrum["dimensions"].items()
        }
        panels.append(
            Line(
                "Variance explained",
                f"principal components; participation ratio {spectrum['participation_ratio']:.1f}",
                x_values=np.arange(1, len(cloud.variances) + 1),
                y_values=cloud.explained,
                marks=marks,
                is_log_x=True,
            )
        )
    if len(cloud.pair_cosines):
        panels.append(
            Histogram(
                "Random pairs",
                "cosine",
                "pairs",
                values=cloud.pair_cosines,
                marks={"mean": cloud.mean_pair_cosine},
            )
        )
    if len(cloud.norms):
        panels.append(
            Histogram(
                "Norms",
                "norm",
                "rows",
                values=cloud.norms,
                marks={"median": float(np.median(cloud.norms))},
            )
        )
    if pictures:
        panels.append(Thumbnails("Some of its pictures", pictures=pictures))
    space = EmbeddingSpace.from_dict(facts["space"])
    draw_panels(
        panels,
        path,
        title=os.path.basename(os.path.abspath(facts["path"])),
        subtitle=f"{facts['n_rows']:,} rows of {space}; {cloud.n_rows:,} of them sampled",
    )
