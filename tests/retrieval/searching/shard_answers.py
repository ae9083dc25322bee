"""What workers run in tests instead of `answer_shard`: on a mark beside the index, something else.

A mark is a file ``{what}-{shard}`` beside the index folder.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from index_builder.row_set import RowSet
from retrieval.searching.held_shards import Found, ShardQuestion, answer_shard


def mark(index: Path, what: str, shard: str) -> Path:
    """Return the mark of a shard."""
    return index.parent / f"{what}-{shard.replace('/', '-')}"


def answer_as_marked(question: ShardQuestion, unit: np.ndarray, allowed: RowSet | None) -> Found:
    """Wait while there is a mark ``wait``; die, fail or err if there is one; answer otherwise."""
    index, shard = Path(question.index), question.shard
    while mark(index, "wait", shard).exists():
        time.sleep(0.01)
    if mark(index, "die-once", shard).exists():
        mark(index, "die-once", shard).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if mark(index, "fail-once", shard).exists():
        mark(index, "fail-once", shard).unlink()
        raise TimeoutError("the file server is slow")
    if mark(index, "fail", shard).exists():
        raise TimeoutError("the file server is slow")
    if mark(index, "err", shard).exists():
        raise KeyError(f"a mistake in {shard}")
    return answer_shard(question, unit, allowed)
