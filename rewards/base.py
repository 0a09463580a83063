"""The contract of a reward.

A reward is a function of images and the dataset rows that they were drawn for:

    def redness(images, conditions):        # torch uint8 [B, H, W, 3], list of B dictionaries
        return images[..., 0].float().mean(dim=(1, 2)) / 255

It gives one number an image, larger is better, as a tensor, an array or a list of shape [B]; NaN means "does not apply
to this image". Where it can score some images and not others it returns `PartialScores`. What holds a model is a class:
built once from its settings, then called like a function.

Three kinds, by what a call sees:

    image         any images; the same image gets the same number in any batch. A function as above
    group         all images of one prompt, to be ranked or compared. A function under `@groupwise`
    distribution  the whole batch of a training step, over all processes. A class with the methods of `DistributionReward`

`rewards.registry` says how a reward is named in settings; `rewards.scoring` is the one place where rewards are called.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

RewardFunction = Callable[[Tensor, list[dict[str, Any]]], Any]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class PartialScores:
    """What a reward returns when some images could not be scored: a failure is never a number.

    values: [B] numbers, read only where valid.
    valid: [B] booleans.
    error: what went wrong with the first image that failed, for the user to act on.
    """

    values: Any
    valid: Any
    error: str


def groupwise(function: Function) -> Function:
    """Mark a reward that ranks or compares: each call sees all images [G, H, W, 3] of one prompt, with their G rows."""
    function.kind = "group"  # type: ignore[attr-defined]
    return function


@runtime_checkable
class DistributionReward(Protocol):
    """A reward of a whole batch, such as a distance between distributions, with a running state.

    In a training step each process describes its own images; what all of them found is put together in the order of the
    rollouts, and every process scores that same table. Then the state moves. A checkpoint holds the state.
    """

    def describe(self, images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        """Float [B, D]: what `score` needs to know of uint8 images [B, H, W, 3]. Called on any cut of a batch."""

    def score(self, features_ND: Tensor) -> Tensor:
        """Float [N]: a reward for each image of the step. Leaves the state as it is."""

    def advance(self, features_ND: Tensor) -> None:
        """Take the images of a step into the state."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state; from the beginning if it is empty."""


def kind_of(reward: Any) -> str:
    """`image`, `group` or `distribution`."""
    if isinstance(reward, DistributionReward):
        return "distribution"
    while isinstance(reward, functools.partial):
        reward = reward.func
    return str(getattr(reward, "kind", "image"))


class RewardError(ValueError):
    """A reward failed, or returned what is no reward; the message names it."""


@dataclass(frozen=True)
class Gate:
    """A reward counts only for images that another one, named `reward`, gives `at_least` this much."""

    reward: str
    at_least: float


@dataclass(frozen=True)
class Reward:
    """A reward with the name it is logged under and its weight in the sum.

    Of weight 0 it is held out: scored and logged, never trained on.
    """

    name: str
    function: RewardFunction | DistributionReward
    weight: float = 1.0
    gate: Gate | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"reward {self.name!r} has weight {self.weight}; it must be a finite number (0: log only)")

    @property
    def kind(self) -> str:
        """`image`, `group` or `distribution`."""
        return kind_of(self.function)
