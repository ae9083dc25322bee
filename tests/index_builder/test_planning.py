from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from index_builder.costs import Design, lists_ram_bytes
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.errors import PlanError
from index_builder.planning import (
    FEWEST_BUILD_BYTES,
    MOST_ROWS_PER_SHARD,
    IndexPlan,
    compare_designs,
    most_lists,
    plan_index,
)

CLIP = EmbeddingSpace("ViT-L-14/openai", "final", 1, 768, True)
HIDDEN = EmbeddingSpace("ViT-L-14/openai", "hidden", 257, 768, True)
LAION_5B = 5_526_641_167
GIB, TIB = 1 << 30, 1 << 40


def smallest_of(message: str) -> int:
    found = re.search(r"need at least (\d+) bytes", message)
    assert found is not None
    return int(found.group(1))


def test_the_demo_fits_140_bytes_a_vector() -> None:
    plan = plan_index(2460, CLIP, memory_bytes=140 * 2460, code="ivf-rabitq")
    assert (plan.code, plan.tier, plan.n_lists) == ("ivf-rabitq", "memory", 16)
    assert plan.bytes_per_vector < 140
    assert "16 lists, as many as the budgets hold (of 32)" in plan.reason


@pytest.mark.parametrize(
    ("n_rows", "budgets", "design"),
    [
        (10_000, {}, "flat, in memory"),
        (10_000, {"memory_bytes": 10**6}, "flat, from disk"),
        (10_000, {"memory_bytes": 10_000 * 1537}, "flat, in memory"),
        (10**6, {"memory_bytes": GIB}, "ivf-rabitq, 1024 lists, 1 bit, in memory"),
        (10**6, {"memory_bytes": 2 * GIB}, "hnsw-sq8"),
        (
            10**6,
            {"memory_bytes": 2 * GIB, "disk_bytes": GIB // 2},
            "ivf-rabitq, 1024 lists, 1 bit, in memory",
        ),
        (5 * 10**6, {"memory_bytes": 8 * GIB}, "hnsw-sq8"),
        (5 * 10**6 + 1, {"memory_bytes": 8 * GIB}, "ivf-rabitq, 4096 lists, 1 bit, in memory"),
        (10**7, {"memory_bytes": GIB}, "ivf-rabitq, 4096 lists, 1 bit, from disk"),
        (10**7, {"memory_bytes": 4 * GIB}, "ivf-rabitq, 4096 lists, 1 bit, in memory"),
        (LAION_5B, {"memory_bytes": 64 * GIB}, "ivf-rabitq, 131072 lists, 1 bit, from disk"),
        (LAION_5B, {"memory_bytes": TIB}, "ivf-rabitq, 131072 lists, 1 bit, in memory"),
    ],
)
def test_the_budget_chooses_the_design(n_rows: int, budgets: dict[str, int], design: str) -> None:
    assert plan_index(n_rows, CLIP, **budgets).design == design


def test_without_a_memory_budget_there_is_no_graph() -> None:
    assert plan_index(10**6, CLIP).code == "ivf-rabitq"
    assert plan_index(10**6, CLIP, code="hnsw-sq8").code == "hnsw-sq8"


def test_a_scan_is_for_local_rows_without_settled_codes() -> None:
    assert plan_index(10_000, CLIP, is_local=False).code != "flat"
    assert plan_index(10_000, CLIP, bits=2).code == "ivf-rabitq"
    assert plan_index(10**6, CLIP, code="flat").design == "flat, from disk"
    assert plan_index(10**6, CLIP, code="flat", memory_bytes=2 * GIB).tier == "memory"
    assert plan_index(10**8, CLIP, code="flat", tier="memory").tier == "memory"


@pytest.mark.parametrize("n_rows", [1, 500, 78_000, 10**6, 3 * 10**7, 10**9])
@pytest.mark.parametrize("memory", [10**6, 3 * 10**7, 2 * 10**8, 2 * GIB, 70 * GIB])
@pytest.mark.parametrize("disk", [None, 2 * 10**8, 500 * GIB])
@pytest.mark.parametrize("target", [0.9, 0.99])
def test_budgets_are_strict_and_refusals_name_the_smallest(
    n_rows: int, memory: int, disk: int | None, target: float
) -> None:
    arguments: dict[str, Any] = {"target_recall": target}
    budgets = {"memory": memory, "disk": disk}
    for _ in range(3):  # both budgets may be too small
        try:
            plan = plan_index(
                n_rows,
                CLIP,
                memory_bytes=budgets["memory"],
                disk_bytes=budgets["disk"],
                **arguments,
            )
            break
        except PlanError as error:
            name = "memory" if "in memory, and the budget" in str(error) else "disk"
            smallest = smallest_of(str(error))
            found = budgets[name]
            assert found is not None and found < smallest
            budgets[name] = smallest
    assert plan.ram_bytes <= (budgets["memory"] or 0)
    assert budgets["disk"] is None or plan.disk_bytes <= budgets["disk"]
    assert plan.build_bytes <= max(budgets["memory"] or 0, FEWEST_BUILD_BYTES)
    assert plan.n_lists & (plan.n_lists - 1) == 0
    assert plan.n_train <= n_rows and (plan.code == "flat" or plan.n_train >= plan.n_lists)


@pytest.mark.parametrize("code", ["ivf-rabitq", "hnsw-sq8"])
@pytest.mark.parametrize("budget", ["memory_bytes", "disk_bytes"])
def test_the_smallest_budget_that_the_refusal_names_works(code: Any, budget: str) -> None:
    with pytest.raises(
        PlanError, match=r"need at least \d+ bytes .* and the budget is 200000\."
    ) as refusal:
        plan_index(2460, CLIP, code=code, **{budget: 200_000})
    smallest = smallest_of(str(refusal.value))
    plan = plan_index(2460, CLIP, code=code, **{budget: smallest})
    assert max(plan.ram_bytes, plan.disk_bytes) >= smallest
    with pytest.raises(PlanError, match="need at least"):
        plan_index(2460, CLIP, code=code, **{budget: smallest - 1})


def test_the_smallest_lists_are_one_in_memory() -> None:
    smallest = lists_ram_bytes(2460, 768, Design("ivf-rabitq", 1, "memory", "source", 1), 1)
    with pytest.raises(
        PlanError, match=rf"1 lists, 1 bit, in memory need at least {smallest} bytes"
    ):
        plan_index(2460, CLIP, memory_bytes=smallest - 1, code="ivf-rabitq")


def test_a_graph_needs_memory_to_be_measured_too() -> None:
    with pytest.raises(PlanError, match="hnsw-sq8 need at least") as refusal:
        plan_index(10**6, CLIP, code="hnsw-sq8", memory_bytes=GIB)
    smallest = smallest_of(str(refusal.value))
    plan = plan_index(10**6, CLIP, code="hnsw-sq8", memory_bytes=smallest)
    assert plan.ram_bytes < plan.build_bytes <= smallest


def test_too_large_a_shard_is_refused_by_what_it_takes() -> None:
    with pytest.raises(PlanError, match="shards of 20000000 rows to be built included") as refusal:
        plan_index(10**8, CLIP, memory_bytes=GIB, rows_per_shard=20_000_000)
    smallest = smallest_of(str(refusal.value))
    plan = plan_index(10**8, CLIP, memory_bytes=smallest, rows_per_shard=20_000_000)
    assert plan.rows_per_shard == 20_000_000 and plan.build_bytes <= smallest


def test_lists_that_no_build_could_train_are_refused() -> None:
    with pytest.raises(PlanError, match=r"262144 lists, 1 bit, .* need at least"):
        plan_index(10**8, CLIP, memory_bytes=GIB, n_lists=262_144)


@pytest.mark.parametrize(
    ("disk", "copy"), [(None, "fp16"), (2 * GIB, "fp16"), (GIB, "sq8"), (GIB // 2, "rabitq4")]
)
def test_rows_behind_a_network_get_the_best_copy_that_fits(disk: int | None, copy: str) -> None:
    plan = plan_index(10**6, CLIP, is_local=False, disk_bytes=disk)
    assert plan.rerank == copy
    assert f"ranked by copies ({copy})" in plan.reason
    assert ("that reach about 0.9 at most" in plan.reason) == (copy == "rabitq4")
    assert plan_index(10**6, CLIP, disk_bytes=disk).rerank == "source"


def test_no_copy_is_left_out_for_want_of_disk() -> None:
    with pytest.raises(PlanError, match=r"rabitq4 copy need at least .* on disk") as refusal:
        plan_index(10**6, CLIP, is_local=False, disk_bytes=GIB // 4)
    smallest = smallest_of(str(refusal.value))
    assert plan_index(10**6, CLIP, is_local=False, disk_bytes=smallest).rerank == "rabitq4"
    plan = plan_index(10**6, CLIP, is_local=False, disk_bytes=GIB // 4, rerank="source")
    assert plan.rerank == "source"


def test_a_high_target_takes_two_bits_where_they_fit() -> None:
    assert plan_index(10**7, CLIP, target_recall=0.97).bits == 1
    assert plan_index(10**7, CLIP, target_recall=0.98).bits == 2
    assert plan_index(10**7, CLIP, target_recall=0.98, memory_bytes=3 * GIB // 2).bits == 1


def test_memory_that_is_short_moves_codes_to_disk_rather_than_lists_away() -> None:
    plan = plan_index(10**8, CLIP, memory_bytes=4 * GIB)
    assert (plan.tier, plan.n_lists) == ("disk", most_lists(10**8))
    assert "for memory doesn't hold them" in plan.reason
    asked = plan_index(10**8, CLIP, memory_bytes=4 * GIB, tier="disk")
    assert "for memory doesn't hold them" not in asked.reason
    # Fewer lists rather than another tier, where that is enough.
    ample = plan_index(10**6, CLIP, code="ivf-rabitq", tier="memory")
    tight = plan_index(10**6, CLIP, code="ivf-rabitq", memory_bytes=ample.ram_bytes - 1)
    assert (tight.tier, tight.n_lists) == ("memory", ample.n_lists // 2)


@pytest.mark.parametrize(
    ("n_rows", "n_lists"),
    [(1, 1), (77, 1), (78, 2), (2460, 32), (10**6, 1024), (10**8, 16_384), (LAION_5B, 131_072)],
)
def test_lists_grow_with_the_root_of_the_rows(n_rows: int, n_lists: int) -> None:
    assert most_lists(n_rows) == n_lists


def test_wide_rows_are_trained_on_as_many_as_fit() -> None:
    plan = plan_index(10**6, HIDDEN, memory_bytes=64 * GIB)
    assert plan.build_bytes <= 64 * GIB
    assert plan.n_train * HIDDEN.width * 4 <= 64 * GIB
    with pytest.raises(PlanError, match="197376 numbers are too wide for hnsw-sq8"):
        plan_index(10**6, HIDDEN, code="hnsw-sq8")


def test_shards_cover_the_rows_once() -> None:
    plan = plan_index(1001, CLIP, rows_per_shard=251)
    assert list(plan.shard_ranges()) == [(0, 251), (251, 502), (502, 753), (753, 1001)]
    assert plan.n_shards == 4
    assert plan_index(1001, CLIP, rows_per_shard=500).n_shards == 3


def test_shards_are_of_one_size_and_as_large_as_a_build_allows() -> None:
    plan = plan_index(LAION_5B, CLIP, memory_bytes=64 * GIB)
    assert plan.n_shards == -(-LAION_5B // 20_000_000)
    starts, stops = zip(*plan.shard_ranges(), strict=True)
    sizes = {stop - start for start, stop in zip(starts[:-1], stops, strict=False)}
    assert sizes == {plan.rows_per_shard} and stops[-1] == LAION_5B
    small = plan_index(LAION_5B, CLIP, memory_bytes=GIB)
    assert small.n_shards > plan.n_shards and small.build_bytes <= GIB


def test_a_resized_plan_costs_what_its_rows_cost() -> None:
    plan = plan_index(10**6, CLIP, code="ivf-rabitq", rows_per_shard=500_000)
    grown = plan.resized(2 * 10**6, 4)
    asked = plan_index(
        2 * 10**6, CLIP, code="ivf-rabitq", rows_per_shard=500_000, n_lists=plan.n_lists
    )
    assert (grown.ram_bytes, grown.disk_bytes) == (asked.ram_bytes, asked.disk_bytes)
    assert grown.n_lists == plan.n_lists


def test_plan_survives_json() -> None:
    plan = plan_index(10**6, CLIP, memory_bytes=GIB, disk_bytes=TIB)
    again = IndexPlan.from_dict(plan.to_dict())
    assert again == plan and again.fingerprint == plan.fingerprint
    assert plan_index(10**6, CLIP).fingerprint != plan.fingerprint


def test_malformed_plans_are_refused() -> None:
    fields = plan_index(10, CLIP).to_dict()
    with pytest.raises(PlanError, match="a stored plan is malformed"):
        IndexPlan.from_dict({name: v for name, v in fields.items() if name != "n_lists"})
    with pytest.raises(PlanError, match="a stored plan is malformed"):
        IndexPlan.from_dict({**fields, "colour": "red"})
    with pytest.raises(PlanError, match="a stored plan is malformed"):
        IndexPlan.from_dict({**fields, "space": {**fields["space"], "dim": 0}})
    for name in ("code", "tier", "rerank"):
        with pytest.raises(PlanError, match=f"a stored plan has {name} 'pq'"):
            IndexPlan.from_dict({**fields, name: "pq"})


def test_compare_designs_marks_budget_and_choice() -> None:
    plan = plan_index(2460, CLIP, memory_bytes=140 * 2460, code="ivf-rabitq")
    table = compare_designs(plan)
    (chosen,) = (row for row in table if row.is_chosen)
    found = chosen.design, chosen.ram_bytes, chosen.disk_bytes, chosen.build_bytes
    assert found == (plan.design, plan.ram_bytes, plan.disk_bytes, plan.build_bytes)
    by_design = {row.design: row for row in table}
    assert by_design["flat, from disk"].is_exact and by_design["flat, from disk"].is_within_budget
    assert not by_design["flat, in memory"].is_within_budget
    assert not by_design["hnsw-sq8"].is_within_budget


def test_a_design_that_nobody_would_choose_is_in_its_own_table() -> None:
    plan = plan_index(10**6, CLIP, bits=3, tier="disk", rerank="sq8")
    table = compare_designs(plan)
    assert [row.design for row in table if row.is_chosen] == [plan.design]
    assert table[-1].design == "ivf-rabitq, 1024 lists, 3 bit, from disk, sq8 copy"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"code": "pq"}, "code is 'pq', expected one of flat, ivf-rabitq, hnsw-sq8"),
        ({"tier": "tape"}, "tier is 'tape', expected one of memory, disk"),
        ({"rerank": "pq"}, "rerank is 'pq', expected one of source, fp16, sq8, rabitq4"),
        ({"code": "flat", "bits": 2}, "bits is 2, and a flat index has no codes"),
        ({"code": "flat", "n_lists": 4}, "lists is 4, and a flat index has no codes"),
        ({"code": "flat", "rerank": "sq8"}, "rerank is sq8, and a flat index has no codes"),
        ({"code": "hnsw-sq8", "n_lists": 4}, "lists is 4, and hnsw-sq8 has none"),
        ({"code": "hnsw-sq8", "tier": "disk"}, "tier is disk, and hnsw-sq8 has memory"),
        ({"code": "hnsw-sq8", "bits": 2}, "bits is 2, and hnsw-sq8 has 8"),
        ({"code": "ivf-rabitq", "bits": 5}, "bits is 5, expected 1 to 4"),
        ({"n_lists": 11}, "lists is 11, expected 1 to 10 for 10 rows"),
        ({"rows_per_shard": 0}, "rows_per_shard is 0, expected 1 to 4294967296"),
        ({"rows_per_shard": MOST_ROWS_PER_SHARD + 1}, "rows_per_shard is 4294967297"),
    ],
)
def test_contradictions_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_index(10, CLIP, **asked)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(PlanError, match="there are 0 embeddings"):
        plan_index(0, CLIP)
    with pytest.raises(ValueError, match="memory_bytes is 0"):
        plan_index(10, CLIP, memory_bytes=0)
    with pytest.raises(ValueError, match="disk_bytes is 0"):
        plan_index(10, CLIP, disk_bytes=0)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        plan_index(10, CLIP, dtype="int8")
    with pytest.raises(ValueError, match="target_recall is 0, expected above 0"):
        plan_index(10, CLIP, target_recall=0)


def test_planning_loads_neither_faiss_nor_torch() -> None:
    code = "import sys, index_builder.planning; sys.exit(bool({'faiss', 'torch'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
