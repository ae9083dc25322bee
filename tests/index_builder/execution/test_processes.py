"""How processes end when their parent is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import signal
import sys
from pathlib import Path
from index_builder.execution import make_executor
from tests.index_builder.execution.toy import toy_tasks, wait_for_ever

if __name__ == "__main__":
    # A shell's background jobs, and so their children, are born deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with make_executor("processes", n_workers=2) as executor:
        executor.run(wait_for_ever, toy_tasks(Path(sys.argv[1]), 3), label="toy")
"""


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def wait_until(is_so: object, seconds: float = 20) -> None:
    assert callable(is_so)
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    work = tmp_path / "work"
    work.mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(work)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(list(work.glob(".*.partial"))) == 2)
    workers = children_of(parent.pid)
    assert len(workers) >= 2
    parent.send_signal(number)
    assert parent.wait(20) != 0
    wait_until(lambda: not any(map(is_running, workers)))
    assert parent.stderr is not None
    text = parent.stderr.read()
    parent.stderr.close()
    if number == signal.SIGINT:
        assert text.count("KeyboardInterrupt") == 1  # of the parent alone
        assert not list(work.glob(".*.partial"))  # workers cleaned up
    assert len(list(work.glob("*.run-*"))) == 2
    assert not list(work.glob("*.npy"))
