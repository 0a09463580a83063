"""What a worker costs: 512 images of 256x256 scored by a worker process, against the same function in this process.

    python benchmarks/worker.py

Two rewards take 2 ms an image: one waits, as for a GPU, and one keeps a core busy. Each is timed both ways in turn, in one
run; the figures are medians. Limit: 1.15 of the time in process; above it the exit code is 1. A second line tells what
two workers gain.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

IMAGES, SIDE, BATCH = 512, 256, 32
SECONDS_PER_IMAGE = 0.002
ROUNDS = 5
LIMIT = 1.15


def waiting(images: Any, conditions: list[dict[str, Any]]) -> Any:
    time.sleep(SECONDS_PER_IMAGE * len(images))
    return np.asarray(images[:, 0, 0, 0]).astype(np.float32)


def busy(images: Any, conditions: list[dict[str, Any]]) -> Any:
    # of this thread: what another one takes does not count
    until = time.thread_time() + SECONDS_PER_IMAGE * len(images)
    while time.thread_time() < until:
        np.sqrt(np.asarray(images[0], dtype=np.float32)).sum()
    return np.asarray(images[:, 0, 0, 0]).astype(np.float32)


def in_process(function: Callable[..., Any]) -> Callable[..., Any]:
    def score(images: torch.Tensor, rows: list[dict[str, Any]]) -> torch.Tensor:
        starts = range(0, len(images), BATCH)
        return torch.cat([torch.as_tensor(function(images[at : at + BATCH], rows[at : at + BATCH])) for at in starts])

    return score


def seconds(score: Callable[..., Any], images: torch.Tensor, rows: list[dict[str, Any]]) -> float:
    start = time.perf_counter()
    assert torch.equal(score(images, rows), images[:, 0, 0, 0].float())
    return time.perf_counter() - start


def main() -> None:
    from rewards.client import load_worker_reward

    images = torch.randint(
        0, 256, (IMAGES, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    rows = [{"prompt": f"image {index}"} for index in range(IMAGES)]
    worst = 0.0
    for function in (waiting, busy):
        name = f"{Path(__file__).absolute()}:{function.__name__}"
        one = load_worker_reward(name, {}, {"batch_size": BATCH})
        two = load_worker_reward(name, {}, {"batch_size": BATCH, "number": 2})
        ways = {"in process": in_process(function), "worker": one, "two workers": two}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(ROUNDS + 1):
            for way, score in ways.items():
                taken = seconds(score, images, rows)
                if turn:  # the first round fills caches
                    times[way].append(taken)
        medians = {way: statistics.median(values) for way, values in times.items()}
        paired = [worker / alone for worker, alone in zip(times["worker"], times["in process"], strict=True)]
        ratio = statistics.median(paired)
        worst = max(worst, ratio)
        print(f"{function.__name__:<8} " + ", ".join(f"{way} {value:.3f} s" for way, value in medians.items()))
        print(
            f"         worker {ratio:.3f} of in process (each round: {', '.join(f'{value:.3f}' for value in paired)})"
        )
        print(f"         two workers {medians['worker'] / medians['two workers']:.2f} times as fast as one")
        one.close()
        two.close()
    print(f"limit {LIMIT}: {'kept' if worst <= LIMIT else 'broken'}")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
