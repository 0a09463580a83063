"""Collect → score → advantage: each rollout's own advantage, by position, under the distribution that is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var
from torch import Tensor
from training.harness import BRIGHTNESS, Novelty, brightness, darkness, make_trainer, means, place, step_batches

from align import sample, score
from align.generators import Generator
from align.objectives import group_advantages
from align.training.inputs import Scoring
from align.training.reference import FrozenReference
from align.training.rollouts import Rollouts, RolloutSettings
from align.training.trainer import AlignTrainer
from align.types import SamplingConfig
from rewards.base import PartialScores, Reward, RewardError

FAMILIES: dict[str, Callable[..., Any]] = {"llamagen": tiny_llamagen, "var": tiny_var}
GUIDED = SamplingConfig(guidance_scale=2.5, seed=3)
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


def moved(generator: Generator, by: float = 0.1) -> Generator:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=rng))
    return generator


# --- which rollout gets which advantage


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, PARTS], ids=["one-batch", "micro-batches-of-one"])
def test_each_rollout_gets_the_advantage_of_its_own_image(
    tmp_path: Path, family: str, settings: dict[str, int]
) -> None:
    policy = FAMILIES[family]()
    trainer = rollout_trainer(tmp_path, generator=policy, settings=settings, sampling=SamplingConfig(seed=3))
    batches = step_batches(trainer, 1)
    found = joined(batches)
    condition = policy.encode_condition(found["label"])
    assert (found["label"].view(-1, 3) == found["label"][::3, None]).all()  # groups of one condition
    drawn = sample(policy, condition, SamplingConfig(seed=3), index_B=found["position"])
    assert torch.equal(found["rollout"], drawn.tokens_BL)
    torch.testing.assert_close(found["behaviour"], drawn.logprobs_BL, atol=1e-5, rtol=1e-5)
    values_N = brightness(policy.decode(found["rollout"]), [])
    expected = expected_advantages(values_N)
    assert expected.abs().min() > 0.01
    torch.testing.assert_close(
        found["advantages"], expected[:, None].expand(-1, policy.layout.length), atol=1e-3, rtol=1e-3
    )
    assert found["kept"].all()
    assert all(batch["num_kept"] == 6 for batch in batches)


def test_rollouts_do_not_depend_on_how_many_are_drawn_at_once(tmp_path: Path) -> None:
    one, many = (joined(step_batches(rollout_trainer(tmp_path, batch_size=size))) for size in (4, 64))
    assert torch.equal(one["rollout"], many["rollout"])
    torch.testing.assert_close(one["advantages"], many["advantages"])


def test_a_reward_sees_images_and_the_rows_that_they_are_of(tmp_path: Path) -> None:
    seen = {}

    def look(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        seen["images"], seen["labels"] = images, [row["label"] for row in conditions]
        return brightness(images, conditions)

    trainer = rollout_trainer(tmp_path, rewards=[Reward("look", look)])
    (batch,) = step_batches(trainer)
    assert seen["labels"] == batch["label"].tolist()
    assert all(isinstance(label, int) for label in seen["labels"])
    assert torch.equal(seen["images"], trainer.generator.decode(batch["rollout"]))
    assert seen["images"].dtype == torch.uint8


def test_rewards_are_summed_by_weight(tmp_path: Path) -> None:
    def label(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        return images.float().std(dim=(1, 2, 3))

    rewards = [Reward("brightness", brightness, 2.0), Reward("contrast", label, -0.5)]
    trainer = rollout_trainer(tmp_path, rewards=rewards)
    (batch,) = step_batches(trainer)
    images = trainer.generator.decode(batch["rollout"])
    values_N = 2 * brightness(images, []) - 0.5 * label(images, [])
    torch.testing.assert_close(batch["advantages"][:, 0], expected_advantages(values_N), atol=1e-3, rtol=1e-3)
    assert {"reward/brightness", "reward/contrast"} <= trainer.pending.keys()


def test_rewards_of_weight_zero_are_logged_and_not_trained(tmp_path: Path) -> None:
    alone = rollout_trainer(tmp_path)
    watched = rollout_trainer(tmp_path, rewards=[*BRIGHTNESS, Reward("darkness", darkness, 0.0)])
    assert torch.equal(step_batches(alone)[0]["advantages"], step_batches(watched)[0]["advantages"])
    logged = means(watched.pending)
    assert logged["reward/darkness"] == pytest.approx(1 - logged["reward/brightness"])
    assert "reward/darkness" not in alone.pending


@pytest.mark.parametrize(
    "keywords", [{"estimator": "rloo"}, {"scale_rewards": "none"}, {"estimator": "reinforce_pp"}, {"clip": 0.3}]
)
def test_the_settings_of_advantages_reach_them(tmp_path: Path, keywords: dict[str, Any]) -> None:
    (batch,) = step_batches(trainer := rollout_trainer(tmp_path, advantages=keywords))
    values_N1 = brightness(trainer.generator.decode(batch["rollout"]), [])[:, None]
    expected = group_advantages(values_N1, num_generations=3, **keywords).advantages_N
    torch.testing.assert_close(batch["advantages"][:, 0], expected, atol=1e-4, rtol=1e-4)
    (default,) = step_batches(rollout_trainer(tmp_path))
    assert not torch.allclose(batch["advantages"], default["advantages"])


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


def test_equal_rewards_carry_no_signal(tmp_path: Path) -> None:
    def constant(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        return torch.ones(len(images))

    trainer = rollout_trainer(tmp_path, rewards=[Reward("constant", constant)])
    (batch,) = step_batches(trainer)
    assert not batch["kept"].any()
    assert (batch["advantages"] == 0).all()
    assert means(trainer.pending)["zero_variance"] == 1


# --- the distribution that rollouts are drawn from, and the one they are trained under


@pytest.mark.parametrize("family", FAMILIES)
def test_guided_rollouts_are_guided_samples_of_the_policy(tmp_path: Path, family: str) -> None:
    policy = FAMILIES[family]()
    trainer = rollout_trainer(tmp_path, generator=policy, sampling=GUIDED, scoring=Scoring(GUIDED))
    (batch,) = step_batches(trainer)
    drawn = sample(policy, policy.encode_condition(batch["label"]), GUIDED, index_B=batch["position"])
    assert torch.equal(batch["rollout"], drawn.tokens_BL)
    assert not torch.equal(step_batches(rollout_trainer(tmp_path))[0]["rollout"], batch["rollout"])
    # the policy scores them as it drew them: training and sampling agree
    with torch.no_grad():
        known = trainer.inputs(policy, batch)
    torch.testing.assert_close(known["policy_rollout_BL"], batch["behaviour"], atol=2e-5, rtol=1e-5)
    assert "old" not in batch
    assert torch.equal(known["old_rollout_BL"], known["policy_rollout_BL"])


def test_the_guidance_free_reward_is_probed_beside_a_guided_one(tmp_path: Path) -> None:
    trainer = rollout_trainer(tmp_path, sampling=GUIDED, scoring=Scoring(GUIDED), probe_every=2)
    policy = trainer.generator
    (batch,) = step_batches(trainer)
    plain = sample(
        policy, policy.encode_condition(batch["label"]), SamplingConfig(seed=3), index_B=batch["position"]
    ).tokens_BL
    logged = means(trainer.pending)
    assert logged["reward_unguided/brightness"] == pytest.approx(brightness(policy.decode(plain), []).mean().item())
    assert logged["reward_unguided/brightness"] != pytest.approx(logged["reward/brightness"])
    for index, probed in ((1, False), (2, True)):
        trainer.pending = {}
        step_batches(trainer, index)
        assert ("reward_unguided/brightness" in trainer.pending) == probed
    unguided = rollout_trainer(tmp_path)
    step_batches(unguided)
    assert "reward_unguided/brightness" not in unguided.pending


def test_another_distribution_is_trained_under_with_importance_weights_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are drawn from .* but trained under .*rollout.importance_cap"):
        RolloutSettings(3, sampling=GUIDED)
    trainer = rollout_trainer(tmp_path, sampling=GUIDED, importance_cap=1.2)
    policy = trainer.generator
    (batch,) = step_batches(trainer)
    with torch.no_grad():
        plain_BL = score(policy, batch["rollout"], policy.encode_condition(batch["label"]), SamplingConfig())
    torch.testing.assert_close(batch["old"], plain_BL, atol=1e-5, rtol=1e-5)
    weights_BL = (plain_BL - batch["behaviour"]).exp().clamp(max=1.2)
    assert 0.05 < (weights_BL == 1.2).float().mean() < 0.95
    advantages_N = expected_advantages(brightness(policy.decode(batch["rollout"]), []))
    torch.testing.assert_close(batch["advantages"], advantages_N[:, None] * weights_BL, atol=2e-3, rtol=2e-3)
    logged = means(trainer.pending)
    assert logged["importance_weight"] == pytest.approx(weights_BL.mean().item(), rel=1e-4)
    assert logged["importance_capped"] == pytest.approx((weights_BL == 1.2).float().mean().item())


def test_seeds_are_no_other_distribution() -> None:
    settings = RolloutSettings(3, sampling=SamplingConfig(seed=7), scoring=Scoring(SamplingConfig(seed=0)))
    assert settings.on_policy
    for name, value in {"temperature": 0.9, "top_k": 3, "top_p": 0.5, "guided_blocks": 1}.items():
        other = replace(SamplingConfig(), **{name: value})
        assert not RolloutSettings(3, sampling=other, importance_cap=2.0).on_policy


def test_duplicates_are_counted(tmp_path: Path) -> None:
    greedy = SamplingConfig(top_k=1)
    trainer = rollout_trainer(tmp_path, sampling=greedy, scoring=Scoring(greedy))
    (batch,) = step_batches(trainer)
    different = {tuple(row) for row in batch["rollout"].tolist()}
    assert len(different) == 2  # one for each condition
    assert means(trainer.pending)["duplicates"] == pytest.approx(4 / 6)
    varied = rollout_trainer(tmp_path)
    step_batches(varied)
    assert means(varied.pending)["duplicates"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": SamplingConfig(temperature=0)}, "temperature 0 are all the same"),
        ({"importance_cap": 0.0}, "importance_cap is 0.0; it must be above 0"),
        (
            {"kl_in_reward": 0.1, "advantages": {"multi_objective_aggregation": "normalize_then_sum"}},
            "would standardise the KL charge",
        ),
    ],
)
def test_settings_that_teach_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutSettings(3, **settings)


def test_rollouts_need_a_reward() -> None:
    with pytest.raises(ValueError, match="policy gradient needs a reward; choose reward=classifier"):
        Rollouts(RolloutSettings(3), [])


# --- KL in the reward


def test_kl_is_charged_to_the_reward(tmp_path: Path) -> None:
    """In nats of the whole image, by the k1 estimate, under the distribution without its filters."""
    config = SamplingConfig(guidance_scale=1.5, temperature=0.8, top_k=7, seed=3)
    reference = FrozenReference(tiny_llamagen())
    policy = moved(tiny_llamagen())
    settings = {"sampling": config, "scoring": Scoring(config)}
    trainer = rollout_trainer(tmp_path, generator=policy, reference=reference, kl_in_reward=0.02, **settings)
    (batch,) = step_batches(trainer)
    condition = policy.encode_condition(batch["label"])
    with torch.no_grad():
        logprobs = [
            score(model, batch["rollout"], condition, replace(config, top_k=0))
            for model in (policy, reference.generator)
        ]
    kl_N = (logprobs[0] - logprobs[1]).sum(dim=1)
    assert kl_N.isfinite().all()
    values_N = brightness(policy.decode(batch["rollout"]), [])
    expected = expected_advantages(values_N - 0.02 * kl_N)
    torch.testing.assert_close(batch["advantages"][:, 0], expected, atol=2e-3, rtol=2e-3)
    assert not torch.allclose(expected, expected_advantages(values_N), atol=0.05)
    assert means(trainer.pending)["kl_charged"] == pytest.approx(kl_N.mean().item(), rel=1e-3)


def test_nothing_is_charged_at_the_start(tmp_path: Path) -> None:
    charged = rollout_trainer(tmp_path, reference=FrozenReference(tiny_llamagen()), kl_in_reward=5.0)
    (batch,) = step_batches(charged)
    (free,) = step_batches(rollout_trainer(tmp_path))
    assert means(charged.pending)["kl_charged"] == 0
    assert torch.equal(batch["advantages"], free["advantages"])


def test_a_row_without_a_reward_is_not_charged_into_its_group(tmp_path: Path) -> None:
    def sometimes(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        applies = torch.tensor([True, False, True, True, True, True])
        return brightness(images, conditions).masked_fill(~applies, torch.nan)

    trainer = rollout_trainer(
        tmp_path,
        generator=moved(tiny_llamagen()),
        reference=FrozenReference(tiny_llamagen()),
        rewards=[Reward("sometimes", sometimes)],
        kl_in_reward=1.0,
    )
    (batch,) = step_batches(trainer)
    assert batch["kept"].tolist() == [True, False, True, True, True, True]
    assert (batch["advantages"][1] == 0).all()


def test_kl_in_the_reward_needs_a_reference(tmp_path: Path) -> None:
    trainer = rollout_trainer(tmp_path, kl_in_reward=0.1)
    with pytest.raises(ValueError, match="kl.where=reward needs a reference; set reference.kind=frozen"):
        step_batches(trainer)
