from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from training.decoder.canvas import PixelCanvas, open_canvas
from training.decoder.schema import LatentsRecipe, PixelsRecipe
from training.errors import RunError


@pytest.fixture
def pictures(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)


def test_pixels_come_back_as_they_were(pictures: np.ndarray) -> None:
    canvas = open_canvas(PixelsRecipe("pixels", 64))
    painted = canvas.paint(canvas.keep(pictures))
    assert canvas.side == 64 and canvas.weights == ""
    assert painted.shape == (11, 3, 64, 64)
    expected = pictures[4, 10, 20] / 127.5 - 1
    np.testing.assert_allclose(painted[4, :, 10, 20].numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(canvas.show(painted), pictures)


def test_pixels_beyond_the_range_are_cut_off() -> None:
    shown = PixelCanvas(1).show(torch.tensor([-3.0, 0.0, 3.0]).reshape(1, 3, 1, 1))
    np.testing.assert_array_equal(shown[0, 0, 0], [0, 128, 255])


def test_latents_are_those_of_the_autoencoder(pictures: np.ndarray, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    scaling = 0.3
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=scaling,
    ).eval()
    network.save_pretrained(tmp_path / "vae")
    recipe = LatentsRecipe("latents", "sd-vae", 64)
    canvas = open_canvas(recipe, pretrained=tmp_path / "vae")
    painted = canvas.paint(canvas.keep(pictures))
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        latents = network.encode(pixels).latent_dist.mode()
        decoded = network.decode(latents).sample
    torch.testing.assert_close(painted, latents * scaling, rtol=1e-3, atol=1e-4)
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(canvas.show(painted) - expected).max() <= 1
    assert canvas.weights.startswith("sd-vae-64px/vae@")


def test_weights_are_given_for_latents_alone(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"latents of taesd, and no weights .*: --vae DIR"):
        open_canvas(LatentsRecipe("latents", "taesd", 64))
    with pytest.raises(RunError, match=r"draws pixels, which need no autoencoder"):
        open_canvas(PixelsRecipe("pixels", 64), pretrained=tmp_path)
