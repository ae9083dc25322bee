"""CLIP's weights in the files of others, renamed to open_clip's names.

    OpenAI         a TorchScript archive (``ViT-L-14.pt``), or its weights saved alone
    Hugging Face   ``model.safetensors`` or ``pytorch_model.bin`` of a ``CLIPModel``, or of a
                   ``CLIPVisionModelWithProjection``, which has no text tower

Nothing of a file is run: PyTorch's reader of weights makes tensors and plain values only. Of a
TorchScript archive the tensors are taken; one with code that runs while it is read is refused.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import EncoderError
from .weights import read_tensors

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # which OpenAI saved as tensors
_RUN_BY_READING = b"__setstate__"
_NUMPY_SUFFIXES = (".npy", ".npz")  # of SigLIP, which open_clip reads

# Hugging Face to open_clip, for each tower outside its blocks, and inside a block.
_VISION = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj",
}
_TEXT = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = ("visual.proj", "text_projection")
_BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_QUERY, _KEY, _VALUE = (f"self_attn.{name}_proj" for name in "qkv")


@dataclass(frozen=True)
class ClipWeights:
    """Weights under open_clip's names.

    Parameters
    ----------
    file : Path
    tensors : mapping of str to Tensor
    quick_gelu : bool or None
        Which activation they were trained with, ``x sigmoid(1.702 x)`` or the exact GELU; None
        where the file doesn't say.
    has_text : bool
        Whether the text tower is among them.
    """

    file: Path
    tensors: Mapping[str, Tensor]
    quick_gelu: bool | None
    has_text: bool


def read_foreign_weights(path: Path) -> ClipWeights | None:
    """Read a file of weights of OpenAI or Hugging Face; None if it is in neither form.

    Raises
    ------
    EncoderError
        If the file is damaged or unsafe, or lacks weights of its form.
    """
    if _is_torchscript(path):
        return _openai_weights(path, _read_torchscript(path))
    if path.suffix in _NUMPY_SUFFIXES:
        return None
    tensors = read_tensors(path, within="state_dict")
    if any(name.startswith("vision_model.") for name in tensors):
        converted = convert_names(tensors, where=str(path))
        has_text = "token_embedding.weight" in converted
        quick_gelu = _stated_quick_gelu(path.parent / "config.json")
        return ClipWeights(path, converted, quick_gelu, has_text)
    if any(name in tensors for name in _NOT_WEIGHTS):
        return _openai_weights(path, tensors)
    return None


def convert_names(tensors: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """Rename the weights of a Hugging Face CLIP model.

    Query, key and value are one matrix in open_clip, in this order, and projections act from the
    right.

    Raises
    ------
    EncoderError
        If a name is unknown, or a block lacks query, key or value.
    """
    converted: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.endswith(".position_ids"):
            continue
        if match := _BLOCK.fullmatch(name):
            tower, number, part, kind = match.groups()
            block = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}"
            if part in (_QUERY, _KEY, _VALUE):
                attention.setdefault(f"{block}.attn.in_proj_{kind}", {})[part] = tensor
                continue
            known = f"{block}.{_IN_BLOCK[part]}.{kind}" if part in _IN_BLOCK else None
        else:
            known = _VISION.get(name) or _TEXT.get(name)
        if known is None:
            raise EncoderError(
                f"{where} holds {name!r}, which no CLIP model of Hugging Face has; expected the "
                f"weights of a CLIPModel. Give those of a CLIP model without changes."
            )
        converted[known] = tensor.T if known in _TRANSPOSED else tensor
    for known, parts in attention.items():
        if len(parts) < 3:
            raise EncoderError(f"{where} lacks a part of {known}: it has {', '.join(parts)} only.")
        converted[known] = torch.cat([parts[_QUERY], parts[_KEY], parts[_VALUE]])
    return converted


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if "/code/" in name and _RUN_BY_READING in archive.read(name):
                raise EncoderError(
                    f"{path} holds code that runs while it is read ({name}); OpenAI's files hold "
                    f"none. Don't trust it: download it from OpenAI, or give safetensors."
                )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise EncoderError(
                f"{path} can't be read as a TorchScript archive: {error} Download it again."
            ) from error
    return dict(module.state_dict())


def _openai_weights(path: Path, tensors: Mapping[str, Tensor]) -> ClipWeights:
    kept = {name: tensor for name, tensor in tensors.items() if name not in _NOT_WEIGHTS}
    return ClipWeights(path, kept, quick_gelu=True, has_text=True)


def _stated_quick_gelu(config: Path) -> bool | None:
    """Return what ``config.json`` beside the weights says, where it is there."""
    if not config.is_file():
        return None
    try:
        stated = json.loads(config.read_bytes())
        vision = stated.get("vision_config", stated)
        return bool(vision.get("hidden_act", "quick_gelu") == "quick_gelu")  # CLIPVisionConfig's
    except (ValueError, AttributeError) as error:
        raise EncoderError(
            f"{config} is no configuration of a CLIP model ({error}); restore it, or remove it and "
            f"choose between MODEL and MODEL-quickgelu yourself."
        ) from error
