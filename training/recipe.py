"""Recipes: everything that a training run was told, typed, checked, and stored with the run.

The dataclasses of ``training/schema`` are the schema and a TOML file is the filled form: complete,
without defaults or inheritance, so that one file says all. A section that may be absent is a part
of the model that may be absent. An unknown field, a missing field, a wrong type or a value out of
range is an error that names the field.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RecipeError
from .recipe_files import (
    build_section,
    flatten,
    list_recipe_files,
    read_recipe_file,
    toml_section,
    toml_value,
)
from .schema.data import DataRecipe, TargetRecipe
from .schema.loss import ContrastiveRecipe, LatentLossRecipe
from .schema.model import LinearStartRecipe, LowLevelRecipe, MindEye2Recipe, MindEyeRecipe
from .schema.prior import LinearSkipPriorRecipe, MindEyeFinalPriorRecipe, MindEyePriorRecipe
from .schema.ranges import parse_memory
from .schema.train import AdamWRecipe, RidgeRecipe

RECIPES_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """One complete training configuration.

    Parameters
    ----------
    name : str
    target : TargetRecipe or None
        None: made for targets of any shape.
    data : DataRecipe
    model : LinearStartRecipe, MindEyeRecipe, MindEye2Recipe or LowLevelRecipe
    prior : LinearSkipPriorRecipe, MindEyePriorRecipe, MindEyeFinalPriorRecipe or None
    loss : ContrastiveRecipe, LatentLossRecipe or None
        None only where ``train`` is closed-form.
    train : AdamWRecipe or RidgeRecipe

    Raises
    ------
    RecipeError
        If a value is out of range, or two contradict each other.
    """

    name: str
    target: TargetRecipe | None
    data: DataRecipe
    model: LinearStartRecipe | MindEyeRecipe | MindEye2Recipe | LowLevelRecipe
    prior: LinearSkipPriorRecipe | MindEyePriorRecipe | MindEyeFinalPriorRecipe | None
    loss: ContrastiveRecipe | LatentLossRecipe | None
    train: AdamWRecipe | RidgeRecipe

    def __post_init__(self) -> None:
        parse_memory(self.data.memory)
        prior = self.prior
        if isinstance(prior, LinearSkipPriorRecipe) and prior.width % (2 * prior.n_heads):
            raise RecipeError(
                f"recipe field prior.width is {prior.width}, expected a multiple of "
                f"2 * prior.n_heads = {2 * prior.n_heads}."
            )
        if prior is not None and prior.n_sampling_steps > prior.n_steps:
            raise RecipeError(
                f"recipe field prior.n_sampling_steps is {prior.n_sampling_steps}, expected "
                f"at most prior.n_steps = {prior.n_steps}."
            )
        if isinstance(self.train, RidgeRecipe):
            self._check_closed_form(self.train)
        elif self.loss is None:
            raise RecipeError("the recipe has no section loss, which train.kind 'adamw' needs.")
        if isinstance(self.model, LowLevelRecipe) != isinstance(self.loss, LatentLossRecipe):
            raise RecipeError(
                f"recipe fields model.kind {self.model.kind!r} and loss.kind "
                f"{self.loss and self.loss.kind!r} don't go together: 'low_level' is trained by "
                f"'latent', every other model by 'contrastive'."
            )
        if isinstance(self.model, LowLevelRecipe):
            self._check_low_level(self.model)

    def _check_closed_form(self, ridge: RidgeRecipe) -> None:
        model = self.model
        if not (
            isinstance(model, LinearStartRecipe)
            and (model.n_blocks, model.projector_dim, model.head.kind) == (0, 0, "dense")
        ):
            raise RecipeError(
                "recipe field train.kind is 'ridge', which solves a linear model alone: expected "
                "model.kind 'linear_start' with n_blocks 0, projector_dim 0 and a dense head."
            )
        if self.prior is not None or self.loss is not None:
            raise RecipeError(
                "recipe field train.kind is 'ridge', which trains neither prior nor loss; leave "
                "the sections prior and loss out."
            )
        if ridge.smallest_penalty > ridge.largest_penalty:
            raise RecipeError(
                f"recipe field train.smallest_penalty is {ridge.smallest_penalty}, expected at "
                f"most train.largest_penalty = {ridge.largest_penalty}."
            )

    def _check_low_level(self, model: LowLevelRecipe) -> None:
        if self.prior is not None:
            raise RecipeError("recipe field model.kind 'low_level' has no prior; leave prior out.")
        n_tokens = (4 * model.start_side) ** 2
        if self.target is not None and (self.target.tokens, self.target.dim) != (n_tokens, 4):
            raise RecipeError(
                f"recipe section target is {self.target.tokens} x {self.target.dim}, and "
                f"model.start_side {model.start_side} makes latents of {n_tokens} x 4."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts of plain values; absent sections are left out."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value is not None}

    def flat(self) -> dict[str, Any]:
        """Return the plain values by their dotted names."""
        return dict(flatten(self.to_dict(), ""))

    def to_toml(self) -> str:
        """Return the recipe as TOML that `load_recipe` reads back to an equal recipe."""
        lines = [f"name = {toml_value(self.name)}"]
        for section, fields in self.to_dict().items():
            if section != "name":
                lines += ["", *toml_section(section, fields)]
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
        recipe = build_section(cls, fields, prefix="", where=where)
        assert isinstance(recipe, cls)
        return recipe


def list_recipes() -> dict[str, str]:
    """Return the shipped recipes: name to the header comment of its file."""
    return list_recipe_files(RECIPES_FOLDER)


def load_recipe(name_or_path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Recipe:
    """Load a shipped recipe by name, or any by path, and change single fields.

    Parameters
    ----------
    name_or_path : str or path
        A path if it ends in ``.toml`` or names a folder, else a name of `list_recipes`.
    overrides : iterable of str
        ``"train.epochs=3"``; the value is written as in TOML, quotes around text optional.
        ``"prior=none"`` leaves a section out.

    Raises
    ------
    RecipeError
        No such recipe, not TOML, or a field is unknown, missing, of the wrong type or range.
    """
    fields, path = read_recipe_file(name_or_path, overrides, folder=RECIPES_FOLDER, kind="recipe")
    return Recipe.from_dict(fields, where=str(path))
