"""Rewards in policy gradient: what does not apply or fails is left out, groups and whole steps are scored as such."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training.harness import BRIGHTNESS, Novelty, brightness, darkness, means, place, step_batches
from training.rollout_harness import PARTS, expected_advantages, joined, rollout_trainer

from align.training.rollouts import Rollouts, RolloutSettings
from rewards.base import PartialScores, Reward, RewardError

# --- rewards that do not apply, or fail


def test_a_reward_that_does_not_apply_is_left_out(tmp_path: Path) -> None:
    """Of the first group one image has no reward; of the second, only one has."""

    def sometimes(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        applies = torch.tensor([True, False, True, False, False, True])
        return brightness(images, conditions).masked_fill(~applies, torch.nan)

    trainer = rollout_trainer(tmp_path, rewards=[Reward("sometimes", sometimes)])
    (batch,) = step_batches(trainer)
    assert batch["kept"].tolist() == [True, False, True, False, False, False]
    assert batch["num_kept"] == 2
    assert torch.equal(batch["advantages"][:, 0] != 0, batch["kept"])
    assert batch["advantages"][:3].sum().abs() < 1e-5
    values_N = brightness(trainer.generator.decode(batch["rollout"]), [])
    logged = means(trainer.pending)
    assert logged["not_applicable/sometimes"] == 0.5
    assert logged["reward/sometimes"] == pytest.approx(values_N[[0, 2, 5]].mean().item(), rel=1e-5)


def raising(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
    raise KeyError("weights")


def too_few(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
    return torch.zeros(len(images) - 1)


def infinite(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
    return torch.full((len(images),), torch.inf)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raising, "reward 'bad' raised KeyError: 'weights'"),
        (too_few, r"reward 'bad' returned shape \[5\]; a reward returns 6 numbers"),
        (infinite, "reward 'bad' is infinite for 6 of 6 images"),
    ],
)
def test_a_reward_that_fails_stops_the_run(tmp_path: Path, function: Callable[..., Tensor], message: str) -> None:
    trainer = rollout_trainer(tmp_path, rewards=[Reward("bad", function, 0.0), *BRIGHTNESS])
    with pytest.raises(RewardError, match=message):
        step_batches(trainer)


def failing_at(*rows: int) -> Callable[..., PartialScores]:
    """Brightness, of which some images of the six could not be scored."""

    def function(images: Tensor, conditions: list[dict[str, Any]]) -> PartialScores:
        valid = torch.tensor([row not in rows for row in range(6)])
        return PartialScores(brightness(images, conditions).masked_fill(~valid, 9.0), valid, "no reply")

    return function


def test_failed_scores_are_masked(tmp_path: Path) -> None:
    """Of the first group one image has no score, and its peers are compared without it; of the second only one has."""
    rewards = [Reward("judge", failing_at(1, 3, 4)), Reward("darkness", darkness, 0.5)]
    trainer = rollout_trainer(tmp_path, rewards=rewards, max_failed=0.6)
    (batch,) = step_batches(trainer)
    assert batch["kept"].tolist() == [True, False, True, False, False, False]
    assert torch.equal(batch["advantages"][:, 0] != 0, batch["kept"])
    images = trainer.generator.decode(batch["rollout"])[[0, 2]]
    values = (brightness(images, []) + 0.5 * darkness(images, [])).double()
    expected = (values - values.mean()) / (values.std() + 1e-4)
    torch.testing.assert_close(batch["advantages"][[0, 2], 0], expected.float(), atol=1e-3, rtol=1e-3)
    logged = means(trainer.pending)
    assert logged["failed/judge"] == 0.5
    assert logged["failed/darkness"] == logged["not_applicable/judge"] == 0
    assert logged["reward/judge"] < 1


def test_held_out_rewards_that_fail_mask_nothing(tmp_path: Path) -> None:
    rewards = [*BRIGHTNESS, Reward("judge", failing_at(1, 3, 4), 0.0)]
    (batch,) = step_batches(rollout_trainer(tmp_path, rewards=rewards, max_failed=0.6))
    assert torch.equal(batch["advantages"], step_batches(rollout_trainer(tmp_path))[0]["advantages"])


def test_many_failed_scores_stop_the_run(tmp_path: Path) -> None:
    trainer = rollout_trainer(tmp_path, rewards=[Reward("judge", failing_at(1, 3, 4))], max_failed=0.4)
    with pytest.raises(
        RewardError, match="3 of the last 6 scores of reward 'judge' failed.*reward 'judge' failed: no reply"
    ):
        step_batches(trainer)


def test_the_seconds_of_scoring_are_told(tmp_path: Path) -> None:
    step_batches(trainer := rollout_trainer(tmp_path, batch_size=3))
    logged = means(trainer.pending)
    assert logged["seconds_scoring_hidden"] + logged["seconds_scoring_exposed"] <= logged["seconds_collecting"]
    assert logged["seconds_scoring_exposed"] > 0


# --- rewards of groups and of whole steps


@pytest.mark.parametrize("settings", [{}, PARTS], ids=["one-batch", "micro-batches-of-one"])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_groupwise_reward_ranks_within_its_prompt(tmp_path: Path, settings: dict[str, int], batch_size: int) -> None:
    trainer = rollout_trainer(tmp_path, rewards=[Reward("place", place)], settings=settings, batch_size=batch_size)
    found = joined(step_batches(trainer))
    values_BG = brightness(trainer.generator.decode(found["rollout"]), []).view(-1, 3)
    expected = expected_advantages(values_BG.argsort(dim=1).argsort(dim=1).flatten())
    torch.testing.assert_close(found["advantages"][:, 0], expected)


def test_a_distribution_reward_looks_at_the_whole_step_and_moves(tmp_path: Path) -> None:
    novelty = Novelty()
    trainer = rollout_trainer(tmp_path, rewards=[Reward("novelty", novelty, 2.0)], settings=PARTS, batch_size=2)
    mean = torch.zeros(())
    for step in range(2):
        found = joined(step_batches(trainer, step))
        values_N = brightness(trainer.generator.decode(found["rollout"]), [])
        expected = expected_advantages((values_N - mean).abs() + (values_N - values_N.mean()).abs())
        torch.testing.assert_close(found["advantages"][:, 0], expected, atol=1e-3, rtol=1e-3)
        mean = 0.5 * mean + 0.5 * values_N.mean()
    assert novelty.mean.item() == pytest.approx(mean.item())
    trainer.source.load_state_dict({})
    assert novelty.mean == 0


def test_a_distribution_reward_does_without_images_that_it_could_not_describe(tmp_path: Path) -> None:
    class Picky(Novelty):
        def describe(self, images: Tensor, conditions: Sequence[Mapping[str, Any]]) -> Tensor:
            if len(seen := self.__dict__.setdefault("seen", [])) < 1:
                seen.append(0)
                raise OSError("no extractor yet")
            return super().describe(images, conditions)

    rewards = [Reward("picky", Picky())]
    trainer = rollout_trainer(tmp_path, rewards=rewards, batch_size=3, max_failed=0.6)
    (batch,) = step_batches(trainer)
    assert batch["kept"].tolist() == [False] * 3 + [True] * 3
    values_N = brightness(trainer.generator.decode(batch["rollout"]), [])[3:]
    assert means(trainer.pending)["reward/picky"] == pytest.approx(
        (values_N + (values_N - values_N.mean()).abs()).mean().item(), rel=1e-5
    )


def test_a_run_starts_distribution_rewards_anew() -> None:
    novelty = Novelty()
    novelty.mean += 1
    Rollouts(RolloutSettings(3), [Reward("novelty", novelty)])
    assert novelty.mean == 0


def test_a_reward_that_hangs_is_given_up(tmp_path: Path) -> None:
    release = threading.Event()

    def hanging(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        release.wait(10)
        return brightness(images, conditions)

    trainer = rollout_trainer(tmp_path, rewards=[Reward("slow", hanging)], timeout=0.05)
    try:
        with pytest.raises(RewardError, match="reward 'slow' gave no answer for 6 images within 0.05 seconds"):
            step_batches(trainer)
    finally:
        release.set()
