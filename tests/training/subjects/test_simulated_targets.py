from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from index_builder.embeddings.reader import EmbeddingFolder
from training.subjects import simulated_targets
from training.subjects.commands import data
from training.subjects.dead_leaves import paint_dead_leaves
from training.subjects.ideal_observer import IdealObserver
from training.subjects.low_level import GRID, describe_pixels, low_level_features
from training.subjects.simulated_targets import World, simulate_targets
from training.subjects.simulation import SimulationConfig, simulate_subject
from training.subjects.truth import Truth


def draw_many(world: World, n: int) -> np.ndarray:
    latents = np.stack([world.draw(image_id)[1] for image_id in range(n)])
    return world.finish(latents).astype(np.float64)


def cosines(rows: np.ndarray) -> np.ndarray:
    """All cosines of pairs of different rows, (n, n), the diagonal left out as -1."""
    flat = rows.reshape(len(rows), -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    found = flat @ flat.T
    np.fill_diagonal(found, -1)
    return found


def tree(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_dead_leaves_have_the_spectrum_of_natural_pictures(rng: np.random.Generator) -> None:
    pictures = np.stack([paint_dead_leaves(rng) for _ in range(200)]).mean(axis=3)
    power = np.abs(np.fft.fft2(pictures - pictures.mean(axis=(1, 2), keepdims=True))) ** 2
    axis = np.fft.fftfreq(pictures.shape[1])
    frequency = np.hypot(axis[:, None], axis)
    is_measured = (frequency > 0.03) & (frequency < 0.35)
    slope = np.polyfit(np.log(frequency[is_measured]), np.log(power.mean(axis=0)[is_measured]), 1)
    # Natural pictures: about -2, -1.4 to -2.8 from one to another (Field 1987, Tolhurst 1992).
    assert -2.8 < slope[0] < -1.8


def test_low_level_features_are_those_of_the_pixels(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    pixels = paint_dead_leaves(rng)
    Image.fromarray(pixels).save(tmp_path / "leaves.png")
    np.testing.assert_array_equal(
        low_level_features(tmp_path / "leaves.png"), describe_pixels(pixels)
    )


def test_the_final_layer_is_like_clip() -> None:
    """Numbers of 200 CLIP ViT-L/14 embeddings, one of each THINGS concept."""
    found = cosines(draw_many(World(1, 768, 3), 200)[:, 0])
    pairs = found[~np.eye(200, dtype=bool)]
    assert pairs.mean() == pytest.approx(0.544, abs=0.02)
    assert pairs.std() == pytest.approx(0.082, abs=0.015)
    assert found.max(axis=1).mean() == pytest.approx(0.735, abs=0.03)


def test_components_fall_as_clips_do() -> None:
    embeddings = draw_many(World(1, 768, 3), 200)[:, 0]
    variance = np.linalg.svd(embeddings - embeddings.mean(axis=0), compute_uv=False) ** 2
    share = variance.cumsum() / variance.sum()
    clip = {5: 0.208, 10: 0.309, 20: 0.445, 50: 0.678, 100: 0.874}
    np.testing.assert_allclose([share[n - 1] for n in clip], list(clip.values()), atol=0.04)


def test_hidden_tokens_share_what_was_chosen() -> None:
    targets = draw_many(World(17, 96, 0), 400)
    np.testing.assert_allclose(np.linalg.norm(targets[:, 0], axis=1), 1, rtol=1e-5)
    mean = targets.mean(axis=0)
    mean_share = np.square(mean).sum() / np.square(targets).sum(axis=(1, 2)).mean()
    assert mean_share == pytest.approx(simulated_targets._MEAN_SHARE, abs=0.05)
    patches = (targets - mean)[:, 1:]
    covariance = np.einsum("nsd,ntd->st", patches, patches)
    deviation = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(deviation, deviation)
    row, column = np.divmod(np.arange(16), 4)
    squared = ((row[:, None] - row) ** 2 + (column[:, None] - column) ** 2) / 4**2
    own = np.exp(-squared / (2 * simulated_targets._CELL_CORRELATION**2))
    look, common = simulated_targets._LOOK_SHARE, simulated_targets._COMMON_SHARE
    expected = common + (1 - common) * own
    # The looks of two places are alike to some degree: between not at all and the same.
    assert (correlation > (1 - look) * expected - 0.05).all()
    assert (correlation < (1 - look) * expected + look + 0.05).all()


def test_a_patch_looks_like_its_place_in_the_picture() -> None:
    """What tokens add to their semantics is read from the features of their cells."""
    world = World(1 + GRID * GRID, 64, 0)
    pixels = world.draw(7)[0]
    features = describe_pixels(pixels).astype(np.float64)
    look = world._look(pixels)
    np.testing.assert_allclose(look[0], features.mean(axis=(1, 2)))
    np.testing.assert_allclose(look[1 + GRID * 2 + 5], features[:, 2, 5])
    coarse = World(5, 64, 0)._look(pixels)
    np.testing.assert_allclose(coarse[2], features[:, : GRID // 2, GRID // 2 :].mean(axis=(1, 2)))
    odd = World(10, 64, 0)._look(pixels)  # cells of 8 / 3: an area average keeps the mean
    np.testing.assert_allclose(odd[1:].mean(axis=0), look[0])


def test_pictures_and_class_tokens_are_of_the_seed_not_of_the_tokens() -> None:
    final, hidden, other = World(1, 32, 4), World(5, 32, 4), World(1, 32, 5)
    pixels, latent, kind = final.draw(3)
    assert np.array_equal(hidden.draw(3)[0], pixels) and hidden.draw(3)[2] == kind
    np.testing.assert_array_equal(hidden.draw(3)[1][0], latent[0])
    assert not np.array_equal(other.draw(3)[0], pixels)
    assert final.space != other.space


def test_an_interrupted_run_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated_targets, "_VALUES_A_PART", 5 * 6 * 4)
    arguments = {"n_images": 16, "tokens": 5, "dim": 6, "seed": 2}
    simulate_targets(tmp_path / "whole", **arguments)
    draw = World.draw

    def stop(world: World, image_id: int) -> tuple[np.ndarray, np.ndarray, int]:
        if image_id == 9:
            raise KeyboardInterrupt
        return draw(world, image_id)

    monkeypatch.setattr(World, "draw", stop)
    with pytest.raises(KeyboardInterrupt):
        simulate_targets(tmp_path / "resumed", **arguments)
    monkeypatch.setattr(World, "draw", draw)
    simulate_targets(tmp_path / "resumed", **arguments)
    whole, resumed = tree(tmp_path / "whole"), tree(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert name.endswith(".json") or whole[name] == resumed[name], name


def test_from_nothing_to_an_ideal_observer(tmp_path: Path) -> None:
    targets = simulate_targets(tmp_path / "targets", n_images=60, tokens=5, dim=32, seed=1)
    config = SimulationConfig(n_voxels=200, n_test=15, n_semantic_components=12)
    subject = simulate_subject(targets, tmp_path / "brain", config, seed=1)
    assert subject.captions()[0].startswith("dead leaves of kind ")
    assert Truth.open(subject).signal.shape == (60, 200)
    scores, image_ids = IdealObserver.open(subject).scores("test")
    assert (scores.argmax(axis=1) == np.arange(len(image_ids))).mean() > 0.8


def test_the_commands_draw_and_simulate(tmp_path: Path) -> None:
    runner = CliRunner()
    drawn = runner.invoke(
        data,
        ["targets", str(tmp_path / "t"), "--images", "40", "--tokens", "5", "--dim", "8"],
    )
    assert (
        drawn.exit_code == 0 and "40 pictures and their targets in simulated-clip" in drawn.output
    )
    assert EmbeddingFolder.open(tmp_path / "t").space.row_shape == (5, 8)
    words = ["--voxels", "100", "--test-images", "10", "--validation-fraction", "0.2"]
    shown = runner.invoke(data, ["simulate", str(tmp_path / "t"), str(tmp_path / "s"), *words])
    assert shown.exit_code == 0, shown.output
    assert "validation" in shown.output
    refused = runner.invoke(data, ["targets", str(tmp_path / "u"), "--tokens", "6"])
    assert refused.exit_code == 2 and "6 is not one more than a square number" in refused.output


@pytest.mark.parametrize("tokens", [0, 3, 256])
def test_tokens_without_a_square_grid_are_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"tokens is {tokens}, expected 1, or one more than a"):
        World(tokens, 8, 0)
