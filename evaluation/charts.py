"""Charts as inline SVG, drawn without a plotting library so that a report is one small file that follows the theme.

Colours are CSS classes (`c-base`, `c-aligned`, ...) that the page defines once for light and once for dark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

from evaluation.arms import Arm
from evaluation.headline import Roles, median, number
from evaluation.metric_names import Metric

MARGIN_LEFT, MARGIN_RIGHT = 40.0, 10.0
LABEL_GAP = 17.0  # least distance between two labels, in units of the drawing
MARK_GAP = 13.0  # marks closer than this would hide each other: the later one moves aside
LOG_FROM = 12.0  # largest ratio of values that a linear axis still shows legibly; a collapsed run is beyond it


@dataclass(frozen=True)
class Line:
    """Connected points; `dots` marks each of them as a measurement of its own."""

    css: str
    points: Sequence[tuple[float, float]]
    title: str = ""
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """One point with the range behind it. Without a label it is small, and hollow unless `filled`.

    spread: another range, drawn as a bar behind the first.
    """

    x: float
    y: float
    low: float
    high: float
    css: str
    title: str
    label: str = ""
    diamond: bool = False
    filled: bool = False
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Band:
    """A vertical strip of the chart with a caption."""

    start: float
    end: float
    css: str
    label: str


@dataclass(frozen=True)
class Axis:
    """Maps values to drawing units."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            candidates = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
            return [value for value in candidates if self.low <= value <= self.high]
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step = next(digit * power for digit in (1, 2, 5, 10) if (self.high - self.low) / (digit * power) <= 5)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 10) for index in range(first, last + 1)]


def fit_axis(values: Iterable[float], start: float, end: float, *, zero: bool = False) -> Axis:
    """An axis around the values: from zero if asked, logarithmic where a linear one would squash most of them."""
    values = list(values)
    low, high = min(values), max(values)
    if zero and low > 0:
        if high / low > LOG_FROM:
            return Axis(low / 1.3, high * 1.3, start, end, log=True)
        return Axis(0, high * 1.1, start, end)
    pad = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return Axis(low - pad, high + pad, start, end)


def plot(
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    bands: Sequence[Band] = (),
    *,
    description: str,
    size: tuple[float, float],
    x_label: str = "",
    x_range: tuple[float, float] | None = None,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    y_range: tuple[float, float] | None = None,
    zero: bool = False,
    labels_below: bool = True,
) -> Markup:
    """Draw one chart; the page scales it to its column.

    Args:
        x_ticks: positions and texts, for an axis whose values are settings; by default round numbers.
        y_range: by default, what `fit_axis` makes of the values.
        zero: let the y axis start at zero (or be logarithmic, see `fit_axis`).
        labels_below: put the labels of marks that have lines around them below their marks, else above.
    """
    width, height = size
    svg = ElementTree.Element("svg", viewBox=f"0 0 {width:g} {height:g}", role="img")
    svg.set("aria-label", description)
    points = [point for line in lines for point in line.points]
    y_values = [y for _, y in points] + [value for mark in marks for value in (mark.y, mark.low, mark.high)]
    top, bottom = 26.0 if bands else 10.0, height - (38.0 if x_label else 22.0)
    y = Axis(*y_range, bottom, top) if y_range else fit_axis(y_values, bottom, top, zero=zero)
    left, right = MARGIN_LEFT, width - MARGIN_RIGHT
    x_values = [x for x, _ in points] + [mark.x for mark in marks]
    x_low, x_high = x_range or (min(x_values), max(x_values))
    x = Axis(x_low, x_high if x_high > x_low else x_low + 1, left, right)

    for band in bands:
        start, end = x(band.start), x(band.end)
        _add(svg, "rect", band.css, x=start, y=top, width=end - start, height=bottom - top)
        _text(svg, (start + end) / 2, top - 8, band.label, "band-label")
    for value, text in _labelled(y.ticks()):
        _add(svg, "line", "grid", x1=left, x2=right, y1=y(value), y2=y(value))
        _text(svg, left - 6, y(value) + 4, text, "tick end")
    for value, text in _labelled(x.ticks()) if x_ticks is None else x_ticks:
        _add(svg, "line", "axis", x1=x(value), x2=x(value), y1=bottom, y2=bottom + 4)
        _text(svg, x(value), bottom + 17, text, "tick")
    _add(svg, "line", "axis", x1=left, x2=right, y1=bottom, y2=bottom)
    if x_label:
        _text(svg, right, height - 5, x_label, "axis-label end")
    for line in lines:
        _draw_line(svg, line, x, y)
    _draw_marks(svg, marks, x, y, labels_below)
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


