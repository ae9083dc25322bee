"""CLIP encoders through open_clip: pictures and texts, or tokens (``hidden``, ``patches``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.errors import MissingExtraError
from index_builder.embeddings.space import EmbeddingSpace, Layer

from ..errors import EncoderError
from .clip_weights import ClipWeights, read_foreign_weights
from .unit import unit_class_tokens, unit_rows
from .weights import fill

SQUASHED = "-squashed"  # ends the name of a model whose pictures are squashed


class ClipEncoder:
    """An open_clip model; Radford et al. 2021 (arXiv:2103.00020).

    Parameters
    ----------
    model : str
        A model name of open_clip, for example ``"ViT-L-14"``.
    pretrained : str
        A pretrained tag of open_clip (its weights are fetched from the hub once), or the path of
        a local weight file, or ``TAG=FILE``: a file that you know to hold the weights of the tag,
        so that the space is that of all who used the tag. A file may be open_clip's, OpenAI's or
        Hugging Face's; see `training.encoders.clip_weights`.
    device : str
        A torch device.
    layer : {"final", "hidden", "patches"}
        ``final``: pooled and projected, of unit norm; the space that texts share. ``hidden``: all
        tokens of the last block through the last norm and the projection, divided by the norm of
        the class token, so that this token is the ``final`` embedding: 257 x 768 for ViT-L/14.
        ``patches``: the tokens of the patches through the last norm, and nothing else:
        256 x 1664 for ViT-bigG/14.
    squashed : bool
        Whether pictures are squashed to [0.5, 1] before they are normalized.

    Raises
    ------
    EncoderError
        If the model or the tag is unknown, the weights can't be read or are of another activation
        than the model, or the model has no such layer.

    Notes
    -----
    The hidden layer is the target of Scotti et al. 2023 (arXiv:2305.18274), as their code computes
    it and as Versatile Diffusion expects it. The patches are the target of Scotti et al. 2024
    (arXiv:2403.11207), of squashed pictures: their embedder halves and lifts pixels as if they
    were in [-1, 1], and they are in [0, 1]. Their SDXL unCLIP was used with these.
    """

    def __init__(
        self,
        model: str,
        pretrained: str,
        device: str = "cpu",
        layer: Layer = "final",
        *,
        squashed: bool = False,
    ) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise MissingExtraError("open_clip", "train", "a CLIP encoder") from error
        if model not in open_clip.list_models():
            raise EncoderError(
                f"open_clip has no model {model!r}; expected one of "
                f"{', '.join(sorted(open_clip.list_models())[:8])} ... (open_clip.list_models())."
            )
        weights = _find_weights(model, pretrained)
        try:
            network, _, preprocess = open_clip.create_model_and_transforms(
                model,
                pretrained=weights.source,
                device=device,
                weights_only=True,
                **weights.options,
            )
            if weights.foreign is not None:
                _load(network, weights.foreign, model)
        except (OSError, RuntimeError, ValueError) as error:
            raise EncoderError(
                f"the weights {pretrained!r} of {model} can't be loaded: {error} "
                f"Give a weight file of this architecture, or a tag while the hub is reachable."
            ) from error
        self._model = model
        self._network = network.eval()
        self._preprocess = preprocess
        self._squashed = squashed
        self._device = torch.device(device)
        tokens, dim = _count_numbers(network.visual, layer, model)
        self.space = EmbeddingSpace(
            model=f"{model}{SQUASHED if squashed else ''}/{weights.name}",
            layer=layer,
            tokens=tokens,
            dim=dim,
            unit_norm=layer == "final",
        )
        self.details: dict[str, str | int] = {
            "encoder": "open_clip",
            "weights": weights.content,
        }
        self._has_text = weights.foreign is None or weights.foreign.has_text
        self.takes_text = layer == "final" and self._has_text and not squashed

    def prepare(self, picture: Image.Image) -> NDArray[np.float32]:
        """Apply the model's own evaluation transform: (3, side, side)."""
        pixels: torch.Tensor = self._preprocess(picture.convert("RGB"))
        if self._squashed:
            # (x - mean) / std, of (x + 1) / 2 in place of x.
            mean, std = (
                torch.tensor(self._network.visual.preprocess_cfg[name])[:, None, None]
                for name in ("mean", "std")
            )
            pixels = pixels / 2 + (1 - mean) / (2 * std)
        return np.asarray(pixels.numpy(), dtype=np.float32)

    def encode(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed prepared pictures: unit rows (n, dim), or (n, tokens, dim) of the other layers."""
        pixels = torch.from_numpy(batch).to(self._device)
        with torch.inference_mode():
            if self.space.layer == "final":
                pooled = self._network.encode_image(pixels)
                return unit_rows(pooled.float().cpu().numpy(), self.space.model)
            last = self._network.visual.forward_intermediates(
                pixels,
                indices=1,
                normalize_intermediates=True,
                intermediates_only=True,
                output_fmt="NLC",
                output_extra_tokens=True,
            )
            prefix, patches = last["image_intermediates_prefix"][0], last["image_intermediates"][0]
            if self.space.layer == "patches":
                return np.asarray(patches.float().cpu().numpy())
            tokens = torch.cat([prefix, patches], dim=1) @ self._network.visual.proj
        return unit_class_tokens(tokens.float().cpu().numpy(), self.space.model)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts as unit rows of shape (n, dim), in the space of the pictures.

        Texts are cut after the tokens that the model reads, 77 in CLIP.

        Raises
        ------
        EncoderError
            If the layer is another than ``final``, which texts don't share, the weights are of
            the vision tower alone, or the tokenizer can't be loaded.
        """
        if not self._has_text:
            raise EncoderError(
                f"the weights of {self.space} are those of the vision tower alone; give a file of "
                f"a whole CLIP model to embed texts."
            )
        if self._squashed:
            raise EncoderError(
                f"{self.space} is of squashed pictures, and texts belong with pictures as they "
                f"are. Leave {SQUASHED} out of the encoder's name."
            )
        if not self.takes_text:
            raise EncoderError(
                f"{self.space} has no place for a text: its tokens are patches of a picture. "
                f"Texts and pictures share the layer final."
            )
        tokens = self._tokenizer(list(texts)).to(self._device)
        with torch.inference_mode():
            embedded = self._network.encode_text(tokens)
        return unit_rows(embedded.float().cpu().numpy(), self.space.model)

    @cached_property
    def _tokenizer(self) -> Any:
        import open_clip

        try:
            return open_clip.get_tokenizer(self._model)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise EncoderError(
                f"the tokenizer of {self._model} can't be loaded: {error} Models that bring it "
                f"with open_clip, such as ViT-L-14, need neither the hub nor another package."
            ) from error


@dataclass(frozen=True)
class _Weights:
    """Where weights come from, and what they are called.

    Parameters
    ----------
    name : str
        In the name of the space: a tag, or the stem of a file and the start of its SHA-256.
    content : str
        What fixes the weights: the tag that the hub resolves, or a name with the SHA-256's start.
    source : str or None
        What open_clip loads: a tag or a path; None for ``foreign`` weights.
    options : dict
        What a tag tells open_clip beside its weights.
    foreign : ClipWeights or None
        Weights of a file that open_clip can't load.
    """

    name: str
    content: str
    source: str | None
    options: dict[str, Any]
    foreign: ClipWeights | None = None


def _find_weights(model: str, pretrained: str) -> _Weights:
    import open_clip

    if Path(pretrained).is_file():
        name = f"{Path(pretrained).stem}@{sha256_file(pretrained)[:12]}"
        return _from_file(name, name, pretrained, {})
    tag, _, file = pretrained.partition("=")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags or (file and not Path(file).is_file()):
        raise EncoderError(
            f"pretrained is {pretrained!r}, which is neither a file nor a tag of {model} nor "
            f"TAG=FILE; its tags: {', '.join(tags) or 'none'}."
        )
    told = open_clip.get_pretrained_cfg(model, tag)
    # open_clip 3 warns of another activation than the tag's, and goes on with the wrong one.
    options: dict[str, Any] = {"force_quick_gelu": bool(told.get("quick_gelu"))}
    if not file:
        return _Weights(tag, tag, tag, options)
    options |= {
        "image_mean": told.get("mean"),
        "image_std": told.get("std"),
        "image_interpolation": told.get("interpolation"),
        "image_resize_mode": told.get("resize_mode"),
    }
    return _from_file(tag, f"{tag}@{sha256_file(file)[:12]}", file, options)


def _from_file(name: str, content: str, file: str, options: dict[str, Any]) -> _Weights:
    foreign = read_foreign_weights(Path(file))
    return _Weights(name, content, file if foreign is None else None, options, foreign)


def _load(network: Any, weights: ClipWeights, model: str) -> None:
    """Load all weights of a model, or of its vision tower where there is no other."""
    from open_clip.transformer import QuickGELU

    is_quick = any(isinstance(module, QuickGELU) for module in network.visual.modules())
    if weights.quick_gelu is not None and is_quick != weights.quick_gelu:
        plain = model.removesuffix("-quickgelu")
        other = plain if is_quick else f"{plain}-quickgelu"
        raise EncoderError(
            f"{weights.file} was trained with {'GELU' if is_quick else 'QuickGELU'}, and {model} "
            f"computes the other one. Name the encoder {other}, or the weights TAG=FILE, as in "
            f"openai=FILE."
        )
    if weights.has_text:
        fill(network, dict(weights.tensors), weights.file)
        return
    prefix = "visual."
    tensors = {name.removeprefix(prefix): value for name, value in weights.tensors.items()}
    fill(network.visual, tensors, weights.file)


def _count_numbers(visual: Any, layer: Layer, model: str) -> tuple[int, int]:
    """Return tokens and dim of a layer; tokens are a vision transformer's with a class token."""
    from open_clip.transformer import VisionTransformer

    if layer == "final":
        return 1, int(visual.output_dim)
    is_usual = (
        isinstance(visual, VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and not visual.final_ln_after_pool
        and visual.proj is not None
    )
    if not is_usual:
        raise EncoderError(
            f"{model} has no {layer} layer of class token and patches; vision transformers such "
            f"as ViT-L-14 and ViT-bigG-14 have one. Use the layer final."
        )
    rows, columns = visual.grid_size
    if layer == "patches":
        return int(rows * columns), int(visual.ln_post.normalized_shape[0])
    return int(rows * columns) + 1, int(visual.output_dim)
