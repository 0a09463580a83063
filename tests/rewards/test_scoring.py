"""A reward gives N numbers or NaN; whatever else it does ends in an error that names it, never in a reward of 0."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rewards.base import Reward, RewardError
from rewards.scoring import RewardScores, score_rewards

IMAGES = torch.arange(3 * 4 * 5 * 3, dtype=torch.uint8).reshape(3, 4, 5, 3)
CONDITIONS = [{"label": label} for label in (2, 0, 1)]


def score(*functions: Callable[..., Any], timeout: float | None = 5.0) -> RewardScores:
    rewards = [Reward(f"r{index}", function) for index, function in enumerate(functions)]
    return score_rewards(rewards, IMAGES, CONDITIONS, timeout=timeout).checked()


def labels(images: Tensor, conditions: list[dict[str, Any]]) -> list[int]:
    return [row["label"] for row in conditions]


@pytest.mark.parametrize("timeout", [5.0, None])
def test_columns_follow_the_rewards(timeout: float | None) -> None:
    def redness(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        return images[..., 0].float().mean(dim=(1, 2))

    scores = score(redness, labels, timeout=timeout)
    # rows of the first channel: 0, 3, ..., 57 has mean 28.5, and each image begins 60 higher
    assert scores.values_NR.tolist() == [[28.5, 2], [88.5, 0], [148.5, 1]]
    assert scores.values_NR.dtype == torch.float32
    assert scores.names == ("r0", "r1")
    assert len(scores.seconds) == 2
    assert min(scores.seconds) >= 0


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16), [1, 2, 3]),
        (torch.tensor([1.0, 2.0, 3.0], requires_grad=True), [1, 2, 3]),
        (np.array([1.5, 2.5, 3.5], dtype=np.float64), [1.5, 2.5, 3.5]),
        ((1, 2.5, np.float32(3)), [1, 2.5, 3]),
        ([torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)], [1, 2, 3]),
        (torch.tensor([True, False, True]), [1, 0, 1]),
    ],
    ids=["bfloat16", "with gradient", "numpy", "tuple", "list of tensors", "booleans"],
)
def test_numbers_come_in_many_shapes(result: Any, expected: list[float]) -> None:
    assert score(lambda images, conditions: result).values_NR[:, 0].tolist() == expected


def test_nan_is_kept_even_if_nothing_applies() -> None:
    scores = score(lambda i, c: [float("nan"), 1.0, float("nan")], lambda i, c: torch.full((3,), torch.nan))
    assert scores.values_NR.isnan().tolist() == [[True, True], [False, True], [True, True]]
    assert score(lambda i, c: [float("nan")] * 3).values_NR.isnan().all()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, 2.0], r"'r0' returned shape \[2\]; a reward returns 3 numbers, one for each image.* so shape \[3\]"),
        (torch.zeros(3, 1), r"returned shape \[3, 1\]"),
        (0.5, r"returned shape \[\]"),
        (["a", "b", "c"], r"returned a list \['a', 'b', 'c'\], which is not all numbers"),
        ([0.5, None, 1.0], r"\[0.5, None, 1.0\], which is not all numbers; .*and NaN where it does not apply"),
        (None, r"returned a NoneType None"),
        ({"reward": [1.0, 2.0, 3.0]}, r"returned a dict"),
        ([[1.0], [1.0, 2.0], 3.0], r"returned a list .*a reward returns 3 numbers"),
        (torch.zeros(3, dtype=torch.complex64), r"which is not all numbers"),
        (
            [0.0, float("inf"), -float("inf")],
            r"is infinite for 2 of 3 images, the first of them image 1; rewards are finite",
        ),
        (np.array([0.0, 0.0, 1e300]), r"is infinite for 1 of 3 images, the first of them image 2"),
    ],
)
def test_what_is_no_reward_is_refused(result: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score(lambda images, conditions: result)


def test_an_exception_names_the_reward_and_keeps_its_cause() -> None:
    def broken(images: Tensor, conditions: list[dict[str, Any]]) -> list[float]:
        return [row["prompt"] for row in conditions]

    with pytest.raises(RewardError, match=r"reward 'r1' raised KeyError: 'prompt'") as caught:
        score(labels, broken)
    assert isinstance(caught.value.__cause__, KeyError)
    assert isinstance(caught.value, ValueError)  # the command line shows those as one line


def test_leaving_the_process_is_an_exception_too() -> None:
    with pytest.raises(RewardError, match="'r0' raised SystemExit: 3"):
        score(lambda images, conditions: exit_with(3))


def exit_with(code: int) -> None:
    raise SystemExit(code)


def test_a_hanging_reward_is_given_up_on() -> None:
    release = threading.Event()
    started = time.monotonic()
    with pytest.raises(RewardError, match=r"'r0' gave no answer for 3 images within 0.05 seconds; raise the timeout"):
        score(lambda images, conditions: release.wait(30), timeout=0.05)
    assert time.monotonic() - started < 5
    release.set()


def test_a_reward_cannot_change_what_others_see() -> None:
    before = IMAGES.clone()

    def vandal(images: Tensor, conditions: list[dict[str, Any]]) -> list[float]:
        images.zero_()
        for row in conditions:
            row["label"] = 9
        conditions.reverse()
        return [0.0, 0.0, 0.0]

    scores = score(vandal, labels, lambda images, conditions: images.float().sum(dim=(1, 2, 3)))
    assert torch.equal(IMAGES, before)
    assert [row["label"] for row in CONDITIONS] == [2, 0, 1]
    assert scores.values_NR[:, 1].tolist() == [2, 0, 1]
    assert torch.equal(scores.values_NR[:, 2], before.float().sum(dim=(1, 2, 3)))


@pytest.mark.parametrize("timeout", [5.0, None])
def test_rewards_run_without_gradients(timeout: float | None) -> None:
    seen = []

    def look(images: Tensor, conditions: list[dict[str, Any]]) -> list[float]:
        seen.append(torch.is_grad_enabled())
        return [0.0] * 3

    with torch.enable_grad():
        score(look, timeout=timeout)
    assert seen == [False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], IMAGES, CONDITIONS), "there are no rewards"),
        (([Reward("r", labels)], IMAGES.float(), CONDITIONS), r"read uint8 images \[N, H, W, 3\]; got torch.float32"),
        (([Reward("r", labels)], IMAGES[..., :1], CONDITIONS), r"got torch.uint8 \[3, 4, 5, 1\]"),
        (([Reward("r", labels)], IMAGES, CONDITIONS[:2]), "3 images but 2 conditions"),
    ],
)
def test_the_callers_mistakes_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_rewards(*arguments, timeout=1.0)
    with pytest.raises(ValueError, match="timeout is 0; it is in seconds, above 0"):
        score_rewards([Reward("r", labels)], IMAGES, CONDITIONS, timeout=0)


def test_a_weight_is_finite() -> None:
    with pytest.raises(ValueError, match="reward 'r' has weight nan"):
        Reward("r", labels, weight=float("nan"))


@pytest.mark.gpu
def test_images_may_be_on_a_gpu() -> None:
    def look(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        assert torch.cuda.current_device() == images.device.index
        return images.float().mean(dim=(1, 2, 3))

    images = IMAGES.to(f"cuda:{torch.cuda.device_count() - 1}")
    scores = score_rewards([Reward("look", look)], images, CONDITIONS, timeout=60.0)
    assert torch.allclose(scores.values_NR[:, 0], IMAGES.float().mean(dim=(1, 2, 3)))
