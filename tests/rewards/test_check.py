"""`check_reward` passes a sound reward of each kind, and says what is wrong with one that breaks each promise."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rewards.base import PartialScores, Reward, groupwise
from rewards.check import check_reward
from rewards.findings import Finding, line_of, summary
from rewards.pictures import assorted

Rows = list[dict[str, Any]]


def check(function: Any, *, row: dict[str, Any] | None = None, timeout: float = 10.0) -> dict[str, Finding]:
    """Findings by what they are about."""
    found = list(check_reward(Reward("mine", function), size=16, row={} if row is None else row, timeout=timeout))
    assert len({finding.what for finding in found}) == len(found)
    return {finding.what: finding for finding in found}


def troubles(found: dict[str, Finding]) -> dict[str, str]:
    return {what: finding.level for what, finding in found.items() if finding.level != "ok"}


def texture(images: Tensor) -> Tensor:
    """Sound: the blank images get the lowest score."""
    return images.float().flatten(1).std(dim=1) / 128


def test_a_sound_reward_passes() -> None:
    found = check(lambda images, conditions: texture(images))
    assert troubles(found) == {}
    assert list(found) == [
        *(
            "result",
            "range",
            "determinism",
            "order",
            "alone",
            "neighbours",
            "blank images",
            "inputs",
            "columns",
            "speed",
        )
    ]
    assert found["result"].text == "8 numbers for 8 images, as a Tensor of torch.float32"
    assert found["blank images"].text == "black 0, white 0"
    assert found["columns"].text == "reads no column of the rows"
    assert "ms an image in a batch of 1, " in found["speed"].text
    assert found["speed"].text.endswith("in a batch of 32")


calls = itertools.count()
WRONG: dict[str, tuple[Callable[[Tensor, Rows], Any], dict[str, str], str]] = {
    # what it does: (function, all findings that are not ok, words of the first of them)
    "half precision": (lambda i, c: texture(i).half(), {"result": "warning"}, "torch.float16: two or three digits"),
    "gradients": (lambda i, c: with_gradients(i), {"result": "warning"}, "with gradients"),
    "large numbers": (lambda i, c: 1e6 + texture(i), {"range": "warning"}, r"std 0\.\d+"),
    "constant": (lambda i, c: np.ones(len(i)), {"range": "warning"}, "1 for every image"),
    "applies to none": (lambda i, c: [np.nan] * len(i), {"range": "error"}, "NaN for every image"),
    "random": (
        lambda i, c: texture(i) + next(calls),
        {"determinism": "error", "order": "error", "alone": "error", "neighbours": "error", "blank images": "warning"},
        r"the same batch twice gives .* for image 0, which had",
    ),
    "rounds by batch": (
        lambda i, c: texture(i) + 1e-3 * (len(i) == 1),
        {"alone": "warning"},
        "an image by itself gives",
    ),
    "by place": (
        lambda i, c: texture(i) - torch.arange(len(i)),
        {"order": "error", "alone": "error"},
        "the batch in another order gives",
    ),
    "relative": (lambda i, c: texture(i) - texture(i).mean(), {"alone": "error", "neighbours": "error"}, "by itself"),
    "shape of one": (
        lambda i, c: texture(i).squeeze(),
        {"alone": "error", "speed": "error"},
        r"an image by itself: .*returned shape \[\]; .*so shape \[1\]",
    ),
    "no blank images": (
        lambda i, c: [1 / value for value in texture(i).tolist()],
        {"blank images": "error"},
        "black and white ones among others: .*ZeroDivisionError",
    ),
    "0 / 0": (
        lambda i, c: texture(i) ** 2 / texture(i),
        {"blank images": "warning"},
        "black does not apply, white does",
    ),
    "likes blank images": (lambda i, c: -texture(i), {"blank images": "warning"}, "black -0, white -0: above every"),
    "writes images": (
        lambda i, c: texture(i.clone()) + i.zero_()[:, 0, 0, 0],
        {"inputs": "warning"},
        "into the images",
    ),
    "writes rows": (lambda i, c: [c[0].update(a=1), *texture(i)][1:], {"inputs": "warning"}, "into the rows"),
    "slow": (lambda i, c: slowly(i), {"speed": "warning"}, r"a step of 512 rollouts waits \d+ s"),
    "no large batch": (lambda i, c: few(i), {"speed": "error"}, "a batch of 32: .*OutOfMemory"),
}


def with_gradients(images: Tensor) -> Tensor:
    with torch.enable_grad():
        return texture(images) * torch.ones((), requires_grad=True)


def slowly(images: Tensor) -> Tensor:
    time.sleep(0.002 * len(images))
    return texture(images)


def few(images: Tensor) -> Tensor:
    if len(images) > 16:
        raise RuntimeError("OutOfMemory")
    return texture(images)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_found_and_nothing_else(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, expected, words = WRONG[case]
    monkeypatch.setattr("rewards.check.SLOW", 0.0015 if case == "slow" else 10.0)
    found = check(function)
    assert troubles(found) == expected
    first = found[next(iter(expected))]
    assert re.search(words, first.text), first.text
    assert first.advice


@pytest.mark.parametrize(
    ("function", "message", "advice"),
    [
        (lambda i, c: [0.5], r"returned shape \[1\]", "one number an image"),
        (lambda i, c: ["a"] * len(i), "which is not all numbers", "one number an image"),
        (lambda i, c: [np.inf] * len(i), "is infinite for 8 of 8 images", "guard divisions"),
        (
            lambda i, c: [row["prompt"] for row in c],
            "raised KeyError: 'prompt'",
            "see that the check gives what it reads: prompt=",
        ),
        (
            lambda i, c: PartialScores([1.0] * 8, [True] * 7 + [False], "no face found"),
            "failed: no face found",
            "score every image",
        ),
        (lambda i, c: time.sleep(0.5), "gave no answer for 8 images within 0.05 seconds", "raise timeout="),
    ],
)
def test_a_reward_that_cannot_be_called_is_told_so_at_once(function: Any, message: str, advice: str) -> None:
    (finding,) = check(function, timeout=0.05).values()
    assert (finding.level, finding.what) == ("error", "call")
    assert re.search(message, finding.text)
    assert advice in finding.advice


def test_the_columns_that_are_read_are_told() -> None:
    def careful(images: Tensor, conditions: Rows) -> Tensor:
        for index, row in enumerate(conditions):
            if "prompt" not in row:
                raise ValueError(f"row {index} has no 'prompt', it has {sorted(row)}")
        return texture(images) * torch.tensor([len(row["prompt"]) + row.get("label", 0) for row in conditions])

    columns = check(careful, row={"prompt": "a cat", "label": 1})["columns"]
    assert (columns.level, columns.text) == ("ok", "reads 'label', 'prompt'; without: it says so")
    columns = check(lambda i, c: texture(i) * c[0]["label"], row={"label": 2})["columns"]
    assert columns.level == "warning"
    assert "reads 'label'; without: reward 'mine' raised KeyError" in columns.text
    columns = check(lambda i, c: texture(i) * c[0].get("label", 1))["columns"]
    assert (columns.level, columns.text) == ("ok", "reads 'label'; without: it goes on")


def test_a_group_is_compared_and_its_order_counts_for_nothing() -> None:
    @groupwise
    def rank(images: Tensor, conditions: Rows) -> Tensor:
        return texture(images).argsort().argsort().float() / len(images)

    found = check(rank)
    assert troubles(found) == {}
    assert {"alone", "neighbours", "blank images"} & found.keys() == set()
    assert found["speed"].text.endswith("in a batch of 32")
    assert "batch of 1," not in found["speed"].text

    @groupwise
    def first_wins(images: Tensor, conditions: Rows) -> Tensor:
        return texture(images) - texture(images[:1])

    assert troubles(check(first_wins)) == {"order": "error"}


class Distance:
    """Sound: how far the batch's mean and all earlier ones', put together, are from 0.5 without each image."""

    def __init__(self) -> None:
        self.load_state_dict({})

    def describe(self, images: Tensor, conditions: Rows) -> Tensor:
        return images.float().mean(dim=(1, 2)) / 255

    def score(self, features_ND: Tensor) -> Tensor:
        total_D, number = self.total_D + features_ND.sum(dim=0), self.number + len(features_ND)
        without_ND = (total_D - features_ND) / (number - 1)
        return (without_ND - 0.5).norm(dim=1) - (total_D / number - 0.5).norm()

    def advance(self, features_ND: Tensor) -> None:
        self.total_D, self.number = self.total_D + features_ND.sum(dim=0), self.number + len(features_ND)

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self.total_D, "number": torch.tensor(self.number)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.total_D = state.get("total", torch.zeros(3, dtype=torch.float64))
        self.number = int(state.get("number", 0))


def test_a_sound_distribution_reward_passes_and_is_left_at_its_beginning() -> None:
    reward = Distance()
    found = check(reward)
    assert troubles(found) == {}
    assert list(found) == ["describe", "alone", "range", "determinism", "order", "reset", "resume"]
    assert found["describe"].text.startswith("3 numbers for each of 8 images, ")
    assert reward.number == 0


def test_a_distribution_reward_that_has_been_used_is_checked_from_its_beginning() -> None:
    reward = Distance()
    reward.advance(torch.ones(50, 3, dtype=torch.float64))
    assert troubles(check(reward)) == {}


class InPlace(Distance):
    """Sound too: its state_dict shows the tensors that it goes on to change, as torch's modules do."""

    def advance(self, features_ND: Tensor) -> None:
        self.total_D += features_ND.sum(dim=0)
        self.number += len(features_ND)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if not hasattr(self, "total_D"):
            super().load_state_dict({})
        self.total_D.copy_(state.get("total", torch.zeros(3)))
        self.number = int(state.get("number", 0))


