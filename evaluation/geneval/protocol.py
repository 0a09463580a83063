"""GenEval as a protocol of prompts (`evaluation.prompted`): images drawn for rows in, its numbers with intervals out."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evaluation.classifier import check_images
from evaluation.geneval.detections import ColorClassifier, Detector
from evaluation.geneval.scorer import POSITION_THRESHOLD, GenEvalResult, GenEvalScorer
from evaluation.geneval.summary import summarize_verdicts
from evaluation.geneval.verdicts import Verdict, write_lines
from evaluation.protocol import EvaluationResult, count_suffix


@dataclass(frozen=True, eq=False)
class GenEvalProtocol:
    """A detector, a colour classifier, rows of prompts, and how many images are drawn for each.

    name: goes into the metrics' keys; say by it what judges, such as `geneval-hf`.
    rows: GenEval metadata rows. Several may be equal: their images count as those of one prompt.
    colors: None if no row asks for a colour.
    held_out: a second detector and colour classifier that nothing was trained on, to judge the same images.
    threshold and the rest: of `GenEvalScorer`, for both judges.

    Raises:
        ValueError: a name that would not survive in a key, no rows, no images, or a row that cannot be judged, with its
            number and the reason.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    detector: Detector
    colors: ColorClassifier | None = None
    images_per_prompt: int = 4
    held_out: tuple[Detector, ColorClassifier | None] | None = None
    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = POSITION_THRESHOLD

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9-]+", self.name):
            raise ValueError(
                f"protocol name {self.name!r} must be lower-case letters, digits and '-', as in 'geneval-hf'"
            )
        if not self.rows or self.images_per_prompt < 1:
            raise ValueError(
                f"there are {len(self.rows)} rows and {self.images_per_prompt} images for each; at least 1 of both is needed"
            )
        object.__setattr__(self, "rows", tuple(deepcopy(dict(row)) for row in self.rows))  # they are the protocol's own
        for judge in self.judges:
            for index, row in enumerate(self.rows):
                try:
                    _check_row(row, judge.scorer)
                except ValueError as error:
                    raise ValueError(
                        f"row {index}, {row.get('prompt')!r:.80}, cannot be judged by the detector {judge.detector.name!r}: {error}"
                    ) from error

    @property
    def judges(self) -> list[GenEvalJudge]:
        """The judge, then the held-out one if there is one."""
        pairs = [(self.detector, self.colors), *([self.held_out] if self.held_out else [])]
        return [
            GenEvalJudge(detector, GenEvalScorer(labels=detector.labels, colors=colors, **self._settings))
            for detector, colors in pairs
        ]

    @property
    def _settings(self) -> dict[str, Any]:
        names = ("threshold", "counting_threshold", "max_objects", "max_overlap", "position_threshold")
        return {name: getattr(self, name) for name in names}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with a judge, its weights (its attribute `fingerprint`), a setting or a row."""
        judges = [judge.description for judge in self.judges]
        told = json.dumps([judges, self._settings, self.rows], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def evaluator(self) -> GenEvalEvaluator:
        """An empty one."""
        return GenEvalEvaluator(self)


@dataclass(frozen=True)
class GenEvalJudge:
    """A detector with the scorer for its classes."""

    detector: Detector
    scorer: GenEvalScorer

    @property
    def description(self) -> list[Any]:
        """Names, weights, classes and colours, for a fingerprint."""
        detector, colors = self.detector, self.scorer.colors
        told = [detector.name, getattr(detector, "fingerprint", ""), list(detector.labels)]
        if colors is not None:
            name = getattr(colors, "name", type(colors).__name__)
            told += [name, getattr(colors, "fingerprint", ""), list(colors.colors)]
        return told

    def __call__(self, images: Sequence[np.ndarray], rows: Sequence[Mapping[str, Any]]) -> list[GenEvalResult]:
        """The verdict on each image uint8 [H, W, 3]; one call of the detector.

        Raises:
            ValueError: the detector answers for another number of images, or what `GenEvalScorer.score` refuses.
        """
        found = self.detector(images)
        if len(found) != len(images):
            raise ValueError(
                f"the detector {self.detector.name!r} answered for {len(found)} images of {len(images)}; one list each is needed"
            )
        return [self.scorer.score(*judged) for judged in zip(images, found, rows, strict=True)]


@dataclass(frozen=True)
class _Judged:
    """What is kept of an image: no pixels and no masks."""

    verdict: Verdict
    credit: float
    faults: list[dict[str, str]]
    held_out: bool | None


class GenEvalEvaluator:
    """A `PromptEvaluator` of GenEval."""

    def __init__(self, protocol: GenEvalProtocol) -> None:
        self.protocol = protocol
        self._judges = protocol.judges
        self._judged: list[list[_Judged]] = [[] for _ in protocol.rows]

    def update(self, images_BHW3: Tensor, row_B: Sequence[int]) -> None:
        """Judge uint8 [B, H, W, 3] images, on the CPU, drawn for the rows of these numbers. A refused batch leaves no trace.

        Raises:
            TypeError, ValueError: images that are not uint8 [B, H, W, 3], another number of rows than of images, a row
                that does not exist, more images of a row than the protocol asks for, or a judge that fails.
        """
        check_images(images_BHW3)
        numbers = [int(row) for row in row_B]
        self._check_numbers(numbers, len(images_BHW3))
        rows = [self.protocol.rows[number] for number in numbers]
        images = list(images_BHW3.numpy())
        results, *held_out = [judge(images, rows) for judge in self._judges]
        strict = [result.correct for result in held_out[0]] if held_out else [None] * len(images)
        for number, row, result, other in zip(numbers, rows, results, strict, strict=True):
            filename = f"{number:05}/samples/{len(self._judged[number]):04}.png"
            faults = [{"kind": d.kind, "fault": d.fault, "label": d.label} for d in result.demands if d.fault]
            self._judged[number].append(_Judged(Verdict.of(filename, row, result), result.credit, faults, other))

    def _check_numbers(self, numbers: Sequence[int], images: int) -> None:
        protocol = self.protocol
        if len(numbers) != images:
            raise ValueError(f"{images} images came with {len(numbers)} row numbers; one each is needed")
        for number, more in Counter(numbers).items():
            if not 0 <= number < len(protocol.rows):
                raise ValueError(f"there is no row {number}; the protocol has rows 0 to {len(protocol.rows) - 1}")
            if len(self._judged[number]) + more > protocol.images_per_prompt:
                raise ValueError(
                    f"row {number}, {protocol.rows[number]['prompt']!r}, has {len(self._judged[number])} images and would get "
                    f"{more} more; the protocol asks for {protocol.images_per_prompt} of each row"
                )

    def compute(self) -> EvaluationResult:
        """GenEval's numbers, with standard errors and 95 % intervals from a bootstrap over prompts (`summary`).

        `geneval` is the mean of the tags' shares of correct images; each tag's name, its share; `credit`, the mean of the
        tags' partial credit; `correct-images` and `correct-prompts`, shares; `held-out`, what `geneval` is under the
        second judge. Keys are `<metric>_<protocol>_<number of images>`.

        Raises:
            ValueError: fewer images than the protocol asks for; names the first row that is short of them.
        """
        protocol, judged = self.protocol, self._complete()
        columns = [item.verdict.tag for item in judged], [item.verdict.prompt for item in judged]
        summary = summarize_verdicts(
            *columns, [item.verdict.correct for item in judged], [item.credit for item in judged]
        )
        suffix = f"{protocol.name}_{count_suffix(len(judged))}"
        keys = {name: f"{'geneval' if name == 'overall' else name}_{suffix}" for name in summary.values}
        metrics = {keys[name]: value for name, value in summary.values.items()}
        stderr = {keys[name]: value for name, value in summary.stderr.items()}
        intervals = {keys[name]: ends for name, ends in summary.intervals.items()}
        if protocol.held_out:
            strict = [bool(item.held_out) for item in judged]
            other, key = summarize_verdicts(*columns, strict, strict), f"held-out_{suffix}"
            metrics[key], stderr[key] = other.values["overall"], other.stderr["overall"]
            intervals |= {key: other.intervals["overall"]} if "overall" in other.intervals else {}
        return EvaluationResult(
            metrics=metrics,
            stderr=stderr,
            n=len(judged),
            protocol=protocol.name,
            reference_n=summary.prompts,
            extractor_fingerprint=protocol.fingerprint,
            intervals=intervals,
        )

    def _complete(self) -> list[_Judged]:
        for number, judged in enumerate(self._judged):
            if len(judged) < self.protocol.images_per_prompt:
                raise ValueError(
                    f"row {number}, {self.protocol.rows[number]['prompt']!r}, has {len(judged)} images; "
                    f"the protocol asks for {self.protocol.images_per_prompt} of each row"
                )
        return [item for judged in self._judged for item in judged]

    def write(self, path: Path) -> None:
        """One JSON line for each image, in the order of rows and then of arrival; GenEval's summary_scores.py reads it.

        After the published keys (`verdicts`): `credit`; `faults`, a list of {kind, fault, label} of the demands that are
        not met (`scorer.Demand`); `row`, its number; `held_out_correct`, if there is a second judge.
        """
        write_lines(path, self._records())

    def _records(self) -> Iterator[dict[str, Any]]:
        for number, judged in enumerate(self._judged):
            for item in judged:
                ours = {"credit": item.credit, "faults": item.faults, "row": number}
                second = {} if item.held_out is None else {"held_out_correct": item.held_out}
                yield {**item.verdict.to_json(), **ours, **second}


def _check_row(row: Mapping[str, Any], scorer: GenEvalScorer) -> None:
    scorer.read_request(row)
    if not isinstance(row.get("prompt"), str):
        raise ValueError("it has no prompt; a sentence is needed")
    try:
        json.dumps(row)
    except TypeError as error:
        raise ValueError(f"it cannot be written as JSON: {error}") from error
