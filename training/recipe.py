"""Recipes: everything that a training run was told, typed, checked, and stored with the run.

The dataclasses are the schema and a TOML file is the filled form: complete, without defaults or
inheritance, so that one file says all. An unknown field, a missing field, a wrong type or a value
out of range is an error that names the field.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
import types
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import RecipeError

RECIPES_FOLDER = Path(__file__).parent / "recipes"
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True)
class DataRecipe:
    """What a training sample is.

    Parameters
    ----------
    repeats : {"single", "average", "random"}
        ``single``: each trial is a sample. ``average``: the mean over an image's repeats.
        ``random``: a random convex combination of them, drawn anew each epoch.
    control : {"none", "shuffled_labels"}
        ``shuffled_labels`` permutes the images of the training trials, image by image: the
        control whose scores must be at chance.
    memory : str or int
        Most bytes for voxels and targets together, ``"4GiB"`` or a number; what does not fit is
        read from disk, batch by batch.
    """

    repeats: Literal["single", "average", "random"]
    control: Literal["none", "shuffled_labels"]
    memory: str | int

    @property
    def memory_bytes(self) -> int:
        """The budget as a number of bytes."""
        return parse_memory(self.memory)


@dataclass(frozen=True)
class ModelRecipe:
    """Backbone and projector; see `Backbone` and `Projector`."""

    latent_dim: int
    n_blocks: int
    dropout: float
    voxel_gain: float
    projector_dim: int


@dataclass(frozen=True)
class PriorRecipe:
    """The diffusion prior; ``depth = 0`` trains none.

    Parameters
    ----------
    depth, n_heads, width : int
        See `PriorNetwork`.
    n_steps : int
        Steps of the noise schedule.
    image_embed_scale : float
        Multiplies the embeddings before noising, so that their entries are of order 1:
        ``sqrt(dim)`` for unit tokens (MindEye).
    drop_brain : float
        Probability of training a row without the brain, for classifier-free guidance.
    sampler : {"ddpm", "ddim"}
        What `predict` samples with: the full chain, or ``n_sampling_steps`` deterministic ones.
    n_sampling_steps : int
        Evaluations of ``ddim``.
    guidance : float
        Classifier-free guidance weight; 1 = none.
    """

    depth: int
    n_heads: int
    width: int
    n_steps: int
    image_embed_scale: float
    drop_brain: float
    sampler: Literal["ddpm", "ddim"]
    n_sampling_steps: int
    guidance: float


@dataclass(frozen=True)
class LossRecipe:
    """Weights, temperatures and phases of the losses; see `phase_at`.

    Temperatures depend on the encoder: the narrower the cone of its embeddings, the smaller.
    """

    contrastive_weight: float
    prior_weight: float
    mixing_fraction: float
    mixing_probability: float
    mixing_concentration: float
    mixing_temperature: float
    soft_temperature_start: float
    soft_temperature_end: float


@dataclass(frozen=True)
class TrainRecipe:
    """Optimization, seed and device.

    Parameters
    ----------
    epochs, batch_size : int
        One epoch shows every training image (``repeats = "single"``: every trial) once.
    learning_rate : float
        Peak of the one-cycle schedule.
    warmup_fraction : float
        Share of the steps before the peak.
    weight_decay, voxel_weight_decay : float
        AdamW's; the second for the voxel layer alone. Biases and norms have none.
    clip_norm : float
        Largest norm of the gradient; 0 = no clipping.
    seed : int
    device : {"auto", "cpu", "cuda"}
    precision : {"float32", "bfloat16"}
        ``bfloat16``: autocast of the forward pass; losses and weights stay float32.
    n_threads : int
        CPU threads; results are the same bytes again only with the same number.
    save_every_epochs : int
        How often the state for resuming is written: what an interruption can cost.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_fraction: float
    weight_decay: float
    voxel_weight_decay: float
    clip_norm: float
    seed: int
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]
    n_threads: int
    save_every_epochs: int