def _draw_line(svg: ElementTree.Element, line: Line, x: Axis, y: Axis) -> None:
    path = " ".join(f"{'L' if index else 'M'}{x(px):g} {y(py):g}" for index, (px, py) in enumerate(line.points))
    element = _add(svg, "path", f"line {line.css}", d=path)
    if line.title:
        ElementTree.SubElement(element, "title").text = line.title
    if line.dots:
        for px, py in line.points:
            dot = _add(svg, "circle", f"dot {line.css}", cx=x(px), cy=y(py), r=2.5)
            ElementTree.SubElement(dot, "title").text = f"{line.title}, {px:g}: {number(py)}"


def _draw_marks(svg: ElementTree.Element, marks: Sequence[Mark], x: Axis, y: Axis, labels_below: bool) -> None:
    """Labels of the leftmost marks stand on the free side, one per line; those of the others below or above."""
    column = min((mark.x for mark in marks), default=0.0)
    taken: list[tuple[float, float]] = []
    beside = []
    for mark in marks:
        px, py = x(mark.x), y(mark.y)
        while mark.label and any(abs(px - tx) < MARK_GAP and abs(py - ty) < MARK_GAP for tx, ty in taken):
            px -= MARK_GAP
        taken += [(px, py)] if mark.label else []
        _draw_mark(svg, mark, px, y)
        if mark.label and mark.x == column:
            beside.append((py, px, mark))
        elif mark.label:
            _text(svg, px, py + (22 if labels_below else -14), mark.label, f"mark-label {mark.css}")
    previous = -math.inf
    edge = min((px for _, px, _ in beside), default=0.0) - 11
    for py, _, mark in sorted(beside, key=lambda item: item[0]):
        previous = max(py + 4, previous + LABEL_GAP)
        _text(svg, edge, previous, mark.label, f"mark-label end {mark.css}")


def _draw_mark(svg: ElementTree.Element, mark: Mark, px: float, y: Axis) -> None:
    hollow = not (mark.label or mark.filled)
    group = _add(svg, "g", f"mark hollow {mark.css}" if hollow else f"mark {mark.css}")
    ElementTree.SubElement(group, "title").text = mark.title
    py, radius = y(mark.y), 5.5 if mark.label else 3.5
    if mark.spread:
        _add(group, "line", "spread", x1=px, x2=px, y1=y(mark.spread[0]), y2=y(mark.spread[1]))
    if mark.high > mark.low:
        _add(group, "line", "whisker", x1=px, x2=px, y1=y(mark.low), y2=y(mark.high))
        for end in (mark.low, mark.high):
            _add(group, "line", "whisker", x1=px - 5, x2=px + 5, y1=y(end), y2=y(end))
    if mark.diamond:
        r = radius * 1.2
        _add(group, "path", "", d=f"M{px} {py - r:.1f} L{px + r:.1f} {py} L{px} {py + r:.1f} L{px - r:.1f} {py} Z")
    else:
        _add(group, "circle", "", cx=px, cy=py, r=radius)


def _add(parent: ElementTree.Element, tag: str, css: str, **attributes: float | str) -> ElementTree.Element:
    values = {name: value if isinstance(value, str) else f"{value:g}" for name, value in attributes.items()}
    return ElementTree.SubElement(parent, tag, {"class": css, **values} if css else values)


def _text(parent: ElementTree.Element, x: float, y: float, text: str, css: str) -> None:
    _add(parent, "text", css, x=x, y=y).text = text


