from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from training.decoder.recipe import DecoderRecipe, list_decoder_recipes, load_decoder_recipe
from training.errors import RecipeError

Maker = Callable[..., DecoderRecipe]


@pytest.mark.parametrize("name", list(list_decoder_recipes()))
def test_shipped_recipes_load_and_their_header_says_what_to_expect(name: str) -> None:
    assert load_decoder_recipe(name).name == name
    header = list_decoder_recipes()[name].lower()
    assert "score" in header and "time" in header and "hardware" in header


def test_a_recipe_survives_its_own_toml(tmp_path: Path) -> None:
    for recipe in (
        load_decoder_recipe("flow_tiny", ("train.steps=7", 'name=a "quoted" \\ name')),
        load_decoder_recipe("flow_latent"),
    ):
        path = tmp_path / f"{recipe.pictures.kind}.toml"
        path.write_text(recipe.to_toml())
        assert load_decoder_recipe(path) == recipe


def test_the_flow_runs_on_what_the_section_pictures_says() -> None:
    assert load_decoder_recipe("flow_tiny", ("pictures.side=48",)).image_shape == (3, 48, 48)
    latent = load_decoder_recipe("flow_latent", ("pictures.side=128", "network.sketch_side=16"))
    assert latent.image_shape == (4, 16, 16)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=3", r"unknown field train\.step; train has the fields steps, batch_size"),
        ("train.steps=0", r"field train\.steps is 0, expected 1 to"),
        ("flow.least_cosine=1.5", r"field flow\.least_cosine is 1\.5, expected 0 to 1"),
        ("pictures.kind=words", r"field pictures\.kind is 'words', expected one of 'pixels', 'la"),
        (
            "pictures.side=100",
            r"pictures\.side is 100, .*multiple of network\.patch .*= 16 of",
        ),
        ("network.channels=12", r"network\.channels and network\.layout_channels are 12 and"),
        ("network.sketch_side=65", r"network\.sketch_side is 65, expected at most the 64 places"),
        ("network.channels=8", r"with 16 channels at the coarsest grid; expected .*of 32 there"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(override: str, message: str) -> None:
    base = ("pictures.side=64", "network.patch=8", "network.n_levels=2", "network.channels=32")
    with pytest.raises(RecipeError, match=message):
        load_decoder_recipe("flow_tiny", (*base, override))


def test_latents_come_in_whole_places() -> None:
    with pytest.raises(RecipeError, match=r"pictures\.side is 260, .* each of 8 pixels"):
        load_decoder_recipe("flow_latent", ("pictures.side=260",))


def test_a_recipe_that_is_not_there_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no decoder recipe 'flow_huge'; shipped are flow_laten"):
        load_decoder_recipe("flow_huge")
    path = tmp_path / "recipe.toml"
    path.write_text("name = ")
    with pytest.raises(RecipeError, match=r"recipe\.toml is not TOML"):
        load_decoder_recipe(path)
