"""What a measurement ran on: processor, memory, versions, commit, and how busy it was.

Example: python bench/machine.py
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "pyarrow", "fsspec", "faiss-gpu", "faiss-cpu", "torch", "duckdb")


def describe_machine() -> dict[str, Any]:
    """Return a JSON-serialisable description, without host name, user or paths."""
    return {
        "processor": _processor(),
        "n_cores": _n_cores(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "accelerators": _accelerators(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(),
    }


def hardware_name(machine: dict[str, Any]) -> str:
    """Return a short name for files: processor and cores, or the accelerator where there is one."""
    words = machine["accelerators"][0] if machine["accelerators"] else machine["processor"]
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    return f"{slug}-{machine['n_cores']}core"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _n_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _accelerators() -> list[str]:
    return _lines("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Return the commit, with ``+changes`` where the sources differ from it."""
    head = _lines("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changes = _lines("git", "-C", str(ROOT), "status", "--porcelain", "--", "*.py")
    return head[0] + ("+changes" if changes else "") if head else None


def _lines(*command: str) -> list[str]:
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return finished.stdout.splitlines()


if __name__ == "__main__":
    print(json.dumps(describe_machine(), indent=2))
