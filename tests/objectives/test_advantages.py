"""Advantages by hand, for each baseline and scale, and what happens to rows and groups without a signal."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from align.objectives import Advantages, group_advantages

NAN = math.nan
GROUP = [1.0, 2.0, 3.0, 6.0]  # mean 3, unbiased variance 14/3
STD = math.sqrt(14 / 3) + 1e-4


def advantages(rewards: list[float], **settings) -> Advantages:
    return group_advantages(torch.tensor(rewards)[:, None], **{"num_generations": 4, **settings})


def values(found: Advantages) -> list[float]:
    assert found.advantages_N.dtype == torch.float32
    return found.advantages_N.tolist()


def means(found: Advantages) -> dict[str, float]:
    return {name: (average.total / average.count).item() for name, average in found.metrics.items()}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [-2 / STD, -1 / STD, 0, 3 / STD]),
        ({"scale_rewards": "none"}, [-2, -1, 0, 3]),
        ({"estimator": "rloo"}, [1 - 11 / 3, 2 - 10 / 3, 0, 6 - 2]),
        ({"estimator": "reinforce_pp"}, [-2 / STD, -1 / STD, 0, 3 / STD]),
        ({"estimator": "reinforce_pp", "scale_rewards": "none"}, [-2, -1, 0, 3]),
        ({"scale_rewards": "none", "clip": 1.5}, [-1.5, -1, 0, 1.5]),
        ({"scale_rewards": "none", "reward_weights": [2.0]}, [-4, -2, 0, 6]),
    ],
)
def test_one_group_by_hand(settings: dict, expected: list[float]) -> None:
    assert values(advantages(GROUP, **settings)) == pytest.approx(expected, rel=1e-5)


def test_scaling_by_the_batch_keeps_the_groups_baselines() -> None:
    rewards = [*GROUP, 10.0, 10.0, 10.0, 14.0]
    std = statistics.stdev(rewards) + 1e-4
    expected = [-2 / std, -1 / std, 0, 3 / std, -1 / std, -1 / std, -1 / std, 3 / std]
    assert values(advantages(rewards, scale_rewards="batch")) == pytest.approx(expected, rel=1e-5)


def test_reinforce_pp_compares_over_the_batch_and_needs_no_groups() -> None:
    rewards = [0.0, 0.0, 4.0, 4.0]
    std = statistics.stdev(rewards) + 1e-4
    for num_generations in (1, 2):
        found = advantages(rewards, num_generations=num_generations, estimator="reinforce_pp")
        assert values(found) == pytest.approx([-2 / std, -2 / std, 2 / std, 2 / std])
        assert found.kept_N.all()


def test_a_group_of_equal_rewards_carries_no_signal() -> None:
    found = advantages([*GROUP, 0.1, 0.1, 0.1, 0.1], reward_weights=[0.3])
    assert values(found)[4:] == [0, 0, 0, 0]
    assert found.kept_N.tolist() == [True] * 4 + [False] * 4
    assert means(found) == pytest.approx({"zero_variance": 0.5, "group_std": 0.3 * math.sqrt(14 / 3) / 2})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scale_rewards": "none"}, [-1, 1, 0, 0]),  # mean of 1 and 3
        ({"estimator": "rloo"}, [-2, 2, 0, 0]),
        ({}, [-1 / (math.sqrt(2) + 1e-4), 1 / (math.sqrt(2) + 1e-4), 0, 0]),
    ],
)
def test_rows_without_a_reward_are_left_out_of_the_group(settings: dict, expected: list[float]) -> None:
    found = advantages([1.0, 3.0, NAN, NAN], **settings)
    assert values(found) == pytest.approx(expected)
    assert found.kept_N.tolist() == [True, True, False, False]
    assert found.rewards_N[:2].tolist() == [1, 3] and found.rewards_N[2:].isnan().all()


@pytest.mark.parametrize("estimator", ["grpo", "rloo"])
def test_a_row_alone_in_its_group_has_no_baseline(estimator: str) -> None:
    found = advantages([5.0, NAN, NAN, NAN, *GROUP], estimator=estimator)
    assert values(found)[:4] == [0, 0, 0, 0] and not found.kept_N[:4].any()
    assert means(found)["zero_variance"] == 0  # only the second group has rewards to compare


def test_a_missing_term_is_left_out_of_the_weighted_sum() -> None:
    rewards = torch.tensor([[1.0, NAN], [2.0, 1.0], [NAN, NAN], [3.0, 1.0]])
    found = group_advantages(rewards, num_generations=4, reward_weights=[1.0, 10.0], scale_rewards="none")
    assert found.rewards_N[[0, 1, 3]].tolist() == [1, 12, 13]
    assert values(found) == pytest.approx([1 - 26 / 3, 12 - 26 / 3, 0, 13 - 26 / 3])


def test_normalize_then_sum_gives_each_reward_its_weight_whatever_its_scale() -> None:
    """Two groups; the second reward is 1000 times the first one's reversal in group 1, and constant in group 2.

    Group 1, standardised: (-1, 1) / sqrt(2) and its reversal, hence sums s (-w1 + w2), s (w1 - w2) with s = 1 / sqrt(2)
    up to the floor; group 2: -+ w1 s. The sums are then standardised over the batch.
    """
    rewards = torch.tensor([[0.0, 2000.0], [2.0, 0.0], [0.0, 7.0], [2.0, 7.0]])
    found = group_advantages(
        rewards,
        num_generations=2,
        reward_weights=[3.0, 1.0],
        multi_objective_aggregation="normalize_then_sum",
    )
    small, large = 1 / (math.sqrt(2) + 1e-4), 1000 / (1000 * math.sqrt(2) + 1e-4)
    sums = [-3 * small + large, 3 * small - large, -3 * small, 3 * small]
    std = statistics.stdev(sums) + 1e-4
    assert values(found) == pytest.approx([value / std for value in sums], rel=1e-5)
    assert found.rewards_N.tolist() == [2000, 6, 7, 13]


def test_normalize_then_sum_keeps_a_group_in_which_any_reward_differs() -> None:
    """Group 1 has equal sums of different rewards; group 2 differs only in a reward of weight 0."""
    rewards = torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 5.0], [2.0, 2.0, 5.0], [2.0, 2.0, 6.0]])
    settings = {"num_generations": 2, "reward_weights": [1.0, 1.0, 0.0]}
    found = group_advantages(rewards, multi_objective_aggregation="normalize_then_sum", **settings)
    assert found.kept_N.tolist() == [True, True, False, False]
    assert not group_advantages(rewards, **settings).kept_N.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, "use num_generations of 2 or more, or estimator=reinforce_pp"),
        ({"num_generations": 1, "estimator": "rloo"}, "a group of one has no baseline"),
        ({"num_generations": 3}, "4 rows do not divide into groups of num_generations=3"),
        ({"estimator": "ppo"}, "unknown estimator 'ppo'; known: grpo, rloo, reinforce_pp"),
        ({"scale_rewards": "std"}, "unknown scale_rewards 'std'; known: group, batch, none, None"),
        ({"multi_objective_aggregation": "sum"}, "known: sum_then_normalize, normalize_then_sum"),
        ({"estimator": "reinforce_pp", "scale_rewards": "group"}, "use scale_rewards=batch or none"),
        ({"multi_objective_aggregation": "normalize_then_sum", "estimator": "rloo"}, "it goes with estimator=grpo"),
        ({"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "none"}, "scale_rewards=null"),
        ({"reward_weights": [1.0, 2.0]}, "reward_weights has 2 numbers for 1 rewards"),
        ({"clip": 0.0}, "clip is 0.0; it must be positive"),
    ],
)
def test_what_has_no_meaning_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        advantages(GROUP, **settings)