def test_a_state_that_changes_in_place_is_no_fault() -> None:
    assert troubles(check(InPlace())) == {}


def test_the_pictures_are_smooth_or_noise_in_turn() -> None:
    pictures = assorted(5, 32).int()
    steps = (pictures[:, 1:] - pictures[:, :-1]).abs().flatten(1).max(dim=1).values
    assert [step < 128 for step in steps.tolist()] == [True, False, True, False, True]  # no value wraps around
    assert assorted(5, 32).int().equal(pictures)
    assert not assorted(4, 32)[0].equal(assorted(4, 32)[2])


class Moves(Distance):
    def score(self, features_ND: Tensor) -> Tensor:
        scores_N = super().score(features_ND)
        self.advance(features_ND)
        return scores_N


class ByPlace(Distance):
    def score(self, features_ND: Tensor) -> Tensor:
        return super().score(features_ND).cumsum(0)


class Relative(Distance):
    def describe(self, images: Tensor, conditions: Rows) -> Tensor:
        return super().describe(images, conditions) - super().describe(images, conditions).mean(dim=0)


class Keeps(Distance):
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state or not hasattr(self, "number"):
            super().load_state_dict(state)


class Forgets(Distance):
    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self.total_D}


class Stateless(Distance):
    def advance(self, features_ND: Tensor) -> None:
        pass

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class OneForAll(Distance):
    def score(self, features_ND: Tensor) -> Tensor:
        return features_ND.new_ones(len(features_ND))


