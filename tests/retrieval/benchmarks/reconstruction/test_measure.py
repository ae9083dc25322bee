from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from PIL import Image, ImageFilter

from index_builder.embeddings.errors import MissingExtraError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.writer import EmbeddingWriter
from retrieval.benchmarks.reconstruction import measure
from retrieval.benchmarks.reconstruction.commands import bench_reconstruction
from retrieval.benchmarks.reconstruction.measure import (
    MEAN,
    RECONSTRUCTIONS,
    SEEN,
    SHUFFLED,
    Encoding,
    Variants,
    measure_reconstructions,
    strangers,
)
from retrieval.benchmarks.reconstruction.networks import Network
from retrieval.benchmarks.reconstruction.pictures import open_folder
from retrieval.benchmarks.reconstruction.pixels import pixel_correlations
from retrieval.benchmarks.reconstruction.published import PUBLISHED_RECONSTRUCTIONS
from retrieval.benchmarks.reconstruction.report import METRICS, mean_estimates
from retrieval.benchmarks.reconstruction.table import format_report
from retrieval.errors import BenchmarkError
from training.encoders.pixels import PixelEncoder
from training.subjects.subject import Subject, write_subject
from training.subjects.trials import build_trials

N = 6


def blurred(pictures: dict[int, Image.Image]) -> dict[int, Image.Image]:
    return {i: p.filter(ImageFilter.GaussianBlur(6)) for i, p in pictures.items()}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixel metrics on small pictures: sizes are tested elsewhere."""
    for module in ("passes.SIDE", "pictures.SIDE"):
        monkeypatch.setattr(f"retrieval.benchmarks.reconstruction.{module}", 40)


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Networks that average pixels; of one there are no weights."""

    def build(file: Path, device: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        assert device == "cpu"
        metrics = file.read_text().split()
        return lambda pixels: {metric: pixels.reshape(len(pixels), -1) for metric in metrics}

    plain = ((0.0,) * 3, (1.0,) * 3, build)
    monkeypatch.setattr(
        measure,
        "NETWORKS",
        (
            Network("Two", ("alexnet2", "alexnet5"), ("two.pth",), 8, *plain),
            Network("Lost", ("inception",), ("lost.pth", "lost.bin"), 8, *plain),
            Network("One", ("swav",), ("old.pth", "one.pth"), 5, *plain),
        ),
    )
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "two.pth").write_text("alexnet2 alexnet5")
    (folder / "one.pth").write_text("swav")
    return folder


def test_perfect_reconstructions(draw_pictures, write_pictures, small_networks: Path) -> None:
    seen = write_pictures(draw_pictures(N), "seen")
    report = measure_reconstructions(seen, seen, networks=small_networks)
    (scores,) = report.scores
    assert list(scores.metrics) == ["pixcorr", "ssim", "alexnet2", "alexnet5", "swav"]
    for name, values in scores.metrics.items():
        np.testing.assert_allclose(values, 0 if name == "swav" else 1, atol=1e-6)
    assert report.absent == {
        "inception": f"{small_networks} has no lost.pth or lost.bin, the weights of Lost"
    }
    assert list(report.inputs["networks"]) == ["Two", "One"]
    assert report.inputs["networks"]["One"]["file"] == "one.pth"


def test_without_weights_the_networks_are_absent_and_named(draw_pictures, write_pictures) -> None:
    seen = write_pictures(draw_pictures(3), "seen")
    report = measure_reconstructions(seen, seen)
    assert list(report.absent) == [metric.name for metric in METRICS[2:]]
    assert report.absent["alexnet2"].endswith("it takes alexnet-owt-7be5be79.pth")
    text = format_report(report)
    assert "absent: Alex(2), Alex(5): no folder of weights was given" in text
    assert "absent: SwAV: no folder of weights was given; it takes swav_800ep" in text


def test_controls_are_worse_and_what_they_say_they_are(
    draw_pictures, write_pictures, small_networks: Path
) -> None:
    drawn = draw_pictures(N)
    seen, made = write_pictures(drawn, "seen"), write_pictures(blurred(drawn), "made")
    report = measure_reconstructions(made, seen, networks=small_networks, has_controls=True, seed=3)
    own, mean, shuffled = report.scores
    assert [own.name, mean.name, shuffled.name] == [RECONSTRUCTIONS, MEAN, SHUFFLED]
    others = strangers(N, 3)
    pixels = {side: open_folder(side).read(np.arange(N), "plain") for side in (seen, made)}
    np.testing.assert_allclose(
        shuffled.metrics["pixcorr"],
        pixel_correlations(pixels[seen], pixels[made][others]),
        atol=1e-6,
    )
    average = pixels[seen].mean(axis=0, keepdims=True).repeat(N, axis=0)
    np.testing.assert_allclose(
        mean.metrics["pixcorr"], pixel_correlations(pixels[seen], average), atol=1e-2
    )
    assert mean.metrics["alexnet2"].mean() == pytest.approx(0.5)
    for name in ("pixcorr", "ssim", "alexnet2"):
        assert own.metrics[name].mean() > shuffled.metrics[name].mean() + 0.1
    assert own.metrics["swav"].mean() < shuffled.metrics["swav"].mean()


