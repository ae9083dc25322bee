from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index_builder.embeddings.artefact import sha256_file
from index_builder.embeddings.errors import ArtefactError
from training.decoder.artefact import TrainedDecoder
from training.decoder.pictures import DecoderPictures, gather_pictures
from training.decoder.recipe import load_decoder_recipe
from training.decoder.steps import DecoderTraining, draw_rows
from training.decoder.train import train_decoder
from training.errors import DivergedError, RunError

Maker = Callable[..., Any]
FILES = ("model.safetensors", "metrics.jsonl", "recipe.toml", "seen.npy", "decoder.json")


def gather(lab: Any) -> DecoderPictures:
    return gather_pictures(lab.targets, 8, excluded=[lab.subject])


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_decoder_learns_what_embeddings_say(
    make_lab: Maker, small_recipe: Maker, tmp_path: Path, tokens: int
) -> None:
    lab = make_lab(tokens=tokens)
    recipe = small_recipe("train.steps=60", "train.save_every_steps=30", "train.ema_decay=0.9")
    summary = train_decoder(lab.targets, gather(lab), recipe, tmp_path / "decoder")
    lines = metrics_of(summary.path)
    assert [line["step"] for line in lines] == [30, 60]
    assert summary.validation_loss == lines[-1]["validation_loss"]
    assert not (summary.path / "state").exists()
    decoder = TrainedDecoder.open(summary.path)
    assert decoder.space == lab.targets.space and summary.n_pictures == 60
    assert decoder.manifest["n_excluded"] == 12
    # Three times better than when it is told of another picture.
    own, other = (_error(decoder, lab, shift) for shift in (0, 1))
    assert own < other / 3


