"""Differences between two arms, with intervals worked out by hand."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from evaluation.arms import Arm, summarize
from evaluation.comparison import Difference, compare_arms, comparison_table
from evaluation.results import ResultRow


def arm(label: str, values: Sequence[float], *, metric: str = "fid", seeds: Sequence[int] = (), **settings: Any) -> Arm:
    settings = {"protocol": "toy", "n": 2000} | settings
    key = f"{metric}_{settings['protocol']}_2k"
    error = settings.pop("error", None)
    rows = [
        ResultRow(label, seed, metrics={key: value}, stderr={} if error is None else {key: error}, **settings)
        for seed, value in zip(seeds or range(len(values)), values, strict=True)
    ]
    (one,) = summarize(rows)
    return one


def compared(aligned: Arm, base: Arm) -> Difference:
    (one,) = compare_arms(aligned, base)
    return one


def test_the_interval_is_students_over_paired_seeds() -> None:
    """Differences −1, −2, −3: mean −2, standard deviation 1, and t at 0.975 with 2 degrees of freedom is 4.302653."""
    one = compared(arm("aligned", (9.0, 18.0, 27.0)), arm("base", (10.0, 20.0, 30.0)))
    half = 4.302653 / math.sqrt(3)  # 2.484138
    assert one.interval == pytest.approx((-2 - half, -2 + half), abs=1e-6)
    assert (one.base, one.value, one.difference, one.seeds) == (20.0, 18.0, -2.0, 3)
    assert one.verdict == "no clear change", "4.3 times a third of a spread that is half the mean holds 0"


def test_pairing_removes_what_seeds_share() -> None:
    """Differences −1.0, −1.1, −1.2, −1.3: mean −1.15, sd sqrt(0.05 / 3) = 0.129099, t with 3 degrees is 3.182446."""
    one = compared(arm("aligned", (9.0, 18.9, 28.8, 38.7)), arm("base", (10.0, 20.0, 30.0, 40.0)))
    half = 3.182446 * 0.1290994 / 2  # 0.205425
    assert one.interval == pytest.approx((-1.15 - half, -1.15 + half), abs=1e-6)
    assert one.verdict == "better"


def test_seeds_are_paired_by_number_and_the_others_left_out() -> None:
    """Both have 2 and 3: differences 9 − 10 and 17 − 20, their mean −2, sd sqrt(2), and t with 1 degree is 12.706205."""
    aligned = arm("aligned", (17.0, 9.0, 500.0), seeds=(3, 2, 4))
    base = arm("base", (700.0, 10.0, 20.0), seeds=(1, 2, 3))
    one = compared(aligned, base)
    assert (one.base, one.value, one.difference, one.seeds) == (15.0, 13.0, -2.0, 2)
    assert one.interval == pytest.approx((-2 - 12.706205, -2 + 12.706205), abs=1e-5)


def test_the_difference_is_a_mean_and_the_values_are_medians() -> None:
    one = compared(arm("aligned", (1.0, 2.0, 9.0)), arm("base", (1.0, 1.0, 1.0)))
    assert (one.base, one.value) == (1.0, 2.0)
    assert one.difference == 3.0  # of 0, 1 and 8


def test_of_one_seed_the_interval_comes_from_both_standard_errors() -> None:
    """sqrt(0.3² + 0.4²) = 0.5, times 1.959964."""
    one = compared(arm("aligned", (9.0,), error=0.3), arm("base", (10.0,), error=0.4))
    assert one.interval == pytest.approx((-1 - 0.979982, -1 + 0.979982), abs=1e-6)
    assert (one.seeds, one.verdict) == (1, "better")
    one = compared(arm("aligned", (9.0,), error=0.6), arm("base", (10.0,), error=0.8))  # ± 1.96
    assert one.verdict == "no clear change"


def test_of_one_common_seed_its_own_errors_count() -> None:
    key = "fid_toy_2k"
    rows = [ResultRow("base", seed, 9, "toy", {key: 10.0}, {key: error}) for seed, error in ((1, 50.0), (2, 0.4))]
    (base,) = summarize(rows)
    one = compared(arm("aligned", (9.0,), seeds=(2,), n=9, error=0.3), base)
    assert one.interval == pytest.approx((-1.979982, -0.020018), abs=1e-6)


@pytest.mark.parametrize("errors", [(None, 0.4), (0.3, None), (math.nan, 0.4)])
def test_without_a_standard_error_one_seed_tells_no_interval(errors: tuple[float | None, float | None]) -> None:
    one = compared(arm("aligned", (9.0,), error=errors[0]), arm("base", (10.0,), error=errors[1]))
    assert (one.difference, one.interval, one.verdict) == (-1.0, None, "spread unknown")


@pytest.mark.parametrize("metric", ["fid", "recall"])
@pytest.mark.parametrize("values", [(math.nan,), (9.0, math.nan)])
def test_undefined_values_support_no_direction(values: Sequence[float], metric: str) -> None:
    aligned = arm("aligned", values, metric=metric, error=0.3)
    one = compared(aligned, arm("base", (10.0, 11.0)[: len(values)], metric=metric, error=0.4))
    assert math.isnan(one.difference)
    assert (one.interval, one.verdict) == (None, "spread unknown")


@pytest.mark.parametrize(
    ("metric", "change", "verdict"),
    [
        ("fid", -1.0, "better"),
        ("fid", 1.0, "worse"),
        ("fid", 0.01, "no clear change"),
        ("fid-dinov2", -1.0, "better"),
        ("recall", -1.0, "worse"),
        ("recall", 1.0, "better"),
        ("recall", -0.01, "no clear change"),
        ("pick-score", 1.0, "better"),  # a reward
    ],
)
def test_verdicts(metric: str, change: float, verdict: str) -> None:
    """Differences vary by ±0.1 around the change: an interval of ± 4.302653 · 0.1 / sqrt(3) = 0.248."""
    base = (10.0, 20.0, 30.0)
    moved = [value + change + jitter for value, jitter in zip(base, (-0.1, 0.0, 0.1), strict=True)]
    assert compared(arm("aligned", moved, metric=metric), arm("base", base, metric=metric)).verdict == verdict


def test_an_interval_that_ends_at_zero_holds_it() -> None:
    one = compared(arm("aligned", (10.0, 20.0)), arm("base", (10.0, 20.0)))
    assert (one.interval, one.verdict) == ((0.0, 0.0), "no clear change")


def test_every_metric_that_both_have_known_ones_first() -> None:
    def scored(label: str, *names: str) -> Arm:
        metrics = {f"{name}_toy_2k": 0.5 for name in names}
        (one,) = summarize([ResultRow(label, 1, 2000, "toy", metrics)])
        return one

    base = scored("base", "pick-score", "recall", "kid", "fid", "two_object", "accuracy-class0")
    aligned = scored("aligned", "fid", "recall", "sfid", "two_object", "pick-score", "accuracy-class0")
    assert [one.metric.name for one in compare_arms(aligned, base)] == ["fid", "recall", "pick-score", "two_object"]


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"protocol": "other"}, "protocol"),
        ({"n": 5000}, "n"),
        ({"reference_n": 7}, "reference_n"),
        ({"reference_hash": "ab"}, "reference_hash"),
        ({"extractor_fingerprint": "cafe"}, "extractor_fingerprint"),
    ],
)
def test_what_was_measured_in_other_ways_is_refused(changes: dict[str, Any], differs: str) -> None:
    with pytest.raises(ValueError, match=f"cannot compare rows with different {differs}: .* in 'base' .* in 'aligned'"):
        compare_arms(arm("aligned", (9.0, 9.5), **changes), arm("base", (10.0, 11.0)))


def test_arms_without_a_common_seed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'base' and 'aligned' share no seed \(theirs: \[1, 2\] and \[3\]\)"):
        compare_arms(arm("aligned", (9.0,), seeds=(3,)), arm("base", (10.0, 11.0), seeds=(1, 2)))


def test_geneval_goes_by_its_protocols_name() -> None:
    settings = {"metric": "geneval", "protocol": "geneval-hf"}
    assert compared(arm("a", (0.5,), **settings), arm("b", (0.4,), **settings)).metric.title == "geneval-hf"


def test_the_table() -> None:
    differences = compare_arms(arm("aligned", (9.0, 18.9, 28.8, 38.7)), arm("base", (10.0, 20.0, 30.0, 40.0)))
    differences += compare_arms(arm("a", (0.52,), metric="recall"), arm("b", (0.5,), metric="recall"))
    assert comparison_table(differences, "runs/a (base)", "runs/b (aligned)").splitlines() == [
        "| metric | runs/a (base) | runs/b (aligned) | difference | 95 % interval | seeds | |",
        "|---|---|---|---|---|---|---|",
        "| FID | 25.00 | 23.85 | −1.15 | −1.36 to −0.94 | 4 | better |",
        "| recall | 0.500 | 0.520 | +0.020 |  | 1 | spread unknown |",
    ]
