"""Validation: how well a model as it is decodes images that it does not train on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .samples import average_batches
from .study import Study


@torch.inference_mode()
def identify_validation(
    model: nn.Module, study: Study, *, batch_size: int, device: torch.device
) -> dict[str, float] | None:
    """Identify each subject's validation images among themselves, both ways, repeats averaged.

    Parameters
    ----------
    model : BrainModel
    study : Study
    batch_size : int
    device : torch.device

    Returns
    -------
    rates : dict or None
        ``n_images`` (of all subjects), ``brain_to_image_top1`` and ``image_to_brain_top1``, in
        [0, 1], and ``score``, their mean; None if the study has no validation images.
    """
    if not study.has_validation:
        return None
    model.eval()
    samples = study.validation
    predicted, wanted = [], []
    for batch in average_batches(samples, batch_size=batch_size):
        predicted.append(
            F.normalize(model(on_device(samples.voxels(batch), device))[1].float(), dim=1)
        )
        targets, *_ = on_device([study.read_validation_targets(batch.images)], device)
        wanted.append(F.normalize(targets.flatten(1), dim=1))
    predictions, targets = torch.cat(predicted), torch.cat(wanted)
    n_right = np.zeros(2)
    for subject in range(len(samples.tables)):
        rows = torch.from_numpy(np.flatnonzero(samples.subject_of_view == subject)).to(device)
        scores = predictions[rows] @ targets[rows].T
        own = torch.arange(len(rows), device=device)
        n_right += [int((scores.argmax(dim=way) == own).sum()) for way in (1, 0)]
    brain_to_image, image_to_brain = (n_right / len(predictions)).tolist()
    return {
        "n_images": len(predictions),
        "brain_to_image_top1": brain_to_image,
        "image_to_brain_top1": image_to_brain,
        "score": (brain_to_image + image_to_brain) / 2,
    }


@torch.inference_mode()
def compare_validation(
    model: nn.Module, study: Study, *, batch_size: int, device: torch.device
) -> dict[str, float] | None:
    """Compare the predicted latents of the validation images with their targets, repeats averaged.

    Parameters
    ----------
    model : LowLevelModel
    study : Study
    batch_size : int
    device : torch.device

    Returns
    -------
    errors : dict or None
        ``n_images`` (of all subjects), ``latent_error``, the mean absolute error in the targets'
        units, and ``score``, its negative; None if the study has no validation images.
    """
    if not study.has_validation:
        return None
    model.eval()
    n_images, total = 0, 0.0
    for batch in average_batches(study.validation, batch_size=batch_size):
        latents, _ = model(on_device(study.validation.voxels(batch), device))
        targets, *_ = on_device([study.read_validation_targets(batch.images)], device)
        total += float((latents.float() - targets).abs().flatten(1).mean(dim=1).sum())
        n_images += len(batch.images)
    error = total / n_images
    return {"n_images": n_images, "latent_error": error, "score": -error}


def on_device(arrays: Sequence[NDArray[np.float32]], device: torch.device) -> list[Tensor]:
    """Return arrays as tensors on a device; copies to a GPU don't wait for it."""
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type == "cpu":
        return tensors
    return [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
