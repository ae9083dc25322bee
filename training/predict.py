"""Predictions: a finished run and a subject's trials to an embedding folder.

Predictions lie in the targets' space and are compared with any embeddings of that space by plain
cosine. Noise of the prior comes from (seed, image), so that a prediction depends on neither its
neighbours nor the batch size.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from index_builder.embeddings.artefact import fingerprint
from index_builder.embeddings.progress import track
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.writer import EmbeddingWriter

from .checkpoint import Run
from .diffusion.sampling import sample_ddim, sample_ddpm
from .diffusion.schedule import cosine_schedule
from .errors import RunError
from .models.assemble import BrainModel, LowLevelModel
from .processes import resolve_device
from .samples import Batch, Samples, TrialTable, average_batches
from .subjects.subject import Subject

Head = Literal["retrieval", "prior", "latent"]
Averaging = Literal["inputs", "outputs"]


def predict(
    run_folder: str | os.PathLike[str],
    subject: Subject,
    out: str | os.PathLike[str],
    *,
    split: str = "test",
    head: Head = "retrieval",
    average: bool = True,
    averaging: Averaging = "inputs",
    seed: int = 0,
    batch_size: int = 256,
    device: str = "auto",
) -> EmbeddingFolder:
    """Predict the embeddings of the images that a subject saw.

    Parameters
    ----------
    run_folder : path
    subject : Subject
        The one that the run was trained on.
    out : path
        Embedding folder to write; parts of an interrupted call are kept.
    split : {"train", "validation", "test"}
    head : {"retrieval", "prior", "latent"}
        ``retrieval``: the projector's output, unit norm. ``prior``: a sample of the diffusion
        prior, in the targets' own units. ``latent``: the VAE latents of a low-level run.
    average : bool
        One row an image, over its repeats; otherwise one row a trial, with the column ``trial``.
    averaging : {"inputs", "outputs"}
        Where repeats are averaged: the normalized voxels (MindEye), or the unit-norm retrieval
        embeddings, respectively the prior's condition (MindEye2).
    seed : int
        Of the prior's noise.
    batch_size : int
        Rows held at once, one part of the folder each.
    device : {"auto", "cpu", "cuda"}

    Returns
    -------
    predictions : EmbeddingFolder
        Columns image_id, subject, n_trials, split; for single trials also trial.

    Raises
    ------
    RunError
        If the subject is not the run's, the split is empty, or the run has no prior.
    """
    if averaging not in ("inputs", "outputs"):
        raise ValueError(f"averaging is {averaging!r}, expected 'inputs' or 'outputs'.")
    predictor = Predictor(run_folder, subject, split=split, head=head, device=device)
    run, table = predictor.run, predictor.table
    space = dataclasses.replace(run.space, unit_norm=head == "retrieval")
    details = {
        "run": run.fingerprint,
        "subject": {"name": subject.name, "fingerprint": fingerprint(subject.manifest["files"])},
        "split": split,
        "head": head,
        "average": averaging if average else "none",
        "seed": seed if head == "prior" else None,
        "batch_size": batch_size,
    }
    if average:
        batches = predictor.average_batches(batch_size)
    else:
        batches = _single_batches(table, batch_size=batch_size)
    trial_numbers = subject.trials["trial"].to_numpy()[table.rows]
    with EmbeddingWriter(out, space, command="voxseek predict", details=details) as writer:
        n_done = n_left_out = 0
        while n_left_out < writer.n_rows_done:
            n_left_out += len(batches[n_done].images)
            n_done += 1
        for batch in track(
            batches[n_done:], label="predict", total=len(batches), unit="block", n_done=n_done
        ):
            outputs, retrieval = predictor.decode(
                batch, separately=average and averaging == "outputs"
            )
            if head == "retrieval":
                outputs = retrieval
            elif head == "prior":
                image_ids = table.image_ids[batch.images]
                outputs = predictor.sample(outputs, image_ids, seed=seed)
            columns = {
                "image_id": table.image_ids[batch.images],
                "subject": pa.array([subject.name] * len(batch.images), pa.string()),
                "n_trials": (batch.weights > 0).sum(axis=1),
                "split": pa.array([split] * len(batch.images), pa.string()),
            }
            if not average:
                columns["trial"] = trial_numbers[batch.trials[:, 0]]
            embeddings = outputs.cpu().numpy().reshape(-1, *space.row_shape)
            writer.write(embeddings, pa.table(columns))
        return writer.finish()


def _require_usable(run: Run, subject: Subject, *, split: str, head: Head) -> None:
    if not len(subject.trial_rows(split)):
        raise RunError(f"{subject.path} has no trials in the split {split!r}; choose another.")
    if isinstance(run.model, LowLevelModel) != (head == "latent"):
        has = "latent" if isinstance(run.model, LowLevelModel) else "retrieval and prior"
        raise RunError(f"{run.path} has no head {head!r}; it has {has} (--head).")
    if head == "prior" and run.recipe.prior is None:
        raise RunError(
            f"{run.path} was trained without a prior (its recipe has no section prior). "
            f"Predict with the retrieval head, or train with a prior."
        )


def _single_batches(table: TrialTable, *, batch_size: int) -> list[Batch]:
    """Return every trial once, in the order of the subject."""
    image_of_trial = np.empty(len(table.rows), np.int64)
    image_of_trial[table.trials_of_image] = np.arange(len(table.image_ids))[:, None]
    return [
        Batch(
            image_of_trial[trials],
            np.zeros(len(trials), np.int64),
            trials[:, None],
            np.ones((len(trials), 1), np.float32),
        )
        for trials in np.split(
            np.arange(len(table.rows)), range(batch_size, len(table.rows), batch_size)
        )
    ]


class Predictor:
    """A run's model on a device, and the trials of one split of its subject.

    Parameters
    ----------
    run_folder : path
    subject : Subject
        One that the run was trained on.
    split : {"train", "validation", "test"}
    head : {"retrieval", "prior", "latent"}
        What the run must have.
    device : {"auto", "cpu", "cuda"}

    Attributes
    ----------
    run : Run
    table : TrialTable
        The trials of the split, normalized with the run's statistics.

    Raises
    ------
    RunError
        If the subject is not the run's, the split is empty, or the run has no such head.
    """

    def __init__(
        self,
        run_folder: str | os.PathLike[str],
        subject: Subject,
        *,
        split: str,
        head: Head,
        device: str = "auto",
    ) -> None:
        if head not in get_args(Head):
            raise ValueError(f"head is {head!r}, expected one of {', '.join(get_args(Head))}.")
        self.run = Run.open(run_folder)
        _require_usable(self.run, subject, split=split, head=head)
        self._place = self.run.place_of(subject)
        statistics = self.run.statistics[self._place]
        self.table = TrialTable(subject, subject.trial_rows(split), statistics, memory_bytes=0)
        statistics.report_unseen(self.table.sessions, where=str(subject.path))
        self._device = resolve_device(device)
        self._model = self.run.model.to(self._device)
        self._shape = (self.run.space.tokens, self.run.space.dim)

    def average_batches(self, batch_size: int) -> list[Batch]:
        """Return the images of the split in order, each with all of its trials."""
        return list(average_batches(Samples([self.table]), batch_size=batch_size))

    @torch.inference_mode()
    def decode(self, batch: Batch, *, separately: bool = False) -> tuple[Tensor, Tensor]:
        """Predict the images of a batch.

        Parameters
        ----------
        batch : Batch
        separately : bool
            Average the outputs of an image's trials, instead of its voxels.

        Returns
        -------
        condition : Tensor of shape (n, tokens, dim)
            What the prior is given; the latents of a low-level run.
        retrieval : Tensor of shape (n, tokens * dim)
            Unit rows, compared with targets; features of a low-level run.
        """
        n, n_repeats = batch.trials.shape
        if separately:
            voxels = self.table.read(batch.trials.ravel())
        else:
            voxels = self.table.combine(batch.trials, batch.weights)
        tokens, retrieval = self._model.decode(
            torch.from_numpy(voxels).to(self._device), self._place
        )
        condition, retrieval = tokens.flatten(1), F.normalize(retrieval, dim=1)
        if separately:
            weights = torch.from_numpy(batch.weights).to(self._device)
            condition, retrieval = (
                torch.einsum("nrw,nr->nw", output.reshape(n, n_repeats, -1), weights)
                for output in (condition, retrieval)
            )
            retrieval = F.normalize(retrieval, dim=1)
        return condition.reshape(n, *self._shape), retrieval

    @torch.inference_mode()
    def sample(
        self, condition: Tensor, image_ids: NDArray[np.int64], *, seed: int, number: int = 0
    ) -> Tensor:
        """Draw one sample of the prior for each image, in the targets' own units.

        Parameters
        ----------
        condition : Tensor of shape (n, tokens, dim)
            From `decode`.
        image_ids : int64 array of shape (n,)
            The noise of an image comes from (seed, image, number), whatever stands beside it.
        seed : int
        number : int
            Which of several samples of the same image.

        Returns
        -------
        samples : Tensor of shape (n, tokens, dim)
        """
        model, recipe = self._model, self.run.recipe.prior
        assert isinstance(model, BrainModel) and recipe is not None  # see _require_usable
        network = model.prior
        assert network is not None
        schedule = cosine_schedule(recipe.n_steps)
        nothing = torch.ones(len(condition), dtype=torch.bool, device=self._device)

        def denoise(noised: Tensor, step: Tensor) -> Tensor:
            clean: Tensor = network(noised, step, condition)
            if recipe.guidance == 1:
                return clean
            blind: Tensor = network(noised, step, condition, drop_brain=nothing)
            return blind + recipe.guidance * (clean - blind)

        generators = [
            torch.Generator().manual_seed(noise_seed(seed, int(image_id), number))
            for image_id in image_ids
        ]
        if recipe.sampler == "ddpm":
            samples = sample_ddpm(denoise, schedule, self._shape, generators, device=self._device)
        else:
            samples = sample_ddim(
                denoise,
                schedule,
                self._shape,
                generators,
                n_steps=recipe.n_sampling_steps,
                device=self._device,
            )
        return samples / recipe.image_embed_scale


def noise_seed(seed: int, image_id: int, number: int = 0) -> int:
    """Return the seed of an image's noise: of its sample ``number`` under ``seed``."""
    entropy = [seed, image_id, number] if number else [seed, image_id]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
