"""Commands from pictures and voxels to embeddings: embed, model, train, predict."""

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

from .subjects.commands import data

if TYPE_CHECKING:
    from index_builder.embeddings.space import Layer

    from .predict import Head


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of the recipe; may be repeated.",
)


@click.command(short_help="Embed pictures through a frozen encoder.")
@click.argument("images", type=EXISTING)
@click.argument("out", type=FOLDER)
@click.option(
    "--encoder",
    default="efficientnet-lite0",
    show_default=True,
    help="A model of open_clip (with --pretrained), efficientnet-lite0[-PIXELS], or pixels[-SIDE].",
)
@click.option(
    "--pretrained", help="For open_clip: a pretrained tag, a local weight file, or TAG=FILE."
)
@click.option(
    "--layer",
    type=click.Choice(["final", "hidden"]),
    default="final",
    show_default=True,
    help="Pooled output, or all tokens (open_clip's vision transformers).",
)
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
    layer: Layer,
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
    opened = open_encoder(encoder, pretrained=pretrained, layer=layer, device=device)
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
@set_option
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


@click.group()
def model() -> None:
    """Look at models before training them."""


@model.command(short_help="Count a model's parameters, part by part.")
@click.argument("recipe_name", metavar="RECIPE")
@click.option("--voxels", required=True, type=click.IntRange(1), help="Voxels of the subject.")
@click.option("--tokens", default=1, show_default=True, type=click.IntRange(1), help="Of a target.")
@click.option("--dim", default=768, show_default=True, type=click.IntRange(1), help="Of a token.")
@set_option
@json_option
def summary(
    recipe_name: str, voxels: int, tokens: int, dim: int, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Count the parameters that RECIPE makes, part by part; nothing is allocated.

    \b
    Example:  voxseek model summary tiny --voxels 15724 --tokens 257
    """
    from .models.assemble import summarize_parameters
    from .recipe import load_recipe

    recipe = load_recipe(recipe_name, overrides)
    counts = summarize_parameters(recipe, n_voxels=voxels, tokens=tokens, dim=dim)
    emit(counts, as_json, key_values({name: f"{count:>15,}" for name, count in counts.items()}))


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


COMMANDS = (data, embed, model, train, predict)
