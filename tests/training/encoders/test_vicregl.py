from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from index_builder.embeddings.errors import MissingExtraError
from index_builder.embeddings.space import EmbeddingSpace
from training.encoders import vicregl
from training.encoders.catalogue import name_encoder, open_encoder
from training.errors import EncoderError

# A small run of ConvNeXt and MLP of MedARC-AI/fMRI-reconstruction-NSD at 6b30ea5 (src/convnext.py),
# made outside this repository with PyTorch 2.14.1 in float32 on a CPU.
REFERENCE = Path(__file__).parents[1] / "reference" / "vicregl_convnext.npz"


def noise_picture(rng: np.random.Generator, side: int = 64) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture
def small_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Save weights of a small network as VICRegL saves them, each filled by its published name."""
    monkeypatch.setattr(vicregl, "DEPTHS", (1, 1, 2, 1))
    monkeypatch.setattr(vicregl, "WIDTHS", (8, 8, 16, 16))

    def save(*, without: str = "nothing") -> Path:
        frozen = np.load(REFERENCE)
        state = {"module.projector.0.weight": torch.zeros(3)}
        for name, shape in zip(frozen["names"].tolist(), frozen["shapes"].tolist(), strict=True):
            shape = tuple(int(extent) for extent in shape.split())
            draw = np.random.default_rng(zlib.crc32(name.encode())).random(shape) - 0.5
            if len(shape) > 1:
                values = draw * (12 / np.prod(shape[1:])) ** 0.5
            else:
                values = 0.5 * draw + name.endswith("weight")
            if without not in name:
                state[f"module.{name}"] = torch.from_numpy(values).float()
        path = tmp_path / "full.pth"
        torch.save({"epoch": 150, "model": state}, path)
        return path

    return save


def test_features_are_the_published_networks(small_weights: Callable[..., Path]) -> None:
    encoder = open_encoder("vicregl-convnext-xl-64", pretrained=str(small_weights()))
    frozen = np.load(REFERENCE)
    features = encoder.encode(frozen["pixels"].astype(np.float32))
    assert features.shape == (2, 4, 512)
    np.testing.assert_allclose(features[:, :, ::4], frozen["features"], rtol=1e-4, atol=1e-5)


def test_the_network_of_the_paper_has_its_size() -> None:
    with torch.device("meta"):
        network = vicregl.VicreglNetwork(vicregl.DEPTHS, vicregl.WIDTHS)
    backbone = sum(parameter.numel() for parameter in network.backbone.parameters())
    # ConvNeXt-XL has 350 M with its classifier of 1000 (arXiv:2201.03545, table 1).
    assert backbone + 2049 * 1000 == pytest.approx(350e6, rel=2e-3)


def test_pictures_are_standardized_by_imagenets_statistics(
    small_weights: Callable[..., Path],
) -> None:
    encoder = open_encoder("vicregl-convnext-xl-32", pretrained=str(small_weights()))
    color = np.array([124, 116, 104])  # ImageNet's mean, 0.485, 0.456, 0.406, in bytes
    prepared = encoder.prepare(Image.new("RGB", (50, 40), tuple(color.tolist())))
    assert prepared.shape == (3, 32, 32) and prepared.dtype == np.float32
    assert np.abs(prepared).max() < 0.02
    white = encoder.prepare(Image.new("RGB", (50, 40), "white"))
    np.testing.assert_allclose(white[:, 0, 0], [2.2489, 2.4286, 2.6400], atol=1e-3)


def test_a_picture_has_one_augmented_view(
    small_weights: Callable[..., Path], rng: np.random.Generator
) -> None:
    weights = str(small_weights())
    plain = open_encoder("vicregl-convnext-xl-64", pretrained=weights)
    augmented = open_encoder("vicregl-convnext-xl-augmented-64", pretrained=weights)
    one, other = noise_picture(rng), noise_picture(rng)
    view = augmented.prepare(one)
    np.testing.assert_array_equal(augmented.prepare(one), view)
    assert np.abs(view - plain.prepare(one)).mean() > 0.1
    assert np.abs(view - augmented.prepare(other)).mean() > 0.1
    assert augmented.space.row_shape == plain.space.row_shape == (4, 512)
    assert augmented.space.model != plain.space.model


@pytest.mark.parametrize("name", ["vicregl-convnext-xl-64", "vicregl-convnext-xl-augmented-64"])
def test_the_space_names_the_encoder(name: str, small_weights: Callable[..., Path]) -> None:
    weights = small_weights()
    space = open_encoder(name, pretrained=str(weights)).space
    assert space == EmbeddingSpace(space.model, "hidden", 4, 512, False)
    assert re.fullmatch(rf"{name}px/full@[0-9a-f]{{12}}", space.model)
    assert name_encoder(space, pretrained=str(weights)) == (name, str(weights))


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("pwconv2.bias", r"backbone\.stages\.0\.blocks\.0\.mlp\.fc2\.bias of shape None"),
        ("maps_projector.6", r"maps_projector\.6\.weight of shape None, expected \(512, 512\)"),
    ],
)
def test_a_checkpoint_that_lacks_a_part_is_refused(
    without: str, message: str, small_weights: Callable[..., Path]
) -> None:
    with pytest.raises(EncoderError, match=message):
        open_encoder("vicregl-convnext-xl-64", pretrained=str(small_weights(without=without)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vicregl-convnext-xl", r"'nowhere', which is not a file; expected VICRegL's"),
        ("vicregl-convnext-xl-100", "at 100 pixels has no whole feature map; .* multiple of 32"),
    ],
)
def test_what_names_no_weights_is_refused(name: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        open_encoder(name, pretrained="nowhere")


def test_without_timm_the_extra_is_named(
    small_weights: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm.models.convnext", None)
    with pytest.raises(MissingExtraError, match=r"vicregl-convnext-xl needs it.*voxseek\[train\]"):
        open_encoder("vicregl-convnext-xl", pretrained=str(small_weights()))
