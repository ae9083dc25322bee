"""`voxseek reconstruct` by the command line: what it makes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from index_builder.build import build_index
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.planning import plan_index
from retrieval.errors import ReconstructionError
from retrieval.reconstruction import commands
from retrieval.reconstruction.artefact import Reconstruction
from retrieval.reconstruction.opening import open_decoder

FINAL = EmbeddingSpace("ViT-L-14/openai", "final", 1, 768, unit_norm=True)


@pytest.fixture
def run(scene: Any, tmp_path: Path) -> Any:
    def call(*words: object, decoder: str = "grid") -> Result:
        where = [scene.run, scene.subject.path, tmp_path / "out", "--decoder", decoder]
        return CliRunner().invoke(commands.reconstruct, [str(w) for w in (*where, *words)])

    return call


@pytest.fixture
def index(scene: Any, tmp_path: Path) -> Path:
    collection = Collection.open([scene.targets.path])
    plan = plan_index(collection.n_rows, collection.space, code="flat")
    build_index(collection, tmp_path / "index", plan)
    return tmp_path / "index"


def test_the_best_picture_of_an_index(run: Any, index: Path, tmp_path: Path) -> None:
    done = run("--index", index, "--json", decoder="retrieval")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["n_images"], facts["decoder"]) == (6, "retrieval")
    made = Reconstruction.open(tmp_path / "out")
    assert (made.path / "contact_sheet.png").is_file()
    assert made.details["n_samples"] == 1


def test_samples_are_picked_by_the_encoder_of_the_space(
    run: Any, grid_decoder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def give(name: str, space: EmbeddingSpace, **options: Any) -> Any:
        asked.update(options, name=name, space=space)
        return grid_decoder()

    monkeypatch.setattr("retrieval.reconstruction.opening.open_decoder", give)
    done = run("--samples", 3, "--images", 2, "--guidance", 2.5, "--steps", 7, "--keep-samples")
    assert done.exit_code == 0, done.output
    assert asked["guidance"] == 2.5 and asked["n_steps"] == 7 and asked["strength"] is None
    assert "2 images drawn by grid, 3 samples each" in done.output
    assert "next: voxseek bench reconstruction" in done.output
    made = Reconstruction.open(tmp_path / "out")
    assert made.details["picker"]["space"] == "pixels-4x4"
    assert made.scores()["is_picked"].to_pylist().count(True) == 2


def test_options_that_do_not_go_together_are_wrong_usage(run: Any, scene: Any) -> None:
    done = run(decoder="retrieval")
    assert done.exit_code == 2 and "--decoder retrieval needs --index" in done.output
    done = run("--low-level", scene.run)
    assert done.exit_code == 2 and "--low-level RUN and --vae DIR|FILE go together" in done.output
    done = run("--targets", scene.targets.path)
    assert done.exit_code == 2 and "--targets is for a decoder that" in done.output


def test_a_decoder_of_no_known_name_is_refused(run: Any) -> None:
    error = run(decoder="dall-e").exception
    assert isinstance(error, ReconstructionError)
    assert "decoder 'dall-e' is neither one of versatile-diffusion" in str(error)


def test_options_of_other_decoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReconstructionError, match=r"stable-unclip takes no --norm"):
        open_decoder("stable-unclip", FINAL, norm=2.0)
    with pytest.raises(ReconstructionError, match=r"Give their mean length: --norm NUMBER"):
        open_decoder("image-variations", FINAL)
    with pytest.raises(ReconstructionError, match=r"strength is 2\.0"):
        open_decoder("image-variations", FINAL, norm=2.0, weights=str(tmp_path), strength=2.0)
    with pytest.raises(ReconstructionError, match=r"versatile-diffusion"):
        open_decoder("versatile-diffusion", FINAL, weights=str(tmp_path))
