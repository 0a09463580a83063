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
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

RewardFunction = Callable[[Tensor, list[dict[str, Any]]], Any]
Function = TypeVar("Function", bound=Callable[..., Any])
KINDS = ("image", "group", "distribution")


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
    """A reward raised, took too long, or returned what is no reward; the message names it."""


@dataclass(frozen=True)
class Reward:
    """A reward with the name it is logged under and its weight in the sum; weight 0 is scored and logged only."""

    name: str
    function: RewardFunction | DistributionReward
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"reward {self.name!r} has weight {self.weight}; it must be a finite number (0: log only)")


@dataclass(frozen=True)
class RewardScores:
    """values_NR: float32 [N, R] on the CPU, NaN where a reward does not apply; names and seconds: of each reward."""

    values_NR: Tensor
    names: tuple[str, ...]
    seconds: tuple[float, ...]


def score_rewards(
    rewards: Sequence[Reward],
    images: Tensor,
    conditions: Sequence[Mapping[str, Any]],
    *,
    timeout: float | None,
) -> RewardScores:
    """Call every reward on the same images, one after another.

    Each gets images and rows of its own, so that one which writes into them cannot change what the next one sees (what
    the rows hold is shared). Each runs in a thread, without gradients. A function that is still busy after `timeout`
    seconds is abandoned: Python cannot stop a thread, so it goes on in the background, with whatever memory it holds,
    until it returns or the process ends. One that never lets go of the interpreter lock cannot be timed out.

    Args:
        images: uint8 [N, H, W, 3], on any device.
        conditions: N dataset rows, such as {"label": 3}.
        timeout: seconds that each reward may take; None waits for ever.

    Raises:
        RewardError: a reward raised, took too long, or returned anything but N finite numbers or NaN (integers count
            as numbers, booleans as 0 and 1).
        ValueError: no rewards, or images and conditions that are not as above.
    """
    if not rewards:
        raise ValueError("there are no rewards to score with; name at least one")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"rewards read uint8 images [N, H, W, 3]; got {images.dtype} {list(images.shape)}")
    if len(images) != len(conditions):
        raise ValueError(f"{len(images)} images but {len(conditions)} conditions; each image needs the row it is of")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout is {timeout}; it is in seconds, above 0, or None to wait for ever")
    columns, seconds = [], []
    for reward in rewards:
        started = time.monotonic()
        own = images.detach().clone()
        columns.append(_column(reward.name, _call(reward, own, [dict(row) for row in conditions], timeout), len(own)))
        seconds.append(time.monotonic() - started)
    return RewardScores(torch.stack(columns, dim=1), tuple(reward.name for reward in rewards), tuple(seconds))


def _call(reward: Reward, images: Tensor, conditions: list[dict[str, Any]], timeout: float | None) -> Any:
    """The function's result, from a thread also without a timeout, so that both ways see the same torch modes."""
    results: list[Any] = []
    errors: list[BaseException] = []
    device = images.device

    def run() -> None:
        try:
            # gradients and the current GPU are settings of a thread; a new one has the defaults
            if device.type == "cuda":
                torch.cuda.set_device(device)
            with torch.no_grad():
                results.append(reward.function(images, conditions))
        except BaseException as error:  # SystemExit too: it would end the thread without a word
            errors.append(error)

    thread = threading.Thread(target=run, name=f"reward {reward.name}", daemon=True)
    thread.start()
    thread.join(timeout)
    if errors:
        raise RewardError(
            f"reward {reward.name!r} raised {type(errors[0]).__name__}: {errors[0]}. Mend it, or return NaN for images that it does not apply to"
        ) from errors[0]
    if not results:
        raise RewardError(
            f"reward {reward.name!r} gave no answer for {len(images)} images within {timeout:g} seconds; raise the timeout, give it fewer images at once, or see whether it hangs"
        )
    return results[0]


def _column(name: str, result: Any, batch: int) -> Tensor:
    """float32 [B] of what a reward returned."""
    allowed = f"a reward returns {batch} numbers, one for each image, as a tensor, an array or a list"
    try:
        array = (
            result.detach().cpu().to(torch.float64 if result.is_floating_point() else result.dtype).numpy()
            if isinstance(result, Tensor)
            else np.asarray(result)
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(f"reward {name!r} returned {_describe(result)}; {allowed} ({error})") from error
    if array.dtype.kind not in "fiub":
        raise RewardError(
            f"reward {name!r} returned {_describe(result)}, which is not all numbers; {allowed}, and NaN where it does not apply"
        )
    if array.shape != (batch,):
        raise RewardError(f"reward {name!r} returned shape {list(array.shape)}; {allowed}, so shape [{batch}]")
    with np.errstate(over="ignore"):  # too large for float32 is refused below
        values_B = torch.from_numpy(array.astype(np.float32))
    if bad := int(values_B.isinf().sum()):
        first = int(values_B.isinf().nonzero()[0])
        raise RewardError(
            f"reward {name!r} is infinite for {bad} of {batch} images, the first of them image {first}; rewards are finite in float32, or NaN where they do not apply"
        )
    return values_B


def _describe(result: Any) -> str:
    return f"a {type(result).__name__} {result!r:.60}"
