"""Run by test_ranks.py, once alone and once by torchrun: a few steps, and the weights that came out."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from conftest import tiny_llamagen

from align.data import Codes, TrainingStream
from align.objectives import cca
from recipes.train import train_generator


def main(folder: Path, micro_batch: int, world: int) -> None:
    rng = torch.Generator().manual_seed(5)
    codes = Codes(torch.randint(0, 16, (20, 6), generator=rng), torch.randint(0, 4, (20,), generator=rng), "t")
    generator = tiny_llamagen()
    settings = {
        "max_steps": 3,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 3,
        "report_to": "none",
        "precision": "fp32",
        "sample_every": 0,
        "gradient_checkpointing": False,
    }
    stream = TrainingStream(codes, length=3 * micro_batch * 2 * world, seed=1, label_drop=0.3)
    objective = partial(cca, beta=0.1, lambda_=4.0)
    train_generator(
        generator, objective, stream, settings, folder=folder, reference="frozen", resume=False, description="ranks"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
