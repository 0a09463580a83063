"""Rows of `results.jsonl` grouped into arms, and arms compared.

Arms are compared seed by seed, since images drawn with the same seed share most of their noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from evaluation.metric_names import CLASS_ACCURACY, Metric, find_key, known_metric, known_metrics
from evaluation.results import ResultRow

# Two rows that differ in one of these measure different things: FID alone moves with every one of them.
COMPARABLE = ("protocol", "n", "reference_n", "reference_hash", "extractor_fingerprint")
# Rows that agree in these are one arm.
ARM = (
    *(
        "label",
        "guidance_scale",
        "guidance_schedule",
        "guided_blocks",
        "temperature",
        "top_k",
        "top_p",
        "search",
        "images",
    ),
    "split",
)


@dataclass(frozen=True)
class Spread:
    """A number by seed. NaN is kept, so that a seed without a defined value cannot vanish from a median."""

    values: Mapping[int, float]

    @property
    def median(self) -> float:
        return float(np.median(list(self.values.values())))

    @property
    def min(self) -> float:
        return float(np.min(list(self.values.values())))

    @property
    def max(self) -> float:
        return float(np.max(list(self.values.values())))

    @property
    def sd(self) -> float:
        """Sample standard deviation; NaN for a single seed."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Arm:
    """All rows with one label, one way of sampling and one split: at most one row per seed, by seed."""

    label: str
    guidance_scale: float
    guidance_schedule: str
    guided_blocks: int | None
    temperature: float
    top_k: int
    top_p: float
    search: str
    images: str
    split: str
    rows: tuple[ResultRow, ...]

    @property
    def guides_evenly(self) -> bool:
        """Every block by the same scale."""
        return self.guidance_schedule == "constant" and self.guided_blocks is None

    @property
    def guidance(self) -> str:
        """Its guidance in a few characters: `off`, `1.5`, `2 linear`, `2 linear, first 5`."""
        if self.images and self._untold:
            return "not told"
        if self.guidance_scale == 1:
            return "off"
        schedule = "" if self.guidance_schedule == "constant" else f" {self.guidance_schedule}"
        interval = "" if self.guided_blocks is None else f", first {self.guided_blocks}"
        return f"{self.guidance_scale:g}{schedule}{interval}"

    @property
    def settings(self) -> str:
        """How it was sampled, in words."""
        guidance = "no guidance" if self.guidance_scale == 1 else f"guidance {self.guidance}"
        told = [guidance, f"T={self.temperature:g}", *self.filters, *([self.search] if self.search else [])]
        if self.images:
            told = [f"images of {self.images}", *([] if self._untold else told)]
        return ", ".join(told)

    @property
    def _untold(self) -> bool:
        """At the defaults, which say nothing of images that were drawn elsewhere."""
        return self.guidance_scale == 1 and not self.reshaped

    @property
    def filters(self) -> list[str]:
        top_k = [f"top-k {self.top_k}"] if self.top_k else []
        return top_k + ([f"top-p {self.top_p:g}"] if self.top_p < 1 else [])

    @property
    def reshaped(self) -> bool:
        """At another temperature than 1, or with a filter."""
        return self.temperature != 1 or bool(self.filters)

    @property
    def drawn_once(self) -> bool:
        """By a generator here, without a search."""
        return not (self.search or self.images)

    @property
    def plain(self) -> bool:
        """Sampled once from the model's own distribution: no guidance, temperature 1, no filter, no search."""
        return self.guidance_scale == 1 and not self.reshaped and self.drawn_once

    def metric(self, name: str) -> Spread | None:
        """A metric by seed, found by its prefix (`fid`, `fid_`) or its whole key; None unless every row has it."""
        keys = [find_key(row.metrics, name) for row in self.rows]
        if None in keys:
            return None
        return Spread({row.seed: row.metrics[str(key)] for row, key in zip(self.rows, keys, strict=True)})

    @property
    def forwards_per_image(self) -> float | None:
        return _median_known(row.forwards_per_image for row in self.rows)

    @property
    def images_per_second(self) -> float | None:
        return _median_known(row.images_per_second for row in self.rows)


