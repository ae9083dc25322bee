from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.retrieval.reconstruction.decoders.small_pipelines import (
    DECODERS,
    DIM,
    SAMPLING,
    SEEDS,
    SIDE,
    TOKENS,
    save_pipelines,
)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_pipelines(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def open_decoder(small_weights: dict[str, Path]) -> Callable[..., Any]:
    def open_(kind: str, weights: Path | None = None, **options: Any) -> Any:
        decoder, fixed = DECODERS[kind]
        options = {"sampling": SAMPLING, **fixed, **options}
        return decoder(str(weights or small_weights[kind]), **options)

    return open_


@pytest.fixture
def copy_weights(small_weights: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def copy(kind: str) -> Path:
        return Path(shutil.copytree(small_weights[kind], tmp_path / kind))

    return copy


@pytest.fixture
def draw_embeddings(rng: np.random.Generator) -> Callable[..., np.ndarray]:
    def draw(kind: str, n: int = len(SEEDS)) -> np.ndarray:
        tokens = TOKENS if kind == "versatile" else 1
        return rng.standard_normal((n, tokens, DIM)).astype(np.float32)

    return draw


@pytest.fixture
def starts(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (len(SEEDS), SIDE, SIDE, 3), dtype=np.uint8)
