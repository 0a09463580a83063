"""Several rewards make what is trained on: by hand, for a few rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards.base import Gate, Reward
from rewards.combine import Ensemble, RewardSet

NAN = math.nan


def nothing(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
    raise NotImplementedError


def reward(name: str, weight: float = 1.0, gate: Gate | None = None) -> Reward:
    return Reward(name, nothing, weight, gate)


def combine(rewards: RewardSet, rows: list[list[float]], failed: list[tuple[int, int]] = (), **keywords: float) -> Any:
    values_NR = torch.tensor(rows)
    valid_NR = torch.ones_like(values_NR, dtype=torch.bool)
    for row, column in failed:
        values_NR[row, column], valid_NR[row, column] = NAN, False
    return rewards.combine(values_NR, valid_NR, **keywords)


def listed(columns: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else round(value, 5) for value in row] for row in columns.tolist()]


def test_held_out_rewards_are_not_trained_on() -> None:
    found = combine(
        RewardSet((reward("a", 2.0), reward("watched", 0.0), reward("b", -1.0))), [[1, 50, 3], [2, 60, NAN]]
    )
    assert listed(found.columns_NK) == [[1, 3], [2, None]]
    assert found.weights == [2.0, -1.0]
    assert found.failed_N.tolist() == [False, False]


def test_a_gate_leaves_a_reward_out_where_another_is_low() -> None:
    rewards = RewardSet((reward("geneval"), reward("quality", 0.5, Gate("geneval", 1.0))))
    rows = [[1.0, 7.0], [0.5, 8.0], [NAN, 9.0], [1.0, NAN]]
    assert listed(combine(rewards, rows).columns_NK) == [[1, 7], [0.5, None], [None, None], [1, None]]
    # for sums whose terms must all be there: closed is 0, what does not apply by itself stays out
    assert listed(combine(rewards, rows, gated=0.0).columns_NK) == [[1, 7], [0.5, 0], [None, 0], [1, None]]


def test_gates_look_at_rewards_as_they_came() -> None:
    """A chain: b counts where a passes, c where b does, also where a closed b's own gate."""
    rewards = RewardSet((reward("a"), reward("b", 1.0, Gate("a", 1.0)), reward("c", 1.0, Gate("b", 1.0))))
    assert listed(combine(rewards, [[0.0, 1.0, 5.0]]).columns_NK) == [[0, None, 5]]


def test_an_ensemble_is_a_lower_confidence_bound() -> None:
    members = RewardSet((reward("a", 0.0), reward("b", 0.0)), (Ensemble("both", ("a", "b"), penalty=2.0, weight=3.0),))
    found = combine(members, [[1.0, 3.0], [2.0, 2.0], [5.0, NAN], [NAN, NAN]])
    # mean 2, deviation 1; equal members; one that applies; none
    assert listed(found.columns_NK) == [[0], [2], [5], [None]]
    assert found.weights == [3.0]
    assert members.names(trained=True) == ["both"]
    assert members.names(trained=False) == []


def test_a_row_lacks_everything_when_something_that_it_needs_failed() -> None:
    rewards = RewardSet(
        (
            reward("watched", 0.0),
            reward("gate", 0.0),
            reward("a", 1.0, Gate("gate", 1.0)),
            reward("m", 0.0),
            reward("n"),
        ),
        (Ensemble("both", ("m", "n")),),
    )
    rows = [[1.0, 1.0, 2.0, 3.0, 3.0]] * 6
    found = combine(rewards, rows, failed=[(row, row) for row in range(5)])
    assert found.failed_N.tolist() == [False, True, True, True, True, False]
    assert listed(found.columns_NK) == [[2, 3, 3], *[[None] * 3] * 4, [2, 3, 3]]
    assert rewards.names(trained=False) == ["watched"]


@pytest.mark.parametrize(
    ("rewards", "ensembles", "message"),
    [
        ([reward("a"), reward("a")], [], "names 'a' twice; tell them apart by a label"),
        ([reward("a"), reward("b")], [Ensemble("a", ("a", "b"))], "names 'a' twice"),
        (
            [reward("geneval"), reward("b", 1.0, Gate("genval", 1.0))],
            [],
            "the gate of reward 'b' refers to 'genval', which is none of the rewards .* geneval, b; did you mean 'geneval'",
        ),
        ([reward("a", 1.0, Gate("a", 1.0))], [], "reward 'a' is its own gate"),
        ([reward("a"), reward("b")], [Ensemble("c", ("a", "d"))], "the ensemble 'c' refers to 'd'"),
        ([reward("a")], [Ensemble("c", ("a", "a"))], "the ensemble 'c' has the members .* it needs two"),
        ([reward("a"), reward("b")], [Ensemble("c", ("a", "b"), penalty=NAN)], "must be finite numbers"),
    ],
)
def test_what_does_not_fit_together_is_refused(rewards: list[Reward], ensembles: list[Ensemble], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardSet(tuple(rewards), tuple(ensembles))


class Whole:
    """The shape of a distribution reward."""

    def describe(self, images: Tensor, conditions: list[dict[str, Any]]) -> Tensor: ...

    def score(self, features_ND: Tensor) -> Tensor: ...

    def advance(self, features_ND: Tensor) -> None: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


def test_distribution_rewards_are_no_gates_and_need_a_training_step() -> None:
    whole = Reward("fid", Whole())
    with pytest.raises(
        ValueError, match="the gate of reward 'a' refers to 'fid', which is none of the rewards that score"
    ):
        RewardSet((whole, reward("a", 1.0, Gate("fid", 0.0))))
    with pytest.raises(ValueError, match="reward 'fid' scores an image by the batch of a training step, and pairs are"):
        RewardSet((whole,)).refuse_distributions("pairs are picked")
    RewardSet((reward("a"),)).refuse_distributions("pairs are picked")
