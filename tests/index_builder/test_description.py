from __future__ import annotations

from index_builder.description import describe_index, describe_plan
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.planning import plan_index

SPACE = EmbeddingSpace("a model", "final", 1, 768, True)


def test_a_plan_marks_its_choice_and_what_is_too_large() -> None:
    plan = plan_index(5_000_000, SPACE, memory_bytes=600 << 20)
    lines = list(describe_plan(plan))
    chosen = [line for line in lines if line.endswith(" chosen")]
    assert len(chosen) == 1 and chosen[0].startswith(plan.design)
    assert any(line.startswith("flat, in memory") and "over budget" in line for line in lines)
    assert plan.reason in lines[-2] and "building needs about" in lines[-1]


def test_an_index_tells_its_efforts_on_request() -> None:
    plan = plan_index(2460, SPACE, memory_bytes=140 * 2460, code="ivf-rabitq")
    manifest = {
        "plan": plan.to_dict(),
        "embeddings": {"path": "../targets"},
        "fingerprint": "0" * 64,
        "certificate": {
            "statement": "Recall@10 reaches the target.",
            "efforts": [
                {"n_probe": 4, "n_candidates": 50, "recall": {"queries": {"1": 1.0, "10": 0.97}}}
            ],
        },
    }
    brief = list(describe_index(manifest))
    assert brief[2] == "Recall@10 reaches the target."
    full = set(describe_index(manifest, has_efforts=True)) - set(brief)
    assert full == {"  4 lists, 50 candidates: queries @1 1.000, @10 0.970"}
