from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from training.errors import OptionError, SplitError, SubjectError
from training.subjects.trials import (
    assign_splits,
    build_trials,
    check_trials,
    number_repeats,
    split_around_test,
)


def three_images() -> pa.Table:
    return build_trials(
        np.array([7, 3, 7, 5, 3]), np.array([0, 0, 0, 1, 1]), {3: "train", 5: "test", 7: "train"}
    )


def edited(column: str, row: int, value: object) -> pa.Table:
    table = three_images()
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(column), column, pa.array(values))


def test_repeats_count_earlier_trials_of_the_same_image(rng: np.random.Generator) -> None:
    image_ids = rng.integers(0, 20, size=200)
    expected = [int((image_ids[:t] == image_ids[t]).sum()) for t in range(200)]
    np.testing.assert_array_equal(number_repeats(image_ids), expected)


def test_a_built_table_passes_the_check_in_any_column_order() -> None:
    table = three_images()
    shuffled = table.select(["split", "repeat", "session", "image_id", "trial"])
    assert check_trials(shuffled, where="here").equals(table)
    assert table["repeat"].to_pylist() == [0, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("trial", 2, 9, "here, row 2: trial is 9, but trials count 0, 1"),
        ("image_id", 1, -1, "row 1: image_id is -1"),
        ("session", 4, -2, "row 4: session is -2"),
        ("repeat", 2, 0, "row 2: repeat is 0, but repeats of an image count"),
        ("repeat", 0, 1, "row 0: repeat is 1"),
        ("split", 3, "val", "row 3: split is val, but a split is one of"),
        ("session", 1, None, "row 1: session is empty"),
    ],
)
def test_a_wrong_value_is_named(column: str, row: int, value: object, message: str) -> None:
    with pytest.raises(SubjectError, match=message):
        check_trials(edited(column, row, value), where="here")


def test_an_image_in_two_splits_is_named_with_both() -> None:
    with pytest.raises(SplitError, match=r"image 7 is in the splits test and train"):
        check_trials(edited("split", 2, "test"), where="here")


def test_tables_of_other_columns_or_types_are_refused() -> None:
    table = three_images()
    with pytest.raises(SubjectError, match=r"expected exactly"):
        check_trials(table.drop_columns(["session"]), where="here")
    with pytest.raises(SubjectError, match=r"can't be read as trials"):
        check_trials(
            table.set_column(1, "image_id", pa.array(["a", "b", "c", "d", "e"])), where="here"
        )
    with pytest.raises(SubjectError, match=r"has no rows"):
        check_trials(table.slice(0, 0), where="here")


def test_splits_are_drawn_by_image_and_repeatable() -> None:
    image_ids = np.repeat(np.arange(100), 3)
    drawn = assign_splits(image_ids, n_test=20, n_validation=10, seed=4)
    counts = {split: list(drawn.values()).count(split) for split in set(drawn.values())}
    assert counts == {"test": 20, "validation": 10, "train": 70}
    assert drawn == assign_splits(image_ids, n_test=20, n_validation=10, seed=4)
    assert drawn != assign_splits(image_ids, n_test=20, n_validation=10, seed=5)
    with pytest.raises(ValueError, match=r"leave one image for training"):
        assign_splits(image_ids, n_test=90, n_validation=10, seed=0)


def test_given_test_images_stay_the_test() -> None:
    image_ids = np.array([7, 3, 3, 9, 4, 1, 7])
    split = split_around_test(image_ids, [3, 7, 100], n_validation=1, seed=5)
    assert {i for i, s in split.items() if s == "test"} == {3, 7}
    assert sorted(split) == [1, 3, 4, 7, 9]
    others = assign_splits(np.array([1, 4, 9]), n_test=0, n_validation=1, seed=5)
    assert {i: s for i, s in split.items() if s != "test"} == others
    with pytest.raises(OptionError, match="3 validation images were asked for, and 3 of 5 images"):
        split_around_test(image_ids, [3, 7], n_validation=3, seed=5)
