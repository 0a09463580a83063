"""How much guidance of the base an aligned generator is worth without any.

Metrics move with the base's guidance scale: inception score, accuracy and precision rise, recall falls. The scale at which
the base's curve passes the aligned generator's guidance-free value is its equivalent by that metric. By FID the curve
turns back, and the first passage counts. Where the curve never gets there, alignment did what guidance cannot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from evaluation.arms import Arm
from evaluation.headline import median
from evaluation.metric_names import Metric, known_metrics


@dataclass(frozen=True)
class Equivalent:
    """By one metric: the aligned generator's value, and the base's guidance scale that gives it.

    scale: None where no scale that was tried does; then `nearest` is the one that comes nearest.
    schedule: of the guidance that scales are of.
    """

    label: str
    metric: Metric
    value: float
    scale: float | None
    nearest: float
    schedule: str = "constant"

    @property
    def words(self) -> str:
        """`1.48`, `off`, or that it was not reached."""
        if self.scale is None:
            return f"none tried (nearest: {self.nearest:g})"
        schedule = "" if self.schedule == "constant" else f" {self.schedule}"
        return "off" if self.scale == 1 else f"{self.scale:.2f}{schedule}"


def equivalent_scales(arms: Sequence[Arm], base_label: str = "base") -> list[Equivalent]:
    """For every label but the base's and every metric that both have, from arms of one split.

    Only plain arms of the others, and the base's arms that differ by the scale of one guidance schedule alone, take part;
    without two of the latter there is nothing to read. Of several schedules it is the one with the most arms.
    """
    path = _path([arm for arm in arms if arm.label == base_label])
    found = []
    for arm in arms:
        if arm.label == base_label or not arm.plain:
            continue
        for metric in known_metrics(row.metrics for row in arm.rows):
            curve = [(other.guidance_scale, median(other, metric)) for other in path if other.metric(metric.name)]
            curve = [point for point in curve if math.isfinite(point[1])]
            value = median(arm, metric)
            if len(curve) < 2 or not math.isfinite(value):
                continue
            nearest = min(curve, key=lambda point: abs(point[1] - value))[0]
            schedule = path[-1].guidance_schedule
            told = metric.under([arm.rows[0].protocol])
            found.append(Equivalent(arm.label, told, value, crossing(curve, value), nearest, schedule))
    return found


def _path(arms: Sequence[Arm]) -> list[Arm]:
    usable = [arm for arm in arms if arm.guided_blocks is None and not arm.reshaped and arm.drawn_once]
    paths: list[list[Arm]] = [
        [arm for arm in usable if arm.guidance_scale == 1 or arm.guidance_schedule == schedule]
        for schedule in dict.fromkeys(arm.guidance_schedule for arm in usable)
    ]
    longest: list[Arm] = max(paths, key=len, default=[])
    return sorted(longest, key=lambda arm: arm.guidance_scale)


def crossing(curve: Sequence[tuple[float, float]], value: float) -> float | None:
    """Where a curve of ascending x, linear between its points, first takes a value; None if it never does."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if min(y0, y1) <= value <= max(y0, y1):
            return x0 if y0 == y1 else x0 + (value - y0) / (y1 - y0) * (x1 - x0)
    return None
