"""The one place where rewards are called. What fails is `valid=False`, never a number.

Shapes: N images, R rewards, D numbers that a distribution reward keeps of an image.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.base import DistributionReward, PartialScores, Reward, RewardError
from rewards.failures import FailureReport

# threads that were given up on, by the reward's function: it is not called again while one is still busy
_abandoned: dict[int, threading.Thread] = {}


@dataclass(frozen=True)
class RewardScores:
    """What several rewards say of the same images.

    values_NR: float32 on the CPU; NaN where a reward does not apply, where it failed, and in a distribution reward's column.
    valid_NR: bool; False where a reward failed.
    features: of each distribution reward by name, float64 [N, D]; NaN in rows that failed.
    errors: of each reward by name, what went wrong first, with its cause.
    seconds: that each reward took.
    """

    values_NR: Tensor
    valid_NR: Tensor
    names: tuple[str, ...]
    features: Mapping[str, Tensor]
    errors: Mapping[str, RewardError]
    seconds: tuple[float, ...]

    def checked(self) -> RewardScores:
        """Itself, for callers that cannot do without a number.

        Raises:
            RewardError: a reward failed.
        """
        for error in self.errors.values():
            raise error
        return self

    def report(self) -> FailureReport:
        """What failed."""
        failed = (~self.valid_NR).sum(dim=0).tolist()
        errors = {name: str(error) for name, error in self.errors.items()}
        return FailureReport(dict(zip(self.names, failed, strict=True)), errors, len(self.valid_NR))

    @staticmethod
    def cat(parts: Sequence[RewardScores]) -> RewardScores:
        """Of the same rewards on one batch after another."""
        first = parts[0]
        return RewardScores(
            torch.cat([part.values_NR for part in parts]),
            torch.cat([part.valid_NR for part in parts]),
            first.names,
            {name: _stack([part.features[name] for part in parts]) for name in first.features},
            {name: error for part in reversed(parts) for name, error in part.errors.items()},
            tuple(sum(seconds) for seconds in zip(*(part.seconds for part in parts), strict=True)),
        )


def score_rewards(
    rewards: Sequence[Reward],
    images: Tensor,
    conditions: Sequence[Mapping[str, Any]],
    *,
    timeout: float | None,
    group_size: int | None = None,
) -> RewardScores:
    """Call every reward on the same images, one after another.

    Each gets images and rows of its own, so that one which writes into them cannot change what the next one sees (what
    the rows hold is shared). Each runs in a thread, without gradients. A function that is still busy after `timeout`
    seconds is abandoned: Python cannot stop a thread, so it goes on in the background, with whatever memory it holds,
    until it returns or the process ends, and is not called again before. One that never lets go of the interpreter lock
    cannot be timed out.

    A reward that raises, takes too long, or returns anything but N finite numbers or NaN (integers count as numbers,
    booleans as 0 and 1) has failed for these images; its column is not valid, and the others' are not touched.

    Args:
        images: uint8 [N, H, W, 3], on any device; rewards get them on the CPU.
        conditions: N dataset rows, such as {"label": 3}.
        timeout: seconds that each reward may take; None waits for ever.
        group_size: groups are so many consecutive images; groupwise rewards need it.

    Raises:
        ValueError: no rewards, or images and conditions that are not as above.
    """
    _check(rewards, images, conditions, timeout, group_size)
    images = images.detach().cpu()
    columns, valid, seconds = [], [], []
    features: dict[str, Tensor] = {}
    errors: dict[str, RewardError] = {}
    for reward in rewards:
        started = time.monotonic()
        values, valid_N, error = _score(reward, images, conditions, timeout, group_size)
        seconds.append(time.monotonic() - started)
        if reward.kind == "distribution":
            features[reward.name] = values
            values = torch.full((len(images),), torch.nan)
        if error is not None:
            errors[reward.name] = RewardError(f"reward {reward.name!r} {error}")
            errors[reward.name].__cause__ = error.__cause__
        columns.append(values.masked_fill(~valid_N, torch.nan))
        valid.append(valid_N)
    return RewardScores(
        torch.stack(columns, dim=1),
        torch.stack(valid, dim=1),
        tuple(reward.name for reward in rewards),
        features,
        errors,
        tuple(seconds),
    )


def whole_groups(rewards: Sequence[Reward], batch_size: int, group_size: int) -> int:
    """The batch size to sample and score in: about `batch_size`, in whole groups where a reward compares them."""
    if any(reward.kind == "group" for reward in rewards):
        return max(group_size, batch_size // group_size * group_size)
    return batch_size


# --- one reward


def _score(
    reward: Reward,
    images: Tensor,
    conditions: Sequence[Mapping[str, Any]],
    timeout: float | None,
    group_size: int | None,
) -> tuple[Tensor, Tensor, RewardError | None]:
    """Values [N] (of a distribution reward features [N, D]), valid [N], and the first error."""
    if reward.kind == "group":
        assert group_size is not None
        parts = [slice(start, start + group_size) for start in range(0, len(images), group_size)]
    else:
        parts = [slice(None)]
    found = [
        _one_call(reward, images[part].clone(), [dict(row) for row in conditions[part]], timeout) for part in parts
    ]
    values, valid, errors = zip(*found, strict=True)
    return torch.cat(values), torch.cat(valid), next((error for error in errors if error is not None), None)


def _one_call(
    reward: Reward, images: Tensor, conditions: list[dict[str, Any]], timeout: float | None
) -> tuple[Tensor, Tensor, RewardError | None]:
    function: Any = reward.function
    distribution = isinstance(function, DistributionReward)
    number = len(images)
    try:
        result = _run(function.describe if distribution else function, id(function), images, conditions, timeout)
        if distribution:
            return _features(result, number), torch.ones(number, dtype=torch.bool), None
        if isinstance(result, PartialScores):
            valid_N = as_column(result.valid, number).bool()
            values_N = as_column(torch.as_tensor(result.values).masked_fill(~valid_N, torch.nan), number)
            return values_N, valid_N, None if valid_N.all() else RewardError(f"failed: {result.error}")
        return as_column(result, number), torch.ones(number, dtype=torch.bool), None
    except RewardError as error:
        nothing = torch.full((number, 1) if distribution else (number,), torch.nan)
        return nothing, torch.zeros(number, dtype=torch.bool), error


def _run(
    function: Callable[..., Any], key: int, images: Tensor, conditions: list[dict[str, Any]], timeout: float | None
) -> Any:
    """The function's result, from a thread also without a timeout, so that both ways see the same torch modes."""
    earlier = _abandoned.get(key)
    if earlier is not None and earlier.is_alive():
        raise RewardError("is still busy with an earlier batch that took too long; see whether it hangs")
    results: list[Any] = []
    errors: list[BaseException] = []
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        try:
            # gradients and the current GPU are settings of a thread; a new one has the defaults
            if device is not None:
                torch.cuda.set_device(device)
            with torch.no_grad():
                results.append(function(images, conditions))
        except BaseException as error:  # SystemExit too: it would end the thread without a word
            errors.append(error)

    thread = threading.Thread(target=run, name="reward", daemon=True)
    thread.start()
    thread.join(timeout)
    if errors:
        raise RewardError(
            f"raised {type(errors[0]).__name__}: {errors[0]}. Mend it, or return NaN for images that it does not apply to"
        ) from errors[0]
    if not results:
        _abandoned[key] = thread
        raise RewardError(
            f"gave no answer for {len(images)} images within {timeout:g} seconds; raise the timeout, give it fewer images at once, or see whether it hangs"
        )
    return results[0]


