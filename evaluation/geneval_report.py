"""The report's section on GenEval: every kind of prompt before and after, and why images failed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from evaluation.arms import Arm, paired
from evaluation.charts import Band, Mark, arm_class, plot
from evaluation.geneval.requests import TAGS
from evaluation.headline import HELD_OUT, Roles, Verdict, change, fixed, judge
from evaluation.metric_names import Metric, find_key
from evaluation.report_verdicts import ALL, Record, failures, ordered_reasons, pooled_intervals, read_verdicts

TAG_METRICS = tuple(Metric(tag, {"color_attr": "color attribution"}.get(tag, tag.replace("_", " "))) for tag in TAGS)
# in a chart: how far the dots of arms stand from each other, in units of the distance between two kinds of prompt
DOT_DISTANCE = 0.2
CHART_SIZE = (1060, 290)

Intervals = Mapping[str, tuple[float, float]]


def geneval_section(
    run_dir: Path, arms: Sequence[Arm], roles: Roles, metric: Metric | None, names: Mapping[str, str]
) -> dict[str, Any] | None:
    """What `report_geneval.html.j2` shows; None for a run that is not judged by GenEval's own protocol.

    Args:
        arms: of one split, measured under one protocol.
        names: what to call the arms' labels, such as {"aligned": "GRPO"}.
    """
    if metric is None or metric.name != "geneval":
        return None
    if not any(arm.metric(column.name) for column in TAG_METRICS for arm in arms):
        return None  # a mean of the reward `geneval`, whose verdicts are none of the protocol's
    # other settings of the base, and other temperatures and filters, are told in the main table
    others = [arm for arm in arms if arm not in roles.present() and arm.label != "base" and arm.metric(metric.name)]
    others = [arm for arm in others if not arm.reshaped]
    told = [*roles.present(), *others] or list(arms)
    columns = [column for column in (metric, HELD_OUT, *TAG_METRICS) if any(arm.metric(column.name) for arm in told)]
    verdicts = [read_verdicts(run_dir, arm) for arm in told]
    pooled = [pooled_intervals(records) for records in verdicts]
    drawn = [index for index, arm in enumerate(told) if arm in (roles.base, roles.cfg, roles.aligned)]
    drawn = drawn or list(range(min(len(told), 3)))
    return {
        "columns": columns,
        "arms": [_arm_entry(arm, roles, columns, ends, names) for arm, ends in zip(told, pooled, strict=True)],
        "changes": _changes(roles, columns),
        "method": names["aligned"],
        "seeds": max(len(arm.rows) for arm in told),
        "chart": _chart([told[index] for index in drawn], columns, [pooled[index] for index in drawn], names),
        "legend": [
            (
                f"{arm_class(told[index])}{' hollow' if told[index].guidance_scale != 1 else ''}",
                _title(told[index], names),
            )
            for index in drawn
        ],
        "failures": _failures([(told[index], verdicts[index]) for index in drawn if verdicts[index]], names),
    }


def _title(arm: Arm, names: Mapping[str, str]) -> str:
    name = names.get(arm.label, arm.label)
    return f"{name}, {arm.settings}"


def _arm_entry(
    arm: Arm, roles: Roles, columns: Sequence[Metric], pooled: Intervals, names: Mapping[str, str]
) -> dict[str, Any]:
    cells = []
    for column in columns:
        spread, ends = arm.metric(column.name), _interval(arm, column, pooled)
        several = spread is not None and len(spread.values) > 1
        cells.append(
            {
                "median": fixed(spread.median, column) if spread else "",
                "range": f"{fixed(spread.min, column)}–{fixed(spread.max, column)}" if spread and several else "",
                "interval": f"[{fixed(ends[0], column)}, {fixed(ends[1], column)}]" if ends else "",
            }
        )
    return {
        "name": names.get(arm.label, arm.label),
        "settings": arm.settings,
        "css": arm_class(arm),
        "strong": arm is roles.aligned,
        "cells": cells,
    }


def _interval(arm: Arm, metric: Metric, pooled: Intervals) -> tuple[float, float] | None:
    """95 % over prompts: a single seed's own, or that of all seeds' images together, for which verdicts are needed."""
    if len(arm.rows) == 1:
        intervals = arm.rows[0].intervals
        key = find_key(intervals, metric.name)
        return intervals[key] if key else None
    return pooled.get(metric.name)


def _changes(roles: Roles, columns: Sequence[Metric]) -> list[dict[str, str]] | None:
    """The aligned arm against the base, seed by seed, a cell for each column; None without a seed in common."""
    if roles.aligned is None or roles.base is None:
        return None
    if not {row.seed for row in roles.aligned.rows} & {row.seed for row in roles.base.rows}:
        return None
    cells = []
    for column in columns:
        if roles.aligned.metric(column.name) is None or roles.base.metric(column.name) is None:
            cells.append({"median": "", "range": "", "verdict": "", "css": ""})
            continue
        comparison = paired(roles.aligned, roles.base, column.name)
        moves, verdict = comparison.differences, judge(comparison, column)
        several = len(moves.values) > 1
        cells.append(
            {
                "median": change(moves.median, column),
                "range": f"{change(moves.min, column)} to {change(moves.max, column)}" if several else "",
                "verdict": verdict.value,
                "css": {Verdict.BETTER: "better", Verdict.WORSE: "worse"}.get(verdict, ""),
            }
        )
    return cells


def _chart(
    arms: Sequence[Arm], columns: Sequence[Metric], pooled: Sequence[Intervals], names: Mapping[str, str]
) -> Markup:
    """A dot an arm and kind of prompt; whiskers are intervals over prompts, bars the range of the seeds."""
    marks = []
    for number, (arm, intervals) in enumerate(zip(arms, pooled, strict=True)):
        offset = (number - (len(arms) - 1) / 2) * DOT_DISTANCE
        for position, column in enumerate(columns):
            spread = arm.metric(column.name)
            if spread is None or not math.isfinite(spread.median):
                continue
            low, high = _interval(arm, column, intervals) or (spread.median, spread.median)
            several = len(spread.values) > 1
            title = f"{_title(arm, names)}: {column.title} {fixed(spread.median, column)}"
            title += f", seeds {fixed(spread.min, column)} to {fixed(spread.max, column)}" if several else ""
            title += f", 95 % over prompts {fixed(low, column)} to {fixed(high, column)}" if high > low else ""
            marks.append(
                Mark(
                    position + offset,
                    spread.median,
                    low,
                    high,
                    arm_class(arm),
                    title,
                    filled=arm.guidance_scale == 1,
                    spread=(spread.min, spread.max) if several else None,
                )
            )
    summed = sum(column.name not in TAGS for column in columns)
    bands = [Band(-0.5, summed - 0.5, "band guided", "all prompts")]
    if len(columns) > summed:
        bands.append(Band(summed - 0.5, len(columns) - 0.5, "band free", "by kind of prompt"))
    return plot(
        [],
        marks,
        bands,
        description=f"{columns[0].title} by kind of prompt; the table below holds the numbers",
        size=CHART_SIZE,
        x_range=(-0.5, len(columns) - 0.5),
        x_ticks=[(position, column.title) for position, column in enumerate(columns)],
        y_range=(0.0, 1.0),
    )


def _failures(verdicts: Sequence[tuple[Arm, Sequence[Record]]], names: Mapping[str, str]) -> dict[str, Any] | None:
    """A row a kind of prompt, a cell an arm, a bar a reason; None without verdicts."""
    if not verdicts:
        return None
    shares = [failures(records) for _, records in verdicts]
    rows = [(ALL, "all prompts"), *((metric.name, metric.title) for metric in TAG_METRICS)]
    reasons = ordered_reasons(why for of_arm in shares for of_tag in of_arm.values() for why in of_tag)
    return {
        "legend": [(f"f-{why.replace(' ', '-')}", why) for why in reasons],
        "arms": [
            {"name": names.get(arm.label, arm.label), "settings": arm.settings, "css": arm_class(arm)}
            for arm, _ in verdicts
        ],
        "rows": [
            {"title": title, "cells": [_bar(of_arm.get(tag)) for of_arm in shares]}
            for tag, title in rows
            if any(tag in of_arm for of_arm in shares)
        ],
    }


def _bar(shares: Mapping[str, float] | None) -> dict[str, Any]:
    if shares is None:
        return {"total": "", "parts": [], "words": ""}
    return {
        "total": f"{100 * sum(shares.values()):.0f} %",
        "parts": [(why.replace(" ", "-"), f"{100 * share:.2f}") for why, share in shares.items()],
        "words": ", ".join(f"{why} {100 * share:.0f}" for why, share in shares.items()),
    }
