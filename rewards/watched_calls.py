"""Calls of a reward that note what it reads, writes and returns.

Shapes: N images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rewards.base import Reward, RewardError
from rewards.scoring import score_rewards


class WatchedCalls:
    """Calls a reward as training does, and watches what it reads, writes and returns."""

    def __init__(self, reward: Reward, row: Mapping[str, Any], timeout: float | None) -> None:
        self.row, self.timeout = dict(row), timeout
        self.returned: Any = None
        self.read: set[str] = set()
        self.wrote: set[str] = set()
        self.seconds = 0.0
        function: Any = reward.function

        def watched(images: Tensor, conditions: list[dict[str, Any]]) -> Any:
            before = images.clone()
            rows = [_Row(row, self.read) for row in conditions]
            self.returned = function(images, rows)
            if not torch.equal(before, images):
                self.wrote.add("the images")
            if rows != conditions:
                self.wrote.add("the rows")
            return self.returned

        watched.kind = reward.kind  # type: ignore[attr-defined]
        self._reward = Reward(reward.name, watched)

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 [N].

        Raises:
            RewardError: the call failed for any image.
        """
        scores = score_rewards(
            [self._reward], images, [self.row] * len(images), timeout=self.timeout, group_size=len(images)
        )
        self.seconds = scores.seconds[0]
        return scores.checked().values_NR[:, 0]

    def tried(self, images: Tensor, order: Tensor | None = None) -> Tensor | str:
        """Scores, put back in the order that the images were taken in; or what went wrong."""
        try:
            scores_N = self(images)
        except RewardError as problem:
            return str(problem)
        return scores_N if order is None else torch.empty_like(scores_N).index_copy(0, order, scores_N)

    def each(self, images: Tensor) -> Tensor | str:
        """Scores of images that were given one at a time."""
        try:
            return torch.cat([self(image[None]) for image in images])
        except RewardError as problem:
            return str(problem)


class _Row(dict[str, Any]):
    """A dataset row that notes which of its columns are read."""

    def __init__(self, row: Mapping[str, Any], read: set[str]) -> None:
        super().__init__(row)
        self._read = read

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        return super().get(key, default)