def as_column(result: Any, batch: int) -> Tensor:
    """float32 [B] of what a reward returned."""
    allowed = f"a reward returns {batch} numbers, one for each image, as a tensor, an array or a list"
    try:
        array = (
            result.detach().cpu().to(torch.float64 if result.is_floating_point() else result.dtype).numpy()
            if isinstance(result, Tensor)
            else np.asarray(result)
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(f"returned {_describe(result)}; {allowed} ({error})") from error
    if array.dtype.kind not in "fiub":
        raise RewardError(
            f"returned {_describe(result)}, which is not all numbers; {allowed}, and NaN where it does not apply"
        )
    if array.shape != (batch,):
        raise RewardError(f"returned shape {list(array.shape)}; {allowed}, so shape [{batch}]")
    with np.errstate(over="ignore"):  # too large for float32 is refused below
        values_B = torch.from_numpy(array.astype(np.float32))
    if bad := int(values_B.isinf().sum()):
        first = int(values_B.isinf().nonzero()[0])
        raise RewardError(
            f"is infinite for {bad} of {batch} images, the first of them image {first}; rewards are finite in float32, or NaN where they do not apply"
        )
    return values_B


def _features(result: Any, batch: int) -> Tensor:
    if not isinstance(result, Tensor) or result.ndim != 2 or len(result) != batch or not result.isfinite().all():
        shape = list(result.shape) if isinstance(result, Tensor) else _describe(result)
        raise RewardError(f"described {batch} images as {shape}; a finite tensor [{batch}, D] is needed")
    return result.detach().cpu().double()


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """Features of several batches; a batch that failed as a whole takes the others' width."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([part if part.shape[1] == width else part.expand(-1, width) for part in parts])


def _describe(result: Any) -> str:
    return f"a {type(result).__name__} {result!r:.60}"


def _check(
    rewards: Sequence[Reward],
    images: Tensor,
    conditions: Sequence[Mapping[str, Any]],
    timeout: float | None,
    group_size: int | None,
) -> None:
    if not rewards:
        raise ValueError("there are no rewards to score with; name at least one")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"rewards read uint8 images [N, H, W, 3]; got {images.dtype} {list(images.shape)}")
    if len(images) != len(conditions):
        raise ValueError(f"{len(images)} images but {len(conditions)} conditions; each image needs the row it is of")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout is {timeout}; it is in seconds, above 0, or None to wait for ever")
    for reward in rewards:
        if reward.kind == "group" and (group_size is None or len(images) % group_size):
            raise ValueError(
                f"reward {reward.name!r} compares the images of one prompt; {len(images)} images in groups of {group_size} are none"
            )