class Raises(Distance):
    def score(self, features_ND: Tensor) -> Tensor:
        raise RuntimeError("float expected")


class Short(Distance):
    def score(self, features_ND: Tensor) -> Tensor:
        return super().score(features_ND)[:-1]


class Flat(Distance):
    def describe(self, images: Tensor, conditions: Rows) -> Tensor:
        return texture(images)


@pytest.mark.parametrize(
    ("kind", "expected", "words"),
    [
        (
            Moves,
            {"determinism": "error", "order": "error", "reset": "ok", "resume": "ok"},
            "scoring twice gives something",
        ),
        (ByPlace, {"order": "error"}, "the batch in another order gives something else"),
        (Relative, {"alone": "error"}, "an image's description by itself gives something else"),
        (Keeps, {"reset": "error"}, r"after load_state_dict\(\{\}\) gives something else"),
        (Forgets, {"resume": "error"}, "after loading the state of a step gives something else"),
        (Stateless, {"state": "warning"}, "state_dict is empty after a step"),
        (OneForAll, {"range": "error"}, "1 for every image"),
        (Raises, {"score": "error"}, "raised RuntimeError: float expected"),
        (Short, {"score": "error"}, r"shape \[7\], 0 of them not finite"),
        (Flat, {"describe": "error"}, r"described 8 images as \[8\]; a finite tensor \[8, D\] is needed"),
    ],
)
def test_what_a_distribution_reward_breaks_is_found(kind: type[Distance], expected: dict[str, str], words: str) -> None:
    found = check(kind())
    assert troubles(found) == {what: level for what, level in expected.items() if level != "ok"}
    assert re.search(words, found[next(iter(expected))].text)


def test_findings_are_told_in_lines() -> None:
    found = [Finding("ok", "range", "0 to 1"), Finding("error", "order", "differs", "sort nothing")] * 2
    assert line_of(found[0]) == "ok        range         0 to 1"
    assert line_of(found[1]).splitlines() == ["error     order         differs", " " * 24 + "-> sort nothing"]
    assert summary(found) == "2 ok, 2 errors"
    assert summary([*found[:2], Finding("warning", "a", "b", "c")]) == "1 ok, 1 warning, 1 error"
