"""One number from the Fréchet distances of several representations."""

from collections.abc import Mapping

import numpy as np


def mean_frechet_ratio(distances: Mapping[str, float], baselines: Mapping[str, float]) -> float:
    """FDr^k: the mean over k representations of distance / baseline; 1 is as near as real images are, lower is better.

    A representation's baseline is the Fréchet distance of held-out real images (the validation set) to the same
    reference. Distances of different representations differ by orders of magnitude; their ratios do not.
    Source: Yang et al. 2026, arXiv:2604.28190; k is 6 there.

    Args:
        distances, baselines: by representation, the same ones in both.

    Raises:
        ValueError: no or different representations, NaN or infinity, or a baseline that is not above 0.
    """
    if not distances or distances.keys() != baselines.keys():
        raise ValueError(
            f"distances and baselines must be of the same representations, at least one; got {sorted(distances)} and "
            f"{sorted(baselines)}"
        )
    for name in distances:
        if not (np.isfinite(distances[name]) and np.isfinite(baselines[name]) and baselines[name] > 0):
            raise ValueError(
                f"{name}: distance and baseline must be finite and the baseline above 0, got {distances[name]} and "
                f"{baselines[name]}"
            )
    return float(np.mean([distances[name] / baselines[name] for name in distances]))
