"""What the statistics behind an FID cost at the size of Inception's features, and that they are right.

    python benchmarks/frechet.py --results benchmarks/results/frechet-cpu.json      (two minutes on two cores; on Linux)

All in one run: the distance beside scipy's square root of the matrix product, by which most tools take it; of a set to
itself; the moments of 50,000 images that arrive in batches, in a process of their own that says its peak memory; its
standard error, and precision and recall of 10,000 images against as many, both from memory-mapped features.
Limits: a fifth of scipy's time, 1e-6 of its value, 1e-6 for a set against itself; 1 GB for the moments with all
imports, and for precision and recall. Pages of a mapped file count as memory once they are read, but the system may
have them back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import frechet_distance
from recipes.speed.frechet import BATCH, batches, moments, sqrtm_distance

DIM, IMAGES, MANIFOLD_IMAGES = 2048, 50_000, 10_000
CHILD = """
import json, re, sys, time
from pathlib import Path
import numpy as np
from evaluation import RunningMoments, metrics
from frechet import DIM
from recipes.speed.frechet import batches
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9
before, seconds, result = peak(), 0.0, None
if sys.argv[1] == "moments":
    moments = RunningMoments(DIM)
    for batch in batches(int(sys.argv[2]), 0, DIM):
        start = time.perf_counter()
        moments.update(batch)
        seconds += time.perf_counter() - start
    moments.covariance
else:
    real, generated = (np.load(path, mmap_mode="r") for path in sys.argv[2:4])
    start = time.perf_counter()
    if sys.argv[1] == "manifold":
        result = metrics.precision_recall(real, generated)
    else:
        with np.load(sys.argv[4]) as file:
            result = metrics.frechet_stderr(generated, *(file[name] for name in ("mean", "cov", "mean2", "cov2")))
    seconds = time.perf_counter() - start
print(json.dumps({"seconds": round(seconds, 2), "imports_gb": round(before, 3), "peak_gb": round(peak(), 3), "result": result}))
"""


def timed(function: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-c", CHILD, *arguments]
    folder = Path(__file__).parent
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
    return json.loads(found.stdout)


def save_features(path: Path, n: int, seed: int) -> None:
    features_ND = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, DIM))
    for index, batch_BD in enumerate(batches(n, seed, DIM)):
        features_ND[index * BATCH : index * BATCH + len(batch_BD)] = batch_BD
    features_ND.flush()


def main() -> None:
    # not above: it brings torch, which the children would import too
    from align.files import write_text
    from recipes.run import describe_device

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"command": "python benchmarks/frechet.py", "device": describe_device(), "features": DIM}

    def tell(name: str, figures: dict[str, Any]) -> None:
        found[name] = figures
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
        if arguments.results:
            write_text(arguments.results, json.dumps(found, indent=2) + "\n")

    one, two, few = (moments(n, seed, DIM) for seed, n in enumerate((10_000, 6_000, 500)))
    ours, seconds = timed(lambda: frechet_distance(*one, *two))
    theirs, sqrtm_seconds = timed(lambda: sqrtm_distance(*one, *two))
    figures = {
        "value": ours,
        "seconds": round(seconds, 2),
        "sqrtm_value": theirs,
        "sqrtm_seconds": round(sqrtm_seconds, 2),
    }
    share, difference = seconds / sqrtm_seconds, abs(ours - theirs) / theirs
    tell("distance", figures | {"share_of_sqrtm": round(share, 3), "relative_difference": difference})
    value, seconds = timed(lambda: frechet_distance(*few, *two))
    tell("500 images, rank-deficient", {"value": value, "seconds": round(seconds, 2)})
    itself = {name: frechet_distance(*of, *of) for name, of in (("10000 images", one), ("500 images", few))}
    tell("to itself", itself)
    memory = [child("moments", str(IMAGES))]
    tell(f"moments of {IMAGES} in batches of {BATCH}", memory[0])
    with tempfile.TemporaryDirectory() as folder:
        real, generated, many, file = (
            str(Path(folder) / name) for name in ("real.npy", "generated.npy", "many.npy", "moments.npz")
        )
        save_features(Path(real), MANIFOLD_IMAGES, 0)
        save_features(Path(generated), MANIFOLD_IMAGES, 1)
        memory.append(child("manifold", real, generated))
        tell(f"precision and recall, {MANIFOLD_IMAGES} against {MANIFOLD_IMAGES}", memory[-1])
        save_features(Path(many), IMAGES, 1)
        mean, cov = moments(IMAGES, 1, DIM)
        np.savez(file, mean=mean, cov=cov, mean2=one[0], cov2=one[1])
        memory.append(child("stderr", real, many, file))
        tell(f"standard error of the distance of {IMAGES}", memory[-1])
    limits = {
        "share_of_sqrtm / 0.2": round(share / 0.2, 3),
        "relative_difference / 1e-6": difference / 1e-6,
        "to itself / 1e-6": max(itself.values()) / 1e-6,
        "peak / 1 GB": max(figures["peak_gb"] for figures in memory[:2]),
    }
    tell("of the limits", limits)


if __name__ == "__main__":
    main()
