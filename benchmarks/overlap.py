"""What is gained by scoring while the next micro-batch is sampled: rollouts of the shipped generator, a reward in a worker.

    python benchmarks/overlap.py

The reward waits 5 ms an image, as for a GPU or a server. Both ways draw the same images in the same micro-batches and get the
same scores; one scores each before it samples the next. Medians of one run; the ratio is that of rounds next to each other.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

import align
from rewards.background import BackgroundScorer
from rewards.base import Reward
from rewards.scoring import RewardScores, score_rewards

IMAGES, MICRO_BATCH = 128, 32
SECONDS_PER_IMAGE = 0.005
ROUNDS = 5


def waiting(images: Any, conditions: list[dict[str, Any]]) -> Any:
    time.sleep(SECONDS_PER_IMAGE * len(images))
    return images.float().mean(dim=(1, 2, 3))


def main() -> None:
    from rewards.client import load_worker_reward

    generator = align.load_generator("mnist-llamagen").eval()
    worker = load_worker_reward(f"{Path(__file__).absolute()}:waiting", {}, {"batch_size": MICRO_BATCH})
    rewards = [Reward("waiting", worker)]
    labels = [index % 10 for index in range(MICRO_BATCH)]
    rows = [{"label": label} for label in labels]
    hidden, exposed = [], []

    def draw(first: int) -> torch.Tensor:
        index_B = torch.arange(first, first + MICRO_BATCH)
        rollout = align.sample(generator, generator.encode_condition(labels), align.SamplingConfig(), index_B=index_B)
        return generator.decode(rollout.tokens_BL)

    def in_turn() -> RewardScores:
        starts = range(0, IMAGES, MICRO_BATCH)
        return RewardScores.cat([score_rewards(rewards, draw(first), rows, timeout=60.0) for first in starts])

    def overlapped() -> RewardScores:
        with BackgroundScorer(rewards, timeout=60.0) as scorer:
            for first in range(0, IMAGES, MICRO_BATCH):
                scorer.submit(draw(first), rows)
            scores = scorer.collect()
        hidden.append(scorer.hidden)
        exposed.append(scorer.exposed)
        return scores

    times: dict[str, list[float]] = {"in turn": [], "overlapped": []}
    for turn in range(ROUNDS + 1):
        found = []
        for way, collect in (("in turn", in_turn), ("overlapped", overlapped)):
            start = time.perf_counter()
            found.append(collect().values_NR)
            if turn:  # the first round fills caches
                times[way].append(time.perf_counter() - start)
        assert torch.equal(*found)
    worker.close()
    paired = [one / other for one, other in zip(times["in turn"], times["overlapped"], strict=True)]
    print(", ".join(f"{way} {statistics.median(values):.3f} s" for way, values in times.items()))
    print(
        f"{statistics.median(paired):.2f} times as fast (each round: {', '.join(f'{ratio:.2f}' for ratio in paired)})"
    )
    print(f"of the scoring {statistics.median(hidden):.3f} s are hidden, {statistics.median(exposed):.3f} s exposed")


if __name__ == "__main__":
    main()
