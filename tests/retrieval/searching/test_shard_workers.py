"""Which worker a shard is dealt to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_builder.shards import Shard
from retrieval.searching.shard_workers import by_preference, deal


def shards_of_sizes(sizes: np.ndarray) -> list[Shard]:
    stops = np.cumsum(sizes).tolist()
    return [
        Shard(Path(f"index/shards/{number:04d}"), stop - int(size), stop)
        for number, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    ]


def workers(n: int) -> list[str]:
    return [f"tcp://10.0.0.{number}:4000" for number in range(n)]


@pytest.mark.parametrize("n_workers", [1, 2, 7, 16, 40])
def test_no_worker_has_a_shard_more_than_its_share(
    rng: np.random.Generator, n_workers: int
) -> None:
    for sizes in (np.full(24, 100), rng.integers(1, 1000, 50), np.array([900, 10, 10, 10])):
        shards = shards_of_sizes(sizes)
        worker_of = deal(shards, workers(n_workers))
        assert list(worker_of) != [] and len(worker_of) == len(shards)
        for worker in workers(n_workers):
            rows = sorted(
                shard.row_stop - shard.row_start
                for shard in shards
                if worker_of[f"shards/{shard.folder.name}"] == worker
            )
            assert sum(rows[1:]) * n_workers < sizes.sum()


def test_equal_shards_are_dealt_evenly() -> None:
    worker_of = deal(shards_of_sizes(np.full(48, 100)), workers(16))
    assert {list(worker_of.values()).count(worker) for worker in workers(16)} == {3}


def test_it_does_not_matter_who_deals_and_in_which_order(rng: np.random.Generator) -> None:
    shards, names = shards_of_sizes(rng.integers(1, 100, 30)), workers(6)
    assert deal(shards, names) == deal(shards[::-1], names[::-1])


def test_most_shards_stay_where_they_are_when_a_worker_is_lost_or_comes() -> None:
    shards, names = shards_of_sizes(np.full(160, 100)), workers(16)
    before = deal(shards, names)
    after = deal(shards, names[1:])
    stayed = [after[name] == worker for name, worker in before.items() if worker != names[0]]
    assert np.mean(stayed) > 0.8
    assert names[0] not in after.values()


def test_a_shard_prefers_a_worker_whoever_else_is_there() -> None:
    ranked = by_preference("shards/0003", workers(9))
    assert sorted(ranked) == workers(9)
    for lost in ranked:
        others = [worker for worker in ranked if worker != lost]
        assert by_preference("shards/0003", others) == others
