"""The command that draws what a brain saw: reconstruct."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from index_builder.embeddings.terminal import (
    EXISTING,
    FOLDER,
    emit,
    json_option,
    open_embeddings,
    seed_option,
)

if TYPE_CHECKING:
    from index_builder.embeddings.space import EmbeddingSpace
    from training.checkpoint import Run
    from training.subjects.subject import Subject

    from .artefact import Reconstruction
    from .contract import Decoder, Placement, Precision
    from .flow import Gap
    from .low_level import LowLevelPictures
    from .picking import Picker
    from .reconstruct import DecodedHead
    from .retrieved import RetrievedPictures

RETRIEVAL = "retrieval"
_HITS_LOOKED_THROUGH = 16


@click.command(short_help="Draw what a brain saw.")
@click.argument("run", type=EXISTING)
@click.argument("subject", type=EXISTING)
@click.argument("out", type=FOLDER)
@click.option(
    "--decoder",
    required=True,
    help="versatile-diffusion, image-variations or stable-unclip; a folder that voxseek decoder "
    "train wrote; or retrieval: the best picture of --index.",
)
@click.option(
    "--weights",
    metavar="DIR|REPOSITORY",
    help="Of the decoder, in diffusers' layout; by default the published ones, from the hub.",
)
@click.option(
    "--norm",
    type=click.FloatRange(0, min_open=True),
    help="For image-variations: mean length of CLIP's embeddings, where targets have unit norm.",
)
@click.option(
    "--samples",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Pictures an image; the one nearest to the brain's retrieval embedding is picked.",
)
@click.option(
    "--head",
    type=click.Choice(["prior", "retrieval"]),
    help="What is decoded; by default samples of the prior, if the run has one.",
)
@click.option("--keep-samples", is_flag=True, help="Keep all of them.")
@click.option("--encoder", help="Of the targets, for picking; by default the one of the space.")
@click.option("--pretrained", metavar="TAG|FILE|TAG=FILE", help="Its weights.")
@click.option(
    "--low-level", type=EXISTING, metavar="RUN", help="Start from its blurry pictures ..."
)
@click.option("--vae", type=EXISTING, metavar="DIR|FILE", help="... which this VAE decodes.")
@click.option("--strength", type=float, help="Share of the steps that follow a start; .85 or own.")
@click.option(
    "--start-pixels",
    type=click.Choice(["vae", "clip"]),
    help="How a start is scaled: as the VAE expects, or as MindEye's code does.",
)
@click.option("--guidance", type=float, help="Of the conditions; by default the decoder's own.")
@click.option("--steps", "n_steps", type=click.IntRange(1), help="From noise to picture.")
@click.option("--index", type=EXISTING, help="Also find the best picture of an index.")
@click.option("--where", metavar="SQL", help="Which of its rows may be found.")
@click.option(
    "--shards",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where its pictures are, by key: a folder of img2dataset's tar files.",
)
@click.option("--fetch", is_flag=True, help="Fetch them from their URLs, where no file is.")
@click.option(
    "--targets",
    type=EXISTING,
    help="For a decoder trained here: measure on the validation images how predictions differ.",
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    type=click.Choice(["train", "validation", "test"]),
    help="Which images of the subject.",
)
@click.option("--images", "n_images", type=click.IntRange(1), help="The first of them alone.")
@click.option(
    "--sheet",
    "n_on_sheet",
    default=24,
    show_default=True,
    type=click.IntRange(0),
    help="Images on the contact sheet.",
)
@click.option(
    "--batch-size", default=4, show_default=True, type=click.IntRange(1), help="Images at a time."
)
@click.option("--device", default="auto", show_default=True, help="A torch device.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Of a diffusion model.",
)
@click.option("--offload", is_flag=True, help="Keep each network in main memory until it computes.")
@seed_option
@json_option
def reconstruct(
    run: Path,
    subject: Path,
    out: Path,
    decoder: str,
    head: DecodedHead | None,
    keep_samples: bool,
    samples: int,
    split: str,
    n_images: int | None,
    n_on_sheet: int,
    batch_size: int,
    device: str,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw the images of SUBJECT's test split as RUN decodes them, into OUT.

    Goes on where an interrupted call stopped.

    \b
    Example:  voxseek reconstruct run/ subj01/ drawn/ --decoder versatile-diffusion --samples 16
              voxseek reconstruct run/ subj01/ drawn/ --decoder decoder/ --targets targets/
              voxseek reconstruct run/ subj01/ drawn/ --decoder retrieval --index index/
    """
    if decoder == RETRIEVAL and options["index"] is None:
        raise click.UsageError("--decoder retrieval needs --index INDEX.")
    if (options["low_level"] is None) != (options["vae"] is None):
        raise click.UsageError("--low-level RUN and --vae DIR|FILE go together.")
    from training.checkpoint import Run
    from training.subjects.subject import Subject

    from .reconstruct import Makers
    from .reconstruct import reconstruct as draw

    opened, trained = Subject.open(subject), Run.open(run)
    space = trained.space
    makers = Makers(
        None
        if decoder == RETRIEVAL
        else _decoder(decoder, trained, opened, split, head, device, options),
        _picker(space, device, options) if samples > 1 else None,
        _low_level(opened, split, device, options),
        _retrieved(space, options),
    )
    made = draw(
        run,
        opened,
        out,
        makers,
        split=split,
        head=head,
        n_samples=samples,
        keep_samples=keep_samples,
        n_images=n_images,
        batch_size=batch_size,
        n_on_sheet=n_on_sheet,
        seed=seed,
        device="auto" if device == "auto" else device.partition(":")[0],
    )
    facts = _facts(made, decoder)
    emit(
        facts,
        as_json,
        [
            f"{facts['n_images']} images drawn by {facts['decoder']}, {samples} "
            f"sample{'s' if samples > 1 else ''} each: {out / 'images'}",
            f"look: {out / 'contact_sheet.png'}",
            f"next: voxseek bench reconstruction {out} {subject}",
        ],
    )


