"""The door to sampling: which engine draws."""

from __future__ import annotations

import torch
from torch import Tensor

from align.generators.base import ENGINES, Generator, evaluating
from align.sampling.graphs import (
    RecordedSampler,
    StaticSteps,
    TokenByToken,
    WholeImage,
    can_record,
    sample_recorded,
)
from align.sampling.jacobi import Jacobi
from align.sampling.loop import Drawing
from align.types import Condition, Rollout, SamplingConfig


def sample(
    generator: Generator, condition: Condition, config: SamplingConfig | None = None, *, index_B: Tensor | None = None
) -> Rollout:
    """Draw one image (as tokens) per row of `condition`.

    Sample i's random numbers depend on (config.seed, index_B[i]) alone: batch size and order never change a sample. Nor does
    the engine, but for `jacobi`, whose samples are others of the same distribution.
    With guidance_scale 1.0 the null branch is not computed. `generator.engine` says how it is run.

    Args:
        index_B: int [B] sample indices, 0..B-1 if not given; give distinct ones to batches of one set of samples.

    Raises:
        ValueError: index_B of another length, or an engine that this generator or its device does not have.
    """
    config = config or SamplingConfig()
    index_B = torch.arange(len(condition)) if index_B is None else index_B.cpu()
    if len(index_B) != len(condition):
        raise ValueError(f"index_B has {len(index_B)} rows for a condition of {len(condition)}")
    if _recorded(generator):
        return sample_recorded(_kind(generator), generator, condition, config, index_B)
    with evaluating(generator):
        if generator.engine == "jacobi":
            return Jacobi(generator, condition, config, None)(condition, config, index_B)
        drawing = Drawing(generator, condition, config, index_B=index_B)
        while not drawing.done:
            drawing.draw_block()
    return drawing.rollout(drawing.rows_run / len(condition))


def _kind(generator: Generator) -> type[RecordedSampler]:
    if generator.engine == "jacobi":
        return Jacobi
    return TokenByToken if isinstance(generator, StaticSteps) else WholeImage


def _recorded(generator: Generator) -> bool:
    """Whether CUDA graphs draw. Raises ValueError where the engine that was asked for is not to be had."""
    engine, possible = generator.engine, can_record(generator)
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    if engine not in ("auto", "eager", *generator.engines):
        known = ", ".join(("auto", "eager", *generator.engines))
        raise ValueError(f"{generator.family} cannot be sampled with engine={engine}; it has {known}")
    if engine == "graphs" and not possible:
        raise ValueError(
            f"engine=graphs needs whole weights on an NVIDIA GPU; this {generator.family} is on {generator.device}. "
            "Use engine=auto, which records CUDA graphs where it can, or engine=eager"
        )
    return possible and engine not in ("eager", "native")
