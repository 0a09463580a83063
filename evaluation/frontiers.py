"""What is traded for what: quality against diversity, and quality against its price, over ways of sampling.

Each generator is a path by ascending guidance scale, which starts without guidance; settings off that path are marks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evaluation.arms import Arm
from evaluation.charts import Line, Mark, plot
from evaluation.headline import median, number
from evaluation.metric_names import METRICS, Metric

LEAST = 3  # arms; fewer say less in a chart than in a table
SIZE = (400, 300)


@dataclass(frozen=True)
class Frontier:
    """A chart with its caption, and the colours of its paths."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]


@dataclass(frozen=True)
class _Axes:
    title: str
    x: Callable[[Arm], float | None]
    y: Callable[[Arm], float | None]
    x_label: str


def frontier_charts(
    arms: Sequence[Arm], metric: Metric, names: Mapping[str, str], colours: Mapping[str, str]
) -> list[Frontier]:
    """Those that these arms, of one split, have the numbers for.

    metric: the leading one, which is drawn against prices.
    names, colours: what to call the arms' labels, and their CSS classes.
    """
    known = {one.name: one for one in METRICS}
    wanted = []
    for x, y in (("is", "fid"), ("recall", "precision"), ("coverage", "density")):
        wanted.append(_Axes(f"{known[y].title} against {known[x].title}", _of(known[x]), _of(known[y]), known[x].title))
    wanted.append(_Axes(f"{metric.title} against forwards", _forwards, _of(metric), "forwards per image"))
    wanted.append(_Axes(f"{metric.title} against time", _milliseconds, _of(metric), "milliseconds per image"))
    charts = []
    for axes in wanted:
        points = [(arm, axes.x(arm), axes.y(arm)) for arm in arms]
        drawn = [(arm, x, y) for arm, x, y in points if x is not None and y is not None]
        drawn = [(arm, x, y) for arm, x, y in drawn if math.isfinite(x) and math.isfinite(y)]
        if len(drawn) >= LEAST and len({x for _, x, _ in drawn}) > 1:
            charts.append(_draw(axes, drawn, names, colours))
    return charts


def _draw(
    axes: _Axes, points: Sequence[tuple[Arm, float, float]], names: Mapping[str, str], colours: Mapping[str, str]
) -> Frontier:
    """A path a generator, and marks in its colour."""
    lines, marks, legend = [], [], dict[str, str]()
    for label in dict.fromkeys(arm.label for arm, _, _ in points):
        own = [point for point in points if point[0].label == label]
        name, colour = names.get(label, label), colours[label]
        path = sorted((point for point in own if _on_path(point[0])), key=lambda point: point[0].guidance_scale)
        if path:
            lines.append(Line(colour, [(x, y) for _, x, y in path], f"{name}, by guidance scale"))
        legend[colour] = name
        marks += [_mark(arm, name, colour, x, y) for arm, x, y in own]
    told = "; ".join(mark.title for mark in marks)
    x_values = [x for _, x, _ in points]
    span = max(x_values) - min(x_values)
    svg = plot(
        lines,
        marks,
        description=f"{axes.title}: {told}",
        x_label=axes.x_label,
        size=SIZE,
        x_range=(min(x_values) - 0.12 * span, max(x_values) + 0.06 * span),
    )
    return Frontier(axes.title, svg, list(legend.items()))


def _mark(arm: Arm, name: str, colour: str, x: float, y: float) -> Mark:
    title = f"{name}, {arm.settings}: {number(x)}, {number(y)}"
    return Mark(x, y, y, y, colour, title, filled=arm.plain, diamond=not _on_path(arm))


def _on_path(arm: Arm) -> bool:
    return arm.guides_evenly and not arm.reshaped and arm.drawn_once


def _of(metric: Metric) -> Callable[[Arm], float | None]:
    return lambda arm: median(arm, metric) if arm.metric(metric.name) else None


def _forwards(arm: Arm) -> float | None:
    return arm.forwards_per_image


def _milliseconds(arm: Arm) -> float | None:
    return 1000 / arm.images_per_second if arm.images_per_second else None
