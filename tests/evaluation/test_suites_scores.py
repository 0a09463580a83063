"""What answers make: every number by hand."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.suites import SCORES, Question, kinds_of, scored_together
from evaluation.suites.scores import fail_with_parents
from evaluation.uncertainty import estimate_over_prompts


def asked(*depends_on: tuple[int, ...]) -> list[Question]:
    return [Question(f"{place}?", depends_on=parents) for place, parents in enumerate(depends_on)]


@pytest.mark.parametrize(
    ("name", "right", "expected"),
    [
        ("soft-tifa-am", [0.5, 0.25, 0.9], 0.55),
        ("soft-tifa-gm", [0.5, 0.25, 1.0], 0.5),  # the cube root of 1/8
        ("soft-tifa-gm", [0.9, 0.0, 0.9], 0.0),
        ("soft-tifa-gm", [0.3], 0.3),
        ("tifa", [1.0, 0.0, 1.0, 1.0], 0.75),
        ("compbench-vqa", [0.5, 0.4], 0.2),
    ],
)
def test_scores_of_questions_that_stand_alone(name: str, right: list[float], expected: float) -> None:
    assert SCORES[name].combine(right, asked(*[()] * len(right))) == pytest.approx(expected)


def test_a_geometric_mean_of_tiny_probabilities_does_not_underflow() -> None:
    assert SCORES["soft-tifa-gm"].combine([1e-200] * 3, asked((), (), ())) == pytest.approx(1e-200)


@pytest.mark.parametrize(
    ("right", "depends_on", "counted"),
    [
        ([1, 1, 1], [(), (0,), (0,)], [1, 1, 1]),
        ([0, 1, 1], [(), (0,), ()], [0, 0, 1]),  # its parent failed
        ([1, 0, 1], [(), (), (0, 1)], [1, 0, 0]),  # one of two parents failed
        ([0, 1, 1], [(), (0,), (1,)], [0, 0, 0]),  # the failure passes on
        ([1, 0, 1], [(), (0,), ()], [1, 0, 1]),  # a child that failed leaves its parent alone
        (
            [1, 1, 0],
            [(1,), (2,), ()],
            [1, 0, 0],
        ),  # in their order: the second was still right when the first was looked at
    ],
)
def test_a_question_fails_with_its_parents(
    right: list[float], depends_on: list[tuple[int, ...]], counted: list[float]
) -> None:
    before = list(right)
    assert fail_with_parents(right, depends_on) == counted
    assert right == before
    assert SCORES["dpg"].combine(right, asked(*depends_on)) == pytest.approx(sum(counted) / 3)


def test_what_needs_probabilities_says_so() -> None:
    assert {name for name, score in SCORES.items() if score.answers == "hard"} == {"tifa", "dpg"}


def test_both_means_come_of_the_same_answers_and_kinds_are_under_the_arithmetic_one() -> None:
    for name in ("soft-tifa-am", "soft-tifa-gm"):
        assert scored_together(name) == ("soft-tifa-gm", "soft-tifa-am")
    assert scored_together("dpg") == ("dpg",)


@pytest.mark.parametrize(
    ("kind", "kinds"), [("", ()), ("count", ("count",)), ("entity - whole", ("entity", "entity - whole"))]
)
def test_a_kind_in_two_parts_counts_under_the_first_too(kind: str, kinds: tuple[str, ...]) -> None:
    assert kinds_of(Question("?", kind=kind)) == kinds


def test_an_estimate_is_over_prompts_not_over_numbers() -> None:
    # prompts of 3 ones, of 1 zero and of nothing: 3/4; drawn twice each with replacement 1, 3/4 or 0, of chances 1/4, 1/2, 1/4
    estimate = estimate_over_prompts(np.array([3.0, 0.0, 0.0]), np.array([3.0, 1.0, 0.0]))
    assert estimate.value == 0.75
    assert estimate.interval == (0, 1)
    expected = (0.25 * 1 + 0.5 * 0.75**2 - (0.25 + 0.5 * 0.75) ** 2) ** 0.5
    assert estimate.stderr == pytest.approx(expected, rel=0.05)


def test_an_interval_shrinks_with_the_root_of_the_prompts() -> None:
    def width(prompts: int) -> float:
        low, high = estimate_over_prompts(np.arange(prompts) % 2, np.ones(prompts)).interval or (0, 0)
        assert low < 0.5 < high
        return high - low

    assert width(100) == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.1)
    assert width(400) == pytest.approx(width(100) / 2, rel=0.15)


def test_one_prompt_tells_nothing_of_others() -> None:
    estimate = estimate_over_prompts(np.array([0.0, 2.0]), np.array([0.0, 4.0]))
    assert (estimate.value, estimate.stderr, estimate.interval) == (0.5, None, None)
    with pytest.raises(ValueError, match="no prompt has a number"):
        estimate_over_prompts(np.zeros(3), np.zeros(3))
