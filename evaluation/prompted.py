"""Evaluation of images that were drawn for prompts: what every protocol of that kind offers.

A protocol of prompts (GenEval, a suite with its judge, a user's list with rewards) has dataset rows, each with a `prompt`.
Whoever evaluates draws `images_per_prompt` images for each row and hands them over with the row's number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from evaluation.protocol import EvaluationResult


class PromptEvaluator(Protocol):
    """Collects verdicts on images, then sums them up. Images are not kept."""

    def update(self, images_BHW3: Tensor, row_B: Sequence[int]) -> None:
        """Judge uint8 [B, H, W, 3] images, on the CPU, drawn for the rows of these numbers. A refused batch leaves no trace."""

    def compute(self) -> EvaluationResult:
        """Means with bootstrap intervals over prompts; refuses to sum up fewer images than the protocol asks for."""

    def write(self, path: Path) -> None:
        """One JSON line for each image, in the order of rows: its prompt, the verdict and the reasons."""


class PromptProtocol(Protocol):
    """A name for how numbers were made, the rows that images are drawn for, and a judge."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def images_per_prompt(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Changes with the judges and with the rows; the `extractor_fingerprint` of its results."""

    def evaluator(self) -> PromptEvaluator:
        """An empty one."""
