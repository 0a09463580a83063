"""From several rewards to what is trained on: gates, ensembles, and which rows lack something that they need.

Shapes: N images, R rewards, K columns that training weighs.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from rewards.base import Reward


@dataclass(frozen=True)
class Ensemble:
    """A lower-confidence bound of several rewards in one unit: their mean less `penalty` standard deviations.

    What one of them is fooled by and the others are not gains little (Coste et al. 2023, arXiv 2310.02743, whose
    uncertainty-weighted variant takes the variance). The deviation is over the members that apply, divided by their number.
    """

    name: str
    members: tuple[str, ...]
    penalty: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True)
class Combined:
    """What training weighs.

    columns_NK: float32, a column for each reward and ensemble of a weight other than 0; NaN where it does not apply.
    weights: K numbers.
    failed_N: bool, rows for which a reward that the columns are made of failed; all NaN there.
    """

    columns_NK: Tensor
    weights: list[float]
    failed_N: Tensor


@dataclass(frozen=True)
class RewardSet:
    """The rewards of a run, and how they make one.

    Raises:
        ValueError: a name twice, or a gate or an ensemble that refers to no reward, or to one of another kind.
    """

    rewards: tuple[Reward, ...]
    ensembles: tuple[Ensemble, ...] = ()

    def __post_init__(self) -> None:
        names = [part.name for part in self._parts]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"reward.rewards names {twice!r} twice; tell them apart by a label of their own")
        known = [reward.name for reward in self.rewards if reward.kind != "distribution"]
        for reward in self.rewards:
            if reward.gate is not None:
                self._refuse_unknown(f"the gate of reward {reward.name!r}", reward.gate.reward, known)
                if reward.gate.reward == reward.name:
                    raise ValueError(f"reward {reward.name!r} is its own gate; name another reward")
        for ensemble in self.ensembles:
            for member in ensemble.members:
                self._refuse_unknown(f"the ensemble {ensemble.name!r}", member, known)
            if len(set(ensemble.members)) < 2:
                raise ValueError(
                    f"the ensemble {ensemble.name!r} has the members {list(ensemble.members)}; it needs two"
                )
            if not (math.isfinite(ensemble.weight) and math.isfinite(ensemble.penalty)):
                raise ValueError(f"weight and penalty of the ensemble {ensemble.name!r} must be finite numbers")

    @staticmethod
    def _refuse_unknown(who: str, name: str, known: Sequence[str]) -> None:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{who} refers to {name!r}, which is none of the rewards that score single images or groups: {', '.join(known)}{hint}"
            )

    @property
    def _parts(self) -> Iterator[Reward | Ensemble]:
        return chain(self.rewards, self.ensembles)

    def names(self, *, trained: bool) -> list[str]:
        """Of the rewards and ensembles that are trained on; or of the rewards that training does not look at at all."""
        if trained:
            return [part.name for part in self._parts if part.weight]
        needed = self._needed()
        return [reward.name for index, reward in enumerate(self.rewards) if index not in needed]

    def refuse_distributions(self, why: str) -> None:
        """For callers that have no training step. Raises ValueError if a reward looks at whole steps."""
        for reward in self.rewards:
            if reward.kind == "distribution":
                raise ValueError(
                    f"reward {reward.name!r} scores an image by the batch of a training step, and {why}; leave it out here"
                )

    def _index(self, name: str) -> int:
        return [reward.name for reward in self.rewards].index(name)

    def _needed(self) -> set[int]:
        """Columns of the rewards that a trained one is made of."""
        weighed = {index for index, reward in enumerate(self.rewards) if reward.weight}
        weighed |= {self._index(name) for part in self.ensembles if part.weight for name in part.members}
        gates = [self.rewards[index].gate for index in weighed]
        return weighed | {self._index(gate.reward) for gate in gates if gate is not None}

    def combine(self, values_NR: Tensor, valid_NR: Tensor, *, gated: float = math.nan) -> Combined:
        """Columns to train on.

        Args:
            values_NR, valid_NR: one column for each of `rewards`, as `rewards.scoring.score_rewards` gives them.
            gated: what a reward is where its gate is closed; NaN, which is left out of a row's sum and of every mean, or
                0, for sums whose terms must all be there. A gate that does not apply to an image is closed.
        """
        raw_NR, values_NR = values_NR, values_NR.clone()
        for index, reward in enumerate(self.rewards):
            if (gate := reward.gate) is not None:
                closed_N = ~(raw_NR[:, self._index(gate.reward)] >= gate.at_least)
                values_NR[:, index] = values_NR[:, index].masked_fill(closed_N, gated)
        columns = [values_NR[:, index] for index, reward in enumerate(self.rewards) if reward.weight]
        columns += [
            _lower_bound(values_NR[:, [self._index(name) for name in part.members]], part.penalty)
            for part in self.ensembles
            if part.weight
        ]
        weights = [part.weight for part in self._parts if part.weight]
        failed_N = (~valid_NR[:, sorted(self._needed())]).any(dim=1)
        columns_NK = torch.stack(columns, dim=1) if columns else values_NR[:, :0]
        return Combined(columns_NK.masked_fill(failed_N[:, None], torch.nan), weights, failed_N)


def _lower_bound(members_NM: Tensor, penalty: float) -> Tensor:
    mean_N1 = members_NM.nanmean(dim=1, keepdim=True)
    return mean_N1.squeeze(1) - penalty * (members_NM - mean_N1).square().nanmean(dim=1).sqrt()
