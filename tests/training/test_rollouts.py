"""Collect → score → advantage: each rollout's own advantage, by position, under the distribution that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var
from torch import Tensor
from training.harness import BRIGHTNESS, brightness, darkness, means, step_batches
from training.rollout_harness import PARTS, expected_advantages, joined, rollout_trainer

from align import sample, score
from align.generators import Generator
from align.objectives import group_advantages
from align.training import rollouts
from align.training.inputs import Scoring
from align.training.reference import FrozenReference
from align.training.rollouts import Rollouts, RolloutSettings
from align.types import SamplingConfig
from rewards.base import Reward

FAMILIES: dict[str, Callable[..., Any]] = {"llamagen": tiny_llamagen, "var": tiny_var}
GUIDED = SamplingConfig(guidance_scale=2.5, seed=3)


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


def test_rollouts_are_the_same_where_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = joined(step_batches(rollout_trainer(tmp_path)))
    drawn = []

    def limited(generator: Any, condition: Any, config: Any, *, index_B: Tensor) -> Any:
        if len(index_B) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        drawn.append(len(index_B))
        return sample(generator, condition, config, index_B=index_B)

    monkeypatch.setattr(rollouts, "sample", limited)
    found = joined(step_batches(rollout_trainer(tmp_path)))
    assert max(drawn) <= 2 and sum(drawn) == len(found["position"])
    assert torch.equal(found["rollout"], expected["rollout"])
    torch.testing.assert_close(found["advantages"], expected["advantages"])


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