@pytest.mark.parametrize("n", [2, 3, 50])
def test_strangers_are_others_each_once(n: int) -> None:
    others = strangers(n, 0)
    assert sorted(others.tolist()) == list(range(n))
    assert (others != np.arange(n)).all()
    np.testing.assert_array_equal(others, strangers(n, 0))


def test_variants_reach_the_metrics(draw_pictures, write_pictures, small_networks: Path) -> None:
    drawn = draw_pictures(N)
    # All the same but for one: who chooses decides what is gained.
    same = dict.fromkeys(drawn, drawn[0]) | {3: drawn[3]}
    seen, made = write_pictures(drawn, "seen"), write_pictures(same, "made")

    def value(metric: str, **options: Any) -> float:
        variants = Variants(**options)
        report = measure_reconstructions(made, seen, networks=small_networks, variants=variants)
        assert report.options == variants.to_dict()
        return float(report.scores[0].metrics[metric].mean())

    two_way = {value("alexnet2", two_way=d) for d in ("reconstruction", "image", "pairs")}
    assert len(two_way) == 3
    ssim = {value("ssim", ssim_channels=c) for c in ("gray", "color", "columns")}
    assert len(ssim) == 3
    assert value("swav", resize="plain") != value("swav", resize="antialiased")


def test_flat_reconstructions_are_counted_as_zero_and_told(draw_pictures, write_pictures) -> None:
    drawn = draw_pictures(N)
    seen = write_pictures(drawn, "seen")
    made = write_pictures(drawn | {9: Image.new("RGB", (30, 20), (80, 80, 80))}, "made")
    report = measure_reconstructions(made, seen)
    np.testing.assert_allclose(report.scores[0].metrics["pixcorr"], [1, 1, 1, 0, 1, 1])
    assert report.flat == {"reconstructions": [9]}
    assert "flat: 1 of the reconstructions (9); a flat picture has no correlation" in format_report(
        report
    )


def test_intervals_are_over_images(rng: np.random.Generator) -> None:
    values = np.stack([rng.normal(size=400), np.full(400, 0.25)], axis=1)
    noisy, constant = mean_estimates(values, 2000, 0)
    assert (constant.low, constant.value, constant.high) == pytest.approx((0.25,) * 3)
    assert noisy.value == pytest.approx(values[:, 0].mean())
    half = 1.96 * values[:, 0].std() / np.sqrt(400)
    assert noisy.high - noisy.value == pytest.approx(half, rel=0.15)
    assert noisy.value - noisy.low == pytest.approx(half, rel=0.15)


# ------------------------------------------------------------------------------ brain correlation


@pytest.fixture
def subject(tmp_path: Path, rng, draw_pictures, write_pictures) -> Subject:
    """Voxels that are linear in the pictures' pixels."""
    drawn = draw_pictures(60)
    stimuli = write_pictures(drawn, "stimuli")
    encoder = PixelEncoder(4)
    pixels = encoder.encode(np.stack([encoder.prepare(picture) for picture in drawn.values()]))
    return write_subject(
        tmp_path / "subject",
        name="subj01",
        voxels=(pixels @ rng.normal(size=(16, 9))).astype(np.float32),
        trials=build_trials(
            np.array(list(drawn)),
            np.zeros(60, np.int64),
            {i: "test" if i < 3 * N else "train" for i in drawn},
        ),
        rois={"V1": np.arange(9) < 4},
        images=pa.table(
            {
                "image_id": list(drawn),
                "path": [str(stimuli / f"{i}.png") for i in drawn],
                "caption": pa.nulls(60, pa.string()),
            }
        ),
        command="test",
        details={},
    )


@pytest.fixture
def targets(tmp_path: Path, subject: Subject) -> EmbeddingFolder:
    encoder = PixelEncoder(4)
    image_ids = subject.image_ids("all").tolist()
    rows = encoder.encode(np.stack([encoder.prepare(subject.open_image(i)) for i in image_ids]))
    with EmbeddingWriter(tmp_path / "emb", encoder.space, command="test", details={}) as writer:
        writer.write(rows, pa.table({"image_id": image_ids}))
        return writer.finish()


