"""Latents back to pictures: what diffusers' own decoders give, and a round trip on real weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from index_builder.embeddings.space import EmbeddingSpace
from training.encoders.latent_pictures import TINY_WEIGHTS, LatentPictures
from training.encoders.vae import LatentEncoder
from training.errors import EncoderError

SCALING = 0.3
TAESD = EmbeddingSpace("taesd-16px/taesd@0", "hidden", 4, 4, unit_norm=False)


def as_bytes(pixels: torch.Tensor) -> np.ndarray:
    """Return pictures (n, side, side, 3) of diffusers' pixels in [-1, 1]."""
    unit = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return np.rint(255 * unit.numpy())


def test_a_vae_decodes_as_diffusers_does(tmp_path: Path, rng: np.random.Generator) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=SCALING,
    ).eval()
    vae.save_pretrained(tmp_path / "vae")
    space = EmbeddingSpace("sd-vae-32px/vae@0", "hidden", 16, 4, unit_norm=False)
    tokens = rng.normal(size=(3, 16, 4)).astype(np.float32)
    pictures = LatentPictures(space, tmp_path / "vae").decode(tokens)
    latents = torch.from_numpy(tokens.reshape(3, 4, 4, 4).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        expected = as_bytes(vae.decode(latents / SCALING).sample)
    assert pictures.shape == (3, 32, 32, 3)
    assert np.abs(pictures - expected).max() <= 1


def test_taesd_decodes_as_diffusers_does(tmp_path: Path, rng: np.random.Generator) -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    tiny = AutoencoderTiny().eval()
    published = {  # whose first layer is the clamp
        f"{int(name.split('.')[1]) + 1}.{name.split('.', 2)[2]}": value
        for name, value in tiny.decoder.state_dict().items()
    }
    save_file(published, tmp_path / TINY_WEIGHTS)
    tokens = 2 * rng.normal(size=(2, 4, 4)).astype(np.float32)
    latents = torch.from_numpy(tokens.reshape(2, 2, 2, 4).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        expected = as_bytes(tiny.decode(latents).sample)
    for given in (tmp_path, tmp_path / TINY_WEIGHTS):
        assert np.abs(LatentPictures(TAESD, given).decode(tokens) - expected).max() <= 1


def test_a_photograph_comes_back(shared_data: Path) -> None:
    weights = shared_data / "weights" / "taesd"
    encoder = LatentEncoder("taesd", str(weights), 256)
    photographs = sorted((shared_data / "images").rglob("*.jpg"))[:2]
    batch = np.stack([encoder.prepare(Image.open(path)) for path in photographs])
    decoder = LatentPictures(encoder.space, weights)
    pictures = decoder.decode(encoder.encode(batch))
    assert decoder.side == 256
    for picture, pixels in zip(pictures, batch, strict=True):
        seen = pixels.transpose(1, 2, 0).ravel()
        assert np.corrcoef(picture.ravel(), seen)[0, 1] > 0.9


def test_other_spaces_and_files_are_refused(tmp_path: Path) -> None:
    other = EmbeddingSpace("ViT-L-14/openai", "final", 1, 768, unit_norm=True)
    with pytest.raises(EncoderError, match="is no space of VAE latents"):
        LatentPictures(other, tmp_path)
    with pytest.raises(EncoderError, match="neither a weight file nor a folder that holds taesd_"):
        LatentPictures(TAESD, tmp_path)
    vae = EmbeddingSpace("sd-vae-16px/vae@0", "hidden", 4, 4, unit_norm=False)
    with pytest.raises(EncoderError, match=r"neither a weight file nor a folder that holds config"):
        LatentPictures(vae, tmp_path)
    (tmp_path / TINY_WEIGHTS).write_text("<html>")
    with pytest.raises(EncoderError, match="can't be read"):
        LatentPictures(TAESD, tmp_path)
    save_file({"1.weight": torch.zeros(3)}, tmp_path / TINY_WEIGHTS)
    with pytest.raises(EncoderError, match="holds other weights than"):
        LatentPictures(TAESD, tmp_path)
