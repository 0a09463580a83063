"""A few failed scores are gone without; many stop the run, in the reward's own words."""

from __future__ import annotations

import pytest

from rewards.base import RewardError
from rewards.failures import FailureReport, FailureWindow


def report(failed: int, total: int = 100, error: str = "the worker died", name: str = "hps") -> FailureReport:
    return FailureReport({name: failed, "other": 0}, {name: error} if failed else {}, total)


def test_what_is_within_the_limit_goes_on() -> None:
    window = FailureWindow(limit=0.05, steps=3)
    for _ in range(10):
        window.add([report(5)])


def test_above_the_limit_the_last_error_is_told() -> None:
    window = FailureWindow(limit=0.05, steps=3)
    window.add([report(0)])
    window.add([report(5, error="early")])
    window.add([report(10, error="late")])
    with pytest.raises(
        RewardError,
        match=r"16 of the last 300 scores of reward 'hps' failed, more than reward.max_failed=0.05 allows. The last error: late",
    ):
        window.add([report(1, error="late")])


def test_what_is_longer_ago_than_the_window_is_forgotten() -> None:
    window = FailureWindow(limit=0.05, steps=2)
    for failed in (5, 5, 5, 0, 10, 0, 10):
        window.add([report(failed)])
    window.clear()
    window.add([report(5)])


def test_a_reward_that_never_worked_stops_the_first_step() -> None:
    with pytest.raises(RewardError, match="6 of the last 6 scores"):
        FailureWindow(limit=0.05, steps=20).add([report(6, 6)])


def test_processes_count_together() -> None:
    FailureWindow(limit=0.05, steps=1).add([report(10), report(0)])
    with pytest.raises(RewardError, match="11 of the last 200 .* of rank 1"):
        FailureWindow(limit=0.05, steps=1).add([report(0), report(11, error="of rank 1")])


def test_rewards_count_each_by_itself() -> None:
    window = FailureWindow(limit=0.05, steps=1)
    window.add([FailureReport({"a": 4, "b": 4}, {"a": "x", "b": "y"}, 100)])


def test_no_failure_at_all_may_be_asked_for() -> None:
    window = FailureWindow(limit=0.0, steps=5)
    window.add([report(0)])
    with pytest.raises(RewardError, match="1 of the last 200"):
        window.add([report(1)])


@pytest.mark.parametrize(
    "settings", [{"limit": 1.0, "steps": 1}, {"limit": -0.1, "steps": 1}, {"limit": 0.1, "steps": 0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="reward.max_failed is .* and reward.failure_window is"):
        FailureWindow(**settings)
