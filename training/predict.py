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
    if head not in get_args(Head):
        raise ValueError(f"head is {head!r}, expected one of {', '.join(get_args(Head))}.")
    if averaging not in ("inputs", "outputs"):
        raise ValueError(f"averaging is {averaging!r}, expected 'inputs' or 'outputs'.")
    run = Run.open(run_folder)
    _require_usable(run, subject, split=split, head=head)
    place = run.place_of(subject)
    statistics = run.statistics[place]
    rows = subject.trial_rows(split)
    table = TrialTable(subject, rows, statistics, memory_bytes=0)
    statistics.report_unseen(table.sessions, where=str(subject.path))
    decoder = _Decoder(run, place, table, head=head, seed=seed, device=resolve_device(device))
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
        batches = list(average_batches(Samples([table]), batch_size=batch_size))
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
            embeddings = decoder.decode(batch, separately=average and averaging == "outputs")
            columns = {
                "image_id": table.image_ids[batch.images],
                "subject": pa.array([subject.name] * len(batch.images), pa.string()),
                "n_trials": (batch.weights > 0).sum(axis=1),
                "split": pa.array([split] * len(batch.images), pa.string()),
            }
            if not average:
                columns["trial"] = trial_numbers[batch.trials[:, 0]]
            writer.write(embeddings.reshape(-1, *space.row_shape), pa.table(columns))
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


class _Decoder:
    """A run's model on a device, with what turns a batch into embeddings."""

    def __init__(
        self,
        run: Run,
        place: int,
        table: TrialTable,
        *,
        head: Head,
        seed: int,
        device: torch.device,
    ) -> None:
        self.table, self.device, self.seed = table, device, seed
        self.model = run.model.to(device)
        self.place = place
        self.recipe = run.recipe.prior
        self.shape = (run.space.tokens, run.space.dim)
        self.head = head

    @torch.inference_mode()
    def decode(self, batch: Batch, *, separately: bool) -> NDArray[np.float32]:
        """Return embeddings of shape (n, tokens * dim); repeats averaged after if `separately`."""
        n, n_repeats = batch.trials.shape
        table = self.table
        if separately:
            voxels = table.read(batch.trials.ravel())
        else:
            voxels = table.combine(batch.trials, batch.weights)
        tokens, retrieval = self.model.decode(torch.from_numpy(voxels).to(self.device), self.place)
        outputs = F.normalize(retrieval, dim=1) if self.head == "retrieval" else tokens.flatten(1)
        if separately:
            weights = torch.from_numpy(batch.weights).to(self.device)
            outputs = torch.einsum("nrw,nr->nw", outputs.reshape(n, n_repeats, -1), weights)
        if self.head == "retrieval":
            outputs = F.normalize(outputs, dim=1)
        elif self.head == "prior":
            outputs = self._sample(outputs.reshape(n, *self.shape), batch).flatten(1)
        embeddings: NDArray[np.float32] = outputs.cpu().numpy()
        return embeddings

    def _sample(self, brain: Tensor, batch: Batch) -> Tensor:
        model, recipe = self.model, self.recipe
        assert isinstance(model, BrainModel) and recipe is not None  # see _require_usable
        network = model.prior
        assert network is not None
        schedule = cosine_schedule(recipe.n_steps)
        nothing = torch.ones(len(brain), dtype=torch.bool, device=self.device)

        def denoise(noised: Tensor, step: Tensor) -> Tensor:
            clean: Tensor = network(noised, step, brain)
            if recipe.guidance == 1:
                return clean
            blind: Tensor = network(noised, step, brain, drop_brain=nothing)
            return blind + recipe.guidance * (clean - blind)

        generators = [
            torch.Generator().manual_seed(_noise_seed(self.seed, int(image_id)))
            for image_id in self.table.image_ids[batch.images]
        ]
        if recipe.sampler == "ddpm":
            samples = sample_ddpm(denoise, schedule, self.shape, generators, device=self.device)
        else:
            samples = sample_ddim(
                denoise,
                schedule,
                self.shape,
                generators,
                n_steps=recipe.n_sampling_steps,
                device=self.device,
            )
        return samples / recipe.image_embed_scale


def _noise_seed(seed: int, image_id: int) -> int:
    return int(np.random.SeedSequence([seed, image_id]).generate_state(1, np.uint64)[0] >> 1)
