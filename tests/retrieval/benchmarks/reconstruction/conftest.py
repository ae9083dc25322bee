from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Write = Callable[..., Path]


@pytest.fixture
def draw_pictures(rng: np.random.Generator) -> Callable[[int], dict[int, Image.Image]]:
    """Pictures of random smooth color, by image id: 0, 3, 6, ..."""

    def draw(n: int) -> dict[int, Image.Image]:
        return {
            3 * number: Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
                (40, 40)
            )
            for number in range(n)
        }

    return draw


@pytest.fixture
def write_pictures(tmp_path: Path) -> Write:
    def write(pictures: dict[int, Image.Image], name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for image_id, picture in pictures.items():
            picture.save(folder / f"{image_id}.png")
        return folder

    return write
