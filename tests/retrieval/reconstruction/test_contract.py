from __future__ import annotations

import numpy as np
import pytest

from retrieval.errors import ReconstructionError
from retrieval.reconstruction.contract import Placement, Sampling, require_decodable


class Taking:
    """A decoder that takes three tokens of two numbers, and isn't asked to decode."""

    name = "taking"
    tokens, dim, side = 3, 2, 8


@pytest.mark.parametrize(
    ("strength", "n_run"), [(1.0, 20), (0.85, 17), (0.29, 6), (0.05, 1)], ids=str
)
def test_strength_is_the_share_of_steps_that_are_run(strength: float, n_run: int) -> None:
    assert Sampling(guidance=3.5, strength=strength).n_steps_from_start == n_run


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance": 0.5}, r"guidance is 0.5, expected a number of at least 1"),
        ({"guidance": float("nan")}, r"guidance is nan, expected a number of at least 1"),
        ({"n_steps": 0}, r"n_steps is 0, expected at least 1"),
        ({"strength": 0.0}, r"strength is 0.0, .* expected it in \(0, 1\]"),
        ({"strength": 1.5}, r"strength is 1.5, .* expected it in \(0, 1\]"),
        ({"strength": 0.02}, r"strength is 0.02, which runs none of 20 steps"),
        ({"start_pixels": "bgr"}, r"start_pixels is 'bgr', expected 'vae' or 'clip'"),
    ],
    ids=str,
)
def test_impossible_sampling_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**{"guidance": 3.5} | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "fp8"}, r"precision is 'fp8', expected one of fp32, fp16, bf16"),
        ({"batch_size": 0}, r"batch_size is 0, expected at least 1"),
    ],
    ids=str,
)
def test_impossible_placement_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Placement(**fields)


def test_what_fits_is_decodable(rng: np.random.Generator) -> None:
    embeddings = rng.standard_normal((4, 3, 2)).astype(np.float32)
    require_decodable(Taking(), embeddings, range(4), None)
    require_decodable(Taking(), embeddings, range(4), np.zeros((4, 5, 7, 3), np.uint8))
    require_decodable(Taking(), embeddings[:0], [], None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.ones((4, 6), np.float32)}, r"shape \(4, 6\); taking takes \(n, 3, 2\)"),
        ({"embeddings": np.ones((4, 3, 5), np.float32)}, r"choose the decoder of this one"),
        ({"row": np.nan}, r"embedding 2 is zero or not finite"),
        ({"row": 0.0}, r"embedding 2 is zero or not finite"),
        ({"seeds": [1, 2, 3]}, r"3 seeds were given for 4 embeddings"),
        ({"seeds": [1, 2, 3, -4]}, r"the least is -4; expected one a picture, each at least 0"),
        ({"starts": np.zeros((4, 8, 8, 3))}, r"starts are float64 of shape \(4, 8, 8, 3\)"),
        (
            {"starts": np.zeros((3, 8, 8, 3), np.uint8)},
            r"expected uint8 .* \(4, height, width, 3\)",
        ),
        ({"starts": np.zeros((4, 8, 8), np.uint8)}, r"starts are uint8 of shape \(4, 8, 8\)"),
    ],
    ids=["rank", "width", "nan", "zero", "few seeds", "negative seed", "floats", "few", "grey"],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    given = {"embeddings": np.ones((4, 3, 2), np.float32), "seeds": range(4), "starts": None}
    if "row" in change:
        given["embeddings"][2] = change.pop("row")
    with pytest.raises(ReconstructionError, match=message):
        require_decodable(Taking(), **given | change)
