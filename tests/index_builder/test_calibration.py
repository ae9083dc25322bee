from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder import calibration, quantizer
from index_builder.calibration import ASSUMED_READ_RATE, Calibration, calibrate, predict_hours
from index_builder.costs import MOST_COMPARED_LISTS
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.planning import plan_index

CLIP = EmbeddingSpace("ViT-L-14/openai", "final", 1, 768, True)
NOTHING = Calibration(is_read_measured=True)
SECOND = Calibration(
    True, **{each.name: 1.0 for each in fields(Calibration) if each.name != "is_read_measured"}
)


def seconds(plan: Any, n_workers: int = 1, **pieces: float) -> dict[str, float]:
    found = predict_hours(plan, replace(NOTHING, **pieces), n_workers)
    return {stage: pytest.approx(3600 * hours) for stage, hours in found.items()}


def test_k_means_takes_the_turns_that_are_counted() -> None:
    assert sum(n / stride for stride, n in quantizer._TURNS) == calibration.VISITS
    assert sum(n for _, n in quantizer._TURNS) == calibration.TURNS


def test_each_piece_of_work_is_counted() -> None:
    plan = plan_index(10**6, CLIP, code="ivf-rabitq", rerank="sq8")
    n, m = plan.n_rows, plan.n_train
    assert seconds(plan, sample_row=1) == {"sample": m, "total": m}
    assert seconds(plan, update_row=1) == {"train": 4.25 * m, "total": 4.25 * m}
    routed = {"train": 4.25 * m, "codes": n}
    assert seconds(plan, route_row=1) == {**routed, "total": n + 4.25 * m}
    assert seconds(plan, code_row=1) == {"codes": n, "total": n}
    assert seconds(plan, copy_row=1) == {"copy": n, "total": n}
    assert seconds(plan, search_row=1) == {"exact search": n, "total": n}
    assert seconds(plan, hash_byte=1) == {"checksums": plan.disk_bytes, "total": plan.disk_bytes}
    written = seconds(plan, write_byte=1)
    assert written["total"] == plan.disk_bytes
    assert written["copy"] == n * 768 + 128
    scanned = 200 * 127 * n / plan.n_lists
    assert seconds(plan, scan_code=1) == {"recall": scanned, "total": scanned}
    assert seconds(plan, open_lists=1)["recall"] == 7


def test_many_lists_are_linked_in_each_turn() -> None:
    plan = plan_index(10**9, CLIP, memory_bytes=1 << 40)
    assert plan.n_lists > MOST_COMPARED_LISTS
    assert seconds(plan, link_row=1)["train"] == 11 * plan.n_lists
    few = plan_index(10**8, CLIP, memory_bytes=1 << 40)
    assert few.n_lists == MOST_COMPARED_LISTS and seconds(few, link_row=1)["total"] == 0


def test_a_graph_links_its_rows_and_trains_nothing() -> None:
    plan = plan_index(10**6, CLIP, code="hnsw-sq8")
    assert seconds(plan, link_row=1) == {"links": 10**6, "total": 10**6}
    assert "train" not in predict_hours(plan, SECOND, 1)
    assert seconds(plan, walk=1)["recall"] == 200 * 496 / 64


def test_a_flat_index_is_read_once() -> None:
    plan = plan_index(10**6, CLIP, code="flat")
    assert predict_hours(plan, SECOND, 1) == {"read": 10**6 / 3600, "total": 10**6 / 3600}


def test_workers_share_shards_and_search_but_not_the_training() -> None:
    plan = plan_index(10**6, CLIP, code="ivf-rabitq", rerank="sq8", rows_per_shard=100_000)
    one, four = predict_hours(plan, SECOND, 1), predict_hours(plan, SECOND, 4)
    for stage in ("sample", "train", "recall"):
        assert four[stage] == one[stage]
    assert four["exact search"] == pytest.approx(one["exact search"] / 4)
    for stage in ("codes", "copy", "checksums"):  # ten shards: one worker builds three of them
        assert four[stage] == pytest.approx(one[stage] * 3 / 10)
    assert four["total"] == pytest.approx(sum(four.values()) - four["total"])
    assert predict_hours(plan, SECOND, 100)["codes"] == pytest.approx(one["codes"] / 10)


@pytest.mark.parametrize(
    "design",
    [
        {"code": "flat"},
        {"code": "ivf-rabitq"},
        {"code": "ivf-rabitq", "rerank": "rabitq4", "bits": 2},
        {"code": "hnsw-sq8"},
        {"code": "ivf-rabitq", "n_lists": 300},
    ],
    ids=lambda design: " ".join(map(str, design.values())),
)
def test_rows_of_the_source_are_timed(
    cone: Callable[..., np.ndarray],
    write_collection: Callable[..., Collection],
    design: dict[str, Any],
) -> None:
    source = write_collection(cone(700))
    plan = plan_index(700, source.space, **design)
    timed = calibrate(plan, source)
    assert timed.is_read_measured and timed.read_row > 0
    hours = predict_hours(plan, timed, 1)
    assert set(hours) >= ({"read"} if plan.code == "flat" else {"sample", "codes", "recall"})
    assert ("copy" in hours) == (plan.rerank != "source")
    assert ("links" in hours) == (plan.code == "hnsw-sq8")
    assert 0 < hours["total"] < 0.1


@pytest.mark.parametrize("n_bad", [200, 300])
def test_bad_rows_do_not_stop_the_clock(
    cone: Callable[..., np.ndarray], write_foreign: Callable[..., Path], n_bad: int
) -> None:
    rows = cone(300)
    rows[:n_bad] = np.nan
    space = EmbeddingSpace("m", "final", 1, 48, True)
    source = Collection.open([write_foreign(rows)], space=space)
    timed = calibrate(plan_index(300, space, code="ivf-rabitq"), source)
    assert timed.code_row > 0


def test_without_a_source_the_rate_of_reading_is_assumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "MOST_COMPARED_LISTS", 64)
    space = EmbeddingSpace("m", "final", 1, 48, True)
    plan = plan_index(10**7, space, dtype="float32", code="ivf-rabitq")
    timed = calibrate(plan, None)
    assert not timed.is_read_measured
    assert timed.read_row == 48 * 4 / ASSUMED_READ_RATE
    assert timed.link_row > 0 and timed.route_row > 0
