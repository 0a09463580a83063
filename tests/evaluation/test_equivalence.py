"""The base's guidance scale that gives what alignment gives without: linear in between, and nothing where none does."""

import math
from typing import Any

import pytest

from evaluation.arms import Arm, summarize
from evaluation.equivalence import crossing, equivalent_scales
from evaluation.results import ResultRow


@pytest.mark.parametrize(
    ("curve", "value", "x"),
    [
        ([(1.0, 10.0), (2.0, 6.0)], 9.0, 1.25),  # a quarter of the way down
        ([(1.0, 0.5), (1.5, 0.7), (3.0, 1.0)], 0.8, 2.0),  # 1.5 + 1.5 * (0.1 / 0.3)
        ([(1.0, 16.0), (2.0, 8.0), (3.0, 12.0), (4.0, 20.0)], 12.0, 1.5),  # U: on the way down, not at 3
        ([(1.0, 8.0), (2.0, 12.0), (3.0, 4.0)], 6.0, 2.75),  # only on the way back
        ([(1.0, 10.0), (2.0, 6.0)], 10.0, 1.0),
        ([(1.0, 10.0), (2.0, 6.0)], 6.0, 2.0),
        ([(1.0, 10.0), (2.0, 6.0), (3.0, 6.0)], 6.0, 2.0),  # where a flat stretch begins
        ([(1.0, 5.0), (2.0, 5.0)], 5.0, 1.0),
        ([(1.0, 5.0), (2.0, 5.0)], 5.1, None),
        ([(1.0, 16.0), (2.0, 8.0), (3.0, 12.0)], 7.9, None),
        ([(1.0, 16.0), (2.0, 8.0)], 16.1, None),
        ([(1.0, 16.0)], 16.0, None),
    ],
)
def test_crossing(curve: list[tuple[float, float]], value: float, x: float | None) -> None:
    assert crossing(curve, value) == (None if x is None else pytest.approx(x, abs=1e-12))


def row(label: str, fid: float, scale: float = 1.0, *, seed: int = 1, **settings: Any) -> ResultRow:
    metrics = {"fid_toy_2k": fid} | settings.pop("metrics", {})
    return ResultRow(label, seed, 2000, "toy", metrics, guidance_scale=scale, **settings)


def of(*rows: ResultRow) -> list[tuple[str, str, float, float | None, float]]:
    arms: list[Arm] = summarize(rows)
    return [(one.label, one.metric.name, one.value, one.scale, one.nearest) for one in equivalent_scales(arms)]


BASE = (row("base", 8.0, 2.0), row("base", 16.0), row("base", 14.0, 3.0))  # the order of rows is not that of scales


def test_every_label_and_metric_is_told() -> None:
    curve = [
        row("base", fid, scale, metrics={"is_toy_2k": score, "recall_toy_2k": 0.7})
        for scale, fid, score in ((1.0, 16.0, 20.0), (2.0, 8.0, 40.0))
    ]
    aligned = row("aligned", 10.0, metrics={"is_toy_2k": 45.0, "accuracy_toy_2k": 0.9})
    assert of(*curve, aligned, row("sft", 15.0)) == [
        ("aligned", "fid", 10.0, 1.75, 2.0),
        ("aligned", "is", 45.0, None, 2.0),  # beyond what guidance reaches
        ("sft", "fid", 15.0, 1.125, 1.0),
    ]


def test_the_nearest_scale_where_none_reaches_it() -> None:
    assert of(*BASE, row("aligned", 7.0)) == [("aligned", "fid", 7.0, None, 2.0)]
    assert of(*BASE, row("aligned", 20.0)) == [("aligned", "fid", 20.0, None, 1.0)]


def test_medians_over_seeds_are_compared() -> None:
    values = {1.0: (15.0, 16.0, 99.0), 2.0: (7.0, 8.0, 99.0)}
    base = [row("base", fid, scale, seed=seed) for scale, fids in values.items() for seed, fid in enumerate(fids)]
    aligned = [row("aligned", fid, seed=seed) for seed, fid in enumerate((1.0, 12.0, 90.0))]
    assert of(*base, *aligned) == [("aligned", "fid", 12.0, 1.5, 1.0)]


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_schedule": "linear"},
        {"guided_blocks": 3},
        {"temperature": 0.9},
        {"top_k": 50},
        {"top_p": 0.9},
        {"search": "best of 2"},
        {"label": "sft"},
    ],
)
def test_only_the_bases_arms_that_differ_by_an_even_scale_make_its_curve(settings: dict[str, Any]) -> None:
    """One more at scale 1.25, which would be passed first."""
    aligned = row("aligned", 12.0)
    assert of(*BASE, aligned) == [("aligned", "fid", 12.0, 1.5, 3.0)]
    assert of(*BASE, row("base", 12.0, 1.25), aligned) == [("aligned", "fid", 12.0, 1.25, 1.25)]
    other = row(**({"label": "base", "fid": 12.0, "scale": 1.25} | settings))
    assert of(*BASE, other, aligned) == of(*BASE, aligned)


@pytest.mark.parametrize(
    ("scale", "settings"),
    [(2.0, {}), (1.0, {"temperature": 0.9}), (1.0, {"top_p": 0.9}), (1.0, {"search": "best of 2"})],
)
def test_only_plain_arms_have_an_equivalent(scale: float, settings: dict[str, Any]) -> None:
    assert of(*BASE, row("aligned", 12.0, scale, **settings)) == []


def test_one_scale_of_the_base_says_nothing_nor_do_undefined_values() -> None:
    aligned = row("aligned", 12.0)
    assert of(row("base", 16.0), aligned) == []
    assert of(row("base", 16.0), row("base", math.nan, 2.0), aligned) == []
    assert of(*BASE, row("aligned", math.nan)) == []
    assert of(row("base", 16.0), row("base", math.nan, 2.0), row("base", 8.0, 3.0), aligned) == [
        ("aligned", "fid", 12.0, 2.0, 1.0)
    ]


def test_another_label_may_be_the_base() -> None:
    arms = summarize([row("teacher", 16.0), row("teacher", 8.0, 2.0), row("base", 12.0)])
    (one,) = equivalent_scales(arms, "teacher")
    assert (one.label, one.scale) == ("base", 1.5)
