"""The five networks whose features the published metrics compare, with weights from files.

Each picture is resized to the network's side without a crop, as in the code of Scotti et al. 2023
(arXiv:2305.18274), Reconstruction_Metrics.py, which is also where layers and sides are from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index_builder.embeddings.errors import MissingExtraError
from training.encoders.clip import ClipEncoder
from training.encoders.weights import fill, read_tensors

from .resizing import Pixels, Resize, resize_square

Features = dict[str, NDArray[np.float32]]

# Channel means and deviations of ImageNet, as torchvision documents, and of CLIP's own pictures
# (Radford et al. 2021, arXiv:2103.00020, code release).
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# After the rectifiers of the second and the fifth convolution.
_ALEXNET_LAYERS = {4: "alexnet2", 11: "alexnet5"}
_SWAV_HEADS = ("projection_head.", "prototypes.")


@dataclass(frozen=True)
class Network:
    """One network of the benchmark.

    Parameters
    ----------
    title : str
    metrics : tuple of str
        What its features are for.
    files : tuple of str
        Names under which its weights are published, any of which will do.
    side : int
        Of the picture it sees, in pixels.
    mean, std : tuple of float
        By which colors are standardised.
    build : callable
        Takes the weight file and a torch device; returns a function from standardised pixels
        (n, 3, side, side) to features (n, width) by metric.
    """

    title: str
    metrics: tuple[str, ...]
    files: tuple[str, ...]
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    build: Callable[[Path, str], Callable[[Pixels], Features]]

    def find(self, folder: Path) -> Path | None:
        """Return the weight file in ``folder``, if one is there."""
        return next((folder / name for name in self.files if (folder / name).is_file()), None)

    def prepare(self, canvases: Pixels, resize: Resize) -> Pixels:
        """Resize and standardise pictures of shape (n, 3, height, width), in [0, 1]."""
        mean, std = (np.array(c, np.float32)[:, None, None] for c in (self.mean, self.std))
        return (resize_square(canvases, self.side, resize) - mean) / std


def _alexnet(file: Path, device: str) -> Callable[[Pixels], Features]:
    from torchvision.models import alexnet

    network = _filled(alexnet(weights=None), file, device)
    stages = list(network.get_submodule("features").children())[: max(_ALEXNET_LAYERS) + 1]

    def run(pixels: Pixels) -> Features:
        features: Features = {}
        values = torch.from_numpy(pixels).to(device)
        with torch.inference_mode():
            for index, stage in enumerate(stages):
                values = stage(values)
                if index in _ALEXNET_LAYERS:
                    # The next stage is a pooling, which doesn't write into its input.
                    features[_ALEXNET_LAYERS[index]] = _rows(values)
        return features

    return run


def _inception(file: Path, device: str) -> Callable[[Pixels], Features]:
    from torchvision.models import inception_v3

    # With Google's weights the network undoes torchvision's standardisation and does its own.
    network = _filled(
        inception_v3(weights=None, transform_input=True, aux_logits=True, init_weights=False),
        file,
        device,
    )
    network.fc = nn.Identity()
    return _pooled(network, "inception", device)


def _efficientnet(file: Path, device: str) -> Callable[[Pixels], Features]:
    from torchvision.models import efficientnet_b1

    network = _filled(efficientnet_b1(weights=None), file, device)
    network.classifier = nn.Identity()
    return _pooled(network, "efficientnet", device)


def _swav(file: Path, device: str) -> Callable[[Pixels], Features]:
    from torchvision.models import resnet50

    network = resnet50(weights=None)
    network.fc = nn.Identity()
    return _pooled(_filled(network, file, device), "swav", device)


def _clip(file: Path, device: str) -> Callable[[Pixels], Features]:
    encoder = ClipEncoder("ViT-L-14", f"openai={file}", device)
    return lambda pixels: {"clip": encoder.encode(pixels)}


NETWORKS = (
    Network(
        "AlexNet",
        tuple(_ALEXNET_LAYERS.values()),
        ("alexnet-owt-7be5be79.pth",),
        256,
        *_IMAGENET,
        _alexnet,
    ),
    Network(
        "Inception v3",
        ("inception",),
        ("inception_v3_google-0cc3c7bd.pth",),
        342,
        *_IMAGENET,
        _inception,
    ),
    Network(
        "CLIP ViT-L/14",
        ("clip",),
        ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
        224,
        *_CLIP,
        _clip,
    ),
    Network(
        "EfficientNet-B1",
        ("efficientnet",),
        ("efficientnet_b1-c27df63c.pth",),
        255,
        *_IMAGENET,
        _efficientnet,
    ),
    Network(
        "SwAV ResNet-50",
        ("swav",),
        ("swav_800ep_pretrain.pth.tar",),
        224,
        *_IMAGENET,
        _swav,
    ),
)


def open_network(network: Network, file: Path, device: str) -> Callable[[Pixels], Features]:
    """Load a network.

    Returns
    -------
    run : callable
        From what `Network.prepare` returns to features, float32 arrays of shape (n, width), by
        metric.

    Raises
    ------
    EncoderError
        If the weights can't be read, or are those of another network.
    MissingExtraError
        If torchvision or open_clip is absent.
    """
    try:
        return network.build(file, device)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            error.name or "torchvision", "reconstruct", f"the network {network.title}"
        ) from error


def _filled(network: nn.Module, file: Path, device: str) -> nn.Module:
    """Load the weights of a file, whole."""
    state = {
        name.removeprefix("module."): value
        for name, value in read_tensors(file, within="state_dict").items()
    }
    state = {name: value for name, value in state.items() if not name.startswith(_SWAV_HEADS)}
    # Old files lack how many batches a norm has seen, which nobody reads after training.
    counts = {
        name: value
        for name, value in network.state_dict().items()
        if name.endswith(".num_batches_tracked")
    }
    fill(network, {**counts, **state}, file)
    return network.eval().requires_grad_(False).to(device)


def _pooled(network: nn.Module, metric: str, device: str) -> Callable[[Pixels], Features]:
    """Return a function to the average-pooled features of a network without its classifier."""

    def run(pixels: Pixels) -> Features:
        with torch.inference_mode():
            return {metric: _rows(network(torch.from_numpy(pixels).to(device)))}

    return run


def _rows(values: Tensor) -> NDArray[np.float32]:
    return np.asarray(values.flatten(1).float().cpu().numpy())
