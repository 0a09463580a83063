"""Training on captions and bits: Infinity on real images, and on its own under a reward."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_infinity
from training.harness import BRIGHTNESS, OBJECTIVES, SETTINGS, logs, weights

from align import score
from align.data import Codes, PromptStream, TrainingStream
from align.generators import Infinity
from align.training.inputs import Scoring
from align.training.reference import FrozenReference
from align.training.rollouts import Rollouts, RolloutSettings
from align.training.sources import RealData
from align.types import SamplingConfig
from recipes.supplies import Supplies
from recipes.train import train_generator

PROMPTS = ["a red cube", "two balls", "green", "a blue cone on a box"]


def run(folder: Path, generator: Infinity, objective: str, supplies: Supplies, **changes: Any) -> None:
    train_generator(
        generator,
        OBJECTIVES[objective],
        supplies,
        {**SETTINGS, **changes},
        folder=folder,
        resume=False,
        description="test",
        check_first=True,
        alarms=None,
    )


def test_cca_raises_images_under_their_captions_over_others(tmp_path: Path) -> None:
    generator = tiny_infinity()
    before, base = weights(generator), copy.deepcopy(generator)
    rng = torch.Generator().manual_seed(5)
    captions: Sequence[str] = PROMPTS * 3
    codes = Codes(torch.randint(2, (12, generator.layout.length), generator=rng), captions, "tokenizer")  # type: ignore[arg-type]
    stream = TrainingStream(codes, length=24, seed=1, label_drop=0.3)
    run(tmp_path, generator, "cca", Supplies(stream, RealData(), FrozenReference(generator), []))
    moved = {name for name, tensor in generator.state_dict().items() if not torch.equal(tensor, before[name])}
    # all of it, the null caption included, but for the buffers
    assert {name for name in before if name not in moved} == {name for name in before if "zero_k_bias" in name}
    gains = []
    with torch.no_grad():
        for shift in (0, 1):  # their own captions, and others'
            condition = generator.encode_condition([*captions[shift:], *captions[:shift]])
            after, first = (
                score(each.eval(), codes.tokens_NL, condition, SamplingConfig()) for each in (generator, base)
            )
            gains.append((after - first).sum(dim=1).mean().item())
    assert gains[0] > gains[1] + 1


def test_grpo_trains_under_the_distribution_that_it_draws_from(tmp_path: Path) -> None:
    generator = tiny_infinity()
    sampling = SamplingConfig(guidance_scale=2.0, temperature=0.8, seed=3)
    rollouts = RolloutSettings(num_generations=3, sampling=sampling, scoring=Scoring(sampling))
    stream = PromptStream(PROMPTS, length=24, seed=1, num_generations=3, rows_per_step=6)
    run(tmp_path, generator, "grpo", Supplies(stream, Rollouts(rollouts, BRIGHTNESS, None), None, []))
    for record in logs(tmp_path):
        assert record["ratio_mean"] == record["ratio_max"] == 1
        assert record["mismatch_max"] < 1e-5
        assert record["grad_norm"] > 0
