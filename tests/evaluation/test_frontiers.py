"""Frontier charts: which are drawn, and that paths go by guidance scale."""

import math
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from evaluation.arms import Arm, summarize
from evaluation.charts import label_classes
from evaluation.frontiers import Frontier, frontier_charts
from evaluation.metric_names import METRICS, Metric, known_metric
from evaluation.results import ResultRow

FID = METRICS[0]
NAMES = {"aligned": "CCA"}


def row(label: str, scale: float = 1.0, *, fid: float, score: float, **settings: Any) -> ResultRow:
    metrics = {"fid_toy_2k": fid, "is_toy_2k": score} | settings.pop("metrics", {})
    return ResultRow(label, 1, 2000, "toy", metrics, guidance_scale=scale, **settings)


# the order of rows is not that of scales, and by scale neither FID nor IS goes one way only
GRID = (
    row("base", 3.0, fid=12.0, score=50.0),
    row("base", 1.0, fid=16.0, score=20.0),
    row("base", 4.0, fid=20.0, score=45.0),
    row("base", 2.0, fid=8.0, score=40.0),
    row("base", 1.0, fid=11.0, score=30.0, temperature=0.7),
    row("base", 2.0, fid=9.0, score=36.0, guidance_schedule="linear"),
    row("base", 1.0, fid=10.0, score=25.0, search="best of 4 by reward"),
    row("aligned", 1.0, fid=9.0, score=38.0),
    row("aligned", 1.5, fid=9.5, score=41.0),
)


def drawn(arms: list[Arm], metric: Metric, names: dict[str, str]) -> list[Frontier]:
    return frontier_charts(arms, metric, names, label_classes(arm.label for arm in arms))


def charts(*rows: ResultRow, metric: str = "fid") -> dict[str, Frontier]:
    known = known_metric(metric)
    assert known is not None
    return {chart.title: chart for chart in drawn(summarize(rows), known, NAMES)}


def classed(chart: Frontier, tag: str, css: str) -> list[ElementTree.Element]:
    return [one for one in ElementTree.fromstring(chart.svg).iter(tag) if css in one.get("class", "").split()]


def title(element: ElementTree.Element) -> str:
    return element.findtext("title") or ""


def place(mark: ElementTree.Element) -> tuple[float, float]:
    circle = mark.find("circle")
    assert circle is not None
    return float(circle.get("cx", "")), float(circle.get("cy", ""))


def test_quality_against_diversity_and_prices() -> None:
    full = [
        row(
            "base",
            scale,
            fid=10.0 + scale,
            score=20.0 * scale,
            metrics={
                "recall_toy_2k": 0.8 - scale / 10,
                "precision_toy_2k": 0.5 + scale / 10,
                "coverage_toy_2k": 0.8 - scale / 20,
                "density_toy_2k": 0.9 + scale / 10,
            },
            forwards_per_image=49.0 * scale,
            images_per_second=200.0 / scale,
        )
        for scale in (1.0, 2.0, 3.0)
    ]
    found = charts(*full)
    assert list(found) == [
        "FID against IS",
        "precision against recall",
        "density against coverage",
        "FID against forwards",
        "FID against time",
    ]
    # x, then y; the time of an image is 1000 ms / (200 / 2)
    assert "base, guidance 2, T=1: 40.0, 12.0" in found["FID against IS"].svg
    assert "base, guidance 2, T=1: 0.600, 0.700" in found["precision against recall"].svg
    assert "base, guidance 2, T=1: 0.700, 1.10" in found["density against coverage"].svg
    assert "base, guidance 2, T=1: 98.0, 12.0" in found["FID against forwards"].svg
    assert "base, guidance 2, T=1: 10.0, 12.0" in found["FID against time"].svg
    assert ">milliseconds per image</text>" in found["FID against time"].svg
    assert list(charts(*full, metric="recall"))[3:] == ["recall against forwards", "recall against time"]


