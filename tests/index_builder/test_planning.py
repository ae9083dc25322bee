from __future__ import annotations

import subprocess
import sys

import pytest

from index_builder.embeddings.space import EmbeddingSpace
from index_builder.errors import PlanError
from index_builder.planning import (
    IndexPlan,
    code_bytes,
    compare_designs,
    lists_ram_bytes,
    plan_index,
)

CLIP = EmbeddingSpace("ViT-L-14/openai", "final", 1, 768, True)


def test_the_demo_fits_140_bytes_a_vector() -> None:
    plan = plan_index(2460, CLIP, memory_bytes=140 * 2460, code="ivf-rabitq")
    assert (plan.design, plan.n_lists) == ("ivf-rabitq, 16 lists", 16)
    assert plan.bytes_per_vector < 140
    assert "16 lists, as many as fit in 344400 bytes (of 32)" in plan.reason


def test_code_bytes_of_one_bit_rabitq() -> None:
    assert [code_bytes(width) for width in (768, 512, 9)] == [104, 72, 10]


@pytest.mark.parametrize(
    ("n_rows", "n_lists"),
    [
        (1, 1),
        (77, 1),
        (78, 2),
        (2460, 32),
        (10**6, 2048),
        (10**8, 32_768),
        (5_527_000_000, 262_144),
    ],
)
def test_lists_grow_with_the_root_of_the_rows(n_rows: int, n_lists: int) -> None:
    assert plan_index(n_rows, CLIP, code="ivf-rabitq").n_lists == n_lists


@pytest.mark.parametrize("per_vector", [116, 120, 135, 160, 500])
def test_the_budget_is_strict_and_used(per_vector: int) -> None:
    budget = 2460 * per_vector
    plan = plan_index(2460, CLIP, memory_bytes=budget, code="ivf-rabitq")
    assert plan.ram_bytes <= budget
    wide = plan_index(2460, CLIP, code="ivf-rabitq").n_lists
    assert plan.n_lists == wide or lists_ram_bytes(2460, 768, 2 * plan.n_lists, 1) > budget


def test_the_smallest_budget_that_the_refusal_names_works() -> None:
    smallest = lists_ram_bytes(2460, 768, 1, 1)
    with pytest.raises(PlanError, match=rf"need at least {smallest} bytes .* budget is 246000"):
        plan_index(2460, CLIP, memory_bytes=246_000, code="ivf-rabitq")
    with pytest.raises(PlanError, match="need at least"):
        plan_index(2460, CLIP, memory_bytes=smallest - 1, code="ivf-rabitq")
    assert plan_index(2460, CLIP, memory_bytes=smallest, code="ivf-rabitq").n_lists == 1


def test_few_rows_are_scanned_and_many_are_coded() -> None:
    assert plan_index(10_000, CLIP).design == "flat, in memory"
    assert plan_index(10_000, CLIP, memory_bytes=10**6).design == "flat, from disk"
    assert plan_index(10_000, CLIP, memory_bytes=10**6).ram_bytes == 0
    assert plan_index(10_000, CLIP, memory_bytes=10_000 * 1537).design == "flat, in memory"
    assert plan_index(10**6, CLIP).design == "ivf-rabitq, 2048 lists"
    assert plan_index(10**6, CLIP, code="flat").design == "flat, from disk"
    assert plan_index(10**6, CLIP, code="flat", memory_bytes=2 << 30).is_held


def test_shards_cover_the_rows_once() -> None:
    plan = plan_index(1001, CLIP, n_shards=4)
    assert list(plan.shard_ranges()) == [(0, 251), (251, 502), (502, 753), (753, 1001)]
    assert plan.n_shards == 4
    assert plan_index(1001, CLIP, rows_per_shard=500).n_shards == 3


def test_each_shard_costs_its_lists_again() -> None:
    one = plan_index(10**6, CLIP)
    four = plan_index(10**6, CLIP, n_shards=4)
    assert four.ram_bytes > one.ram_bytes and four.n_lists == one.n_lists


def test_plan_survives_json() -> None:
    plan = plan_index(10**6, CLIP, memory_bytes=1 << 30)
    again = IndexPlan.from_dict(plan.to_dict())
    assert again == plan and again.fingerprint == plan.fingerprint
    assert plan_index(10**6, CLIP).fingerprint != plan.fingerprint


def test_malformed_plans_are_refused() -> None:
    fields = plan_index(10, CLIP).to_dict()
    with pytest.raises(PlanError, match="a stored plan is malformed"):
        IndexPlan.from_dict({name: v for name, v in fields.items() if name != "n_lists"})
    with pytest.raises(PlanError, match="a stored plan has code 'pq'"):
        IndexPlan.from_dict({**fields, "code": "pq"})


def test_compare_designs_marks_budget_and_choice() -> None:
    plan = plan_index(2460, CLIP, memory_bytes=140 * 2460, code="ivf-rabitq")
    table = compare_designs(plan)
    assert [row.design for row in table if row.is_chosen] == [plan.design]
    chosen = next(row for row in table if row.is_chosen)
    assert (chosen.ram_bytes, chosen.disk_bytes) == (plan.ram_bytes, plan.disk_bytes)
    by_design = {row.design: row for row in table}
    assert by_design["flat, from disk"].is_exact and by_design["flat, from disk"].is_within_budget
    assert not by_design["flat, in memory"].is_within_budget
    assert not by_design["ivf-rabitq, 32 lists"].is_within_budget


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(PlanError, match="there are 0 embeddings"):
        plan_index(0, CLIP)
    with pytest.raises(PlanError, match="code is 'pq', expected one of flat, ivf-rabitq"):
        plan_index(10, CLIP, code="pq")  # type: ignore[arg-type]  # what a command line may pass
    with pytest.raises(PlanError, match="n_shards is 11, expected 1 to 10"):
        plan_index(10, CLIP, n_shards=11)
    with pytest.raises(PlanError, match="rows_per_shard is 0"):
        plan_index(10, CLIP, rows_per_shard=0)
    with pytest.raises(ValueError, match="both given"):
        plan_index(10, CLIP, n_shards=2, rows_per_shard=5)
    with pytest.raises(ValueError, match="memory_bytes is 0"):
        plan_index(10, CLIP, memory_bytes=0)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        plan_index(10, CLIP, dtype="int8")


def test_planning_loads_no_faiss() -> None:
    code = "import sys, index_builder.planning; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
