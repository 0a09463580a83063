"""From the answers to an image's questions to one number. All in [0, 1], larger is better.

Shapes: Q questions of an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.suites.questions import Question

Answers = Literal["soft", "hard"]


def mean(right_Q: Sequence[float]) -> float:
    """Share of right answers; of probabilities, Soft-TIFA's arithmetic mean (Kamath et al. 2025, arXiv 2512.16853)."""
    return math.fsum(right_Q) / len(right_Q)


def geometric_mean(right_Q: Sequence[float]) -> float:
    """Soft-TIFA's geometric mean: one answer of probability 0 makes the image 0 (Kamath et al. 2025, arXiv 2512.16853)."""
    if min(right_Q) <= 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, right_Q)) / len(right_Q))


def fail_with_parents(right_Q: Sequence[float], depends_on_Q: Sequence[Sequence[int]]) -> list[float]:
    """DPG-Bench's rule (Hu et al. 2024, arXiv 2403.05135): a question fails if one that it depends on has failed.

    Questions are gone through in their order, as the published code does: a failure passes on to grandchildren that come
    later, and one that is itself decided later counts as it was answered.
    """
    counted_Q = list(right_Q)
    for index, parents in enumerate(depends_on_Q):
        if any(counted_Q[parent] == 0 for parent in parents):
            counted_Q[index] = 0.0
    return counted_Q


@dataclass(frozen=True)
class Score:
    """How answers are taken, and what they make.

    answers: `soft`: the probability of the right answer. `hard`: 1 or 0, by the answer given.
    combine: the number of an image from its [Q] answers and its Q questions.
    """

    answers: Answers
    combine: Callable[[Sequence[float], Sequence[Question]], float]


SCORES = {
    "soft-tifa-am": Score("soft", lambda right_Q, _: mean(right_Q)),
    "soft-tifa-gm": Score("soft", lambda right_Q, _: geometric_mean(right_Q)),
    "tifa": Score("hard", lambda right_Q, _: mean(right_Q)),
    "dpg": Score("hard", lambda right_Q, asked: mean(fail_with_parents(right_Q, [one.depends_on for one in asked]))),
    "compbench-vqa": Score("soft", lambda right_Q, _: math.prod(right_Q)),
}
_PAIR = ("soft-tifa-gm", "soft-tifa-am")


def scored_together(name: str) -> tuple[str, ...]:
    """The scores that are reported of the same answers: both means of Soft-TIFA, and any other by itself.

    The last of them is the plain mean of answers where there is one, under which single kinds of question are reported.
    """
    return _PAIR if name in _PAIR else (name,)


def kinds_of(question: Question) -> tuple[str, ...]:
    """The kinds that a question is summed up under: `attribute - color` is `attribute` too, as DPG-Bench counts."""
    broad, dash, _ = question.kind.partition(" - ")
    return (broad, question.kind) if dash else (question.kind,) if question.kind else ()
