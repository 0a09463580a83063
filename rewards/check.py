"""Run a reward through its contract and say what is wrong with it: `align rewards check`.

Shapes: N images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rewards.base import PartialScores, Reward, RewardError
from rewards.check_distribution import check_distribution
from rewards.findings import Finding, error, ok, warning
from rewards.pictures import assorted, flat, noise
from rewards.watched_calls import WatchedCalls

NUMBER = 8  # images of a batch
LARGE = 32
PATIENCE = 10.0  # seconds for a batch, above which a large one is not tried
SLOW = 0.1  # seconds for an image: a step of 512 rollouts then waits for a minute
EXACT, ROUNDED = 1e-3, 0.05  # of the scores' own spread: differences that are none, and those that bfloat16 makes
STRANGERS = {"black": 0, "white": 255}  # images that are put among others
CALLED = {  # what to do when the first call fails, by what the message says
    " raised ": "see that the check gives what it reads: prompt=..., label=..., row.NAME=..., and the images' size=...",
    " returned ": "return one number an image: mean over dim=(1, 2, 3), not over all",
    " is infinite ": "guard divisions and logarithms",
    " gave no answer ": "raise timeout=, in seconds",
    "": "score every image, or return NaN where it does not apply",
}
PLACES = "let a score depend on its own image and row, whatever their place"
NEIGHBOURS = "leave statistics of the batch out (batch norm, ranks, minus the mean); what compares images is @groupwise"


def check_reward(
    reward: Reward, *, size: int = 64, row: Mapping[str, Any], timeout: float | None = 60.0
) -> Iterator[Finding]:
    """Findings, as they are made.

    Args:
        reward: of any kind.
        size: pixels of each side of the images that it is tried on.
        row: the dataset row that each image is given.
        timeout: seconds that a call may take.
    """
    if reward.kind == "distribution":
        yield from check_distribution(reward, assorted(NUMBER, size), row, timeout=timeout)
        return
    call = WatchedCalls(reward, row, timeout)
    images = assorted(NUMBER, size)
    try:
        scores_N = call(images)
    except RewardError as problem:
        yield error("call", str(problem), next(advice for sign, advice in CALLED.items() if sign in str(problem)))
        return
    seconds = call.seconds
    yield _result(call.returned)
    yield _range(scores_N)
    same = _Same(scores_N)
    yield same("determinism", call.tried(images), "the same batch twice", "draw no random numbers in it")
    order = torch.arange(NUMBER).flip(0)
    yield same("order", call.tried(images[order], order), "the batch in another order", PLACES)
    if reward.kind == "image":
        yield same("alone", call.each(images[:2]), "an image by itself", NEIGHBOURS)
        yield from _plain(call, images, same)
    yield _inputs(call.wrote)
    yield _rows(call.read, WatchedCalls(reward, {}, timeout).tried(images))
    large = LARGE if seconds * LARGE / NUMBER < PATIENCE else NUMBER
    yield _speed(call, size, [1, large] if reward.kind == "image" else [large])


class _Same:
    """Compares with the scores of the first call, as far as sums in another order can be equal."""

    def __init__(self, scores_N: Tensor) -> None:
        self.scores_N = scores_N
        applies = scores_N[~scores_N.isnan()]
        self.spread = applies.std(correction=0).item() if len(applies) else 0.0
        self.highest = applies.max().item() if len(applies) else 0.0

    def __call__(self, what: str, again_N: Tensor | str, how: str, advice: str) -> Finding:
        """`again_N`: scores of the first images again, or what went wrong."""
        if isinstance(again_N, str):
            return error(what, f"{how}: {again_N}", advice)
        first_N = self.scores_N[: len(again_N)]
        unequal_N = ~self._close(first_N, again_N, EXACT)
        if not unequal_N.any():
            return ok(what, f"{how} gives the same scores")
        index = int(unequal_N.nonzero()[0])
        text = f"{how} gives {again_N[index]:.5g} for image {index}, which had {first_N[index]:.5g}"
        if self._close(first_N, again_N, ROUNDED).all():
            return warning(what, text, f"rounding, if the model is in half precision; otherwise {advice}")
        return error(what, text, advice)

    def _close(self, first_N: Tensor, again_N: Tensor, share: float) -> Tensor:
        return torch.isclose(first_N, again_N, rtol=1e-5, atol=max(share * self.spread, 1e-7), equal_nan=True)


def _result(returned: Any) -> Finding:
    result = returned.values if isinstance(returned, PartialScores) else returned
    dtype = getattr(result, "dtype", None)
    text = f"{NUMBER} numbers for {NUMBER} images, as a {type(result).__name__}" + (f" of {dtype}" if dtype else "")
    if isinstance(result, Tensor) and result.requires_grad:
        return warning("result", f"{text}, with gradients", "leave torch.enable_grad out: gradients hold memory")
    if str(dtype).removeprefix("torch.") in ("float16", "bfloat16"):
        return warning("result", f"{text}: two or three digits", "return result.float(); near scores become equal else")
    return ok("result", text)


def _range(scores_N: Tensor) -> Finding:
    applies = scores_N[~scores_N.isnan()]
    if not len(applies):
        return error(
            "range", "NaN for every image: it applies to none", "give the columns that it needs (prompt=..., label=...)"
        )
    low, high, spread = applies.min().item(), applies.max().item(), applies.std(correction=0).item()
    if spread == 0:
        advice = "equal rewards teach nothing; if it looks for what these pictures lack (text, objects), score some of your own"
        return warning("range", f"{low:.4g} for every image", advice)
    text = f"{low:.4g} to {high:.4g} on pictures and noise, std {spread:.3g}"
    if missing := len(scores_N) - len(applies):
        text += f"; does not apply to {missing} of {len(scores_N)}"
    if spread < 1e-5 * max(abs(low), abs(high)):
        return warning("range", text, "subtract a constant: the differences drown in float32's rounding")
    return ok("range", text)


def _plain(call: WatchedCalls, images: Tensor, same: _Same) -> Iterator[Finding]:
    """Black and white images; and whether they change the scores of others in their batch."""
    strangers = torch.cat([flat(grey, images.shape[1]) for grey in STRANGERS.values()])
    found = call.tried(torch.cat([images, strangers]))
    if isinstance(found, str):
        advice = "guard divisions and logarithms; generators do draw blank images"
        yield error("blank images", f"black and white ones among others: {found}", advice)
        return
    yield same("neighbours", found[:NUMBER], "black and white images in the batch", NEIGHBOURS)
    plain = found[NUMBER:]
    shown = [f"{value:.4g}" if value.isfinite() else "does not apply" for value in plain]
    text = ", ".join(f"{name} {value}" for name, value in zip(STRANGERS, shown, strict=True))
    if plain.isnan().any() and not same.scores_N.isnan().any():
        advice = "if that is 0 / 0, guard it: a blank image deserves a score, not to be left out"
        yield warning("blank images", text, advice)
    elif plain.max() > same.highest:
        advice = "training will find blank images; see that they are wanted, or add a second reward"
        yield warning("blank images", f"{text}: above every picture", advice)
    else:
        yield ok("blank images", text)


def _inputs(wrote: set[str]) -> Finding:
    if wrote:
        return warning(
            "inputs", f"it writes into {' and '.join(sorted(wrote))}", "work on copies: images.clone(), dict(row)"
        )
    return ok("inputs", "images and rows are left as they were")


def _rows(read: set[str], without: Tensor | str) -> Finding:
    if not read:
        return ok("columns", "reads no column of the rows")
    text = f"reads {', '.join(repr(name) for name in sorted(read))}; without: "
    if not isinstance(without, str):
        return ok("columns", text + "it goes on")
    if "raised ValueError" in without:
        return ok("columns", text + "it says so")
    return warning(
        "columns",
        text + without,
        "raise ValueError(f\"row {index} has no 'prompt', it has {sorted(row)}\"), or return NaN if it does not apply",
    )


def _speed(call: WatchedCalls, size: int, batches: Sequence[int]) -> Finding:
    seconds = {}
    for number in batches:
        found = call.tried(noise(number, size, seed=1))
        if isinstance(found, str):
            return error("speed", f"a batch of {number}: {found}", "split large batches inside, or see what fails")
        seconds[number] = call.seconds / number
    text = ", ".join(f"{1000 * each:.3g} ms an image in a batch of {number}" for number, each in seconds.items())
    best = min(seconds.values())
    if best > SLOW:
        advice = "score a batch at once, on a GPU, or in several workers"
        return warning("speed", f"{text}: a step of 512 rollouts waits {512 * best:.0f} s", advice)
    return ok("speed", text)
