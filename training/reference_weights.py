"""The published MindEye checkpoints (``last.pth``), read into this package's names.

Such a file is a dictionary that ``Train_MindEye.py`` saved: epoch, weights, and the state of its
optimizer and of its learning rates. The weights are those of one module, the backbone under
``voxel2clip.`` and the prior network under ``net.``, with tables of the noise schedule beside
them; where several processes trained, ``module.`` may stand before every name.

Nothing of the file is run: PyTorch's reader of weights makes tensors and plain values only. The
learning rates of PyTorch before 2.1 name a function, in some versions with the optimizer that it
belongs to; these are read as empty stand-ins and dropped.

Not in the weights, and taken as published: the positions are added to the image tokens, attention
is causal in the network of the final embedding alone, the dropouts, and the image embedding scale,
sqrt(dim).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .diffusion.schedule import cosine_schedule
from .errors import ReferenceWeightsError
from .models.mindeye import MindEyeProjector, MindEyeTrunk
from .models.mindeye_final_prior import MindEyeFinalPrior
from .models.mindeye_prior import MindEyePrior, rotary_frequencies

_NET = "net.causal_transformer."
_BIAS = f"{_NET}rel_pos_bias.relative_attention_bias.weight"
_NULL_KEY_VALUE = f"{_NET}layers.0.0.null_kv"
_TIME_TABLE = "net.to_time_embeds.0.weight"
_SCHEDULE = "noise_scheduler.alphas_cumprod"

# Ours to theirs, inside one layer of a prior network and outside the layers.
_LAYER_NAMES = {
    "attention.norm.gain": "0.norm.g",
    "attention.to_query.weight": "0.to_q.weight",
    "attention.to_key_value.weight": "0.to_kv.weight",
    "attention.null": "0.null_kv",
    "attention.out.weight": "0.to_out.0.weight",
    "attention.out_norm.gain": "0.to_out.1.g",
    "mlp.norm.gain": "1.0.g",
    "mlp.widen.weight": "1.1.weight",
    "mlp.inner_norm.gain": "1.3.g",
    "mlp.narrow.weight": "1.5.weight",
}
_PRIOR_NAMES = {
    "bias.of_bucket.weight": _BIAS,
    "norm.gain": f"{_NET}norm.g",
    "image_out.weight": f"{_NET}project_out.weight",
    "null_image": "net.null_image_embed",
    "time_in.weight": _TIME_TABLE,
    "time_in.0.weight": "net.to_time_embeds.0.1.net.0.0.weight",
    "time_in.0.bias": "net.to_time_embeds.0.1.net.0.0.bias",
    "time_in.2.weight": "net.to_time_embeds.0.1.net.1.0.weight",
    "time_in.2.bias": "net.to_time_embeds.0.1.net.1.0.bias",
    "time_in.4.weight": "net.to_time_embeds.0.1.net.2.weight",
    "time_in.4.bias": "net.to_time_embeds.0.1.net.2.bias",
}
_TOKENS_NAMES = {"position": "net.learned_query", "null_brain": "net.null_brain_embeds"}
_FINAL_NAMES = {
    "query": "net.learned_query",
    "null_brain": "net.null_text_embeds",
    "text": "net.null_text_encodings",
}


@dataclass(frozen=True)
class ReferencePrior:
    """A prior network of all tokens, for `MindEyePrior`.

    Parameters
    ----------
    depth, n_heads, head_dim : int
    n_steps : int
        Of the noise schedule, which is the cosine one.
    weights : mapping of str to float32 Tensor
    """

    depth: int
    n_heads: int
    head_dim: int
    n_steps: int
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class ReferenceFinalPrior(ReferencePrior):
    """A prior network of the final embedding, for `MindEyeFinalPrior`.

    Parameters
    ----------
    n_text : int
    has_time_table : bool
        A learned token for each of ``n_steps``.
    inner_norm : bool
    """

    n_text: int
    has_time_table: bool
    inner_norm: bool


@dataclass(frozen=True)
class ReferenceWeights:
    """A published checkpoint: its numbers, and the weights of each part in our names.

    Parameters
    ----------
    epoch : int
        The last one trained, from 0.
    n_voxels, latent_dim, n_blocks, tokens, dim, projector_dim : int
        Those of `MindEyeTrunk` and `MindEyeProjector`.
    voxel_layer : mapping of str to float32 Tensor
        For ``nn.Linear(n_voxels, latent_dim)``. The tensors of all parts stay in the file, and are
        read when they are used.
    trunk, projector : mapping of str to float32 Tensor
    prior : ReferencePrior or ReferenceFinalPrior
    """

    epoch: int
    n_voxels: int
    latent_dim: int
    n_blocks: int
    tokens: int
    dim: int
    projector_dim: int
    voxel_layer: Mapping[str, Tensor]
    trunk: Mapping[str, Tensor]
    projector: Mapping[str, Tensor]
    prior: ReferencePrior

    @property
    def image_embed_scale(self) -> float:
        """What multiplies targets before they are noised; DALLE2-pytorch's default."""
        return math.sqrt(self.dim)


