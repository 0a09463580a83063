"""Questions about the image of a row, as its column `questions` lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

YES, NO = "yes", "no"
KEYS = ("question", "answers", "depends_on", "kind")


@dataclass(frozen=True)
class Question:
    """A question that is answered with one word.

    answers: the words that are right, in lower case.
    depends_on: places in the row's list, from 0, of the questions whose failure makes this one fail.
    kind: what it asks about, such as `count`, or `attribute - color`; empty if nobody said.
    """

    text: str
    answers: tuple[str, ...] = (YES,)
    depends_on: tuple[int, ...] = ()
    kind: str = ""

    def to_row(self) -> dict[str, Any]:
        """As it stands in a row."""
        return {
            "question": self.text,
            "answers": list(self.answers),
            "depends_on": list(self.depends_on),
            "kind": self.kind,
        }


def read_questions(row: Mapping[str, Any]) -> tuple[Question, ...]:
    """The questions of a row; none if it has no column `questions`.

    Each is a text, whose right answer is yes, or {"question": "How many cats are there?", "answers": ["two", "2"],
    "depends_on": [0], "kind": "count"}, of which the first alone is needed.

    Raises:
        ValueError: an empty list, a question of another form, or one that depends on itself or on none of the list.
    """
    listed = row.get("questions")
    if listed is None:
        return ()
    if not isinstance(listed, (list, tuple)) or not listed:
        raise ValueError(f"questions is {listed!r:.80}; a list of questions is needed, or no such column")
    return tuple(_question(item, index, len(listed)) for index, item in enumerate(listed))


def _question(item: Any, index: int, number: int) -> Question:
    where = f"questions[{index}]"
    if isinstance(item, str):
        item = {"question": item}
    if not isinstance(item, Mapping) or not isinstance(item.get("question"), str) or not item["question"].strip():
        raise ValueError(f"{where} is {item!r:.80}; a text is needed, or an object with the text as 'question'")
    if unknown := [key for key in item if key not in KEYS]:
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; allowed: {', '.join(KEYS)}")
    answers, parents, kind = item.get("answers", [YES]), item.get("depends_on", []), item.get("kind", "")
    if not isinstance(answers, (list, tuple)) or not answers or not all(map(_is_word, answers)):
        raise ValueError(f"{where} has the answers {answers!r:.80}; a list of single words is needed, such as ['yes']")
    if not isinstance(parents, (list, tuple)) or not all(_is_place(parent, index, number) for parent in parents):
        raise ValueError(
            f"{where} depends on {parents!r:.80}; a list of places of other questions is needed, from 0 to {number - 1}"
        )
    if not isinstance(kind, str):
        raise ValueError(f"{where} has the kind {kind!r:.80}; it must be a text")
    return Question(item["question"].strip(), tuple(answer.casefold() for answer in answers), tuple(parents), kind)


def _is_word(answer: Any) -> bool:
    return isinstance(answer, str) and len(answer.split()) == 1


def _is_place(parent: Any, index: int, number: int) -> bool:
    return isinstance(parent, int) and not isinstance(parent, bool) and 0 <= parent < number and parent != index