@dataclass(frozen=True)
class Recipe:
    """One complete training configuration.

    Raises
    ------
    RecipeError
        If a value is out of range, or two contradict each other.
    """

    name: str
    data: DataRecipe
    model: ModelRecipe
    prior: PriorRecipe
    loss: LossRecipe
    train: TrainRecipe

    def __post_init__(self) -> None:
        for field, (low, high) in _RANGES.items():
            section, name = field.split(".")
            value = getattr(getattr(self, section), name)
            if not low <= value <= high:
                raise RecipeError(f"recipe field {field} is {value}, expected {low} to {high}.")
        parse_memory(self.data.memory)
        if self.prior.depth and self.prior.width % (2 * self.prior.n_heads):
            raise RecipeError(
                f"recipe field prior.width is {self.prior.width}, expected a multiple of "
                f"2 * prior.n_heads = {2 * self.prior.n_heads}."
            )
        if self.prior.n_sampling_steps > self.prior.n_steps:
            raise RecipeError(
                f"recipe field prior.n_sampling_steps is {self.prior.n_sampling_steps}, expected "
                f"at most prior.n_steps = {self.prior.n_steps}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts of plain values."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """Return the recipe as TOML that `load_recipe` reads back to an equal recipe."""
        lines = [f"name = {_toml_value(self.name)}"]
        for section, fields in self.to_dict().items():
            if section != "name":
                lines += ["", f"[{section}]"]
                lines += [f"{name} = {_toml_value(value)}" for name, value in fields.items()]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_dict(cls, fields: dict[str, Any], *, where: str) -> Recipe:
        """Build a recipe from nested dicts.

        Parameters
        ----------
        fields : dict
        where : str
            What holds them, for messages: usually a path.

        Raises
        ------
        RecipeError
            Unknown or missing field, wrong type, value out of range; names the field.
        """
        recipe = _build(cls, fields, prefix="", where=where)
        assert isinstance(recipe, cls)
        return recipe


# Field -> smallest and largest value. What may be 0 switches something off.
_LARGE = 10**9
_RANGES: dict[str, tuple[float, float]] = {
    "model.latent_dim": (1, _LARGE),
    "model.n_blocks": (0, _LARGE),
    "model.dropout": (0, 0.99),
    "model.voxel_gain": (1e-6, 1e3),
    "model.projector_dim": (1, _LARGE),
    "prior.depth": (0, _LARGE),
    "prior.n_heads": (1, _LARGE),
    "prior.width": (1, _LARGE),
    "prior.n_steps": (1, 10_000),
    "prior.image_embed_scale": (1e-6, 1e6),
    "prior.drop_brain": (0, 0.99),
    "prior.n_sampling_steps": (1, 10_000),
    "prior.guidance": (0, 100),
    "loss.contrastive_weight": (0, 1e6),
    "loss.prior_weight": (0, 1e6),
    "loss.mixing_fraction": (0, 1),
    "loss.mixing_probability": (0, 1),
    "loss.mixing_concentration": (1e-3, 1e3),
    "loss.mixing_temperature": (1e-4, 1e3),
    "loss.soft_temperature_start": (1e-4, 1e3),
    "loss.soft_temperature_end": (1e-4, 1e3),
    "train.epochs": (1, _LARGE),
    "train.batch_size": (2, _LARGE),
    "train.learning_rate": (1e-9, 1e3),
    "train.warmup_fraction": (0.001, 0.99),
    "train.weight_decay": (0, 1e4),
    "train.voxel_weight_decay": (0, 1e4),
    "train.clip_norm": (0, 1e9),
    "train.seed": (0, 2**31 - 1),
    "train.n_threads": (1, 1024),
    "train.save_every_epochs": (1, _LARGE),
}


def parse_memory(size: str | int) -> int:
    """Return a number of bytes from ``"4GiB"`` or an int.

    Raises
    ------
    RecipeError
    """
    if isinstance(size, int):
        if size < 0:
            raise RecipeError(f"recipe field data.memory is {size}, expected 0 bytes or more.")
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]iB|B)\s*", size)
    if match is None:
        raise RecipeError(
            f"recipe field data.memory is {size!r}, expected a number of bytes or a size with a "
            f"unit of {', '.join(_SIZE_UNITS)}, for example '4GiB'."
        )
    return int(float(match[1]) * _SIZE_UNITS[match[2]])


def list_recipes() -> dict[str, str]:
    """Return the shipped recipes: name to the header comment of its file."""
    return {
        path.stem: "\n".join(_header(path.read_text(encoding="utf-8")))
        for path in sorted(RECIPES_FOLDER.glob("*.toml"))
    }


def _header(text: str) -> list[str]:
    header = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    return header


def load_recipe(name_or_path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Recipe:
    """Load a shipped recipe by name, or any by path, and change single fields.

    Parameters
    ----------
    name_or_path : str or path
        A path if it ends in ``.toml`` or names a folder, else a name of `list_recipes`.
    overrides : iterable of str
        ``"train.epochs=3"``; the value is written as in TOML, quotes around text optional.

    Raises
    ------
    RecipeError
        No such recipe, not TOML, or a field is unknown, missing, of the wrong type or range.
    """
    text = os.fspath(name_or_path)
    is_path = text.endswith(".toml") or os.path.basename(text) != text
    path = Path(text) if is_path else RECIPES_FOLDER / f"{text}.toml"
    if not path.is_file():
        raise RecipeError(
            f"there is no recipe {text!r}; shipped are {', '.join(list_recipes())}; "
            f"or give the path of a .toml file."
        )
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}.") from error
    for override in overrides:
        _apply_override(fields, override)
    return Recipe.from_dict(fields, where=str(path))


def _apply_override(fields: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"override {override!r} has no '='; write it as 'train.epochs=3'.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, name = key.strip().split(".")
    place = fields
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise RecipeError(f"override {override!r}: {section!r} is a field, not a section.")
    place[name] = value


def _build(schema: type[Any], fields: Any, *, prefix: str, where: str) -> Any:
    hints = get_type_hints(schema)
    section = prefix.rstrip(".") or "the recipe"
    if not isinstance(fields, dict):
        raise RecipeError(f"{where}: {section} is {fields!r}, expected a section of fields.")
    if unknown := sorted(set(fields) - set(hints)):
        raise RecipeError(
            f"{where}: unknown field {prefix}{unknown[0]}; "
            f"{section} has the fields {', '.join(hints)}."
        )
    if missing := [name for name in hints if name not in fields]:
        raise RecipeError(
            f"{where}: missing field {prefix}{missing[0]}; a recipe is complete, without defaults: "
            f"{section} has the fields {', '.join(hints)}."
        )
    values = {}
    for name, hint in hints.items():
        field, value = prefix + name, fields[name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            values[name] = _build(hint, value, prefix=f"{field}.", where=where)
        else:
            values[name] = _checked(hint, value, field=field, where=where)
    return schema(**values)


def _checked(hint: Any, value: Any, *, field: str, where: str) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            allowed = ", ".join(map(repr, get_args(hint)))
            raise RecipeError(f"{where}: field {field} is {value!r}, expected one of {allowed}.")
        return value
    allowed_types = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(value) is int and float in allowed_types:
        return float(value)
    if type(value) not in allowed_types:  # bool is an int to isinstance, and none here is bool
        names = " or ".join(kind.__name__ for kind in allowed_types)
        raise RecipeError(
            f"{where}: field {field} is {value!r} ({type(value).__name__}), expected {names}."
        )
    return value


def _toml_value(value: str | int | float) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
