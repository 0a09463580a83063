"""What CUDA graphs gain in sampling: models of published sizes with random bfloat16 weights, drawn eagerly and from recordings.

    python benchmarks/engines.py --results benchmarks/results/engines-h200.json

Images a second and milliseconds a block (a LlamaGen's token, a VAR's scale), the best of some runs after a first one, and
the least that a step can take: its weights read once at the bandwidth that summing 2 GB shows. Needs an NVIDIA GPU; both
engines run the same functions, and the share of equal tokens says what rounding makes of it in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from align import SamplingConfig, sample
from align.files import write_text
from align.generators.published import PublishedGenerator
from align.sampling.graphs import release_recordings
from recipes.speed.models import published_sizes, random_generator

PLAIN, GUIDED = SamplingConfig(), SamplingConfig(guidance_scale=2.0)
OF_VAR = SamplingConfig(guidance_scale=2.5, guidance_schedule="linear", top_k=900, top_p=0.96)
CASES: list[tuple[str, str, int, SamplingConfig]] = [
    *(("llamagen", "XXL", batch, config) for batch in (8, 64) for config in (PLAIN, GUIDED)),
    *(("var", "d30", batch, config) for batch in (1, 8) for config in (PLAIN, OF_VAR)),
]


def best(work: Callable[[], object], runs: int) -> float:
    seconds = []
    for _ in range(runs):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def read_bandwidth() -> float:
    """Bytes a second."""
    numbers = torch.empty(2**30, dtype=torch.bfloat16, device="cuda").normal_()
    numbers.sum()
    return numbers.nbytes / best(numbers.sum, 5)


def measure(
    generator: PublishedGenerator[Any], batch: int, config: SamplingConfig, runs: int, bandwidth: float
) -> dict[str, Any]:
    condition, blocks = generator.encode_condition(list(range(batch))), len(generator.layout.block_sizes)
    row: dict[str, Any] = {"batch": batch, "guidance_scale": config.guidance_scale}
    tokens = {}
    for generator.engine in ("eager", "graphs"):
        tokens[generator.engine] = sample(generator, condition, config).tokens_BL
        seconds = best(lambda: sample(generator, condition, config), runs)
        row[generator.engine] = {"images_per_second": batch / seconds, "ms_a_block": 1e3 * seconds / blocks}
    # the embeddings of tokens and classes are looked up, not read
    parts = {name: tensor for name, tensor in generator.named_parameters() if "emb" not in name}
    row["times_as_fast"] = row["eager"]["ms_a_block"] / row["graphs"]["ms_a_block"]
    row["ms_of_reading_the_weights"] = 1e3 * sum(tensor.nbytes for tensor in parts.values()) / bandwidth
    row["equal_tokens"] = (tokens["eager"] == tokens["graphs"]).float().mean().item()
    release_recordings(0)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    bandwidth = read_bandwidth()
    rows, made = [], {}
    for family, size, batch, config in CASES:
        if (family, size) not in made:
            made = {(family, size): random_generator(published_sizes(family, size), "cuda").to("cuda", torch.bfloat16)}
        row = measure(made[family, size], batch, config, arguments.runs, bandwidth)
        rows.append({"model": f"{family} {size}", **row})
        print(json.dumps(rows[-1]), flush=True)
    if arguments.results is not None:
        told = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "bytes_a_second": bandwidth}
        write_text(arguments.results, json.dumps({**told, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
