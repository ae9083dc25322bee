"""ShardWorkers: the shards of an index, dealt to the workers of a cluster, and asked.

Each batch of queries goes to every shard. Whoever is lost meanwhile is replaced, what comes is
merged, and what hasn't come when the time is up is named.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from index_builder.cosine import best_per_query
from index_builder.execution.contract import ATTEMPTS, Outcome
from index_builder.execution.dask import SECONDS_TO_CONNECT
from index_builder.execution.workers import DaskWorkers, Questions
from index_builder.row_set import RowSet
from index_builder.shards import Shard

from ..errors import ClusterError
from .held_shards import Found, ShardQuestion, name_of, rows_of_shard

_SECONDS_BETWEEN_LOOKS = 0.25  # for workers that were lost or came
_SECONDS_FOR_A_WORKER = 30  # to wait for one where there is none
Answer = Callable[[ShardQuestion, np.ndarray, RowSet | None], Found]

logger = logging.getLogger("voxseek")


def deal(shards: Sequence[Shard], workers: Sequence[str]) -> dict[str, str]:
    """Return which worker each shard is dealt to.

    The same whoever asks, and much the same when a worker is lost or comes: rendezvous hashing
    (Thaler & Ravishankar 1998, doi:10.1109/90.663936), but a worker that has its share of the rows
    is passed over.

    Parameters
    ----------
    shards : sequence of Shard
    workers : sequence of str, at least one
        Their addresses.

    Returns
    -------
    worker_of : dict
        By the name of the shard. Without its last shard, a worker has less than its share.
    """
    n_all = sum(shard.row_stop - shard.row_start for shard in shards)
    n_dealt = dict.fromkeys(workers, 0)
    worker_of = {}
    for shard in sorted(shards, key=lambda shard: (shard.row_start - shard.row_stop, shard.folder)):
        name = name_of(shard)
        below = [worker for worker in workers if n_dealt[worker] * len(workers) < n_all]
        worker_of[name] = worker = by_preference(name, below)[0]
        n_dealt[worker] += shard.row_stop - shard.row_start
    return worker_of


def by_preference(shard: str, workers: Iterable[str]) -> list[str]:
    """Return workers in the order in which a shard would go to them."""
    return sorted(workers, key=lambda worker: hashlib.sha256(f"{shard} {worker}".encode()).digest())


class ShardWorkers:
    """The shards of an index and the workers that hold them.

    Parameters
    ----------
    workers : DaskWorkers
        To be closed by `close`.
    shards : sequence of Shard
    question : ShardQuestion
        What is asked of all shards alike.
    n_rows : int
        Of the index.
    answer : callable
        What a worker runs: `held_shards.answer_shard`, or a function that calls it.
    """

    def __init__(
        self,
        workers: DaskWorkers,
        shards: Sequence[Shard],
        question: ShardQuestion,
        n_rows: int,
        answer: Answer,
    ) -> None:
        self.workers, self.question, self.answer = workers, question, answer
        self.shards = {name_of(shard): shard for shard in shards}
        self._n_rows = n_rows
        self._lock = threading.Lock()
        # Rows that may be found, as workers keep them, of as many sets as are in use here.
        self._kept: weakref.WeakKeyDictionary[RowSet, dict[tuple[str, str], Any]]
        self._kept = weakref.WeakKeyDictionary()

    def nearest(
        self,
        unit: np.ndarray,
        k: int,
        *,
        breadth: int | None,
        n_candidates: int | None,
        allowed: RowSet | None,
        end: float | None,
    ) -> tuple[Found, set[str]]:
        """Return the ``k`` best hits of each query among the shards that answer in time.

        Parameters
        ----------
        unit : ndarray of shape (n_queries, width), float32, unit rows
        k : int
        breadth, n_candidates : int or None
            As in `ShardQuestion`.
        allowed : RowSet or None
            Rows that may be found, none of them deleted; None: all that aren't deleted.
        end : float or None
            When to come back, by `time.monotonic`; None: when all have answered.

        Returns
        -------
        found : tuple of rows (n_queries, k), int64, and scores (n_queries, k), float32
            Best first, ties by smaller row; -1 and NaN where there are fewer.
        missing : set of str
            Names of the shards that didn't answer. Empty without an end.

        Raises
        ------
        ClusterError
            If no shard answers in time, or, without an end, there is no worker, or a shard was
            asked for three times and its worker was lost each time.
        SchedulerError
            If the scheduler goes away.
        VoxseekError
            Whatever of this kind a worker raises.
        """
        question = replace(self.question, k=k, breadth=breadth, n_candidates=n_candidates)
        with self.workers.questions() as questions:
            batch = _Batch(self, questions, question, unit, allowed)
            missing = batch.run(end)
        if len(missing) == len(self.shards):
            raise ClusterError(
                f"none of the {len(missing)} shards of {question.index} answered in time, of "
                f"{batch.n_workers} worker(s) of {self.workers.address}. The first search opens "
                f"the shards: allow it more time, or start more workers."
            )
        return batch.found, missing

    def rows_on(self, worker: str, shard: Shard, allowed: RowSet | None) -> Any:
        """Return the reference of a shard's rows that a worker may find; None: all."""
        if allowed is None:
            return None
        key = worker, name_of(shard)
        with self._lock:
            kept = self._kept.setdefault(allowed, {})
            if key not in kept:
                first = shard.row_start // 8
                mask = allowed.mask(8 * first, shard.row_stop)
                mask[: shard.row_start - 8 * first] = False
                bits = np.packbits(mask, bitorder="little")
                kept[key] = self.workers.keep(worker, rows_of_shard, bits, first, self._n_rows)
            return kept[key]

    def forget(self, worker: str) -> None:
        """Let go of what a worker kept that was lost."""
        with self._lock:
            for kept in self._kept.values():
                for key in [key for key in kept if key[0] == worker]:
                    del kept[key]

    def close(self) -> None:
        """Leave the cluster, which keeps what it opened."""
        with self._lock:
            self._kept.clear()
        self.workers.close()


