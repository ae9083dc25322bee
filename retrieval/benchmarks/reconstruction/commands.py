"""The command that measures reconstructions; the group of benchmarks takes it in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from index_builder.embeddings.errors import MissingExtraError
from index_builder.embeddings.terminal import (
    EXISTING,
    FOLDER,
    emit,
    json_option,
    open_embeddings,
    seed_option,
    split_option,
)

if TYPE_CHECKING:
    from .pixels import SsimChannels
    from .resizing import Resize
    from .two_way import TwoWay


@click.command("reconstruction", short_help="Measure reconstructed pictures.")
@click.argument("reconstructions", type=EXISTING)
@click.argument("seen", type=EXISTING, metavar="SUBJECT|SEEN")
@split_option
@click.option(
    "--networks",
    type=EXISTING,
    help="Folder of weight files: alexnet-owt-7be5be79.pth, inception_v3_google-0cc3c7bd.pth, "
    "efficientnet_b1-c27df63c.pth, swav_800ep_pretrain.pth.tar, and CLIP's "
    "open_clip_model.safetensors. A metric without its file is absent.",
)
@click.option(
    "--ssim-channels",
    default="gray",
    show_default=True,
    type=click.Choice(["gray", "color", "columns"]),
    help="Structural similarity of the luminance, over colors, or as old scikit-image has it.",
)
@click.option(
    "--two-way",
    default="reconstruction",
    show_default=True,
    type=click.Choice(["reconstruction", "image", "pairs"]),
    help="Who chooses: a reconstruction between pictures, a picture between reconstructions, or "
    "both are matched.",
)
@click.option(
    "--resize",
    default="plain",
    show_default=True,
    type=click.Choice(["plain", "antialiased"]),
    help="How pictures shrink; the papers' libraries did it plainly.",
)
@click.option(
    "--encoding-targets",
    type=EXISTING,
    help="Embeddings of the subject's pictures: adds the brain correlation.",
)
@click.option("--pretrained", metavar="TAG|FILE|TAG=FILE", help="Weights of their encoder.")
@click.option("--controls", is_flag=True, help="Also score the mean picture and a shuffling.")
@click.option("--published", is_flag=True, help="Also the numbers that papers print.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--out", type=FOLDER, help="Write the report, value by image included, as JSON.")
@seed_option
@json_option
def bench_reconstruction(
    reconstructions: Path,
    seen: Path,
    split: str,
    networks: Path | None,
    ssim_channels: SsimChannels,
    two_way: TwoWay,
    resize: Resize,
    encoding_targets: Path | None,
    pretrained: str | None,
    controls: bool,
    published: bool,
    device: str,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Measure how like the seen pictures RECONSTRUCTIONS are.

    RECONSTRUCTIONS is what `voxseek reconstruct` wrote, or any folder of pictures named by
    image_id, such as 12.png; SUBJECT|SEEN a subject folder, or such a folder of seen pictures.

    \b
    Example:  voxseek bench reconstruction reconstructions/ subj01/ --networks weights/ --controls
    """
    try:
        from .measure import Encoding, Variants, measure_reconstructions
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "reconstruct", "this benchmark") from error
    from ..report import write_report
    from .published import published_view
    from .table import format_report

    if pretrained is not None and encoding_targets is None:
        raise click.UsageError("--pretrained belongs to --encoding-targets; give both.")
    encoding = None
    if encoding_targets is not None:
        encoding = Encoding(open_embeddings(encoding_targets), pretrained)
    report = measure_reconstructions(
        reconstructions,
        seen,
        split=split,
        networks=networks,
        variants=Variants(ssim_channels, two_way, resize),
        encoding=encoding,
        has_controls=controls,
        device=device,
        seed=seed,
    )
    facts = report.to_dict()
    if published:
        facts["published"] = published_view()
    lines = [format_report(report, has_published=published)]
    if out is not None:
        lines += ["", f"report: {write_report(report, out)}"]
    emit(facts, as_json, lines)