def load_reference(path: str | os.PathLike[str]) -> ReferenceWeights:
    """Read a checkpoint that ``Train_MindEye.py`` saved, of either published model.

    Raises
    ------
    ReferenceWeightsError
        If the file can't be read, holds anything but weights and plain values, or its weights are
        not those of MindEye; names the weight, what was found and what was expected.
    """
    path = Path(path)
    saved = _read(path)
    source = _Source(path, saved["model_state_dict"])
    latent_dim, n_voxels = source.shape("voxel2clip.lin0.0.weight", 2)
    projector_dim, dim = source.shape("voxel2clip.projector.2.weight", 2)
    width = source.shape("voxel2clip.lin1.weight", 2)[0]
    if width % dim:
        raise source.error(
            f"voxel2clip.lin1.weight has {width} outputs, expected a multiple of the width of a "
            f"token, {dim} by voxel2clip.projector.2.weight."
        )
    n_blocks, tokens = source.count("voxel2clip.mlp."), width // dim
    with torch.device("meta"):
        voxel_layer = nn.Linear(n_voxels, latent_dim)
        trunk = MindEyeTrunk(
            latent_dim=latent_dim,
            n_blocks=n_blocks,
            stem_dropout=0.0,
            block_dropout=0.0,
            tokens=tokens,
            dim=dim,
        )
        projector = MindEyeProjector(dim, projector_dim)
    weights = ReferenceWeights(
        epoch=saved["epoch"],
        n_voxels=n_voxels,
        latent_dim=latent_dim,
        n_blocks=n_blocks,
        tokens=tokens,
        dim=dim,
        projector_dim=projector_dim,
        voxel_layer=source.take(voxel_layer, "voxel2clip.lin0.0.{}".format),
        trunk=source.take(trunk, _trunk_name),
        projector=source.take(
            projector, lambda name: f"voxel2clip.projector.{name.removeprefix('layers.')}"
        ),
        prior=_take_prior(source, tokens, dim),
    )
    source.require_nothing_left()
    return weights


class _StandIn:
    """What an object beside the weights is read as: nothing."""

    def __new__(cls, *_: object) -> _StandIn:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


def _read_as_nothing(*_: object) -> dict[object, object]:
    return {}


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_StandIn, "torch.optim.adamw.AdamW"),
    (_StandIn, "torch.optim.lr_scheduler.LinearLR"),
    (_StandIn, "torch.optim.lr_scheduler.OneCycleLR"),
    (_StandIn, "builtins.dict"),
    (_read_as_nothing, "builtins.getattr"),
    (_read_as_nothing, "collections.defaultdict"),
]


def _read(path: Path) -> dict[str, Any]:
    wanted = "Expected last.pth as Train_MindEye.py saves it"
    if not path.is_file():
        raise ReferenceWeightsError(f"{path} is not a file. {wanted}; give its path.")
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever its zip reader and unpickler do
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        reason = (reason.splitlines() or [type(error).__name__])[0].partition(" Please use")[0]
        raise ReferenceWeightsError(
            f"{path} can't be read: {reason.rstrip('.')}. {wanted}, tensors and plain values, "
            f"whole. Download it again; what names other functions or classes is not read."
        ) from error
    keys = sorted(map(str, saved)) if isinstance(saved, dict) else type(saved).__name__
    if (
        not isinstance(saved, dict)
        or not isinstance(saved.get("model_state_dict"), dict)
        or not isinstance(saved.get("epoch"), int)
    ):
        raise ReferenceWeightsError(
            f"{path} holds {keys}. {wanted}, with an epoch and a model_state_dict; give that file."
        )
    return saved


