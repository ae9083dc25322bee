from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import functional

from index_builder.embeddings.errors import MissingExtraError
from retrieval.benchmarks.reconstruction import networks
from retrieval.benchmarks.reconstruction.networks import NETWORKS, Network, open_network
from training.errors import EncoderError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Metric, network, layer and side, as published.
PUBLISHED = {
    "efficientnet": (torchvision.models.efficientnet_b1, {}, "avgpool", 255),
    "inception": (
        torchvision.models.inception_v3,
        {"transform_input": True, "aux_logits": True, "init_weights": False},
        "avgpool",
        342,
    ),
    "swav": (torchvision.models.resnet50, {}, "avgpool", 224),
}


def network_of(metric: str) -> Network:
    return next(network for network in NETWORKS if metric in network.metrics)


def shaken(network: nn.Module) -> nn.Module:
    """Give a network statistics that a norm can't do without."""
    for name, values in network.named_buffers():
        if name.endswith("running_mean"):
            values.copy_(0.1 * torch.randn(values.shape))
        if name.endswith("running_var"):
            values.copy_(0.5 + torch.rand(values.shape))
    return network.eval().requires_grad_(False)


def expected_features(
    network: nn.Module, layer: str, side: int, canvases: np.ndarray
) -> np.ndarray:
    pixels = functional.resize(torch.from_numpy(canvases), [side, side], antialias=False)
    with warnings.catch_warnings():  # Inception has another output while it is trained.
        warnings.simplefilter("ignore", UserWarning)
        extractor = create_feature_extractor(network, return_nodes=[layer])
    return extractor(functional.normalize(pixels, *IMAGENET))[layer].flatten(1).numpy()


@pytest.fixture
def canvases(rng: np.random.Generator) -> np.ndarray:
    return rng.random((2, 3, 256, 256), dtype=np.float32)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("metric", sorted(PUBLISHED))
def test_features_are_those_of_the_published_layer(
    tmp_path: Path, canvases: np.ndarray, metric: str
) -> None:
    build, options, layer, side = PUBLISHED[metric]
    reference = shaken(build(weights=None, **options))
    state = reference.state_dict()
    if metric == "swav":
        # As the checkpoint is: no classifier, two heads that the features don't pass.
        state = {f"module.{key}": value for key, value in state.items() if key[:3] != "fc."}
        state |= {"module.projection_head.0.weight": torch.ones(2, 2)}
        state |= {"module.prototypes.weight": torch.ones(2, 2)}
    else:
        # As in older files: no counts of batches.
        state = {key: value for key, value in state.items() if "num_batches" not in key}
    network = network_of(metric)
    torch.save(state, tmp_path / network.files[0])
    assert network.find(tmp_path) == tmp_path / network.files[0]
    run = open_network(network, tmp_path / network.files[0], "cpu")
    found = run(network.prepare(canvases, "plain"))
    expected = expected_features(reference, layer, side, canvases)
    assert list(found) == [metric]
    np.testing.assert_allclose(found[metric], expected, rtol=1e-3, atol=1e-4 * expected.std())


def test_alexnet_gives_its_second_and_fifth_convolution(
    tmp_path: Path, canvases: np.ndarray, monkeypatch
) -> None:
    small = torchvision.models.alexnet(weights=None, num_classes=2)
    small.classifier = nn.Identity()  # 220 MB that no feature passes
    monkeypatch.setattr(torchvision.models, "alexnet", lambda weights: small)
    torch.save(small.state_dict(), tmp_path / "weights.pth")
    reference = small.eval().requires_grad_(False)
    network = network_of("alexnet5")
    found = open_network(network, tmp_path / "weights.pth", "cpu")(
        network.prepare(canvases, "plain")
    )
    assert {metric: rows.shape for metric, rows in found.items()} == {
        "alexnet2": (2, 192 * 31 * 31),
        "alexnet5": (2, 256 * 15 * 15),
    }
    for metric, layer in {"alexnet2": "features.4", "alexnet5": "features.11"}.items():
        expected = expected_features(reference, layer, 256, canvases)
        np.testing.assert_allclose(found[metric], expected, atol=1e-5)


def test_clip_is_openais_at_224_pixels_with_its_own_standardisation(
    canvases: np.ndarray, monkeypatch
) -> None:
    opened = []

    class Encoder:
        def __init__(self, *arguments: str) -> None:
            opened.append(arguments)

        def encode(self, batch: np.ndarray) -> np.ndarray:
            return batch.reshape(len(batch), -1)[:, :768]

    monkeypatch.setattr(networks, "ClipEncoder", Encoder)
    network = network_of("clip")
    prepared = network.prepare(canvases, "plain")
    assert prepared.shape == (2, 3, 224, 224)
    pixels = functional.resize(torch.from_numpy(canvases), [224, 224], antialias=False)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    np.testing.assert_allclose(prepared, functional.normalize(pixels, mean, std), atol=1e-5)
    features = open_network(network, Path("w/open_clip_model.safetensors"), "cpu")(prepared)
    assert opened == [("ViT-L-14", "openai=w/open_clip_model.safetensors", "cpu")]
    assert features["clip"].shape == (2, 768)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "a.pth")
    with pytest.raises(EncoderError, match=r"a.pth holds other weights than EfficientNet has"):
        open_network(network_of("efficientnet"), tmp_path / "a.pth", "cpu")
    (tmp_path / "b.pth").write_bytes(b"<html>")
    with pytest.raises(EncoderError, match=r"weights .*b.pth can't be read"):
        open_network(network_of("swav"), tmp_path / "b.pth", "cpu")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(MissingExtraError, match=r"torchvision.* the network SwAV ResNet-50 needs"):
        open_network(network_of("swav"), tmp_path, "cpu")


def test_files_are_called_as_torchvision_calls_them() -> None:
    models = torchvision.models
    for metric, weights in {
        "alexnet2": models.AlexNet_Weights.IMAGENET1K_V1,
        "inception": models.Inception_V3_Weights.DEFAULT,
        "efficientnet": models.EfficientNet_B1_Weights.DEFAULT,
    }.items():
        assert network_of(metric).files == (weights.url.rsplit("/", 1)[1],)
        assert network_of(metric).side == weights.transforms().resize_size[0]
