"""GenEval 2 (Kamath et al. 2025, arXiv 2512.16853): 800 prompts of 3 to 10 atoms, each with questions about its atoms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation.suites.lines import damaged, objects
from evaluation.suites.questions import YES, Question

SKILLS = ("object", "attribute", "count", "position", "verb")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def read_geneval2(path: Path) -> list[dict[str, Any]]:
    """Rows of the published geneval2_data.jsonl; the tag is the number of atoms, such as `atoms-3`.

    Kinds of questions are the skills. A count is right as a word or in digits, everything else is right by a yes.
    """
    rows: list[dict[str, Any]] = []
    for number, record in objects(path):
        try:
            rows.append(_row(record, len(rows)))
        except ValueError as error:
            raise damaged(path, number, str(error)) from error
    return rows


def _row(record: dict[str, Any], index: int) -> dict[str, Any]:
    if missing := [key for key in ("prompt", "atom_count", "vqa_list", "skills") if key not in record]:
        raise ValueError(f"has no {missing[0]!r}, but {', '.join(record)}; is this geneval2_data.jsonl?")
    prompt, atoms, asked, skills = (record[key] for key in ("prompt", "atom_count", "vqa_list", "skills"))
    if not isinstance(prompt, str) or not isinstance(atoms, int):
        raise ValueError(f"has the prompt {prompt!r:.40} and the atom_count {atoms!r}; a text and a number are needed")
    if not (isinstance(asked, list) and isinstance(skills, list) and len(asked) == len(skills) > 0):
        raise ValueError("has a vqa_list and skills that are no lists of the same length, or empty")
    questions = [_question(*pair).to_row() for pair in zip(asked, skills, strict=True)]
    return {"id": f"{index:05d}", "prompt": prompt, "tag": f"atoms-{atoms}", "questions": questions}


def _question(pair: Any, skill: Any) -> Question:
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
        raise ValueError(f"has {pair!r:.60} in vqa_list; [question, answer] is needed")
    if skill not in SKILLS:
        raise ValueError(f"has the skill {skill!r}; known: {', '.join(SKILLS)}")
    text, answer = pair[0], pair[1].casefold()
    if answer not in (NUMBERS if skill == "count" else (YES,)):
        raise ValueError(
            f"has the answer {pair[1]!r} to {text!r}; counts are one to ten in words, all else is answered Yes"
        )
    answers = (answer, str(NUMBERS.index(answer) + 1)) if skill == "count" else (YES,)
    return Question(text, answers, kind=skill)
