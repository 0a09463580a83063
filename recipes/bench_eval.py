"""How fast images are measured, beside others that find the same numbers.

Inception's features of the same images from the same weights: ours beside torch-fidelity's own run over a dataset. And the
Frechet distance of the same statistics: ours beside torch-fidelity's eigenvalues and scipy's square root of a matrix.
Inception's weights are random: cost and arithmetic are the same. See docs/speed.md.

For example: align bench eval images=128 repeats=5
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import Dataset

from evaluation import frechet_distance
from evaluation.features.inception import WEIGHTS, InceptionExtractor
from recipes.config import compose
from recipes.run import refuse_many_processes, say
from recipes.speed.frechet import moments, sqrtm_distance
from recipes.speed.machine import interleaved, median_ratio
from recipes.speed.table import facts, markdown, tell

FEATURE_TOLERANCE, DISTANCE_TOLERANCE = 1e-4, 1e-6  # relative to the largest feature, and to the distance


def main(overrides: list[str]) -> None:
    refuse_many_processes("`align bench`")
    config = compose("bench_eval", overrides)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    say("features")
    features = _features(config)
    say("distances")
    found = {**facts("eval", overrides), "features": features, "distance": _distances(config)}
    tell(found, table(found), config.results)


def _features(config: DictConfig) -> dict[str, Any]:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.utils import get_featuresdict_from_dataset

    from recipes.speed.inception import random_inception

    side, numbers = config.image_size, torch.Generator().manual_seed(0)
    images_NHW3 = torch.randint(0, 256, (config.images, side, side, 3), dtype=torch.uint8, generator=numbers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS
        torch.save(random_inception(), path)
        extractor = InceptionExtractor(path, sha256=None)
        network = FeatureExtractorInceptionV3("theirs", ["2048"], feature_extractor_weights_path=str(path))
    network.to(extractor.device)

    def ours() -> Tensor:
        parts = [extractor(part) for part in images_NHW3.split(config.batch_size)]
        return torch.cat([part.features_BD.cpu() for part in parts])

    def theirs() -> Tensor:
        cuda = extractor.device.type == "cuda"
        # without workers, whose start would be most of a short run
        return get_featuresdict_from_dataset(_Images(images_NHW3), network, config.batch_size, cuda, True, False)[
            "2048"
        ]

    expected = theirs()
    difference = ((ours() - expected).abs().max() / expected.abs().max()).item()
    _refuse("features of torch-fidelity", difference, FEATURE_TOLERANCE)
    return _timed({"ours": ours, "torch-fidelity": theirs}, {"torch-fidelity": difference}, config.repeats)


class _Images(Dataset[Tensor]):
    """As torch-fidelity reads them: uint8 [3, H, W]."""

    def __init__(self, images_NHW3: Tensor) -> None:
        self.images_N3HW = images_NHW3.permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.images_N3HW)

    def __getitem__(self, index: int) -> Tensor:
        return self.images_N3HW[index]


def _distances(config: DictConfig) -> dict[str, Any]:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    dim = config.features
    (mean1, cov1), (mean2, cov2) = moments(5 * dim, 0, dim), moments(3 * dim, 1, dim)

    def by_eigenvalues() -> float:
        one, two = {"mu": mean1, "sigma": cov1}, {"mu": mean2, "sigma": cov2}
        return fid_statistics_to_metric(one, two, False)[KEY_METRIC_FID]

    works: dict[str, Callable[[], float]] = {
        "ours": lambda: frechet_distance(mean1, cov1, mean2, cov2),
        "torch-fidelity": by_eigenvalues,
        "scipy sqrtm": lambda: sqrtm_distance(mean1, cov1, mean2, cov2),
    }
    values = {name: work() for name, work in works.items()}
    ours = values.pop("ours")
    differences = {name: abs(ours - value) / abs(value) for name, value in values.items()}
    for name, difference in differences.items():
        _refuse(f"distance by {name}", difference, DISTANCE_TOLERANCE)
    return {"value": ours, **_timed(works, differences, config.repeats)}


def _refuse(what: str, difference: float, allowed: float) -> None:
    if not difference <= allowed:
        raise ValueError(
            f"the {what} and ours differ by {difference:.1e} of their size, and {allowed:g} is allowed. Their time would say "
            "nothing, so no ratio is given; are the packages of the versions that ar-align asks for?"
        )


def _timed(works: dict[str, Callable[[], Any]], differences: dict[str, float], repeats: int) -> dict[str, Any]:
    seconds = interleaved(works, repeats)
    return {
        "by": {
            name: {
                "seconds": times,
                "median_seconds": statistics.median(times),
                "times_ours": median_ratio(times, seconds["ours"]),
                **({"relative_difference": differences[name]} if name in differences else {}),
            }
            for name, times in seconds.items()
        }
    }


def table(found: dict[str, Any]) -> str:
    rows = []
    for what in ("features", "distance"):
        for name, by in found[what]["by"].items():
            difference = by.get("relative_difference")
            row = [what, name, f"{by['median_seconds']:.3g}", "" if name == "ours" else f"{by['times_ours']:.2f} x"]
            rows.append([*row, "" if difference is None else f"{difference:.1e}"])
    return markdown(["what", "by", "seconds", "ours is faster", "largest difference, relative"], rows)
