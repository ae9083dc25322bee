"""The main job on a simulated brain: pictures in, ranked pictures out, and how good that is.

pictures ─ embed ─> targets ─ simulate ─> subject ─ train ─> run ─ predict ─> predictions
                       └───── index (effort chosen on validation predictions) ───┴─> results
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index_builder.build import build_index
from index_builder.embeddings.artefact import atomic_write
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.errors import PlanError
from index_builder.planning import IndexPlan, plan_index
from training.encoders.catalogue import open_encoder
from training.loop import train
from training.predict import Head, predict
from training.recipe import load_recipe
from training.subjects.simulation import simulate_subject
from training.subjects.simulation_config import SimulationConfig
from training.subjects.subject import Subject
from training.targets import embed_pictures, list_pictures

from ..benchmarks.binomial import exact_interval
from ..benchmarks.ideal import IdealComparison, compare_with_ideal
from ..benchmarks.nway import NWay, identify
from ..benchmarks.recall import RecallReport, measure_recall
from ..benchmarks.report import DirectionReport, NwayReport
from ..benchmarks.table import align, percent
from ..errors import DemoError
from ..gallery.results_page import count_found, write_results_gallery
from ..results import Results, write_results
from ..searching.engine import SearchEngine
from ..searching.queries import load_queries
from ..searching.request import SearchRequest
from .openmoji import ATTRIBUTION, draw_openmoji
from .stages import Stages

ENCODER = "efficientnet-lite0"
RECIPE = "tiny"
RAM_BYTES_PER_VECTOR = 140
TARGET_RECALL = 0.99  # on validation predictions; leaves room for the test ones to be harder
LARGEST_N_WAY = 300
N_HITS = 16
_FEWEST_PICTURES = 40


@dataclass(frozen=True)
class DemoReport:
    """What a demo made, and how good it is.

    Parameters
    ----------
    out : Path
    n_pictures, n_trials, n_voxels : int
    n_way : int
        Size of the smaller pools.
    identification : NwayReport
        Of the contrastive head, test images, all trials of an image averaged.
    prior : NwayReport
        The same for the diffusion prior's samples.
    comparison : IdealComparison
        With the ideal observer, on the same voxels.
    control : NwayReport or None
        The same model trained on shuffled labels.
    recall : RecallReport
        Of the index, for the test predictions.
    design : str
        Of the index.
    n_found_first, n_found : int
        Test images whose own picture the search found first, and among all hits.
    gallery : Path
    seconds : dict of str to float
        By stage that ran.
    """

    out: Path
    n_pictures: int
    n_trials: int
    n_voxels: int
    n_way: int
    identification: NwayReport
    prior: NwayReport
    comparison: IdealComparison
    control: NwayReport | None
    recall: RecallReport
    design: str
    n_found_first: int
    n_found: int
    gallery: Path
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {
            "out": str(self.out),
            "n_pictures": self.n_pictures,
            "n_trials": self.n_trials,
            "n_voxels": self.n_voxels,
            "n_way": self.n_way,
            "identification": _summary(self.identification),
            "prior": _summary(self.prior),
            "ideal_observer": self.comparison.to_dict(),
            "shuffled_labels": _summary(self.control) if self.control else None,
            "recall": self.recall.to_dict(),
            "index_design": self.design,
            "n_test_images": self.identification.pool_size,
            "n_found_first": self.n_found_first,
            "n_found": self.n_found,
            "n_hits": N_HITS,
            "gallery": str(self.gallery),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }

    def lines(self) -> Iterator[str]:
        """Yield the report as lines for people."""
        pool = self.identification.pool_size
        yield (
            f"{self.n_pictures} pictures; simulated subject of {self.n_voxels} voxels, "
            f"{self.n_trials} trials; {pool} test images, three trials averaged"
        )
        yield ""
        rows = [["identification", "pool", "top-1 %", "95 % interval", "chance %"]]
        for size in dict.fromkeys((self.n_way, pool)):
            rows += [
                _rate_row("brain→image", self.identification.brain_to_image, size),
                _rate_row("image→brain", _reverse(self.identification), size),
            ]
        rows.append(_rate_row("brain→image, prior", self.prior.brain_to_image, self.n_way))
        rows.append(
            _rate_row(
                "brain→image, ideal observer", self.comparison.ideal.brain_to_image, self.n_way
            )
        )
        if self.control is not None:
            rows.append(self._control_row(self.control))
        yield from align(rows)
        if self.control is not None:
            rank = self.control.brain_to_image.median_rank
            yield (
                f"shuffled labels: median rank {rank.value:.0f} of {pool} "
                f"[{rank.low:.0f}, {rank.high:.0f}], chance {(pool + 1) / 2:.1f}; the interval of "
                f"their rate is the exact binomial one"
            )
        yield ""
        fraction = self.comparison.fractions[self.n_way]
        yield (
            f"fraction of Bayes-optimal ({self.n_way}-way, brain→image): "
            f"{percent(fraction.value)} % "
            f"[{percent(fraction.low)}, {percent(fraction.high)}]; Bayes-optimal over fresh noise: "
            f"{percent(self.comparison.expected[self.n_way])} %"
        )
        recalls = ", ".join(
            f"recall@{k} {estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
            for k, estimate in self.recall.recall.items()
        )
        yield f"index: {self.design}, {self.recall.bytes_per_vector:.1f} bytes of RAM a vector"
        yield f"       {recalls} for the test predictions, against an exact search"
        yield (
            f"search: the seen picture is first of {self.n_pictures} for {self.n_found_first} of "
            f"{pool} test images, among the first {N_HITS} for {self.n_found}"
        )
        if self.seconds:
            yield ""
            stages = "  ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
            yield f"seconds: {stages}  total {sum(self.seconds.values()):.1f}"
        yield ""
        yield f"gallery: {self.gallery}"
        yield f"next:    voxseek search {self.out / 'index'} {self.out / 'predictions'} --json"

    def _control_row(self, control: NwayReport) -> list[str]:
        rate = control.brain_to_image.rate(self.n_way)
        bounds = exact_interval(rate.expected.value, control.pool_size)
        return [
            "brain→image, shuffled labels",
            f"{self.n_way}-way",
            percent(bounds.value),
            f"{percent(bounds.low)} to {percent(bounds.high)}",
            percent(rate.chance),
        ]


def run_demo(
    out: Path,
    *,
    images: Path | None = None,
    seed: int = 0,
    control: bool = False,
    overrides: tuple[str, ...] = (),
) -> DemoReport:
    """Run the main job into ``out``, or finish an interrupted one.

    Parameters
    ----------
    out : Path
    images : Path or None
        Folder of photographs, at least 40; by default OpenMoji's drawings.
    seed : int
        Of the simulated brain, the training and every draw.
    control : bool
        Train a second time, on shuffled labels.
    overrides : tuple of str
        Changes to the recipe ``tiny``, as ``voxseek train --set`` takes them.

    Raises
    ------
    DemoError
        If ``out`` holds something else, or there are too few pictures.
    """
    options = {
        "images": str(images.resolve()) if images else "openmoji",
        "seed": seed,
        "overrides": list(overrides),
    }
    stages = Stages(out, options)
    targets = _make_targets(stages, images)
    n_test = max(min(LARGEST_N_WAY, targets.n_rows // 3), targets.n_rows // 8)
    subject = stages.keep(
        "simulate",
        out / "subject" / "subject.json",
        Subject.open,
        lambda folder: simulate_subject(
            targets, folder, SimulationConfig(n_test=n_test), seed=seed
        ),
    )
    settings = [f"train.seed={seed}", *overrides]
    predictions = _train_and_predict(stages, subject, targets, "run", "predictions", settings)
    validation = _predict(stages, subject, "run", "predictions_validation", "validation")
    prior = _predict(stages, subject, "run", "predictions_prior", "test", head="prior")
    plan = _plan(targets)
    stages.complete(
        "index",
        out / "index" / "manifest.json",
        lambda folder: build_index(
            Collection.open([targets.path]),
            folder,
            plan,
            queries=validation,
            seed=seed,
            target_recall=TARGET_RECALL,
            command="voxseek demo",
        ),
    )
    engine = SearchEngine.open(out / "index")
    queries = load_queries(out / "predictions")
    results = stages.keep(
        "search",
        out / "results" / "results.json",
        Results.open,
        lambda folder: write_results(
            folder, engine, queries, SearchRequest(N_HITS), command="voxseek demo"
        ),
    )
    n_way = min(LARGEST_N_WAY, n_test)
    sizes: tuple[NWay, ...] = (n_way, "all")
    with stages.timed("benchmarks"):
        identification = identify(predictions, targets, n_way=sizes, seed=seed)
        prior_report = identify(prior, targets, n_way=sizes, seed=seed)
        comparison = compare_with_ideal(identification, subject)
        recall = measure_recall(engine, queries, seed=seed)
    control_report = None
    if control:
        shuffled = _train_and_predict(
            stages,
            subject,
            targets,
            "run_shuffled",
            "predictions_shuffled",
            [*settings, "data.control=shuffled_labels"],
        )
        control_report = identify(shuffled, targets, n_way=sizes, seed=seed)
    with stages.timed("gallery"):
        found = count_found(results, queries)
        gallery = write_results_gallery(
            results,
            engine,
            queries,
            subject=subject,
            title="What a simulated brain saw",
            footer=ATTRIBUTION if images is None else "",
        )
    report = DemoReport(
        out=out,
        n_pictures=targets.n_rows,
        n_trials=subject.n_trials,
        n_voxels=subject.n_voxels,
        n_way=n_way,
        identification=identification,
        prior=prior_report,
        comparison=comparison,
        control=control_report,
        recall=recall,
        design=engine.plan.design,
        n_found_first=found.n_first,
        n_found=found.n_found,
        gallery=gallery,
        seconds=stages.seconds,
    )
    with atomic_write(out / "report.json") as temporary:
        temporary.write_text(json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n")
    return report


def _plan(targets: EmbeddingFolder) -> IndexPlan:
    """Plan codes of at most 140 bytes a vector, or what suits a gallery too small for them."""
    n_rows, space = targets.n_rows, targets.space
    try:
        return plan_index(
            n_rows, space, memory_bytes=RAM_BYTES_PER_VECTOR * n_rows, code="ivf-rabitq"
        )
    except PlanError:  # the centroids alone outweigh a few hundred codes
        return plan_index(n_rows, space, code="flat")


def _make_targets(stages: Stages, images: Path | None) -> EmbeddingFolder:
    if images is None:
        with stages.timed("pictures"):
            images = draw_openmoji(stages.out / "pictures")
    pictures = list_pictures(images)
    if len(pictures) < _FEWEST_PICTURES:
        raise DemoError(
            f"{images} holds {len(pictures)} pictures, expected at least {_FEWEST_PICTURES}: a "
            f"third of them are for testing. A few hundred make a telling demo."
        )
    return stages.keep(
        "embed",
        stages.out / "targets" / "space.json",
        EmbeddingFolder.open,
        lambda folder: embed_pictures(
            pictures, folder, open_encoder(ENCODER), command="voxseek demo"
        ),
    )


def _train_and_predict(
    stages: Stages,
    subject: Subject,
    targets: EmbeddingFolder,
    run: str,
    predictions: str,
    settings: list[str],
) -> EmbeddingFolder:
    recipe = load_recipe(RECIPE, settings)
    stages.complete(
        "train" if run == "run" else "train shuffled",
        stages.out / run / "run.json",
        lambda folder: train([subject], targets, recipe, folder, resume=folder.is_dir()),
    )
    return _predict(stages, subject, run, predictions, "test")


def _predict(
    stages: Stages, subject: Subject, run: str, name: str, split: str, *, head: Head = "retrieval"
) -> EmbeddingFolder:
    return stages.keep(
        "predict",
        stages.out / name / "space.json",
        EmbeddingFolder.open,
        lambda folder: predict(stages.out / run, subject, folder, split=split, head=head),
    )


def _summary(report: NwayReport) -> dict[str, Any]:
    return {direction.direction: direction.to_dict() for direction in report.directions}


def _reverse(report: NwayReport) -> DirectionReport:
    assert report.image_to_brain is not None  # all trials of an image are averaged
    return report.image_to_brain


def _rate_row(label: str, direction: DirectionReport, size: int) -> list[str]:
    rate = direction.rate(size)
    return [
        label,
        f"all {size}" if rate.is_whole_pool else f"{size}-way",
        percent(rate.expected.value),
        f"{percent(rate.expected.low)} to {percent(rate.expected.high)}",
        percent(rate.chance),
    ]
