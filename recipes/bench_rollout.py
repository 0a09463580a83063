"""How fast images are drawn: ours beside the plain loop, installed peers, and an original checkout.

All draw from the same weights in the same run, in turn. Before any time is taken, each has drawn ours' greedy images and
shown ours' logits, or no ratio is given. Pixels are not decoded. See docs/speed.md for what is compared with what.

For example: align bench rollout size=[B] length=[64,256] batch=[4,8] guidance=[1,2] peer_path=../LlamaGen
    align bench rollout model=var size=[d16] length=[null] guidance=[1,2.5] peer_path=../VAR
    align bench rollout model=janus size=[1B] length=[64] batch=[2] guidance=[5]
    align bench rollout model=mnist-llamagen size=[null] length=[null]
Lists are crossed with each other. Over three or more lengths and batch sizes the growth of ours' cost is fitted as well.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import DictConfig

from align.generators import Generator
from align.generators.published import PublishedGenerator
from align.sampling import sample
from align.types import Condition, SamplingConfig
from recipes.config import compose
from recipes.run import pick_device, refuse_many_processes, say
from recipes.speed import curves
from recipes.speed.equal import Draw, Expected
from recipes.speed.floor import floor
from recipes.speed.machine import interleaved, median_ratio
from recipes.speed.models import conditions, make_model
from recipes.speed.peers import GUIDED_ONLY, find_peers
from recipes.speed.plain import plain_loop
from recipes.speed.table import facts, markdown, tell

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main(overrides: list[str]) -> None:
    refuse_many_processes("`align bench`")
    config = compose("bench_rollout", overrides)
    if unknown := set(config.precision) - set(PRECISIONS):
        raise ValueError(f"unknown precision {', '.join(map(str, unknown))}; known: {', '.join(PRECISIONS)}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    found = {**facts("rollout", overrides), "cells": []}
    for size, length in itertools.product(config.size, config.length):
        generator = make_model(
            config.model,
            size,
            length,
            checkpoint=config.checkpoint,
            tokenizer_checkpoint=config.tokenizer_checkpoint,
            device=pick_device(),
        )
        parameters = sum(parameter.numel() for parameter in generator.parameters())
        for precision in config.precision:
            generator.to(PRECISIONS[precision])
            others = {"plain": plain_loop(generator), **find_peers(generator, config.peer_path)}
            for batch, scale in itertools.product(config.batch, config.guidance):
                what = {"size": size or generator.size_name, "length": generator.layout.length}
                what |= {"batch": batch, "guidance": scale, "precision": precision}
                say(", ".join(f"{name} {value}" for name, value in what.items()))
                found["cells"].append(
                    what | {"parameters": parameters} | measure(generator, others, batch, scale, config)
                )
    found["fits"] = curves.fit(found["cells"])
    shown = [table(found["cells"]), *([curves.table(found["fits"])] if found["fits"] else [])]
    tell(found, "\n\n".join(shown), config.results)


def measure(
    generator: PublishedGenerator[Any], others: Mapping[str, Draw], batch: int, scale: float, config: DictConfig
) -> dict[str, Any]:
    """One cell: seconds of all, once they were seen to draw the same."""
    # VAR's authors ramp the guidance up
    schedule = "linear" if generator.family == "var" else "constant"
    sampling = SamplingConfig(guidance_scale=scale, guidance_schedule=schedule, top_k=config.top_k)
    condition = conditions(generator, batch)
    expected = Expected(generator, condition, sampling)
    others = {name: draw for name, draw in others.items() if scale != 1.0 or name not in GUIDED_ONLY}
    equal = {name: asdict(expected.check(name, draw)) for name, draw in others.items()}
    draws: dict[str, Draw] = {"ours": _ours(generator, "auto")}
    if generator.device.type == "cuda":
        draws["ours, eager"] = _ours(generator, "eager")
        equal["ours, eager"] = asdict(expected.check("ours, eager", draws["ours, eager"], watched=False))
    del expected  # logits of all tokens
    works = {name: _work(draw, condition, sampling) for name, draw in {**draws, **others}.items()}
    seconds = interleaved(works, config.repeats)
    rows = batch * (1 if scale == 1.0 else 2)
    prompt = condition.tensors["ids"].shape[1] if "ids" in condition.tensors else 1
    limit = floor(generator, rows, prompt)
    tokens = batch * generator.layout.length
    found: dict[str, Any] = {"floor": {**asdict(limit), "seconds": limit.seconds}, "drawn_by": {}}
    for name, times in seconds.items():
        median = statistics.median(times)
        found["drawn_by"][name] = {
            "seconds": times,
            "images_per_second": batch / median,
            "ms_per_token": 1000 * median / tokens,
            "times_ours": median_ratio(times, seconds["ours"]),
            "share_of_floor": limit.seconds / median,
            **({"agreement": equal[name]} if name in equal else {}),
        }
    return found


def _ours(generator: Generator, engine: str) -> Draw:
    def draw(condition: Condition, sampling: SamplingConfig, watch: object = None) -> torch.Tensor:
        generator.engine = engine
        return sample(generator, condition, sampling).tokens_BL

    return draw


def _work(draw: Draw, condition: Condition, sampling: SamplingConfig) -> Callable[[], object]:
    return lambda: draw(condition, sampling, None)


def table(cells: list[dict[str, Any]]) -> str:
    header = ["size", "tokens", "batch", "guidance", "precision", "drawn by", "images/s", "ms/token", "ours is faster"]
    header += ["share of the floor", "same tokens", "largest difference of a logit"]
    rows = []
    for cell in cells:
        first = [str(cell[name] or "") for name in ("size", "length", "batch", "guidance", "precision")]
        for name, by in cell["drawn_by"].items():
            agreement = by.get("agreement")
            row = [*first, name, f"{by['images_per_second']:.3g}", f"{by['ms_per_token']:.3g}"]
            row += ["" if name == "ours" else f"{by['times_ours']:.2f} x", f"{by['share_of_floor']:.0%}"]
            row += [f"{agreement['tokens']:.1%}", f"{agreement['logits']:.1e}"] if agreement else ["", ""]
            rows.append(row)
    return markdown(header, rows)
