"""What a published batch of each recipe takes on more GPUs: memory, computing, and bytes over the links.

    python benchmarks/scaling.py benchmarks/results/true-size-h100.json --gpus 1 8 16 --gigabytes-per-second 450 450 50

Of one GPU: measured (m) where the recipe was, else computed (c) by the rule of benchmarks/estimate.py, with its error. On
more, all is computed: computing is divided by the GPUs; and what has to travel is divided by the bandwidth that is given
for each number of GPUs (per GPU and direction: NVLink within a node, the network between nodes). Parameters and gradients
travel in float32. DDP: each step every GPU sends and receives 2 (n - 1)/n of the gradients (ring all-reduce). FSDP: each
micro-batch it receives (n - 1)/n of the policy's parameters twice (forward and backward) and of a held reference's once,
and sends as much of the gradients. Networks do both beside computing: what is not hidden comes on top, so the true time
lies between the larger of the two and their sum.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from estimate import REFERENCE, Recipe, estimates, read

FLOAT32 = 4
OPTIMISED = 16  # bytes of a parameter, its gradient and Adam's moments


@dataclass(frozen=True)
class Cost:
    """Of one published batch on n GPUs; seconds of links are those of each GPU."""

    ddp_gb: float
    fsdp_gb: float
    compute: float
    ddp_links: float
    fsdp_links: float


def cost(recipe: Recipe, gpus: int, gigabytes: float, memory: float, seconds: float) -> Cost:
    """memory, seconds: GB and seconds of the batch on one GPU."""
    held = REFERENCE[recipe.objective]
    share, size = (gpus - 1) / gpus, recipe.parameters * FLOAT32 / 1e9
    cut = recipe.parameters * (OPTIMISED + FLOAT32 * held) / 1e9
    micro_batches = recipe.batch / (recipe.micro_batch * gpus)
    return Cost(
        ddp_gb=memory,
        fsdp_gb=memory - cut * share,
        compute=seconds / gpus,
        ddp_links=2 * share * size / gigabytes,
        fsdp_links=(3 + held) * share * size * micro_batches / gigabytes,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--gigabytes-per-second", type=float, nargs="+", required=True, help="one for each of --gpus")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    print("| recipe | GPUs | GB, DDP | GB, FSDP2 | computing, s | links DDP, s | links FSDP2, s |")
    print("|---|---|---|---|---|---|---|")
    for name, (memory, seconds) in estimates(results).items():
        row = results["recipes"].get(name, {})
        how = "m" if "peak_gb" in row else "c"
        memory, seconds = row.get("peak_gb", memory), row.get("published_step_seconds", seconds)
        if memory is None or seconds is None:
            continue  # drawing is in no rule, and gradient checkpointing was not measured
        for gpus, gigabytes in zip(arguments.gpus, arguments.gigabytes_per_second, strict=True):
            found = cost(read(name), gpus, gigabytes, memory, seconds)
            cells = [found.ddp_gb, found.fsdp_gb, found.compute, found.ddp_links, found.fsdp_links]
            print(f"| {name} ({how}) | {gpus} | " + " | ".join(f"{cell:.3g}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
