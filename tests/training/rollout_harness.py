"""What the tests of rollouts share: a trainer of policy gradient in one call, and GRPO's advantages by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training.harness import BRIGHTNESS, make_trainer

from align.generators import Generator
from align.training.reference import FrozenReference
from align.training.trainer import AlignTrainer
from rewards.base import Reward

PARTS = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 6}


def rollout_trainer(
    folder: Path,
    *,
    generator: Generator | None = None,
    reference: FrozenReference | None = None,
    rewards: Sequence[Reward] = BRIGHTNESS,
    settings: Mapping[str, Any] | None = None,
    **rollout: Any,
) -> AlignTrainer:
    supplies = {"rollout": rollout, "rewards": rewards, "reference": reference}
    return make_trainer(folder, "grpo", generator=generator, supplies=supplies, **(settings or {}))


def joined(batches: list[dict[str, Any]]) -> dict[str, Tensor]:
    names = [name for name in batches[0] if name not in ("num_kept", "row")]
    return {name: torch.cat([batch[name] for batch in batches]) for name in names}


def expected_advantages(values_N: Tensor) -> Tensor:
    """GRPO's, by hand: groups of 3 consecutive rows."""
    values_BG = values_N.double().view(-1, 3)
    centred = values_BG - values_BG.mean(dim=1, keepdim=True)
    return (centred / (values_BG.std(dim=1, keepdim=True) + 1e-4)).flatten().float()
