from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from training.errors import SourceError
from training.subjects.stimuli import (
    find_pictures,
    natural_order,
    number_stimuli,
    stem_of,
    write_stimuli,
)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_ids_are_the_order_of_the_sorted_names(tmp_path: Path) -> None:
    names, image_ids = number_stimuli(["b.jpg", "a.jpg", "b.jpg", "c.jpg"])
    assert names == ["a.jpg", "b.jpg", "c.jpg"] and image_ids.tolist() == [1, 0, 1, 2]
    assert number_stimuli(["x10", "x9"], order=lambda name: int(name[1:]))[0] == ["x9", "x10"]
    file = tmp_path / write_stimuli(tmp_path, names, {"b.jpg": "a bee"})
    assert pq.read_table(file).to_pylist()[1] == {
        "image_id": 1,
        "name": "b.jpg",
        "caption": "a bee",
    }


def test_numbers_in_names_sort_by_value() -> None:
    names = ["sess", "sess2_run9", "sess2_run10", "sess10_run2"]
    assert sorted(reversed(names), key=natural_order) == names


def test_a_stem_drops_extensions_of_pictures_only() -> None:
    assert stem_of("dogs/dog.1.JPEG") == "dog.1"
    assert stem_of("dog.1") == "dog.1"


def test_pictures_are_found_at_any_depth_and_the_closest_name_wins(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.png", "y/a.jpg", "y/b.PNG", "z/b.png", "z/notes.txt", "y/c.jpg", "w/c.jpg")
    table = find_pictures(tmp_path, ["a.jpg", "z/b.png", "w/c"], {"a.jpg": "an a"})
    found = [str(Path(path).relative_to(tmp_path)) for path in table["path"].to_pylist()[:2]]
    assert found == ["y/a.jpg", "z/b.png"]
    assert table["caption"].to_pylist() == ["an a", None, None]


def test_missing_and_double_pictures_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "y/a.jpg")
    with pytest.raises(SourceError, match=r"has 2 pictures of 'a.jpg': x/a.jpg and y/a.jpg"):
        find_pictures(tmp_path, ["a.jpg"])
    with pytest.raises(
        SourceError, match=r"no picture named 'b' \(2 of 3 stimuli have none; 1 pic"
    ):
        find_pictures(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    with pytest.raises(SourceError, match=r"nowhere is no folder, expected one of pictures"):
        find_pictures(tmp_path / "nowhere", ["a.jpg"])
