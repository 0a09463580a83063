"""Run by test_ranks.py under torchrun: on the second of two processes something goes wrong while rollouts are made.

Each process leaves what it stopped with in FOLDER/CASE-rankR.txt, and the seconds that it took.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training.harness import brightness, make_trainer, step_batches

from rewards.base import Reward

SECOND = os.environ.get("RANK") == "1"


def raises(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
    if SECOND:
        raise OSError("its weights are gone")
    return brightness(images, conditions)


def hangs(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
    if SECOND:
        time.sleep(20)
    return brightness(images, conditions)


def breaks_decoding(trainer: Any) -> None:
    def broken(tokens_BL: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    if SECOND:
        trainer.generator.decode = broken


CASES: dict[str, tuple[Callable[..., Any], Callable[[Any], None]]] = {
    "raises": (raises, lambda trainer: None),
    "hangs": (hangs, lambda trainer: None),
    "decoding": (brightness, breaks_decoding),
}


def main(folder: Path) -> None:
    for case, (reward, spoil) in CASES.items():
        settings = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}
        supplies = {"rewards": [Reward("bad", reward)], "world": 2, "rollout": {"timeout": 1.0}}
        trainer = make_trainer(folder / case, "grpo", supplies=supplies, **settings)
        spoil(trainer)
        clock, message = time.monotonic(), "it went on"
        try:
            step_batches(trainer)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
        rank, seconds = os.environ["RANK"], time.monotonic() - clock
        (folder / f"{case}-rank{rank}.txt").write_text(f"{seconds}\n{message}")
    torch.distributed.destroy_process_group()
    os._exit(0)  # without waiting for the thread that hangs


if __name__ == "__main__":
    main(Path(sys.argv[1]))
