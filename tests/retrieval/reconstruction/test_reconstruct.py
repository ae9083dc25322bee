"""Reconstructions: picked by the brain's own embedding, resumed to the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from index_builder.build import build_index
from index_builder.embeddings.collection import Collection
from index_builder.planning import plan_index
from retrieval.errors import ReconstructionError
from retrieval.images.sources import PictureSources
from retrieval.reconstruction.artefact import Reconstruction
from retrieval.reconstruction.picking import Picker
from retrieval.reconstruction.reconstruct import Makers, reconstruct
from retrieval.reconstruction.retrieved import RetrievedPictures
from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest
from training.encoders.pixels import PixelEncoder
from training.predict import noise_seed, predict

N_TEST, SIDE = 6, 4


def picker() -> Picker:
    return Picker(PixelEncoder(SIDE))


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def retrieved(scene: Any, folder: Path) -> RetrievedPictures:
    collection = Collection.open([scene.targets.path])
    plan = plan_index(collection.n_rows, collection.space, code="flat")
    build_index(collection, folder, plan)
    engine = SearchEngine.open(folder)
    return RetrievedPictures(engine, PictureSources(engine.embeddings), SearchRequest(3))


def test_each_image_has_the_sample_nearest_to_its_retrieval_embedding(
    scene: Any, grid_decoder: Any, tmp_path: Path
) -> None:
    makers = Makers(grid_decoder(), picker())
    made = reconstruct(
        scene.run, scene.subject, tmp_path / "out", makers, n_samples=4, keep_samples=True
    )
    assert made.image_ids == tuple(range(N_TEST))
    predictions = predict(scene.run, scene.subject, tmp_path / "predictions")
    brain = predictions.take(np.arange(N_TEST)).astype(np.float32)
    table = made.scores().to_pydict()
    assert table["image_id"] == np.repeat(range(N_TEST), 4).tolist()
    assert table["sample"] == 4 * N_TEST // 4 * [0, 1, 2, 3]
    for image_id in made.image_ids:
        files = [made.path / "samples" / str(image_id) / f"{s:02d}.png" for s in range(4)]
        pictures = np.stack([np.asarray(Image.open(file)) for file in files])
        expected = picker().scores(pictures, np.repeat(brain[image_id : image_id + 1], 4, axis=0))
        found = table["score"][4 * image_id : 4 * image_id + 4]
        np.testing.assert_allclose(found, expected, atol=2e-3)  # predictions are float16
        best = int(np.argmax(found))
        assert table["is_picked"][4 * image_id : 4 * image_id + 4] == [s == best for s in range(4)]
        assert made.image_path(image_id).read_bytes() == files[best].read_bytes()
    assert len({tuple(p.ravel()) for p in pictures}) == 4


def test_scores_are_cosines(rng: np.random.Generator) -> None:
    pictures = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    encoder = PixelEncoder(SIDE)
    rows = encoder.encode(np.stack([encoder.prepare(Image.fromarray(p)) for p in pictures]))
    np.testing.assert_allclose(picker().scores(pictures, 3 * rows), 1, atol=1e-6)
    np.testing.assert_allclose(picker().scores(pictures, -rows), -1, atol=1e-6)


@pytest.mark.parametrize("n_calls", [0, 1, 3])
def test_what_was_interrupted_ends_with_the_same_bytes(
    scene: Any, grid_decoder: Any, tmp_path: Path, n_calls: int
) -> None:
    options = {"n_samples": 2, "batch_size": 2, "keep_samples": True}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    reconstruct(scene.run, scene.subject, whole, Makers(grid_decoder(), picker()), **options)
    with pytest.raises(KeyboardInterrupt):
        interrupted = Makers(grid_decoder(n_calls_left=n_calls), picker())
        reconstruct(scene.run, scene.subject, resumed, interrupted, **options)
    assert not (resumed / "reconstruction.json").exists()
    reconstruct(scene.run, scene.subject, resumed, Makers(grid_decoder(), picker()), **options)
    assert content(resumed) == content(whole)


def test_pictures_do_not_depend_on_the_batch(scene: Any, grid_decoder: Any, tmp_path: Path) -> None:
    made = [
        reconstruct(
            scene.run, scene.subject, tmp_path / str(n), Makers(grid_decoder()), batch_size=n
        )
        for n in (1, 4)
    ]
    for image_id in range(N_TEST):
        one, four = (np.asarray(Image.open(m.image_path(image_id)), int) for m in made)
        assert np.abs(one - four).max() <= 1


def test_the_best_hit_can_be_the_reconstruction(scene: Any, tmp_path: Path) -> None:
    makers = Makers(None, retrieved=retrieved(scene, tmp_path / "index"))
    made = reconstruct(scene.run, scene.subject, tmp_path / "out", makers, n_images=4)
    assert made.image_ids == (0, 1, 2, 3)
    assert made.details["decoder"] == {"name": "retrieval"}
    for line in made.scores().to_pylist():
        shown = np.asarray(Image.open(made.image_path(line["image_id"])))
        own = scene.pictures / f"{line['retrieved_row']:02d}.png"
        np.testing.assert_array_equal(shown, np.asarray(Image.open(own)))


def test_a_filter_keeps_the_seen_picture_out(scene: Any, tmp_path: Path) -> None:
    found = retrieved(scene, tmp_path / "index")
    request = SearchRequest(3, where=f"image_id >= {N_TEST}")
    makers = Makers(None, retrieved=RetrievedPictures(found.engine, found.sources, request))
    made = reconstruct(scene.run, scene.subject, tmp_path / "out", makers)
    assert min(made.scores()["retrieved_row"].to_pylist()) >= N_TEST


def test_an_index_without_pictures_is_said(scene: Any, tmp_path: Path) -> None:
    found = retrieved(scene, tmp_path / "index")
    hidden = scene.pictures.with_name("hidden")
    scene.pictures.rename(hidden)
    try:
        with pytest.raises(
            ReconstructionError, match=r"none of the 3 best rows of .* has a picture"
        ):
            reconstruct(scene.run, scene.subject, tmp_path / "out", Makers(None, retrieved=found))
    finally:
        hidden.rename(scene.pictures)


def test_a_finished_folder_is_opened_and_another_refused(
    scene: Any, grid_decoder: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = reconstruct(scene.run, scene.subject, out, Makers(grid_decoder()))
    again = reconstruct(scene.run, scene.subject, out, Makers(grid_decoder(n_calls_left=0)))
    assert again == made == Reconstruction.open(out)
    with pytest.raises(ReconstructionError, match="whose seed is 0, and 1 was asked for"):
        reconstruct(scene.run, scene.subject, out, Makers(grid_decoder()), seed=1)


def test_an_unfinished_folder_of_something_else_is_refused(
    scene: Any, grid_decoder: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        reconstruct(scene.run, scene.subject, out, Makers(grid_decoder(n_calls_left=0)))
    with pytest.raises(ReconstructionError, match="whose n_images is None, and 2 was asked for"):
        reconstruct(scene.run, scene.subject, out, Makers(grid_decoder()), n_images=2)
    (out / "unfinished.json").write_text("{")
    with pytest.raises(ReconstructionError, match=r"unfinished\.json can't be read"):
        reconstruct(scene.run, scene.subject, out, Makers(grid_decoder()))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ReconstructionError, match=r"holds thesis\.tex"):
        reconstruct(scene.run, scene.subject, tmp_path / "other", Makers(grid_decoder()))


def test_what_does_not_fit_is_refused(scene: Any, grid_decoder: Any, tmp_path: Path) -> None:
    with pytest.raises(ReconstructionError, match=r"predicts .* and grid takes 1 x 17"):
        reconstruct(scene.run, scene.subject, tmp_path / "a", Makers(grid_decoder(dim=17)))
    with pytest.raises(ReconstructionError, match="3 samples an image need the targets' encoder"):
        reconstruct(scene.run, scene.subject, tmp_path / "b", Makers(grid_decoder()), n_samples=3)
    with pytest.raises(ValueError, match="neither a decoder nor an index"):
        Makers(None)


def test_either_head_is_decoded(scene: Any, grid_decoder: Any, tmp_path: Path) -> None:
    made = {
        head: reconstruct(
            scene.run, scene.subject, tmp_path / head, Makers(grid_decoder()), head=head
        )
        for head in ("prior", "retrieval")
    }
    default = reconstruct(scene.run, scene.subject, tmp_path / "default", Makers(grid_decoder()))
    assert default.details["head"] == "prior"
    for image_id in range(N_TEST):
        prior, retrieval, own = (
            m.image_path(image_id).read_bytes() for m in (made["prior"], made["retrieval"], default)
        )
        assert own == prior != retrieval
    brain = predict(scene.run, scene.subject, tmp_path / "brain").take(np.arange(N_TEST))
    for image_id in range(N_TEST):
        drawn = grid_decoder().decode(
            brain[image_id].astype(np.float32)[None, None],
            seeds=[noise_seed(1, image_id)],
        )
        found = np.asarray(Image.open(made["retrieval"].image_path(image_id)), int)
        assert np.abs(found - drawn[0]).max() <= 1  # predictions are float16


def test_the_contact_sheet_has_a_column_a_picture(
    scene: Any, grid_decoder: Any, tmp_path: Path
) -> None:
    makers = Makers(grid_decoder(), retrieved=retrieved(scene, tmp_path / "index"))
    made = reconstruct(scene.run, scene.subject, tmp_path / "out", makers, n_on_sheet=3)
    sheet = np.asarray(Image.open(made.path / "contact_sheet.png"), int)
    shown = [0, 2, 5]  # evenly spread
    for number, image_id in enumerate(shown):
        seen = np.asarray(scene.subject.open_image(image_id), int)
        top = 28 + (number // 2) * 168 + 20  # the middle of the first of 4 x 4 cells of 40 pixels
        left = (number % 2) * (3 * 168 + 16) + 8 + 20
        assert np.abs(sheet[top, left] - seen[4, 4]).max() <= 2
        drawn = np.asarray(Image.open(made.image_path(image_id)), int)
        assert np.abs(sheet[top, left + 168] - drawn[0, 0]).max() <= 2
