from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from index_builder.embeddings.errors import VoxseekError
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.writer import EmbeddingWriter
from retrieval.results import Results
from retrieval.searching.brain import brain_queries
from retrieval.searching.commands import search
from tests.training.conftest import Brain, make_brain, small_recipe
from training.encoders.clip import ClipEncoder
from training.encoders.pixels import PixelEncoder
from training.loop import train
from training.targets import embed_pictures, list_pictures

__all__ = ["make_brain", "small_recipe"]  # fixtures

N_PICTURES = 12


def ask(*words: object) -> Result:
    return CliRunner().invoke(search, [str(word) for word in words], prog_name="voxseek search")


def hits_of(*words: object) -> list[dict[str, Any]]:
    result = ask(*words)
    assert result.exit_code == 0, result.exception
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> list[Path]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(N_PICTURES):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 40)).save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def index(tmp_path: Path, pictures: list[Path], build: Callable[..., Path]) -> Path:
    listed = list_pictures(tmp_path / "pictures")
    return build(embed_pictures(listed, tmp_path / "gallery", PixelEncoder(6)), "flat")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either QUERIES, or --run RUN with --subject DIR, or --text, or --mix."),
        (["text:a", "--text", "b"], "give either QUERIES"),
        (["text:a", "--mix", "text:a=1"], "give either QUERIES"),
        (["--text", "a", "--run", "."], "give either QUERIES"),
        (["--mix", "brain=1", "--run", "."], "with --subject DIR"),
        (["text:a", "--gallery"], "--gallery needs --out"),
        (["text:a", "--rerank-tokens", "4"], "--rerank-tokens N needs --tokens"),
        (["text:a", "--tokens", "."], "--rerank-tokens N needs --tokens"),
        (["text:a", "--fetch"], "--shards and --fetch are for --rerank-tokens"),
        (["text:a", "--shards", "."], "--shards and --fetch are for --rerank-tokens"),
        (
            ["text:a", "--rerank-tokens", "4", "--tokens", ".", "--confidence", "."],
            "leave out --rerank-tokens",
        ),
        (["text:a", "--allow-unsafe", "--unsafe-from", "0.3"], "either --unsafe-from or"),
    ],
)
def test_options_that_contradict_are_wrong_usage(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = ask(tmp_path, *words)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_picture_of_the_gallery_finds_itself(index: Path, pictures: list[Path]) -> None:
    for number in (0, 7):
        hits = hits_of(index, pictures[number], "-k", 3)
        assert [hit["rank"] for hit in hits] == [0, 1, 2]
        assert hits[0]["image_id"] == number and hits[0]["score"] == pytest.approx(1, abs=1e-3)
    hits = hits_of(index, pictures[0].parent, "-k", 1)
    assert [(hit["query"], hit["image_id"]) for hit in hits] == [(i, i) for i in range(12)]


def test_filters_are_handed_on(index: Path, pictures: list[Path], tmp_path: Path) -> None:
    np.save(tmp_path / "seen.npy", EmbeddingFolder.open(tmp_path / "gallery").take([4]))
    words = [index, pictures[4], "--where", "image_id >= 3", "--exclude", tmp_path / "seen.npy"]
    found = {hit["image_id"] for hit in hits_of(*words, "--exclude-from", "0.99")}
    assert found == set(range(3, 12)) - {4}


def test_text_needs_an_encoder_that_reads_it(index: Path) -> None:
    for words in (["--text", "a zebra"], ["text:a zebra"], ["--mix", "text:a zebra=1"]):
        result = ask(index, *words)
        assert isinstance(result.exception, VoxseekError)
        assert "its encoder reads pictures alone" in str(result.exception)


def test_a_mixture_is_recorded_with_its_weights(
    index: Path, pictures: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "results"
    mixed = [f"image:{pictures[2]}=1", f"-image:{pictures[5]}=0.4"]
    result = ask(index, "--mix", mixed[0], "--mix", mixed[1], "--out", out, "--json", "-k", 12)
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["n_hits"] == 12
    results = Results.open(out)
    assert results.manifest["queries"]["mix"] == [
        {"query": "02.png", "weight": 1.0, "fingerprint": None},
        {"query": "05.png", "weight": -0.4, "fingerprint": None},
    ]
    ordered = results.table()["image_id"].to_pylist()
    assert (ordered[0], ordered[-1]) == (2, 5)


@pytest.fixture
def brain(
    make_brain: Callable[..., Brain], small_recipe: Callable[..., Any], tmp_path: Path
) -> tuple[Brain, Path]:
    """A linear subject, and a small run on it."""
    made = make_brain(noise=0.1)
    train([made.subject], made.targets, small_recipe(), tmp_path / "run")
    return made, tmp_path / "run"


def test_a_brain_is_asked_alone_and_mixed(
    brain: tuple[Brain, Path],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    build: Callable[..., Path],
    tmp_path: Path,
) -> None:
    made, run = brain
    every = np.arange(made.targets.n_rows)
    vectors = made.targets.take(every)
    columns = {"image_id": made.targets.metadata(every)["image_id"]}
    gallery = write_gallery_rows(vectors, "as-float16", model="test", columns=columns)
    index = build(gallery, "flat", name="targets-index")
    subject = made.subject.path
    alone = hits_of(index, "--run", run, "--subject", subject, "-k", 2)
    assert {hit["query"] for hit in alone} == set(range(12))
    pull = vectors[3:4]
    np.save(tmp_path / "pull.npy", pull)
    out = tmp_path / "mixed"
    words = ["--run", run, "--subject", subject, "--mix", "brain=1", "-k", 1, "--json"]
    result = ask(index, *words, "--mix", f"npy:{tmp_path / 'pull.npy'}=0.7", "--out", out)
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["n_known"] == 12  # What was seen is still known.
    with brain_queries(run, subject) as queries:
        said = np.concatenate(list(queries.iter_batches(batch_queries=50))).astype(np.float64)
    said /= np.linalg.norm(said, axis=1, keepdims=True)
    expected = ((said + 0.7 * pull) @ vectors.T).argmax(axis=1)
    assert Results.open(out).table()["row"].to_pylist() == expected.tolist()
    result = ask(index, "--run", run, "--subject", subject, "--mix", "npy:pull.npy=1")
    assert isinstance(result.exception, VoxseekError)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Register a small CLIP architecture with open_clip, and save random weights of it."""
    import open_clip

    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 10, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "smaller-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(1)
    torch.save(open_clip.create_model("smaller-clip").state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_words_find_what_their_embedding_finds(
    pictures: list[Path], weights: Path, build: Callable[..., Path], tmp_path: Path
) -> None:
    encoder = ClipEncoder("smaller-clip", str(weights))
    gallery = embed_pictures(list_pictures(tmp_path / "pictures"), tmp_path / "clip", encoder)
    index = build(gallery, "flat", name="clip-index")
    hits = hits_of(
        index, "--text", "a zebra", "--text", "a drawing", "--pretrained", weights, "-k", 12
    )
    said = encoder.encode_texts(["a zebra", "a drawing"])
    stored = gallery.take(np.arange(12)).astype(np.float32)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    cosines = said @ stored.T
    for hit in hits:
        assert hit["score"] == pytest.approx(cosines[hit["query"], hit["row"]], abs=1e-5)
    assert [hit["query"] for hit in hits] == [0] * 12 + [1] * 12


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_tokens_rank_what_the_first_stage_found(
    index: Path, pictures: list[Path], weights: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    encoder = ClipEncoder("smaller-clip", str(weights), layer="hidden")
    prepared = np.stack([encoder.prepare(Image.open(path)) for path in pictures])
    tokens = encoder.encode(prepared)
    with EmbeddingWriter(tmp_path / "tokens", encoder.space, command="test", details={}) as writer:
        writer.write(tokens, pa.table({"image_id": np.arange(12)}))
        writer.finish()
    blurred = EmbeddingFolder.open(tmp_path / "gallery").take(np.arange(12)).astype(np.float32)
    np.save(tmp_path / "blurred.npy", blurred + rng.standard_normal(blurred.shape) / 2)
    pictures[3].unlink()
    words = [index, tmp_path / "blurred.npy", "--rerank-tokens", 12, "--tokens"]
    words += [tmp_path / "tokens", "--pretrained", weights, "-k", 2]
    hits = hits_of(*words)
    first = [hit for hit in hits if hit["rank"] == 0]
    assert [hit["row"] for hit in first if hit["query"] != 3] == [0, 1, 2, *range(4, 12)]
    assert all(
        hit["token_score"] == pytest.approx(1, abs=1e-3) for hit in first if hit["query"] != 3
    )
    assert 3 not in {hit["row"] for hit in hits}
    assert all(hit["score"] < 0.999 for hit in first)
    result = ask(*words, "--out", tmp_path / "results", "--json")
    assert result.exit_code == 0, result.exception
    stage = json.loads(result.stdout)["token_stage"]
    assert (stage["n_ranked"], stage["dead"]) == (11 * 12, {"no such file": 12})
    assert Results.open(tmp_path / "results").manifest["token_stage"] == stage
    told = ask(*words)
    assert "132 pictures ranked by their tokens; 12 candidates without" in told.stderr


def test_tokens_of_a_run_need_its_subject(
    index: Path, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    result = ask(index, pictures[0], "--rerank-tokens", 16, "--tokens", tmp_path / "run")
    assert isinstance(result.exception, VoxseekError)
    assert "is a run, which has to be asked: give --subject DIR too" in str(result.exception)