def test_a_chart_takes_three_arms_with_both_numbers_and_two_places() -> None:
    three = [row("base", scale, fid=10.0, score=20.0 * scale) for scale in (1.0, 2.0, 3.0)]
    assert list(charts(*three)) == ["FID against IS"], "no prices and no recall"
    assert not charts(*three[:2])
    undefined = row("base", 3.0, fid=math.nan, score=60.0)
    assert not charts(*three[:2], undefined)
    assert not charts(*three[:2], row("base", 3.0, fid=9.0, score=1.0, metrics={"is_toy_2k": math.nan}))
    assert not charts(*(row("base", scale, fid=10.0 * scale, score=20.0) for scale in (1.0, 2.0, 3.0))), "one place"
    alike = [row("base", s, fid=9.0 * s, score=2.0 * s, forwards_per_image=49.0) for s in (1.0, 2.0, 3.0)]
    assert list(charts(*alike)) == ["FID against IS"], "all cost the same"


def test_undefined_arms_are_left_out_of_a_chart_of_others() -> None:
    svg = charts(*GRID, row("sft", fid=math.nan, score=30.0))["FID against IS"].svg
    assert "sft" not in svg and "undefined" not in svg


def test_paths_go_by_guidance_scale() -> None:
    chart = charts(*GRID)["FID against IS"]
    places = {title(mark): place(mark) for mark in classed(chart, "g", "mark") if mark.find("circle") is not None}
    wanted = {
        "base, by guidance scale": ["no guidance, T=1: 20.0, 16.0"]
        + [f"guidance {told}" for told in ("2, T=1: 40.0, 8.00", "3, T=1: 50.0, 12.0", "4, T=1: 45.0, 20.0")],
        "CCA, by guidance scale": ["no guidance, T=1: 38.0, 9.00", "guidance 1.5, T=1: 41.0, 9.50"],
    }
    drawn = {title(line): line.get("d") for line in classed(chart, "path", "line")}
    assert drawn.keys() == wanted.keys()
    for name, marks in wanted.items():
        of_label = [places[f"{name.partition(',')[0]}, {mark}"] for mark in marks]
        expected = " ".join(f"{'L' if index else 'M'}{x:g} {y:g}" for index, (x, y) in enumerate(of_label))
        assert drawn[name] == expected


@pytest.mark.parametrize(
    ("mark", "hollow", "diamond", "css"),
    [
        ("base, no guidance, T=1: 20.0, 16.0", False, False, "c-base"),
        ("CCA, no guidance, T=1: 38.0, 9.00", False, False, "c-aligned"),
        ("base, guidance 3, T=1: 50.0, 12.0", True, False, "c-base"),
        ("base, no guidance, T=0.7: 30.0, 11.0", True, True, "c-base"),
        ("base, guidance 2 linear, T=1: 36.0, 9.00", True, True, "c-base"),
        ("base, no guidance, T=1, best of 4 by reward: 25.0, 10.0", True, True, "c-base"),
    ],
)
def test_filled_is_plain_and_diamonds_are_off_the_path(mark: str, hollow: bool, diamond: bool, css: str) -> None:
    (found,) = [one for one in classed(charts(*GRID)["FID against IS"], "g", "mark") if title(one) == mark]
    assert found.get("class", "").split() == ["mark", *(["hollow"] if hollow else []), css]
    assert (found.find("path") is not None, found.find("circle") is None) == (diamond, diamond)


def test_colours_are_told() -> None:
    chart = charts(*GRID)["FID against IS"]
    assert chart.legend == [
        ("c-base", "base"),
        ("c-aligned", "CCA"),
    ]
    others = charts(*GRID, *(replace(one, label=f"other{one.label}") for one in GRID))["FID against IS"]
    assert [css for css, _ in others.legend] == ["c-base", "c-aligned", "c-other", "c-series2"]
    assert len(classed(chart, "g", "mark")) == len(GRID)


def test_medians_over_seeds_are_drawn() -> None:
    seeds = [
        ResultRow("base", seed, 2000, "toy", {"fid_toy_2k": fid, "is_toy_2k": 10.0 * scale}, guidance_scale=scale)
        for scale in (1.0, 2.0, 3.0)
        for seed, fid in enumerate((7.0, 8.0, 90.0))
    ]
    arms: list[Arm] = summarize(seeds)
    (chart,) = drawn(arms, FID, {})
    assert [title(mark) for mark in classed(chart, "g", "mark")] == [
        "base, no guidance, T=1: 10.0, 8.00",
        "base, guidance 2, T=1: 20.0, 8.00",
        "base, guidance 3, T=1: 30.0, 8.00",
    ]
