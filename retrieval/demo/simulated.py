"""The main job on a simulated brain: pictures in, ranked pictures out, and how good that is.

pictures ─ embed ─> targets ─ simulate ─> subject ─ train ─> run ─ predict ─> predictions
                       └───── index (effort chosen on validation predictions) ───┴─> results
                       └───── decoder ───────────────────────────────────────────┴─> drawings
"""

from __future__ import annotations

import json
from pathlib import Path

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

from ..benchmarks.ideal import compare_with_ideal
from ..benchmarks.nway import NWay, identify
from ..benchmarks.recall import measure_recall
from ..errors import DemoError
from ..gallery.results_page import count_found, write_results_gallery
from ..results import Results, write_results
from ..searching.engine import SearchEngine
from ..searching.queries import load_queries
from ..searching.request import SearchRequest
from .drawing import draw
from .openmoji import ATTRIBUTION, draw_openmoji
from .report import N_HITS, DemoReport
from .stages import Stages

ENCODER = "efficientnet-lite0"
RECIPE = "tiny"
RAM_BYTES_PER_VECTOR = 140
TARGET_RECALL = 0.99  # on validation predictions; leaves room for the test ones to be harder
LARGEST_N_WAY = 300
_FEWEST_PICTURES = 40


def run_demo(
    out: Path,
    *,
    images: Path | None = None,
    seed: int = 0,
    control: bool = False,
    overrides: tuple[str, ...] = (),
    decoder_overrides: tuple[str, ...] = (),
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
    decoder_overrides : tuple of str
        Changes to the decoder's recipe, as ``voxseek decoder train --set`` takes them.

    Raises
    ------
    DemoError
        If ``out`` holds something else, or there are too few pictures.
    """
    options = {
        "images": str(images.resolve()) if images else "openmoji",
        "seed": seed,
        "overrides": list(overrides),
        "decoder_overrides": list(decoder_overrides),
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
    drawings = draw(
        stages,
        subject,
        targets,
        engine,
        validation,
        open_encoder(ENCODER),
        overrides=decoder_overrides,
        seed=seed,
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
        drawings=drawings,
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
