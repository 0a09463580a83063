"""The Vendi score: how many different images there are. Shapes: N images, B of them at once, D feature dim."""

import numpy as np
from scipy.special import entr

from evaluation.metrics.rows import check_features, chunks, unit_rows
from evaluation.moments import Floats


def vendi_score(features_ND: Floats) -> float:
    """exp of the entropy of the eigenvalues of K / N, with K the cosines between images; between 1 and min(N, D).

    It needs no real images and knows nothing of quality: noise is diverse. It grows with N, so compare equal counts.
    The smaller of K and of the D x D matrix with the same eigenvalues is decomposed.
    Source: Friedman and Dieng 2023, arXiv:2210.02410, with the cosine kernel.

    Raises:
        ValueError: wrong shape, fewer than 2 images, NaN, infinity, or an image whose features are all 0.
    """
    features_ND = check_features(features_ND)
    n, dim = features_ND.shape
    if n <= dim:
        unit_ND = unit_rows(features_ND)
        matrix = unit_ND @ unit_ND.T
    else:
        matrix = np.zeros((dim, dim))
        for rows in chunks(n):
            unit_BD = unit_rows(features_ND[rows])
            matrix += unit_BD.T @ unit_BD
    return float(np.exp(entr(np.linalg.eigvalsh(matrix / n).clip(min=0)).sum()))
