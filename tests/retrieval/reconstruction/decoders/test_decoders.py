"""The three decoders, held against the pipelines of diffusers and against themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from PIL import Image
from safetensors.torch import load_file, save_file

from retrieval.errors import ReconstructionError
from retrieval.reconstruction.contract import Placement, Sampling
from retrieval.reconstruction.image_variations import ImageVariations
from retrieval.reconstruction.versatile_diffusion import VersatileDiffusion
from tests.retrieval.reconstruction.decoders.small_pipelines import (
    DECODERS,
    DIM,
    SAMPLING,
    SEEDS,
    SIDE,
    TOKENS,
    small_clip,
)

# Of diffusers' schedulers, which hand NumPy a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MAX_ERROR = 0.5 + 1e-3 * 255  # Levels: a rounding, and 1e-3 of the range.


@pytest.fixture
def unet_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the batch size of every call of a UNet."""
    calls: list[int] = []
    forward = diffusers.UNet2DConditionModel.forward

    def counted(self, sample, *args, **kwargs):
        calls.append(len(sample))
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", counted)
    return calls


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def read_part(folder: Path, part: str) -> Any:
    kinds = {"vae": diffusers.AutoencoderKL, "scheduler": diffusers.UniPCMultistepScheduler}
    return kinds.get(part, diffusers.UNet2DConditionModel).from_pretrained(folder, subfolder=part)


