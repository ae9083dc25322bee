"""Commands from pictures and voxels to embeddings and back: embed, train, predict, decoder."""

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

from .decoder.commands import decoder
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
    help="A model of open_clip (MODEL-squashed: pixels as MindEye2 has them), sd-vae[-PIXELS], "
    "taesd[-PIXELS] or vicregl-convnext-xl[-augmented][-PIXELS] (these with --pretrained), "
    "efficientnet-lite0[-PIXELS], or pixels[-SIDE].",
)
@click.option(
    "--pretrained",
    help="For open_clip: a pretrained tag, a local weight file (open_clip's, OpenAI's or Hugging "
    "Face's), or TAG=FILE; else a local folder or file.",
)
@click.option(
    "--layer",
    type=click.Choice(["final", "hidden", "patches"]),
    default="final",
    show_default=True,
    help="Pooled output; all tokens, projected; or the patches, before the projection (the last "
    "two: open_clip's vision transformers).",
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
    """Embed IMAGES into the embedding folder OUT.

    IMAGES: a folder of pictures, a subject, a folder of tar shards or of parquet files, or one
    .tar, .parquet or .hdf5 file. Goes on where an interrupted run stopped. Pictures that can't be
    read are left out and listed in OUT/unreadable.parquet; of a subject, they are an error.

    \b
    Example:  voxseek embed photographs/ targets/
              voxseek embed subj01/ targets/ --encoder ViT-L-14 --pretrained openai --device cuda
              voxseek embed laion/ gallery/ --encoder ViT-L-14 --pretrained openai=ViT-L-14.pt
    """
    from .encoders.catalogue import open_encoder
    from .pictures.opening import open_source
    from .targets import count_unreadable, embed_pictures

    source = open_source(images)
    opened = open_encoder(encoder, pretrained=pretrained, layer=layer, device=device)
    facts = {"n_pictures": source.n_pictures, "space": opened.space.to_dict(), "out": str(out)}
    counted = "the pictures" if source.n_pictures is None else f"{source.n_pictures} pictures"
    lines = [f"{counted} of {images} in {opened.space} (dry run)"]
    if not dry_run:
        folder = embed_pictures(source, out, opened, batch_size=batch_size)
        n_unreadable = count_unreadable(folder)
        facts |= {"n_pictures": folder.n_rows, "n_unreadable": n_unreadable}
        lines = [f"{folder.n_rows} pictures in {opened.space}: {out}"]
        if n_unreadable:
            lines.append(f"{n_unreadable} can't be read: {out / 'unreadable.parquet'}")
        seer = images if (images / "subject.json").is_file() else "SUBJECT"
        lines.append(
            f"next: voxseek index build {out} INDEX, or voxseek train {seer} {out} --out RUN"
        )
    emit(facts, as_json, lines)


# ------------------------------------------------------------------------------- train, predict


@click.command(short_help="Train a model from voxels to embeddings.")
@click.argument("subjects_and_targets", metavar="SUBJECT... TARGETS", nargs=-1, type=EXISTING)
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
@click.option(
    "--finetune",
    type=EXISTING,
    metavar="RUN",
    help="Start from what the subjects of a finished run share; voxel layers start anew.",
)
@click.option(
    "--teacher",
    type=EXISTING,
    multiple=True,
    help="For a low-level recipe: a teacher's features of the images; again for an augmented view.",
)
@click.option("--tensorboard", type=FOLDER, help="Folder for TensorBoard's event files.")
@click.option("--list", "list_all", is_flag=True, help="List the shipped recipes and their sizes.")
@dry_run_option
@json_option
def train(
    subjects_and_targets: tuple[Path, ...],
    recipe_name: str,
    out: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    finetune: Path | None,
    teacher: tuple[Path, ...],
    tensorboard: Path | None,
    list_all: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a model from the voxels of each SUBJECT to the embeddings of TARGETS.

    Several subjects share everything but their voxel layer. Under `accelerate launch` (with
    --module cli) several GPUs or machines train one model.

    \b
    Example:  voxseek train subj01/ targets/ --recipe tiny --out run/ --set train.epochs=30
              voxseek train subj02/ subj05/ subj07/ targets/ --recipe mindeye2_1024 --out shared/
              voxseek train subj01/ targets/ --finetune shared/ --set data.sessions=1 --out hour/ \\
                  --recipe mindeye2_1024
              voxseek train --list
    """
    from .recipe import list_recipes, load_recipe

    if list_all:
        from .cost import describe_recipe

        recipes = {name: describe_recipe(name, header) for name, header in list_recipes().items()}
        emit(
            recipes,
            as_json,
            (line for name, of_it in recipes.items() for line in (name, *of_it["lines"], "")),
        )
        return
    if len(subjects_and_targets) < 2 or (out is None and not dry_run):
        raise click.UsageError("give SUBJECT... TARGETS and --out RUN (or --list).")
    recipe = load_recipe(recipe_name, overrides)
    if dry_run:
        emit(recipe.to_dict(), as_json, [recipe.to_toml()])
        return
    from .loop import train as run_training
    from .subjects.subject import Subject

    *subjects, targets = subjects_and_targets
    summary = run_training(
        [Subject.open(subject) for subject in subjects],
        open_embeddings(targets),
        recipe,
        out or Path(),
        resume=resume,
        finetune=finetune,
        teacher=[open_embeddings(folder) for folder in teacher],
        tensorboard=tensorboard,
    )
    facts = {
        "run": str(summary.path),
        "space": summary.space.to_dict(),
        "n_epochs": summary.n_epochs,
        "n_steps": summary.n_steps,
        "kept_epoch": summary.kept_epoch,
        "n_parameters": summary.n_parameters,
        "validation": summary.validation,
        "seconds": summary.seconds,
    }
    next_step = f"next: voxseek predict {summary.path} {subjects[0]} PREDICTIONS"
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
    counts = summarize_parameters(recipe, n_voxels=[voxels], tokens=tokens, dim=dim)
    emit(counts, as_json, key_values({name: f"{count:>15,}" for name, count in counts.items()}))


@model.command("import", short_help="Read a published MindEye checkpoint as a run.")
@click.argument("checkpoint", metavar="LAST_PTH", type=EXISTING)
@click.argument("out", type=FOLDER)
@click.option("--subject-name", required=True, help="Name of the subject folder that it decodes.")
@json_option
def import_checkpoint(checkpoint: Path, out: Path, subject_name: str, as_json: bool) -> None:
    """Turn LAST_PTH, as MindEye's training code saved it, into the run OUT.

    Nothing of the file is executed. Voxels of the subject must be z-scored as MindEye's are.

    \b
    Example:  voxseek model import last.pth run/ --subject-name subj01
    """
    from .reference_run import import_reference

    manifest = import_reference(checkpoint, out, subject_name=subject_name)
    facts = {
        "run": str(out),
        "recipe": manifest["recipe"],
        "space": manifest["space"],
        "n_parameters": manifest["n_parameters"],
    }
    next_step = f"next: voxseek predict {out} SUBJECT PREDICTIONS"
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
    type=click.Choice(["retrieval", "prior", "latent"]),
    help="The contrastive embedding, a sample of the prior, or the latents of a low-level run.",
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


COMMANDS = (data, embed, model, train, predict, decoder)
