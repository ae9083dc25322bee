from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from index_builder.embeddings.errors import SpaceMismatchError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from retrieval.errors import ReconstructionError
from retrieval.reconstruction.contract import Decoder, Placement, Sampling
from retrieval.reconstruction.flow import FlowDecoder, measure_gap
from training.decoder.artefact import TrainedDecoder
from training.decoder.pictures import DecoderPictures
from training.decoder.recipe import load_decoder_recipe
from training.decoder.train import train_decoder
from training.errors import RunError
from training.subjects.subject import write_subject

SIDE, TOKENS, DIM, N = 8, 2, 12, 60
SPACE = EmbeddingSpace("test", "hidden", TOKENS, DIM, unit_norm=True)
SMALL = (
    f"pictures.side={SIDE}",
    "network.patch=1",
    "network.channels=16",
    "network.n_levels=2",
    "network.width=32",
    "network.layout_channels=8",
    "network.sketch_side=2",
    "sampling.cosine=1",
    "train.steps=60",
    "train.batch_size=16",
    "train.ema_decay=0.9",
    "train.device=cpu",
    "train.n_threads=1",
    "train.save_every_steps=60",
)


def embed(colors: np.ndarray) -> np.ndarray:
    """Return unit embeddings (n, TOKENS, DIM) that tell colors (n, 3)."""
    readout = np.random.default_rng(5).normal(size=(3, TOKENS, DIM))
    rows = np.einsum("nc,ctd->ntd", colors / 128 - 1, readout) + 1.5
    return (rows / np.linalg.norm(rows, axis=(1, 2), keepdims=True)).astype(np.float32)


def write(folder: Path, rows: np.ndarray, space: EmbeddingSpace = SPACE) -> EmbeddingFolder:
    with EmbeddingWriter(folder, space, command="test", details={}, dtype="float32") as writer:
        writer.write(rows, pa.table({"image_id": np.arange(len(rows))}))
        return writer.finish()


@pytest.fixture(scope="module")
def colors() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (N + 20, 3))


