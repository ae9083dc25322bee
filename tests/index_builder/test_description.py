from __future__ import annotations

from typing import Any

import pytest

from index_builder.description import describe_index, describe_plan
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.planning import IndexPlan, plan_index

SPACE = EmbeddingSpace("a model", "final", 1, 768, True)


def manifest_of(plan: IndexPlan, n_shards: int = 1, **certificate: Any) -> dict[str, Any]:
    stated = {"statement": "Recall@10 reaches the target.", "efforts": [], "unmeasured": []}
    return {
        "plan": plan.to_dict(),
        "sources": [
            {"path": "../targets", "n_rows": plan.n_rows - 100},
            {"path": "../more", "n_rows": 100},
        ],
        "shards": [{"folder": f"shards/{number:04d}"} for number in range(n_shards)],
        "deleted": {"n_rows": 0, "file": None},
        "fingerprint": "0123456789abcdef" * 4,
        "certificate": {**stated, **certificate},
    }


def test_a_plan_marks_its_choice_and_what_is_too_large() -> None:
    plan = plan_index(5_000_000, SPACE, memory_bytes=600 << 20, disk_bytes=2 << 30)
    lines = list(describe_plan(plan))
    chosen = [line for line in lines if line.endswith(" chosen")]
    assert len(chosen) == 1 and chosen[0].startswith(plan.design)
    assert any(line.startswith("flat, in memory") and "over budget" in line for line in lines)
    assert f"chosen: {plan.design}; {plan.reason}" in lines
    assert "(of 600 MiB allowed) of RAM" in lines[-1] and "(of 2.00 GiB allowed)" in lines[-1]


def test_the_table_says_what_recall_a_design_can_reach() -> None:
    plan = plan_index(5_000_000, SPACE)
    by_design = {line.split("  ")[0]: line for line in describe_plan(plan)}
    assert " exact " in by_design["flat, from disk"]
    assert " any, by effort " in by_design["hnsw-sq8"]
    copied = next(line for design, line in by_design.items() if design.endswith("sq8 copy"))
    assert " to 0.98 " in copied


@pytest.mark.parametrize(
    ("hours", "told"),
    [
        ({"train": 0.25, "codes": 2.95, "total": 3.2}, "3.2 h: train 15 min, codes 2.95 h"),
        ({"codes": 0.001, "total": 0.001}, "3.6 s: codes 3.6 s"),
        ({"codes": 1234.4, "total": 1234.4}, "1234 h: codes 1234 h"),
    ],
)
def test_hours_are_told_by_stage_as_a_projection(hours: dict[str, float], told: str) -> None:
    plan = plan_index(5_000_000, SPACE)
    line = list(describe_plan(plan, hours))[-1]
    assert line.startswith(f"building takes about {told} (a projection")


def test_an_index_tells_its_efforts_on_request() -> None:
    plan = plan_index(2460, SPACE, memory_bytes=140 * 2460, code="ivf-rabitq")
    measured = {
        "n_candidates": 50,
        "recall": {"queries": {"1": 1.0, "10": 0.97}},
        "standard_error": {"queries": 0.004},
        "nearest_in_100": {"queries": 0.99},
    }
    better = {**measured, "recall": {"queries": {"1": 1.0, "10": 0.98}}}
    efforts = [{"n_probe": 4, **measured}, {"n_probe": 2, **measured}, {"ef_search": 64, **better}]
    manifest = manifest_of(plan, efforts=efforts, unmeasured=[8, 16])
    brief = list(describe_index(manifest))
    assert "Recall@10 reaches the target." in brief
    assert brief[1:3] == ["  2360 from ../targets", "  100 from ../more"]
    assert brief[-1] == "fingerprint 0123456789abcdef"
    full = [line for line in describe_index(manifest, has_efforts=True) if line not in brief]
    assert full == [
        "  4 lists, 50 candidates: queries @1 1.000, @10 0.970 (± 0.004), nearest in 100 0.990",
        "  64 in view, 50 candidates: queries @1 1.000, @10 0.980 (± 0.004), nearest in 100 0.990",
        "  not measured, for less suffices: 8, 16",
    ]


def test_an_index_tells_what_was_taken_down() -> None:
    manifest = manifest_of(plan_index(2460, SPACE))
    assert not any("taken down" in line for line in describe_index(manifest))
    manifest["deleted"]["n_rows"] = 7
    assert "7 rows were taken down and are never found" in list(describe_index(manifest))


@pytest.mark.parametrize(
    ("code", "tier", "n_shards", "is_told"),
    [
        ("ivf-rabitq", "disk", 4, False),
        ("ivf-rabitq", "disk", 5, True),
        ("ivf-rabitq", "memory", 16, False),
        ("ivf-rabitq", "memory", 17, True),
        ("flat", "disk", 40, False),
    ],
)
def test_many_shards_are_to_be_merged(code: Any, tier: Any, n_shards: int, is_told: bool) -> None:
    plan = plan_index(100_000, SPACE, code=code, tier=tier)
    last = list(describe_index(manifest_of(plan, n_shards)))[-1]
    assert last.startswith("next: voxseek index merge") == is_told