def _median_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def summarize(rows: Iterable[ResultRow]) -> list[Arm]:
    """Group rows into arms, in order of first appearance; of two rows of one arm and seed, the later one counts.

    Raises:
        ValueError: rows of one arm have different protocols, sample counts, references or extractors.
    """
    arms: dict[tuple[Any, ...], dict[int, ResultRow]] = {}
    for row in rows:
        arms.setdefault(tuple(getattr(row, name) for name in ARM), {})[row.seed] = row
    for by_seed in arms.values():
        refuse_mixed(list(by_seed.values()))
    return [
        Arm(**dict(zip(ARM, key, strict=True)), rows=tuple(by_seed[seed] for seed in sorted(by_seed)))
        for key, by_seed in arms.items()
    ]


def refuse_mixed(rows: Sequence[ResultRow]) -> None:
    """Raise ValueError, naming two rows, unless all were measured in the same way."""
    for first, row in pairwise(rows):
        for name in COMPARABLE:
            if getattr(row, name) != getattr(first, name):
                raise ValueError(
                    f"cannot compare rows with different {name}: {getattr(first, name)} in {_name(first)}, "
                    f"{getattr(row, name)} in {_name(row)}. Evaluate both under the same protocol"
                )


def _name(row: ResultRow) -> str:
    return f"{row.label!r} (guidance {row.guidance_scale:g}, T={row.temperature:g}, {row.split} seed {row.seed})"


@dataclass(frozen=True)
class Paired:
    """An arm against a base on the seeds that both have: differences arm - base and ratios arm / base."""

    arm: Spread
    base: Spread
    differences: Spread
    ratios: Spread


def paired(arm: Arm, base: Arm, metric: str) -> Paired:
    """Compare two arms seed by seed.

    Raises:
        ValueError: the arms were not measured in the same way, share no seed, or lack the metric.
    """
    refuse_mixed([*base.rows, *arm.rows])
    arm_spread, base_spread = arm.metric(metric), base.metric(metric)
    if arm_spread is None or base_spread is None:
        raise ValueError(f"{arm.label!r} and {base.label!r} cannot be compared by {metric!r}: a row lacks it")
    ours, theirs = arm_spread.values, base_spread.values
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        raise ValueError(
            f"{arm.label!r} (seeds {list(ours)}) and {base.label!r} (seeds {list(theirs)}) share no seed; "
            "evaluate both on the same seeds"
        )
    return Paired(
        arm=Spread({seed: ours[seed] for seed in seeds}),
        base=Spread({seed: theirs[seed] for seed in seeds}),
        differences=Spread({seed: ours[seed] - theirs[seed] for seed in seeds}),
        ratios=Spread({seed: ours[seed] / (theirs[seed] or math.nan) for seed in seeds}),
    )


def other_metrics(arms: Iterable[Arm]) -> list[str]:
    """Names of metrics that are not known ones: GenEval's tags, rewards. Single classes are left out."""
    keys = [(key, row.protocol) for arm in arms for row in arm.rows for key in row.metrics]
    names = dict.fromkeys(key.partition(f"_{protocol}")[0] for key, protocol in keys)
    return [name for name in names if known_metric(name) is None and not name.startswith(CLASS_ACCURACY)]


def text_table(arms: Sequence[Arm]) -> str:
    """The arms as aligned columns for a terminal: medians over the seeds, with their range.

    Columns are the known metrics that an arm has, or where there are none those of any name.
    """
    protocols = [arm.rows[0].protocol for arm in arms]
    known = [metric.under(protocols) for metric in known_metrics([row.metrics for arm in arms for row in arm.rows])]
    columns = known or [Metric(name, name) for name in other_metrics(arms)]
    table = [["arm", "guidance", "T", *(metric.title for metric in columns), "forwards/img", "img/s", "seeds"]]
    for arm in arms:
        name = [
            arm.label,
            *arm.filters,
            *([arm.search] if arm.search else []),
            *(["(select)"] if arm.split == "select" else []),
        ]
        values = [_cell(arm.metric(metric.name), metric.digits) for metric in columns]
        costs = ["-" if cost is None else f"{cost:.0f}" for cost in (arm.forwards_per_image, arm.images_per_second)]
        table.append([" ".join(name), arm.guidance, f"{arm.temperature:g}", *values, *costs, str(len(arm.rows))])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *rest in table:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "-"
    text = f"{spread.median:.{digits}f}"
    if len(spread.values) > 1:
        text += f" [{spread.min:.{digits}f}-{spread.max:.{digits}f}]"
    return text
