"""A reward gives N numbers or NaN; whatever else it does ends in an error that names it, never in a reward of 0."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rewards.base import PartialScores, Reward, RewardError, groupwise
from rewards.scoring import RewardScores, score_rewards, whole_groups

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


# --- failures that are masked, not raised


def failing(images: Tensor, conditions: list[dict[str, Any]]) -> list[float]:
    raise KeyError("weights")


def partly(images: Tensor, conditions: list[dict[str, Any]]) -> PartialScores:
    return PartialScores([1.0, 2.0, float("nan")], [True, False, True], "no reply for one")


def test_a_failure_is_no_number_and_leaves_the_others_alone() -> None:
    rewards = [Reward("bad", failing), Reward("labels", labels), Reward("partly", partly)]
    scores = score_rewards(rewards, IMAGES, CONDITIONS, timeout=5.0)
    assert scores.valid_NR.tolist() == [[False, True, True], [False, True, False], [False, True, True]]
    assert scores.values_NR[:, 0].isnan().all()
    assert scores.values_NR[:, 1].tolist() == [2, 0, 1]
    assert scores.values_NR[0, 2] == 1.0
    assert scores.values_NR[1:, 2].isnan().all()
    assert list(scores.errors) == ["bad", "partly"]
    report = scores.report()
    assert report.failed == {"bad": 3, "labels": 0, "partly": 1}
    assert report.total == 3
    assert report.errors["partly"] == "reward 'partly' failed: no reply for one"
    with pytest.raises(RewardError, match="reward 'bad' raised KeyError"):
        scores.checked()


def test_what_is_not_valid_is_not_read() -> None:
    def half(images: Tensor, conditions: list[dict[str, Any]]) -> PartialScores:
        return PartialScores(torch.tensor([float("inf"), 3.0, 4.0]), torch.tensor([False, True, True]), "the first")

    assert score_rewards([Reward("half", half)], IMAGES, CONDITIONS, timeout=5.0).values_NR[1:, 0].tolist() == [3, 4]


def test_what_hangs_is_not_called_again() -> None:
    release, calls = threading.Event(), []

    def hanging(images: Tensor, conditions: list[dict[str, Any]]) -> list[float]:
        calls.append(len(images))
        release.wait(30)
        return [0.0] * len(images)

    rewards = [Reward("slow", hanging)]
    try:
        for message in ("gave no answer for 3 images", "is still busy with an earlier batch"):
            with pytest.raises(RewardError, match=f"reward 'slow' {message}"):
                score_rewards(rewards, IMAGES, CONDITIONS, timeout=0.05).checked()
        assert calls == [3]
    finally:
        release.set()


# --- groups


@groupwise
def rank(images: Tensor, conditions: list[dict[str, Any]], *, scale: float = 1.0) -> Tensor:
    """The place of each image among those that it sees, by its first pixel."""
    return scale * images[:, 0, 0, 0].argsort().argsort().float()


def test_a_groupwise_reward_sees_one_group_at_a_time() -> None:
    images = torch.zeros(6, 2, 2, 3, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([30, 20, 10, 2, 3, 1])
    rows = [{"label": 0}] * 3 + [{"label": 1}] * 3
    reward = Reward("rank", partial(rank, scale=2.0))
    assert reward.kind == "group"
    scores = score_rewards([reward], images, rows, timeout=5.0, group_size=3)
    assert scores.values_NR[:, 0].tolist() == [4, 2, 0, 2, 4, 0]
    with pytest.raises(
        ValueError, match="reward 'rank' compares the images of one prompt; 6 images in groups of 4 are none"
    ):
        score_rewards([reward], images, rows, timeout=5.0, group_size=4)
    with pytest.raises(ValueError, match="in groups of None are none"):
        score_rewards([reward], images, rows, timeout=5.0)


def test_a_group_that_fails_leaves_the_others() -> None:
    @groupwise
    def picky(images: Tensor, conditions: list[dict[str, Any]]) -> list[float]:
        if conditions[0]["label"] == 1:
            raise OverflowError("too many")
        return [1.0] * len(images)

    rows = [{"label": label} for label in (0, 0, 1, 1, 2, 2)]
    images = torch.zeros(6, 2, 2, 3, dtype=torch.uint8)
    scores = score_rewards([Reward("picky", picky)], images, rows, timeout=5.0, group_size=2)
    assert scores.valid_NR[:, 0].tolist() == [True, True, False, False, True, True]
    assert "OverflowError: too many" in str(scores.errors["picky"])


def test_batches_are_whole_groups_where_groups_are_compared() -> None:
    assert [whole_groups([Reward("rank", rank)], size, 4) for size in (1, 4, 7, 8)] == [4, 4, 4, 8]
    assert whole_groups([Reward("labels", labels)], 7, 4) == 7


# --- distributions


class Spread:
    """Describes by two numbers, keeps how many images it has seen."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def describe(self, images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        if self.fails:
            raise OSError("no extractor")
        return images.double().mean(dim=(1, 2))[:, :2]

    def score(self, features_ND: Tensor) -> Tensor: ...

    def advance(self, features_ND: Tensor) -> None: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


def test_a_distribution_reward_describes() -> None:
    reward = Reward("spread", Spread())
    assert reward.kind == "distribution"
    scores = score_rewards([reward, Reward("labels", labels)], IMAGES, CONDITIONS, timeout=5.0)
    assert scores.values_NR[:, 0].isnan().all()
    assert scores.valid_NR.all()
    torch.testing.assert_close(scores.features["spread"], IMAGES.double().mean(dim=(1, 2))[:, :2])
    failed = score_rewards([Reward("spread", Spread(fails=True))], IMAGES[:1], CONDITIONS[:1], timeout=5.0)
    assert not failed.valid_NR.any()
    whole = RewardScores.cat([failed, score_rewards([reward], IMAGES, CONDITIONS, timeout=5.0)])
    assert whole.features["spread"].shape == (4, 2)
    assert whole.features["spread"].isnan().any(dim=1).tolist() == [True, False, False, False]
    assert whole.valid_NR[:, 0].tolist() == [False, True, True, True]


@pytest.mark.gpu
def test_images_may_be_on_a_gpu() -> None:
    def look(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        assert images.device.type == "cpu"
        return images.float().mean(dim=(1, 2, 3))

    images = IMAGES.to(f"cuda:{torch.cuda.device_count() - 1}")
    scores = score_rewards([Reward("look", look)], images, CONDITIONS, timeout=60.0)
    assert torch.allclose(scores.values_NR[:, 0], IMAGES.float().mean(dim=(1, 2, 3)))
