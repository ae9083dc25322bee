from __future__ import annotations

import numpy as np
import pytest

from index_builder.embeddings import soundness
from index_builder.embeddings.soundness import Flaw, describe_flaw, find_flaws


def judge_slowly(row: np.ndarray, unit_norm: bool) -> Flaw:
    """The definition, in float64 and one row at a time."""
    values = row.astype(np.float64).ravel()
    if np.isnan(values).any():
        return Flaw.NAN
    if np.isinf(values).any():
        return Flaw.INFINITE
    norm = np.sqrt((values**2).sum())
    if norm == 0:
        return Flaw.ZERO
    return Flaw.NORM if unit_norm and not 0.97 <= norm <= 1.03 else Flaw.NONE


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_agrees_with_the_definition(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dtype: str, unit_norm: bool
) -> None:
    monkeypatch.setattr(soundness, "_BLOCK_VALUES", 7 * 48)  # several blocks, the last one short
    rows = rng.standard_normal((300, 48))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows *= rng.choice([1.0, 0.968, 0.972, 1.028, 1.032, 0.01, 30.0], size=(300, 1))
    rows = rows.astype(dtype)
    rows[::7, 5] = np.nan
    rows[::11, 6] = -np.inf
    rows[::13] = 0
    rows[::17, 7] = -0.0
    expected = [judge_slowly(row, unit_norm) for row in rows]
    assert len(set(expected)) == (5 if unit_norm else 4)
    assert find_flaws(rows, unit_norm=unit_norm).tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float16", 6e-8), ("float16", 65504), ("float32", 1e-30), ("float32", 3e38)],
)
def test_extreme_but_finite_rows_are_sound(dtype: str, value: float) -> None:
    """Their squares leave the range of float32, and they still have a direction."""
    rows = np.full((3, 4), value, dtype)
    assert not find_flaws(rows, unit_norm=False).any()
    assert (find_flaws(rows, unit_norm=True) == Flaw.NORM).all()


def test_every_float16_is_judged_by_its_bits() -> None:
    column = np.arange(1 << 16, dtype=np.uint16).view(np.float16)[:, np.newaxis]
    flaws = find_flaws(column, unit_norm=False)
    assert (flaws[np.isnan(column[:, 0])] == Flaw.NAN).all()
    assert (flaws[np.isinf(column[:, 0])] == Flaw.INFINITE).all()
    assert (flaws[column[:, 0] == 0] == Flaw.ZERO).all()
    assert (flaws == Flaw.NONE).sum() == (1 << 16) - 2 * 1024 - 2
    with np.errstate(invalid="ignore"):
        norms = np.abs(column[:, 0].astype(np.float64))
    is_unit = (norms >= 0.97) & (norms <= 1.03)
    np.testing.assert_array_equal(find_flaws(column, unit_norm=True) == Flaw.NONE, is_unit)


def test_the_norm_is_over_all_tokens() -> None:
    rows = np.full((2, 4, 4), 0.25, np.float16)
    assert not find_flaws(rows, unit_norm=True).any()


def test_a_flaw_is_put_into_words() -> None:
    assert describe_flaw(Flaw.NORM, np.array([3.0, 4.0])) == (
        "has norm 5, and the space says unit norm"
    )
    assert describe_flaw(Flaw.NAN, np.array([np.nan])) == "holds NaN"
