"""Commands from an index to results: search, serve, reconstruct, bench, confidence, demo."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from index_builder.embeddings.terminal import EXISTING, FOLDER, emit, json_option, seed_option

from .benchmarks.commands import bench
from .confidence.commands import confidence
from .reconstruction.commands import reconstruct
from .searching.commands import search
from .serving.commands import serve

HOME = Path(__file__).resolve().parents[1]


@click.command(short_help="Run the main job end to end.")
@click.argument("out", type=FOLDER, default="demo")
@click.option(
    "--images", type=EXISTING, help="Your own photographs instead of OpenMoji's drawings."
)
@click.option("--real", type=EXISTING, help="Real fMRI instead: Miyawaki 2008, file or folder.")
@click.option("--recipe", "recipe_name", help="With --real: train by another recipe than figures.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="With --real: change a field of the recipe; may be repeated.",
)
@click.option("--control", is_flag=True, help="Train again on shuffled labels; must be at chance.")
@seed_option
@json_option
def demo(
    out: Path,
    images: Path | None,
    real: Path | None,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    control: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Run the main job end to end into OUT (default: demo): brain activity in, ranked images out.

    Makes pictures, targets, a simulated subject, a trained model, predictions, an index, search
    results with a gallery, and the benchmarks. An interrupted demo goes on.

    \b
    Example:  voxseek demo
              voxseek demo mine --images ~/photographs
              voxseek demo real --real V1_mean_figure.mat
              voxseek demo ridge --real V1_mean_figure.mat --recipe linear
    """
    if real is not None:
        if images is not None or control:
            raise click.UsageError("--real brings its own images and controls.")
        from .demo.real import RECIPE, run_real_demo

        told = run_real_demo(
            out, real, seed=seed, recipe_name=recipe_name or RECIPE, overrides=overrides
        )
        emit(told.to_dict(), as_json, told.lines())
        return
    if recipe_name is not None or overrides:
        raise click.UsageError("--recipe and --set go with --real; the simulated demo has its own.")
    from .demo.simulated import run_demo

    report = run_demo(out, images=images, seed=seed, control=control)
    emit(report.to_dict(), as_json, report.lines())


@click.command(short_help="Show what this installation is.")
@json_option
def doctor(as_json: bool) -> None:
    """Show versions, devices, extras, shadowed packages, free memory and disk.

    \b
    Example:  voxseek doctor --json
    """
    from .doctor import diagnose

    diagnosis = diagnose(HOME)
    emit(diagnosis.to_dict(), as_json, diagnosis.lines())
    if diagnosis.problems:
        sys.exit(1)


COMMANDS = (search, serve, reconstruct, bench, confidence, demo, doctor)
