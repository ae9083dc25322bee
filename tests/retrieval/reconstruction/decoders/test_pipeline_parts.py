from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from safetensors.torch import load_file, save_file

from index_builder.embeddings.errors import MissingExtraError
from retrieval.errors import ReconstructionError
from retrieval.reconstruction.image_variations import ImageVariations
from retrieval.reconstruction.unclip import StableUnclip
from tests.retrieval.reconstruction.decoders.small_pipelines import SEEDS

# Of diffusers' schedulers, which hand NumPy a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_a_vae_with_the_former_names_of_its_attention_is_read(
    open_decoder: Callable[..., Any],
    draw_embeddings: Callable[..., np.ndarray],
    copy_weights: Callable[[str], Path],
) -> None:
    former = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value."}
    former[".to_out.0."] = ".proj_attn."
    folder = copy_weights("versatile")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    renamed = 0
    for name in list(state):
        for current, then in former.items():
            if current in name:
                state[name.replace(current, then)] = state.pop(name)
                renamed += 1
    assert renamed == 16
    file.unlink()
    torch.save(state, folder / "vae" / "diffusion_pytorch_model.bin")
    embeddings = draw_embeddings("versatile")
    expected = open_decoder("versatile").decode(embeddings, seeds=SEEDS)
    pictures = open_decoder("versatile", folder).decode(embeddings, seeds=SEEDS)
    np.testing.assert_array_equal(pictures, expected)


@pytest.mark.parametrize(
    ("kind", "lost", "message"),
    [
        ("versatile", "image_unet", r"has no config.json.*folder image_unet of shi-labs/versatile"),
        ("versatile", "vae/diffusion_pytorch_model.safetensors", r"vae has no weights \(.safetens"),
        ("variations", "scheduler", r"scheduler has no scheduler_config.json.*of lambdalabs/sd-im"),
        ("unclip", "tokenizer", r"tokenizer has no tokenizer_config.json.*of stabilityai/stable"),
        ("unclip", "tokenizer/vocab.json", r"tokenizer of .*unclip can't be read"),
    ],
    ids=str,
)
def test_a_missing_part_is_named_with_its_source(
    kind: str,
    lost: str,
    message: str,
    open_decoder: Callable[..., Any],
    copy_weights: Callable[[str], Path],
) -> None:
    folder = copy_weights(kind)
    path = folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ReconstructionError, match=message):
        open_decoder(kind, folder)


def test_weights_that_are_not_all_there_are_refused(
    open_decoder: Callable[..., Any], copy_weights: Callable[[str], Path]
) -> None:
    folder = copy_weights("versatile")
    file = folder / "image_unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["conv_out.bias"]
    save_file(state, file)
    with pytest.raises(ReconstructionError, match=r"lacks 1 weights .*, conv_out.bias among them"):
        open_decoder("versatile", folder)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ReconstructionError, match=r"image_unet of .* can't be read"):
        open_decoder("versatile", folder)


def test_parts_of_other_networks_are_refused(
    open_decoder: Callable[..., Any], copy_weights: Callable[[str], Path]
) -> None:
    folder = copy_weights("unclip")
    normalizer = StableUnCLIPImageNormalizer(8)
    normalizer.save_pretrained(folder / "image_normalizer")
    with pytest.raises(ReconstructionError, match=r"labels of 32 numbers, .* embeddings of 8"):
        open_decoder("unclip", folder)
    (folder / "unet/config.json").write_text('{"_class_name": "UNetFlatConditionModel"}')
    with pytest.raises(ReconstructionError, match=r"is of 'UNetFlatConditionModel', expected 'UNe"):
        open_decoder("unclip", folder)


def test_neither_folder_nor_repository_is_said_to_be_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "unclip6_epoch0_step110000.ckpt"
    checkpoint.touch()
    for given in (checkpoint, tmp_path / "absent"):
        with pytest.raises(
            ReconstructionError, match=r"neither a folder nor .* unCLIP of MindEye2"
        ):
            StableUnclip(str(given))

    def unreachable(source, **options):
        raise OSError(f"{source} at {options['revision']} is not here")

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "from_pretrained", unreachable)
    with pytest.raises(
        ReconstructionError,
        match=r"diffusers at v2.0 is not here\n  Expected UNet2D.* the folder unet of lambdalabs",
    ):
        ImageVariations()


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_a_missing_library_is_named_with_its_extra(
    library: str, open_decoder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"{library} is not .*'voxseek\[reconstruct\]'"):
        open_decoder("unclip")
