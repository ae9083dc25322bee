"""The encoders that a name on the command line can mean."""

from __future__ import annotations

import re

from ..errors import EncoderError
from .contract import ImageEncoder

_SIZED = re.compile(r"(efficientnet-lite0|pixels)(?:-(\d+))?")


def open_encoder(name: str, *, pretrained: str | None = None, device: str = "cpu") -> ImageEncoder:
    """Return the encoder called ``name``.

    Parameters
    ----------
    name : str
        ``efficientnet-lite0`` or ``efficientnet-lite0-160`` (side in pixels, 128 by default),
        ``pixels`` or ``pixels-16`` (grid of 10 x 10 by default), or a model of open_clip.
    pretrained : str, optional
        For open_clip: a pretrained tag or a local weight file.
    device : str
        A torch device.

    Raises
    ------
    EncoderError
        If the name means nothing, or ``pretrained`` is missing or superfluous.
    """
    sized = _SIZED.fullmatch(name)
    if sized is None:
        if pretrained is None:
            raise EncoderError(
                f"encoder {name!r} needs pretrained weights: give --pretrained TAG|FILE. Without "
                f"weights of your own there are efficientnet-lite0[-PIXELS] and pixels[-SIDE]."
            )
        from .clip import ClipEncoder

        return ClipEncoder(name, pretrained, device)
    if pretrained is not None:
        raise EncoderError(f"encoder {name!r} brings its own weights; leave out --pretrained.")
    family, size = sized.group(1), sized.group(2)
    if family == "pixels":
        from .pixels import PixelEncoder

        return PixelEncoder(int(size)) if size else PixelEncoder()
    from .efficientnet import EfficientNetLite0Encoder

    if size:
        return EfficientNetLite0Encoder(int(size), device=device)
    return EfficientNetLite0Encoder(device=device)
