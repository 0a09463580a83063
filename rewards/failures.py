"""When too many scores failed: a run goes on without a few of them, and stops before it trains on what is left of many."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewards.base import RewardError


@dataclass(frozen=True)
class FailureReport:
    """What one process saw fail in one step: of each reward by name the failed scores and the first error, of `total`."""

    failed: Mapping[str, int]
    errors: Mapping[str, str]
    total: int


class FailureWindow:
    """The share of each reward's scores that failed, over the last so many steps and all processes.

    Args:
        limit: share above which the run stops, in [0, 1).
        steps: length of the window. Early in a run it is as long as the run is, so that a reward that never worked stops
            it at once.
    """

    def __init__(self, *, limit: float, steps: int) -> None:
        if not 0 <= limit < 1 or steps < 1:
            raise ValueError(
                f"reward.max_failed is {limit} and reward.failure_window is {steps}; the first is a share below 1, the second a number of steps from 1"
            )
        self.limit = limit
        self._steps: deque[Sequence[FailureReport]] = deque(maxlen=steps)

    def add(self, reports: Sequence[FailureReport]) -> None:
        """Take in a step, as all processes saw it.

        Raises:
            RewardError: a reward failed too often; with its own words.
        """
        self._steps.append(reports)
        seen = [report for step in self._steps for report in step]
        total = sum(report.total for report in seen)
        for name in dict.fromkeys(name for report in seen for name in report.failed):
            failed = sum(report.failed.get(name, 0) for report in seen)
            if failed > self.limit * total:
                last = next(report.errors[name] for report in reversed(seen) if name in report.errors)
                raise RewardError(
                    f"{failed} of the last {total} scores of reward {name!r} failed, more than reward.max_failed={self.limit:g} allows. The last error: {last}"
                )

    def clear(self) -> None:
        self._steps.clear()
