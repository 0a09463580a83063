"""The Vendi score counts: copies not at all, unlike images one each, and what lies between by its entropy."""

import numpy as np
import pytest

from evaluation.metrics import CHUNK_ROWS, vendi_score


def test_counts_unlike_images_and_no_copies():
    assert vendi_score(np.eye(6)) == pytest.approx(6)
    assert vendi_score(np.ones((6, 4))) == pytest.approx(1)
    assert vendi_score(np.tile(np.eye(3), (4, 1)) * 2.5) == pytest.approx(3)  # lengths do not matter


def test_two_images_by_hand():
    """Cosine c: eigenvalues of K / 2 are (1 + c) / 2 and (1 - c) / 2."""
    c = 0.6
    p = np.array([(1 + c) / 2, (1 - c) / 2])
    assert vendi_score(np.array([[1.0, 0, 0], [0.6, 0.8, 0]])) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_both_matrices_have_the_same_eigenvalues():
    """4 images of 5 features go by the images' matrix; the same ones many times over by the features', and in chunks."""
    features = np.random.default_rng(0).normal(size=(4, 5))
    assert vendi_score(np.tile(features, (CHUNK_ROWS, 1))) == pytest.approx(vendi_score(features))


def test_refuses_an_image_without_direction():
    with pytest.raises(ValueError, match="all 0 and have no direction"):
        vendi_score(np.array([[1.0, 0], [0, 0]]))
