"""Voxels by blocks: what stands is kept, and the bytes are those of an uninterrupted run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training.errors import SubjectError
from training.subjects.voxel_file import VoxelBlock, VoxelSource, open_voxels, write_voxels

N_VOXELS = 7
SIZES = (3, 1, 4)


def make_source(
    read: list[int], *, option: str = "a", broken: int | None = None, n_voxels: int = N_VOXELS
) -> VoxelSource:
    """Return a source of seeded blocks that notes which of them were read."""

    def reader(number: int) -> Callable[[], NDArray[Any]]:
        def give() -> NDArray[Any]:
            if number == broken:
                raise KeyboardInterrupt
            read.append(number)
            rng = np.random.default_rng(number)
            return rng.normal(size=(SIZES[number], n_voxels))

        return give

    blocks = [VoxelBlock(f"session {i}", n, reader(i)) for i, n in enumerate(SIZES)]
    return VoxelSource(blocks, N_VOXELS, np.dtype(np.float16), {"option": option})


def test_blocks_become_one_array(tmp_path: Path) -> None:
    write_voxels(tmp_path / "voxels.npy", make_source([]), n_trials=8)
    expected = np.concatenate(
        [np.random.default_rng(i).normal(size=(n, N_VOXELS)) for i, n in enumerate(SIZES)]
    )
    np.testing.assert_array_equal(
        np.asarray(open_voxels(tmp_path / "voxels.npy")), expected.astype(np.float16)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["voxels.npy"]


@pytest.mark.parametrize("broken", [1, 2])
def test_what_stands_is_not_read_again(tmp_path: Path, broken: int) -> None:
    whole, resumed = tmp_path / "whole.npy", tmp_path / "resumed.npy"
    write_voxels(whole, make_source([]), n_trials=8)
    with pytest.raises(KeyboardInterrupt):
        write_voxels(resumed, make_source([], broken=broken), n_trials=8)
    assert not resumed.exists()
    read: list[int] = []
    write_voxels(resumed, make_source(read), n_trials=8)
    assert read == list(range(broken, 3))
    assert resumed.read_bytes() == whole.read_bytes()


def test_another_identity_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_voxels(tmp_path / "voxels.npy", make_source([], broken=2), n_trials=8)
    read: list[int] = []
    write_voxels(tmp_path / "voxels.npy", make_source(read, option="b"), n_trials=8)
    assert read == [0, 1, 2]


def test_a_damaged_ledger_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_voxels(tmp_path / "voxels.npy", make_source([], broken=2), n_trials=8)
    (tmp_path / ".voxels.npy.blocks.json").write_text("{")
    read: list[int] = []
    write_voxels(tmp_path / "voxels.npy", make_source(read), n_trials=8)
    assert read == [0, 1, 2]


def test_blocks_of_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=r"session 0 gave voxels of shape \(3, 6\), expected"):
        write_voxels(tmp_path / "voxels.npy", make_source([], n_voxels=6), n_trials=8)


def test_blocks_and_trials_must_agree(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="8 rows of voxels and 9 trials"):
        write_voxels(tmp_path / "voxels.npy", make_source([]), n_trials=9)


def test_a_voxel_that_is_not_finite_names_its_block(tmp_path: Path) -> None:
    source = VoxelSource(
        [VoxelBlock("session 0", 2, lambda: np.array([[0, 1], [2, np.nan]]))],
        2,
        np.dtype(np.float32),
        {},
    )
    with pytest.raises(SubjectError, match="session 0, voxels: voxel 1 of trial 1 is nan"):
        write_voxels(tmp_path / "voxels.npy", source, n_trials=2)


def test_a_full_disk_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr("training.subjects.voxel_file.shutil.disk_usage", lambda _: Usage)
    read: list[int] = []
    with pytest.raises(SubjectError, match=r"free\. Make room"):
        write_voxels(tmp_path / "voxels.npy", make_source(read), n_trials=8)
    assert not read
