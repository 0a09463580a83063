"""Scoring while the caller goes on: finished micro-batches are scored while the next ones are sampled."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rewards.base import Reward
from rewards.scoring import RewardScores, score_rewards
from rewards.threads import Lane


class BackgroundScorer:
    """Scores finished micro-batches while the next ones are sampled, in their order; one for each collection.

    Rewards that run elsewhere (those with an attribute `remote` that is true: workers, servers) are waited for side by
    side; those of this process come one after another. A context that ends what it has begun. Of the seconds that scoring took, `exposed` are those that
    `collect` waited for, `hidden` the others.
    """

    def __init__(self, rewards: Sequence[Reward], *, timeout: float | None, group_size: int | None = None) -> None:
        self.rewards = rewards
        self.timeout = timeout
        self.group_size = group_size
        self.hidden = self.exposed = 0.0
        own = [reward for reward in rewards if not getattr(reward.function, "remote", False)]
        lanes = [own, *([reward] for reward in rewards if reward not in own)]
        self._lanes = [_RewardLane(lane) for lane in lanes if lane]

    def __enter__(self) -> BackgroundScorer:
        return self

    def __exit__(self, *_: object) -> None:
        """What has not begun is not scored any more."""
        for lane in self._lanes:
            for future in lane.running:
                future.cancel()
            lane.calls.close()

    def submit(self, images: Tensor, conditions: Sequence[Mapping[str, Any]]) -> None:
        """Begin to score uint8 images [B, H, W, 3] with their rows."""
        keywords: dict[str, Any] = {"timeout": self.timeout, "group_size": self.group_size}
        device, images = images.device if images.is_cuda else None, images.cpu()
        for lane in self._lanes:
            call = partial(_on_device, device, lane.rewards, images, conditions, keywords)
            lane.running.append(lane.calls.submit(call))

    def collect(self) -> RewardScores:
        """The scores of everything that was submitted."""
        clock = time.monotonic()
        found = [RewardScores.cat([running.result() for running in lane.running]) for lane in self._lanes]
        self.exposed = time.monotonic() - clock
        self.hidden = max(0.0, max(sum(scores.seconds) for scores in found) - self.exposed)
        return _side_by_side(found, [reward.name for reward in self.rewards])


class _RewardLane:
    """Rewards that are called one after another."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self.rewards = rewards
        self.calls = Lane()
        self.running: list[Future[RewardScores]] = []


def _side_by_side(parts: Sequence[RewardScores], names: Sequence[str]) -> RewardScores:
    """Of several rewards on the same images, in the order of `names`."""
    found = [name for part in parts for name in part.names]
    order = [found.index(name) for name in names]
    errors = {name: error for part in parts for name, error in part.errors.items()}
    seconds = [second for part in parts for second in part.seconds]
    return RewardScores(
        torch.cat([part.values_NR for part in parts], dim=1)[:, order],
        torch.cat([part.valid_NR for part in parts], dim=1)[:, order],
        tuple(names),
        {name: features for part in parts for name, features in part.features.items()},
        {name: errors[name] for name in names if name in errors},
        tuple(seconds[index] for index in order),
    )


def _on_device(
    device: torch.device | None,
    rewards: Sequence[Reward],
    images: Tensor,
    conditions: Sequence[Mapping[str, Any]],
    keywords: Mapping[str, Any],
) -> RewardScores:
    if device is not None:
        torch.cuda.set_device(device)  # the current GPU is a setting of a thread; rewards that hold a model look at it
    return score_rewards(rewards, images, conditions, **keywords)
