"""CLIP image encoders through open_clip, pooled and projected output (layer ``final``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.errors import MissingExtraError
from index_builder.embeddings.space import EmbeddingSpace

from ..errors import EncoderError
from .unit import unit_rows


class ClipEncoder:
    """An open_clip image tower; Radford et al. 2021 (arXiv:2103.00020).

    Parameters
    ----------
    model : str
        A model name of open_clip, for example ``"ViT-L-14"``.
    pretrained : str
        A pretrained tag of open_clip (its weights are fetched from the hub once), or the path of
        a local weight file.
    device : str
        A torch device.

    Raises
    ------
    EncoderError
        If the model or the tag is unknown, or the weights can't be read.
    """

    def __init__(self, model: str, pretrained: str, device: str = "cpu") -> None:
        try:
            import open_clip
        except ImportError as error:
            raise MissingExtraError("open_clip", "train", "a CLIP encoder") from error
        if model not in open_clip.list_models():
            raise EncoderError(
                f"open_clip has no model {model!r}; expected one of "
                f"{', '.join(sorted(open_clip.list_models())[:8])} ... (open_clip.list_models())."
            )
        weights = Path(pretrained)
        is_file = weights.is_file()
        tags = open_clip.list_pretrained_tags_by_model(model)
        if not is_file and pretrained not in tags:
            raise EncoderError(
                f"pretrained is {pretrained!r}, which is neither a file nor a tag of {model}; "
                f"its tags: {', '.join(tags) or 'none'}."
            )
        try:
            network, _, preprocess = open_clip.create_model_and_transforms(
                model, pretrained=pretrained, device=device, weights_only=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise EncoderError(
                f"the weights {pretrained!r} of {model} can't be loaded: {error} "
                f"Give a weight file of this architecture, or a tag while the hub is reachable."
            ) from error
        self._network = network.eval()
        self._preprocess = preprocess
        self._device = torch.device(device)
        name = f"{weights.stem}@{sha256_file(weights)[:12]}" if is_file else pretrained
        dim = int(network.visual.output_dim)
        self.space = EmbeddingSpace(
            model=f"{model}/{name}", layer="final", tokens=1, dim=dim, unit_norm=True
        )
        self.details: dict[str, str | int] = {"encoder": "open_clip", "weights": name}

    def prepare(self, picture: Image.Image) -> NDArray[np.float32]:
        """Apply the model's own evaluation transform: (3, side, side)."""
        pixels: torch.Tensor = self._preprocess(picture.convert("RGB"))
        return np.asarray(pixels.numpy(), dtype=np.float32)

    def encode(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed prepared pictures as unit rows of shape (n, dim)."""
        with torch.inference_mode():
            pooled = self._network.encode_image(torch.from_numpy(batch).to(self._device))
        return unit_rows(pooled.float().cpu().numpy(), self.space.model)
