"""What a classifier says of each image. Shapes: N images, K classes."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from evaluation.metrics.rows import check_features
from evaluation.moments import Floats


def class_accuracy(logits_NK: Floats, labels_N: NDArray[np.integer]) -> float:
    """Share of images whose top class is the requested one, in [0, 1].

    Source: "GAN-test" of Shmelkov et al. 2018, arXiv:1807.09499: a classifier of real images judges generated ones.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 images, NaN or infinity.
    """
    return float(class_hits(logits_NK, labels_N).mean())


def class_hits(logits_NK: Floats, labels_N: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Per image, whether the top class is the requested one: the indicators behind `class_accuracy`. bool [N]."""
    predicted_N = check_features(logits_NK, "logits").argmax(axis=1)
    if labels_N.shape != predicted_N.shape:
        raise ValueError(
            f"labels must have shape [{len(predicted_N)}], one per row of logits, got {list(labels_N.shape)}"
        )
    return predicted_N == labels_N


def class_probabilities(logits_NK: Floats) -> NDArray[np.float64]:
    """Softmax in float64. Raises ValueError for a wrong shape, no image, NaN or infinity."""
    logits_NK = np.asarray(logits_NK, np.float64)
    if logits_NK.ndim != 2 or len(logits_NK) == 0:
        raise ValueError(f"logits must have shape [N, K] with N >= 1, got {list(logits_NK.shape)}")
    if not np.isfinite(logits_NK).all():
        raise ValueError("logits must be finite, got NaN or infinity; check the classifier and its input")
    return softmax(logits_NK, axis=1)
