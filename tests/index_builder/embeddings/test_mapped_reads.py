from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from index_builder.embeddings import mapped_reads
from index_builder.embeddings.mapped_reads import read_mapped


@pytest.fixture
def threads() -> Iterator[Callable[[], ThreadPoolExecutor]]:
    with ThreadPoolExecutor(2, thread_name_prefix="reader") as pool:
        yield lambda: pool


def no_threads() -> ThreadPoolExecutor:
    raise AssertionError("threads were asked for")


def told(start: int, stop: int) -> tuple[int, int, bool]:
    """Return the piece, and whether a thread read it."""
    return start, stop, threading.current_thread().name.startswith("reader")


def count(monkeypatch: pytest.MonkeyPatch, *numbers: float) -> None:
    """Let so many pages have been read: at the beginning, and before each piece; then no more."""
    left = list(numbers)
    monkeypatch.setattr(mapped_reads, "_n_pages_read", lambda: left.pop(0) if left[1:] else left[0])


def test_what_is_in_memory_is_read_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    count(monkeypatch, 7)
    pieces = read_mapped(told, 20, no_threads, n_threads=4, n_first=3)
    assert pieces == [(0, 3, False), (3, 9, False), (9, 20, False)]
    assert read_mapped(told, 2, no_threads, n_threads=4, n_first=3) == [(0, 2, False)]
    assert read_mapped(told, 0, no_threads, n_threads=4, n_first=3) == []


def test_what_follows_a_piece_that_waited_goes_to_threads(
    monkeypatch: pytest.MonkeyPatch, threads: Callable[[], ThreadPoolExecutor]
) -> None:
    count(monkeypatch, 7, 7, 7, 9)
    assert read_mapped(told, 16, threads, n_threads=3, n_first=2) == [
        *[(0, 2, False), (2, 6, False)],
        *[(6, 10, True), (10, 14, True), (14, 16, True)],
    ]


def test_the_last_piece_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    count(monkeypatch, 0, 0, 1)
    assert read_mapped(told, 5, no_threads, n_threads=4, n_first=5) == [(0, 5, False)]


def test_all_goes_to_threads_where_nobody_counts_or_that_is_said(
    monkeypatch: pytest.MonkeyPatch, threads: Callable[[], ThreadPoolExecutor]
) -> None:
    count(monkeypatch, 0)
    expected = [(0, 2, True), (2, 3, True)]
    assert read_mapped(told, 3, threads, n_threads=2, n_first=0) == expected
    count(monkeypatch, float("nan"))
    assert read_mapped(told, 3, threads, n_threads=2, n_first=5) == expected


@pytest.mark.parametrize("n_first", [0, 1, 2, 9])
def test_the_first_error_is_raised(
    monkeypatch: pytest.MonkeyPatch, threads: Callable[[], ThreadPoolExecutor], n_first: int
) -> None:
    def fail(start: int, stop: int) -> None:
        if stop > 3:
            raise OSError(f"{start} to {stop} can't be read")

    count(monkeypatch, 0, 0, 1)
    first = {0: "2 to 4", 1: "3 to 5", 2: "2 to 4", 9: "0 to 9"}[n_first]
    with pytest.raises(OSError, match=f"{first} can't be read"):
        read_mapped(fail, 9, threads, n_threads=4 + (n_first == 0), n_first=n_first)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts by thread")
def test_pages_that_a_disk_had_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    path.write_bytes(bytes(64 * mmap.PAGESIZE))
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)

    def read() -> float:
        n_before = mapped_reads._n_pages_read()
        assert not any(mapped[:: mmap.PAGESIZE])
        return mapped_reads._n_pages_read() - n_before

    n_first = read()
    if not n_first:
        pytest.skip("this file system keeps its pages in memory")
    assert n_first == 64 and read() == 0
