from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import cli
from retrieval.doctor import shadowed_packages

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    sources = tmp_path_factory.mktemp("sources")  # a copy: a build leaves its own folder behind
    for name in ("cli.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for name in ("index_builder", "training", "retrieval", "tests", "bench"):
        shutil.copytree(ROOT / name, sources / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), "."],
        cwd=sources,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("voxseek-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_exactly_the_four_top_level_names(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"cli.py", "index_builder", "training", "retrieval"}
    for folder in ("training/recipes/", "training/decoder/recipes/"):
        assert any(name.startswith(folder) and name.endswith(".toml") for name in names)
    assert any(name.endswith(".jinja") for name in names)


@pytest.mark.slow
def test_the_unpacked_wheel_answers_help_and_refuses_to_be_shadowed(
    wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    command = [sys.executable, "-c", "import cli; cli.main(['--help'])"]
    helped = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert helped.returncode == 0, helped.stderr
    assert "index" in helped.stdout

    foreign = tmp_path / "foreign" / "training"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("")
    shadowed = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{foreign.parent}:{site}"},
        capture_output=True,
        text=True,
    )
    assert shadowed.returncode == 1
    assert str(foreign) in shadowed.stderr
    assert "environment of its own" in shadowed.stderr


def test_nothing_is_shadowed_here() -> None:
    assert shadowed_packages(Path(cli.__file__).parent) == []


def test_every_pin_is_exact_and_covers_the_requirements() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, pinned = line.split("==")
            pins[name.lower().replace("_", "-")] = pinned
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["train"], *extras["demo"], *extras["dev"]]
    for requirement in required:
        name = requirement.split(";")[0].split("[")[0]
        for mark in ("=", ">", "<"):
            name = name.split(mark)[0]
        name = name.strip().lower().replace("_", "-")
        if name not in {"voxseek", "faiss-cpu", "setuptools"}:
            assert name in pins, f"{name} is required and has no pin in constraints.txt"
