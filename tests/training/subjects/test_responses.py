from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from index_builder.embeddings.errors import ArtefactError
from training.errors import SourceError
from training.subjects.responses import (
    Stretch,
    build_source,
    find_valid,
    require_new_subject,
)


def stretch(responses: np.ndarray, sessions: list[int]) -> Stretch:
    return Stretch("part", np.array(sessions), lambda voxels: responses[:, voxels])


@pytest.fixture
def stretches(rng: np.random.Generator) -> list[Stretch]:
    """Two sessions in three stretches; voxel 0 good, 1 NaN and 2 zero in session 1, 3 in both."""
    first, second, third = rng.standard_normal((3, 4, 4))
    second[0, 2] = third[:, 2] = 0
    third[2, 1] = np.nan
    second[:, 3] = 0
    first[1, 3] = np.inf
    third[0, 3] = np.nan
    second[2:, 2] = 0
    return [
        stretch(first, [0] * 4),
        stretch(second, [0, 0, 1, 1]),
        stretch(third, [1] * 4),
    ]


def test_a_voxel_is_valid_where_it_is_finite_and_not_always_0(stretches: list[Stretch]) -> None:
    is_valid = find_valid(stretches, 4)
    np.testing.assert_array_equal(
        is_valid, [[True, True, True, False], [True, False, False, False]]
    )


def test_invalid_sessions_become_0_and_lost_voxels_go(
    stretches: list[Stretch], caplog: pytest.LogCaptureFixture
) -> None:
    is_valid = find_valid(stretches, 4)
    with caplog.at_level(logging.INFO, logger="voxseek"):
        source, kept, counts = build_source(stretches, is_valid, identity={}, where="x")
    assert "left out 1 of 4 voxels" in caplog.text
    assert kept.tolist() == [0, 1, 2] and source.n_voxels == 3
    assert counts == {"n_voxels_left_out": 1, "n_invalid_sessions": 2}
    read = np.concatenate([block.read() for block in source.blocks])
    raw = np.concatenate([s.read(kept) for s in stretches]).astype(np.float32)
    session = np.concatenate([s.sessions for s in stretches])
    np.testing.assert_array_equal(read[session == 0], raw[session == 0])
    np.testing.assert_array_equal(read[:, 0], raw[:, 0])
    assert not read[session == 1, 1:].any()


def test_the_identity_follows_what_is_valid(stretches: list[Stretch]) -> None:
    is_valid = find_valid(stretches, 4)
    other = is_valid.copy()
    other[1, 1] = True
    one, two = (build_source(stretches, v, identity={}, where="x")[0] for v in (is_valid, other))
    assert one.identity != two.identity


def test_nothing_valid_and_a_full_folder_are_refused(tmp_path: Path) -> None:
    empty = [stretch(np.zeros((2, 3)), [0, 0])]
    with pytest.raises(SourceError, match=r"here: all 3 voxels are 0 or not finite in every"):
        build_source(empty, find_valid(empty, 3), identity={}, where="here")
    require_new_subject(tmp_path)
    (tmp_path / "subject.json").touch()
    with pytest.raises(ArtefactError, match=r"already holds a complete subject"):
        require_new_subject(tmp_path)
