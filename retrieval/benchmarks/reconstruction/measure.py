"""The benchmark: reconstructions and their controls through every metric that can be had."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.reader import EmbeddingFolder
from training.samples import TargetTable
from training.subjects.subject import Subject

from ...errors import BenchmarkError
from ...searching.encoding import open_query_encoder
from ..bootstrap import N_RESAMPLES
from ..identification import FloatArray, IntArray
from .brain import fit_encoding, regions_of
from .networks import NETWORKS, Network
from .passes import Condition, Variants, embed_all, find_flat, score_features, score_pixels
from .pictures import (
    Pictures,
    mean_picture,
    open_folder,
    open_seen,
    require_same_images,
    training_pictures,
)
from .report import METRICS, ReconstructionReport, Scores

__all__ = ["Encoding", "Variants", "measure_reconstructions"]

RECONSTRUCTIONS = "reconstructions"
MEAN, SHUFFLED = "control: mean picture", "control: shuffled"
SEEN = "the seen pictures"


@dataclass(frozen=True)
class Encoding:
    """What the brain correlation needs.

    Parameters
    ----------
    targets : EmbeddingFolder
        Of all pictures of the subject.
    pretrained : str or None
        Weights of the encoder that made them; None: those that their space names.
    """

    targets: EmbeddingFolder
    pretrained: str | None = None


def measure_reconstructions(
    reconstructions: Path,
    seen: Path,
    *,
    split: str = "test",
    networks: Path | None = None,
    variants: Variants | None = None,
    encoding: Encoding | None = None,
    has_controls: bool = False,
    device: str = "cpu",
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> ReconstructionReport:
    """Measure how like the seen pictures the reconstructions are.

    Parameters
    ----------
    reconstructions : Path
        Folder of pictures named by image id, or with such a folder ``images`` in it.
    seen : Path
        A subject folder, or a folder of pictures named by image id.
    split : str
        Which images of the subject were reconstructed.
    networks : Path or None
        Folder of weight files, named as in `NETWORKS`. A metric without its file is absent.
    variants : Variants or None
        None: the defaults.
    encoding : Encoding or None
        For the brain correlation; None leaves it out.
    has_controls : bool
        Score wrong pictures too: for every image the same mean picture (of the subject's training
        images, or of the seen ones), and the reconstruction of another image.
    device : str
        A torch device, for the networks and the encoder.
    seed : int
        Of the bootstrap, the shuffling and the folds of the encoding model.
    n_resamples : int

    Raises
    ------
    BenchmarkError
        If a picture is missing, superfluous or there twice, or the brain correlation is asked for
        without a subject.
    PictureError, SubjectError
        If a picture can't be read.
    EncoderError
        If a weight file is not what its name says, or no encoder makes the encoding targets.
    MissingExtraError
        If scikit-image, torchvision, open_clip or himalaya is needed and absent.

    Notes
    -----
    The eight metrics are those of Ozcelik & VanRullen 2023 (arXiv:2303.05334); sizes and layers
    are those of the code of Scotti et al. 2023 (arXiv:2305.18274).
    """
    chosen = variants or Variants()
    made = open_folder(reconstructions)
    shown, subject = open_seen(seen, split)
    if encoding is not None and subject is None:
        raise BenchmarkError(
            f"{seen} is a folder of pictures, and a brain correlation needs the responses to them. "
            f"Give the subject folder, or leave out --encoding-targets."
        )
    require_same_images(made, shown)
    own = np.arange(len(shown))
    conditions = [Condition(RECONSTRUCTIONS, made, own)]
    if has_controls:
        mean = mean_picture(training_pictures(subject) or shown, chosen.resize)
        conditions.append(Condition(MEAN, mean, np.zeros_like(own)))
        conditions.append(Condition(SHUFFLED, made, strangers(len(own), seed)))
    sides = {"seen": shown, "reconstructions": made}
    flat = {name: find_flat(side, chosen.resize) for name, side in sides.items()}
    metrics = {c.name: score_pixels(shown, c, chosen) for c in conditions}
    absent: dict[str, str] = {}
    weights: dict[str, Any] = {}
    for network in NETWORKS:
        file = network.find(networks) if networks is not None else None
        if file is None:
            absent |= dict.fromkeys(network.metrics, _why_absent(network, networks))
            continue
        weights[network.title] = {"file": file.name, "sha256": sha256_file(file)}
        for name, metric, values in score_features(
            network, file, shown, conditions, chosen, device
        ):
            metrics[name][metric] = values
    brain: dict[str, dict[str, FloatArray]] = {}
    if encoding is not None and subject is not None:
        brain = _brain_correlations(subject, encoding, conditions, shown, split, device, seed)
        metrics[SEEN] = {}
    return ReconstructionReport(
        image_ids=shown.image_ids,
        scores=tuple(
            Scores(
                name,
                {metric.name: of[metric.name] for metric in METRICS if metric.name in of},
                brain.get(name, {}),
            )
            for name, of in metrics.items()
        ),
        absent=absent,
        flat={side: image_ids for side, image_ids in flat.items() if image_ids},
        region_sizes={name: int(mask.sum()) for name, mask in regions_of(subject).items()}
        if brain and subject is not None
        else {},
        options=chosen.to_dict(),
        inputs={
            **{name: _describe(side) for name, side in sides.items()},
            "networks": weights,
            **({"encoding_targets": _describe_targets(encoding.targets)} if encoding else {}),
        },
        seed=seed,
        n_resamples=n_resamples,
    )


def strangers(n_images: int, seed: int) -> IntArray:
    """Return for each image another one, each once: a random cycle through all of them."""
    order = np.random.default_rng(seed).permutation(n_images)
    others = np.empty(n_images, dtype=np.int64)
    others[order] = np.roll(order, 1)
    return others


def _brain_correlations(
    subject: Subject,
    encoding: Encoding,
    conditions: list[Condition],
    shown: Pictures,
    split: str,
    device: str,
    seed: int,
) -> dict[str, dict[str, FloatArray]]:
    """Return brain correlations by condition and region; also of the seen pictures themselves."""
    targets = encoding.targets
    encoder = open_query_encoder(targets.space, pretrained=encoding.pretrained, device=device)
    model = fit_encoding(subject, targets, seed=seed)
    pictures = {id(condition.pictures): condition.pictures for condition in conditions}
    embedded = {key: embed_all(side, encoder.encode_images) for key, side in pictures.items()}
    features = {c.name: embedded[id(c.pictures)][c.rows] for c in conditions}
    own = TargetTable(targets, shown.image_ids, memory_bytes=0).read(np.arange(len(shown)))
    features[SEEN] = own.reshape(len(shown), -1)
    return {
        name: model.correlations(rows, shown.image_ids, split) for name, rows in features.items()
    }


def _why_absent(network: Network, folder: Path | None) -> str:
    expected = " or ".join(network.files)
    if folder is None:
        return f"no folder of weights was given; it takes {expected}"
    return f"{folder} has no {expected}, the weights of {network.title}"


def _describe(pictures: Pictures) -> dict[str, Any]:
    return {"name": pictures.name, "fingerprint": pictures.fingerprint}


def _describe_targets(targets: EmbeddingFolder) -> dict[str, Any]:
    return {"fingerprint": targets.fingerprint, "space": targets.space.to_dict()}
