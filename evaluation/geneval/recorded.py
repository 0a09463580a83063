"""A detector that answers from somebody's results.jsonl, so that GenEval's own detections can be scored by these rules.

What such a file tells is what its own tool kept (`verdicts`): boxes with scores, in order. It does not tell

    what did not count   objects at or below the threshold, 0.3 (of counting 0.9), and beyond 16 of a class: scoring with
                         lower thresholds finds nothing more
    masks                object crops then are whole boxes
    colours              but for those of the objects that were asked for theirs, which follow from the verdict: all as
                         wanted, or else as the reason lists them. `RecordedColors` answers with these and refuses
                         any other question; it takes a colour classifier and the images to ask further

Images are known again by their pixels. `rescore` needs none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from evaluation.geneval.coco import COCO_NAMES, COLORS
from evaluation.geneval.detections import Detection
from evaluation.geneval.folder import read_image
from evaluation.geneval.scorer import GenEvalResult, GenEvalScorer
from evaluation.geneval.verdicts import Verdict, read_verdicts

_NO_IMAGE = np.zeros((1, 1, 3), np.uint8)
_OFFICIAL = re.compile("expected |no target for ")  # how every reason of GenEval's tool begins


class Recording:
    """Verdicts with the images uint8 [H, W, 3] that they are on.

    Raises:
        ValueError: other numbers of verdicts and images, or equal images in which different objects were found.
    """

    def __init__(self, verdicts: Sequence[Verdict], images: Iterable[np.ndarray]) -> None:
        self._by_pixels: dict[str, Verdict] = {}
        for verdict, image in zip(verdicts, images, strict=True):
            other = self._by_pixels.setdefault(_pixels(image), verdict)
            found = bool(other.details or verdict.details)  # black images of a safety filter have nothing to tell apart
            if other.details != verdict.details or (found and other.metadata != verdict.metadata):
                raise ValueError(
                    f"{other.filename} and {verdict.filename} are equal images with different verdicts, so that what was "
                    "found in an image cannot be told from its pixels; leave one of them out"
                )
        details = [[verdict.filename, verdict.details] for verdict in verdicts]
        self.fingerprint = hashlib.sha256(json.dumps(details).encode()).hexdigest()[:16]

    @classmethod
    def read(cls, results: str | Path, folder: str | Path) -> Recording:
        """A results.jsonl with the folder of its images, which may have moved since: `00003/samples/0001.png` is sought in it.

        Raises:
            ValueError: what `read_verdicts` or `read_image` refuse.
        """
        verdicts = read_verdicts(results)
        return cls(verdicts, (read_image(Path(folder, *Path(verdict.filename).parts[-3:])) for verdict in verdicts))

    def verdict(self, image: np.ndarray) -> Verdict:
        """Raises ValueError for an image that is not recorded."""
        if (verdict := self._by_pixels.get(_pixels(image))) is None:
            raise ValueError(
                f"an image of {image.shape[0]}x{image.shape[1]} pixels is none of the {len(self._by_pixels)} that were "
                "recorded; give the very images that the results are of"
            )
        return verdict


class RecordedDetector:
    """An `evaluation.geneval.Detector` that knows the images of a recording only."""

    name = "recorded"

    def __init__(self, recording: Recording, *, labels: Sequence[str] = COCO_NAMES) -> None:
        self.labels = labels
        self.fingerprint = recording.fingerprint
        self._recording = recording

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        return [self._recording.verdict(image).detections for image in images]


class RecordedColors:
    """An `evaluation.geneval.ColorClassifier` that repeats what was seen, in an order of its own."""

    name = "recorded"

    def __init__(self, recording: Recording, *, colors: Sequence[str] = COLORS) -> None:
        self.colors = colors
        self.fingerprint = recording.fingerprint
        self._recording = recording

    def __call__(self, image: np.ndarray, detections: Sequence[Detection], label: str) -> list[str]:
        return _Seen(self._recording.verdict(image), self.colors)(image, detections, label)


def rescore(verdict: Verdict, *, labels: Sequence[str] = COCO_NAMES, colors: Sequence[str] = COLORS) -> GenEvalResult:
    """The verdict of these rules on recorded objects and colours; equal to the recorded one if the rules are.

    Raises:
        ValueError: a row or a class that is unknown, or a reason that is not in the words of GenEval's tool.
    """
    try:
        scorer = GenEvalScorer(labels=labels, colors=_Seen(verdict, colors))
        return scorer.score(_NO_IMAGE, verdict.detections, verdict.metadata)
    except ValueError as error:
        raise ValueError(f"{verdict.filename}: {error}") from error


class _Seen:
    """The colour classifier as it answered for one image."""

    def __init__(self, verdict: Verdict, colors: Sequence[str]) -> None:
        self.colors = colors
        self._verdict = verdict

    def __call__(self, image: np.ndarray, detections: Sequence[Detection], label: str) -> list[str]:
        if (seen := _seen_colors(self._verdict).get((label, len(detections)))) is None:
            raise ValueError(
                f"the record does not tell the colours of {len(detections)} {label}; use a colour classifier and the images"
            )
        return seen


def _seen_colors(verdict: Verdict) -> dict[tuple[str, int], list[str]]:
    """By class and number, for each clause whose objects were asked for their colour."""
    reasons = verdict.reason.split("\n") if verdict.reason else []
    if strange := [reason for reason in reasons if not _OFFICIAL.match(reason)]:
        raise ValueError(
            f"the reason {strange[0]!r:.80} is not in the words of GenEval's tool, so that it does not tell which colours "
            "were seen; record results of evaluate_images.py"
        )
    seen = {}
    for clause in verdict.metadata["include"]:
        label, count, color = clause["class"], clause["count"], clause.get("color")
        if color is None or len(verdict.details.get(label, ())) < count:
            continue
        wrong = re.compile(
            re.escape(f"expected {color} {label}>={count}, found ") + rf"\d+ {re.escape(color)}; and (.+)"
        )
        listed = [match[1] for match in map(wrong.fullmatch, reasons) if match]
        seen[label, count] = _listed(listed[0]) if listed else [color] * count
    return seen


def _listed(text: str) -> list[str]:
    """`2 red, 1 blue`, one by one."""
    counts = [item.split(" ", 1) for item in text.split(", ")]
    return [color for number, color in counts for _ in range(int(number))]


def _pixels(image: np.ndarray) -> str:
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
