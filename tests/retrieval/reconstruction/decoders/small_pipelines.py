"""Small networks of random weights, to be saved in the layouts of the public ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

from retrieval.reconstruction.contract import Sampling
from retrieval.reconstruction.image_variations import ImageVariations
from retrieval.reconstruction.unclip import StableUnclip
from retrieval.reconstruction.versatile_diffusion import VersatileDiffusion

DIM = 16  # Of a token.
SIDE = 32  # Of a picture, 8 times that of its latents.
TOKENS = 5  # Class token and 2 x 2 patches of the small CLIP.
SEEDS = (5, 3, 8)
SAMPLING = Sampling(guidance=3.0, n_steps=4)
DECODERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "versatile": (VersatileDiffusion, {"tokens": TOKENS}),
    "variations": (ImageVariations, {}),
    "unclip": (StableUnclip, {}),
}


def small_unet(**fields: Any) -> diffusers.UNet2DConditionModel:
    """Return a UNet whose output depends visibly on its condition."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=DIM,
        **fields,
    )
    for name, weight in unet.named_parameters():
        if ".attn2.to_" in name or "class_embedding" in name:
            weight.data *= 4
    return unet


def small_vae() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def small_clip() -> transformers.CLIPVisionModelWithProjection:
    config = transformers.CLIPVisionConfig(
        hidden_size=12,
        intermediate_size=16,
        projection_dim=DIM,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    clip = transformers.CLIPVisionModelWithProjection(config)
    clip.vision_model.post_layernorm.weight.data.normal_()
    return clip


def save_tokenizer(folder: Path) -> None:
    """Save CLIP's tokenizer with three pieces, padded as in Stable Diffusion 2: with ``!``."""
    folder.mkdir()
    vocabulary = {"!": 0, "<|startoftext|>": 1, "<|endoftext|>": 2, "a</w>": 3}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 7,
        "pad_token": "!",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_pipelines(root: Path) -> dict[str, Path]:
    """Save the parts of each pipeline, folder by folder, and return its folder by kind."""
    torch.manual_seed(0)
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    schedule["steps_offset"] = 1
    text_config = transformers.CLIPTextConfig(
        vocab_size=4,
        hidden_size=DIM,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=7,
        bos_token_id=1,
        eos_token_id=2,
    )
    normalizer = StableUnCLIPImageNormalizer(DIM)
    normalizer.mean.data = torch.randn(1, DIM)
    normalizer.std.data = 1 + torch.rand(1, DIM)
    scheduler = diffusers.DDIMScheduler(**schedule, clip_sample=False)
    parts = {
        "versatile": {
            "image_unet": small_unet(),
            "image_encoder": small_clip(),
            "scheduler": scheduler,
        },
        "variations": {"unet": small_unet(), "scheduler": diffusers.PNDMScheduler(**schedule)},
        "unclip": {
            "unet": small_unet(
                class_embed_type="projection", projection_class_embeddings_input_dim=2 * DIM
            ),
            "scheduler": diffusers.PNDMScheduler(**schedule, prediction_type="v_prediction"),
            "image_normalizer": normalizer,
            "image_noising_scheduler": diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            "text_encoder": transformers.CLIPTextModel(text_config),
        },
    }
    vae = small_vae()
    for name, of_pipeline in parts.items():
        for part, saved in {**of_pipeline, "vae": vae}.items():
            saved.save_pretrained(root / name / part)
    save_tokenizer(root / "unclip" / "tokenizer")
    return {name: root / name for name in parts}
