from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from retrieval.benchmarks.ideal import fraction_of_ideal
from retrieval.benchmarks.nway import NwayReport, identify_scores
from retrieval.benchmarks.published import PUBLISHED_RESULTS, format_published, published_view
from retrieval.benchmarks.report import write_report
from retrieval.benchmarks.table import format_report
from retrieval.errors import BenchmarkError


def make_report(
    rng: np.random.Generator, *, signal: float = 2.0, n: int = 40, **options: object
) -> NwayReport:
    scores = rng.normal(size=(n, n)) + signal * np.eye(n)
    return identify_scores(scores, np.arange(n), source="made up", n_way=(10, "all"), **options)


def test_record_holds_what_was_measured(rng: np.random.Generator, tmp_path: Path) -> None:
    report = make_report(rng)
    file = write_report(report, tmp_path / "folder")
    assert file == tmp_path / "folder" / "report.json"
    record = json.loads(file.read_text())
    assert record == report.to_dict()
    assert record["kind"] == "nway_report"
    assert record["inputs"]["scores"]["fingerprint"] == report.inputs["scores"]["fingerprint"]
    assert record["made_by"]["software"]["numpy"] == np.__version__
    rate = record["brain_to_image"]["top_rates"][0]
    assert (rate["n_way"], rate["top"], rate["chance"]) == (10, 1, 0.1)
    n_beating = np.array(record["raw"]["brain_to_image"]["n_beating"])
    whole = next(r for r in record["brain_to_image"]["top_rates"] if r["is_whole_pool"])
    assert whole["expected"]["value"] == np.mean(n_beating == 0)
    assert record["brain_to_image"]["median_rank"]["value"] == np.median(n_beating + 1)
    assert record["brain_to_image"]["mean_reciprocal_rank"]["value"] == pytest.approx(
        np.mean(1 / (1 + n_beating))
    )


def test_same_input_same_bytes(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        write_report(make_report(np.random.default_rng(4)), tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_failed_write_leaves_the_old_report(rng: np.random.Generator, tmp_path: Path) -> None:
    file = write_report(make_report(rng), tmp_path / "report.json")
    before = file.read_bytes()
    broken = make_report(rng)
    broken.inputs["bad"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_report(broken, file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_table_names_directions_chance_and_interval(rng: np.random.Generator) -> None:
    report = make_report(rng)
    text = format_report(report)
    rate = report.image_to_brain.rate(10)
    line = next(
        line for line in text.splitlines() if line.startswith("image→brain") and "top-1 " in line
    )
    assert f"{100 * rate.expected.value:.2f}" in line
    assert f"{100 * rate.expected.low:.2f} to {100 * rate.expected.high:.2f}" in line
    assert "10.00" in line  # chance
    assert "all 40" in text
    assert "median rank" in text


def test_missing_rate_is_an_error(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="holds no top-1 of 300; it holds top-1 of 10"):
        make_report(rng).brain_to_image.rate(300)


def test_papers_labels_are_the_other_way_round(rng: np.random.Generator) -> None:
    report = make_report(rng)
    view = published_view(report)
    labels = {
        (entry["direction"], entry["published_label"]): entry["top1_percent"]
        for entry in view["this_report"]
        if entry["n_way"] == 10
    }
    assert labels == {
        ("brain_to_image", "brain retrieval (bwd)"): pytest.approx(
            100 * report.brain_to_image.rate(10).expected.value
        ),
        ("image_to_brain", "image retrieval (fwd)"): pytest.approx(
            100 * report.image_to_brain.rate(10).expected.value
        ),
    }
    assert len(view["published"]) == len(PUBLISHED_RESULTS)
    json.dumps(view)


def test_published_means_are_those_of_the_subjects() -> None:
    for method, training in (("MindEye", "37 sessions"), ("MindEye2", "40 sessions")):
        rows = [
            row
            for row in PUBLISHED_RESULTS
            if (row.method, row.training, row.n_way) == (method, training, 300)
        ]
        (mean,) = [row for row in rows if row.subject.startswith("mean")]
        subjects = [row for row in rows if row.subject.startswith("subj")]
        assert len(subjects) == 4
        for direction in ("brain_to_image", "image_to_brain"):
            average = np.mean([getattr(row, direction) for row in subjects])
            assert getattr(mean, direction) == pytest.approx(average, abs=0.051)


def test_every_published_result_is_printed_with_its_source(rng: np.random.Generator) -> None:
    text = format_published(make_report(rng))
    for row in PUBLISHED_RESULTS:
        assert row.source in text
        assert f"{row.brain_to_image:.2f}" in text
    assert 'image→brain = "image retrieval (fwd)"' in text


def test_an_ideal_observer_is_all_of_itself(rng: np.random.Generator) -> None:
    report = make_report(rng)
    fraction = fraction_of_ideal(report, report, n_way=10)
    assert (fraction.value, fraction.low, fraction.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("direction", ["brain_to_image", "image_to_brain"])
def test_fraction_is_the_ratio_of_the_rates(rng: np.random.Generator, direction: str) -> None:
    report, ideal = make_report(rng, signal=1.0), make_report(rng, signal=3.0)
    fraction = fraction_of_ideal(report, ideal, n_way=10, top=5, direction=direction)
    rates = [getattr(side, direction).rate(10, 5).expected.value for side in (report, ideal)]
    assert fraction.value == pytest.approx(rates[0] / rates[1])
    assert fraction.low < fraction.value < fraction.high


def test_pairing_makes_the_interval_of_a_fraction_narrower(rng: np.random.Generator) -> None:
    noise = rng.normal(size=(80, 80))
    ids = np.arange(80)
    ideal = identify_scores(noise + 2.0 * np.eye(80), ids, source="ideal", n_way=("all",))
    close = identify_scores(noise + 1.9 * np.eye(80), ids, source="close", n_way=("all",))
    paired = fraction_of_ideal(close, ideal, n_way=80)
    alone = close.brain_to_image.rate(80).expected
    assert (paired.high - paired.low) / paired.value < (alone.high - alone.low) / alone.value / 2


def test_reports_of_different_images_do_not_meet(rng: np.random.Generator) -> None:
    ideal = identify_scores(np.eye(40), np.arange(1, 41), source="ideal", n_way=(10,))
    with pytest.raises(BenchmarkError, match=r"1 only in the decoder's \[0\], 1 only in .* \[40\]"):
        fraction_of_ideal(make_report(rng), ideal, n_way=10)


def test_an_ideal_that_never_succeeds_has_no_fraction(rng: np.random.Generator) -> None:
    ideal = identify_scores(np.ones((40, 40)), np.arange(40), source="ideal", n_way=("all",))
    with pytest.raises(BenchmarkError, match="never finds the image in the top 1 of 40"):
        fraction_of_ideal(make_report(rng), ideal, n_way=40)
