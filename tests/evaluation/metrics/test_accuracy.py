import numpy as np
import pytest

from evaluation.metrics import class_accuracy, class_hits, class_probabilities

LOGITS = np.array([[1.0, 0], [0, 1], [3, 2], [2, 3]])


def test_accuracy():
    np.testing.assert_array_equal(class_hits(LOGITS, np.array([0, 1, 0, 0])), [True, True, True, False])
    assert class_accuracy(LOGITS, np.array([0, 1, 0, 0])) == 0.75
    with pytest.raises(ValueError, match=r"labels must have shape \[4\]"):
        class_accuracy(LOGITS, np.array([0, 1]))


def test_probabilities_are_float64_and_survive_large_logits():
    probs = class_probabilities(np.array([[1e4, 1e4 - np.log(3)]], np.float64))
    np.testing.assert_allclose(probs, [[0.75, 0.25]])
    assert class_probabilities(LOGITS.astype(np.float32)).dtype == np.float64


@pytest.mark.parametrize("logits", [np.ones(3), np.ones((0, 3)), np.array([[0, np.nan]])])
def test_probabilities_refuse_bad_logits(logits):
    with pytest.raises(ValueError, match="logits must"):
        class_probabilities(logits)
