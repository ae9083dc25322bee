"""Commands that import the Natural Scenes Dataset: its release, and MindEye's copies of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from index_builder.embeddings.terminal import EXISTING, FOLDER, json_option, seed_option

from .printing import emit_subject

validation_option = click.option(
    "--validation-images",
    default=300,
    show_default=True,
    type=click.IntRange(0),
    help="Images to validate on, drawn from those that aren't of the test.",
)
subject_option = click.option(
    "--subject", required=True, type=click.IntRange(1, 8), help="Which subject."
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    help="Of the voxels; by default the source's own, float16 for NSD's integers.",
)


def read_sessions(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Read numbers and ranges separated by commas, such as ``0,2-5``."""
    if value is None:
        return None
    numbers: list[int] = []
    for item in value.split(","):
        first, _, last = item.partition("-")
        if not (
            first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first)
        ):
            raise click.BadParameter(f"{item!r} is neither a number nor a range such as 0-36.")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


@click.command(short_help="Import the release of the Natural Scenes Dataset.")
@click.argument("release", type=EXISTING)
@click.argument("out", type=FOLDER)
@subject_option
@click.option(
    "--space",
    default="func1pt8mm",
    show_default=True,
    type=click.Choice(["func1pt8mm", "func1mm", "fsaverage", "nativesurface"]),
    help="Of the betas.",
)
@click.option(
    "--betas",
    default="betas_fithrf_GLMdenoise_RR",
    show_default=True,
    help="Which version of them: a folder of the space.",
)
@click.option(
    "--sessions",
    type=click.IntRange(1, 40),
    help="Keep the first of them alone: 37 are MindEye's. By default all that are there.",
)
@click.option(
    "--mask",
    default="nsdgeneral",
    show_default=True,
    help="The atlas whose labels above 0 choose the voxels.",
)
@click.option("--min-ncsnr", type=float, help="Leave out voxels whose ncsnr is below this.")
@click.option(
    "--stimuli",
    type=EXISTING,
    help="nsd_stimuli.hdf5, if it isn't in the release; it is referred to, not copied.",
)
@validation_option
@seed_option
@dtype_option
@json_option
def nsd(
    release: Path,
    out: Path,
    subject: int,
    space: str,
    betas: str,
    sessions: int | None,
    mask: str,
    min_ncsnr: float | None,
    stimuli: Path | None,
    validation_images: int,
    seed: int,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Import one subject of RELEASE, the folder that holds nsddata/ and nsddata_betas/.

    The shared images are the test. Goes on where an interrupted import stopped.

    \b
    Example:  voxseek data import nsd /data/nsd subj01/ --subject 1
              voxseek data import nsd /data/nsd subj01/ --subject 1 --sessions 37
    """
    from .nsd.importer import import_nsd

    imported = import_nsd(
        release,
        out,
        subject=subject,
        space=space,
        betas=betas,
        sessions=sessions,
        mask=mask,
        min_ncsnr=min_ncsnr,
        stimuli=stimuli,
        n_validation=validation_images,
        seed=seed,
        dtype=dtype or "float16",
    )
    emit_subject(imported, as_json)


@click.command(short_help="Import MindEye's tars.")
@click.argument("source", type=EXISTING)
@click.argument("out", type=FOLDER)
@subject_option
@click.option(
    "--images/--no-images", default=True, help="Whether the pictures are copied from the tars."
)
@click.option(
    "--published-validation",
    is_flag=True,
    help="Validate on the images of val/, instead of drawing some.",
)
@validation_option
@seed_option
@dtype_option
@json_option
def mindeye(
    source: Path,
    out: Path,
    subject: int,
    images: bool,
    published_validation: bool,
    validation_images: int,
    seed: int,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Import one subject of SOURCE, MindEye's webdataset_avg_split with train/, val/ and test/.

    Goes on where an interrupted import stopped.

    \b
    Example:  voxseek data import mindeye webdataset_avg_split/ subj01/ --subject 1
    """
    from .mindeye_tars import import_mindeye

    imported = import_mindeye(
        source,
        out,
        subject=subject,
        n_validation=validation_images,
        published_validation=published_validation,
        seed=seed,
        images=images,
        dtype=dtype,
    )
    emit_subject(imported, as_json)


@click.command(short_help="Import MindEye2's files.")
@click.argument("betas", type=EXISTING)
@click.argument("behavior", type=EXISTING)
@click.argument("out", type=FOLDER)
@subject_option
@click.option(
    "--images",
    type=EXISTING,
    help="coco_images_224_float16.hdf5 or nsd_stimuli.hdf5; it is referred to, not copied.",
)
@click.option(
    "--sessions",
    callback=read_sessions,
    metavar="N,N-N",
    help="Sessions to train on, from 0, such as 0 or 0-36; test trials of the others are kept.",
)
@click.option(
    "--test",
    "test_set",
    default="new_test",
    show_default=True,
    type=click.Choice(["new_test", "test"]),
    help="Shared images of all sessions, or of those that MindEye had.",
)
@validation_option
@seed_option
@dtype_option
@json_option
def mindeye2(
    betas: Path,
    behavior: Path,
    out: Path,
    subject: int,
    images: Path | None,
    sessions: list[int] | None,
    test_set: Literal["new_test", "test"],
    validation_images: int,
    seed: int,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Import one subject: BETAS, its betas_all_subj0X_fp32_renorm.hdf5, and BEHAVIOR, wds/.

    Goes on where an interrupted import stopped.

    \b
    Example:  voxseek data import mindeye2 betas_all_subj01_fp32_renorm.hdf5 wds/ subj01/ \\
                  --subject 1 --images coco_images_224_float16.hdf5
    """
    from .mindeye2 import import_mindeye2

    imported = import_mindeye2(
        betas,
        behavior,
        out,
        subject=subject,
        images=images,
        sessions=sessions,
        test=test_set,
        n_validation=validation_images,
        seed=seed,
        dtype=dtype,
    )
    emit_subject(imported, as_json)


COMMANDS = (nsd, mindeye, mindeye2)
