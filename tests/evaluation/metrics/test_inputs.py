"""What all metrics take and refuse: float32 and memory maps as float64, and nothing that would make a wrong number."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation import metrics

MEAN, COV = np.zeros(4), np.eye(4)
ONE_SET: dict[str, Callable[[np.ndarray], object]] = {
    "frechet_influence": lambda x: metrics.frechet_influence(x, MEAN, COV, MEAN + 1, COV).tolist(),
    "frechet_infinity": lambda x: metrics.frechet_infinity(x, MEAN, COV, smallest=20, points=3),
    "inception_score": metrics.inception_score,
    "inception_score_stderr": lambda x: metrics.inception_score_stderr(x, splits=3, shuffle_seed=1),
    "class_accuracy": lambda x: metrics.class_accuracy(x, np.arange(len(x)) % 4),
    "vendi_score": metrics.vendi_score,
}
TWO_SETS: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
    "kernel_distance": lambda x, y: metrics.kernel_distance(x, y, subset_size=20, subsets=3),
    "cmmd": metrics.cmmd,
    "precision_recall": metrics.precision_recall,
    "density_coverage": metrics.density_coverage,
}


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)


@pytest.mark.parametrize("name", [*ONE_SET, *TWO_SETS])
def test_float32_and_maps_are_read_as_float64(name, features, tmp_path: Path):
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    exact = features.astype(np.float64)
    if name in ONE_SET:
        assert ONE_SET[name](features) == ONE_SET[name](mapped) == ONE_SET[name](exact)
    else:
        other = exact[:40] + 1
        assert TWO_SETS[name](features, other) == TWO_SETS[name](mapped, other) == TWO_SETS[name](exact, other)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:1], r"at least 2 images, got \[1, 4\]"),
        (lambda x: x[0], r"at least 2 images, got \[4\]"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 7, np.nan, x), "finite, got NaN or infinity, first in row 7"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 9, np.inf, x), "finite, got NaN or infinity, first in row 9"),
    ],
    ids=["one image", "one vector", "NaN", "infinity"],
)
@pytest.mark.parametrize("name", [*ONE_SET, *TWO_SETS])
def test_refuses_what_would_make_a_wrong_number(name, spoil, message, features):
    for call in (
        [lambda: ONE_SET[name](spoil(features))]
        if name in ONE_SET
        else [lambda: TWO_SETS[name](spoil(features), features), lambda: TWO_SETS[name](features, spoil(features))]
    ):
        with pytest.raises(ValueError, match=message):
            call()