def _labelled(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks with texts of equally many decimals, in thousands where they are large."""
    unit, suffix = (1000, "k") if max(map(abs, ticks), default=0) >= 10_000 else (1, "")
    decimals = max((len(f"{value / unit:g}".partition(".")[2]) for value in ticks), default=0)
    style = f".{decimals}f" if decimals < 4 else "g"
    return [(value, f"{value / unit:{style}}{suffix}" if value else "0") for value in ticks]


def guidance_chart(arms: Sequence[Arm], roles: Roles, metric: Metric, names: dict[str, str]) -> Markup:
    """Quality against guidance scale, with its price: lines from selection rows, marks from report rows.

    Args:
        arms: of both splits, at least one, each with a finite median.
        names: what to call the arms' labels, such as {"aligned": "CCA"}.
    """
    ordinary = [arm for arm in arms if not _apart(arm)]
    lines = []
    for label in dict.fromkeys(arm.label for arm in ordinary):
        selected = [arm for arm in ordinary if arm.label == label and arm.split == "select"]
        points = sorted((arm.guidance_scale, median(arm, metric)) for arm in selected)
        if points:
            lines.append(Line(css_class(label), points, f"{names.get(label, label)}, selection seeds", dots=True))
    reported = [arm for arm in arms if arm.split == "report"]
    tempered = [arm for arm in arms if arm.split == "select" and arm not in ordinary]
    marks = [_mark(arm, metric, roles, names) for arm in [*tempered, *reported]]
    scales = sorted({arm.guidance_scale for arm in arms})
    span = max(scales[-1] - scales[0], 0.5)
    # labels of what needs no guidance stand on the left; those of a search are long
    x_range = (scales[0] - (0.8 if roles.search else 0.6) * span, scales[-1] + 0.12 * span)
    every = math.ceil(len(scales) / 8)
    return plot(
        lines,
        marks,
        _price_bands(arms, scales, x_range),
        description=f"{metric.title} against guidance scale: " + "; ".join(mark.title for mark in marks),
        x_label="guidance scale",
        size=(400, 320),
        x_range=x_range,
        x_ticks=[(scale, "off" if scale == 1 else f"{scale:g}") for scale in scales[::every]],
        zero=metric.lower_is_better,
        labels_below=metric.lower_is_better,
    )


def _mark(arm: Arm, metric: Metric, roles: Roles, names: dict[str, str]) -> Mark:
    spread = arm.metric(metric.name)
    assert spread is not None
    name = names.get(arm.label, arm.label)
    title = f"{name}, {arm.settings}: {metric.title} {number(spread.median)}"
    if len(spread.values) > 1:
        title += f" ({number(spread.min)} to {number(spread.max)}, {len(spread.values)} seeds)"
    title += f", {arm.forwards_per_image:.4g} forwards per image" if arm.forwards_per_image else ""
    if arm is roles.temperature:
        name = ", ".join([f"T={arm.temperature:g}", *arm.filters]) + ":"
    elif arm is roles.cfg:
        name = "CFG"
    elif arm.search:
        name = arm.search.partition(" by ")[0] + ":"
    label = f"{name} {number(spread.median)}" if arm in roles.present() else ""
    return Mark(
        arm.guidance_scale,
        spread.median,
        spread.min,
        spread.max,
        arm_class(arm),
        title,
        label,
        diamond=_apart(arm),
        filled=arm.split == "report",
    )


def _apart(arm: Arm) -> bool:
    """Sampled in another way than by a guidance scale alone: not on its line."""
    return arm.reshaped or not arm.guides_evenly or not arm.drawn_once


def _price_bands(arms: Sequence[Arm], scales: Sequence[float], x_range: tuple[float, float]) -> list[Band]:
    """The strip without guidance and the strip with it, each captioned with its forwards per image."""
    guided_scales = [scale for scale in scales if scale > 1]
    border = (1 + guided_scales[0]) / 2 if guided_scales else x_range[1]
    strips = [("free", x_range[0], border, [arm for arm in arms if arm.guidance_scale == 1])]
    strips += [("guided", border, x_range[1], [arm for arm in arms if arm.guidance_scale > 1])] if guided_scales else []
    bands = []
    for css, start, end, inside in strips:
        costs = sorted({arm.forwards_per_image for arm in inside if arm.forwards_per_image and not arm.search})
        if costs and end > start:
            price = " to ".join(f"{cost:.4g}" for cost in dict.fromkeys((costs[0], costs[-1])))
            bands.append(Band(start, end, f"band {css}", f"{price} forwards / image"))
    return bands


def css_class(name: str) -> str:
    """The colour of a label or a kind of curve; names that the page does not know share one."""
    known = ("base", "aligned", "sft", "temperature", "positive", "negative", "null")
    return f"c-{name}" if name in known else "c-other"


def label_classes(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label, told apart where `css_class` has one for all that it does not know."""
    others = itertools.cycle(("c-other", *(f"c-series{number}" for number in range(2, 7))))
    known = {label: css_class(label) for label in labels}
    return {label: next(others) if css == "c-other" else css for label, css in known.items()}


def arm_class(arm: Arm) -> str:
    """The colour of an arm: its label's, except that the base sampled in another way has its own."""
    if arm.label == "base" and arm.search:
        return css_class("search")
    return css_class("temperature" if arm.label == "base" and arm.reshaped else arm.label)
