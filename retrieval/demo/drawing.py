"""The end of the demo: a decoder is trained, and draws what the simulated brain saw.

targets ─ decoder train ─> decoder ─┐
run, subject ───────────────────────┴─ reconstruct ─> reconstructions, contact sheet
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.reader import EmbeddingFolder
from training.decoder.artefact import TrainedDecoder
from training.decoder.pictures import gather_pictures, square_bytes
from training.decoder.recipe import load_decoder_recipe
from training.decoder.train import train_decoder
from training.encoders.contract import ImageEncoder
from training.subjects.subject import Subject

from ..benchmarks.reconstruction.correlation import FeatureRows
from ..benchmarks.reconstruction.measure import strangers
from ..benchmarks.reconstruction.report import mean_estimates
from ..benchmarks.reconstruction.two_way import two_way_rates
from ..benchmarks.report import Estimate
from ..benchmarks.table import percent
from ..images.sources import PictureSources
from ..reconstruction.artefact import SHEET_FILE, Reconstruction
from ..reconstruction.flow import FlowDecoder, measure_gap
from ..reconstruction.picking import Picker
from ..reconstruction.reconstruct import Makers, reconstruct
from ..reconstruction.retrieved import RetrievedPictures
from ..searching.engine import SearchEngine
from ..searching.request import SearchRequest
from .stages import Stages

DECODER_RECIPE = "flow_tiny"
N_SAMPLES = 4
_SIDE = 16  # of the pixels that are compared
_N_RESAMPLES = 2000


@dataclass(frozen=True)
class Drawings:
    """What was drawn, and how like the seen pictures it is.

    Parameters
    ----------
    sheet : Path
        Seen, reconstructed and retrieved, side by side.
    two_way : Estimate
        How often a reconstruction is more like its own picture than like another one, by the
        correlation of 16 x 16 pixels; chance .5.
    shuffled : Estimate
        The same for reconstructions of other images.
    """

    sheet: Path
    two_way: Estimate
    shuffled: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {
            "contact_sheet": str(self.sheet),
            "two_way_pixels": self.two_way.to_dict(),
            "two_way_pixels_shuffled": self.shuffled.to_dict(),
        }

    def lines(self) -> Iterator[str]:
        """Yield what people want to know."""
        yield (
            f"drawings: nearer to their own picture than to another one, by pixels, in "
            f"{_interval(self.two_way)}; those of other images in {_interval(self.shuffled)}; "
            f"chance 50 %"
        )


def draw(
    stages: Stages,
    subject: Subject,
    targets: EmbeddingFolder,
    engine: SearchEngine,
    validation: EmbeddingFolder,
    encoder: ImageEncoder,
    *,
    overrides: tuple[str, ...],
    seed: int,
) -> Drawings:
    """Train a decoder on all pictures but the test images, and draw these.

    Parameters
    ----------
    stages : Stages
        With the run of the subject in its folder ``run``.
    subject : Subject
    targets : EmbeddingFolder
    engine : SearchEngine
        Of the targets; its best picture stands beside each drawing.
    validation : EmbeddingFolder
        Predictions of the validation images, by which the decoder knows how far predictions lie
        from targets.
    encoder : ImageEncoder
        Of the targets; picks one of four samples an image.
    overrides : tuple of str
        Changes to the decoder's recipe.
    seed : int
    """
    recipe = load_decoder_recipe(DECODER_RECIPE, (f"train.seed={seed}", *overrides))
    folder = stages.out / "decoder"
    stages.complete(
        "decoder",
        folder / "decoder.json",
        lambda out: train_decoder(
            targets,
            gather_pictures(targets, recipe.pictures.side, excluded=[subject]),
            recipe,
            out,
            resume=out.is_dir(),
        ),
    )
    gap = measure_gap(validation, targets, TrainedDecoder.open(folder))
    makers = Makers(
        FlowDecoder(folder, gap=gap),
        Picker(encoder),
        retrieved=RetrievedPictures(engine, PictureSources(engine.embeddings), SearchRequest()),
    )
    made = stages.keep(
        "reconstruct",
        stages.out / "reconstructions" / "reconstruction.json",
        Reconstruction.open,
        lambda out: reconstruct(
            stages.out / "run",
            subject,
            out,
            makers,
            head="retrieval",
            n_samples=N_SAMPLES,
            batch_size=32,
            seed=seed,
        ),
    )
    return _compare(made, subject, seed)


def _compare(made: Reconstruction, subject: Subject, seed: int) -> Drawings:
    """Compare drawings with what was seen, and the drawings of other images too."""
    n = len(made.image_ids)
    with TemporaryDirectory(prefix="voxseek-") as scratch:
        seen = FeatureRows(Path(scratch) / "seen", n, 3 * _SIDE**2)
        drawn = FeatureRows(Path(scratch) / "drawn", n, 3 * _SIDE**2)
        for row, image_id in enumerate(made.image_ids):
            seen.write(row, _pixels(subject.open_image(image_id)))
            with Image.open(made.image_path(image_id)) as picture:
                drawn.write(row, _pixels(picture))
        rates = [
            two_way_rates(seen, drawn, rows, "reconstruction")
            for rows in (np.arange(n), strangers(n, seed))
        ]
    own, other = mean_estimates(np.stack(rates, axis=1), _N_RESAMPLES, seed)
    return Drawings(made.path / SHEET_FILE, own, other)


def _pixels(picture: Image.Image) -> NDArray[np.float32]:
    return square_bytes(picture, _SIDE).reshape(1, -1).astype(np.float32)


def _interval(estimate: Estimate) -> str:
    return (
        f"{percent(estimate.value)} % [{percent(estimate.low)}, {percent(estimate.high)}] of pairs"
    )
