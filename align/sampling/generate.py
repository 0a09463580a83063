"""Sampling many images: class-balanced conditions, in batches, as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from align.generators.base import Generator
from align.sampling.engine import sample
from align.types import Rollout, SamplingConfig


def balanced_labels(num_images: int, num_classes: int) -> list[int]:
    """Label of every sample index: 0, 1, ..., K-1, 0, 1, ... so that any prefix is as balanced as can be."""
    return [index % num_classes for index in range(num_images)]


def generate(
    generator: Generator, raw_conditions: Sequence[Any], config: SamplingConfig, *, batch_size: int, first: int = 0
) -> Iterator[Rollout]:
    """Rollouts for all conditions, `batch_size` at a time; sample i has index `first` + i whatever the batch size."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    for start in range(0, len(raw_conditions), batch_size):
        chunk = raw_conditions[start : start + batch_size]
        index_B = first + torch.arange(start, start + len(chunk))
        yield sample(generator, generator.encode_condition(chunk), config, index_B=index_B)
