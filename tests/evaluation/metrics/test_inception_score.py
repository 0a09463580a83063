"""The Inception Score at its extremes and by hand, its splits, and its error bar against draws of its own."""

import numpy as np
import pytest

from evaluation.metrics import inception_score, inception_score_stderr

ONE_HOT = 1000 * np.tile(np.eye(5), (4, 1))


def test_extremes():
    assert inception_score(ONE_HOT) == pytest.approx(5)
    assert inception_score(np.ones((7, 5))) == pytest.approx(1)
    assert inception_score(ONE_HOT[[0, 0, 5]]) == pytest.approx(1)  # sure, but always of the same class


def test_by_hand_and_in_any_order():
    """p = (.9, .1) and (.1, .9): marginal (.5, .5), so KL = .9 ln 1.8 + .1 ln .2 for both."""
    logits = np.log([[0.9, 0.1], [0.1, 0.9]])
    assert inception_score(logits) == pytest.approx(np.exp(0.9 * np.log(1.8) + 0.1 * np.log(0.2)))
    by_class = np.random.default_rng(0).normal(size=(60, 4)).repeat(2, axis=0)
    assert inception_score(by_class) == pytest.approx(inception_score(by_class[::-1]))


def test_splits_are_consecutive_and_averaged():
    """One-hot rows of classes 0, 1 | 0, 0 | 1: scores 2, 1, 1."""
    logits = ONE_HOT[[0, 1, 0, 0, 1]]
    assert inception_score(logits, split_size=2) == pytest.approx(4 / 3)
    assert inception_score(logits, split_size=5000) == inception_score(logits)
    assert inception_score(logits[:4], splits=2) == pytest.approx(3 / 2)


def test_class_order_collapses_splits_until_they_are_shuffled():
    sorted_by_class = np.repeat(1000 * np.eye(5), 40, axis=0)
    assert inception_score(sorted_by_class, split_size=40) == pytest.approx(1)
    shuffled = inception_score(sorted_by_class, split_size=40, shuffle_seed=2020)
    assert shuffled > 4.5
    assert shuffled == inception_score(sorted_by_class, split_size=40, shuffle_seed=2020)
    assert shuffled != inception_score(sorted_by_class, split_size=40, shuffle_seed=2021)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_size": 2, "splits": 2}, "not both"),
        ({"split_size": 0}, "at least 1, got 0"),
        ({"splits": 21}, "between 1 and the 20 images, got 21"),
    ],
)
def test_refuses_splits_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        inception_score(ONE_HOT, **options)


def test_stderr_by_hand():
    """p = (1, 0), (1, 0), (0, 1): KL = ln 1.5 twice and ln 3, whose standard deviation is ln 2 * sqrt(2) / 3."""
    logits = 1000 * np.array([[1.0, 0], [1, 0], [0, 1]])
    score = (1.5 * 1.5 * 3) ** (1 / 3)
    assert inception_score_stderr(logits) == pytest.approx(score * np.log(2) * np.sqrt(2) / 3 / np.sqrt(3))


@pytest.mark.parametrize("options", [{}, {"splits": 4}])
def test_stderr_is_the_spread_over_draws(options):
    """A spread from 100 draws is itself good to 7 %; 21 % are three of those."""
    rng = np.random.default_rng(0)
    draws = [4 * rng.normal(size=(400, 10)) for _ in range(100)]
    spread = np.std([inception_score(draw, **options) for draw in draws], ddof=1)
    errors = [inception_score_stderr(draw, **options) for draw in draws[:20]]
    assert np.mean(errors) == pytest.approx(spread, rel=0.21)
