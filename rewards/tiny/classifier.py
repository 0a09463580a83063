"""A small classifier of known weights, and moments under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evaluation import Reference
from evaluation.classifier import FEATURE_DIM, DigitClassifier, save_classifier
from rewards.tiny.fill import fill


def make_classifier_log_prob(folder: Path) -> dict[str, Any]:
    """Write a classifier of ten classes; returns the settings of `classifier-log-prob`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_classifier(fill(DigitClassifier("strided5x5"), seed=0), folder / "classifier.safetensors")
    return {"weights": str(folder / "classifier.safetensors")}


def make_loo_fid(folder: Path) -> dict[str, Any]:
    """Write the classifier and moments of images that were never there; returns the settings of `loo-fid`."""
    settings = make_classifier_log_prob(folder)
    fingerprint = fill(DigitClassifier("strided5x5"), seed=0).fingerprint
    moments = Reference("none", fingerprint, np.full(FEATURE_DIM, 0.1), np.diag(np.full(FEATURE_DIM, 0.01)), 1000)
    moments.save(folder / "moments.npz")
    return {**settings, "reference": str(folder / "moments.npz"), "device": "cpu"}
