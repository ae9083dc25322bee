"""Epochs of training: batches to losses to steps, validation, and the state between epochs.

An epoch's batches, mixing and noise follow from (seed, epoch) alone, so that the state at its end
is weights, optimizer and schedule, and no random generator.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from index_builder.embeddings.reader import EmbeddingFolder

from .checkpoint import STATE, STATE_FOLDER
from .diffusion.schedule import NoiseSchedule, cosine_schedule
from .errors import DivergedError, RunError
from .losses.bimixco import bimixco_loss, draw_mixing, mix_voxels
from .losses.phases import Phase, phase_at
from .losses.prior import prior_loss
from .losses.softclip import softclip_loss
from .models.assemble import BrainModel, build_model
from .normalization import SessionStatistics, fit_statistics
from .optim import make_optimizer
from .recipe import Recipe
from .samples import TargetTable, TrialTable, average_batches, count_batches, draw_batches
from .subjects.subject import Subject

logger = logging.getLogger("voxseek")


def resolve_device(name: str) -> torch.device:
    """Return the device of a recipe; ``auto`` is CUDA where there is one.

    Raises
    ------
    RunError
        If CUDA is asked for and absent.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise RunError(
            "recipe field train.device is 'cuda', and PyTorch finds no CUDA device; "
            "set train.device to 'cpu' or 'auto'."
        )
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