def levels_apart(pictures: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the differences, in levels, to pictures in [0, 1] before rounding."""
    return np.abs(pictures - 255 * expected)


def hidden_of(encoder: Any, pixels: torch.Tensor) -> torch.Tensor:
    normed = encoder.vision_model.post_layernorm(encoder.vision_model(pixels).last_hidden_state)
    return encoder.visual_projection(normed)


@pytest.mark.parametrize("blank", ["zeros", "black"])
@torch.inference_mode()
def test_versatile_diffusion_is_that_of_diffusers(
    blank: str,
    small_weights: dict[str, Path],
    open_decoder: Callable[..., Any],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = small_weights["versatile"]
    size = {"height": 16, "width": 16}
    pipeline = diffusers.VersatileDiffusionImageVariationPipeline(
        transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size),
        transformers.CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder"),
        read_part(folder, "image_unet"),
        read_part(folder, "vae"),
        read_part(folder, "scheduler"),
    )
    noise = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    seen = [Image.fromarray(pixels) for pixels in noise]
    pixels = pipeline.image_feature_extractor(images=seen, return_tensors="pt").pixel_values
    tokens = hidden_of(pipeline.image_encoder, pixels)
    if blank == "zeros":  # MindEye hands the pipeline its own embeddings.
        unit = tokens / tokens[:, :1].norm(dim=-1, keepdim=True)
        both = torch.cat([torch.zeros_like(unit), unit])
        monkeypatch.setattr(pipeline, "_encode_prompt", lambda *_: both)
    expected = pipeline(
        seen,
        num_inference_steps=SAMPLING.n_steps,
        guidance_scale=SAMPLING.guidance,
        negative_prompt=[Image.new("RGB", (16, 16))] * 3,
        generator=generators(),
        output_type="np",
    ).images
    decoder = open_decoder("versatile", blank=blank)
    pictures = decoder.decode(tokens.numpy(), seeds=SEEDS)
    assert levels_apart(pictures, expected).max() <= MAX_ERROR
    stretched = decoder.decode(3 * tokens.numpy(), seeds=SEEDS)
    assert np.abs(stretched.astype(int) - pictures).max() <= 1


def test_image_variations_are_those_of_diffusers(
    small_weights: dict[str, Path],
    open_decoder: Callable[..., Any],
    draw_embeddings: Callable[..., np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = small_weights["variations"]
    pipeline = diffusers.StableDiffusionImageVariationPipeline(
        read_part(folder, "vae"),
        small_clip(),
        read_part(folder, "unet"),
        read_part(folder, "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    embeddings = draw_embeddings("variations")
    encoded = transformers.models.clip.modeling_clip.CLIPVisionModelOutput(
        image_embeds=torch.from_numpy(embeddings[:, 0])
    )
    monkeypatch.setattr(pipeline.image_encoder, "forward", lambda _: encoded)
    expected = pipeline(
        torch.zeros(3, 3, 16, 16),
        num_inference_steps=SAMPLING.n_steps,
        guidance_scale=SAMPLING.guidance,
        generator=generators(),
        output_type="np",
    ).images
    pictures = open_decoder("variations").decode(embeddings, seeds=SEEDS)
    assert levels_apart(pictures, expected).max() <= MAX_ERROR


def test_unclip_is_that_of_diffusers(
    small_weights: dict[str, Path],
    open_decoder: Callable[..., Any],
    draw_embeddings: Callable[..., np.ndarray],
) -> None:
    folder = small_weights["unclip"]
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=small_clip(),
        image_normalizer=StableUnCLIPImageNormalizer.from_pretrained(
            folder, subfolder="image_normalizer"
        ),
        image_noising_scheduler=diffusers.DDPMScheduler.from_pretrained(
            folder, subfolder="image_noising_scheduler"
        ),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=transformers.CLIPTextModel.from_pretrained(folder / "text_encoder"),
        unet=read_part(folder, "unet"),
        scheduler=read_part(folder, "scheduler"),
        vae=read_part(folder, "vae"),
    )
    embeddings = draw_embeddings("unclip")
    expected = pipeline(
        prompt=[""] * 3,
        image_embeds=torch.from_numpy(embeddings[:, 0]),
        num_inference_steps=SAMPLING.n_steps,
        guidance_scale=SAMPLING.guidance,
        generator=generators(),
        output_type="np",
    ).images
    pictures = open_decoder("unclip").decode(embeddings, seeds=SEEDS)
    assert levels_apart(pictures, expected).max() <= MAX_ERROR


@pytest.mark.parametrize("start_pixels", ["vae", "clip"])
def test_a_start_is_image_to_image_of_diffusers(
    start_pixels: str,
    small_weights: dict[str, Path],
    open_decoder: Callable[..., Any],
    draw_embeddings: Callable[..., np.ndarray],
    starts: np.ndarray,
    unet_calls: list[int],
) -> None:
    folder = small_weights["variations"]
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(
        read_part(folder, "vae"),
        None,
        None,
        read_part(folder, "unet"),
        read_part(folder, "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pixels = torch.from_numpy(starts).permute(0, 3, 1, 2) / 255
    if start_pixels == "vae":
        pixels = 2 * pixels - 1
    else:
        processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
        pixels = processor(images=list(starts), return_tensors="pt").pixel_values
    with torch.inference_mode():
        latents = pipeline.vae.encode(pixels).latent_dist.mode()
    embeddings = draw_embeddings("variations")
    expected = pipeline(
        image=latents * pipeline.vae.config.scaling_factor,
        prompt_embeds=torch.from_numpy(embeddings),
        negative_prompt_embeds=torch.zeros(embeddings.shape),
        num_inference_steps=20,
        strength=0.85,
        guidance_scale=3.5,
        generator=generators(),
        output_type="np",
    ).images
    assert unet_calls == [6] * 17
    decoder = open_decoder("variations", sampling=Sampling(3.5, start_pixels=start_pixels))
    pictures = decoder.decode(embeddings, seeds=SEEDS, starts=starts)
    assert unet_calls == [6] * 34
    assert levels_apart(pictures, expected).max() <= MAX_ERROR


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 3), (3.5, 6)], ids=str)
def test_guidance_doubles_each_of_the_steps(
    guidance: float,
    rows: int,
    open_decoder: Callable[..., Any],
    draw_embeddings: Callable[..., np.ndarray],
    unet_calls: list[int],
) -> None:
    decoder = open_decoder("versatile", sampling=Sampling(guidance))
    decoder.decode(draw_embeddings("versatile"), seeds=SEEDS)
    assert unet_calls == [rows] * 20


def test_without_guidance_the_blank_says_nothing(
    open_decoder: Callable[..., Any], draw_embeddings: Callable[..., np.ndarray]
) -> None:
    embeddings = draw_embeddings("versatile")
    unguided = Sampling(guidance=1.0, n_steps=4)
    with_zeros, with_black, guided = (
        open_decoder("versatile", blank=blank, sampling=sampling).decode(embeddings, seeds=SEEDS)
        for blank, sampling in [("zeros", unguided), ("black", unguided), ("zeros", SAMPLING)]
    )
    np.testing.assert_array_equal(with_zeros, with_black)
    assert np.abs(guided.astype(int) - with_zeros).max() > 5


@pytest.mark.parametrize("kind", DECODERS)
def test_a_picture_depends_on_its_embedding_seed_and_start_alone(
    kind: str,
    open_decoder: Callable[..., Any],
    draw_embeddings: Callable[..., np.ndarray],
    starts: np.ndarray,
) -> None:
    from_late = Sampling(guidance=3.0, n_steps=4, strength=0.25)
    decoder = open_decoder(kind, sampling=from_late, placement=Placement(batch_size=2))
    embeddings = draw_embeddings(kind)
    together = decoder.decode(embeddings, seeds=SEEDS, starts=starts).astype(int)
    assert together.shape == (3, SIDE, SIDE, 3)
    last = slice(2, 3)
    alone = decoder.decode(embeddings[last], seeds=SEEDS[last], starts=starts[last])
    assert np.abs(alone - together[last]).max() <= 1
    others = [
        decoder.decode(embeddings[:1], seeds=SEEDS[last], starts=starts[last]),
        decoder.decode(embeddings[last], seeds=SEEDS[:1], starts=starts[last]),
        decoder.decode(embeddings[last], seeds=SEEDS[last], starts=starts[:1]),
        decoder.decode(embeddings[last], seeds=SEEDS[last]),
    ]
    assert min(np.abs(other - together[last]).max() for other in others) > 10


def test_starts_of_another_size_are_resized(
    open_decoder: Callable[..., Any], draw_embeddings: Callable[..., np.ndarray]
) -> None:
    decoder, embeddings = open_decoder("variations"), draw_embeddings("variations")
    colours = np.array([[40, 90, 200], [200, 10, 30], [0, 255, 120]], np.uint8)
    small, large = (
        decoder.decode(
            embeddings,
            seeds=SEEDS,
            starts=np.broadcast_to(colours[:, None, None], (3, height, width, 3)),
        )
        for height, width in [(8, 5), (SIDE, SIDE)]
    )
    assert np.abs(small.astype(int) - large).max() <= 1


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_nearly_the_same(
    precision: str,
    open_decoder: Callable[..., Any],
    draw_embeddings: Callable[..., np.ndarray],
    starts: np.ndarray,
) -> None:
    embeddings = draw_embeddings("unclip")
    whole = open_decoder("unclip")
    half = open_decoder("unclip", placement=Placement(precision=precision))
    assert (whole.details["precision"], half.details["precision"]) == ("fp32", precision)
    expected = whole.decode(embeddings, seeds=SEEDS, starts=starts).astype(int)
    apart = np.abs(half.decode(embeddings, seeds=SEEDS, starts=starts) - expected)
    assert 0 < apart.mean() < 4


def test_an_offloaded_network_is_on_the_device_only_while_it_computes(
    open_decoder: Callable[..., Any],
    draw_embeddings: Callable[..., np.ndarray],
    starts: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embeddings = draw_embeddings("versatile")
    expected = open_decoder("versatile").decode(embeddings, seeds=SEEDS, starts=starts)
    decoder = open_decoder("versatile", placement=Placement(device="cpu:0", offload=True))
    moves: list[tuple[str, str]] = []
    to = diffusers.ModelMixin.to

    def recorded(self, *args):
        moves.append((type(self).__name__, str(args[0])))
        return to(self, *args)

    monkeypatch.setattr(diffusers.ModelMixin, "to", recorded)
    pictures = decoder.decode(embeddings, seeds=SEEDS, starts=starts)
    np.testing.assert_array_equal(pictures, expected)
    used = ["AutoencoderKL", "UNet2DConditionModel", "AutoencoderKL"]
    assert moves == [(name, device) for name in used for device in ("cpu:0", "cpu")]


@pytest.mark.parametrize("kind", ["variations", "unclip"])
def test_unit_embeddings_are_scaled_to_what_the_network_knows(
    kind: str,
    small_weights: dict[str, Path],
    open_decoder: Callable[..., Any],
    draw_embeddings: Callable[..., np.ndarray],
) -> None:
    unit = draw_embeddings(kind)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    if kind == "variations":
        norm, option = 7.0, {"norm": 7.0}
    else:
        part = small_weights["unclip"] / "image_normalizer/diffusion_pytorch_model.safetensors"
        known = load_file(part)
        drawn = known["mean"] + known["std"] * torch.randn(4000, DIM)
        norm, option = float((drawn**2).sum(1).mean().sqrt()), {"unit_norm": True}
    scaled = open_decoder(kind, **option)
    assert scaled.details["norm"] == pytest.approx(norm, rel=0.02)
    pictures = scaled.decode(unit, seeds=SEEDS)
    longer = (unit * scaled.details["norm"]).astype(np.float32)
    expected = open_decoder(kind).decode(longer, seeds=SEEDS)
    assert np.abs(pictures.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", DECODERS)
def test_details_fix_weights_and_sampling(
    kind: str, open_decoder: Callable[..., Any], copy_weights: Callable[[str], Path]
) -> None:
    folder = copy_weights(kind)
    decoder = open_decoder(kind)
    assert (decoder.dim, decoder.side) == (DIM, SIDE)
    assert decoder.tokens == (TOKENS if kind == "versatile" else 1)
    assert decoder.details["decoder"] == decoder.name
    assert (decoder.details["steps"], decoder.details["guidance"]) == (4, 3.0)
    assert open_decoder(kind, folder).details == decoder.details
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(vae).items()}, vae)
    assert open_decoder(kind, folder).details["weights"] != decoder.details["weights"]


def test_pictures_that_are_not_finite_are_refused(
    open_decoder: Callable[..., Any],
    copy_weights: Callable[[str], Path],
    draw_embeddings: Callable[..., np.ndarray],
) -> None:
    folder = copy_weights("variations")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["decoder.conv_out.bias"][:] = torch.inf
    save_file(state, file)
    with pytest.raises(ReconstructionError, match=r"picture 0 is not finite in fp32"):
        open_decoder("variations", folder).decode(draw_embeddings("variations"), seeds=SEEDS)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"blank is 'grey', expected 'zeros' or 'black'"):
        VersatileDiffusion(blank="grey")
    with pytest.raises(ValueError, match=r"norm is 0.0, expected a length above 0, or None"):
        ImageVariations(norm=0.0)
