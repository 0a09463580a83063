"""The order in which conditions are asked for rollouts, as a pure function of (seed, position)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

_PROMPTS = 4  # separates this random stream from others of the same seed


class PromptStream(Dataset[dict[str, Any]]):
    """Conditions in consecutive groups of `num_generations` equal rows, reshuffled each pass.

    With `num_iterations` above 1 the rows of a step come that many times before the next ones, so that several updates
    see the same rollouts; `position` then names the rollout, not the row.

    Each item: label (the raw condition), dropped [] bool (never), position [].
    """

    def __init__(
        self,
        prompts: Sequence[Any],
        *,
        length: int,
        seed: int,
        num_generations: int,
        rows_per_step: int,
        num_iterations: int = 1,
    ) -> None:
        if not len(prompts):
            raise ValueError("there are no prompts to draw rollouts for; check data.prompts")
        if num_generations < 1 or num_iterations < 1:
            raise ValueError(
                f"num_generations is {num_generations} and num_iterations is {num_iterations}; both must be at least 1"
            )
        if rows_per_step % num_generations:
            raise ValueError(
                f"a step of {rows_per_step} rows does not divide into groups of num_generations={num_generations}; change "
                "per_device_train_batch_size or gradient_accumulation_steps, so that their product is a multiple of it"
            )
        self.prompts = list(prompts)
        self.length = length
        self.seed = seed
        self.num_generations = num_generations
        self.rows_per_step = rows_per_step
        self.num_iterations = num_iterations
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return self.length

    @property
    def fingerprint(self) -> str:
        """Identity of everything that the stream's items depend on."""
        recipe = (self.prompts, self.seed, self.num_generations, self.rows_per_step, self.num_iterations, self.length)
        return hashlib.sha256(repr(recipe).encode()).hexdigest()

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([_PROMPTS, self.seed, epoch]).permutation(len(self.prompts))

    def __getitem__(self, row: int) -> dict[str, Any]:
        step, offset = divmod(row, self.rows_per_step)
        position = step // self.num_iterations * self.rows_per_step + offset
        epoch, order = divmod(position // self.num_generations, len(self.prompts))
        return {
            "label": self.prompts[self._order(epoch)[order]],
            "dropped": torch.tensor(False),
            "position": torch.tensor(position),
        }
