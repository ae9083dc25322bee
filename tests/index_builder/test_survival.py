"""Twenty kills at random times over builds: what stands is kept, and the bytes are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.errors import ArtefactError
from index_builder.manifest import read_index_manifest, verify_index_files

ROOT = Path(__file__).resolve().parents[2]
N_ROWS, N_KILLS = 6000, 20
OPTIONS = ("--code", "ivf-rabitq", "--rerank", "sq8", "--rows-per-shard", "500")


def start(embeddings: Path, index: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "cli.py"), "index", "build", str(embeddings), str(index)]
    # A group of its own: what the command started is killed with it.
    return subprocess.Popen(
        [*command, *OPTIONS],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def digests(index: Path) -> dict[str, str]:
    return {
        path.relative_to(index).as_posix(): sha256_file(path)
        for path in sorted(index.rglob("*"))
        if path.is_file()
    }


def finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()


@pytest.mark.slow
def test_twenty_kills_do_not_change_a_byte(
    cone: Callable[..., np.ndarray], write_folder: Callable[..., Any], tmp_path: Path
) -> None:
    embeddings = Path(write_folder(cone(N_ROWS)).path)
    finish(start(embeddings, tmp_path / "whole"))
    expected = digests(tmp_path / "whole")
    rng = np.random.default_rng(11)
    n_kills = n_builds = 0
    while n_kills < N_KILLS:
        index = tmp_path / f"index{n_builds}"
        n_builds += 1
        while True:
            process = start(embeddings, index)
            try:
                # Long enough to load the libraries; then anywhere in what is left of the build.
                _, said = process.communicate(timeout=0.6 + rng.exponential(0.5))
            except subprocess.TimeoutExpired:
                if n_kills == N_KILLS:
                    finish(process)
                    break
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                n_kills += 1
                require_old_or_resumable(index)
            else:
                assert process.returncode == 0, said.decode()
                break
        assert digests(index) == expected


def require_old_or_resumable(index: Path) -> None:
    """Whatever has its name is whole; a manifest stands only if all that it lists does."""
    for record in index.rglob("shard.json"):
        assert not list(record.parent.glob(".*.partial")), "a shard was complete before its files"
    if (index / "manifest.json").exists():
        verify_index_files(index, read_index_manifest(index))
    else:
        with pytest.raises(ArtefactError, match=r"manifest\.json is missing|is not a folder"):
            read_index_manifest(index)