@dataclass
class _Progress:
    """Of one shard: who is asked for it now, and who was in vain."""

    failed: list[str]
    worker: str | None = None


class _Batch:
    """One batch of queries, on its way to all shards.

    Attributes
    ----------
    found
        The best of what has come.
    n_workers : int
        At the last look.
    """

    def __init__(
        self,
        owner: ShardWorkers,
        questions: Questions,
        question: ShardQuestion,
        unit: np.ndarray,
        allowed: RowSet | None,
    ) -> None:
        self._owner, self._questions, self._question = owner, questions, question
        self._unit, self._allowed = unit, allowed
        shape = len(unit), question.k
        self.found: Found = np.full(shape, -1, np.int64), np.full(shape, np.nan, np.float32)
        self.n_workers = 0
        self._open = {name: _Progress([]) for name in owner.shards}
        self._queries: dict[str, Any] = {}  # by worker: the reference of what it was sent

    def run(self, end: float | None) -> set[str]:
        """Ask until all have answered or the time is up; return the shards that are missing."""
        given_up: set[str] = set()
        workers: Sequence[str] = ()
        last_seen, last_look = time.monotonic(), -np.inf
        while self._open:
            now = time.monotonic()
            if end is not None and now >= end:
                break
            seconds = SECONDS_TO_CONNECT if end is None else end - now
            if now - last_look >= _SECONDS_BETWEEN_LOOKS:
                workers, last_look = self._owner.workers.addresses(seconds), now
                self.n_workers = len(workers)
            if workers:
                last_seen = now
            elif end is None and now - last_seen >= _SECONDS_FOR_A_WORKER:
                raise ClusterError(
                    f"the Dask scheduler {self._owner.workers.address} has had no worker for "
                    f"{_SECONDS_FOR_A_WORKER} s. Start some with `dask worker`."
                )
            self._ask(workers)
            for name, outcome in self._questions.outcomes(min(seconds, _SECONDS_BETWEEN_LOOKS)):
                self._take(name, outcome)
            for name in [name for name, each in self._open.items() if len(each.failed) >= ATTEMPTS]:
                failed = self._open.pop(name).failed
                if end is None:
                    raise ClusterError(
                        f"{name} of {self._question.index} was asked for {ATTEMPTS} times, of "
                        f"{', '.join(failed)}: each was lost, or met an error of the file system. "
                        f"Look at the memory and the logs of these workers."
                    )
                given_up.add(name)
        return given_up | set(self._open)

    def _ask(self, workers: Sequence[str]) -> None:
        """Ask for all shards for which nobody is asked who is still there."""
        for name, progress in self._open.items():
            if progress.worker is not None and progress.worker not in workers:
                logger.info("worker %s was lost; %s goes to another", progress.worker, name)
                self._owner.forget(progress.worker)
                self._queries.pop(progress.worker, None)
                progress.failed.append(progress.worker)
                progress.worker = None
        waiting = [name for name, progress in self._open.items() if progress.worker is None]
        if not workers or not waiting:
            return
        worker_of = deal(list(self._owner.shards.values()), workers)
        for name in waiting:
            progress = self._open[name]
            worker = worker_of[name]
            others = [each for each in workers if each not in progress.failed]
            if worker in progress.failed and others:
                worker = by_preference(name, others)[0]
            if worker not in self._queries:
                self._queries[worker] = self._owner.workers.keep(worker, _itself, self._unit)
            dealt = tuple(each for each, holder in worker_of.items() if holder == worker)
            progress.worker = worker
            self._questions.ask(
                name,
                worker,
                self._owner.answer,
                replace(self._question, shard=name, dealt=dealt),
                self._queries[worker],
                self._owner.rows_on(worker, self._owner.shards[name], self._allowed),
            )

    def _take(self, name: str, outcome: Outcome[Found]) -> None:
        """Merge an answer; raise an error from which no other worker would save us."""
        if outcome.error is None:
            assert outcome.result is not None
            del self._open[name]
            self.found = _merge(self.found, outcome.result, self._question.k)
            return
        if not outcome.may_pass:
            raise outcome.error
        progress = self._open[name]
        assert progress.worker is not None
        logger.info("%s failed at worker %s: %s", name, progress.worker, outcome.error)
        progress.failed.append(progress.worker)
        progress.worker = None


def _merge(one: Found, other: Found, k: int) -> Found:
    """Return the ``k`` best hits of both for each query, ties by smaller row."""
    rows, scores = (np.concatenate(pair, axis=1) for pair in zip(one, other, strict=True))
    query_of, place = np.nonzero(rows >= 0)
    return best_per_query(query_of, rows[query_of, place], scores[query_of, place], len(rows), k)


def _itself(value: np.ndarray) -> np.ndarray:
    """Return a value: what a worker keeps is what a task returned."""
    return value
