"""The main job on real fMRI: Miyawaki et al. 2008's figures, each left out of training in turn.

Ten figures of 10 x 10 patches, eight trials each, 797 voxels of V1. The model that predicts a
figure has never seen it: ten subjects, ten runs, and their predictions in one embedding folder,
from where everything goes as for any other brain.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from index_builder.build import build_index
from index_builder.embeddings.artefact import atomic_write
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.planning import plan_index
from training.encoders.catalogue import open_encoder
from training.loop import train
from training.predict import predict
from training.recipe import Recipe, load_recipe
from training.subjects.miyawaki import import_miyawaki
from training.subjects.subject import Subject
from training.targets import embed_pictures, list_pictures

from ..benchmarks.nway import NWay, identify
from ..benchmarks.report import NwayReport
from ..benchmarks.table import format_report
from ..gallery.results_page import write_results_gallery
from ..results import Results, write_results
from ..searching.engine import SearchEngine
from ..searching.queries import load_queries
from ..searching.request import SearchRequest
from .stages import Stages

N_FIGURES = 10
ENCODER = "pixels-10"  # The stimuli are 10 x 10 patches; the cosine is their pixel correlation.
RECIPE = "figures"
N_WAY: tuple[NWay, ...] = (2, "all")
COMMAND = "voxseek demo"


@dataclass(frozen=True)
class RealDemoReport:
    """What the demo on real fMRI made, and how good it is.

    Parameters
    ----------
    out : Path
    averaged, single : NwayReport
        Identification from the mean of a figure's eight trials, and from each trial.
    gallery : Path
    seconds : dict of str to float
        By stage that ran.
    """

    out: Path
    averaged: NwayReport
    single: NwayReport
    gallery: Path
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {
            "out": str(self.out),
            "averaged": self.averaged.to_dict(),
            "single_trials": self.single.to_dict(),
            "gallery": str(self.gallery),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }

    def lines(self) -> Iterator[str]:
        """Yield the report as lines for people."""
        yield "real fMRI: Miyawaki et al. 2008, V1; no model has seen the figure that it predicts"
        yield ""
        yield format_report(self.averaged)
        yield ""
        yield format_report(self.single)
        yield ""
        yield "Ten figures are few: the intervals are wide, and nothing here speaks of photographs."
        if self.seconds:
            stages = "  ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
            yield f"seconds: {stages}  total {sum(self.seconds.values()):.1f}"
        yield f"gallery: {self.gallery}"
        yield f"next:    voxseek bench nway {self.out / 'predictions'} {self.out / 'targets'}"


def run_real_demo(
    out: Path,
    source: Path,
    *,
    seed: int = 0,
    recipe_name: str = RECIPE,
    overrides: Sequence[str] = (),
) -> RealDemoReport:
    """Run the main job on Miyawaki 2008's figures into ``out``, or finish an interrupted one.

    Parameters
    ----------
    out : Path
    source : Path
        ``V1_mean_figure.mat``, or the folder that holds it.
    seed : int
    recipe_name : str
        What every fold is trained with.
    overrides : sequence of str
        Changes to the recipe, as in `load_recipe`.

    Raises
    ------
    DemoError
        If ``out`` holds something else.
    SourceError
        If ``source`` is not that set.
    """
    recipe = load_recipe(recipe_name, [f"train.seed={seed}", *overrides])
    options = {"real": str(source.resolve()), "seed": seed, "recipe": recipe.to_dict()}
    stages = Stages(out, options)
    subjects = [_import(stages, source, figure) for figure in range(N_FIGURES)]
    targets = _embed_figures(stages, subjects[0])
    for subject in subjects:
        run = subject.path.parent / "run"
        _train(stages, subject, targets, recipe, run)
        _predict(stages, run, subject, "predictions", average=True)
        _predict(stages, run, subject, "predictions_single", average=False)
    averaged = _gather(stages, "predictions")
    single = _gather(stages, "predictions_single")
    plan = plan_index(targets.n_rows, targets.space)
    stages.complete(
        "index",
        out / "index" / "manifest.json",
        lambda folder: build_index(
            Collection.open([targets.path]), folder, plan, seed=seed, command=COMMAND
        ),
    )
    engine = SearchEngine.open(out / "index")
    queries = load_queries(averaged.path)
    results = stages.keep(
        "search",
        out / "results" / "results.json",
        Results.open,
        lambda folder: write_results(
            folder, engine, queries, SearchRequest(N_FIGURES), command=COMMAND
        ),
    )
    with stages.timed("benchmarks"):
        report = RealDemoReport(
            out=out,
            averaged=identify(averaged, targets, n_way=N_WAY, seed=seed),
            single=identify(single, targets, n_way=N_WAY, seed=seed),
            gallery=write_results_gallery(
                results,
                engine,
                queries,
                subject=subjects[0],
                title="What was seen in Miyawaki et al. 2008",
                footer="Figures and fMRI: Miyawaki et al. 2008, doi:10.1016/j.neuron.2008.11.004.",
                n_hits=N_FIGURES,
            ),
            seconds=stages.seconds,
        )
    with atomic_write(out / "report.json") as temporary:
        temporary.write_text(json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n")
    return report


def _import(stages: Stages, source: Path, figure: int) -> Subject:
    return stages.keep(
        "import",
        stages.out / "folds" / str(figure) / "subject" / "subject.json",
        Subject.open,
        lambda folder: import_miyawaki(source, folder, test_figure=figure),
    )


def _train(
    stages: Stages, subject: Subject, targets: EmbeddingFolder, recipe: Recipe, run: Path
) -> None:
    stages.complete(
        "train",
        run / "run.json",
        lambda folder: train([subject], targets, recipe, folder, resume=folder.is_dir()),
    )


def _predict(stages: Stages, run: Path, subject: Subject, name: str, *, average: bool) -> None:
    stages.keep(
        "predict",
        run.parent / name / "space.json",
        EmbeddingFolder.open,
        lambda folder: predict(run, subject, folder, average=average),
    )


def _embed_figures(stages: Stages, subject: Subject) -> EmbeddingFolder:
    return stages.keep(
        "embed",
        stages.out / "targets" / "space.json",
        EmbeddingFolder.open,
        lambda folder: embed_pictures(
            list_pictures(subject.path), folder, open_encoder(ENCODER), command=COMMAND
        ),
    )


def _gather(stages: Stages, name: str) -> EmbeddingFolder:
    """Put the predictions of all folds into one folder, figure by figure."""

    def gather(folder: Path) -> EmbeddingFolder:
        folds = [
            EmbeddingFolder.open(stages.out / "folds" / str(figure) / name)
            for figure in range(N_FIGURES)
        ]
        vectors = np.concatenate([fold.take(np.arange(fold.n_rows)) for fold in folds])
        metadata = pa.concat_tables([fold.metadata() for fold in folds])
        details = {"folds": [fold.fingerprint for fold in folds]}
        with EmbeddingWriter(folder, folds[0].space, command=COMMAND, details=details) as writer:
            if writer.n_rows_done == 0:
                writer.write(vectors, metadata)
            return writer.finish()

    return stages.keep("predict", stages.out / name / "space.json", EmbeddingFolder.open, gather)
