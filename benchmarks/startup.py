"""What starting costs: `align --help`, and `import align` with its front door on top of `import torch`.

    python benchmarks/startup.py

Each figure is the median of several fresh interpreters, all measured in this one run. Limits: `align --help` under one
second; `import align` and `align.load_generator` under one second on top of torch.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "align --help": ["-m", "recipes.cli", "--help"],
    "import torch": ["-c", "import torch"],
    "import torch, align, load_generator": ["-c", "import torch, align; align.load_generator, align.sample"],
}
RUNS = 5


def seconds(arguments: list[str]) -> float:
    times = []
    for _ in range(RUNS + 1):  # the first fills the file cache
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    measured = {name: seconds(arguments) for name, arguments in COMMANDS.items()}
    for name, value in measured.items():
        print(f"{name:<40}{value:6.2f} s")
    added = measured["import torch, align, load_generator"] - measured["import torch"]
    print(f"align on top of torch: {added:.2f} s, {added / 1.0:.2f} of the limit")
    print(f"align --help: {measured['align --help']:.2f} s, {measured['align --help'] / 1.0:.2f} of the limit")


if __name__ == "__main__":
    main()
