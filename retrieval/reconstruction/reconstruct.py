"""Reconstruct: what a brain saw, drawn image by image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from index_builder.embeddings.artefact import atomic_write, fingerprint, require_free
from index_builder.embeddings.progress import track
from training.predict import Predictor, noise_seed
from training.samples import Batch
from training.subjects.subject import Subject

from ..errors import ReconstructionError
from .artefact import (
    IMAGES,
    LOW_LEVEL,
    MANIFEST_FILE,
    RETRIEVED,
    SAMPLES,
    SCORE_SCHEMA,
    SHEET_FILE,
    UNFINISHED_FILE,
    Reconstruction,
    begin,
    block_path,
    finish,
    require_same,
    save_picture,
)
from .contact_sheet import write_contact_sheet
from .contract import Decoder
from .low_level import LowLevelPictures
from .picking import Picker
from .retrieved import Retrieved, RetrievedPictures

DecodedHead = Literal["prior", "retrieval"]


@dataclass(frozen=True)
class Makers:
    """What makes the pictures of a reconstruction.

    Parameters
    ----------
    decoder : Decoder or None
        None: the retrieved picture is the reconstruction.
    picker : Picker or None
        Needed to choose among several samples.
    low_level : LowLevelPictures or None
        What image-to-image starts from.
    retrieved : RetrievedPictures or None
    """

    decoder: Decoder | None
    picker: Picker | None = None
    low_level: LowLevelPictures | None = None
    retrieved: RetrievedPictures | None = None

    def __post_init__(self) -> None:
        if self.decoder is None and self.retrieved is None:
            raise ValueError("neither a decoder nor an index was given: nothing makes pictures.")


def reconstruct(
    run: str | os.PathLike[str],
    subject: Subject,
    out: str | os.PathLike[str],
    makers: Makers,
    *,
    split: str = "test",
    head: DecodedHead | None = None,
    n_samples: int = 1,
    keep_samples: bool = False,
    n_images: int | None = None,
    batch_size: int = 4,
    n_on_sheet: int = 24,
    seed: int = 0,
    device: str = "auto",
) -> Reconstruction:
    """Draw what a subject saw, or finish what an interrupted call began.

    Parameters
    ----------
    run : path
    subject : Subject
    out : path
    makers : Makers
    split : {"train", "validation", "test"}
    head : {"prior", "retrieval"} or None
        What is decoded: samples of the prior; or retrieval embeddings, which only a space of unit
        norm allows. None: the prior, if the run has one.
    n_samples : int, at least 1
        Pictures an image, each of its own noise in the decoder and the prior; the picker chooses.
    keep_samples : bool
        Keep all of them.
    n_images : int or None
        The first images of the split alone.
    batch_size : int
        Images a step; an interruption costs at most one step.
    n_on_sheet : int
        Images on the contact sheet, evenly spread over the split.
    seed : int
        With image and sample it fixes all noise.
    device : {"auto", "cpu", "cuda"}
        Of run and prior.

    Raises
    ------
    ReconstructionError
        If the decoder takes other embeddings than the run makes, several samples have no picker,
        or ``out`` holds the beginning of another reconstruction.
    RunError
        If the run isn't of this subject.
    """
    root = Path(out)
    if n_samples < 1 or batch_size < 1:
        raise ValueError(f"n_samples {n_samples}, batch_size {batch_size}: expected at least 1.")
    if n_samples > 1 and makers.picker is None:
        raise ReconstructionError(
            f"{n_samples} samples an image need the targets' encoder, which picks one of them: "
            f"give --encoder and --pretrained, or take --samples 1."
        )
    require_free(root, [MANIFEST_FILE, UNFINISHED_FILE], "reconstructions are", ReconstructionError)
    predictor = Predictor(run, subject, split=split, head=head or "retrieval", device=device)
    if head is None:
        head = "prior" if predictor.run.recipe.prior is not None else "retrieval"
    _require_decodable(predictor, head, makers.decoder)
    details = {
        "run": predictor.run.fingerprint,
        "subject": {"name": subject.name, "fingerprint": fingerprint(subject.manifest["files"])},
        "split": split,
        "head": head,
        "decoder": _decoder_details(makers),
        "picker": makers.picker.details if makers.picker else None,
        "low_level": makers.low_level.details if makers.low_level else None,
        "index": makers.retrieved.engine.fingerprint if makers.retrieved else None,
        "where": makers.retrieved.request.where if makers.retrieved else None,
        "n_samples": n_samples,
        "keep_samples": keep_samples,
        "n_images": n_images,
        "batch_size": batch_size,
        "seed": seed,
    }
    if (root / MANIFEST_FILE).is_file():
        finished = Reconstruction.open(root)
        require_same(finished.details, details, root)
        return finished
    begin(root, details)
    drawing = _Drawing(root, predictor, makers, head, n_samples, keep_samples, seed)
    batches = _batches(predictor, batch_size, n_images)
    for number, batch in enumerate(
        track(batches, label="reconstruct", total=len(batches), unit="block")
    ):
        if not block_path(root, number).is_file():
            drawing.draw(number, batch)
    image_ids = np.concatenate([predictor.table.image_ids[b.images] for b in batches]).tolist()
    if n_on_sheet:
        _write_sheet(root, subject, makers, image_ids, n_on_sheet)
    return finish(root, image_ids, len(batches), details)


def _require_decodable(predictor: Predictor, head: DecodedHead, decoder: Decoder | None) -> None:
    """Raise unless a decoder takes what a head of the run makes."""
    if decoder is None:
        return
    run, space = predictor.run, predictor.run.space
    if (decoder.tokens, decoder.dim) != (space.tokens, space.dim):
        raise ReconstructionError(
            f"{run.path} predicts {space}, and {decoder.name} takes {decoder.tokens} x "
            f"{decoder.dim}. Train on targets of that space, or choose the decoder of this one."
        )
    if head == "retrieval" and not space.unit_norm:
        raise ReconstructionError(
            f"the retrieval embeddings of {run.path} are directions in {space}, not embeddings "
            f"that a picture can be made of. Decode samples of a prior."
        )


def _decoder_details(makers: Makers) -> dict[str, Any]:
    if makers.decoder is None:
        return {"name": "retrieval"}
    return {"name": makers.decoder.name, "side": makers.decoder.side, **makers.decoder.details}


def _batches(predictor: Predictor, batch_size: int, n_images: int | None) -> list[Batch]:
    batches = predictor.average_batches(batch_size)
    if n_images is None:
        return batches
    kept: list[Batch] = []
    for batch in batches:
        left = n_images - sum(len(b.images) for b in kept)
        if left > 0:
            kept.append(batch.take(np.arange(min(left, len(batch.images)))))
    return kept


@dataclass(frozen=True)
class _Drawing:
    """What is the same for every block of images."""

    root: Path
    predictor: Predictor
    makers: Makers
    head: DecodedHead
    n_samples: int
    keep_samples: bool
    seed: int

    def draw(self, number: int, batch: Batch) -> None:
        """Write the pictures of a block, then its scores, which say that it is done."""
        image_ids: list[int] = self.predictor.table.image_ids[batch.images].tolist()
        condition, retrieval = self.predictor.decode(batch)
        vectors = retrieval.cpu().numpy()
        starts = None
        if self.makers.low_level is not None:
            starts = self.makers.low_level.make(image_ids)
            self._save(LOW_LEVEL, image_ids, [Image.fromarray(start) for start in starts])
        found: list[Retrieved] | None = None
        if self.makers.retrieved is not None:
            found = self.makers.retrieved.find(vectors)
            self._save(RETRIEVED, image_ids, [hit.picture for hit in found])
        if self.makers.decoder is None:
            assert found is not None  # see Makers
            self._save(IMAGES, image_ids, [hit.picture for hit in found])
            scores = np.array([[hit.score for hit in found]], np.float32)
        else:
            drawn = self._samples(self.makers.decoder, condition, vectors, image_ids, starts)
            scores = self._pick(np.stack(list(drawn)), vectors, image_ids)
        table = _score_table(image_ids, scores, found)
        with atomic_write(block_path(self.root, number)) as temporary:
            pq.write_table(table, temporary)

    def _samples(
        self,
        decoder: Decoder,
        condition: Tensor,
        vectors: NDArray[np.float32],
        image_ids: list[int],
        starts: NDArray[np.uint8] | None,
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield the pictures (n, side, side, 3) of each sample."""
        for sample in range(self.n_samples):
            if self.head == "prior":
                drawn = self.predictor.sample(
                    condition, np.array(image_ids), seed=self.seed, number=sample
                )
                embeddings = drawn.float().cpu().numpy()
            else:
                embeddings = vectors.reshape(len(vectors), decoder.tokens, decoder.dim)
            if self.predictor.run.space.unit_norm:
                embeddings = embeddings / np.linalg.norm(embeddings, axis=(1, 2), keepdims=True)
            # Not the prior's noise again: the picture's is drawn from another seed.
            seeds = [noise_seed(self.seed + 1, image_id, sample) for image_id in image_ids]
            yield decoder.decode(embeddings, seeds=seeds, starts=starts)

    def _pick(
        self, samples: NDArray[np.uint8], vectors: NDArray[np.float32], image_ids: list[int]
    ) -> NDArray[np.float32]:
        """Write the best sample of each image, and return all scores (n_samples, n)."""
        picker = self.makers.picker
        scores = np.full(samples.shape[:2], np.nan, np.float32)
        if picker is not None:
            scores = np.stack([picker.scores(pictures, vectors) for pictures in samples])
        picked = [Image.fromarray(samples[best, at]) for at, best in enumerate(_best(scores))]
        self._save(IMAGES, image_ids, picked)
        if self.keep_samples:
            for at, image_id in enumerate(image_ids):
                for sample, pictures in enumerate(samples):
                    path = self.root / SAMPLES / str(image_id) / f"{sample:02d}.png"
                    save_picture(path, Image.fromarray(pictures[at]))
        return scores

    def _save(self, folder: str, image_ids: list[int], pictures: list[Image.Image]) -> None:
        for image_id, picture in zip(image_ids, pictures, strict=True):
            save_picture(self.root / folder / f"{image_id}.png", picture)


