"""What speculative Jacobi decoding (engine=jacobi) saves on the shipped generators: forwards, and time.

    python benchmarks/jacobi.py --results benchmarks/results/jacobi-cpu.json
    python benchmarks/jacobi.py mnist-llamagen --windows 4 8 16 32 --batch 1 --guidance 1 --repeats 9

Forwards are those of one branch from an image's start to its end, a window's counting as one, on average over --images; the
ratio is that of an image's tokens to them. It depends on the model: how much a token tells of the next. Times are of `sample`,
from conditions to tokens at temperature 1, by each engine in turn in one run; ratios are medians over the rounds. A window
costs a forward over all of its tokens, and a batch goes on until its last row is finished.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from align import load_generator
from align.generators.base import Generator, evaluating
from align.sampling import sample
from align.sampling.graphs import can_record
from align.sampling.jacobi import Jacobi
from align.types import Condition, Rollout, SamplingConfig
from recipes.run import describe_device, pick_device
from recipes.speed.machine import interleaved, median_ratio, versions
from recipes.speed.table import markdown, tell

PROMPTS = ("a photo of a red circle", "a photo of two blue squares", "a photo of a green cross left of a yellow square")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("generators", nargs="*", default=["mnist-llamagen", "shapes-t2i"])
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results")
    arguments = parser.parse_args()
    found: dict[str, Any] = {
        "command": f"python benchmarks/jacobi.py {shlex.join(sys.argv[1:])}".strip(),
        "device": describe_device(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "forwards": [],
        "times": [],
    }
    for name, scale in itertools.product(arguments.generators, arguments.guidance):
        generator = load_generator(name, device=pick_device())
        config = SamplingConfig(guidance_scale=scale)
        for window in arguments.windows:
            forwards = forwards_alone(generator, arguments.images, config, window)
            ratio = generator.layout.length / forwards
            found["forwards"].append(
                {"generator": name, "guidance": scale, "window": window, "forwards": forwards, "ratio": ratio}
            )
        for batch in arguments.batch:
            cell = {"generator": name, "guidance": scale, "batch": batch}
            found["times"].append(cell | times(generator, batch, config, arguments.windows, arguments.repeats))
    forwards_rows = [
        [f["generator"], f"{f['guidance']:g}", str(f["window"]), f"{f['forwards']:.1f}", f"{f['ratio']:.2f}"]
        for f in found["forwards"]
    ]
    names = list(found["times"][0]["seconds"])
    time_rows = []
    for cell in found["times"]:
        medians = [f"{1000 * statistics.median(cell['seconds'][name]):.1f}" for name in names[:2]]
        faster = [f"{cell['times_as_fast_as_eager'][name]:.2f}" for name in names[1:]]
        time_rows.append([cell["generator"], f"{cell['guidance']:g}", str(cell["batch"]), *medians, *faster])
    shown = [
        markdown(["generator", "guidance", "window", "forwards", "times fewer"], forwards_rows),
        "How many times as fast as engine=eager:",
        markdown(["generator", "guidance", "batch", *(f"{name}, ms" for name in names[:2]), *names[1:]], time_rows),
    ]
    tell(found, "\n\n".join(shown), arguments.results)


def conditions(generator: Generator, rows: int) -> Condition:
    if generator.num_classes:
        return generator.encode_condition([row % generator.num_classes for row in range(rows)])
    return generator.encode_condition([PROMPTS[row % len(PROMPTS)] for row in range(rows)])


def forwards_alone(generator: Generator, images: int, config: SamplingConfig, window: int) -> float:
    """Of images that wait for no other."""
    branches = 1 if config.guidance_scale == 1.0 else 2
    condition = conditions(generator, images)
    spent = [
        jacobi(generator, condition[row : row + 1], config, torch.tensor([row]), window).forwards_per_image
        for row in range(images)
    ]
    return statistics.mean(spent) / branches


def jacobi(
    generator: Generator, condition: Condition, config: SamplingConfig, index_B: torch.Tensor, window: int
) -> Rollout:
    with evaluating(generator):
        return Jacobi(generator, condition, config, None, window=window)(condition, config, index_B)


def times(
    generator: Generator, batch: int, config: SamplingConfig, windows: list[int], repeats: int
) -> dict[str, dict[str, Any]]:
    """Each engine's seconds. Jacobi's are of several windows without recording, and of its own where it is recorded."""
    condition, index_B = conditions(generator, batch), torch.arange(batch)

    def by(engine: str) -> Rollout:
        generator.engine = engine
        return sample(generator, condition, config, index_B=index_B)

    works: dict[str, Callable[[], object]] = {engine: partial(by, engine) for engine in ("eager", "auto")}
    for window in windows:
        works[f"jacobi {window}"] = partial(jacobi, generator, condition, config, index_B, window)
    if can_record(generator):
        works["jacobi, recorded"] = partial(by, "jacobi")
    for work in works.values():
        work()
    seconds = interleaved(works, repeats)
    return {
        "seconds": seconds,
        "times_as_fast_as_eager": {name: median_ratio(seconds["eager"], found) for name, found in seconds.items()},
    }


if __name__ == "__main__":
    main()
