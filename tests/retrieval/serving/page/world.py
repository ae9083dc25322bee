"""What the tests' server serves: drawn pictures, a simulated brain, and two indexes of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from index_builder.build import build_index
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.planning import plan_index
from training.encoders.pixels import PixelEncoder
from training.loop import train
from training.recipe import load_recipe
from training.subjects.simulation import simulate_subject
from training.subjects.simulation_config import SimulationConfig
from training.targets import embed_pictures, list_pictures

N_PICTURES, N_TEST, SIDE = 240, 40, 12
MARKUP = '<img src="x" onerror="document.title=1"><b>bold</b>'
FORMULA = '=HYPERLINK("http://evil.example","go")'
SCRIPT_URL = "javascript:document.title=1"
SMALL = ("train.epochs=4", "train.batch_size=32", "train.device='cpu'", "train.n_threads=1")


@dataclass(frozen=True)
class World:
    """Folders of a server's indexes and runs.

    Parameters
    ----------
    pictures : Path
        Of the picture files, ``000.png`` and so on; the number is the image_id.
    drawn : Path
        An index whose rows have pictures.
    written : Path
        One of the same vectors, whose rows have captions, addresses and LAION's numbers instead.
    subject : Path
    runs : tuple of Path
        Two runs of the subject.
    """

    pictures: Path
    drawn: Path
    written: Path
    subject: Path
    runs: tuple[Path, Path]


def make_world(folder: Path) -> World:
    """Draw, embed, simulate, train and index, all small."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    _draw(pictures)
    targets = embed_pictures(list_pictures(pictures), folder / "targets", PixelEncoder(SIDE))
    config = SimulationConfig(n_voxels=300, n_test=N_TEST)
    subject = simulate_subject(targets, folder / "subject", config, seed=1)
    runs = []
    for seed in (0, 1):
        runs.append(folder / f"run{seed}")
        train([subject], targets, load_recipe("tiny", (*SMALL, f"train.seed={seed}")), runs[-1])
    return World(
        pictures=pictures,
        drawn=_index(targets, folder / "drawn", "ivf-rabitq"),
        written=_index(_written(targets, folder / "written-rows"), folder / "written", "flat"),
        subject=folder / "subject",
        runs=(runs[0], runs[1]),
    )


def caption(number: int) -> str:
    """Return what a picture is called; two names are attacks."""
    return {7: MARKUP, 8: FORMULA}.get(
        number, f"picture {number}, {'even' if number % 2 == 0 else 'odd'}"
    )


def _draw(folder: Path) -> None:
    rng = np.random.default_rng(3)
    with open(folder / "captions.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["image", "caption"])
        for number in range(N_PICTURES):
            picture = Image.new("RGB", (48, 48), tuple(int(c) for c in rng.integers(256, size=3)))
            pen = ImageDraw.Draw(picture)
            for _ in range(5):
                (x, y), (w, h) = rng.integers(40, size=2), rng.integers(6, 24, size=2)
                color = tuple(int(c) for c in rng.integers(256, size=3))
                pen.rectangle((int(x), int(y), int(x + w), int(y + h)), fill=color)
            picture.save(folder / f"{number:03d}.png")
            writer.writerow([f"{number:03d}.png", caption(number)])


def _written(targets: EmbeddingFolder, folder: Path) -> EmbeddingFolder:
    numbers = np.arange(targets.n_rows)
    table = pa.table(
        {
            "image_id": numbers,
            "caption": [caption(int(number)) for number in numbers],
            "url": [
                SCRIPT_URL if n % 9 == 0 else f"https://pictures.example/{n}.jpg" for n in numbers
            ],
            "width": 100 + 10 * numbers,
            "punsafe": (numbers % 4 == 3) * 0.9,
            "pwatermark": (numbers % 5 == 4) * 0.95,
            "aesthetic": 4.0 + numbers % 3,
        }
    )
    with EmbeddingWriter(folder, targets.space, command="test", details={}) as writer:
        writer.write(targets.take(numbers), table)
        return writer.finish()


def _index(rows: EmbeddingFolder, folder: Path, code: str) -> Path:
    plan = plan_index(rows.n_rows, rows.space, code=code)  # type: ignore[arg-type]  # literals
    build_index(Collection.open([rows.path]), folder, plan)
    return folder
