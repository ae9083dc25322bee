"""Commands that import fMRI sets and plain arrays into subject folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from index_builder.embeddings.terminal import (
    EXISTING,
    FOLDER,
    json_option,
    seed_option,
)

from .printing import emit_subject

images_option = click.option(
    "--images", type=EXISTING, help="Folder of the pictures; found by name, at any depth."
)
mask_option = click.option(
    "--mask",
    type=EXISTING,
    help="NIfTI mask in the space of the betas; by default the regions together, or every voxel "
    "that is finite and not 0.",
)
roi_option = click.option(
    "--roi", "rois", type=EXISTING, multiple=True, help="NIfTI region, kept as a named mask."
)
test_list_option = click.option(
    "--test-list", type=EXISTING, help="Text file with the pictures of the test."
)


def validation_option(default: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option for how many pictures to validate on."""
    return click.option(
        "--validation-images",
        default=default,
        show_default=True,
        type=click.IntRange(0),
        help="Pictures to validate on, never of the test.",
    )


@click.command(short_help="Import BOLD5000.")
@click.argument("betas", type=EXISTING)
@click.argument("names", type=EXISTING)
@click.argument("out", type=FOLDER)
@click.option(
    "--subject",
    required=True,
    type=click.Choice(["CSI1", "CSI2", "CSI3", "CSI4"]),
    help="Whose files to read; others are passed over.",
)
@mask_option
@roi_option
@images_option
@test_list_option
@click.option(
    "--test-shown",
    default=3,
    show_default=True,
    type=click.IntRange(2),
    help="Without a list: pictures shown at least so often are the test.",
)
@validation_option(250)
@seed_option
@json_option
def bold5000(
    betas: Path,
    names: Path,
    out: Path,
    subject: str,
    mask: Path | None,
    rois: tuple[Path, ...],
    images: Path | None,
    test_list: Path | None,
    test_shown: int,
    validation_images: int,
    seed: int,
    as_json: bool,
) -> None:
    """Import BETAS, a folder of BOLD5000's release 2, whose trials NAMES lists.

    NAMES is a text file, one picture a trial, or the folder of presentation lists.

    \b
    Example:  voxseek data import bold5000 betas/ CSI1/ csi1/ --subject CSI1 --images Stimuli/
    """
    from .bold5000 import import_bold5000

    imported = import_bold5000(
        betas,
        names,
        out,
        subject=subject,
        mask=mask,
        rois=rois,
        images=images,
        test_list=test_list,
        min_test_shows=test_shown,
        n_validation=validation_images,
        seed=seed,
    )
    emit_subject(imported, as_json)


@click.command(short_help="Import Kamitani's bdata files.")
@click.argument("source", type=EXISTING)
@click.argument("out", type=FOLDER)
@click.option("--subject", required=True, help="What to call the subject.")
@click.option(
    "--test-source",
    type=EXISTING,
    help="bdata file of the test, where it has its own (Deep Image Reconstruction).",
)
@click.option(
    "--mask", default="ROI_VC", show_default=True, help="Row of the metadata that marks the voxels."
)
@click.option(
    "--label", help="Column that names the stimulus; by default stimulus_name or stimulus_id."
)
@images_option
@validation_option(60)
@seed_option
@json_option
def object_decoding(
    source: Path,
    out: Path,
    subject: str,
    test_source: Path | None,
    mask: str,
    label: str | None,
    images: Path | None,
    validation_images: int,
    seed: int,
    as_json: bool,
) -> None:
    """Import SOURCE, a bdata HDF5 file of Generic Object Decoding or Deep Image Reconstruction.

    \b
    Example:  voxseek data import object-decoding Subject1.h5 god1/ --subject Subject1
    """
    from .object_decoding import import_object_decoding

    imported = import_object_decoding(
        source,
        out,
        subject=subject,
        test_source=test_source,
        mask=mask,
        label=label,
        images=images,
        n_validation=validation_images,
        seed=seed,
    )
    emit_subject(imported, as_json)


