"""Verdicts on disk as GenEval's own tool writes them, results.jsonl: one JSON line for each image.

{"filename": "out/00003/samples/0001.png", "tag": "counting", "prompt": "a photo of two cats", "correct": false,
 "reason": "expected cat>=2, found 1", "metadata": "{the row, as JSON in a string}",
 "details": "{\\"cat\\": [[left, top, right, bottom, score]]}"}

The details are the objects that counted, by class, the most confident first: those above the threshold (of counting, its
own), at most 16 of a class. Masks and colours are not told.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.files import write_atomically
from evaluation.geneval.detections import Detection
from evaluation.geneval.grammar import Row
from evaluation.geneval.scorer import GenEvalResult

Details = Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Verdict:
    """What was found in an image, and whether that is what its row, `metadata`, asks for."""

    filename: str
    tag: str
    prompt: str
    correct: bool
    reason: str
    metadata: Row
    details: Details

    @classmethod
    def of(cls, filename: str, row: Mapping[str, Any], result: GenEvalResult) -> Verdict:
        """A result of `GenEvalScorer`, without its masks."""
        details = {label: [[*found.box, found.score] for found in kept] for label, kept in result.objects.items()}
        return cls(filename, row["tag"], row["prompt"], result.correct, result.reason, dict(row), details)

    @property
    def detections(self) -> list[Detection]:
        """The objects that counted, without masks."""
        return [
            Detection(label, score, (left, top, right, bottom))
            for label, kept in self.details.items()
            for left, top, right, bottom, score in kept
        ]

    def to_json(self) -> dict[str, Any]:
        """The published keys, in their order."""
        return {**vars(self), "metadata": json.dumps(self.metadata), "details": json.dumps(self.details)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Verdict:
        """Read a published line; keys beyond the published ones are not read.

        Raises:
            ValueError: a key is missing or of another type, or a box is not [left, top, right, bottom, score].
        """
        for key, kind in (("filename", str), ("tag", str), ("prompt", str), ("correct", bool), ("reason", str)):
            if not isinstance(record.get(key), kind):
                raise ValueError(f"{key} is {record.get(key)!r:.80}; a {kind.__name__} is needed")
        metadata, details = (_object(record, key) for key in ("metadata", "details"))
        for label, boxes in details.items():
            for box in boxes if isinstance(boxes, list) else [boxes]:
                if not (isinstance(box, list) and len(box) == 5 and all(isinstance(x, (int, float)) for x in box)):
                    raise ValueError(
                        f"details of {label!r} hold {box!r:.80}; [left, top, right, bottom, score] is needed"
                    )
        verdict = cls(**{key: record[key] for key in PUBLISHED_KEYS} | {"metadata": metadata, "details": details})
        _ = verdict.detections  # boxes the wrong way round are refused here, where the line is known
        return verdict


PUBLISHED_KEYS = ("filename", "tag", "prompt", "correct", "reason", "metadata", "details")


def _object(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    try:
        value = json.loads(record[key])
    except (KeyError, TypeError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {record.get(key)!r:.80}; a string with a JSON object is needed")
    return value


def read_verdicts(path: str | Path) -> list[Verdict]:
    """A results.jsonl of GenEval's tool, or one that `write_verdicts` wrote.

    Raises:
        ValueError: no lines, or one that is no verdict; with the file and the line.
    """
    verdicts = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("an object is needed")
                verdicts.append(Verdict.from_json(record))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: no verdict of GenEval's: {error}") from error
    if not verdicts:
        raise ValueError(f"{path} holds no verdicts; is it the file that evaluate_images.py wrote?")
    return verdicts


def write_verdicts(path: str | Path, verdicts: Iterable[Verdict]) -> None:
    """Write a results.jsonl, which GenEval's summary_scores.py reads; the file is replaced as a whole."""
    write_lines(path, (verdict.to_json() for verdict in verdicts))


def write_lines(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines; the file is replaced as a whole."""
    write_atomically(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode())