class Training:
    """Model, optimizer and data of one run, and its epochs."""

    def __init__(
        self, subject: Subject, targets: EmbeddingFolder, recipe: Recipe, device: torch.device
    ) -> None:
        self.recipe, self.device = recipe, device
        if not len(subject.trial_rows("train")):
            raise RunError(f"{subject.path} has no training trials; its splits must include some.")
        self.statistics: SessionStatistics = fit_statistics(subject)
        memory = recipe.data.memory_bytes
        self.trials = TrialTable(subject, "train", self.statistics, memory_bytes=memory)
        memory = self.trials.memory_left
        self.targets = TargetTable(targets, self.trials.image_ids, memory_bytes=memory)
        self.validation = TrialTable(subject, "validation", self.statistics, memory_bytes=0)
        self.has_validation = len(self.validation.image_ids) > 1
        if self.has_validation:
            self.statistics.report_unseen(self.validation.sessions, where=str(subject.path))
            self.validation_targets = TargetTable(
                targets, self.validation.image_ids, memory_bytes=0
            )
        else:
            logger.warning("%s has no validation images: training is blind.", subject.path)
        self.target_of_image = np.arange(len(self.trials.image_ids))
        if recipe.data.control == "shuffled_labels":
            rng = np.random.default_rng([recipe.train.seed, 1])
            self.target_of_image = rng.permutation(self.target_of_image)
        torch.manual_seed(recipe.train.seed)
        space = targets.space
        self.model: BrainModel = build_model(
            recipe, n_voxels=subject.n_voxels, tokens=space.tokens, dim=space.dim
        ).to(device)
        self.noise_schedule: NoiseSchedule | None = None
        if self.model.prior is not None:
            self.noise_schedule = cosine_schedule(recipe.prior.n_steps)
        n_batches = count_batches(self.trials, recipe.data, batch_size=recipe.train.batch_size)
        self.n_steps = n_batches * recipe.train.epochs
        self.optimizer, self.rates = make_optimizer(self.model, recipe.train, n_steps=self.n_steps)

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Take over a saved state, and return the metrics of its epochs."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])
        metrics: list[dict[str, Any]] = state["metrics"]
        return metrics

    def run_epoch(self, epoch: int, root: Path) -> dict[str, Any]:
        """Train one epoch, validate, and return its line of metrics."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.train.seed, 0, epoch])
        torch.manual_seed(int(rng.integers(2**63)))
        phase = phase_at(epoch / recipe.train.epochs, recipe.loss)
        self.model.train()
        losses: list[Tensor] = []
        batches = draw_batches(
            self.trials, recipe.data, batch_size=recipe.train.batch_size, rng=rng
        )
        for batch in batches:
            voxels = torch.from_numpy(self.trials.combine(batch)).to(self.device)
            wanted = self.targets.read(self.target_of_image[batch.images])
            losses.append(self._step(voxels, torch.from_numpy(wanted).to(self.device), phase, rng))
        parts = torch.stack(losses).cpu()
        self._require_finite(parts, epoch, root)
        contrastive, prior = parts.mean(dim=0).tolist()
        return {
            "epoch": epoch,
            "step": (epoch + 1) * len(losses),
            "phase": phase.loss,
            "temperature": phase.temperature,
            "learning_rate": self.rates.get_last_lr()[0],
            "contrastive_loss": contrastive,
            "prior_loss": prior if self.model.prior is not None else None,
            "validation": self._validate() if self.has_validation else None,
        }

    def _step(
        self, voxels: Tensor, targets: Tensor, phase: Phase, rng: np.random.Generator
    ) -> Tensor:
        """Take one optimizer step, and return the (contrastive, prior) losses, detached."""
        loss_recipe, train_recipe = self.recipe.loss, self.recipe.train
        lam = partner = None
        if phase.loss == "bimixco":
            shares, partners = draw_mixing(
                len(voxels),
                rng,
                probability=loss_recipe.mixing_probability,
                concentration=loss_recipe.mixing_concentration,
            )
            lam = torch.from_numpy(shares).to(self.device)
            partner = torch.from_numpy(partners).to(self.device)
            voxels = mix_voxels(voxels, lam, partner)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=train_recipe.precision == "bfloat16"
        ):
            tokens, retrieval = self.model(voxels)
            prior = self._prior_loss(tokens, targets)
        predictions = F.normalize(retrieval.float(), dim=1)
        unit_targets = F.normalize(targets.flatten(1), dim=1)
        if lam is not None and partner is not None:
            contrastive = bimixco_loss(
                predictions, unit_targets, lam, partner, temperature=phase.temperature
            )
        else:
            contrastive = softclip_loss(predictions, unit_targets, temperature=phase.temperature)
        loss = loss_recipe.contrastive_weight * contrastive + loss_recipe.prior_weight * prior
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # PyTorch does not annotate it
        if train_recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), train_recipe.clip_norm)
        self.optimizer.step()
        self.rates.step()
        return torch.stack((contrastive.detach(), prior.detach().float()))

    def _prior_loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        network, schedule, recipe = self.model.prior, self.noise_schedule, self.recipe.prior
        if network is None or schedule is None:
            return torch.zeros((), device=self.device)
        n = len(targets)
        return prior_loss(
            network,
            schedule,
            tokens,
            targets * recipe.image_embed_scale,
            step=torch.randint(schedule.n_steps, (n,), device=self.device),
            noise=torch.randn(targets.shape, device=self.device),
            drop_brain=torch.rand(n, device=self.device) < recipe.drop_brain,
        )

    @torch.inference_mode()
    def _validate(self) -> dict[str, float]:
        """Identify the validation images among themselves, both ways, from averaged repeats."""
        self.model.eval()
        predictions, wanted = [], []
        for batch in average_batches(self.validation, batch_size=self.recipe.train.batch_size):
            voxels = torch.from_numpy(self.validation.combine(batch)).to(self.device)
            predictions.append(F.normalize(self.model(voxels)[1].float(), dim=1))
            target = torch.from_numpy(self.validation_targets.read(batch.images))
            wanted.append(F.normalize(target.to(self.device).flatten(1), dim=1))
        scores = torch.cat(predictions) @ torch.cat(wanted).T
        right = torch.arange(len(scores), device=self.device)
        return {
            "n_images": len(scores),
            "brain_to_image_top1": float((scores.argmax(dim=1) == right).double().mean()),
            "image_to_brain_top1": float((scores.argmax(dim=0) == right).double().mean()),
        }

    def _require_finite(self, losses: Tensor, epoch: int, root: Path) -> None:
        bad = (~losses.isfinite()).any(dim=1)
        is_sound = all(bool(p.isfinite().all()) for p in self.model.parameters())
        if not bad.any() and is_sound:
            return
        at = int(bad.int().argmax()) if bad.any() else len(losses) - 1
        step = epoch * len(losses) + at
        state = root / STATE_FOLDER / STATE
        kept = f"The last good state is {state}." if state.is_file() else "No state was saved yet."
        raise DivergedError(
            f"the losses (contrastive, prior) at epoch {epoch}, step {step} are "
            f"{losses[at].tolist()}, or its update was not finite. {kept} "
            f"Train again with a lower train.learning_rate, or with train.clip_norm = 1."
        )
