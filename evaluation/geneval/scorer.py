"""GenEval's rules: from the objects of an image to right or wrong, with reasons and partial credit.

The rules are those of the published evaluation (Ghosh et al. 2023, arXiv 2310.11513), decision by decision:

    what counts   scores above 0.3, in prompts of the tag "counting" above 0.9; the best 16 of each class
    number        an include clause takes the `count` most confident objects of its class; further ones do no harm,
                  unless an exclude clause says from which number on they do
    colour        of those `count` objects only, each must have the clause's
    position      each of those `count` objects must be in the relation to each object of the target clause, and that
                  clause must have been met itself. Only asked where number and colour are right

Partial credit is ours: a mean over the demands of a prompt, 1 if and only if the image is correct. A demand is a clause's
number, its colour, or its position.

    number        found / needed if too few, allowed / found if too many (an exclude clause of the same class limits it)
    colour        objects of the right colour / needed; 0 if there were too few objects
    position      1 or 0; 0 if number, colour or target were wrong
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.geneval.detections import Box, ColorClassifier, Detection, keep
from evaluation.geneval.requests import Exclude, Include, Request, read_request

POSITION_THRESHOLD = 0.1  # of both objects' sizes


@dataclass(frozen=True)
class Demand:
    """One thing that a prompt asks for, and how far the image has it.

    kind: `number`, `color` or `position`.
    label: the class it is asked of.
    credit: in [0, 1]; 1 if and only if it is met.
    fault: `missing` (none at all), `too few`, `too many`, `color`, `position`, `target` (what it relates to is not as it
        should be), `skipped` (not asked, because an earlier demand of the clause failed); empty if met.
    reason: the fault in words; empty if met, and if skipped.
    """

    kind: str
    label: str
    credit: float = 1.0
    fault: str = ""
    reason: str = ""


@dataclass(frozen=True)
class GenEvalResult:
    """The verdict on one image; `objects` are those that counted, by class, the most confident first."""

    demands: tuple[Demand, ...]
    objects: Mapping[str, Sequence[Detection]]

    @property
    def correct(self) -> bool:
        """Strict: everything that was asked for is there."""
        return not any(demand.fault for demand in self.demands)

    @property
    def credit(self) -> float:
        """Partial credit in [0, 1]."""
        return sum(demand.credit for demand in self.demands) / len(self.demands)

    @property
    def reason(self) -> str:
        """One line for each fault; empty if correct."""
        return "\n".join(demand.reason for demand in self.demands if demand.reason)


@dataclass(frozen=True, kw_only=True)
class GenEvalScorer:
    """Scores images by what a detector found in them.

    labels: classes that the detector knows.
    colors: names the objects' colours; None if no prompt asks for colours.
    threshold, counting_threshold: scores must be above them to count.
    max_objects: of each class.
    max_overlap: intersection over union from which on the less confident of two objects of a class is dropped; 1: never.
    position_threshold: share of both objects' sizes by which their centres must differ to be in any relation.
    """

    labels: Collection[str]
    colors: ColorClassifier | None = None
    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = POSITION_THRESHOLD

    def score(self, image: np.ndarray, detections: Sequence[Detection], row: Mapping[str, Any]) -> GenEvalResult:
        """The verdict on an image uint8 [H, W, 3] with its detections, for the metadata row of its prompt.

        Raises:
            ValueError: a row that `read_request` refuses, a detection of a class that is not among the labels, or a
                colour classifier that answers with another number of colours than there are objects.
        """
        request = self.read_request(row)
        if strange := [found.label for found in detections if found.label not in self.labels]:
            raise ValueError(
                f"the detector found a {strange[0]!r}, which is not among the classes that it says it knows"
            )
        objects = keep(
            detections,
            threshold=self.counting_threshold if request.tag == "counting" else self.threshold,
            max_objects=self.max_objects,
            max_overlap=self.max_overlap,
        )
        return GenEvalResult(tuple(self._demands(image, objects, request)), objects)

    def read_request(self, row: Mapping[str, Any]) -> Request:
        """The request of a metadata row, in this scorer's classes and colours."""
        return read_request(row, labels=self.labels, colors=self.colors.colors if self.colors else ())

    def _demands(self, image: np.ndarray, objects: dict[str, list[Detection]], request: Request) -> list[Demand]:
        demands: list[Demand] = []
        matched: list[list[Detection] | None] = []  # by clause; None where the clause is not met
        for clause in request.include:
            found = objects.get(clause.label, [])
            top = found[: clause.count]
            met = len(top) == clause.count
            demands.append(_number(clause, request.exclude, len(found)))
            if clause.color is not None:
                demands.append(self._color(image, top, clause, clause.color) if met else _skipped("color", clause))
                met = met and not demands[-1].fault
            if clause.relation is not None and clause.target is not None:
                targets = matched[clause.target]
                demands.append(
                    self._position(top, targets, clause, clause.relation) if met else _skipped("position", clause)
                )
                met = met and not demands[-1].fault
            matched.append(top if met else None)
        asked = {clause.label for clause in request.include}
        return demands + [
            _excluded(clause, len(objects.get(clause.label, [])))
            for clause in request.exclude
            if clause.label not in asked
        ]

    def _color(self, image: np.ndarray, top: list[Detection], clause: Include, color: str) -> Demand:
        assert self.colors is not None  # read_request refused the clause otherwise
        seen = self.colors(image, top, clause.label)
        if len(seen) != len(top):
            raise ValueError(
                f"the colour classifier named {len(seen)} colours for {len(top)} objects; one each is needed"
            )
        right = seen.count(color)
        if right == clause.count:
            return Demand("color", clause.label)
        reason = f"{right} of {clause.count} {clause.label} {color}: seen {', '.join(seen)}"
        return Demand("color", clause.label, right / clause.count, "color", reason)

    def _position(
        self, top: list[Detection], targets: list[Detection] | None, clause: Include, relation: str
    ) -> Demand:
        wanted = f"{clause.label} {relation} clause {clause.target}"
        if targets is None:
            return Demand("position", clause.label, 0.0, "target", f"no {wanted}: that clause is not met")
        for found in top:
            for target in targets:
                seen = relations(found.box, target.box, threshold=self.position_threshold)
                if relation not in seen:
                    reason = f"no {wanted}: it is {' and '.join(sorted(seen)) or 'in no relation'}"
                    return Demand("position", clause.label, 0.0, "position", reason)
        return Demand("position", clause.label)


