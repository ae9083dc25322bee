"""Recipes of decoders: complete TOML files, typed and checked as those of brain models are."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..recipe_files import (
    build_section,
    flatten,
    list_recipe_files,
    read_recipe_file,
    toml_section,
    toml_value,
)
from .schema import (
    HEAD_DIM,
    N_GROUPS,
    FlowRecipe,
    LatentsRecipe,
    NetworkRecipe,
    PixelsRecipe,
    SamplingRecipe,
    TrainingRecipe,
)

RECIPES_FOLDER = Path(__file__).parent / "recipes"
LATENT_STRIDE, LATENT_CHANNELS, RGB = 8, 4, 3


@dataclass(frozen=True)
class DecoderRecipe:
    """One complete configuration of a decoder.

    Parameters
    ----------
    name : str
    pictures : PixelsRecipe or LatentsRecipe
    network : NetworkRecipe
    flow : FlowRecipe
    sampling : SamplingRecipe
    train : TrainingRecipe

    Raises
    ------
    RecipeError
        If a value is out of range, or two contradict each other.
    """

    name: str
    pictures: PixelsRecipe | LatentsRecipe
    network: NetworkRecipe
    flow: FlowRecipe
    sampling: SamplingRecipe
    train: TrainingRecipe

    def __post_init__(self) -> None:
        network = self.network
        _, side, _ = self.image_shape
        divisor = network.patch << (network.n_levels - 1)
        if side % divisor or (
            isinstance(self.pictures, LatentsRecipe) and self.pictures.side % LATENT_STRIDE
        ):
            raise RecipeError(
                f"recipe field pictures.side is {self.pictures.side}, which makes {side} places "
                f"along a side for the network; expected a multiple of network.patch * 2 ** "
                f"(network.n_levels - 1) = {divisor} of them"
                + (", each of 8 pixels." if isinstance(self.pictures, LatentsRecipe) else ".")
            )
        if network.sketch_side > side:
            raise RecipeError(
                f"recipe field network.sketch_side is {network.sketch_side}, expected at most the "
                f"{side} places along a side that the network draws."
            )
        deepest = network.channels << (network.n_levels - 1)
        if network.channels % N_GROUPS or network.layout_channels % N_GROUPS or deepest % HEAD_DIM:
            raise RecipeError(
                f"recipe fields network.channels and network.layout_channels are "
                f"{network.channels} and {network.layout_channels}, with {deepest} channels at the "
                f"coarsest grid; expected multiples of {N_GROUPS}, and of {HEAD_DIM} there."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of what the flow runs on: channels, side, side."""
        if isinstance(self.pictures, LatentsRecipe):
            side = self.pictures.side // LATENT_STRIDE
            return LATENT_CHANNELS, side, side
        return RGB, self.pictures.side, self.pictures.side

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts of plain values."""
        return dataclasses.asdict(self)

    def flat(self) -> dict[str, Any]:
        """Return the plain values by their dotted names."""
        return dict(flatten(self.to_dict(), ""))

    def to_toml(self) -> str:
        """Return the recipe as TOML that `load_decoder_recipe` reads back to an equal recipe."""
        lines = [f"name = {toml_value(self.name)}"]
        for section, fields in self.to_dict().items():
            if section != "name":
                lines += ["", *toml_section(section, fields)]
        return "\n".join(lines) + "\n"


def list_decoder_recipes() -> dict[str, str]:
    """Return the shipped recipes: name to the header comment of its file."""
    return list_recipe_files(RECIPES_FOLDER)


def load_decoder_recipe(
    name_or_path: str | os.PathLike[str], overrides: Iterable[str] = ()
) -> DecoderRecipe:
    """Load a shipped recipe by name, or any by path, and change single fields.

    Parameters
    ----------
    name_or_path : str or path
        A path if it ends in ``.toml`` or names a folder, else a name of `list_decoder_recipes`.
    overrides : iterable of str
        ``"train.steps=500"``; the value is written as in TOML, quotes around text optional.

    Raises
    ------
    RecipeError
        No such recipe, not TOML, or a field is unknown, missing, of the wrong type or range.
    """
    fields, path = read_recipe_file(
        name_or_path, overrides, folder=RECIPES_FOLDER, kind="decoder recipe"
    )
    recipe = build_section(DecoderRecipe, fields, prefix="", where=str(path))
    assert isinstance(recipe, DecoderRecipe)
    return recipe
