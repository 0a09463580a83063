"""GenEval's numbers and their errors, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.geneval.summary import Summary, summarize_verdicts

# tag, prompt, correct, credit
IMAGES = [
    ("counting", "two cats", True, 1.0),
    ("counting", "two cats", False, 0.5),
    ("counting", "two dogs", False, 0.0),
    ("counting", "two dogs", False, 0.5),
    ("colors", "a red cat", True, 1.0),
    ("colors", "a red dog", True, 1.0),
    ("colors", "a red cup", False, 0.25),
]


def sum_up(images: list[tuple[str, str, bool, float]], **settings: int) -> Summary:
    return summarize_verdicts(*map(list, zip(*images, strict=True)), **settings)  # type: ignore[arg-type]


def test_the_numbers() -> None:
    assert sum_up(IMAGES).values == pytest.approx(
        {
            "overall": (1 / 4 + 2 / 3) / 2,  # not 3 / 7, which is the share of images
            "counting": 1 / 4,
            "colors": 2 / 3,
            "credit": (2 / 4 + 2.25 / 3) / 2,
            "correct-images": 3 / 7,
            "correct-prompts": 3 / 5,
        }
    )


def test_all_images_of_a_prompt_are_drawn_together() -> None:
    """Two prompts of a tag, one all right and one all wrong: a draw has 0, 1 or 2 right ones with 1/4, 1/2, 1/4."""
    images = [("counting", name, name == "right", float(name == "right")) for name in ("right", "wrong") * 50]
    summary = sum_up(images, resamples=20_000)
    assert summary.prompts == 2
    assert summary.stderr["counting"] == pytest.approx(math.sqrt(1 / 8), rel=0.02)  # by images it were .05
    assert summary.intervals["counting"] == (0, 1)


def test_a_tag_keeps_its_number_of_prompts() -> None:
    """The tags are drawn apart: errors add up as those of independent means do."""
    rng = np.random.default_rng(0)
    images = [
        (tag, f"{tag} {prompt}", bool(rng.random() < 0.5), 0.0)
        for tag, prompts in (("colors", 90), ("position", 10))
        for prompt in range(prompts)
    ]
    summary = sum_up(images, resamples=20_000)
    error = {}
    for tag in ("colors", "position"):
        hits = [correct for of_tag, _, correct, _ in images if of_tag == tag]
        error[tag] = float(np.std(hits)) / math.sqrt(len(hits))
        assert summary.stderr[tag] == pytest.approx(error[tag], rel=0.03)
    assert summary.stderr["overall"] == pytest.approx(math.hypot(*error.values()) / 2, rel=0.03)
    mean, low, high = summary.values["colors"], *summary.intervals["colors"]
    assert (mean - low, high - mean) == pytest.approx((1.96 * error["colors"],) * 2, abs=0.015)
    images_error = math.hypot(0.9 * error["colors"], 0.1 * error["position"])
    assert summary.stderr["correct-images"] == pytest.approx(images_error, rel=0.03)


def test_a_prompt_with_more_images_weighs_more() -> None:
    """Of `a` 3 images, all right, of `b` 1, wrong: draws aa, ab, bb give 1, 3/4, 0 with 1/4, 1/2, 1/4."""
    images = [("colors", "a", True, 1.0)] * 3 + [("colors", "b", False, 0.0)]
    expected = math.sqrt((1 + 2 * 9 / 16) / 4 - (2.5 / 4) ** 2)
    assert sum_up(images, resamples=20_000).stderr["colors"] == pytest.approx(expected, rel=0.02)


def test_neither_the_order_nor_the_day_matters() -> None:
    assert sum_up(IMAGES) == sum_up(IMAGES[::-1])
    assert sum_up(IMAGES).stderr != sum_up(IMAGES, seed=1).stderr


def test_equal_prompts_of_two_tags_are_two() -> None:
    assert sum_up([("colors", "a cat", True, 1.0), ("single_object", "a cat", True, 1.0)]).prompts == 2


def test_one_prompt_has_no_error() -> None:
    summary = sum_up([*IMAGES, ("position", "a cat above a dog", True, 1.0)])
    assert summary.values["position"] == 1
    unknown = {"overall", "position", "credit", "correct-images", "correct-prompts"}
    assert {name for name, value in summary.stderr.items() if math.isnan(value)} == unknown
    assert set(summary.intervals) == {"counting", "colors"}


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no verdicts to sum up; judge at least one image"):
        summarize_verdicts([], [], [], [])


def test_columns_must_be_of_one_length() -> None:
    with pytest.raises(ValueError, match="shorter"):
        summarize_verdicts(["colors", "colors"], ["a"], [True, True], [1.0, 1.0])
    with pytest.raises(ValueError, match="length"):
        summarize_verdicts(["colors"], ["a"], [True, True], [1.0])
