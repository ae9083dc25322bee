"""VICRegL's ConvNeXt-XL: the teacher of the low-level branch's features.

Bardes et al. 2022 (arXiv:2210.01571), with the weight 0.75 on their global loss, through the
projector that their local loss is computed on: 512 features for every 32 x 32 pixels. The weights
are theirs (``convnext_xlarge_alpha0.75_fullckpt.pth``, CC BY-NC 4.0), the network is timm's.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.errors import MissingExtraError
from index_builder.embeddings.space import EmbeddingSpace

from ..errors import EncoderError
from .augmentation import augmented_view
from .square import square_pixels
from .weights import fill, read_tensors

NAME = "vicregl-convnext-xl"
DEPTHS, WIDTHS = (3, 3, 27, 3), (256, 512, 1024, 2048)  # ConvNeXt-XL: arXiv:2201.03545, section 3
STRIDE = 32  # Pixels a place of the feature map, along each side.
FEATURES = 512
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)[:, None, None]  # Of ImageNet.
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)[:, None, None]
# From the names of ConvNeXt's own code to timm's, in this order.
_RENAMED = (
    (r"^backbone\.norm\.", r"norm."),
    (r"\.downsample_layers\.0\.", r".stem."),
    (r"\.downsample_layers\.(\d)\.", r".stages.\1.downsample."),
    (r"\.stages\.(\d)\.(\d+)\.", r".stages.\1.blocks.\2."),
    (r"\.dwconv\.", r".conv_dw."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
)


class VicreglNetwork(nn.Module):
    """Pictures (n, 3, side, side) to features (n, (side / 32) ** 2, 512), rows of the map first.

    Parameters
    ----------
    depths, widths : tuple of int
        Blocks and channels of each stage.
    """

    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...]) -> None:
        try:
            from timm.models.convnext import ConvNeXt
        except ImportError as error:
            raise MissingExtraError("timm", "train", f"the encoder {NAME}") from error
        super().__init__()
        self.backbone = ConvNeXt(depths=depths, dims=widths, ls_init_value=None, num_classes=0)
        del self.backbone.head  # a classifier
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.maps_projector = nn.Sequential(
            nn.Linear(widths[-1], FEATURES),
            nn.LayerNorm(FEATURES),
            nn.ReLU(),
            nn.Linear(FEATURES, FEATURES),
            nn.LayerNorm(FEATURES),
            nn.ReLU(),
            nn.Linear(FEATURES, FEATURES, bias=False),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features; pixels are standardised by ImageNet's channel statistics."""
        places = self.backbone.forward_features(pixels).flatten(2).mT
        features: Tensor = self.maps_projector(self.norm(places))
        return features


class VicreglEncoder:
    """Features of the local projector of VICRegL's ConvNeXt-XL, of a picture or of a changed view.

    Parameters
    ----------
    pretrained : str
        The full checkpoint, projector and all.
    resolution : int, a multiple of 32
        Side of the square that a picture is resized to, in pixels: 512 in MindEye, 224 in MindEye2.
    augmented : bool
        Encode a random view (`augmented_view`) in place of the picture. It is drawn from the
        picture's own pixels: the same picture always gives the same view.
    device : str
        A torch device.

    Raises
    ------
    EncoderError
        If the weights can't be read or are others, or the resolution isn't a multiple of 32.
    MissingExtraError
        If timm is absent.
    """

    takes_text = False

    def __init__(
        self, pretrained: str, resolution: int = 512, augmented: bool = False, device: str = "cpu"
    ) -> None:
        if resolution < STRIDE or resolution % STRIDE:
            raise EncoderError(
                f"{NAME} at {resolution} pixels has no whole feature map; expected a multiple of "
                f"{STRIDE}, such as {NAME}-512."
            )
        file = Path(pretrained)
        if not file.is_file():
            raise EncoderError(
                f"pretrained is {pretrained!r}, which is not a file; expected VICRegL's "
                f"convnext_xlarge_alpha0.75_fullckpt.pth: --pretrained FILE."
            )
        network = VicreglNetwork(DEPTHS, WIDTHS)
        fill(network, _timm_names(read_tensors(file, within="model")), file)
        self._device = torch.device(device)
        self._network = network.eval().requires_grad_(False).to(self._device)
        self._resolution, self._augmented = resolution, augmented
        family = f"{NAME}-augmented" if augmented else NAME
        weights = f"{file.stem}@{sha256_file(file)[:12]}"
        self.space = EmbeddingSpace(
            model=f"{family}-{resolution}px/{weights}",
            layer="hidden",
            tokens=(resolution // STRIDE) ** 2,
            dim=FEATURES,
            unit_norm=False,
        )
        self.details: dict[str, str | int] = {
            "encoder": family,
            "resolution": resolution,
            "weights": weights,
        }

    def prepare(self, picture: Image.Image) -> NDArray[np.float32]:
        """Resize to a square, change it if asked, and standardise it: (3, side, side)."""
        pixels = square_pixels(picture, self._resolution)
        if self._augmented:
            seed = zlib.crc32(pixels.numpy().tobytes())
            pixels = augmented_view(pixels, np.random.default_rng(seed))
        return np.asarray((pixels.numpy() - _MEAN) / _STD, dtype=np.float32)

    def encode(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed prepared pictures: (n, tokens, 512), rows of the feature map first."""
        pixels = torch.from_numpy(batch).to(self._device)
        with torch.inference_mode():
            features = self._network(pixels).float().cpu().numpy()
        return np.asarray(features, dtype=np.float32)


def _timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return backbone and local projector of a checkpoint under the names of `VicreglNetwork`."""
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        if not name.startswith(("backbone.", "maps_projector.")):
            continue  # The global projector, and what the checkpoint was trained with.
        for former, current in _RENAMED:
            name = re.sub(former, current, name)
        renamed[name] = value
    return renamed
