from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from training.errors import RecipeError
from training.recipe import Recipe, list_recipes, load_recipe, parse_memory


@pytest.mark.parametrize("name", list(list_recipes()))
def test_shipped_recipes_load_and_their_header_says_what_to_expect(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    header = list_recipes()[name].lower()
    assert "score" in header and "time" in header and "hardware" in header


def test_a_recipe_survives_its_own_toml(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", ("train.epochs=3", 'name=a "quoted" \\ name'))
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    assert load_recipe(path) == recipe
    assert recipe.train.epochs == 3


def test_overrides_take_toml_values_and_bare_words() -> None:
    recipe = load_recipe(
        "tiny", ("data.control=shuffled_labels", "loss.prior_weight=2", "data.memory=100")
    )
    assert recipe.data.control == "shuffled_labels"
    assert recipe.loss.prior_weight == 2.0
    assert recipe.data.memory_bytes == 100


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.epoch=3",
            r"unknown field train\.epoch; train has the fields kind, epochs, batch_size",
        ),
        (
            "training.epochs=3",
            r"unknown field training; the recipe has the fields name, target, data",
        ),
        ("train.epochs=3.5", r"field train\.epochs is 3\.5 \(float\), expected int"),
        ("train.epochs=true", r"field train\.epochs is True \(bool\), expected int"),
        ("train.epochs=0", r"field train\.epochs is 0, expected 1 to"),
        ("model.dropout=1.0", r"field model\.dropout is 1\.0, expected 0 to 0\.99"),
        ("train.learning_rate=nan", r"field train\.learning_rate is nan, expected"),
        (
            "data.repeats=all",
            r"field data\.repeats is 'all', expected one of 'single', 'one', 'average'",
        ),
        ("data.memory=12 apples", r"data\.memory is '12 apples', expected a number of bytes"),
        ("data.memory=-1", r"data\.memory is -1, expected 0 bytes or more"),
        ("prior.width=100", r"prior\.width is 100, expected a multiple of 2 \* prior\.n_heads"),
        ("prior.n_sampling_steps=999", r"n_sampling_steps is 999, expected at most prior\.n_steps"),
        ("train=3", r"train is 3, expected a section of fields"),
        ("train.epochs", r"override 'train\.epochs' has no '='"),
        ("train.epochs.x=1", r"'epochs' is a field, not a section"),
    ],
)
def test_bad_fields_are_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("tiny", (override,))


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    text = load_recipe("tiny").to_toml().replace("clip_norm", "# clip_norm")
    (tmp_path / "cut.toml").write_text(text)
    with pytest.raises(RecipeError, match=r"cut\.toml: missing field train\.clip_norm"):
        load_recipe(tmp_path / "cut.toml")


def test_no_such_recipe_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no recipe 'tony'; shipped are .*tiny"):
        load_recipe("tony")
    (tmp_path / "bad.toml").write_text("= 3")
    with pytest.raises(RecipeError, match=r"bad\.toml is not TOML"):
        load_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("size", "n_bytes"), [(7, 7), ("7B", 7), ("1KiB", 1024), ("1.5 GiB", 3 << 29), ("0B", 0)]
)
def test_sizes_of_memory(size: str | int, n_bytes: int) -> None:
    assert parse_memory(size) == n_bytes


def test_small_recipe_differs_from_tiny_only_where_told(
    small_recipe: Callable[..., Recipe],
) -> None:
    assert small_recipe().loss == load_recipe("tiny").loss