def test_brain_correlations_of_reconstructions_and_controls(
    subject: Subject, targets: EmbeddingFolder, write_pictures
) -> None:
    own = {int(i): subject.open_image(int(i)) for i in subject.image_ids("test")}
    made = write_pictures(blurred(own), "made")
    report = measure_reconstructions(
        made, subject.path, encoding=Encoding(targets), has_controls=True
    )
    means = {scores.name: scores.brain["all voxels"].mean() for scores in report.scores}
    assert list(means) == [RECONSTRUCTIONS, MEAN, SHUFFLED, SEEN]
    assert means[SEEN] > 0.99
    assert means[SHUFFLED] + 0.3 < means[RECONSTRUCTIONS] < means[SEEN]
    assert abs(means[MEAN]) < 0.3
    assert report.region_sizes == {"all voxels": 9, "V1": 4}
    assert report.inputs["encoding_targets"]["fingerprint"] == targets.fingerprint
    text = format_report(report)
    assert "brain correlation" in text
    assert f"{means[SEEN]:.3f} [" in text


def test_a_brain_correlation_needs_a_subject(targets, draw_pictures, write_pictures) -> None:
    seen = write_pictures(draw_pictures(3), "seen")
    with pytest.raises(BenchmarkError, match="seen is a folder of pictures, and a brain correlat"):
        measure_reconstructions(seen, seen, encoding=Encoding(targets))


# ------------------------------------------------------------------------------------ the command


def run(*words: object) -> SimpleNamespace:
    result = CliRunner().invoke(bench_reconstruction, [str(word) for word in words])
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr, all=result)


def test_command_prints_a_table_and_writes_the_record(
    tmp_path: Path, draw_pictures, write_pictures, small_networks: Path
) -> None:
    drawn = draw_pictures(N)
    seen, made = write_pictures(drawn, "seen"), write_pictures(blurred(drawn), "made")
    words = [made, seen, "--networks", small_networks, "--controls", "--published"]
    shown = run(*words, "--out", tmp_path / "out")
    assert shown.code == 0, shown.all
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    lines = shown.out.splitlines()
    head = next(line for line in lines if "PixCorr" in line)
    assert [title.strip("% ") for title in head.replace("↓", "↑").split("↑")] == [
        *("PixCorr", "SSIM", "Alex(2)", "Alex(5)", "Incep", "CLIP", "Eff", "SwAV"),
        "",
    ]
    row = next(
        line for line in lines if line.startswith("reconstructions  ") and "made" not in line
    )
    found = record["scores"]["reconstructions"]["metrics"]
    rates = [100 * found[name]["value"] for name in ("alexnet2", "alexnet5")]
    assert row.split()[1:] == [
        f"{found['pixcorr']['value']:.3f}",
        f"{found['ssim']['value']:.3f}",
        *(f"{rate:.2f}" for rate in rates),
        "-",
        "-",
        "-",
        f"{found['swav']['value']:.3f}",
    ]
    assert "chance" in shown.out and "50.00" in shown.out
    assert any("MindEye2, 40 sessions, mean of 1, 2, 5, 7 (1000)" in line for line in lines)
    assert "982 images of 37 sessions are not the 1,000 of 40" in shown.out
    assert record["kind"] == "reconstruction_report"
    assert record["raw"]["image_id"] == sorted(drawn)
    assert np.mean(record["raw"]["reconstructions"]["metrics"]["ssim"]) == pytest.approx(
        found["ssim"]["value"]
    )
    as_json = json.loads(run(*words, "--json").out)
    assert len(as_json.pop("published")["published"]) == len(PUBLISHED_RECONSTRUCTIONS)
    assert as_json == record


def test_command_takes_the_encoding_targets(
    subject: Subject, targets: EmbeddingFolder, write_pictures
) -> None:
    own = {int(i): subject.open_image(int(i)) for i in subject.image_ids("test")}
    made = write_pictures(own, "made")
    shown = run(made, subject.path, "--encoding-targets", targets.path)
    assert shown.code == 0, shown.all
    assert "all voxels" in shown.out
    wrong = run(made, subject.path, "--pretrained", "openai")
    assert wrong.code == 2
    assert "--pretrained belongs to --encoding-targets" in wrong.err


def test_what_is_not_installed_is_named(
    draw_pictures, write_pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = write_pictures(draw_pictures(2), "seen")
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(MissingExtraError, match=r"skimage is not .* similarity .*\[reconstruct\]"):
        measure_reconstructions(seen, seen)
    monkeypatch.setitem(sys.modules, measure.__name__, None)
    failed = run(seen, seen).all.exception
    assert isinstance(failed, MissingExtraError)
    assert "and this benchmark needs it" in str(failed)


def test_published_rows_are_within_their_ranges() -> None:
    for row in PUBLISHED_RECONSTRUCTIONS:
        for metric in METRICS:
            value = getattr(row, metric.name)
            assert value is None or (50 < value <= 100 if metric.is_rate else 0 < value < 1)
        assert row.n_images == {"37 sessions": 982}.get(row.training, 1000)