def _facts(made: Reconstruction, decoder: str) -> dict[str, Any]:
    return {
        "out": str(made.path),
        "n_images": len(made.image_ids),
        "decoder": made.details["decoder"].get("name", decoder),
        "details": made.details,
    }


def _decoder(
    name: str,
    run: Run,
    subject: Subject,
    split: str,
    head: DecodedHead | None,
    device: str,
    options: dict[str, Any],
) -> Decoder:
    from training.encoders.device import one_device

    from .contract import Placement
    from .opening import is_trained_here, open_decoder

    precision: Precision = options["precision"]
    placement: Placement = Placement(one_device(device), precision, offload=options["offload"])
    gap: Gap | None = None
    if options["targets"] is not None:
        if not is_trained_here(name):
            raise click.UsageError("--targets is for a decoder that voxseek decoder train wrote.")
        gap = _gap(name, run, subject, head, options["targets"])
    opened = open_decoder(
        name,
        run.space,
        weights=options["weights"],
        norm=options["norm"],
        placement=placement,
        gap=gap,
        guidance=options["guidance"],
        n_steps=options["n_steps"],
        strength=options["strength"],
        start_pixels=options["start_pixels"],
    )
    if is_trained_here(name):
        from .flow import FlowDecoder

        assert isinstance(opened, FlowDecoder)  # what such a folder is opened as
        if subject.has_images:
            opened.require_unseen(subject, split)
    return opened


def _gap(name: str, run: Run, subject: Subject, head: DecodedHead | None, targets: Path) -> Gap:
    """Measure how predictions of the validation images differ from their targets."""
    from training.decoder.artefact import TrainedDecoder
    from training.predict import predict

    from .flow import measure_gap

    if head is None:
        head = "prior" if run.recipe.prior is not None else "retrieval"
    with TemporaryDirectory(prefix="voxseek-") as folder:
        predictions = predict(
            run.path, subject, Path(folder) / "predictions", split="validation", head=head
        )
        return measure_gap(predictions, open_embeddings(targets), TrainedDecoder.open(name))


def _picker(space: EmbeddingSpace, device: str, options: dict[str, Any]) -> Picker:
    from training.encoders.catalogue import name_encoder, open_encoder

    from .picking import Picker

    encoder, pretrained = options["encoder"], options["pretrained"]
    if encoder is None:
        encoder, pretrained = name_encoder(space, pretrained=pretrained)
    opened = open_encoder(encoder, pretrained=pretrained, device=device, layer=space.layer)
    space.require_comparable(opened.space, mine="the run", theirs=f"the encoder {encoder}")
    return Picker(opened)


def _low_level(
    subject: Subject, split: str, device: str, options: dict[str, Any]
) -> LowLevelPictures | None:
    if options["low_level"] is None:
        return None
    from .low_level import LowLevelPictures

    return LowLevelPictures(
        options["low_level"], subject, split=split, vae=options["vae"], device=device
    )


def _retrieved(space: EmbeddingSpace, options: dict[str, Any]) -> RetrievedPictures | None:
    if options["index"] is None:
        return None
    from ..images.fetching import FetchLimits
    from ..images.sources import PictureSources
    from ..images.tar_shards import TarShards
    from ..searching.engine import SearchEngine
    from ..searching.request import SearchRequest
    from .retrieved import RetrievedPictures

    engine = SearchEngine.open(options["index"])
    engine.space.require_comparable(space, mine=str(options["index"]), theirs="the run")
    shards = TarShards(options["shards"]) if options["shards"] is not None else None
    limits = FetchLimits() if options["fetch"] else None
    request = SearchRequest(_HITS_LOOKED_THROUGH, where=options["where"])
    return RetrievedPictures(engine, PictureSources(engine.embeddings, shards, limits), request)
