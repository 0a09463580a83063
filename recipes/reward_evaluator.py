"""The numbers of a protocol of rewards: scores are collected image by image, then summed up over prompts.

Shapes: B batch, P prompts, Q questions of an image.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evaluation.classifier import check_images
from evaluation.files import write_atomically
from evaluation.protocol import EvaluationResult, count_suffix
from evaluation.suites import SCORES, kinds_of, read_questions, scored_together
from evaluation.uncertainty import estimate_over_prompts
from rewards.base import Reward
from rewards.scoring import score_rewards

JUDGED_AT_ONCE = 16  # images: a judge's deadline is for one call


@dataclass
class Mark:
    """What is known of an image: scores by reward (NaN: not applicable, or failed), reasons of failures, answers [Q]."""

    scores: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    answers: list[float] | None = None


class RewardEvaluator:
    """An evaluation.prompted.PromptEvaluator of rewards. Images are not kept."""

    def __init__(
        self,
        *,
        name: str,
        rows: Sequence[Mapping[str, Any]],
        images_per_prompt: int,
        rewards: Sequence[Reward],
        judge: Reward | None,
        fingerprint: str,
    ) -> None:
        self._name, self._rows, self._images_per_prompt = name, rows, images_per_prompt
        self._rewards, self._judge, self._fingerprint = list(rewards), judge, fingerprint
        self._marks: list[list[Mark]] = [[] for _ in rows]

    def update(self, images_BHW3: Tensor, row_B: Sequence[int]) -> None:
        """Score uint8 [B, H, W, 3] images of the rows of these numbers. A refused batch leaves no trace.

        Raises:
            TypeError, ValueError: no such row, more images of one than the protocol asks for, or other images.
        """
        numbers = [int(number) for number in row_B]
        if strange := [number for number in numbers if not 0 <= number < len(self._rows)]:
            raise ValueError(f"there is no row {strange[0]}; protocol {self._name} has {len(self._rows)}, from 0")
        for number in set(numbers):
            if (given := len(self._marks[number]) + numbers.count(number)) > self._images_per_prompt:
                raise ValueError(
                    f"row {number} gets {given} images; protocol {self._name} asks for {self._images_per_prompt}"
                )
        check_images(images_BHW3)
        if len(images_BHW3) != len(numbers):
            raise ValueError(f"{len(images_BHW3)} images but {len(numbers)} row numbers; each image needs its own")
        rows = [dict(self._rows[number]) for number in numbers]
        marks = [Mark() for _ in numbers]
        self._score(images_BHW3, rows, marks)
        for number, mark in zip(numbers, marks, strict=True):
            self._marks[number].append(mark)

    def compute(self) -> EvaluationResult:
        """Means over prompts, with standard errors and 95 % intervals from a bootstrap over them, and counts of failures.

        Of a prompt the images count that have a score, and of prompts those with such an image. `failed-<reward>` and
        `not-applicable-<reward>` count the others.

        Raises:
            ValueError: fewer images than the protocol asks for, or not a single score.
        """
        short = [index for index, marks in enumerate(self._marks) if len(marks) < self._images_per_prompt]
        if short:
            raise ValueError(
                f"row {short[0]} has {len(self._marks[short[0]])} images of {self._images_per_prompt}, and so it is with {len(short)} of "
                f"{len(self._rows)} rows; protocol {self._name} is for all of them"
            )
        sums = _Sums(self._name, count_suffix(len(self._rows) * self._images_per_prompt))
        tags = [str(row["tag"]) if row.get("tag") is not None else None for row in self._rows]
        for reward in self._all_rewards:
            scores_P = [[mark.scores[reward.name] for mark in marks] for marks in self._marks]
            sums.mean_by_tag(reward.name, scores_P, [] if reward is self._judge else tags)
        if self._judge is not None:  # by tag under the names of its scores
            self._sum_up_answers(sums, tags)
        if not sums.metrics:
            raise ValueError(f"not one image has a score: {next(self._failures(), 'no reward applies to these rows')}")
        self._count_absent(sums)
        return EvaluationResult(
            metrics=sums.metrics,
            stderr=sums.stderr,
            n=len(self._rows) * self._images_per_prompt,
            protocol=self._name,
            reference_n=len({row["prompt"] for row in self._rows}),
            extractor_fingerprint=self._fingerprint,
            intervals=sums.intervals,
        )

    def write(self, path: Path) -> None:
        """One JSON line for each image, in the order of rows: its prompt, all scores, why one failed, and the answers."""
        lines = []
        for row, marks in zip(self._rows, self._marks, strict=True):
            told = {key: row[key] for key in ("id", "tag", "prompt") if key in row}
            for place, mark in enumerate(marks):
                scores = {name: None if math.isnan(score) else score for name, score in mark.scores.items()}
                line = {**told, "image": place, "scores": scores, "failed": mark.failed}
                if mark.answers:
                    asked = [question.text for question in read_questions(row)]
                    line["answers"] = [list(pair) for pair in zip(asked, mark.answers, strict=True)]
                lines.append(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        write_atomically(path, "".join(lines).encode())

    # --- scores of a batch

    @property
    def _all_rewards(self) -> list[Reward]:
        return [*([self._judge] if self._judge is not None else []), *self._rewards]

    def _score(self, images: Tensor, rows: list[dict[str, Any]], marks: list[Mark]) -> None:
        if self._rewards:
            found = score_rewards(self._rewards, images, rows, timeout=None)
            for mark, values, valid in zip(marks, found.values_NR.tolist(), found.valid_NR.tolist(), strict=True):
                mark.scores.update(zip(found.names, values, strict=True))
                mark.failed.update(
                    {name: str(found.errors[name]) for name, fine in zip(found.names, valid, strict=True) if not fine}
                )
        if self._judge is not None:
            for start in range(0, len(rows), JUDGED_AT_ONCE):
                part = slice(start, start + JUDGED_AT_ONCE)
                self._answer(self._judge, images[part], rows[part], marks[part])

    def _answer(self, judge: Reward, images: Tensor, rows: list[dict[str, Any]], marks: list[Mark]) -> None:
        function: Any = judge.function
        combine = SCORES[function.score].combine
        for answered, row, mark in zip(function.answers(images, rows), rows, marks, strict=True):
            if isinstance(answered, Exception):
                mark.failed[judge.name] = str(answered)
            else:
                mark.answers = answered
            mark.scores[judge.name] = combine(mark.answers, read_questions(row)) if mark.answers else math.nan

    # --- sums

    def _sum_up_answers(self, sums: _Sums, tags: Sequence[str | None]) -> None:
        assert self._judge is not None
        function: Any = self._judge.function
        questions_P = [read_questions(row) for row in self._rows]
        together = scored_together(function.score)
        for name in together:
            combine = SCORES[name].combine
            scores_P = [
                [combine(mark.answers, asked) if mark.answers else math.nan for mark in marks]
                for marks, asked in zip(self._marks, questions_P, strict=True)
            ]
            sums.mean_by_tag(name, scores_P, tags)
        kinds = sorted({kind for asked in questions_P for one in asked for kind in kinds_of(one)})
        for kind in kinds:
            sums.pooled(
                f"{together[-1]}/{_part(kind)}",
                [
                    [
                        right
                        for mark in marks
                        for right, one in zip(mark.answers or (), asked, strict=bool(mark.answers))
                        if kind in kinds_of(one)
                    ]
                    for marks, asked in zip(self._marks, questions_P, strict=True)
                ],
            )

    def _count_absent(self, sums: _Sums) -> None:
        marks = [mark for of_row in self._marks for mark in of_row]
        for reward in self._all_rewards:
            failed = sum(reward.name in mark.failed for mark in marks)
            absent = sum(math.isnan(mark.scores[reward.name]) for mark in marks) - failed
            sums.count(f"failed-{reward.name}", failed)
            sums.count(f"not-applicable-{reward.name}", absent)
            if failed:
                warnings.warn(
                    f"reward {reward.name!r} failed for {failed} of {len(marks)} images, which its mean leaves out; the first: "
                    f"{next(self._failures(reward.name))}",
                    stacklevel=3,
                )

    def _failures(self, reward: str | None = None) -> Iterator[str]:
        for index, marks in enumerate(self._marks):
            for mark in marks:
                yield from (f"row {index}: {text}" for name, text in mark.failed.items() if reward in (None, name))


class _Sums:
    """Metrics under their whole keys."""

    def __init__(self, name: str, count: str) -> None:
        self._suffix = f"{name}_{count}"
        self.metrics: dict[str, float] = {}
        self.stderr: dict[str, float] = {}
        self.intervals: dict[str, tuple[float, float]] = {}

    def mean_by_tag(self, name: str, scores_P: Sequence[Sequence[float]], tags: Sequence[str | None]) -> None:
        """The mean over prompts of each prompt's mean, of all and of each tag; NaN is left out."""
        known_P = [[score for score in scores if not math.isnan(score)] for scores in scores_P]
        means_P = [[math.fsum(known) / len(known)] if known else [] for known in known_P]
        self.pooled(name, means_P)
        for tag in dict.fromkeys(tag for tag in tags if tag is not None):
            self.pooled(f"{name}/{_part(tag)}", [mean for mean, own in zip(means_P, tags, strict=True) if own == tag])

    def pooled(self, name: str, numbers_P: Iterable[Sequence[float]]) -> None:
        """The mean of all numbers of all prompts, if there are any."""
        listed = list(numbers_P)
        if not any(listed):
            return
        estimate = estimate_over_prompts(
            np.array([math.fsum(numbers) for numbers in listed]), np.array([len(numbers) for numbers in listed])
        )
        key = f"{name}_{self._suffix}"
        self.metrics[key] = estimate.value
        if estimate.stderr is not None and estimate.interval is not None:
            self.stderr[key], self.intervals[key] = estimate.stderr, estimate.interval

    def count(self, name: str, number: int) -> None:
        self.metrics[f"{name}_{self._suffix}"] = float(number)


def _part(text: str) -> str:
    """A tag or a kind as part of a key: `Food & Beverage` is food-beverage, `entity - whole` entity-whole."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")
