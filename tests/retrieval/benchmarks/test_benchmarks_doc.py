from __future__ import annotations

import re
from pathlib import Path

import pytest

from retrieval.benchmarks.bootstrap import N_RESAMPLES
from retrieval.benchmarks.nway import N_DRAWS, TOPS
from retrieval.benchmarks.pairing import TIE_TOLERANCE
from retrieval.benchmarks.published import PUBLISHED_RESULTS

DOC = Path(__file__).resolve().parents[3] / "docs" / "benchmarks.md"


@pytest.fixture(scope="module")
def text() -> str:
    return DOC.read_text(encoding="utf-8")


def test_the_proof_of_the_transposition_runs(text: str) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert snippet.count("assert") == 2
    exec(compile(snippet, str(DOC), "exec"), {})


def test_the_table_of_published_numbers_is_the_one_in_the_code(text: str) -> None:
    table = text.split("<!-- table: published results -->\n")[1].split("<!-- end of table -->")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]

    def written(rate: float | None) -> str:
        return "–" if rate is None else f"{rate:.2f}"

    assert rows == [
        [
            result.method,
            result.training,
            result.subject,
            f"{result.n_way} of {result.pool_size}",
            written(result.brain_to_image),
            written(result.image_to_brain),
        ]
        for result in PUBLISHED_RESULTS
    ]


def test_the_protocol_states_the_constants_of_the_code(text: str) -> None:
    assert f"cosines closer than {TIE_TOLERANCE:.0e}".replace("e-06", "e-6") in text
    assert f"{N_DRAWS} seeded pools" in text
    assert f"{N_RESAMPLES:,} resamples" in text
    assert ", ".join(f"top-{top}" for top in TOPS) in text
