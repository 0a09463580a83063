"""What an engine for rollouts beside the training would have to gain: all computed, from sizes and bandwidths that are given.

    python benchmarks/rollout_engines.py --memory-gigabytes-per-second 3350 --link-gigabytes-per-second 25 --batch 64

For each raster recipe of policy gradient or the size of one: bfloat16 weights and their time over the link, which is paid
once for each update; the floor of drawing, which reads the weights once a token and the keys and values of every row (rows
count twice under guidance); and at that floor the seconds of 256 images.
"""

from __future__ import annotations

import argparse
from typing import Any

from true_size import published_sizes, read_recipe

from align.checkpoints import expected_tensors

RECIPES = ("llamagen/cca_b", "llamagen/cca_xl", "llamagen/cca_xxl", "llamagen/cca_3b", "janus/grpo")
BFLOAT16 = 2
IMAGES = 256


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory-gigabytes-per-second", type=float, required=True)
    parser.add_argument("--link-gigabytes-per-second", type=float, required=True)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    print("| generator of | weights, GB | over the link, s | 256 images, s | guided, s |")
    print("|---|---|---|---|---|")
    for name in RECIPES:
        experiment, chosen = read_recipe(name)
        sizes: Any = published_sizes(chosen["generator"], experiment["generator"])
        tensors = expected_tensors(chosen["generator"], sizes).values()
        weights = BFLOAT16 * sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
        length = sizes.grid[0] * sizes.grid[1]
        cache = BFLOAT16 * 2 * sizes.num_layers * sizes.dim * (length + 1) / 2  # of a row, the mean over its tokens
        cells = [weights / 1e9, weights / 1e9 / arguments.link_gigabytes_per_second]
        for branches in (1, 2):
            token = (weights + branches * arguments.batch * cache) / (arguments.memory_gigabytes_per_second * 1e9)
            cells.append(IMAGES / arguments.batch * length * token)
        print(f"| {name} | " + " | ".join(f"{cell:.3g}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
