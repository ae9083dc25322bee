"""Commands from voxels and pictures to embeddings: data, embed, train, predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from index_builder.embeddings.terminal import (
    EXISTING,
    FOLDER,
    dry_run_option,
    emit,
    json_option,
    key_values,
    open_embeddings,
    seed_option,
    split_option,
)

if TYPE_CHECKING:
    from .predict import Head
    from .subjects.simulation_config import Nonlinearity
    from .subjects.subject import Subject


@click.group()
def data() -> None:
    """Fill and describe subject folders."""


@data.command(short_help="Show pictures to a simulated brain.")
@click.argument("targets", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option(
    "--voxels", default=3000, show_default=True, type=click.IntRange(100), help="Voxels to grow."
)
@click.option(
    "--test-images",
    default=300,
    show_default=True,
    type=click.IntRange(1),
    help="Images kept for testing.",
)
@click.option(
    "--nonlinearity",
    default="softplus",
    show_default=True,
    type=click.Choice(["linear", "softplus", "power"]),
    help="From a voxel's drive to its response.",
)
@click.option(
    "--ncsnr-scale",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1.1),
    help="Multiplies NSD's signal-to-noise ratios; 0 gives pure noise.",
)
@seed_option
@json_option
def simulate(
    targets: Path,
    out: Path,
    voxels: int,
    test_images: int,
    nonlinearity: Nonlinearity,
    ncsnr_scale: float,
    seed: int,
    as_json: bool,
) -> None:
    """Show the pictures of the embedding folder TARGETS to a simulated brain; write subject OUT.

    \b
    Example:  voxseek data simulate targets/ brain/ --voxels 3000 --seed 1
    """
    from .subjects.simulation import simulate_subject
    from .subjects.simulation_config import SimulationConfig

    config = SimulationConfig(
        n_voxels=voxels, n_test=test_images, nonlinearity=nonlinearity, ncsnr_scale=ncsnr_scale
    )
    subject = simulate_subject(open_embeddings(targets), out, config, seed=seed)
    emit_subject(subject, as_json)


@data.group("import")
def import_() -> None:
    """Turn data on disk into a subject folder."""


@import_.command(short_help="Import an array of voxels and a table of trials.")
@click.argument("voxels", type=EXISTING)
@click.argument("trials", type=EXISTING)
@click.argument("out", type=FOLDER)
@click.option("--images", type=EXISTING, help="Folder of pictures, or a CSV of image_id and path.")
@click.option("--name", default="subject", show_default=True, help="What to call the subject.")
@click.option(
    "--test-fraction",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the images to test on.",
)
@click.option(
    "--validation-fraction",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the other images to validate on.",
)
@seed_option
@json_option
def arrays(
    voxels: Path,
    trials: Path,
    out: Path,
    images: Path | None,
    name: str,
    test_fraction: float,
    validation_fraction: float,
    seed: int,
    as_json: bool,
) -> None:
    """Import an array VOXELS (.npy, trials x voxels) and a table TRIALS (.csv, .tsv, .parquet).

    TRIALS has a column image_id and may have session, repeat and split; without split, images are
    split at random, all repeats of an image together.

    \b
    Example:  voxseek data import arrays betas.npy trials.csv subj01/ --images photographs/
    """
    from .subjects.arrays import import_arrays

    subject = import_arrays(
        out,
        voxels=voxels,
        trials=trials,
        images=images,
        name=name,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        seed=seed,
    )
    emit_subject(subject, as_json)


@import_.command(short_help="Import the figures of Miyawaki 2008.")
@click.argument("source", type=EXISTING)
@click.argument("out", type=FOLDER)
@click.option(
    "--test-figure",
    required=True,
    type=click.IntRange(0, 9),
    help="The figure that is kept for testing.",
)
@json_option
def miyawaki(source: Path, out: Path, test_figure: int, as_json: bool) -> None:
    """Import Miyawaki 2008's figures: V1_mean_figure.mat, or the folder that holds it.

    \b
    Example:  voxseek data import miyawaki V1_mean_figure.mat fold3/ --test-figure 3
    """
    from .subjects.miyawaki import import_miyawaki

    emit_subject(import_miyawaki(source, out, test_figure=test_figure), as_json)


@data.command(short_help="Describe a subject folder.")
@click.argument("subject", type=EXISTING)
@json_option
def info(subject: Path, as_json: bool) -> None:
    """Describe the subject folder SUBJECT: counts, splits, repeats, voxels, noise ceiling.

    \b
    Example:  voxseek data info demo/subject
    """
    from .subjects.subject import Subject

    emit_subject(Subject.open(subject), as_json)


def emit_subject(subject: Subject, as_json: bool) -> None:
    """Print what a subject folder holds."""
    from .subjects.describe import describe

    facts = describe(subject)
    emit(facts, as_json, [*key_values(facts), f"next: voxseek embed {subject.path} TARGETS"])


@click.command(short_help="Embed pictures through a frozen encoder.")
@click.argument("images", type=EXISTING)
@click.argument("out", type=FOLDER)
@click.option(
    "--encoder",
    default="efficientnet-lite0",
    show_default=True,
    help="A model of open_clip (with --pretrained), efficientnet-lite0[-PIXELS], or pixels[-SIDE].",
)
@click.option("--pretrained", help="For open_clip: a pretrained tag, or a local weight file.")
@click.option(
    "--batch-size",
    default=16,
    show_default=True,
    type=click.IntRange(1),
    help="Pictures an encoder call.",
)
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@dry_run_option
@json_option
def embed(
    images: Path,
    out: Path,
    encoder: str,
    pretrained: str | None,
    batch_size: int,
    device: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Embed IMAGES (a folder of pictures, or a subject) into the embedding folder OUT.

    Goes on where an interrupted run stopped.

    \b
    Example:  voxseek embed photographs/ targets/
              voxseek embed subj01/ targets/ --encoder ViT-L-14 --pretrained openai --device cuda
    """
    from .encoders.catalogue import open_encoder
    from .targets import embed_pictures, list_pictures

    pictures = list_pictures(images)
    opened = open_encoder(encoder, pretrained=pretrained, device=device)
    if not dry_run:
        embed_pictures(pictures, out, opened, batch_size=batch_size)
    facts = {"n_pictures": len(pictures), "space": opened.space.to_dict(), "out": str(out)}
    emit(
        facts,
        as_json,
        [
            f"{len(pictures)} pictures in {opened.space}{' (dry run)' if dry_run else f': {out}'}",
            f"next: voxseek index build {out} INDEX, or voxseek train SUBJECT {out} --out RUN",
        ],
    )


