"""Run by test_ranks.py, alone, by torchrun and by accelerate launch: a few steps of each objective, and the weights that
came out, in FOLDER/OBJECTIVE/trained.safetensors.

Beside the objectives of the harness: cca_moving has a reference that moves, cca_adapters trains LoRA against itself, and
grpo_guided draws guided rollouts, whose null logits are the reference's. Logits are read two tokens at a time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from training.harness import (
    BRIGHTNESS,
    OBJECTIVES,
    SETTINGS,
    Novelty,
    darkness,
    make_generator,
    make_supplies,
    place,
)

from align.generators import deferred
from align.training.adapters import add_adapters
from align.training.inputs import Scoring
from align.training.penalties import KLPenalty
from align.training.reference import AdapterOffReference, FrozenReference, Reference
from align.types import SamplingConfig
from recipes.cli import leave_group
from recipes.train import train_generator
from rewards.base import Reward

STEPS = 4


def main(folder: Path, case: str, micro_batch: int, world: int, *, resume: bool) -> None:
    objective = case.partition("_")[0] if case != "va_pi" else case
    deferred.CHUNK_BYTES = 2 * 4 * 2 * micro_batch * 16
    guided = SamplingConfig(guidance_scale=1.5)
    generator = make_generator(objective)
    reference: Reference | str = "frozen"
    if case == "cca_moving":
        reference = FrozenReference(generator, sync_steps=1, mixup=0.5)
    if case == "cca_adapters":
        add_adapters(generator, rank=2, alpha=4, seed=0)
        reference = AdapterOffReference(generator)
    settings = {
        **SETTINGS,
        "max_steps": STEPS,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": 2,
        "save_steps": 1,
        "logging_steps": 2 if case == "cca_moving" else 1,  # so that a checkpoint lies between two lines of the log
    }
    # groups of 4 lie across the ranks' micro-batches of 2, and across steps that share their rollouts
    supplies = make_supplies(
        generator,
        objective,
        settings,
        world=world,
        reference=reference,
        rollout={
            "num_generations": 4,
            "num_iterations": 1 if case == "grpo_guided" else 2,  # drawn under the policy's own null logits
            **({"sampling": guided, "scoring": Scoring(guided, "reference")} if case == "grpo_guided" else {}),
        },
        rewards=[
            *BRIGHTNESS,
            Reward("darkness", darkness, 0.0),
            Reward("place", place, 0.1),
            Reward("novelty", Novelty(), 0.5),
        ],
        penalties=[KLPenalty(0.1, estimator="k2", target=1e-3)] if objective == "grpo" else [],
    )
    train_generator(
        generator,
        OBJECTIVES[objective],
        supplies,
        settings,
        folder=folder,
        resume=resume,
        description="ranks",
        check_first=True,
    )
    if os.environ.get("RANK", "0") == "0":
        save_file(generator.state_dict(), folder / "trained.safetensors")


if __name__ == "__main__":
    parent, micro_batch, world, resume, *objectives = sys.argv[1:]
    for objective in objectives:
        main(Path(parent, objective), objective, int(micro_batch), int(world), resume=resume == "resume")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        leave_group()
        names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        left = [name for name in names if "gloo" in name]
        # torch's own caches hold on to a group that has sharded parameters
        assert not left or "ACCELERATE_USE_FSDP" in os.environ, f"threads that may abort the process are left: {names}"
