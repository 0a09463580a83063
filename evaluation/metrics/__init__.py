"""Distances and scores of generated images: pure float64 functions on moments, features and logits.

Features may be float32 or memory-mapped; they are read in parts, never copied whole.
Which network made them is another choice; see `evaluation.features`.
"""

from evaluation.metrics.accuracy import class_accuracy, class_hits, class_probabilities
from evaluation.metrics.average import mean_frechet_ratio
from evaluation.metrics.extrapolation import FrechetExtrapolation, frechet_infinity
from evaluation.metrics.frechet import frechet_distance, frechet_influence, frechet_stderr
from evaluation.metrics.inception_score import inception_score, inception_score_stderr
from evaluation.metrics.kernel import KernelDistance, cmmd, kernel_distance
from evaluation.metrics.manifold import (
    NEIGHBOURS,
    density_coverage,
    density_coverage_hits,
    manifold_hits,
    precision_recall,
)
from evaluation.metrics.rows import CHUNK_ROWS
from evaluation.metrics.vendi import vendi_score

__all__ = [
    "CHUNK_ROWS",
    "NEIGHBOURS",
    "FrechetExtrapolation",
    "KernelDistance",
    "class_accuracy",
    "class_hits",
    "class_probabilities",
    "cmmd",
    "density_coverage",
    "density_coverage_hits",
    "frechet_distance",
    "frechet_infinity",
    "frechet_influence",
    "frechet_stderr",
    "inception_score",
    "inception_score_stderr",
    "kernel_distance",
    "manifold_hits",
    "mean_frechet_ratio",
    "precision_recall",
    "vendi_score",
]
