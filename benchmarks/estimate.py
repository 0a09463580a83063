"""What the recipes that were not measured would take, scaled from those that were; and how well that rule does on these.

    python benchmarks/estimate.py benchmarks/results/true-size-h100.json

Memory: a parameter takes 4 bytes each for itself, its gradient and Adam's two moments, 2 for its copy in bfloat16, and 4
in a reference that is held; on top comes a number of bytes for each layer, channel and token of the sequences of a
micro-batch, the same for a family: the mean of what its measured CCA recipes took. Time: a parameter and a token of a
sequence cost the policy three forwards and the reference one, at the mean rate of the family's measured CCA recipes.
Drawing rollouts and fakes is not in it, nor is decoding: recipes that do so have no time here, or "at least". Not for
recipes with gradient checkpointing, of which nothing was measured.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from true_size import RECIPES, read_recipe, recipe_sizes

from align.checkpoints import expected_tensors
from align.generators import VARConfig

SEQUENCES = {
    "cca": 2,
    "ddo": 2,
    "dpo": 2,
    "grpo": 2,
    "va_pi": 1,
}  # of a row; GRPO's are the guided one and its null one
REFERENCE = {"cca": 1, "ddo": 1, "dpo": 1, "grpo": 1, "va_pi": 0}  # forwards of it


@dataclass(frozen=True)
class Recipe:
    family: str
    objective: str
    parameters: int
    width: int  # layers x channels
    tokens: int  # of a sequence, with what it is conditioned on
    micro_batch: int
    batch: int
    steps: int
    checkpointed: bool

    @property
    def fixed_bytes(self) -> int:
        return self.parameters * (18 + 4 * REFERENCE[self.objective])

    @property
    def activations(self) -> int:
        """Layers x channels x tokens of a micro-batch."""
        return self.width * self.tokens * self.micro_batch * SEQUENCES[self.objective]

    @property
    def work(self) -> int:
        """Parameters x tokens x forwards of a published batch."""
        forwards = 3 * SEQUENCES[self.objective] + REFERENCE[self.objective] * SEQUENCES[self.objective]
        return self.parameters * self.tokens * self.batch * forwards


def read(recipe: str) -> Recipe:
    experiment, chosen = read_recipe(recipe)
    family, trainer = chosen["generator"], experiment["trainer"]
    sizes: Any = recipe_sizes(family, experiment["generator"])
    tokens = {"llamagen": 1, "llamagen-t2i": 120}.get(family, 0)
    tokens += (
        sum(side**2 for side in sizes.patch_nums) if isinstance(sizes, VARConfig) else sizes.grid[0] * sizes.grid[1]
    )
    return Recipe(
        family.partition("-")[0],
        chosen["objective"],
        sum(tensor.numel() for tensor in expected_tensors(family, sizes).values() if tensor.is_floating_point()),
        sizes.num_layers * sizes.dim,
        tokens,
        trainer["per_device_train_batch_size"],
        trainer["global_batch_size"],
        trainer["max_steps"],
        trainer.get("gradient_checkpointing", False),
    )


def estimates(results: dict[str, Any]) -> dict[str, tuple[float | None, float | None]]:
    """{recipe: (GB, seconds of a published batch)}; None where the rule does not reach."""
    measured = {name: row for name, row in results["recipes"].items() if "failed" not in row}
    bytes_each: dict[str, list[float]] = {}
    seconds_each: dict[str, list[float]] = {}
    for name, row in measured.items():
        recipe = read(name)
        if recipe.objective == "cca" or recipe.family == "janus":  # of Janus there is but one
            over = row["peak_gb"] * 1e9 - recipe.fixed_bytes
            bytes_each.setdefault(recipe.family, []).append(over / recipe.activations)
            seconds_each.setdefault(recipe.family, []).append(row["published_step_seconds"] / recipe.work)
    found: dict[str, tuple[float | None, float | None]] = {}
    for name in RECIPES:
        recipe = read(name)
        memory = (recipe.fixed_bytes + statistics.mean(bytes_each[recipe.family]) * recipe.activations) / 1e9
        seconds = statistics.mean(seconds_each[recipe.family]) * recipe.work
        drawn = recipe.objective in ("grpo", "va_pi")
        found[name] = (None, None) if recipe.checkpointed else (memory, None if drawn else seconds)
    return found


def main() -> None:
    results = json.loads(Path(sys.argv[1]).read_text())
    print(f"{'recipe':<22}{'GB':>6}{'measured':>10}{'s a batch':>12}{'measured':>10}{'hours':>8}")
    worst = 0.0
    for name, (memory, seconds) in estimates(results).items():
        row = results["recipes"].get(name, {})
        if "peak_gb" in row and read(name).objective == "cca":
            worst = max(worst, abs(memory / row["peak_gb"] - 1), abs(seconds / row["published_step_seconds"] - 1))
        hours = None if seconds is None else seconds * read(name).steps / 3600
        cells = [memory, row.get("peak_gb"), seconds, row.get("published_step_seconds"), hours]
        texts = ["" if cell is None else f"{cell:.1f}" for cell in cells]
        print(f"{name:<22}{texts[0]:>6}{texts[1]:>10}{texts[2]:>12}{texts[3]:>10}{texts[4]:>8}")
    print(f"furthest from a measured CCA recipe: {worst:.0%}")


if __name__ == "__main__":
    main()
