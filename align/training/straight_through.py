"""The source of the straight-through baseline (STE): real images decoded from the policy's own tokens, with gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.generators.base import Generator
from align.objectives import straight_through
from align.training.actions import ActionSettings, Perceptual, real_pixels
from align.training.inputs import Needs
from align.training.sources import RealData, Step

_GUMBEL = 7  # separates this random stream from others of the same seed


class StraightThrough(RealData):
    """Draws a hard token at every position of a teacher-forced image by Gumbel noise, decodes them, and lets the gradient
    pass as if the softmax had been decoded. Codes are mixed as the tokenizer decodes them (unit-norm for LlamaGen)."""

    supplies = "pixels"
    needs = Needs(("policy_real_BLV",))

    def __init__(self, settings: ActionSettings, perceptual: Perceptual | None, *, seed: int) -> None:
        self.settings = settings
        self.perceptual = perceptual
        self.seed = seed

    def prepare(self, batches: list[dict[str, Any]], step: Step) -> list[dict[str, Any]]:
        size = self.settings.batch_size
        return [
            {**batch, "context": batch["tokens"], "real_pixels": real_pixels(step.policy, batch["tokens"], size)}
            for batch in batches
        ]

    def derive(self, batch: Mapping[str, Any], known: Mapping[str, Any], policy: Generator) -> dict[str, Any]:
        logits_BLV = known["policy_real_BLV"]
        weights_BLV = straight_through(logits_BLV, self._gumbel(batch["position"], logits_BLV))
        decoded = policy.decode_soft(weights_BLV)
        distance_B = torch.zeros(len(decoded), device=decoded.device)
        if self.perceptual is not None:
            distance_B = self.perceptual.distance(decoded, batch["real_pixels"])
        return {"decoded": decoded, "perceptual": distance_B}

    def _gumbel(self, position_B: Tensor, like_BLV: Tensor) -> Tensor:
        streams = [np.random.default_rng([_GUMBEL, self.seed, int(position)]) for position in position_B]
        noise = np.stack([stream.gumbel(size=tuple(like_BLV.shape[1:])) for stream in streams])
        return torch.from_numpy(noise).to(like_BLV)