def relations(a: Box, b: Box, *, threshold: float = POSITION_THRESHOLD) -> set[str]:
    """How a lies to b: none, one or two of `left of`, `right of`, `above`, `below`.

    The distance of the centres in x and y, each shortened by `threshold` times the sum of both sizes (not below 0), over
    the unshortened distance; more than 0.5 of it makes a relation.
    """
    boxes = np.array([a, b], dtype=np.float64).reshape(2, 2, 2)  # object, corner, (x, y)
    (center_a, center_b), (size_a, size_b) = boxes.mean(axis=1), boxes[:, 1] - boxes[:, 0]
    offset = center_a - center_b
    shortened = np.maximum(np.abs(offset) - threshold * (size_a + size_b), 0) * np.sign(offset)
    if np.all(np.abs(shortened) < 1e-3):
        return set()
    dx, dy = shortened / np.linalg.norm(offset)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, holds in held.items() if holds}


def _number(clause: Include, excludes: Sequence[Exclude], found: int) -> Demand:
    if found < clause.count:
        fault = "too few" if found else "missing"
        reason = f"{found} of {clause.count} {clause.label}"
        return Demand("number", clause.label, found / clause.count, fault, reason)
    limits = [exclude for exclude in excludes if exclude.label == clause.label]
    return min(
        (_excluded(limit, found) for limit in limits), key=lambda d: d.credit, default=Demand("number", clause.label)
    )


def _excluded(clause: Exclude, found: int) -> Demand:
    if found < clause.count:
        return Demand("number", clause.label)
    reason = f"{found} {clause.label}, at most {clause.count - 1} allowed"
    return Demand("number", clause.label, (clause.count - 1) / found, "too many", reason)


def _skipped(kind: str, clause: Include) -> Demand:
    return Demand(kind, clause.label, 0.0, "skipped")