# ------------------------------------------------------------------------------- train, predict


@click.command(short_help="Train a model from voxels to embeddings.")
@click.argument("subject", type=EXISTING, required=False)
@click.argument("targets", type=FOLDER, required=False)
@click.option(
    "--recipe",
    "recipe_name",
    default="tiny",
    show_default=True,
    help="A shipped recipe, or a .toml file.",
)
@click.option("--out", type=FOLDER, help="The run folder.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of the recipe; may be repeated.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("--list", "list_all", is_flag=True, help="List the shipped recipes.")
@dry_run_option
@json_option
def train(
    subject: Path | None,
    targets: Path | None,
    recipe_name: str,
    out: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    list_all: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a model from the voxels of SUBJECT to the embeddings of TARGETS.

    \b
    Example:  voxseek train subj01/ targets/ --recipe tiny --out run/ --set train.epochs=30
              voxseek train --list
    """
    from .recipe import list_recipes, load_recipe

    if list_all:
        recipes = list_recipes()
        emit(
            recipes, as_json, (line for name, text in recipes.items() for line in (name, text, ""))
        )
        return
    if subject is None or targets is None or (out is None and not dry_run):
        raise click.UsageError("give SUBJECT, TARGETS and --out RUN (or --list).")
    recipe = load_recipe(recipe_name, overrides)
    if dry_run:
        emit(recipe.to_dict(), as_json, [recipe.to_toml()])
        return
    from .loop import train as run_training
    from .subjects.subject import Subject

    opened = Subject.open(subject)
    summary = run_training(opened, open_embeddings(targets), recipe, out or Path(), resume=resume)
    facts = {
        "run": str(summary.path),
        "space": summary.space.to_dict(),
        "n_steps": summary.n_steps,
        "n_parameters": summary.n_parameters,
        "validation": summary.validation,
        "seconds": summary.seconds,
    }
    next_step = f"next: voxseek predict {summary.path} {subject} PREDICTIONS"
    emit(facts, as_json, [*key_values(facts), next_step])


@click.command(short_help="Predict embeddings of what a brain saw.")
@click.argument("run", type=EXISTING)
@click.argument("subject", type=EXISTING)
@click.argument("out", type=FOLDER)
@split_option
@click.option(
    "--head",
    default="retrieval",
    show_default=True,
    type=click.Choice(["retrieval", "prior"]),
    help="The contrastive embedding, or a sample of the diffusion prior.",
)
@click.option("--single-trials", is_flag=True, help="One row a trial; by default, one an image.")
@seed_option
@json_option
def predict(
    run: Path,
    subject: Path,
    out: Path,
    split: str,
    head: Head,
    single_trials: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Predict embeddings of what SUBJECT saw, with the model of RUN, into OUT.

    \b
    Example:  voxseek predict run/ subj01/ predictions/ --split test
    """
    from .predict import predict as run_prediction
    from .subjects.subject import Subject

    folder = run_prediction(
        run,
        Subject.open(subject),
        out,
        split=split,
        head=head,
        average=not single_trials,
        seed=seed,
    )
    facts = {"out": folder.path, "n_rows": folder.n_rows, "space": folder.space.to_dict()}
    emit(
        facts,
        as_json,
        [
            f"{folder.n_rows} predictions in {folder.space}: {out}",
            f"next: voxseek bench nway {out} TARGETS, or voxseek search INDEX {out} --out RESULTS",
        ],
    )


COMMANDS = (data, embed, train, predict)
