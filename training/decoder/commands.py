"""Commands of decoders that are trained here: decoder train."""

from __future__ import annotations

from pathlib import Path

import click

from index_builder.embeddings.terminal import (
    EXISTING,
    FOLDER,
    dry_run_option,
    emit,
    json_option,
    key_values,
    open_embeddings,
)


@click.group()
def decoder() -> None:
    """Train a decoder from embeddings to pictures."""


@decoder.command(short_help="Train a decoder on the pictures of targets.")
@click.argument("targets", required=False, type=EXISTING)
@click.option(
    "--recipe",
    "recipe_name",
    default="flow_tiny",
    show_default=True,
    help="A shipped recipe, or a .toml file.",
)
@click.option("--out", type=FOLDER, help="The decoder folder.")
@click.option(
    "--images",
    type=EXISTING,
    metavar="SUBJECT",
    help="Take the pictures of a subject; its test images are left out.",
)
@click.option(
    "--exclude",
    type=EXISTING,
    multiple=True,
    metavar="SUBJECT",
    help="Leave out the test images of a subject; its validation images are held out.",
)
@click.option(
    "--all-pictures",
    is_flag=True,
    help="Train on every picture of TARGETS: none of them will be reconstructed.",
)
@click.option(
    "--vae",
    type=EXISTING,
    metavar="DIR",
    help="For a recipe that draws latents: weights of the autoencoder, both halves.",
)
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
    targets: Path | None,
    recipe_name: str,
    out: Path | None,
    images: Path | None,
    exclude: tuple[Path, ...],
    all_pictures: bool,
    vae: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    list_all: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a decoder from the embeddings of TARGETS to their pictures, by flow matching.

    A picture that will be reconstructed must not be trained on: say whose test images are left
    out. Their copies under other numbers are left out, too.

    \b
    Example:  voxseek decoder train targets/ --exclude subj01/ --out decoder/
              voxseek decoder train targets/ --images subj01/ --out decoder/ --set train.steps=500
              voxseek decoder train --list
    """
    from .recipe import list_decoder_recipes, load_decoder_recipe

    if list_all:
        recipes = list_decoder_recipes()
        lines = (line for name, header in recipes.items() for line in (name, header, ""))
        emit(dict(recipes), as_json, lines)
        return
    recipe = load_decoder_recipe(recipe_name, overrides)
    if dry_run:
        emit(recipe.to_dict(), as_json, [recipe.to_toml()])
        return
    if targets is None or out is None:
        raise click.UsageError("give TARGETS and --out DECODER (or --list).")
    if all_pictures == bool(images or exclude):
        raise click.UsageError(
            "say which pictures will be reconstructed and must not be trained on: --images "
            "SUBJECT or --exclude SUBJECT leaves out its test images; --all-pictures alone, none."
        )
    from ..subjects.subject import Subject
    from .pictures import gather_pictures
    from .train import train_decoder

    folder = open_embeddings(targets)
    pictures = gather_pictures(
        folder,
        recipe.pictures.side,
        images=Subject.open(images) if images is not None else None,
        excluded=[Subject.open(subject) for subject in exclude],
    )
    summary = train_decoder(folder, pictures, recipe, out, vae=vae, resume=resume)
    facts = {
        "decoder": str(summary.path),
        "space": summary.space.to_dict(),
        "n_pictures": summary.n_pictures,
        "n_excluded": pictures.n_excluded,
        "n_copies": pictures.n_copies,
        "n_steps": summary.n_steps,
        "n_parameters": summary.n_parameters,
        "validation_loss": summary.validation_loss,
        "seconds": summary.seconds,
    }
    emit(facts, as_json, key_values(facts))
