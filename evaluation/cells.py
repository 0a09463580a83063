"""The table that answers the question of guidance: {off, tuned} x {no filters at temperature 1, tuned}.

Truncation alone can be worth as much as alignment (top-k 900 and top-p 0.96 take VAR-d30 without guidance from 4.74 to
2.17 FID), so a guidance-free figure means something only beside the same with the best filters, and beside guidance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evaluation.arms import Arm
from evaluation.headline import median
from evaluation.metric_names import Metric


@dataclass(frozen=True)
class Cell:
    """Arms that are guided or not, and plain or sampled at another temperature or with a filter; searches and images from elsewhere are in none."""

    guidance: str
    sampling: str
    guided: bool
    reshaped: bool

    def holds(self, arm: Arm) -> bool:
        return arm.drawn_once and (arm.guidance_scale != 1, arm.reshaped) == (self.guided, self.reshaped)

    def best(self, arms: Iterable[Arm], metric: Metric) -> tuple[Arm | None, int]:
        """The best arm in the cell, and among how many that have the metric it was chosen."""
        inside = [arm for arm in arms if self.holds(arm) and arm.metric(metric.name)]
        return min(inside, key=lambda arm: metric.rank(median(arm, metric)), default=None), len(inside)


# by names for addresses
CELLS = {
    "off-plain": Cell("no guidance", "T=1, no filter", False, False),
    "off-tuned": Cell("no guidance", "temperature or filter", False, True),
    "guided-plain": Cell("guidance", "T=1, no filter", True, False),
    "guided-tuned": Cell("guidance", "temperature or filter", True, True),
}


def best_of_cells(arms: Sequence[Arm], metric: Metric) -> list[Arm]:
    """The best arm of each cell that has one."""
    return [arm for cell in CELLS.values() if (arm := cell.best(arms, metric)[0]) is not None]