@click.command(short_help="Import THINGS-fMRI.")
@click.argument("release", type=EXISTING)
@click.argument("out", type=FOLDER)
@click.option(
    "--subject",
    required=True,
    type=click.Choice(["sub-01", "sub-02", "sub-03"]),
    help="Which subject.",
)
@click.option(
    "--roi",
    "rois",
    multiple=True,
    help="Column of VoxelMetadata.csv, such as V1 or 'LO1 (prf)'; a voxel of any is taken. By "
    "default all voxels.",
)
@click.option(
    "--noise-ceiling",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Leave out voxels whose nc_singletrial is below this.",
)
@images_option
@validation_option(400)
@seed_option
@json_option
def things(
    release: Path,
    out: Path,
    subject: str,
    rois: tuple[str, ...],
    noise_ceiling: float | None,
    images: Path | None,
    validation_images: int,
    seed: int,
    as_json: bool,
) -> None:
    """Import one subject of RELEASE, the folder betas_csv/ of THINGS-fMRI.

    \b
    Example:  voxseek data import things betas_csv/ things1/ --subject sub-01 --roi V1 --roi hV4
    """
    from .things import import_things

    imported = import_things(
        release,
        out,
        subject=subject,
        rois=rois,
        min_noise_ceiling=noise_ceiling,
        images=images,
        n_validation=validation_images,
        seed=seed,
    )
    emit_subject(imported, as_json)


@click.command(short_help="Import single-trial betas with events.")
@click.argument("out", type=FOLDER)
@click.option(
    "--betas",
    required=True,
    multiple=True,
    type=EXISTING,
    help="NIfTI, GLMsingle's .hdf5 or .mat, or folders of them.",
)
@click.option(
    "--events", required=True, multiple=True, type=EXISTING, help="events.tsv, or folders of them."
)
@click.option("--name", required=True, help="What to call the subject.")
@mask_option
@roi_option
@click.option(
    "--stimulus-column", default="stim_file", show_default=True, help="What names the picture."
)
@click.option(
    "--drop",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Events to drop, such as blank or catch trials.",
)
@test_list_option
@click.option("--test-where", metavar="COLUMN=VALUE", help="Or: events of the test.")
@click.option(
    "--test-shown",
    type=click.IntRange(2),
    help="Or: pictures shown at least so often are the test.",
)
@images_option
@validation_option(100)
@seed_option
@json_option
def bids(
    out: Path,
    betas: tuple[Path, ...],
    events: tuple[Path, ...],
    name: str,
    mask: Path | None,
    rois: tuple[Path, ...],
    stimulus_column: str,
    drop: tuple[str, ...],
    test_list: Path | None,
    test_where: str | None,
    test_shown: int | None,
    images: Path | None,
    validation_images: int,
    seed: int,
    as_json: bool,
) -> None:
    """Import single-trial betas of any set in BIDS names, or of GLMsingle, with their events.

    \b
    Example:  voxseek data import bids me/ --name sub-01 --betas derivatives/sub-01 \\
                  --events sub-01 --drop trial_type=blank --test-shown 3
    """
    if sum(option is not None for option in (test_list, test_where, test_shown)) != 1:
        raise click.UsageError("give one of --test-list, --test-where and --test-shown.")
    for condition in (*drop, *([test_where] if test_where else [])):
        if "=" not in condition:
            raise click.BadParameter(f"{condition!r} is no condition, expected COLUMN=VALUE.")
    from .bids import import_bids

    imported = import_bids(
        betas,
        events,
        out,
        name=name,
        mask=mask,
        rois=rois,
        stimulus_column=stimulus_column,
        drop=drop,
        test_list=test_list,
        test_where=test_where,
        min_test_shows=test_shown,
        images=images,
        n_validation=validation_images,
        seed=seed,
    )
    emit_subject(imported, as_json)


@click.command(short_help="Import an array of voxels and a table of trials.")
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
    from .arrays import import_arrays

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


@click.command(short_help="Import the figures of Miyawaki 2008.")
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
    from .miyawaki import import_miyawaki

    emit_subject(import_miyawaki(source, out, test_figure=test_figure), as_json)


COMMANDS = (bold5000, object_decoding, things, bids, arrays, miyawaki)
