"""Scoring in the background gives what scoring in the foreground does, and ends with its context."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards.background import BackgroundScorer
from rewards.base import PartialScores, Reward
from rewards.scoring import score_rewards

IMAGES = torch.arange(3 * 4 * 5 * 3, dtype=torch.uint8).reshape(3, 4, 5, 3)
CONDITIONS = [{"label": label} for label in (2, 0, 1)]


def labels(images: Tensor, conditions: list[dict[str, Any]]) -> list[int]:
    return [row["label"] for row in conditions]


def partly(images: Tensor, conditions: list[dict[str, Any]]) -> PartialScores:
    return PartialScores([1.0, 2.0, float("nan")], [True, False, True], "no reply for one")


def failing(images: Tensor, conditions: list[dict[str, Any]]) -> list[float]:
    raise KeyError("weights")


def test_scores_in_the_background_are_those_of_the_foreground() -> None:
    rewards = [Reward("labels", labels), Reward("partly", partly)]
    with BackgroundScorer(rewards, timeout=5.0) as scorer:
        for _ in range(3):
            scorer.submit(IMAGES, CONDITIONS)
        scores = scorer.collect()
    one = score_rewards(rewards, IMAGES, CONDITIONS, timeout=5.0)
    assert torch.equal(scores.values_NR.nan_to_num(-1), one.values_NR.repeat(3, 1).nan_to_num(-1))
    assert torch.equal(scores.valid_NR, one.valid_NR.repeat(3, 1))
    assert str(scores.errors["partly"]) == str(one.errors["partly"])


def test_scoring_goes_on_while_the_caller_works() -> None:
    entered, working = threading.Event(), threading.Event()

    def waits(images: Tensor, conditions: list[dict[str, Any]]) -> list[float]:
        entered.set()
        assert working.wait(10)
        return [0.0] * len(images)

    with BackgroundScorer([Reward("waits", waits)], timeout=20.0) as scorer:
        scorer.submit(IMAGES, CONDITIONS)
        assert entered.wait(10)  # it has begun, and the caller is free
        time.sleep(0.1)
        working.set()
        assert scorer.collect().valid_NR.all()
    assert scorer.hidden >= 0.09
    assert scorer.exposed < scorer.hidden


def test_remote_rewards_are_waited_for_side_by_side() -> None:
    meet = threading.Barrier(3, timeout=10)

    class Remote:
        remote = True

        def __init__(self, value: float) -> None:
            self.value = value

        def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> list[float]:
            meet.wait()  # each one alone would wait for ever
            return [self.value] * len(images)

    rewards = [Reward("a", Remote(1.0)), Reward("labels", labels), Reward("b", Remote(2.0)), Reward("bad", failing)]
    with BackgroundScorer(rewards, timeout=20.0) as scorer:
        scorer.submit(IMAGES, CONDITIONS)
        meet.wait()
        scores = scorer.collect()
    assert scores.names == ("a", "labels", "b", "bad")
    assert scores.values_NR[:, :3].tolist() == [[1, 2, 2], [1, 0, 2], [1, 1, 2]]
    assert scores.valid_NR.all(dim=0).tolist() == [True, True, True, False]
    assert list(scores.errors) == ["bad"]
    assert len(scores.seconds) == 4


def test_the_callers_mistakes_come_out_of_the_background() -> None:
    with BackgroundScorer([Reward("labels", labels)], timeout=5.0) as scorer:
        scorer.submit(IMAGES, CONDITIONS[:2])
        with pytest.raises(ValueError, match="3 images but 2 conditions"):
            scorer.collect()


def test_what_has_not_begun_is_not_scored_after_an_error() -> None:
    entered, release, calls = threading.Event(), threading.Event(), []

    def waits(images: Tensor, conditions: list[dict[str, Any]]) -> list[float]:
        calls.append(len(images))
        entered.set()
        release.wait(10)
        return [0.0] * len(images)

    before = threading.active_count()
    with pytest.raises(OSError, match="out of memory"), BackgroundScorer([Reward("w", waits)], timeout=20.0) as scorer:
        for _ in range(3):
            scorer.submit(IMAGES, CONDITIONS)
        assert entered.wait(10)
        raise OSError("out of memory")
    release.set()
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert calls == [3]
