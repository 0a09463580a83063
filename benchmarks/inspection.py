"""How long `align inspect` takes on a checkpoint of 3 GB: at most three seconds, also where nobody has read it yet.

    python benchmarks/inspection.py [--folder DIR]      # DIR has room for 6.2 GB; on Linux

A LlamaGen-XL with random weights, as torch writes it and as safetensors; each figure is the median of fresh processes.
Cold: the system has been told to forget the file's pages. `import torch` alone is timed in the same run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from true_size import make_models

LIMIT = 3.0
RUNS = 3


def seconds(*arguments: str, forget: Path | None = None) -> float:
    times = []
    for _ in range(RUNS):
        if forget is not None:
            with forget.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        generator, _ = make_models("llamagen", {"size": "XL", "config": {"grid": [24, 24]}})
        print(f"{'import torch':<40}{seconds('-c', 'import torch'):5.2f} s")
        for name in ("c2i_XL_384.pt", "c2i_XL_384.safetensors"):
            path = Path(folder) / name
            generator.cpu().save_published(path)
            inspect = ("-m", "recipes.cli", "inspect", str(path))
            for how, forget in (("warm", None), ("cold", path)):
                taken = seconds(*inspect, forget=forget)
                print(f"{f'align inspect {name}, {how}':<40}{taken:5.2f} s, {taken / LIMIT:.2f} of the limit")


if __name__ == "__main__":
    main()
