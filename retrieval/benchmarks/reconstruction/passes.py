"""Passes over the pictures, a few at a time: one for pixels, one a network, one for the brain."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.progress import track

from ..identification import FloatArray, IntArray
from .correlation import FeatureRows, correlate_features, is_flat
from .networks import Features, Network, open_network
from .pictures import Pictures
from .pixels import SIDE, SsimChannels, pixel_correlations, structural_similarities
from .report import METRICS
from .resizing import Pixels, Resize, resize_square
from .two_way import TwoWay, two_way_rates

_BATCH = 16
_RATES = {metric.name for metric in METRICS if metric.is_rate}
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Variants:
    """Choices in which publications differ; the defaults are MindEye's code and pinned libraries.

    Parameters
    ----------
    ssim_channels : {"gray", "color", "columns"}
        See `structural_similarities`.
    two_way : {"reconstruction", "image", "pairs"}
        See `two_way_rates`.
    resize : {"plain", "antialiased"}
        See `resize_square`; torchvision's default for tensors was plain before version 0.17.
    """

    ssim_channels: SsimChannels = "gray"
    two_way: TwoWay = "reconstruction"
    resize: Resize = "plain"

    def to_dict(self) -> dict[str, str]:
        """Return the choices under their names."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Condition:
    """Pictures to score: row ``rows[i]`` of ``pictures`` stands for the seen picture ``i``.

    Parameters
    ----------
    name : str
    pictures : Pictures
    rows : int64 array of shape (n_images,)
    """

    name: str
    pictures: Pictures
    rows: IntArray


def find_flat(pictures: Pictures, resize: Resize) -> list[int]:
    """Return the images whose picture is one number throughout, which correlates with nothing."""
    flags = _by_batches(
        len(pictures),
        lambda rows: is_flat(pictures.read(rows, resize).reshape(len(rows), -1)),
        label=f"flat pictures, {pictures.name}",
    )
    return [int(image_id) for image_id in pictures.image_ids[np.concatenate(flags)]]


def score_pixels(
    shown: Pictures, condition: Condition, variants: Variants
) -> dict[str, FloatArray]:
    """Return pixel correlation and structural similarity of each image, by metric."""

    def score(rows: IntArray) -> FloatArray:
        seen, made = (
            resize_square(pictures.read(chosen, variants.resize), SIDE, variants.resize)
            for pictures, chosen in (
                (shown, rows),
                (condition.pictures, condition.rows[rows]),
            )
        )
        return np.stack(
            [
                pixel_correlations(seen, made),
                structural_similarities(seen, made, variants.ssim_channels),
            ]
        )

    scores = _by_batches(len(shown), score, label=f"pixels, {condition.name}")
    pixcorr, ssim = np.concatenate(scores, axis=1)
    return {"pixcorr": pixcorr, "ssim": ssim}


def score_features(
    network: Network,
    file: Path,
    shown: Pictures,
    conditions: Sequence[Condition],
    variants: Variants,
    device: str,
) -> Iterator[tuple[str, str, FloatArray]]:
    """Yield condition, metric and the value of each image, by one network.

    Features lie in temporary files while they are compared: 0.7 MB a picture for AlexNet's second
    layer.
    """
    run = open_network(network, file, device)

    def features(canvases: Pixels) -> Features:
        return run(network.prepare(canvases, variants.resize))

    with tempfile.TemporaryDirectory(prefix="voxseek-features-") as folder:
        # The shuffled control has the same pictures as the reconstructions.
        sides = {id(side): side for side in (shown, *(c.pictures for c in conditions))}
        kept = {
            key: _extract(
                side, features, Path(folder) / str(number), variants.resize, label=network.title
            )
            for number, (key, side) in enumerate(sides.items())
        }
        for condition in conditions:
            for metric in network.metrics:
                seen, made = kept[id(shown)][metric], kept[id(condition.pictures)][metric]
                if metric in _RATES:
                    values = two_way_rates(seen, made, condition.rows, variants.two_way)
                else:
                    values = 1 - correlate_features(seen, made, condition.rows)
                yield condition.name, metric, values


def _extract(
    pictures: Pictures,
    features: Callable[[Pixels], Features],
    folder: Path,
    resize: Resize,
    *,
    label: str,
) -> dict[str, FeatureRows]:
    """Write the features of all pictures, a file a metric."""
    folder.mkdir()
    kept: dict[str, FeatureRows] = {}

    def keep(rows: IntArray) -> None:
        for metric, found in features(pictures.read(rows, resize)).items():
            if metric not in kept:
                kept[metric] = FeatureRows(folder / metric, len(pictures), found.shape[1])
            kept[metric].write(int(rows[0]), found)

    _by_batches(len(pictures), keep, label=f"{label}, {pictures.name}")
    return kept


def embed_all(
    pictures: Pictures, encode: Callable[[Sequence[Image.Image]], NDArray[Any]]
) -> NDArray[np.float32]:
    """Return the embeddings of all pictures, (n, width), as `voxseek embed` makes them."""
    embedded = _by_batches(
        len(pictures),
        lambda rows: encode([pictures.open_picture(i) for i in pictures.image_ids[rows].tolist()]),
        label=f"embed, {pictures.name}",
    )
    return np.concatenate(embedded)


def _by_batches(
    n_images: int, compute: Callable[[IntArray], _Found], *, label: str
) -> list[_Found]:
    """Return what ``compute`` makes of the rows of each batch."""
    starts = track(
        range(0, n_images, _BATCH), label=label, total=-(-n_images // _BATCH), unit="block"
    )
    return [compute(np.arange(start, min(start + _BATCH, n_images))) for start in starts]
