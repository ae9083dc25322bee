"""A published MindEye checkpoint as a run, which predicts and is fitted to subjects like any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from index_builder.embeddings.artefact import require_free
from index_builder.embeddings.space import EmbeddingSpace, Layer

from .checkpoint import MANIFEST, RECIPE, write_metrics, write_recipe, write_run
from .errors import RunError
from .models.assemble import summarize_parameters
from .normalization import SessionStatistics
from .recipe import Recipe, load_recipe
from .reference_weights import ReferenceFinalPrior, ReferenceWeights, load_reference

# Encoders by the names that `voxseek embed` gives them: that of both published models (CLIP
# ViT-L/14), and that of MindEye2, whose targets of (tokens, dim) have no class token.
_ENCODER = "ViT-L-14/openai"
_PATCH_ENCODERS = {(256, 1664): "ViT-bigG-14-squashed/laion2b_s39b_b160k"}


def import_reference(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, subject_name: str
) -> dict[str, Any]:
    """Turn ``last.pth`` into a finished run.

    Parameters
    ----------
    path : path
        As ``Train_MindEye.py`` saved it.
    out : path
        Run folder; must not hold a run.
    subject_name : str
        Whose voxels the model reads, as the subject folder is named. They are taken as they are:
        the checkpoint has no statistics, and MindEye's voxels come z-scored.

    Returns
    -------
    manifest : dict

    Raises
    ------
    ReferenceWeightsError
        If the file is not such a checkpoint.
    RunError
        If ``out`` holds a run or anything else.
    """
    root = Path(out)
    if (root / MANIFEST).exists():
        raise RunError(f"{root} holds a finished run; import into a new folder, or delete it.")
    require_free(root, (RECIPE,), "a run is", RunError)
    reference = load_reference(path)
    recipe = recipe_of(reference)
    space = space_of(reference)
    parts = {
        "voxel_layers.0": reference.voxel_layer,
        "trunk": reference.trunk,
        "projector": reference.projector,
        "prior": reference.prior.weights,
    }
    write_recipe(root, recipe)
    write_metrics(root, [])
    shape = {"tokens": space.tokens, "dim": space.dim}
    return write_run(
        root,
        weights={f"{part}.{name}": t for part, of_it in parts.items() for name, t in of_it.items()},
        statistics=[SessionStatistics.identity(reference.n_voxels)],
        command="voxseek model import",
        body={
            "recipe": recipe.name,
            "control": recipe.data.control,
            "seed": recipe.train.seed,
            "space": space.to_dict(),
            "subjects": [
                {"name": subject_name, "fingerprint": None, "n_voxels": reference.n_voxels}
            ],
            "targets": {"fingerprint": None},
            "teacher": [],
            "finetune": None,
            "n_training_images": None,
            "n_training_trials": None,
            "n_parameters": summarize_parameters(recipe, n_voxels=[reference.n_voxels], **shape),
            "n_epochs": reference.epoch + 1,
            "n_steps": None,
            "kept_epoch": reference.epoch,
            "device": None,
            "validation": None,
            "imported": {"file": Path(path).name, "bytes": os.stat(path).st_size},
        },
    )


def space_of(reference: ReferenceWeights) -> EmbeddingSpace:
    """Return the space of a checkpoint, which doesn't name it: told by tokens and dim.

    257 x 768 is the hidden layer of ViT-L/14, with its class token, and 1 x 768 the final one
    (Scotti et al. 2023, arXiv:2305.18274); 256 x 1664 are the patches of ViT-bigG/14 (Scotti et
    al. 2024, arXiv:2403.11207).
    """
    tokens, dim = reference.tokens, reference.dim
    if (tokens, dim) in _PATCH_ENCODERS:
        return EmbeddingSpace(_PATCH_ENCODERS[tokens, dim], "patches", tokens, dim, unit_norm=False)
    layer: Layer = "final" if tokens == 1 else "hidden"
    return EmbeddingSpace(_ENCODER, layer, tokens, dim, unit_norm=False)


def recipe_of(reference: ReferenceWeights) -> Recipe:
    """Return the recipe of a checkpoint: the published one with the sizes of the file."""
    prior = reference.prior
    sizes: dict[str, Any] = {
        "target.tokens": reference.tokens,
        "target.dim": reference.dim,
        "model.latent_dim": reference.latent_dim,
        "model.n_blocks": reference.n_blocks,
        "model.projector_dim": reference.projector_dim,
        "prior.depth": prior.depth,
        "prior.n_heads": prior.n_heads,
        "prior.head_dim": prior.head_dim,
        "prior.n_steps": prior.n_steps,
        "prior.sampler": "ddpm",
        "prior.n_sampling_steps": prior.n_steps,
        "prior.image_embed_scale": reference.image_embed_scale,
    }
    name = "mindeye_hidden"
    if isinstance(prior, ReferenceFinalPrior):
        name = "mindeye_final"
        sizes |= {
            "prior.n_text": prior.n_text,
            "prior.time_table": str(prior.has_time_table).lower(),
            "prior.inner_norm": str(prior.inner_norm).lower(),
        }
    return load_recipe(name, [f"{field}={value}" for field, value in sizes.items()])
