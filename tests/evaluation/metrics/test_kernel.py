"""KID and CMMD against sums written out, their limits, and their error bars against draws of their own."""

import numpy as np
import pytest

from evaluation.metrics import CHUNK_ROWS, cmmd, kernel_distance


def test_kid_by_hand():
    """D = 1, kernel (x y + 1)^3, subsets are all images. Real 0, 0: k = 1. Generated 1, 1: k = 8. Across: 1. 1 + 8 - 2."""
    found = kernel_distance(np.zeros((2, 1)), np.ones((2, 1)), subsets=2, subset_size=2)
    assert (found.value, found.spread) == pytest.approx((7, 0))
    assert found.stderr == 0  # all generated images are alike


def test_kid_is_unbiased_and_sees_a_shift():
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(2, 400, 8))
    null = kernel_distance(real, same, subset_size=100)
    assert abs(null.value) < 3 * null.stderr
    shifted = kernel_distance(real, same + 0.5, subset_size=100)
    assert shifted.value > 10 * shifted.stderr
    assert shifted == kernel_distance(real, same + 0.5, subset_size=100)
    assert shifted != kernel_distance(real, same + 0.5, subset_size=100, seed=1)


def test_kid_refuses_subsets_larger_than_the_sets():
    with pytest.raises(ValueError, match="100 subsets of 1000 from 30 real and 20 generated images. Set subset_size"):
        kernel_distance(np.zeros((30, 2)), np.zeros((20, 2)))


def gaussian_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.exp(-np.square(a[:, None] - b).sum(axis=2) / 200)


def test_cmmd_is_its_three_means():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(30, 4)), rng.normal(size=(20, 4)) + 1
    x, y = (array / np.linalg.norm(array, axis=1, keepdims=True) for array in (real, generated))
    expected = gaussian_kernel(x, x).mean() + gaussian_kernel(y, y).mean() - 2 * gaussian_kernel(x, y).mean()
    assert cmmd(real, generated).value == pytest.approx(1000 * expected, rel=1e-9)


def test_cmmd_sees_directions_only():
    """Opposite unit vectors are at distance 2: 1000 (1 + 1 - 2 exp(-4 / 200))."""
    found = cmmd(np.tile([[3.0, 0]], (4, 1)), np.tile([[-0.5, 0]], (5, 1)))
    assert found.value == pytest.approx(2000 * (1 - np.exp(-0.02)))
    assert cmmd(np.eye(3), 7 * np.eye(3)).value == pytest.approx(0, abs=1e-9)


def test_cmmd_in_chunks_is_cmmd():
    """A set repeated is the same distribution, and the biased estimate does not see it repeat."""
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(50, 3)), rng.normal(size=(50, 3)) + 1
    often = np.tile(real, (CHUNK_ROWS // 50 + 1, 1))
    assert len(often) > CHUNK_ROWS
    assert cmmd(often, generated).value == pytest.approx(cmmd(real, generated).value, rel=1e-9)


def test_cmmd_refuses_an_embedding_without_direction():
    with pytest.raises(ValueError, match="all 0 and have no direction"):
        cmmd(np.ones((3, 2)), np.array([[1.0, 0], [0, 0]]))


@pytest.mark.parametrize("whole", [True, False], ids=["one subset is all", "small subsets"])
def test_kid_stderr_is_the_spread_over_draws(whole):
    """A spread from 100 draws is itself good to 7 %; 21 % are three of those."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 8))
    options = {"subset_size": 200, "subsets": 2} if whole else {"subset_size": 50, "subsets": 100}
    found = [kernel_distance(real, 1.1 * rng.normal(size=(200, 8)) + 0.4, **options) for _ in range(100)]
    spread = np.std([distance.value for distance in found], ddof=1)
    assert np.mean([distance.stderr for distance in found]) == pytest.approx(spread, rel=0.21)


def test_cmmd_stderr_is_the_spread_over_draws():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 8))
    found = [cmmd(real, 1.1 * rng.normal(size=(200, 8)) + 0.4) for _ in range(100)]
    spread = np.std([distance.value for distance in found], ddof=1)
    assert np.mean([distance.stderr for distance in found]) == pytest.approx(spread, rel=0.21)
