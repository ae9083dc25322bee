"""Networks of public diffusion pipelines, one by one, from a folder of their layout or the hub.

A pipeline of diffusers is a folder with one folder a part: ``unet``, ``vae``, ``scheduler`` and so
on, each with its configuration and weights. Only the parts that are needed are read, as the plain
networks that they are, so that nothing here depends on the pipeline class that they were made for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from index_builder.embeddings.artefact import fingerprint, sha256_file
from index_builder.embeddings.errors import MissingExtraError

from ..errors import ReconstructionError
from .contract import Precision

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class _Kind:
    """What reads one part.

    Parameters
    ----------
    library : {"diffusers", "transformers"}
    reader : str
        Its class, whose ``from_pretrained`` reads the part.
    config : str
        File that a folder of the part must hold.
    is_network : bool
        Whether it has weights too.
    """

    library: Literal["diffusers", "transformers"]
    reader: str
    config: str = "config.json"
    is_network: bool = True


_UNET = _Kind("diffusers", "UNet2DConditionModel")
_KINDS = {
    "image_encoder": _Kind("transformers", "CLIPVisionModelWithProjection"),
    "image_noising_scheduler": _Kind("diffusers", "DDPMScheduler", "scheduler_config.json", False),
    "image_normalizer": _Kind("diffusers", "StableUnCLIPImageNormalizer"),
    "image_unet": _UNET,
    "scheduler": _Kind("diffusers", "UniPCMultistepScheduler", "scheduler_config.json", False),
    "text_encoder": _Kind("transformers", "CLIPTextModel"),
    "tokenizer": _Kind("transformers", "CLIPTokenizer", "tokenizer_config.json", False),
    "unet": _UNET,
    "vae": _Kind("diffusers", "AutoencoderKL"),
}


class Weights:
    """The parts of one pipeline, in a folder or on the hub.

    Parameters
    ----------
    given : str
        A folder of diffusers' layout, else the id of a repository of the hub, which may end with
        ``@`` and a revision.
    parts : sequence of str
        Names of the parts that are needed.
    published : str
        Id of the repository that publishes such weights, for messages.

    Attributes
    ----------
    identity : str
        What fixes the weights: the folder's name and the start of a SHA-256 over the needed files,
        or the id and the revision.

    Raises
    ------
    ReconstructionError
        If the folder lacks a part or a file of it; names the first and where to get it.
    """

    def __init__(self, given: str, parts: Sequence[str], *, published: str) -> None:
        self._published = published
        folder = Path(given)
        if folder.is_dir():
            files = [file for part in parts for file in self._files(folder, part)]
            content = {str(file.relative_to(folder)): sha256_file(file) for file in files}
            self._source, self._options = str(folder), {}
            self.identity = f"{folder.resolve().name}@{fingerprint(content)[:12]}"
        elif folder.is_file() or not _HUB_ID.fullmatch(given):
            raise ReconstructionError(
                f"weights are {given!r}, which is neither a folder nor the id of a repository; "
                f"expected a folder of diffusers' layout with {', '.join(parts)}, such as a copy "
                f"of {published}. Single files of other layouts, unCLIP of MindEye2 (unclip6, for "
                f"generative-models) among them, can't be read."
            )
        else:
            self._source, _, revision = given.partition("@")
            self._options = {"revision": revision or "main"}
            self.identity = f"{self._source}@{revision or 'main'}"

    def load(self, part: str, precision: Precision = "fp32") -> Any:
        """Read one part; a network comes in evaluation mode, without gradients.

        Raises
        ------
        ReconstructionError
            If it can't be read, or its weights aren't all there.
        MissingExtraError
            If diffusers or transformers is absent.
        """
        kind = _KINDS[part]
        reader = _import_reader(kind)
        options: dict[str, Any] = {"subfolder": part, **self._options}
        if kind.is_network:
            options["output_loading_info"] = True
            if kind.library == "diffusers":
                options["torch_dtype"] = DTYPES[precision]
        try:
            loaded = reader.from_pretrained(self._source, **options)
        except Exception as error:  # each file format and the hub have their own
            raise ReconstructionError(
                f"{part} of {self._source} can't be read: {error}\n"
                f"  Expected {kind.reader} in diffusers' layout, in a folder here or on the hub. "
                f"Download the folder {part} of {self._published} (again), and give the folder "
                f"that holds it."
            ) from error
        if not kind.is_network:
            return loaded
        network, found = loaded
        if found["missing_keys"]:
            raise ReconstructionError(
                f"{part} of {self._source} lacks {len(found['missing_keys'])} weights of its "
                f"{kind.reader}, {min(found['missing_keys'])} among them. Expected all. Download "
                f"the folder {part} of {self._published} again."
            )
        return network.eval().requires_grad_(False)

    def _files(self, folder: Path, part: str) -> list[Path]:
        """Return the files of a part that are read, the configuration first."""
        kind = _KINDS[part]
        config = folder / part / kind.config
        weights: list[Path] = []
        for pattern in ("*.safetensors", "*.bin") if kind.is_network else ():
            weights = weights or sorted((folder / part).glob(pattern))
        if not config.is_file() or (kind.is_network and not weights):
            missing = "weights (.safetensors or .bin)" if config.is_file() else kind.config
            raise ReconstructionError(
                f"{folder / part} has no {missing}. Expected the part {part} in diffusers' layout: "
                f"download the folder {part} of {self._published} there."
            )
        if kind.library == "diffusers" and kind.is_network:
            named = json.loads(config.read_text(encoding="utf-8")).get("_class_name", kind.reader)
            if named != kind.reader:
                raise ReconstructionError(
                    f"{config} is of {named!r}, expected {kind.reader!r}. Download the folder "
                    f"{part} of {self._published} there."
                )
        return [config, *weights]


def _import_reader(kind: _Kind) -> Any:
    try:
        if kind.library == "transformers":
            import transformers

            return getattr(transformers, kind.reader)
        import diffusers
        from diffusers.pipelines import stable_diffusion
    except ImportError as error:
        raise MissingExtraError(kind.library, "reconstruct", "decoding to pictures") from error
    home = stable_diffusion if kind.reader == "StableUnCLIPImageNormalizer" else diffusers
    return getattr(home, kind.reader)
