"""One training step beside MindEye's published code: seconds, by turns, at one width and batch.

Each side runs in a process and an environment of its own, on random voxels and targets that are
given: pictures are not embedded on either side, as they are before each step of the published loop.
Losses, widths, dropouts, optimizer and prior are the same (SoftCLIP and the prior's error). Ours is
`training.step.Stepper`, once in float32 and once with a bfloat16 forward pass; ``dense`` and
``light`` are our own recipes, in float32, on the same voxels and targets. Medians over steps, then
over rounds.

Example: python bench/bench_training.py --reference-python ENV/bin/python --code CHECKOUT/src
         python bench/bench_training.py --memory --latent 4096    peak memory of one step, no peer
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROTOCOL = "training/1"
OURS = ("float32", "bfloat16", "dense", "light")


def recipe_for(contender: str, sizes: dict[str, Any]) -> Any:
    """Return the recipe that one of ours trains with."""
    sys.path.insert(0, str(ROOT))
    from training.recipe import load_recipe

    batch = [
        f"target.tokens={sizes['tokens']}",
        f"target.dim={sizes['dim']}",
        f"train.batch_size={sizes['batch']}",
        f"train.micro_batch_size={sizes['batch']}",
        f"train.device={sizes['device']}",
    ]
    if contender in ("dense", "light"):
        return load_recipe(contender, batch)
    return load_recipe(
        "mindeye_hidden",
        [
            *batch,
            f"model.latent_dim={sizes['latent']}",
            f"model.n_blocks={sizes['blocks']}",
            f"model.projector_dim={sizes['projector']}",
            f"prior.depth={sizes['depth']}",
            f"prior.n_heads={sizes['heads']}",
            f"prior.head_dim={sizes['head_dim']}",
            f"prior.checkpoint={str(sizes['checkpoint']).lower()}",
            f"train.precision={contender}",
        ],
    )


def time_ours(contender: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Take steps and return what they took."""
    import torch
    import torch.nn.functional as F

    recipe = recipe_for(contender, sizes)
    from training.losses.phases import Phase
    from training.models.assemble import build_model
    from training.objectives.retrieval import Labels, RetrievalObjective
    from training.optim import Optimization
    from training.processes import Processes
    from training.step import Piece, Stepper

    torch.set_num_threads(sizes["threads"])
    torch.manual_seed(0)
    device = torch.device(sizes["device"])
    shape = {"tokens": sizes["tokens"], "dim": sizes["dim"]}
    model = build_model(recipe, n_voxels=[sizes["voxels"]], **shape).to(device).train()
    optimization = Optimization(model, recipe.train, n_steps=66_240)
    dtype = torch.bfloat16 if contender == "bfloat16" else torch.float32
    objective = RetrievalObjective(model, recipe.loss, recipe.prior, dtype)
    stepper = Stepper(objective, optimization, Processes(sizes["device"]), compiled=False)
    voxels = torch.randn(sizes["batch"], sizes["voxels"], device=device)
    targets = torch.randn(sizes["batch"], *shape.values(), device=device) / sizes["dim"] ** 0.5
    generator = torch.Generator(device).manual_seed(0)
    pieces = [Piece(torch.arange(sizes["batch"]), [voxels])]
    seconds, processor = [], []
    for number in range(sizes["warmup"] + sizes["steps"]):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started, used = time.perf_counter(), time.process_time()
        labels = Labels(
            Phase("softclip", 0.005), F.normalize(targets.flatten(1), dim=1), None, None
        )
        losses = stepper.take(pieces, targets, objective.draw(targets, generator), labels)
        losses.sum().item()
        if number >= sizes["warmup"]:
            seconds.append(time.perf_counter() - started)
            processor.append(time.process_time() - used)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(processor),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "peak_bytes": peak,
        "torch": torch.__version__,
    }


def run_apart(contender: str, options: argparse.Namespace, sizes: dict[str, Any]) -> dict[str, Any]:
    """Time one contender in a process of its own."""
    if contender == "MindEye":
        script = str(ROOT / "bench" / "peers" / "mindeye_step.py")
        command = [str(options.reference_python), script, str(options.code)]
    else:
        command = [sys.executable, __file__, "--contender", contender, "--sizes"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(sizes["threads"])}
    finished = subprocess.run(
        [*command, json.dumps(sizes)], env=environment, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        sys.exit(f"{contender} failed: {finished.stderr[-1500:]}")
    said: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return said


def main() -> None:
    """Parse, run by turns, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference-python", type=Path, help="interpreter with its requirements")
    parser.add_argument("--code", type=Path, help="folder src of a checkout of the published code")
    parser.add_argument("--memory", action="store_true", help="our float32 step alone")
    for name, default in (
        *(("voxels", 15_724), ("latent", 1024), ("blocks", 4), ("tokens", 257), ("dim", 768)),
        *(("projector", 2048), ("depth", 6), ("heads", 12), ("head-dim", 64), ("batch", 32)),
        *(("steps", 3), ("warmup", 1), ("threads", 2), ("rounds", 3)),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=("MindEye", *OURS),
        default=("MindEye", *OURS),
        help="dense and light take 17 tokens and more",
    )
    parser.add_argument("--checkpoint", action="store_true", help="of the prior's layers")
    parser.add_argument("--contender", choices=OURS, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(time_ours(options.contender, options.sizes)))
        return
    names = ("voxels", "latent", "blocks", "tokens", "dim", "projector", "depth", "heads")
    more = ("head_dim", "batch", "steps", "warmup", "threads", "device", "checkpoint")
    sizes = {name: getattr(options, name) for name in (*names, *more)}
    contenders = ("float32",) if options.memory else options.contenders
    rounds: dict[str, list[dict[str, Any]]] = {}
    for number in range(1 if options.memory else options.rounds):
        for contender in contenders:
            print(f"round {number}: {contender}", file=sys.stderr, flush=True)
            rounds.setdefault(contender, []).append(run_apart(contender, options, sizes))
    from machine import describe_machine, hardware_name

    medians = {
        contender: {
            "seconds": statistics.median(piece["seconds"] for piece in pieces),
            "cpu_seconds": statistics.median(piece["cpu_seconds"] for piece in pieces),
            "n_parameters": pieces[0]["n_parameters"],
        }
        for contender, pieces in rounds.items()
    }
    for contender, found in medians.items():
        peak = rounds[contender][0].get("peak_bytes", 0) / 2**30
        print(
            f"{contender:<10} {found['seconds']:8.3f} s a step {found['cpu_seconds']:8.3f} CPU s "
            f"{found['n_parameters'] / 1e6:8.1f} M parameters {peak:6.1f} GiB peak"
        )
    machine = describe_machine()
    record = {
        "protocol": PROTOCOL,
        "machine": machine,
        "sizes": sizes,
        "medians": medians,
        "rounds": rounds,
    }
    what = "memory" if options.memory else "step"
    size = f"{options.latent}-{options.tokens}"
    name = f"training-{what}_{size}_{hardware_name(machine)}_{date.today():%Y%m%d}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
