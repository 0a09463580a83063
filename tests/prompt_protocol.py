"""A protocol of prompts whose verdicts can be told from the pixels: is an image brighter than the row's `at_least`?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_runs import CAPTIONS
from torch import Tensor

from evaluation.protocol import EvaluationResult

ROWS: tuple[dict[str, Any], ...] = tuple(
    {"prompt": caption, "tag": f"kind-{order % 2}", "at_least": 100.0 + 20 * order}
    for order, caption in enumerate(CAPTIONS)
)


@dataclass(frozen=True)
class Brightness:
    name: str = "toy"
    rows: Sequence[Mapping[str, Any]] = ROWS
    images_per_prompt: int = 2
    seen: list[tuple[int, float]] = field(default_factory=list)  # of all evaluators: row and brightness, as they came

    @property
    def fingerprint(self) -> str:
        return ",".join(row["prompt"] for row in self.rows)

    def evaluator(self) -> BrightnessEvaluator:
        return BrightnessEvaluator(self)


class BrightnessEvaluator:
    def __init__(self, protocol: Brightness) -> None:
        self.protocol, self.found = protocol, list[tuple[int, float]]()

    def update(self, images_BHW3: Tensor, row_B: Sequence[int]) -> None:
        assert images_BHW3.device.type == "cpu"
        means = images_BHW3.float().mean(dim=(1, 2, 3)).tolist()
        self.found += zip(row_B, means, strict=True)
        self.protocol.seen.extend(zip(row_B, means, strict=True))

    def _correct(self) -> list[bool]:
        return [bright >= self.protocol.rows[row]["at_least"] for row, bright in self.found]

    def compute(self) -> EvaluationResult:
        protocol, correct = self.protocol, self._correct()
        n = len(protocol.rows) * protocol.images_per_prompt
        assert len(self.found) == n
        share = sum(correct) / n
        metrics = {f"geneval_{protocol.name}_{n}": share, f"kind-0_{protocol.name}_{n}": 0.25}
        return EvaluationResult(
            metrics, {f"geneval_{protocol.name}_{n}": 0.1}, n, protocol.name, len(protocol.rows), protocol.fingerprint,
            intervals={f"geneval_{protocol.name}_{n}": (share - 0.1, share + 0.1)},
        )  # fmt: skip

    def write(self, path: Path) -> None:
        rows = [
            {"row": row, "prompt": self.protocol.rows[row]["prompt"], "correct": right}
            for (row, _), right in zip(self.found, self._correct(), strict=True)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
