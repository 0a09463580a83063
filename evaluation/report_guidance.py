"""The part of a run's page that answers the question of guidance: four cells, frontiers, and what alignment is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.arms import Arm
from evaluation.cells import CELLS
from evaluation.charts import label_classes
from evaluation.equivalence import Equivalent, equivalent_scales
from evaluation.frontiers import frontier_charts
from evaluation.headline import fixed, median
from evaluation.metric_names import Metric


def guidance_section(
    arms: Sequence[Arm], shown: Sequence[Arm], metric: Metric | None, names: Mapping[str, str]
) -> dict[str, Any] | None:
    """What the page shows; None where fewer than two of the cells hold anything.

    Args:
        arms: of both splits.
        shown: those that the page's table shows, of one split.
    """
    if metric is None:
        return None
    colours = label_classes(dict.fromkeys(arm.label for arm in [*shown, *arms]))
    rows = [_row(label, shown, metric, names, colours[label]) for label in dict.fromkeys(arm.label for arm in shown)]
    rows = [row for row in rows if any(row["cells"])]
    if sum(bool(cell) for row in rows for cell in row["cells"]) < 2:
        return None
    # a sweep's grid is of selection seeds, and says more than the few that were then reported
    by_split = [[arm for arm in arms if arm.split == split] for split in ("report", "select")]
    grid, rest = sorted(by_split, key=len, reverse=True)
    return {
        "metric": metric,
        "cells": list(CELLS.values()),
        "rows": rows,
        "frontiers": frontier_charts(grid, metric, names, colours),
        "grid_split": grid[0].split if grid else "",
        "equivalents": [_equivalent(one, names) for one in equivalent_scales(grid) or equivalent_scales(rest)],
    }


def _row(label: str, arms: Sequence[Arm], metric: Metric, names: Mapping[str, str], colour: str) -> dict[str, Any]:
    own = [arm for arm in arms if arm.label == label]
    cells: list[dict[str, str] | None] = []
    for cell in CELLS.values():
        arm, _ = cell.best(own, metric)
        spread = arm.metric(metric.name) if arm else None
        if arm is None or spread is None:
            cells.append(None)
            continue
        several = len(spread.values) > 1
        cells.append(
            {
                "value": fixed(median(arm, metric), metric),
                "range": f"{fixed(spread.min, metric)}–{fixed(spread.max, metric)}" if several else "",
                "settings": "" if arm.plain else arm.settings.removeprefix("no guidance, "),
            }
        )
    return {"name": names.get(label, label), "css": colour, "cells": cells}


def _equivalent(one: Equivalent, names: Mapping[str, str]) -> dict[str, str]:
    return {
        "name": names.get(one.label, one.label),
        "metric": one.metric.title,
        "value": fixed(one.value, one.metric),
        "scale": one.words,
    }
