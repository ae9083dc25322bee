"""Blurry pictures of a low-level run: its own predictions, decoded, and the start of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from retrieval.reconstruction.low_level import LowLevelPictures
from retrieval.reconstruction.reconstruct import Makers, reconstruct
from training.encoders.latent_pictures import LatentPictures
from training.encoders.vae import LatentEncoder
from training.errors import RunError
from training.loop import train
from training.predict import predict
from training.recipe import load_recipe
from training.targets import embed_pictures, list_pictures

SMALL = (
    *("target.tokens=16", "model.latent_dim=24", "model.n_blocks=1", "model.start_channels=32"),
    *("model.start_side=1", "model.channels=32", "model.feature_dim=6", "loss.feature_weight=0"),
    *("train.epochs=1", "train.batch_size=16", "train.micro_batch_size=16", "train.n_threads=1"),
    "train.device='cpu'",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a taesd of random weights under the published names."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    tiny, folder = AutoencoderTiny(), tmp_path_factory.mktemp("taesd")
    for half, shift in ((tiny.encoder, 0), (tiny.decoder, 1)):
        state = {}
        for name, value in half.state_dict().items():
            _, number, rest = name.split(".", 2)
            state[f"{int(number) + shift}.{rest}"] = value
        save_file(state, folder / f"taesd_{'decoder' if shift else 'encoder'}.safetensors")
    return folder


@pytest.fixture(scope="module")
def low_level(scene: Any, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("low")
    encoder = LatentEncoder("taesd", str(weights), 32)
    latents = embed_pictures(list_pictures(scene.subject.path), folder / "latents", encoder)
    train([scene.subject], latents, load_recipe("mindeye_low_level", SMALL), folder / "run")
    return folder / "run"


def test_they_are_the_runs_predictions_decoded(
    scene: Any, low_level: Path, weights: Path, grid_decoder: Any, tmp_path: Path
) -> None:
    made = LowLevelPictures(low_level, scene.subject, split="test", vae=weights, device="cpu")
    pictures = made.make([4, 1])
    latents = predict(low_level, scene.subject, tmp_path / "latents", head="latent")
    expected = LatentPictures(latents.space, weights).decode(latents.take(np.array([1, 4]))[::-1])
    assert pictures.shape == (2, 32, 32, 3)
    assert np.abs(pictures.astype(int) - expected).max() <= 2  # predictions are float16
    makers = Makers(grid_decoder(), low_level=made)
    drawn = reconstruct(scene.run, scene.subject, tmp_path / "out", makers, device="cpu")
    plain = reconstruct(
        scene.run, scene.subject, tmp_path / "plain", Makers(grid_decoder()), device="cpu"
    )
    start = np.asarray(Image.open(drawn.path / "low_level" / "4.png"))
    np.testing.assert_array_equal(start, pictures[0])
    without = np.asarray(Image.open(plain.image_path(4)), float)
    found = np.asarray(Image.open(drawn.image_path(4)), float)
    np.testing.assert_allclose(found, (without + start.mean(axis=(0, 1))) / 2, atol=1)


def test_a_run_without_latents_is_refused(scene: Any, weights: Path) -> None:
    with pytest.raises(RunError, match="has no head 'latent'"):
        LowLevelPictures(scene.run, scene.subject, split="test", vae=weights)
