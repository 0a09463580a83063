"""Scores of rewards that may fail for single images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rewards.base import PartialScores


def partial_scores(results: Sequence[float | Exception]) -> PartialScores:
    """float32 values [B] of numbers and of the exceptions that stand where there is none; the first is the error."""
    failed = [(index, result) for index, result in enumerate(results) if isinstance(result, Exception)]
    values_B = torch.tensor([torch.nan if isinstance(result, Exception) else float(result) for result in results])
    valid_B = torch.tensor([not isinstance(result, Exception) for result in results], dtype=torch.bool)
    error = f"image {failed[0][0]}: {type(failed[0][1]).__name__}: {failed[0][1]}" if failed else ""
    return PartialScores(values_B, valid_B, error)
