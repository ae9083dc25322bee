from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from index_builder.embeddings.errors import MissingExtraError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from training.commands import embed
from training.encoders.catalogue import name_encoder, open_encoder
from training.encoders.vae import CONFIG, TINY_WEIGHTS, WEIGHTS
from training.errors import EncoderError

SCALING = 0.3  # Not Stable Diffusion's: to be read from the configuration.


def noise_picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def small_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small VAE of random weights in diffusers' layout."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "small-vae"
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=SCALING,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def change_vae(small_vae: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy the small VAE with other fields in its configuration."""

    def change(**fields: object) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(small_vae, folder)
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | fields))
        return folder

    return change


def test_latents_are_those_of_diffusers(small_vae: Path, rng: np.random.Generator) -> None:
    from diffusers import AutoencoderKL

    encoder = open_encoder("sd-vae-48", pretrained=str(small_vae))
    batch = np.stack([encoder.prepare(noise_picture(rng, 60, 40)) for _ in range(3)])
    tokens = encoder.encode(batch)
    network = AutoencoderKL.from_pretrained(small_vae).eval()
    with torch.inference_mode():
        encoded = network.encode(2 * torch.from_numpy(batch) - 1).latent_dist
    latents = encoded.mode().numpy() * SCALING
    assert tokens.shape == (3, 36, 4)
    np.testing.assert_allclose(tokens[:, 6 * 2 + 5], latents[:, :, 2, 5], rtol=1e-5, atol=1e-6)
    by_rows = latents.transpose(0, 2, 3, 1).reshape(3, 36, 4)
    np.testing.assert_allclose(tokens, by_rows, rtol=1e-5, atol=1e-6)


def test_a_picture_is_resized_as_pillow_does_before_rounding(
    small_vae: Path, rng: np.random.Generator
) -> None:
    encoder = open_encoder("sd-vae-16", pretrained=str(small_vae))
    picture = noise_picture(rng, 70, 50)
    expected = np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR)) / 255
    prepared = encoder.prepare(picture)
    assert prepared.dtype == np.float32 and prepared.min() >= 0 and prepared.max() <= 1
    np.testing.assert_allclose(prepared.transpose(1, 2, 0), expected, atol=1.01 / 255)


def test_the_space_names_family_size_and_weights(small_vae: Path) -> None:
    encoder = open_encoder("sd-vae", pretrained=str(small_vae))
    space = encoder.space
    assert space == EmbeddingSpace(space.model, "hidden", 64 * 64, 4, False)
    assert re.fullmatch(r"sd-vae-512px/small-vae@[0-9a-f]{12}", space.model)
    assert encoder.details["weights"] in space.model and not encoder.takes_text
    again = name_encoder(space, pretrained=str(small_vae))
    assert again == ("sd-vae-512", str(small_vae))
    with pytest.raises(EncoderError, match=r"weight file small-vae\.\*.*--pretrained FILE"):
        name_encoder(space)


def stable_diffusion_name(name: str) -> str:
    """Translate a parameter of the small VAE to the names of Stable Diffusion's own code."""
    swaps = [
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    ]
    for pattern, replacement in swaps:
        name = re.sub(pattern, replacement, name)
    return "first_stage_model." + name


def with_former_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    pattern = re.compile("|".join(re.escape(name) for name in former))
    return {pattern.sub(lambda m: former[m[0]], name): value for name, value in state.items()}


def with_stable_diffusion_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {stable_diffusion_name(name): value for name, value in state.items()}
    for name, value in renamed.items():
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            renamed[name] = value[..., None, None].contiguous()  # 1 x 1 convolutions there
    return renamed | {"model.diffusion_model.time_embed.0.bias": torch.zeros(3)}


@pytest.mark.parametrize("rename", [dict, with_former_names, with_stable_diffusion_names])
@pytest.mark.parametrize("file", ["vae.safetensors", "vae.pth"])
def test_a_file_may_have_the_names_of_any_of_its_codes(
    rename: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    file: str,
    small_vae: Path,
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    state = rename(load_file(small_vae / WEIGHTS))
    path = tmp_path / file
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    shutil.copy(small_vae / CONFIG, tmp_path)
    encoder = open_encoder("sd-vae-16", pretrained=str(path))
    assert encoder.space.model.startswith("sd-vae-16px/vae@")
    batch = encoder.prepare(noise_picture(rng, 16, 16))[None]
    expected = open_encoder("sd-vae-16", pretrained=str(small_vae)).encode(batch)
    np.testing.assert_array_equal(encoder.encode(batch), expected)


def test_a_file_without_configuration_is_stable_diffusions(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    from training.encoders.vae import _STABLE_DIFFUSION

    with torch.device("meta"):
        network = AutoencoderKL.from_config(_STABLE_DIFFUSION)
    # The number that the notebooks of MindEye2 print for the VAE of both papers.
    assert sum(parameter.numel() for parameter in network.parameters()) == 83_653_863
    torch.save({"encoder.down_blocks.0.nothing": torch.zeros(1)}, tmp_path / "vae.pth")
    with pytest.raises(
        EncoderError, match=r"other weights than AutoencoderKL has: decoder\.conv_in"
    ):
        open_encoder("sd-vae", pretrained=str(tmp_path / "vae.pth"))


def test_taesd_equals_diffusers_own_and_is_near_a_picture_again(shared_data: Path) -> None:
    from diffusers import AutoencoderTiny

    weights = shared_data / "weights" / "taesd"
    encoder = open_encoder("taesd-128", pretrained=str(weights))
    assert encoder.space.row_shape == (256, 4)
    assert re.fullmatch(r"taesd-128px/taesd@[0-9a-f]{12}", encoder.space.model)
    pictures = sorted((shared_data / "images" / "flickr1k").glob("*.jpg"))[:4]
    batch = np.stack([encoder.prepare(Image.open(path)) for path in pictures])
    tokens = encoder.encode(batch)
    network = AutoencoderTiny().eval()
    network.encoder.layers.load_state_dict(load_file(weights / TINY_WEIGHTS))
    decoder = load_file(weights / "taesd_decoder.safetensors")
    network.decoder.layers.load_state_dict(
        {re.sub(r"^\d+", lambda m: str(int(m[0]) - 1), name): x for name, x in decoder.items()}
    )
    pixels = 2 * torch.from_numpy(batch) - 1
    with torch.inference_mode():
        latents = network.encode(pixels).latents
        again = network.decode(torch.from_numpy(tokens).mT.reshape(latents.shape)).sample
    np.testing.assert_allclose(tokens, latents.flatten(2).mT.numpy(), atol=1e-5)
    mean_square = (again.clamp(-1, 1) - pixels).div(2).square().mean().item()
    assert -10 * np.log10(mean_square) > 20  # dB


def test_the_command_embeds_pictures_as_latents(
    small_vae: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        noise_picture(rng, 20, 20).save(tmp_path / "pictures" / name)
    arguments = [str(tmp_path / "pictures"), str(tmp_path / "out")]
    options = ["--encoder", "sd-vae-16", "--pretrained", str(small_vae)]
    result = CliRunner().invoke(embed, [*arguments, *options])
    assert result.exit_code == 0, result.output
    folder = EmbeddingFolder.open(tmp_path / "out")
    assert (folder.n_rows, folder.space.row_shape) == (2, (4, 4))


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("sd-vae", None, r"'sd-vae' needs pretrained weights: give --pretrained DIR\|FILE"),
        ("sd-vae", "nowhere", r"'nowhere', which is neither .* config\.json and diffusion_pyt"),
        ("taesd", "nowhere", r"a folder that holds taesd_encoder\.safetensors"),
        ("sd-vae-100", "nowhere", "sd-vae at 100 pixels has no whole latent map; .* multiple of 8"),
        ("taesd-0", "nowhere", "taesd at 0 pixels has no whole latent map"),
    ],
)
def test_what_names_no_weights_is_refused(name: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        open_encoder(name, pretrained=pretrained)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("family", ["sd-vae", "taesd"])
def test_files_that_hold_no_tensors_are_refused(family: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"no tensors here")
    with pytest.raises(EncoderError, match=rf"the weights .*weights\{suffix} can't be read"):
        open_encoder(family, pretrained=str(path))


def test_weights_of_another_network_are_refused(small_vae: Path) -> None:
    with pytest.raises(
        EncoderError, match=r"holds other weights than EncoderTiny has: layers\.0\.bias"
    ):
        open_encoder("taesd", pretrained=str(small_vae / WEIGHTS))


def test_configurations_of_another_network_are_refused(change_vae: Callable[..., Path]) -> None:
    folder = change_vae(_class_name="UNet2DConditionModel")
    with pytest.raises(EncoderError, match=r"configuration of 'UNet2DConditionModel'.*folder vae"):
        open_encoder("sd-vae", pretrained=str(folder))
    (folder / CONFIG).write_text("{")
    with pytest.raises(EncoderError, match=r"config\.json is not a configuration of diffusers"):
        open_encoder("sd-vae", pretrained=str(folder))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"block_out_channels": [8, 8, 16, 32]},
            r"decoder\.conv_in\.bias of shape \(16,\), expected \(32,\), and \d+ more differ",
        ),
        ({"layers_per_block": 2}, r"resnets\.2\.conv1\.bias of shape None, expected \(16,\)"),
        ({"down_block_types": ["Nothing"]}, r"makes no VAE: .*config\.json of a VAE"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(
    fields: dict[str, object], message: str, change_vae: Callable[..., Path]
) -> None:
    with pytest.raises(EncoderError, match=message):
        open_encoder("sd-vae", pretrained=str(change_vae(**fields)))


def test_a_vae_of_other_latents_is_refused(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=16).save_pretrained(
        tmp_path
    )
    message = "is a VAE of 16 channels, 1 pixels a latent; expected 4 and 8"
    with pytest.raises(EncoderError, match=message):
        open_encoder("sd-vae", pretrained=str(tmp_path))


def test_latents_that_are_not_finite_are_refused(small_vae: Path, rng: np.random.Generator) -> None:
    encoder = open_encoder("sd-vae-16", pretrained=str(small_vae))
    batch = np.stack([encoder.prepare(noise_picture(rng, 16, 16)) for _ in range(2)])
    batch[1, 0, 3, 3] = np.nan
    with pytest.raises(EncoderError, match="not finite for row 1 of the batch"):
        encoder.encode(batch)


def test_without_diffusers_the_extra_is_named(
    small_vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"a VAE encoder needs it.*voxseek\[train\]"):
        open_encoder("sd-vae", pretrained=str(small_vae))
