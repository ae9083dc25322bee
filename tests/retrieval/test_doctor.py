from __future__ import annotations

import sys
from pathlib import Path

import pytest

from retrieval import doctor


def test_a_foreign_package_of_our_name_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = doctor.shadowed_packages(tmp_path)
    assert len(messages) == 3
    assert f"expected {tmp_path / 'index_builder' / '__init__.py'}" in messages[0]


def test_a_distribution_that_writes_into_our_package_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = Path(doctor.__file__).parents[1]
    owners = {"training": ["voxseek", "someones-training"], "faiss": ["faiss-cpu", "faiss-gpu"]}
    monkeypatch.setattr(doctor, "packages_distributions", lambda: owners)
    (message,) = doctor.shadowed_packages(home)
    assert "someones-training installs a package 'training' too" in message
    problems = doctor.diagnose(home).problems
    assert any("faiss-cpu and faiss-gpu are both installed" in problem for problem in problems)


def test_memory_is_between_nothing_and_everything() -> None:
    assert 0 < doctor.available_memory() < 1 << 50


def test_a_missing_faiss_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    diagnosis = doctor.diagnose(Path(doctor.__file__).parents[1])
    assert diagnosis.faiss == "absent"
    assert any("indexes can't be built or searched" in problem for problem in diagnosis.problems)
    assert "PROBLEM" in "\n".join(diagnosis.lines())