def _best(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the best sample of each image, (n,), of scores (n_samples, n); NaN is the worst."""
    return np.asarray(np.nan_to_num(scores, nan=-1).argmax(axis=0))


def _score_table(
    image_ids: list[int], scores: NDArray[np.float32], found: list[Retrieved] | None
) -> pa.Table:
    """Return one line a sample, the samples of an image together; NaN scores become null."""
    n_samples, n = scores.shape
    absent = pa.nulls(n_samples * n)
    return pa.table(
        [
            np.repeat(image_ids, n_samples),
            np.tile(np.arange(n_samples), n),
            pa.array(scores.T.ravel(), from_pandas=True),
            (np.arange(n_samples)[None] == _best(scores)[:, None]).ravel(),
            absent if found is None else np.repeat([hit.row for hit in found], n_samples),
            absent if found is None else np.repeat([hit.score for hit in found], n_samples),
        ],
        names=SCORE_SCHEMA.names,
    ).cast(SCORE_SCHEMA)


def _write_sheet(
    root: Path, subject: Subject, makers: Makers, image_ids: list[int], n_images: int
) -> None:
    """Write the contact sheet, of images evenly spread over all."""
    places = np.unique(np.linspace(0, len(image_ids) - 1, n_images).round().astype(int))
    folders = {"low-level": LOW_LEVEL} if makers.low_level else {}
    folders |= {"reconstructed": IMAGES} if makers.decoder else {}
    folders |= {"retrieved": RETRIEVED} if makers.retrieved else {}
    rows: list[list[Image.Image | None]] = []
    for image_id in (image_ids[place] for place in places):
        seen = subject.open_image(image_id) if subject.has_images else None
        made = (Image.open(root / folder / f"{image_id}.png") for folder in folders.values())
        rows.append([seen, *made])
    write_contact_sheet(root / SHEET_FILE, ["seen", *folders], rows, side_by_side=2)
