from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20231)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data and weights that the repository does not ship.

    A folder ``shared/data`` beside the checkout, or the one that VOXSEEK_SHARED_DATA names.
    """
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VOXSEEK_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real data absent: no folder {folder}; set VOXSEEK_SHARED_DATA")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands remember between calls is not the user's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
