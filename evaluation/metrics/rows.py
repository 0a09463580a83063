"""Features in parts: they may be float32 or memory-mapped, and 50,000 x 2048 of them in float64 would be 800 MB.

Shapes: N images, M real images, D feature dim.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.moments import Floats

CHUNK_ROWS = 2048  # at D = 2048, 33 MB in float64, and as much for a block of a distance matrix


def chunks(n: int) -> Iterator[slice]:
    """Consecutive slices of at most CHUNK_ROWS that cover n rows."""
    return (slice(start, min(start + CHUNK_ROWS, n)) for start in range(0, n, CHUNK_ROWS))


def check_features(features_ND: Floats, name: str = "features") -> NDArray[Any]:
    """The array as it is, mapped or not. Raises ValueError for a wrong shape, fewer than 2 images, NaN or infinity."""
    features_ND = np.asarray(features_ND)
    if features_ND.ndim != 2 or len(features_ND) < 2 or features_ND.shape[1] == 0:
        raise ValueError(
            f"{name} must have shape [images, numbers of each] with at least 2 images, got {list(features_ND.shape)}"
        )
    for rows in chunks(len(features_ND)):
        finite_B = np.isfinite(features_ND[rows]).all(axis=1)
        if not finite_B.all():
            raise ValueError(
                f"{name} must be finite, got NaN or infinity, first in row {rows.start + int(np.argmin(finite_B))}; "
                "check the network that made them and its input"
            )
    return features_ND


def check_both(real_MD: Floats, generated_ND: Floats) -> tuple[NDArray[Any], NDArray[Any]]:
    """`check_features` of two sets that are to be compared, with one D."""
    real_MD, generated_ND = check_features(real_MD, "real features"), check_features(generated_ND, "generated features")
    if real_MD.shape[1] != generated_ND.shape[1]:
        raise ValueError(
            f"features must be [M, D] and [N, D] with one D, got {list(real_MD.shape)} and {list(generated_ND.shape)}; "
            "are they of one extractor?"
        )
    return real_MD, generated_ND


def unit_rows(features_BD: Floats) -> NDArray[np.float64]:
    """Rows of length 1, in float64. Raises ValueError for one that is all 0."""
    features_BD = np.asarray(features_BD, np.float64)
    norm_B = np.linalg.norm(features_BD, axis=1)
    if not norm_B.all():
        raise ValueError(
            "an image's features are all 0 and have no direction; check the network that made them and its input"
        )
    return features_BD / norm_B[:, None]