class _Source:
    """The weights of a file, and which of them have been taken."""

    def __init__(self, path: Path, weights: Mapping[str, Any]) -> None:
        self.path = path
        prefix = "module." if all(name.startswith("module.") for name in weights) else ""
        self.weights = {name.removeprefix(prefix): value for name, value in weights.items()}
        self.left = set(self.weights)

    def error(self, what: str) -> ReferenceWeightsError:
        """Return an error about this file."""
        return ReferenceWeightsError(
            f"{self.path}: {what} The file holds another network than MindEye's, or a damaged "
            f"one; give a last.pth that Train_MindEye.py saved."
        )

    def get(self, name: str) -> Tensor:
        """Return one tensor and mark it as taken."""
        if name not in self.weights:
            raise self.error(f"{name} is missing among {len(self.weights)} weights.")
        value = self.weights[name]
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            found = getattr(value, "dtype", type(value).__name__)
            raise self.error(f"{name} is {found}, expected torch.float32.")
        self.left.discard(name)
        return value

    def shape(self, name: str, n_axes: int) -> tuple[int, ...]:
        """Return the shape of a tensor from which others follow."""
        shape = tuple(self.get(name).shape)
        if len(shape) != n_axes:
            raise self.error(f"{name} has shape {shape}, expected {n_axes} axes.")
        return shape

    def count(self, prefix: str) -> int:
        """Return how many numbered parts there are under a prefix."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        numbers = {int(found[1]) for found in map(pattern.match, self.weights) if found}
        return max(numbers, default=-1) + 1

    def take(self, module: nn.Module, name_of: Callable[[str], str]) -> dict[str, Tensor]:
        """Return the weights of a module (on the meta device), by the module's own names."""
        taken = {}
        for ours, expected in module.state_dict().items():
            theirs = name_of(ours)
            tensor = self.get(theirs)
            if tensor.shape != expected.shape:
                raise self.error(
                    f"{theirs} has shape {tuple(tensor.shape)}, expected "
                    f"{tuple(expected.shape)} beside the other weights."
                )
            taken[ours] = tensor
        return taken

    def require_nothing_left(self) -> None:
        """Raise if the file has weights that no part has taken."""
        # Tables of the schedule follow from the one that was compared; the temperature is of a
        # loss, and older revisions of the code declare it beside the backbone.
        unknown = sorted(
            name
            for name in self.left
            if not name.startswith("noise_scheduler.") and name != "voxel2clip.temp"
        )
        if unknown:
            raise self.error(
                f"{len(unknown)} weights have no place in the network, the first is {unknown[0]}."
            )


def _trunk_name(name: str) -> str:
    part, _, rest = name.partition(".")
    return f"voxel2clip.{dict(stem='lin0', blocks='mlp', head='lin1')[part]}." + (
        rest.replace("0.", "1.", 1) if part == "stem" else rest
    )


def _prior_name(outside: Mapping[str, str]) -> Callable[[str], str]:
    def name_of(name: str) -> str:
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        if layer:
            return f"{_NET}layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}"
        return outside.get(name) or _PRIOR_NAMES[name]

    return name_of


def _take_prior(source: _Source, tokens: int, dim: int) -> ReferencePrior:
    n_heads, head_dim = source.shape(_BIAS, 2)[1], source.shape(_NULL_KEY_VALUE, 2)[1]
    depth = source.count(f"{_NET}layers.")
    n_steps = _take_schedule(source)
    for layer in range(depth):
        name = f"{_NET}layers.{layer}.0.rotary_emb.freqs"
        expected, found = rotary_frequencies(head_dim), source.get(name)
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4):
            raise source.error(f"{name} is not 10000 ** -(2 i / {2 * len(expected)}).")
    if "net.null_brain_embeds" in source.weights:
        with torch.device("meta"):
            network: nn.Module = MindEyePrior(
                tokens=tokens, dim=dim, depth=depth, n_heads=n_heads, head_dim=head_dim
            )
        taken = source.take(network, _prior_name(_TOKENS_NAMES))
        return ReferencePrior(depth, n_heads, head_dim, n_steps, taken)
    n_text = source.shape(_FINAL_NAMES["text"], 3)[1]
    has_time_table = _TIME_TABLE in source.weights
    inner_norm = f"{_NET}layers.0.{_LAYER_NAMES['mlp.inner_norm.gain']}" in source.weights
    with torch.device("meta"):
        network = MindEyeFinalPrior(
            dim=dim,
            depth=depth,
            n_heads=n_heads,
            head_dim=head_dim,
            n_text=n_text,
            n_steps=n_steps if has_time_table else None,
            dropout=0.0,
            inner_norm=inner_norm,
        )
    taken = source.take(network, _prior_name(_FINAL_NAMES))
    return ReferenceFinalPrior(
        depth, n_heads, head_dim, n_steps, taken, n_text, has_time_table, inner_norm
    )


def _take_schedule(source: _Source) -> int:
    left = source.get(_SCHEDULE)
    n_steps = source.shape(_SCHEDULE, 1)[0]
    expected = cosine_schedule(n_steps).alphas_cumprod
    if not torch.allclose(left.double(), expected, rtol=1e-3, atol=1e-8):
        raise source.error(f"{_SCHEDULE} is not the cosine schedule of {n_steps} steps.")
    return n_steps
