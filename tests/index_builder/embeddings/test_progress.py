from __future__ import annotations

import itertools
import logging
import sys

import pytest

from index_builder.embeddings import progress
from index_builder.embeddings.progress import track


def test_a_log_gets_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 4)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with caplog.at_level(logging.INFO, logger="voxseek"):
        items = list(track("abcdef", label="embed", total=9, unit="image", n_done=3))
    assert items == list("abcdef")
    assert caplog.messages == ["embed: 6 of 9 images, 12 s", "embed: 9 of 9 images, 24 s"]


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(track([1, 2], label="embed", total=3, unit="image", n_done=1)) == [1, 2]
    captured = capsys.readouterr()
    assert "embed" in captured.err and captured.out == ""
