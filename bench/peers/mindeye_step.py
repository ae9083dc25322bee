"""Training steps of MindEye's published code, timed; run by bench_training.py.

``CODE`` is the folder ``src`` of a checkout of MedARC-AI/fMRI-reconstruction-NSD; the environment
has its pinned dalle2-pytorch and rotary-embedding-torch, and PyTorch. What the networks don't use
(kornia, CLIP, diffusers and more) is imported as empty stand-ins. Widths that the code fixes at
768 and 2048 are replaced in memory by those that are asked for. Targets are given: the published
loop runs CLIP on augmented pictures before each step, which is left out, as is what it computes
for display alone.
"""

from __future__ import annotations

import argparse
import ast
import importlib.machinery
import json
import statistics
import sys
import time
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

UNUSED = (
    *("kornia", "kornia.filters", "kornia.augmentation", "x_clip", "coca_pytorch", "resize_right"),
    *("vector_quantize_pytorch", "ema_pytorch", "pytorch_warmup", "accelerate", "clip"),
    *("dalle2_pytorch.trainer", "dalle2_pytorch.tokenizer", "dalle2_pytorch.vqgan_vae"),
    *("dalle2_pytorch.train_configs", "dalle2_pytorch.trackers", "diffusers.models.vae"),
    "open_clip",
)
LOSSES = {"mixco", "mixco_nce", "soft_clip_loss"}
PEAK, TOTAL_STEPS = 3e-4, 66_240


class StandIn(types.ModuleType):
    """A module whose names are empty classes and mocks."""

    def __getattr__(self, name: str) -> Any:
        """Return something to inherit from, or to call."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[0].isupper() else MagicMock()


def load(code: Path, dim: int, projector: int) -> tuple[types.ModuleType, dict[str, Any]]:
    """Return the published networks as a module, and the loss functions by name."""
    import torch
    import torch.nn.functional as F

    for name in UNUSED:
        module = StandIn(name)
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    text = (code / "models.py").read_text().replace("2048", str(projector))
    text = text.replace(",-1,768)", f",-1,{dim})")
    models = types.ModuleType("models")
    exec(compile(text, "models.py", "exec"), models.__dict__)
    losses: dict[str, Any] = {"torch": torch, "nn": torch.nn, "F": F}
    tree = ast.parse((code / "utils.py").read_text())
    tree.body = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in LOSSES
    ]
    exec(compile(tree, "utils.py", "exec"), losses)
    return models, losses


def main() -> None:
    """Time the steps; print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("code", type=Path)
    parser.add_argument("sizes", type=json.loads)
    options = parser.parse_args()
    sizes: dict[str, Any] = options.sizes
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(sizes["threads"])
    torch.manual_seed(0)
    models, losses = load(options.code, sizes["dim"], sizes["projector"])
    device, tokens, dim = sizes["device"], sizes["tokens"], sizes["dim"]
    backbone = models.BrainNetwork(
        in_dim=sizes["voxels"],
        out_dim=tokens * dim,
        clip_size=dim,
        h=sizes["latent"],
        n_blocks=sizes["blocks"],
    )
    network = models.VersatileDiffusionPriorNetwork(
        dim=dim,
        depth=sizes["depth"],
        dim_head=sizes["head_dim"],
        heads=sizes["heads"],
        causal=False,
        num_tokens=tokens,
        learned_query_mode="pos_emb",
    )
    prior = models.BrainDiffusionPrior(
        net=network,
        image_embed_dim=dim,
        condition_on_text_encodings=False,
        timesteps=100,
        cond_drop_prob=0.2,
        image_embed_scale=None,
        voxel2clip=backbone,
    ).to(device)
    bare = ("bias", "LayerNorm.bias", "LayerNorm.weight")
    groups = [
        {
            "params": [
                p for n, p in part.named_parameters() if any(b in n for b in bare) == is_bare
            ],
            "weight_decay": 0.0 if is_bare else 1e-2,
        }
        for part in (network, backbone)
        for is_bare in (False, True)
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK, total_steps=TOTAL_STEPS)
    voxels = torch.randn(sizes["batch"], sizes["voxels"], device=device)
    target = torch.randn(sizes["batch"], tokens, dim, device=device) / dim**0.5
    prior.train()

    def step() -> None:
        optimizer.zero_grad()
        decoded, projected = backbone(voxels)
        prior_loss, _ = prior(text_embed=decoded.view(len(voxels), -1, dim), image_embed=target)
        predicted = F.normalize(projected.flatten(1), dim=-1)
        wanted = F.normalize(target.flatten(1), dim=-1)
        loss = losses["soft_clip_loss"](predicted, wanted, temp=0.005) + 30 * prior_loss
        loss.backward()
        optimizer.step()
        loss.item()
        rates.step()

    seconds, processor = [], []
    for number in range(sizes["warmup"] + sizes["steps"]):
        if device != "cpu":
            torch.cuda.synchronize()
        started, used = time.perf_counter(), time.process_time()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        if number >= sizes["warmup"]:
            seconds.append(time.perf_counter() - started)
            processor.append(time.process_time() - used)
    facts = {
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(processor),
        "n_parameters": sum(p.numel() for p in prior.parameters()),
        "torch": torch.__version__,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
