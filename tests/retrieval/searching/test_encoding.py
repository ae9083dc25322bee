from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from index_builder.embeddings.errors import MissingExtraError, SpaceMismatchError
from index_builder.embeddings.space import EmbeddingSpace
from retrieval.errors import QueryError
from retrieval.searching.encoding import QueryEncoder, open_query_encoder
from retrieval.searching.queries import load_queries, text_queries
from training.encoders.catalogue import open_encoder
from training.encoders.clip import ClipEncoder
from training.errors import EncoderError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Register a small CLIP architecture with open_clip, and save random weights of it."""
    import open_clip

    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 10, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "small-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(1)
    torch.save(open_clip.create_model("small-clip").state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def noise(rng: np.random.Generator, n: int) -> list[Image.Image]:
    sides = rng.integers(20, 90, (n, 2))
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in sides
    ]


def test_text_and_pictures_are_what_open_clip_makes_of_them(
    weights: Path, rng: np.random.Generator
) -> None:
    import open_clip

    space = ClipEncoder("small-clip", str(weights)).space
    encoder = open_query_encoder(space, pretrained=str(weights))
    assert (encoder.space, encoder.takes_text) == (space, True)
    network, _, preprocess = open_clip.create_model_and_transforms(
        "small-clip", pretrained=str(weights)
    )
    pictures, texts = noise(rng, 19), [f"{n} zebras" for n in range(70)]
    with torch.inference_mode():
        seen = network.eval().encode_image(torch.stack([preprocess(p) for p in pictures]))
        said = network.encode_text(open_clip.get_tokenizer("small-clip")(texts))
    for actual, expected in (
        (encoder.encode_images(pictures), seen.numpy()),
        (encoder.encode_texts(texts), said.numpy()),
    ):
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_texts_are_queries_with_their_words(weights: Path) -> None:
    encoder = QueryEncoder(ClipEncoder("small-clip", str(weights)))
    queries = text_queries(["a zebra", "a/giraffe"], encoder)
    assert queries.metadata(np.array([1]))["text"].to_pylist() == ["a/giraffe"]
    assert (queries.n_queries, queries.space) == (2, encoder.space)
    assert queries.name == "text:a zebra; a/giraffe"
    alone = load_queries("text:a zebra", get_encoder=lambda: encoder)
    np.testing.assert_allclose(
        next(alone.iter_batches(batch_queries=5)),
        next(queries.iter_batches(batch_queries=1)),
        atol=1e-6,
    )


def test_hidden_tokens_are_flattened_and_take_no_text(
    weights: Path, rng: np.random.Generator
) -> None:
    final = ClipEncoder("small-clip", str(weights)).space
    hidden = dataclasses.replace(final, layer="hidden", tokens=5, unit_norm=False)
    encoder = open_query_encoder(hidden, pretrained=str(weights))
    pictures = noise(rng, 3)
    rows = encoder.encode_images(pictures)
    assert rows.shape == (3, 5 * 24)
    expected = open_query_encoder(final, pretrained=str(weights)).encode_images(pictures)
    np.testing.assert_allclose(rows[:, :24], expected, atol=1e-5)
    with pytest.raises(QueryError, match="its encoder reads pictures alone"):
        encoder.encode_texts(["a zebra"])


@pytest.mark.parametrize("name", ["pixels-7", "efficientnet-lite0-64"])
def test_an_index_names_its_encoder(name: str, rng: np.random.Generator) -> None:
    made_by = open_encoder(name)
    encoder = open_query_encoder(made_by.space)
    (picture,) = noise(rng, 1)
    expected = made_by.encode(made_by.prepare(picture)[None])
    np.testing.assert_allclose(encoder.encode_images([picture]), expected, atol=1e-5)
    with pytest.raises(QueryError, match=r"reads pictures alone.*--encoder ViT-L-14 --pretrained"):
        encoder.encode_texts(["a zebra"])


def test_blank_texts_and_flat_pictures_have_no_direction(weights: Path) -> None:
    encoder = QueryEncoder(ClipEncoder("small-clip", str(weights)))
    with pytest.raises(QueryError, match="text 1 of 2 is blank"):
        encoder.encode_texts(["a zebra", "  "])
    pixels = QueryEncoder(open_encoder("pixels"))
    with pytest.raises(EncoderError, match="is it one flat color"):
        pixels.encode_images([Image.new("RGB", (20, 20), "white")])


def test_an_encoder_of_another_space_is_refused(weights: Path) -> None:
    space = ClipEncoder("small-clip", str(weights)).space
    with pytest.raises(SpaceMismatchError, match=r"the encoder pixels-9: pixels-9x9:final"):
        open_query_encoder(space, encoder="pixels-9")
    with pytest.raises(EncoderError, match="Give it again: --pretrained FILE"):
        open_query_encoder(space)
    others = EmbeddingSpace("small-clip/another@0123456789ab", "final", 1, 24, True)
    with pytest.raises(SpaceMismatchError, match="the encoder small-clip: small-clip/weights@"):
        open_query_encoder(others, pretrained=str(weights))
    with pytest.raises(EncoderError, match="brings its own weights"):
        open_query_encoder(open_encoder("pixels").space, pretrained="openai")


def test_an_extra_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "training.encoders.clip", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'voxseek\[train\]'"):
        open_query_encoder(EmbeddingSpace("ViT-L-14/openai", "final", 1, 768, True))
