from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder.embeddings.space import EmbeddingSpace
from index_builder.execution.contract import describe_task, task_key
from tests.index_builder.execution.toy import nothing, write_file


@dataclass(frozen=True)
class Rich:
    """A task with everything that a task may hold."""

    folder: Path
    space: EmbeddingSpace
    names: tuple[str, ...]
    sizes: dict[str, int]
    share: float
    anything: Any = None


SPACE = EmbeddingSpace("a model", "final", 1, 768, True)
TASK = Rich(Path("a/b"), SPACE, ("x", "y"), {"p": 1}, 0.5)


def test_a_key_tells_every_field_apart() -> None:
    changed = [
        replace(TASK, folder=Path("a/c")),
        replace(TASK, space=replace(SPACE, unit_norm=False)),
        replace(TASK, names=("x",)),
        replace(TASK, sizes={"p": 2}),
        replace(TASK, share=0.25),
        replace(TASK, anything=True),
    ]
    keys = {task_key(write_file, task) for task in [TASK, *changed]}
    assert len(keys) == 1 + len(changed)
    assert task_key(write_file, TASK) == task_key(write_file, replace(TASK))
    assert task_key(nothing, TASK) not in keys
    assert task_key(write_file, TASK).startswith("tests.index_builder.execution.toy.write_file-")


def test_what_has_no_value_to_tell_it_by_is_refused() -> None:
    with pytest.raises(TypeError, match="a task holds a ndarray, expected numbers, words, paths"):
        task_key(write_file, replace(TASK, anything=np.zeros(3)))


def test_people_read_the_fields_that_are_short() -> None:
    assert describe_task(write_file, TASK) == "write_file(folder=a/b)"
    assert describe_task(nothing, 3) == "nothing(task=3)"
