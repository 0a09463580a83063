"""Standard errors of shares, against the spread over draws of their own and by hand."""

import numpy as np
import pytest

from evaluation.metrics import density_coverage_hits, manifold_hits
from evaluation.uncertainty import mean_stderr, recall_stderr


@pytest.mark.parametrize("hits_of", [manifold_hits, density_coverage_hits])
def test_stderr_is_the_spread_over_draws(hits_of):
    """The tolerance of 35 % is three standard deviations of a spread estimated from 40 draws."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(600, 8))
    hits = [hits_of(real, 0.8 * rng.normal(size=(200, 8)) + 0.3) for _ in range(40)]
    generated_spread, real_spread = (np.std([hit[side].mean() for hit in hits], ddof=1) for side in (0, 1))
    assert mean_stderr(hits[0][0]) == pytest.approx(generated_spread, rel=0.35)
    assert recall_stderr(hits[0][1], 200) == pytest.approx(real_spread, rel=0.6)  # stated as an approximation


def test_stderr_of_a_share_by_hand():
    """p = 1/4 of 100: sqrt(p (1 - p) / n) = sqrt(3) / 40. As recall, 16 generated images make n = 16: sqrt(3) / 16."""
    hits = np.arange(100) < 25
    assert mean_stderr(hits) == recall_stderr(hits, 1000) == pytest.approx(np.sqrt(3) / 40)
    assert recall_stderr(hits, 16) == pytest.approx(np.sqrt(3) / 16)


def test_one_image_has_no_stderr():
    for too_few in (lambda: mean_stderr(np.array([True])), lambda: recall_stderr(np.array([True, False]), 1)):
        with pytest.raises(ValueError, match="at least 2 images, got 1"):
            too_few()
