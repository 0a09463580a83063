"""VA-π's half before the update: tokens drawn at every position of a teacher-forced image, decoded and compared to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.generators.base import Generator
from align.objectives import group_advantages, noised_context, pixel_reward
from align.sampling import draw
from align.training.inputs import conditions
from align.training.sources import RealData, Step, chunks
from align.types import Average

_ACTIONS, _LATE_DROP = 5, 8  # separate these random streams from others of the same seed
# float [N, 3, H, W] in [-1, 1], twice -> distance [N]
Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Perceptual:
    """A perceptual distance with the name that its metric carries (lpips, or a domain classifier's features)."""

    name: str
    distance: Distance


@dataclass(frozen=True)
class ActionSettings:
    """How actions are drawn and rewarded (arXiv 2512.19680; formulas in `align.objectives.va_pi`).

    num_generations: draws per image, G; they read one forward.
    noise: probability that a context token is replaced by a uniformly drawn one, ξ; one mask for all draws of an image.
    mse_weight, perceptual_weight: reward = -(mse_weight MSE + perceptual_weight distance), pixels in [-1, 1].
    advantage_clip: bound on the normalised advantages.
    label_drop_in_update: share of rows whose condition the update drops although their actions were drawn with it, as
        the released code has it for LlamaGen: the ratio of such a row compares two conditions.
    """

    num_generations: int = 8
    noise: float = 0.0
    mse_weight: float = 1.0
    perceptual_weight: float = 1.0
    advantage_clip: float | None = 5.0
    batch_size: int = 256
    label_drop_in_update: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_drop_in_update <= 1:
            raise ValueError(f"label_drop_in_update is {self.label_drop_in_update}; it is a probability, in [0, 1]")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"actions.noise is {self.noise}; it is a probability, in [0, 1]")
        if self.num_generations < 2:
            raise ValueError(
                f"actions.num_generations is {self.num_generations}; advantages compare draws of one image, so at least 2"
            )


class Actions(RealData):
    """Draws, decodes and rewards actions for the real images of a step."""

    supplies = "actions"

    def __init__(self, settings: ActionSettings, perceptual: Perceptual | None, *, seed: int) -> None:
        if settings.perceptual_weight and perceptual is None:
            raise ValueError(
                "a perceptual weight without a perceptual distance; set actions.perceptual, or actions.perceptual_weight=0"
            )
        self.settings = settings
        self.perceptual = perceptual
        self.seed = seed

    def prepare(self, batches: list[dict[str, Any]], step: Step) -> list[dict[str, Any]]:
        return [self._complete(batch, step) for batch in batches]

    def _complete(self, batch: dict[str, Any], step: Step) -> dict[str, Any]:
        settings, policy, tokens_BL = self.settings, step.policy, batch["tokens"]
        noise_B2L, uniforms_BGL = self._random(batch["position"], tokens_BL.shape[1])
        random_BL = (noise_B2L[:, 1] * policy.vocab_size).long().to(tokens_BL.device)
        context_BL = noised_context(tokens_BL, noise_B2L[:, 0].to(tokens_BL.device), random_BL, xi=settings.noise)
        given, _ = conditions(policy, batch)
        with torch.no_grad():
            logprobs_BLV = policy(tokens_BL, given["own"], context_BL=context_BL).log_softmax(dim=-1)
        # each of the G draws reads the same logits
        actions = [draw(logprobs_BLV, uniforms.to(tokens_BL.device)) for uniforms in uniforms_BGL.unbind(dim=1)]
        actions_BGL = torch.stack(actions, dim=1)
        reward_BG = self._reward(policy, tokens_BL, actions_BGL, step)
        advantages = group_advantages(
            reward_BG.reshape(-1, 1).cpu(), num_generations=settings.num_generations, clip=settings.advantage_clip
        )
        step.log(
            {
                "reward/reconstruction": Average.of(reward_BG),
                **advantages.metrics,
            }
        )
        return {
            **batch,
            "context": context_BL,
            "actions": actions_BGL,
            "advantages": advantages.advantages_N.view_as(reward_BG).to(tokens_BL.device),
            **self._dropped_later(batch, logprobs_BLV, actions_BGL),
        }

    def _dropped_later(self, batch: dict[str, Any], logprobs_BLV: Tensor, actions_BGL: Tensor) -> dict[str, Tensor]:
        share = self.settings.label_drop_in_update
        if not share:
            return {}
        drawn = [np.random.default_rng([_LATE_DROP, self.seed, int(p)]).random() < share for p in batch["position"]]
        old_BGL = logprobs_BLV.gather(-1, actions_BGL.transpose(1, 2)).transpose(1, 2)
        return {"dropped": batch["dropped"] | torch.tensor(drawn, device=batch["dropped"].device), "old": old_BGL}

    def _random(self, position_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Uniforms for the context [B, 2, L] and for the draws [B, G, L], a function of seed and position alone."""
        streams = [np.random.default_rng([_ACTIONS, self.seed, int(position)]) for position in position_B]
        noise = torch.from_numpy(np.stack([stream.random((2, length)) for stream in streams]))
        groups = self.settings.num_generations
        return noise, torch.from_numpy(np.stack([stream.random((groups, length)) for stream in streams]))

    def _reward(self, policy: Generator, tokens_BL: Tensor, actions_BGL: Tensor, step: Step) -> Tensor:
        settings, groups = self.settings, actions_BGL.shape[1]
        real_BCHW = real_pixels(policy, tokens_BL, settings.batch_size)
        drawn_NCHW = real_pixels(policy, actions_BGL.flatten(0, 1), settings.batch_size)
        distance_N = torch.zeros(len(drawn_NCHW), device=drawn_NCHW.device)
        if self.perceptual is not None and settings.perceptual_weight:
            real_NCHW = real_BCHW.repeat_interleave(groups, dim=0)
            with torch.no_grad():
                rows = chunks(len(drawn_NCHW), settings.batch_size)
                distance_N = torch.cat([self.perceptual.distance(drawn_NCHW[r], real_NCHW[r]) for r in rows])
            step.log({f"distance/{self.perceptual.name}": Average.of(distance_N)})
        return pixel_reward(
            drawn_NCHW.unflatten(0, (-1, groups)),
            real_BCHW,
            distance_N.view(-1, groups),
            mse_weight=settings.mse_weight,
            perceptual_weight=settings.perceptual_weight,
        )


def real_pixels(generator: Generator, tokens_BL: Tensor, batch_size: int) -> Tensor:
    """Decoded images, float [B, 3, H, W] in [-1, 1]."""
    images = torch.cat([generator.decode(tokens_BL[rows]) for rows in chunks(len(tokens_BL), batch_size)])
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1
