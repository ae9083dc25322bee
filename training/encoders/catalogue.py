"""The encoders that a name on the command line can mean, and the names that a space stands for."""

from __future__ import annotations

import re

from index_builder.embeddings.space import EmbeddingSpace, Layer

from ..errors import EncoderError
from .contract import ImageEncoder
from .device import one_device

_SIZED = re.compile(r"(efficientnet-lite0|pixels)(?:-(\d+))?")
_MAPS = "sd-vae|taesd|vicregl-convnext-xl|vicregl-convnext-xl-augmented"  # One token a place.
_MAP = re.compile(rf"({_MAPS})(?:-(\d+))?")
_EFFICIENTNET_SPACE = re.compile(r"efficientnet-lite0-(\d+)px/imagenet")
_PIXEL_SPACE = re.compile(r"pixels-(\d+)x\1")
_MAP_SPACE = re.compile(rf"((?:{_MAPS})-\d+)px/([^/]+)")
_OPEN_CLIP_SPACE = re.compile(r"([^/]+)/([^/]+)")
_WEIGHT_FILE = re.compile(r"(.+)@[0-9a-f]{12}")


def open_encoder(
    name: str, *, pretrained: str | None = None, device: str = "cpu", layer: Layer = "final"
) -> ImageEncoder:
    """Return the encoder called ``name``.

    Parameters
    ----------
    name : str
        ``efficientnet-lite0`` or ``efficientnet-lite0-160`` (side in pixels, 128 by default),
        ``pixels`` or ``pixels-16`` (grid of 10 x 10 by default); ``sd-vae``, ``taesd``,
        ``vicregl-convnext-xl``, ``vicregl-convnext-xl-augmented``, or one of them with a side in
        pixels, ``sd-vae-224`` (512 by default); or a model of open_clip, or one of them with
        ``-squashed``, ``ViT-bigG-14-squashed``, whose pictures are squashed to [0.5, 1].
    pretrained : str, optional
        For open_clip: a pretrained tag, a local weight file, or ``TAG=FILE``; see `ClipEncoder`.
        For ``sd-vae`` and ``taesd``: a local folder or file; see `LatentEncoder`. For
        ``vicregl-convnext-xl``: a local file; see `VicreglEncoder`.
    device : str
        A torch device; of several with commas the first; ``auto``: CUDA where there is one.
    layer : {"final", "hidden", "patches"}
        ``hidden``, all tokens, and ``patches`` are layers of open_clip's vision transformers; see
        `ClipEncoder`. ``sd-vae``, ``taesd`` and ``vicregl-convnext-xl`` have the layer hidden
        alone, and take no notice.

    Raises
    ------
    EncoderError
        If the name means nothing, ``pretrained`` is missing or superfluous, or the encoder has no
        such layer.
    """
    sized, mapped = _SIZED.fullmatch(name), _MAP.fullmatch(name)
    if sized is None:
        if pretrained is None:
            kind = "DIR|FILE" if mapped else "TAG|FILE"
            raise EncoderError(
                f"encoder {name!r} needs pretrained weights: give --pretrained {kind}. Without "
                f"weights of your own there are efficientnet-lite0[-PIXELS] and pixels[-SIDE]."
            )
        if mapped is not None:
            family, side = mapped.group(1), int(mapped.group(2) or 512)
            return _open_map_encoder(family, pretrained, side, one_device(device))
        from .clip import SQUASHED, ClipEncoder

        model = name.removesuffix(SQUASHED)
        return ClipEncoder(model, pretrained, one_device(device), layer, squashed=model != name)
    if pretrained is not None:
        raise EncoderError(f"encoder {name!r} brings its own weights; leave out --pretrained.")
    if layer != "final":
        raise EncoderError(
            f"encoder {name!r} has the layer final alone; the layer {layer} is one of open_clip's "
            f"vision transformers, such as ViT-L-14."
        )
    family, size = sized.group(1), sized.group(2)
    if family == "pixels":
        from .pixels import PixelEncoder

        return PixelEncoder(int(size)) if size else PixelEncoder()
    from .efficientnet import EfficientNetLite0Encoder

    if size:
        return EfficientNetLite0Encoder(int(size), device=one_device(device))
    return EfficientNetLite0Encoder(device=one_device(device))


def _open_map_encoder(family: str, pretrained: str, side: int, device: str) -> ImageEncoder:
    if family.startswith("vicregl"):
        from .vicregl import VicreglEncoder

        augmented = family.endswith("-augmented")
        return VicreglEncoder(pretrained, side, augmented=augmented, device=device)
    from .vae import LatentEncoder

    return LatentEncoder(family, pretrained, side, device)


def name_encoder(space: EmbeddingSpace, *, pretrained: str | None = None) -> tuple[str, str | None]:
    """Return the arguments ``name`` and ``pretrained`` by which `open_encoder` makes a space.

    Parameters
    ----------
    space : EmbeddingSpace
        Of an index, say, whose pictures were embedded by that encoder.
    pretrained : str, optional
        Tag or weight file to use with the model that the space names.

    Raises
    ------
    EncoderError
        If the space was made from a weight file, whose place it doesn't know, or its model isn't
        the name of an encoder.
    """
    if match := _EFFICIENTNET_SPACE.fullmatch(space.model):
        return f"efficientnet-lite0-{match.group(1)}", pretrained
    if match := _PIXEL_SPACE.fullmatch(space.model):
        return f"pixels-{match.group(1)}", pretrained
    match = _MAP_SPACE.fullmatch(space.model) or _OPEN_CLIP_SPACE.fullmatch(space.model)
    if match is None:
        raise EncoderError(
            f"the model {space.model!r} is not the name of an encoder; expected MODEL/TAG of "
            f"open_clip, sd-vae-PIXELSpx/WEIGHTS (or taesd, vicregl-convnext-xl), "
            f"efficientnet-lite0-PIXELSpx/imagenet or pixels-SIDExSIDE. Name the encoder of this "
            f"space: --encoder MODEL --pretrained TAG|FILE."
        )
    name, weights = match.groups()
    if pretrained is not None:
        return name, pretrained
    if file := _WEIGHT_FILE.fullmatch(weights):
        raise EncoderError(
            f"the space {space.model!r} was made with a weight file {file.group(1)}.*, and doesn't "
            f"know where it is. Give it again: --pretrained FILE."
        )
    return name, weights