@pytest.fixture(scope="module")
def targets(colors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingFolder:
    return write(tmp_path_factory.mktemp("targets") / "emb", embed(colors))


def one_color(colors: np.ndarray, side: int) -> DecoderPictures:
    """Return pictures of one color each."""
    n = len(colors)
    pixels = np.broadcast_to(colors[:, None, None].astype(np.uint8), (n, side, side, 3)).copy()
    return DecoderPictures(
        image_ids=np.arange(n),
        pixels=pixels,
        validation_ids=np.empty(0, np.int64),
        validation_pixels=np.empty((0, side, side, 3), np.uint8),
        excluded=[],
        n_excluded=0,
        n_copies=0,
    )


@pytest.fixture(scope="module")
def trained(
    colors: np.ndarray, targets: EmbeddingFolder, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("decoder") / "decoder"
    recipe = load_decoder_recipe("flow_tiny", SMALL)
    train_decoder(targets, one_color(colors[:N], SIDE), recipe, out)
    return out


def error(pictures: np.ndarray, colors: np.ndarray) -> float:
    return float(np.abs(pictures.mean(axis=(1, 2)) - colors).mean())


def test_pictures_have_the_colors_of_their_embeddings(trained: Path, colors: np.ndarray) -> None:
    decoder: Decoder = FlowDecoder(trained, sampling=Sampling(guidance=1, n_steps=6))
    assert (decoder.tokens, decoder.dim, decoder.side) == (TOKENS, DIM, SIDE)
    unseen = colors[N:]
    pictures = decoder.decode(embed(unseen), seeds=range(20))
    assert pictures.shape == (20, SIDE, SIDE, 3) and pictures.dtype == np.uint8
    assert error(pictures, unseen) < error(pictures, np.roll(unseen, 1, axis=0)) / 2
    assert decoder.decode(embed(unseen[:0]), seeds=[]).shape == (0, SIDE, SIDE, 3)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_picture_depends_on_its_seed_and_not_on_its_neighbors(
    trained: Path, colors: np.ndarray, guidance: float
) -> None:
    sampling = Sampling(guidance=guidance, n_steps=3)
    rows, seeds = embed(colors[N : N + 5]), [7, 8, 9, 10, 11]
    together = FlowDecoder(trained, sampling=sampling).decode(rows, seeds=seeds)
    few = FlowDecoder(trained, sampling=sampling, placement=Placement(batch_size=2))
    apart = few.decode(rows, seeds=seeds)
    assert np.abs(together.astype(int) - apart).max() <= 1  # sums round by the batch
    alone = few.decode(rows[3:4], seeds=[10])
    assert np.abs(alone.astype(int) - together[3:4]).max() <= 1
    assert (few.decode(rows[3:4], seeds=[1]) != alone).any()
    np.testing.assert_array_equal(few.decode(rows, seeds=seeds), apart)


def test_image_to_image_stays_near_its_start(trained: Path, colors: np.ndarray) -> None:
    rows, seeds = embed(colors[N : N + 6]), range(6)
    starts = np.zeros((6, 20, 30, 3), np.uint8)
    starts[..., 1] = 255
    distances = []
    for strength in (0.1, 0.5, 1.0):
        sampling = Sampling(guidance=1, n_steps=10, strength=strength)
        pictures = FlowDecoder(trained, sampling=sampling).decode(rows, seeds=seeds, starts=starts)
        distances.append(error(pictures, np.array([0, 255, 0])))
    assert distances[0] < distances[1] < distances[2]
    whole = FlowDecoder(trained, sampling=Sampling(guidance=1, n_steps=10, strength=1))
    started = whole.decode(rows, seeds=seeds, starts=starts)
    np.testing.assert_array_equal(started, whole.decode(rows, seeds=seeds))


def test_the_gap_of_predictions_is_measured_and_mended(
    trained: Path, targets: EmbeddingFolder, colors: np.ndarray, tmp_path: Path
) -> None:
    decoder = TrainedDecoder.open(trained)
    true = embed(colors)
    own = measure_gap(targets, targets, decoder)
    assert own.cosine == pytest.approx(1, abs=0.05)
    shift = 0.8 * np.random.default_rng(2).normal(size=(1, TOKENS, DIM)) / DIM**0.5
    noise = 0.05 * np.random.default_rng(3).normal(size=true.shape)
    predicted = (true + shift + noise).astype(np.float32)
    predicted /= np.linalg.norm(predicted, axis=(1, 2), keepdims=True)
    gap = measure_gap(write(tmp_path / "predicted", predicted[:N]), targets, decoder)
    np.testing.assert_allclose(gap.center, predicted[:N].mean(axis=0), atol=1e-5)
    assert 0.3 < gap.cosine < own.cosine
    sampling = Sampling(guidance=1, n_steps=6)
    mended = FlowDecoder(trained, sampling=sampling, gap=gap)
    plain = FlowDecoder(trained, sampling=sampling)
    assert mended.details["cosine"] == gap.cosine != plain.details["cosine"]
    found, off = (d.decode(predicted[N:], seeds=range(20)) for d in (mended, plain))
    assert error(found, colors[N:]) < error(off, colors[N:])


def test_a_gap_needs_rows_of_the_same_space(
    trained: Path, targets: EmbeddingFolder, colors: np.ndarray, tmp_path: Path
) -> None:
    decoder = TrainedDecoder.open(trained)
    with pytest.raises(ReconstructionError, match="has 1 rows, expected at least 2 to measure"):
        measure_gap(write(tmp_path / "one", embed(colors[:1])), targets, decoder)
    other = EmbeddingSpace("other", "hidden", TOKENS, DIM, unit_norm=True)
    with pytest.raises(SpaceMismatchError, match="embedding spaces differ"):
        measure_gap(write(tmp_path / "other", embed(colors[:4]), other), targets, decoder)


def test_what_can_not_be_decoded_is_said(trained: Path, tmp_path: Path) -> None:
    decoder = FlowDecoder(trained)
    with pytest.raises(ReconstructionError, match=r"shape \(2, 1, 12\); flow takes \(n, 2, 12\)"):
        decoder.decode(np.ones((2, 1, DIM), np.float32), seeds=[0, 1])
    with pytest.raises(ReconstructionError, match="fp32, and is not offloaded"):
        FlowDecoder(trained, placement=Placement(precision="bf16"))
    torch.nn.init.constant_(decoder.trained.network.head.bias, float("nan"))
    with pytest.raises(ReconstructionError, match="made a picture that isn't finite"):
        decoder.decode(np.ones((1, TOKENS, DIM), np.float32), seeds=[0])
    with pytest.raises(ReconstructionError, match="draws pixels, which need no autoencoder"):
        FlowDecoder(trained, vae=tmp_path)


def test_a_decoder_of_latents_draws_with_the_autoencoder_of_its_training(
    targets: EmbeddingFolder, colors: np.ndarray, tmp_path: Path
) -> None:
    from diffusers import AutoencoderKL

    for seed, name in enumerate(("vae", "other")):
        torch.manual_seed(seed)
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
        ).save_pretrained(tmp_path / name)
    small = [field for field in SMALL if "pictures.side" not in field]
    recipe = load_decoder_recipe("flow_latent", ("pictures.side=64", *small, "train.steps=2"))
    out, vae = tmp_path / "decoder", tmp_path / "vae"
    train_decoder(targets, one_color(colors[:10], 64), recipe, out, vae=vae)
    sampling = Sampling(guidance=2, n_steps=2)
    decoder = FlowDecoder(out, sampling=sampling, vae=vae)
    starts = np.zeros((2, 32, 32, 3), np.uint8)
    pictures = decoder.decode(embed(colors[:2]), seeds=[0, 1], starts=starts)
    assert pictures.shape == (2, 64, 64, 3)
    with pytest.raises(ReconstructionError, match=r"other is sd-vae-64px/other@.* trained with sd"):
        FlowDecoder(out, vae=tmp_path / "other")
    with pytest.raises(ReconstructionError, match=r"no weights of it are given.*--vae DIR"):
        FlowDecoder(out)


def test_pictures_of_the_training_are_refused(
    trained: Path, colors: np.ndarray, tmp_path: Path
) -> None:
    places = []
    for image_id in (N - 1, N, N + 1):  # the first one was trained on
        places.append(str(tmp_path / f"{image_id}.png"))
        color = colors[image_id].astype(np.uint8)
        Image.fromarray(np.broadcast_to(color, (20, 20, 3)).copy()).save(places[-1])
    subject = write_subject(
        tmp_path / "subject",
        name="subject",
        voxels=np.zeros((3, 2), np.float32),
        trials=pa.table(
            {
                "trial": [0, 1, 2],
                "image_id": [N - 1, N, N + 1],
                "session": [0, 0, 0],
                "repeat": [0, 0, 0],
                "split": ["train", "test", "test"],
            }
        ),
        rois={},
        images=pa.table(
            {
                "image_id": [N - 1, N, N + 1],
                "path": places,
                "caption": pa.nulls(3, pa.string()),
            }
        ),
        command="test",
        details={},
    )
    decoder = FlowDecoder(trained)
    decoder.require_unseen(subject, "test")
    decoder.require_unseen(subject, "validation")
    with pytest.raises(RunError, match=r"was trained on 1 of the 1 pictures of .*, split train"):
        decoder.require_unseen(subject, "train")