def _error(decoder: TrainedDecoder, lab: Any, shift: int) -> float:
    """Return the squared error of test pictures from noise, told of the one ``shift`` further."""
    from training.decoder.condition import find_directions
    from training.samples import TargetTable

    ids = lab.subject.image_ids("test")
    told = TargetTable(lab.targets, ids, memory_bytes=0).read(np.roll(np.arange(len(ids)), shift))
    directions = find_directions(torch.from_numpy(told), decoder.center)
    noise = torch.randn(len(ids), 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        drawn = decoder.network(noise, torch.zeros(len(ids)), directions, torch.ones(len(ids)))
    colors = lab.colors[np.searchsorted(lab.image_ids, ids)] / 127.5 - 1
    halves = torch.stack([drawn[..., :4].mean((2, 3)), drawn[..., 4:].mean((2, 3))], dim=1)
    return float((halves.flatten(1) - torch.from_numpy(colors)).square().mean())


_SCRIPT = """
import sys
from index_builder.embeddings.reader import EmbeddingFolder
from training.decoder.pictures import gather_pictures
from training.decoder.recipe import load_decoder_recipe
from training.decoder.train import train_decoder
from training.subjects.subject import Subject
subject, targets, recipe, out = sys.argv[1:]
targets = EmbeddingFolder.open(targets)
pictures = gather_pictures(targets, 8, excluded=[Subject.open(subject)])
train_decoder(targets, pictures, load_decoder_recipe(recipe), out, resume=True)
"""


def test_a_killed_run_resumes_to_the_same_bytes(
    make_lab: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    lab = make_lab(n_train=40)
    recipe = small_recipe("train.steps=60", "train.save_every_steps=7")
    train_decoder(lab.targets, gather(lab), recipe, tmp_path / "whole")
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    out, root = tmp_path / "killed", Path(__file__).resolve().parents[3]
    arguments = [str(lab.subject.path), lab.targets.path, str(tmp_path / "recipe.toml"), str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or len(metrics_of(out)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "decoder.json").exists()
    with pytest.raises(RunError, match=r"holds an interrupted run; go on with it \(--resume\)"):
        train_decoder(lab.targets, gather(lab), recipe, out)
    with pytest.raises(RunError, match=r"begun with another train\.seed: 0 there, 3 now"):
        again = small_recipe("train.steps=60", "train.save_every_steps=7", "train.seed=3")
        train_decoder(lab.targets, gather(lab), again, out, resume=True)
    train_decoder(lab.targets, gather(lab), recipe, out, resume=True)
    for name in FILES:
        assert sha256_file(out / name) == sha256_file(tmp_path / "whole" / name), name


def test_a_loss_that_is_not_finite_stops_and_names_the_step(
    make_lab: Maker, small_recipe: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, step = make_lab(), DecoderTraining.step

    def spoiled(training: DecoderTraining, number: int) -> torch.Tensor:
        return step(training, number) * (float("nan") if number == 5 else 1.0)

    monkeypatch.setattr(DecoderTraining, "step", spoiled)
    with pytest.raises(DivergedError, match=r"the loss at step 5 is nan, .*last good state is"):
        train_decoder(lab.targets, gather(lab), small_recipe(), tmp_path / "decoder")
    assert metrics_of(tmp_path / "decoder")[-1]["step"] == 4
    assert not (tmp_path / "decoder" / "decoder.json").exists()


def test_folders_in_use_are_not_overwritten(
    make_lab: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    lab, out = make_lab(), tmp_path / "decoder"
    first = train_decoder(lab.targets, gather(lab), small_recipe(), out)
    with pytest.raises(RunError, match="holds a finished decoder; train into a new folder"):
        train_decoder(lab.targets, gather(lab), small_recipe(), out)
    again = train_decoder(lab.targets, gather(lab), small_recipe(), out, resume=True)
    assert again.validation_loss == first.validation_loss
    with pytest.raises(RunError, match=r"begun with another pictures"):
        everything = gather_pictures(lab.targets, 8)
        train_decoder(lab.targets, everything, small_recipe(), out, resume=True)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(RunError, match=r"holds a\.txt and no recipe\.toml"):
        train_decoder(lab.targets, gather(lab), small_recipe(), tmp_path / "letters")


def test_too_few_pictures_are_refused(make_lab: Maker, small_recipe: Maker, tmp_path: Path) -> None:
    few = make_lab("few", n_train=2)
    with pytest.raises(RunError, match=r"there are 2 pictures .*, expected at least 3"):
        train_decoder(few.targets, gather(few), small_recipe(), tmp_path / "decoder")


def test_an_autoencoder_is_given_where_latents_are_drawn_and_nowhere_else(
    make_lab: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    lab = make_lab(n_train=4)
    with pytest.raises(RunError, match=r"draws pixels, which need no autoencoder. Leave --vae"):
        train_decoder(lab.targets, gather(lab), small_recipe(), tmp_path / "decoder", vae=tmp_path)
    with pytest.raises(RunError, match=r"latents of sd-vae, and no weights .*: --vae DIR"):
        recipe = load_decoder_recipe("flow_latent", ("train.device=cpu",))
        train_decoder(lab.targets, gather(lab), recipe, tmp_path / "decoder")


def test_a_target_without_a_direction_is_named(
    make_lab: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    lab = make_lab(n_train=6, n_validation=0, n_test=2)
    stored = np.load(
        Path(lab.targets.path) / "img_emb" / "img_emb_0000.npy", mmap_mode="r+", allow_pickle=False
    )
    rows = lab.targets.metadata(columns=["image_id"])["image_id"].to_pylist()
    stored[rows.index(22)] = 0  # as a failing disk would
    stored.flush()
    with pytest.raises(RunError, match=r"the target of image 22 in .* is zero or not finite"):
        train_decoder(lab.targets, gather(lab), small_recipe(), tmp_path / "decoder")


def test_weights_of_another_network_are_not_opened(
    make_lab: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    lab, out = make_lab(n_train=10), tmp_path / "decoder"
    train_decoder(lab.targets, gather(lab), small_recipe("train.steps=1"), out)
    (out / "recipe.toml").write_text(small_recipe("network.width=48").to_toml())
    manifest = json.loads((out / "decoder.json").read_text())
    record = manifest["files"]["recipe.toml"]
    record["bytes"] = (out / "recipe.toml").stat().st_size
    record["sha256"] = sha256_file(out / "recipe.toml")
    (out / "decoder.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"doesn't fit the network that recipe\.toml beside it"):
        TrainedDecoder.open(out)


def test_an_altered_decoder_is_not_opened(
    make_lab: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    lab, out = make_lab(n_train=10), tmp_path / "decoder"
    train_decoder(lab.targets, gather(lab), small_recipe("train.steps=1"), out)
    content = bytearray((out / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (out / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtefactError, match="differs from its recorded SHA-256"):
        TrainedDecoder.open(out)


def test_pictures_that_were_trained_on_are_known_again(
    make_lab: Maker, small_recipe: Maker, tmp_path: Path
) -> None:
    lab, out = make_lab(), tmp_path / "decoder"
    pictures = gather(lab)
    train_decoder(lab.targets, pictures, small_recipe(), out)
    decoder = TrainedDecoder.open(out)
    decoder.require_unseen(pictures.validation_pixels, where="validation")
    mixed = np.concatenate([pictures.validation_pixels, pictures.pixels[:3]])
    with pytest.raises(RunError, match=r"trained on 3 of the 11 pictures of lab, .* place 8"):
        decoder.require_unseen(mixed, where="lab")


def test_every_picture_is_drawn_once_before_any_is_again(small_recipe: Maker) -> None:
    way = small_recipe().train
    turns = [np.concatenate([draw_rows(12, 4, way, 3 * t + i) for i in range(3)]) for t in (0, 1)]
    for rows in turns:
        np.testing.assert_array_equal(np.sort(rows), np.arange(12))
    assert (turns[0] != turns[1]).any()
