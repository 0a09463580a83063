"""Runs side by side: every metric of one arm of each, differences with intervals, paired by seed where seeds allow.

Images of one seed share most of their noise, so that differences within a seed vary less than the figures themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from evaluation.arms import Arm, other_metrics, refuse_mixed
from evaluation.headline import change, fixed
from evaluation.metric_names import Metric, find_key, known_metrics

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """One metric of an arm against the first arm's.

    base, value: medians over the seeds that both have.
    difference: the mean over these seeds of value - base.
    interval: its 95 % interval; None where nothing is known of its spread.
    seeds: how many were paired. Of one, the interval comes from the standard errors of both rows, as if their images were
        independent: it is too wide for images that share their noise.
    """

    metric: Metric
    base: float
    value: float
    difference: float
    interval: tuple[float, float] | None
    seeds: int

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `no clear change` where the interval holds 0."""
        if self.interval is None:
            return "spread unknown"
        low, high = self.interval
        if low <= 0 <= high:
            return "no clear change"
        return "better" if (high < 0) == self.metric.lower_is_better else "worse"


def compare_arms(arm: Arm, base: Arm) -> list[Difference]:
    """For every metric that both arms have, known ones first; of any other name, such as rewards, higher is better.

    Raises:
        ValueError: the arms were not measured in the same way, or share no seed.
    """
    refuse_mixed([*base.rows, *arm.rows])
    seeds = sorted({row.seed for row in arm.rows} & {row.seed for row in base.rows})
    if not seeds:
        raise ValueError(
            f"the arms {base.label!r} and {arm.label!r} share no seed (theirs: {[row.seed for row in base.rows]} and "
            f"{[row.seed for row in arm.rows]}); evaluate both on the same ones, sampling.seed= of `align eval`"
        )
    known = known_metrics(row.metrics for row in base.rows)
    found = []
    for metric in [*known, *(Metric(name, name) for name in other_metrics([base]))]:
        before, after = base.metric(metric.name), arm.metric(metric.name)
        if before is None or after is None:
            continue
        old_S = np.array([before.values[seed] for seed in seeds])
        new_S = np.array([after.values[seed] for seed in seeds])
        moved_S = new_S - old_S
        found.append(
            Difference(
                metric.under([row.protocol for row in base.rows]),
                float(np.median(old_S)),
                float(np.median(new_S)),
                float(moved_S.mean()),
                _interval(moved_S, arm, base, metric, seeds),
                len(seeds),
            )
        )
    return found


def _interval(
    moved_S: np.ndarray, arm: Arm, base: Arm, metric: Metric, seeds: Sequence[int]
) -> tuple[float, float] | None:
    """Student's over seeds; of one seed the normal one of two standard errors."""
    if len(seeds) > 1:
        half = stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1) * moved_S.std(ddof=1) / math.sqrt(len(seeds))
    else:
        errors = [_stderr(one, metric, seeds[0]) for one in (arm, base)]
        half = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.hypot(*errors)
    if not (math.isfinite(half) and math.isfinite(moved_S.mean())):
        return None
    return float(moved_S.mean() - half), float(moved_S.mean() + half)


def _stderr(arm: Arm, metric: Metric, seed: int) -> float:
    row = next(row for row in arm.rows if row.seed == seed)
    return row.stderr.get(find_key(row.stderr, metric.name) or "", math.nan)


def comparison_table(differences: Sequence[Difference], base_name: str, name: str) -> str:
    """Markdown."""
    lines = [
        f"| metric | {base_name} | {name} | difference | 95 % interval | seeds | |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in differences:
        interval = "" if one.interval is None else " to ".join(change(end, one.metric) for end in one.interval)
        cells = [
            one.metric.title,
            fixed(one.base, one.metric),
            fixed(one.value, one.metric),
            change(one.difference, one.metric),
            interval,
            str(one.seeds),
            one.verdict,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
