"""The decoders that a name on the command line can mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from index_builder.embeddings.space import EmbeddingSpace

from ..errors import ReconstructionError
from .contract import Decoder, Placement, Sampling

if TYPE_CHECKING:
    from .flow import Gap

DECODERS = ("versatile-diffusion", "image-variations", "stable-unclip")


def open_decoder(
    name: str,
    space: EmbeddingSpace,
    *,
    weights: str | None = None,
    norm: float | None = None,
    placement: Placement | None = None,
    gap: Gap | None = None,
    **sampling: Any,
) -> Decoder:
    """Open a decoder by name.

    Parameters
    ----------
    name : str
        One of `DECODERS`, or a folder that ``voxseek decoder train`` wrote.
    space : EmbeddingSpace
        Of the embeddings that it will be given.
    weights : str or None
        Folder of diffusers' layout or repository of the hub; None: the published one. For a decoder
        that was trained here: the autoencoder whose latents it draws.
    norm : float or None
        For ``image-variations``: the length of the embeddings that it was trained with.
    placement : Placement or None
    gap : Gap or None
        For a decoder that was trained here: how predictions differ from targets.
    sampling
        Fields of `Sampling` that differ from the decoder's own.

    Raises
    ------
    ReconstructionError
        If the name means nothing, an option isn't one of this decoder, or weights are missing.
    """
    given = {key: value for key, value in sampling.items() if value is not None}
    if is_trained_here(name):
        if norm is not None:
            raise ReconstructionError(f"{name} takes no --norm; image-variations does.")
        return _open_flow(name, space, weights, gap, placement, given)
    if name not in DECODERS:
        raise ReconstructionError(
            f"decoder {name!r} is neither one of {', '.join(DECODERS)} nor a folder that voxseek "
            f"decoder train wrote. Choose one, or 'retrieval' with --index."
        )
    if norm is not None and name != "image-variations":
        raise ReconstructionError(f"{name} takes no --norm; image-variations does.")
    options: dict[str, Any] = {"placement": placement or Placement()}
    if weights is not None:
        options["weights"] = weights
    if name == "versatile-diffusion":
        from .versatile_diffusion import VersatileDiffusion

        return VersatileDiffusion(sampling=_sampling(3.5, given), tokens=space.tokens, **options)
    if name == "stable-unclip":
        from .unclip import StableUnclip

        return StableUnclip(sampling=_sampling(10.0, given), unit_norm=space.unit_norm, **options)
    from .image_variations import ImageVariations

    if space.unit_norm and norm is None:
        raise ReconstructionError(
            f"{name} knows CLIP embeddings at their own length, and {space} has unit norm. Give "
            f"their mean length: --norm NUMBER."
        )
    return ImageVariations(sampling=_sampling(7.5, given), norm=norm, **options)


def is_trained_here(name: str) -> bool:
    """Tell whether a decoder's name is a folder that ``voxseek decoder train`` wrote."""
    return (Path(name) / "decoder.json").is_file()


def _open_flow(
    name: str,
    space: EmbeddingSpace,
    vae: str | None,
    gap: Gap | None,
    placement: Placement | None,
    given: dict[str, Any],
) -> Decoder:
    from training.decoder.artefact import TrainedDecoder

    from .flow import FlowDecoder

    trained = TrainedDecoder.open(name)
    trained.space.require_comparable(space, mine=name, theirs="the run")
    drawn = trained.recipe.sampling
    sampling = _sampling(drawn.guidance, {"n_steps": drawn.n_steps, **given})
    return FlowDecoder(name, sampling=sampling, placement=placement, gap=gap, vae=vae)


def _sampling(guidance: float, given: dict[str, Any]) -> Sampling:
    try:
        return Sampling(**{"guidance": guidance, **given})
    except ValueError as error:
        raise ReconstructionError(str(error)) from error
