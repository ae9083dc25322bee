from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retrieval.serving.indices_paths import read_indices_paths
from retrieval.serving.problems import ServingError
from retrieval.serving.served import KNN_COLUMNS


def write(folder: Path, content: Any) -> Path:
    path = folder / "indices_paths.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_both_shapes_are_read_in_order(tmp_path: Path) -> None:
    content = {
        "laion5B": {
            "indice_folder": "/data/laion5B",
            "use_arrow": True,
            "columns_to_return": ["a"],
        },
        "small": "small",
        "third": {"indice_folder": "third", "clip_model": "ViT-L/14"},
    }
    first, second, third = read_indices_paths(write(tmp_path, content))
    assert (first.name, first.folder, first.columns) == ("laion5B", Path("/data/laion5B"), ("a",))
    assert (second.name, second.folder) == ("small", tmp_path / "small")
    # The columns of the first are its own.
    assert second.columns == third.columns == KNN_COLUMNS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read as JSON"),
        ([], "no object with entries"),
        ({}, "no object with entries"),
        ({"a": 1}, "entry 'a' is 1"),
        ({"a": {"use_arrow": True}}, "indice_folder"),
        ({"a": {"indice_folder": "x", "usearrow": True}}, "unknown option 'usearrow'"),
        ({"a": {"indice_folder": "x", "columns_to_return": [1]}}, "columns_to_return"),
    ],
)
def test_other_shapes_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ServingError, match=message):
        read_indices_paths(write(tmp_path, content))
