"""What holds any objective back: KL to the reference and entropy, as terms of the loss whose weight may adapt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from align.objectives import (
    adapt_coefficient,
    entropy_bonus,
    entropy_coefficient,
    exact_kl_penalty,
    kl_penalty,
)
from align.objectives.kl import ESTIMATORS
from align.training.inputs import Term


class Penalty(Protocol):
    """A term of the loss with a coefficient that is part of the training state."""

    name: str
    coefficient: float

    def term(self, view: str) -> Term:
        """The term, on the view that the objective scores the policy in."""

    def update(self, means: Mapping[str, float]) -> None:
        """Adapt the coefficient to the averages of the step just made."""


@dataclass
class KLPenalty:
    """coefficient x KL(policy || reference), per token, estimated on the tokens at hand or exact over the vocabulary.

    estimator: k1, k2, k3, or exact.
    importance: weigh a sampled estimate by the policy's own ratio, so that its gradient is the reverse KL's.
    target: nats per token that the coefficient adapts towards (Ziegler et al. 2019, arXiv 1909.08593); None is fixed.
    """

    coefficient: float
    estimator: str = "k3"
    importance: bool = False
    target: float | None = None
    minimum: float = 1e-4
    maximum: float = 10.0
    name: str = "kl"

    def __post_init__(self) -> None:
        if self.estimator not in (known := (*ESTIMATORS, "exact")):
            raise ValueError(f"unknown kl.estimator {self.estimator!r}; known: {', '.join(known)}")
        if self.coefficient < 0:
            raise ValueError(f"kl.coefficient is {self.coefficient}; it must be at least 0 (0 is off)")
        if self.target is not None and self.target <= 0:
            raise ValueError(f"kl.target is {self.target}; it must be positive (nats per token), or null for fixed")
        if self.estimator == "k1" and not self.importance:
            raise ValueError(
                "k1 in the loss has a gradient of mean zero; use kl.estimator=k2, or kl.importance=true, or kl.where=reward"
            )

    def term(self, view: str) -> Term:
        view = "unfiltered" if view == "rollout" else view  # a filter gives some tokens no probability at all
        if self.estimator == "exact":
            names = {"policy_BLV": f"policy_{view}_BLV", "reference_BLV": f"reference_{view}_BLV"}
            return Term(partial(exact_kl_penalty, coefficient=self.coefficient), names)
        if view == "actions":
            raise ValueError("actions share their logits, so that KL is exact there; set kl.estimator=exact")
        function = partial(
            kl_penalty, coefficient=self.coefficient, estimator=self.estimator, importance=self.importance
        )
        names = {"policy_BL": f"policy_{view}_BL", "reference_BL": f"reference_{view}_BL"}
        if self.importance and view == "unfiltered":
            names["old_BL"] = "old_rollout_BL"
        return Term(function, names)

    def update(self, means: Mapping[str, float]) -> None:
        if self.target is not None:
            self.coefficient = adapt_coefficient(
                self.coefficient, means["kl"], self.target, minimum=self.minimum, maximum=self.maximum
            )


@dataclass
class EntropyBonus:
    """-coefficient x mean token entropy; with a target the coefficient rises below it and falls above, within bounds.

    target: share of log(vocabulary); outside of target +- band, coefficient = base exp(gain (target - share)).
    """

    base: float
    log_vocab: float
    target: float | None = None
    band: float = 0.015
    gain: float = 3.0
    minimum: float = 7e-5
    maximum: float = 4e-3
    name: str = "entropy"

    def __post_init__(self) -> None:
        self.coefficient = self.base

    @staticmethod
    def for_vocabulary(size: int, **settings: Any) -> EntropyBonus:
        return EntropyBonus(log_vocab=math.log(size), **settings)

    def term(self, view: str) -> Term:
        return Term(partial(entropy_bonus, coefficient=self.coefficient), {"entropy_BL": f"policy_{view}_entropy_BL"})

    def update(self, means: Mapping[str, float]) -> None:
        if self.target is not None:
            self.coefficient = entropy_coefficient(
                means["entropy"] / self.log_vocab,
                base=self.base,
                target=self.target,
                band=self.band,
                gain=self.gain,
                minimum=self.minimum,
                maximum=self.maximum,
            )
