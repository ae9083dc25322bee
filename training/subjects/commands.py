"""Commands that fill and describe subject folders: data targets, simulate, import, info."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from index_builder.embeddings.terminal import (
    EXISTING,
    FOLDER,
    emit,
    json_option,
    open_embeddings,
    seed_option,
)

from .import_commands import COMMANDS as IMPORT_COMMANDS
from .nsd_commands import COMMANDS as NSD_COMMANDS
from .printing import emit_subject

if TYPE_CHECKING:
    from .simulation_config import Nonlinearity


@click.group()
def data() -> None:
    """Fill and describe subject folders."""


@data.group("import")
def import_() -> None:
    """Turn data on disk into a subject folder."""


for _command in (*NSD_COMMANDS, *IMPORT_COMMANDS):
    import_.add_command(_command)


@data.command(short_help="Draw pictures, and CLIP-like targets of them.")
@click.argument("out", type=FOLDER)
@click.option(
    "--images",
    default=2000,
    show_default=True,
    type=click.IntRange(2),
    help="Pictures to draw; a subject of NSD saw 9,841 three times.",
)
@click.option(
    "--tokens",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="1, or 1 and a square number: 257 is the hidden layer of CLIP ViT-L/14.",
)
@click.option(
    "--dim", default=768, show_default=True, type=click.IntRange(2), help="Width of a token."
)
@seed_option
@json_option
def targets(out: Path, images: int, tokens: int, dim: int, seed: int, as_json: bool) -> None:
    """Draw pictures, and embeddings of them that are like CLIP's, into the embedding folder OUT.

    No picture and no encoder is needed. Goes on where an interrupted run stopped.

    \b
    Example:  voxseek data targets targets/ --images 9841 --tokens 257
              voxseek data simulate targets/ brain/ --voxels 15724 --test-images 982
    """
    if math.isqrt(tokens - 1) ** 2 != tokens - 1:
        raise click.BadParameter(
            f"{tokens} is not one more than a square number, as 17, 50 and 257 are.",
            param_hint="--tokens",
        )
    from .simulated_targets import simulate_targets

    folder = simulate_targets(out, n_images=images, tokens=tokens, dim=dim, seed=seed)
    facts = {"out": folder.path, "n_images": folder.n_rows, "space": folder.space.to_dict()}
    emit(
        facts,
        as_json,
        [
            f"{folder.n_rows} pictures and their targets in {folder.space}: {out}",
            f"next: voxseek data simulate {out} SUBJECT",
        ],
    )


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
    "--validation-fraction",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the other images to validate on.",
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
    validation_fraction: float,
    nonlinearity: Nonlinearity,
    ncsnr_scale: float,
    seed: int,
    as_json: bool,
) -> None:
    """Show the pictures of the embedding folder TARGETS to a simulated brain; write subject OUT.

    \b
    Example:  voxseek data simulate targets/ brain/ --voxels 3000 --seed 1
    """
    from .simulation import simulate_subject
    from .simulation_config import SimulationConfig

    config = SimulationConfig(
        n_voxels=voxels,
        n_test=test_images,
        validation_fraction=validation_fraction,
        nonlinearity=nonlinearity,
        ncsnr_scale=ncsnr_scale,
    )
    subject = simulate_subject(open_embeddings(targets), out, config, seed=seed)
    emit_subject(subject, as_json)


@data.command(short_help="Describe a subject folder.")
@click.argument("subject", type=EXISTING)
@click.option("--verify", is_flag=True, help="First compare every checksum, decode every image.")
@click.option("--plot", metavar="FILE.png", type=FOLDER, help="Draw counts, ceilings, pictures.")
@json_option
def info(subject: Path, verify: bool, plot: Path | None, as_json: bool) -> None:
    """Describe the subject folder SUBJECT: counts, splits, repeats, voxels, noise ceiling.

    \b
    Example:  voxseek data info demo/subject --verify
              voxseek data info subj01/ --plot subj01.png
    """
    from .subject import Subject

    opened = Subject.open(subject)
    if verify:
        opened.verify()
    emit_subject(opened, as_json, plot)
